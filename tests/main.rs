//! Behaviour of the whole system. One binary, so that it links once. In reading order:
//!
//! **What the tests use**
//! - `support`: A deployment in one process. A test can make its calls fail.
//! - `invariants`: What must hold in the tables and queues at every moment.
//!
//! **From a webhook to an account**
//! - `webhook_to_account`: The main path: a signed event changes an account exactly once.
//! - `credit_rules`: Subscriptions, packs, orders, refunds: what each event grants.
//! - `signature_vectors`: The signatures that Stripe's own libraries accept and refuse.
//! - `corpus`: Each event of the corpus is read, or refused for a known reason.
//! - `golden`: What the rules decide about each event of that corpus.
//!
//! **Faults**
//! - `faults`: The numbered scenarios of `docs/faults.md`.
//! - `crash_points`: Handlers stopped at every call, in every way a call can fail.
//! - `any_order`: The same events in any order and number end in the same account.
//! - `model`: Random transitions, faults included, compared with a simple model.
//! - `parked_and_failed`: Parked events, failed events, dead letters, and how they are sent again.
//!
//! **Stripe**
//! - `stripe_client`: The client of Stripe's API.
//! - `any_stripe`: The client against a Stripe that is not ours.
//! - `reconcile`: Reconciliation and replay repair what differs from Stripe.
//! - `reconcile_many`: Reconciliation of many subscriptions: its requests and its memory.
//! - `missed_webhooks`: Customers without any webhook.
//!
//! **The app and its users**
//! - `checkout`: `POST /checkout-sessions`.
//! - `features`: Features, products, `check`, and the sweep after a change of the catalog.
//! - `holds`: Holds, their commits and releases, and spends that are given back.
//! - `setup_status`: The status page and the setup status after a checkout.
//! - `orders`: One-time orders: the app's steps, the operator's list, what the app is sent.
//! - `provision`: The app's webhook: provisioning and account updates.
//! - `app_messages`: Every type of message to the app, once for each cause.
//! - `systems`: The story of each source system, from its first to its last sentence.
//! - `test_clock`: A life on one of Stripe's test clocks.
//!
//! **The operator**
//! - `admin`: The admin API: validation, sending events again, health, the dashboard's page.
//! - `admin_tokens`: The roles of operators, the limit of their grants, and the actor of the audit.
//! - `admin_user`: The admin API for one user: explanations and repairs.
//! - `exports`: Exports of everything, and the deletion of what identifies a person.
//! - `catalog`: The catalog as data: stored, versioned, replaced under load.
//! - `learnt_prices`: Price ids that are learnt from lookup keys.
//! - `imports`: Users of another system: their customers and their credits.
//! - `event_log`: Listing the event log.
//! - `health`: The hourly check of the queues and of the Stripe account.
//! - `notify`: Alerts to Slack and Discord.
//! - `runbook`: The procedures of `docs/operating.md`.
//!
//! **What must not change unnoticed**
//! - `snapshots`: Items and `openapi.json` as reviewed text.
//! - `log_lines`: The names and fields of log lines, compared in every test.
//! - `openapi`: `openapi.json` against every answer of every test.
//! - `counts`: Calls, bytes and capacity units of an event.
//! - `code_and_template`: The code, `template.yaml` and the guides agree.
//!
//! **Security and AWS**
//! - `user_ids`: User ids are taken unchanged, through both entry points.
//! - `security`: Tokens, pages, keys, secrets in logs, the template and the workflows.
//! - `permissions`: Each function calls only what its role allows.
//! - `parameters`: Secrets from SSM parameters, and their rotation.
//! - `store`: The bounds of the store.
//! - `conformance`: What we rely on in DynamoDB and SQS.

#![allow(clippy::unwrap_used, reason = "a test says that it failed by panicking")]
#![allow(missing_docs, reason = "helpers of tests are named for what they do")]

mod admin;
mod admin_tokens;
mod admin_user;
mod any_order;
mod any_stripe;
mod app_messages;
mod catalog;
mod checkout;
mod code_and_template;
mod conformance;
mod corpus;
mod counts;
mod crash_points;
mod credit_rules;
mod dismiss;
mod event_log;
mod exports;
mod faults;
mod features;
mod golden;
mod health;
mod holds;
mod imports;
mod invariants;
mod learnt_prices;
mod log_lines;
mod missed_webhooks;
mod model;
mod notify;
mod openapi;
mod orders;
mod parameters;
mod parked_and_failed;
mod permissions;
mod provision;
mod reconcile;
mod reconcile_many;
mod runbook;
mod security;
mod setup_status;
mod signature_vectors;
mod snapshots;
mod store;
mod stripe_client;
mod support;
mod systems;
mod test_clock;
mod user_ids;
mod webhook_to_account;
