//! The functions that answer HTTP requests, and what they share: answers, bearer tokens, pages.

pub mod admin;
mod answer;
pub mod api;
pub mod pages;
mod path;
pub mod token;
