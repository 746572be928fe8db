//! The reference for a worker. For a batch it makes one read (account, entry and marker of each event) and
//! one transaction.
//!
//! It decides nothing: each invoice adds 5,000 credits to the account of its `user_id`.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes, Put, TransactWriteItem};
use lambda_runtime::{Error, LambdaEvent, service_fn};
use lean::{config, var};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Batch {
    #[serde(rename = "Records")]
    records: Vec<Record>,
}

#[derive(Deserialize)]
struct Record {
    body: String,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    id: &'a str,
    created: i64,
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    object: Invoice<'a>,
}

#[derive(Deserialize)]
struct Invoice<'a> {
    #[serde(borrow)]
    id: &'a str,
    #[serde(borrow)]
    parent: Parent<'a>,
}

#[derive(Deserialize)]
struct Parent<'a> {
    #[serde(borrow)]
    subscription_details: Details<'a>,
}

#[derive(Deserialize)]
struct Details<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    user_id: &'a str,
}

type Item = HashMap<String, AttributeValue>;

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn key(pk: String, sk: Option<String>) -> Item {
    [("pk".to_owned(), text(pk))].into_iter().chain(sk.map(|sk| ("sk".to_owned(), text(sk)))).collect()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let dynamodb = aws_sdk_dynamodb::Client::new(&config());
    let (accounts, events) = (var("ACCOUNTS_TABLE"), var("EVENTS_TABLE"));
    let _ =
        dynamodb.get_item().table_name(&events).set_key(Some(key("prewarm".to_owned(), None))).send().await;
    lambda_runtime::run(service_fn(|batch: LambdaEvent<Batch>| {
        let (dynamodb, accounts, events) = (&dynamodb, accounts.as_str(), events.as_str());
        async move { handle(dynamodb, accounts, events, &batch.payload).await }
    }))
    .await
}

async fn handle(
    dynamodb: &aws_sdk_dynamodb::Client,
    accounts: &str,
    events: &str,
    batch: &Batch,
) -> Result<Value, Error> {
    let read: Vec<Event<'_>> =
        batch.records.iter().map(|record| serde_json::from_str(&record.body)).collect::<Result<_, _>>()?;
    let (mut of_accounts, mut of_events) = (Vec::new(), Vec::new());
    for event in &read {
        let user = format!("user#{}", event.data.object.parent.subscription_details.metadata.user_id);
        of_accounts.push(key(user.clone(), Some("account".to_owned())));
        of_accounts.push(key(user, Some(format!("ledger#invoice#{}", event.data.object.id))));
        of_events.push(key(event.id.to_owned(), None));
    }
    let wanted = |keys| KeysAndAttributes::builder().set_keys(Some(keys)).consistent_read(true).build();
    let found = dynamodb
        .batch_get_item()
        .request_items(accounts, wanted(of_accounts)?)
        .request_items(events, wanted(of_events)?)
        .send()
        .await?
        .responses
        .unwrap_or_default();
    let known = |user: &str, name: &str| {
        let items = found.get(accounts).into_iter().flatten();
        let account = items
            .into_iter()
            .find(|item| item.get("pk") == Some(&text(user)) && item.get("sk") == Some(&text("account")))?;
        account.get(name)?.as_n().ok()?.parse::<u64>().ok()
    };
    let mut writes = Vec::new();
    for event in &read {
        let invoice = &event.data.object;
        let user = format!("user#{}", invoice.parent.subscription_details.metadata.user_id);
        let (version, credits) =
            (known(&user, "version").unwrap_or(0), known(&user, "credits").unwrap_or(0) + 5000);
        let mut account = key(user.clone(), Some("account".to_owned()));
        account.extend([
            ("version".to_owned(), number(version + 1)),
            ("credits".to_owned(), number(credits)),
            ("tier".to_owned(), text("pro")),
            ("updated_at".to_owned(), number(event.created)),
        ]);
        let on_version = Put::builder().table_name(accounts).set_item(Some(account));
        let on_version = if version == 0 {
            on_version.condition_expression("attribute_not_exists(pk)")
        } else {
            on_version
                .condition_expression("version = :version")
                .expression_attribute_values(":version", number(version))
        };
        let mut entry = key(user.clone(), Some(format!("ledger#invoice#{}", invoice.id)));
        entry.extend([
            ("delta".to_owned(), number(5000)),
            ("balance".to_owned(), number(credits)),
            ("event".to_owned(), text(event.id)),
        ]);
        let mut marker = key(event.id.to_owned(), None);
        marker.extend([
            ("outcome".to_owned(), text("processed")),
            ("user_id".to_owned(), text(user)),
            ("created".to_owned(), number(event.created)),
            ("expires_at".to_owned(), number(event.created + 90 * 86_400)),
        ]);
        let absent = |table: &str, item| {
            Put::builder()
                .table_name(table)
                .set_item(Some(item))
                .condition_expression("attribute_not_exists(pk)")
        };
        for put in [on_version, absent(accounts, entry), absent(events, marker)] {
            writes.push(TransactWriteItem::builder().put(put.build()?).build());
        }
    }
    dynamodb.transact_write_items().set_transact_items(Some(writes)).send().await?;
    Ok(json!({"batchItemFailures": []}))
}
