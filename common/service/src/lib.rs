//! The use cases of tallyhook and the handlers of its functions. `ARCHITECTURE.md` follows one `invoice.paid`
//! from HTTP to the DynamoDB write.
//!
//! In reading order:
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | what each function reads from its environment, and how it starts |
//! | [`alerts`] | messages to the operator, and the function `notify` that posts them |
//! | [`outbox`] | jobs that report changes to the app, and the function `provision` that does them |
//! | [`resend`] | sends events to their queues again: parked ones from the log, missed ones from Stripe |
//! | [`accounts`] | the one way to change an account |
//! | [`catalog_cache`] | the catalog that decides |
//! | [`account_view`] | an account as JSON |
//! | [`process`] | turns the events of a batch into DynamoDB writes |
//! | [`health`] | counts events and messages and computes the health score |
//! | [`worker`] | the functions of the event families: each takes the events of its queue |
//! | [`schedules`] | the functions `reconcile`, `retry`, `health` and `dead-letter` |
//! | [`http`] | the functions `stripe-webhook`, `api` and `admin`, and the pages |

pub mod account_view;
pub mod accounts;
pub mod alerts;
pub mod catalog_cache;
pub mod config;
pub mod health;
pub mod http;
pub mod outbox;
pub mod process;
pub mod resend;
pub mod schedules;
pub mod worker;
