//! The admin API: `/admin/stripe/…`.
//!
//! It lists the event log, sends events again and tells how the system is. See `common/src/admin.rs`.

use common::{admin::Admin, start};
use lambda_http::service_fn;

fn main() -> Result<(), lambda_http::Error> {
    start::run(async {
        let env = start::environment().await;
        let admin = Admin::from_env(&env).unwrap_or_else(start::refuse);
        lambda_http::run(service_fn(|request| admin.handle(request))).await
    })
}
