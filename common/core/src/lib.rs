//! The pure core: the rules of tallyhook as functions of their arguments.
//!
//! **Invariant:** this crate does no IO and reads neither a clock nor the environment. `Cargo.toml` has no
//! dependency for it, and `clippy.toml` forbids these functions of the standard library.
//!
//! In reading order:
//!
//! | module | what it holds |
//! |---|---|
//! | [`ids`], [`timestamp`], [`credits`] | the basic types |
//! | [`signature`] | verifies that a request comes from Stripe |
//! | [`event`] | Stripe's events and objects, with the fields that the rules read |
//! | [`catalog`] | what is sold: tiers, prices, packs |
//! | [`ledger`], [`reversal`] | ledger entries; refunds and disputes of a payment |
//! | [`account`] | a user's account, and how facts change it |
//! | [`decide`] | what an event changes in an account; one file for each event family |
//! | [`drift`] | differences between an account and Stripe, and which of them may be repaired |
//! | [`order`] | the steps of a paid one-time order |
//! | [`job`], [`notice`] | jobs that notify the app of a change; the messages about an event |
//! | [`setup_status`] | the status shown to a customer after a checkout |
//! | [`health`], [`advice`] | the health score; advice to the operator about a parked or failed event |

pub mod account;
pub mod advice;
pub mod catalog;
pub mod credits;
pub mod decide;
pub mod drift;
pub mod event;
pub mod health;
pub mod ids;
pub mod job;
pub mod ledger;
pub mod notice;
pub mod order;
pub mod reversal;
pub mod setup_status;
pub mod signature;
pub mod stripe_account;
pub mod timestamp;
