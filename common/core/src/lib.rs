//! The pure core: rules that are functions of their arguments. **Invariant:** nothing in here does IO, reads
//! a clock or the environment.

pub mod account;
pub mod advice;
pub mod catalog;
pub mod credits;
pub mod decide;
pub mod drift;
pub mod health;
pub mod ids;
pub mod ledger;
pub mod reversal;
pub mod setup_status;
pub mod timestamp;
