//! `retry`, every 15 minutes: one run of [`Retrier`].

use serde_json::Value;

use crate::accounts::Accounts;
use crate::config::RetryConfig;
use crate::outbox::Outbox;
use crate::resend::redrive::Redrive;
use crate::resend::retry::{Retrier, RetryReport};
use tallyhook_aws::clock;
use tallyhook_aws::env::{ConfigError, Env};
use tallyhook_aws::queue::Queue;
use tallyhook_aws::sdk;
use tallyhook_aws::store::{Store, StoreError};
use tallyhook_core::timestamp::Timestamp;

/// The function `retry`.
pub struct Retry {
    retrier: Retrier,
}

impl Retry {
    /// Builds the function from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let (dynamodb, sqs) = sdk::clients(env)?;
        Ok(Self::new(RetryConfig::from_env(env)?, dynamodb, sqs))
    }

    /// Builds the function with given clients.
    pub fn new(config: RetryConfig, dynamodb: sdk::DynamoDb, sqs: sdk::Sqs) -> Self {
        let store = Store::new(dynamodb, config.accounts_table, config.events_table);
        let queue = Queue::new(sqs);
        let outbox = Outbox::new(queue.clone(), config.outbox);
        let redrive = Redrive::new(queue, config.queues);
        let accounts = Accounts::new(store, config.catalog, outbox);
        Self { retrier: Retrier::new(accounts, redrive) }
    }

    /// Does one scheduled run; the content of the schedule's event does not matter.
    ///
    /// # Errors
    /// [`StoreError`]. Lambda retries the invocation; the next run is 15 minutes later.
    pub async fn handle(&self, _: Value) -> Result<RetryReport, lambda_runtime::Error> {
        Ok(self.run(clock::now()).await?)
    }

    /// Does one run at a given time.
    ///
    /// # Errors
    /// [`StoreError`]; what was done before stays done.
    pub async fn run(&self, now: Timestamp) -> Result<RetryReport, StoreError> {
        self.retrier.with_fresh_catalog().await.run(now).await
    }
}
