//! The app's API: `/users/{id}` and the routes below it, checkout, and the pages for customers.
//!
//! It creates users, shows accounts and ledgers, and spends credits. See `common/service/src/http/api.rs`.

use lambda_http::service_fn;
use tallyhook_service::config::start;
use tallyhook_service::http::api::Api;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), lambda_http::Error> {
    start::run(async {
        let env = start::environment().await;
        let api = Api::from_env(&env).unwrap_or_else(start::refuse);
        lambda_http::run(service_fn(|request| api.handle(request))).await
    })
}
