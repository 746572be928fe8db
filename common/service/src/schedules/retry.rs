//! `retry`, every quarter of an hour: one run of [`Retrier`].

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

/// The function.
pub struct Retry {
    retrier: Retrier,
}

impl Retry {
    /// Builds it from the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let (dynamodb, sqs) = sdk::clients(env)?;
        Ok(Self::new(RetryConfig::from_env(env)?, dynamodb, sqs))
    }

    /// The same over given clients.
    pub fn new(config: RetryConfig, dynamodb: sdk::DynamoDb, sqs: sdk::Sqs) -> Self {
        let store = Store::new(dynamodb, config.accounts_table, config.events_table);
        let queue = Queue::new(sqs);
        let outbox = Outbox::new(queue.clone(), config.outbox);
        let redrive = Redrive::new(queue, config.queues);
        let accounts = Accounts { store, catalog: config.catalog, outbox };
        Self { retrier: Retrier::new(accounts, redrive) }
    }

    /// The schedule's invocation; what it sends does not matter.
    ///
    /// # Errors
    /// The store's: Lambda tries the invocation again, and the next run is a quarter of an hour away.
    pub async fn handle(&self, _: Value) -> Result<RetryReport, lambda_runtime::Error> {
        Ok(self.run(clock::now()).await?)
    }

    /// One run at a given time.
    ///
    /// # Errors
    /// [`StoreError`]; what was done until then stands.
    pub async fn run(&self, now: Timestamp) -> Result<RetryReport, StoreError> {
        self.retrier.run(now).await
    }
}
