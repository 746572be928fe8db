//! The functions that answer HTTP requests: [`webhook`] for Stripe, [`api`] for the app, [`admin`] for the
//! operator.
//!
//! The app's and the operator's share answers, bearer tokens and pages.

pub mod admin;
mod answer;
pub mod api;
pub mod pages;
mod path;
pub mod token;
pub mod webhook;
