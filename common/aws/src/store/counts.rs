//! Counts of events by outcome over time, from the index `by_day`.
//!
//! A count reads the index entries of its days, all partitions of a day in parallel, and of each entry only
//! the outcome and the time. A partition has a page limit; a count that reaches the limit is marked
//! incomplete.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;

use super::items::{self, Item, Table};
use super::{Store, StoreError, failed, log};

/// Pages of up to 1 MB that are read of one partition.
const MAX_PAGES: usize = 20;
const DAY_MS: i64 = 86_400_000;

/// Numbers of events in consecutive time steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By index of the step in which the events were received, from 0; then by outcome. Steps without events
    /// have no entry.
    pub steps: BTreeMap<i64, BTreeMap<String, u64>>,
    /// Whether all events were counted.
    pub complete: bool,
}

impl Store {
    /// Counts the events received from `from_ms` to `to_ms` (not included) by outcome, in steps of `step_ms`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn outcomes(&self, from_ms: i64, to_ms: i64, step_ms: i64) -> Result<Counts, StoreError> {
        let mut counts = Counts { complete: true, ..Counts::default() };
        let mut begins = from_ms.div_euclid(DAY_MS) * DAY_MS;
        while begins < to_ms {
            let (from, to) = (from_ms.max(begins), to_ms.min(begins + DAY_MS) - 1);
            let partitions = log::day_partitions(&items::day(begins), None);
            for read in
                join_all(partitions.into_iter().map(|partition| self.lines(partition, from, to))).await
            {
                let (lines, complete) = read?;
                counts.complete &= complete;
                for (seen, outcome) in lines {
                    *counts
                        .steps
                        .entry((seen - from_ms).div_euclid(step_ms.max(1)))
                        .or_default()
                        .entry(outcome)
                        .or_default() += 1;
                }
            }
            begins += DAY_MS;
        }
        Ok(counts)
    }

    async fn lines(
        &self,
        partition: String,
        from: i64,
        to: i64,
    ) -> Result<(Vec<(i64, String)>, bool), StoreError> {
        let number = |ms: i64| AttributeValue::N(ms.to_string());
        let (mut lines, mut start): (Vec<(i64, String)>, Option<Item>) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let answer = self
                .client
                .query()
                .table_name(self.table(Table::Events))
                .index_name("by_day")
                .key_condition_expression("#day = :day AND seen BETWEEN :from AND :to")
                .projection_expression("seen, outcome")
                .expression_attribute_names("#day", "day")
                .expression_attribute_values(":day", AttributeValue::S(partition.clone()))
                .expression_attribute_values(":from", number(from))
                .expression_attribute_values(":to", number(to.max(from)))
                .set_exclusive_start_key(start)
                .send()
                .await
                .map_err(|error| failed("Query", &error))?;
            lines.extend(answer.items().iter().filter_map(|item| {
                Some((items::read_number(item, "seen")?, items::read_text(item, "outcome")?))
            }));
            start = answer.last_evaluated_key.filter(|key| !key.is_empty());
            if start.is_none() {
                return Ok((lines, true));
            }
        }
        Ok((lines, false))
    }
}
