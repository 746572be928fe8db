//! The signal that stops the tasks of a stack.

use tokio::sync::watch;

/// Ends when the stack is stopped or dropped.
pub(super) fn stopped(stop: &watch::Receiver<bool>) -> impl Future<Output = ()> + Send + 'static {
    let mut stop = stop.clone();
    async move {
        let _ = stop.wait_for(|stop| *stop).await;
    }
}
