//! Processes events again: sends them to their queues by id ([`redrive`]) or when they are due ([`retry`]),
//! and processes Stripe's events in their order ([`replay`]). The sweep after a change of the catalog runs
//! with `retry`.

pub mod redrive;
pub mod replay;
pub mod retry;
pub mod sweep;
