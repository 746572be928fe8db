//! Behaviour of the whole system, in reading order. One binary, so that it links once.

#![allow(clippy::unwrap_used, reason = "a test says that it failed by panicking")]
#![allow(missing_docs, reason = "helpers of tests are named for what they do")]

// What the tests stand on.
/// A deployment in one process, whose calls can be made to fail.
mod support;
/// What must hold in the tables and queues at every moment.
mod invariants;

// From a webhook to an account.
/// The main path: a signed event changes an account exactly once.
mod webhook_to_account;
/// Subscriptions, packs, orders, refunds: what each event grants.
mod credit_rules;
/// The signatures that Stripe's own libraries accept and refuse.
mod signature_vectors;
/// Sample events of other projects are read, or refused for a known reason.
mod corpus;
/// What the rules decide about each event of that corpus.
mod golden;

// What goes wrong.
/// The numbered scenarios of `docs/faults.md`.
mod faults;
/// Handlers stopped at every call, in every way a call can fail.
mod crash_points;
/// The same events in any order and number end in the same account.
mod any_order;
/// Random transitions, faults included, compared with a simple model.
mod model;
/// Parked events, failed events, dead letters, and how they are sent again.
mod parked_and_failed;

// Stripe.
/// The client of Stripe's API.
mod stripe_client;
/// The client against a Stripe that is not ours.
mod any_stripe;
/// Reconciliation and replay repair what differs from Stripe.
mod reconcile;
/// Reconciliation of many subscriptions: its requests and its memory.
mod reconcile_many;
/// Customers whose webhooks never arrived.
mod missed_webhooks;

// The app and its users.
/// `POST /checkout-sessions`.
mod checkout;
/// The status page and the setup status after a checkout.
mod portal;
/// The app's webhook: provisioning and account updates.
mod provision;

// The operator.
/// The admin API: validation, sending events again, health, the dashboard's page.
mod admin;
/// The admin API for one user: explanations and repairs.
mod admin_user;
/// Listing the event log.
mod event_log;
/// Alerts to Slack and Discord.
mod notify;
/// The procedures of `docs/operating.md`.
mod runbook;

// What must not change unnoticed.
/// Items and `openapi.json` as reviewed text.
mod snapshots;
/// `openapi.json` against every answer of every test.
mod openapi;
/// Calls, bytes and capacity units of an event.
mod counts;
/// The code, `template.yaml` and the guides agree.
mod code_and_template;

// Security and AWS.
/// Tokens, pages, keys, secrets in logs, the template and the workflows.
mod security;
/// Each function calls only what its role allows.
mod permissions;
/// Secrets from SSM parameters, and their rotation.
mod parameters;
/// The bounds of the store.
mod store;
/// What we rely on in DynamoDB and SQS.
mod conformance;
