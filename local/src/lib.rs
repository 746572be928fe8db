//! The local stack: a whole deployment in one process, without AWS, Docker or a Stripe account. It is never
//! shipped.
//!
//! | module | what it is |
//! |---|---|
//! | [`stack`] | starts everything below and the functions, and connects them |
//! | [`sqs`] | the SQS endpoint |
//! | [`fake_stripe`] | Stripe's API |
//! | [`life`] | random customers and the events that Stripe sends about them, for tests |
//!
//! DynamoDB is the crate `dynoxide`. The commands of the binary `tallyhook` are in the package `cli` and in
//! this package's `commands/`.

pub mod fake_stripe;
pub mod life;
pub mod sqs;
pub mod stack;
