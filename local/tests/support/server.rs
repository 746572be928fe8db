//! A small server, for the tests of the commands.

use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;

/// Serves on a free port, and returns the URL.
pub async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address: SocketAddr = listener.local_addr().expect("the listener has an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}
