//! The pure core: the rules of tallyhook as functions of their arguments.
//!
//! **Invariant:** nothing in this crate does IO, reads a clock or the environment. `Cargo.toml` names no crate
//! that could, and `clippy.toml` beside it forbids the standard library's ways.
//!
//! In reading order:
//!
//! | module | what it holds |
//! |---|---|
//! | [`ids`], [`timestamp`], [`credits`] | the types that everything else is made of |
//! | [`signature`] | whether a request comes from Stripe |
//! | [`event`] | Stripe's events and objects, as far as a rule reads them |
//! | [`catalog`] | what is sold: tiers, prices, packs |
//! | [`ledger`], [`reversal`] | entries of the ledger; what refunds and disputes take back |
//! | [`account`] | one user's account, and how facts change it |
//! | [`decide`] | one file for each event family: what an event means for an account |
//! | [`drift`] | how an account differs from Stripe, and what may be repaired |
//! | [`job`] | the jobs by which the app learns of a change |
//! | [`setup_status`] | what the status page shows to a customer after a payment |
//! | [`health`], [`advice`] | the health score, and advice to the operator for each parked event |

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
pub mod reversal;
pub mod setup_status;
pub mod signature;
pub mod timestamp;
