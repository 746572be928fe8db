//! Sends events to their queues again.

pub mod redrive;
pub mod replay;
