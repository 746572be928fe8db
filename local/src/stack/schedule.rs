//! Functions on a schedule, as EventBridge runs them with a rate: the first time one period after the start.

use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::lambda::{Function, InvokeError};
use super::shutdown::stopped;

/// A function and its period.
pub struct Schedule {
    function: Function,
    period: Duration,
}

impl Schedule {
    /// Nothing runs until [`Schedule::start`].
    pub fn new(function: &Function, period: Duration) -> Self {
        Self { function: function.clone(), period }
    }

    /// The function's name.
    pub fn name(&self) -> &str {
        self.function.name()
    }

    /// Runs the function at once and returns its answer.
    ///
    /// # Errors
    /// [`InvokeError`].
    pub async fn run(&self) -> Result<Vec<u8>, InvokeError> {
        // The event of an EventBridge rule. The functions do not read it.
        self.function
            .invoke(&json!({ "source": "aws.events", "detail-type": "Scheduled Event", "detail": {} }))
            .await
    }

    /// Runs the function every period until `stop` becomes true. A running invocation is finished.
    pub fn start(&self, stop: &watch::Receiver<bool>) -> JoinHandle<()> {
        let (schedule, stop) = (Self::new(&self.function, self.period), stop.clone());
        tokio::spawn(async move {
            let mut ticks = interval_at(Instant::now() + schedule.period, schedule.period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    () = stopped(&stop) => return,
                    _ = ticks.tick() => {}
                }
                if let Err(error) = schedule.run().await {
                    tracing::error!(function = schedule.name(), %error, "a scheduled function failed");
                }
            }
        })
    }
}
