//! Input and output: AWS, Stripe's API, HTTP, logs. The rules for events are in `tallyhook-core`, not here.
//!
//! **Invariant:** of the workspace's crates, this one depends on `tallyhook-core` only.
//!
//! In reading order:
//!
//! | module | what it holds |
//! |---|---|
//! | [`mod@env`], [`clock`], [`telemetry`] | environment variables, time, logs and metrics |
//! | [`sdk`] | clients of the AWS SDK, and SSM parameters |
//! | [`payload`] | compression of event bodies and of the state of accounts |
//! | [`queue`] | SQS |
//! | [`store`] | DynamoDB: keys and items, reads, the transaction, the event log, counts, scans |
//! | [`http`] | requests to servers outside AWS, with a guard against private addresses |
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
