//! The use cases of tallyhook and the handlers of its functions; `ARCHITECTURE.md` follows one `invoice.paid`
//! from HTTP to the DynamoDB write.
//!
//! In reading order:
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | what each function reads from its environment |
//! | [`alerts`] | messages to the operator, and the function `notify` that posts them |
//! | [`outbox`] | jobs by which the app learns of a change, and the function `provision` that does them |
//! | [`resend`] | sends events to their queues again: parked ones from the log, missed ones from Stripe |
//! | [`accounts`] | the one way to change an account |
//! | [`process`] | the straight path from a message to the write |
//! | [`health`] | how the system is, counted and judged |
//! | [`webhook`], [`worker`] | the functions that take Stripe's requests, and the families' queues |
//! | [`reconcile`] | the function that compares accounts with Stripe and repairs what it may |
//! | [`schedules`] | the functions `retry`, `health` and `dead-letter` |
//! | [`http`] | the functions `api` and `admin`, and their pages |
//! | [`start`] | how a function starts |

pub mod accounts;
pub mod alerts;
pub mod config;
pub mod health;
pub mod http;
pub mod outbox;
pub mod process;
pub mod reconcile;
pub mod resend;
pub mod schedules;
pub mod start;
pub mod webhook;
pub mod worker;
