//! The input and output of tallyhook. Nothing in this crate decides what an event is worth.
//!
//! **Invariant:** this crate depends on `tallyhook-core` alone among our crates.
//!
//! In reading order:
//!
//! | module | what it holds |
//! |---|---|
//! | [`env`], [`clock`], [`telemetry`] | variables, time, logs and metrics |
//! | [`sdk`] | clients of the AWS SDK, and parameters of SSM |
//! | [`payload`] | how the body of an event is compressed |
//! | [`queue`] | SQS |
//! | [`store`] | DynamoDB: keys and items, reads, the transaction, the event log, counts, scans |
//! | [`http`] | requests to addresses outside AWS, with a guard for private ones |
//! | [`stripe`] | Stripe's API |

pub mod clock;
pub mod env;
pub mod http;
pub mod payload;
pub mod queue;
pub mod sdk;
pub mod store;
pub mod stripe;
pub mod telemetry;
