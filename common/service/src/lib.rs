//! The use cases of tallyhook and the handlers of its functions. `ARCHITECTURE.md` follows one `invoice.paid`
//! from HTTP to the DynamoDB write.
//!
//! In reading order:
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | what each function reads from its environment |
//! | [`alerts`] | messages to the operator, and the function `notify` that posts them |
//! | [`outbox`] | jobs that report changes to the app, and the function `provision` that does them |
//! | [`resend`] | sends events to their queues again: parked ones from the log, missed ones from Stripe |
//! | [`accounts`] | the one way to change an account |
//! | [`process`] | turns the events of a batch into DynamoDB writes |
//! | [`health`] | counts events and messages and computes the health score |
//! | [`webhook`], [`worker`] | the function that takes Stripe's requests, and the functions of the queues |
//! | [`reconcile`] | the function that compares accounts with Stripe and repairs differences |
//! | [`schedules`] | the functions `retry`, `health` and `dead-letter` |
//! | [`http`] | the functions `api` and `admin`, and their pages |
//! | [`start`] | starts a function |

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
