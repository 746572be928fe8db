//! The functions that run on a schedule or from the dead-letter queue.

pub mod dead_letter;
pub mod health;
pub mod reconcile;
pub mod retry;
