//! The operator's API: `/admin/stripe/…`, and the dashboard.
//!
//! It lists the event log, sends events again, changes users and shows the health score. See
//! `common/service/src/http/admin.rs`.

use lambda_http::service_fn;
use tallyhook_service::config::start;
use tallyhook_service::http::admin::Admin;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), lambda_http::Error> {
    start::run(async {
        let env = start::environment().await;
        let admin = Admin::from_env(&env).unwrap_or_else(start::refuse);
        lambda_http::run(service_fn(|request| admin.handle(request))).await
    })
}
