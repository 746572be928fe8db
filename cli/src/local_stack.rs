//! Address and secrets of a local stack that is started without settings.
//!
//! The commands use them for a deployment on this machine, so that none of them has to be typed.

/// The address of the webhook, the app's API and the admin API.
pub const URL: &str = "http://127.0.0.1:9000";
/// The default of `STRIPE_WEBHOOK_SECRET`.
pub const WEBHOOK_SECRET: &str = "whsec_local";
/// The default of `APP_API_TOKEN`.
pub const APP_TOKEN: &str = "app-local";
/// The default of `ADMIN_API_TOKEN`.
pub const ADMIN_TOKEN: &str = "admin-local";
