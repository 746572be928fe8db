//! Everything the functions share; `ARCHITECTURE.md` has the map and follows one `invoice.paid` from HTTP to
//! the DynamoDB write.
//!
//! From pure to shell: [`signature`], [`event`] and [`domain`] are functions of their arguments; [`store`]
//! and [`queue`] talk to AWS; [`process`] is the straight path from a message to the write; [`webhook`],
//! [`worker`] and [`api`] are the handlers that the functions' `main.rs` wire up.

pub mod admin;
pub mod alert;
mod answer;
pub mod api;
pub mod aws;
mod clock;
pub mod config;
pub mod dead_letter;
pub mod domain;
pub mod event;
pub mod health;
pub mod http;
pub mod notify;
pub mod outbox;
pub mod pages;
pub mod process;
pub mod provision;
pub mod queue;
pub mod reconcile;
pub mod redrive;
pub mod replay;
pub mod retry;
pub mod signature;
pub mod start;
pub mod store;
pub mod stripe;
pub mod telemetry;
pub mod token;
pub mod webhook;
pub mod worker;

/// Of every function and of the local stack. An event is thousands of small allocations, JSON to items to
/// JSON: the C library's allocator took a seventh of a worker's CPU more, and in the local stack, where
/// threads share it, a third of it all.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
