//! Functions that the time invokes, as EventBridge does with a rate: the first time one period after the
//! start.

use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::lambda::{Failure, Function};
use super::stopped;

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

    /// Runs the function once, now, and answers what it answered.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn run(&self) -> Result<Vec<u8>, Failure> {
        // What a rule of EventBridge sends; the functions take no input.
        self.function
            .invoke(&json!({ "source": "aws.events", "detail-type": "Scheduled Event", "detail": {} }))
            .await
    }

    /// Runs it every period until `stop` becomes true; a run that has begun is finished.
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
                if let Err(failure) = schedule.run().await {
                    tracing::error!(function = schedule.name(), %failure, "a scheduled run failed");
                }
            }
        })
    }
}
