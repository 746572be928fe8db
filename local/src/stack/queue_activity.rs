//! Whether the polled queues are empty, and whether a batch is being processed.

use super::poller::ProcessedCount;
use crate::sqs::{QueueStatus, Sqs};

/// Compares what the queues handed out with what the pollers have processed. Clones look at the same queues.
#[derive(Clone)]
pub(super) struct QueueActivity {
    sqs: Sqs,
    processed: Vec<ProcessedCount>,
}

impl QueueActivity {
    pub(super) fn new(sqs: Sqs, processed: Vec<ProcessedCount>) -> Self {
        Self { sqs, processed }
    }

    pub(super) fn queues(&self) -> anyhow::Result<Vec<QueueStatus>> {
        self.sqs.queues()
    }

    /// Whether no message is visible or being processed. Messages that become visible later do not count.
    pub(super) fn is_at_rest(&self) -> bool {
        self.all(|queue| queue.visible == 0)
    }

    /// Whether the polled queues hold no message at all.
    pub(super) fn is_empty(&self) -> bool {
        self.all(|queue| queue.visible == 0 && queue.in_flight == 0 && queue.delayed == 0)
    }

    /// Whether every polled queue satisfies `condition` while none of its messages is being processed. The
    /// processed counts are read before the queues: if they equal what was handed out, no message was between
    /// the two at that moment.
    fn all(&self, condition: impl Fn(&QueueStatus) -> bool) -> bool {
        let processed: Vec<(&str, u64)> = self.processed.iter().map(ProcessedCount::get).collect();
        let Ok(queues) = self.queues() else { return false };
        processed.into_iter().all(|(name, processed)| {
            queues
                .iter()
                .find(|queue| queue.name == name)
                .is_none_or(|queue| queue.handed_out == processed && condition(queue))
        })
    }
}
