//! Sends events to their queues again: by id ([`redrive`]), from Stripe ([`replay`]), and all that are due
//! ([`retry`]).

pub mod redrive;
pub mod replay;
pub mod retry;
