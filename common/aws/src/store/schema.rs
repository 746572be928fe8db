//! The two tables, for the local stack and the tests. `template.yaml` declares the same tables for AWS; a
//! test compares both.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{BuildError, SdkError};
use aws_sdk_dynamodb::operation::create_table::CreateTableError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection,
    ProjectionType, ScalarAttributeType,
};

/// Attributes that the two indexes of the events table hold besides their keys: those shown in the event
/// list.
pub const LISTED: [&str; 10] = [
    "outcome",
    "type",
    "reason",
    "user_id",
    "waits_for",
    "attempts",
    "created",
    "finished",
    "due",
    "redrives",
];

/// Why a table could not be created.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A definition in this file is incomplete.
    #[error("table definition: {0}")]
    Definition(#[from] BuildError),
    /// DynamoDB refused the request or did not answer.
    #[error("create table {table}: {message}")]
    Create {
        /// Name of the table.
        table: String,
        /// The error.
        message: String,
    },
}

/// Creates the tables that do not exist yet.
///
/// # Errors
/// [`SchemaError`].
pub async fn create_tables(client: &Client, accounts: &str, events: &str) -> Result<(), SchemaError> {
    let by_due = GlobalSecondaryIndex::builder()
        .index_name("by_due")
        .key_schema(key("due_day", KeyType::Hash)?)
        .key_schema(key("due_at", KeyType::Range)?)
        .projection(Projection::builder().projection_type(ProjectionType::KeysOnly).build())
        .build()?;
    let by_shard = GlobalSecondaryIndex::builder()
        .index_name("by_shard")
        .key_schema(key("shard", KeyType::Hash)?)
        .key_schema(key("pk", KeyType::Range)?)
        .projection(Projection::builder().projection_type(ProjectionType::KeysOnly).build())
        .build()?;
    let create = client
        .create_table()
        .table_name(accounts)
        .billing_mode(BillingMode::PayPerRequest)
        .attribute_definitions(attribute("pk", ScalarAttributeType::S)?)
        .attribute_definitions(attribute("sk", ScalarAttributeType::S)?)
        .attribute_definitions(attribute("due_day", ScalarAttributeType::S)?)
        .attribute_definitions(attribute("due_at", ScalarAttributeType::N)?)
        .attribute_definitions(attribute("shard", ScalarAttributeType::S)?)
        .global_secondary_indexes(by_due)
        .global_secondary_indexes(by_shard)
        .key_schema(key("pk", KeyType::Hash)?)
        .key_schema(key("sk", KeyType::Range)?);
    done(accounts, create.send().await)?;

    let mut create = client
        .create_table()
        .table_name(events)
        .billing_mode(BillingMode::PayPerRequest)
        .attribute_definitions(attribute("pk", ScalarAttributeType::S)?)
        .attribute_definitions(attribute("seen", ScalarAttributeType::N)?)
        .key_schema(key("pk", KeyType::Hash)?);
    for (index, hash) in [("by_day", "day"), ("by_status", "open")] {
        let listed = LISTED.iter().map(|&name| name.to_owned()).collect();
        let projection = Projection::builder()
            .projection_type(ProjectionType::Include)
            .set_non_key_attributes(Some(listed))
            .build();
        let index = GlobalSecondaryIndex::builder()
            .index_name(index)
            .key_schema(key(hash, KeyType::Hash)?)
            .key_schema(key("seen", KeyType::Range)?)
            .projection(projection)
            .build()?;
        create = create
            .attribute_definitions(attribute(hash, ScalarAttributeType::S)?)
            .global_secondary_indexes(index);
    }
    done(events, create.send().await)
}

fn attribute(name: &str, kind: ScalarAttributeType) -> Result<AttributeDefinition, BuildError> {
    AttributeDefinition::builder().attribute_name(name).attribute_type(kind).build()
}

fn key(name: &str, kind: KeyType) -> Result<KeySchemaElement, BuildError> {
    KeySchemaElement::builder().attribute_name(name).key_type(kind).build()
}

fn done<T, R>(table: &str, answer: Result<T, SdkError<CreateTableError, R>>) -> Result<(), SchemaError>
where
    R: std::fmt::Debug,
{
    match answer {
        Ok(_) => Ok(()),
        Err(error)
            if error.as_service_error().is_some_and(CreateTableError::is_resource_in_use_exception) =>
        {
            Ok(())
        }
        Err(error) => {
            let message = match error.as_service_error() {
                Some(service) => service.to_string(),
                None => format!("{error:?}"),
            };
            Err(SchemaError::Create { table: table.to_owned(), message })
        }
    }
}
