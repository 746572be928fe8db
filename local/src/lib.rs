//! The local stack: everything a deployment has, in one process on one machine. Never shipped.

pub mod client;
pub mod fake_stripe;
pub mod life;
pub mod sample;
pub mod sqs;
pub mod stack;
