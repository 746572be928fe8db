//! Behaviour of the whole system, a file per subject; one binary, so that it links once.

#![allow(clippy::unwrap_used, reason = "a test says that it failed by panicking")]
#![allow(missing_docs, reason = "helpers of tests are named for what they do")]

mod admin;
mod admin_user;
mod any_order;
mod any_stripe;
mod checkout;
mod conformance;
mod corpus;
mod counts;
mod crash_points;
mod dropped;
mod faults;
mod golden;
mod guards;
mod invariants;
mod log;
mod model;
mod notify;
mod openapi;
mod operating;
mod parameters;
mod permissions;
mod portal;
mod provision;
mod reconcile;
mod reconcile_many;
mod recovery;
mod scenarios;
mod security;
mod signature_vectors;
mod snapshots;
mod spine;
mod store;
mod stripe_client;
mod support;
