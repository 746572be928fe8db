//! Sends events to their queues again: by id ([`redrive`]), from Stripe ([`replay`]), and all that are due
//! ([`retry`]). The sweep after a change of the catalog runs with `retry`.

pub mod redrive;
pub mod replay;
pub mod retry;
pub mod sweep;
