//! Functions that keep the deployment in order. No user waits for them.

pub mod dead_letter;
pub mod health;
pub mod retry;
