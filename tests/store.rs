//! The store alone: the size of a transaction, deleting an item, creating tables that exist.

use tallyhook_aws::store::items::{Key, PortalRecord, portal};
use tallyhook_aws::store::schema::{SchemaError, create_tables};
use tallyhook_aws::store::{Store, StoreError, Write};

use crate::support::{World, aws_error, now};

fn store(world: &World) -> Store {
    Store::new(world.dynamodb.clone(), "accounts", "events")
}

fn writes(count: usize) -> Vec<Write> {
    let record = PortalRecord { password_set_at: Some(now()), ..PortalRecord::default() };
    (0..count).map(|number| portal(&format!("user_{number}").parse().unwrap(), &record)).collect()
}

#[tokio::test]
async fn a_transaction_has_at_most_a_hundred_writes() {
    let world = World::new().await;
    let store = store(&world);
    store.commit(writes(100)).await.unwrap();
    let keys: Vec<Key> = writes(150).into_iter().map(|write| write.key).collect();
    assert_eq!(store.load(keys).await.unwrap().len(), 100);
    assert_eq!(world.operations(), ["TransactWriteItems", "BatchGetItem", "BatchGetItem"]);
    for count in [101, 102, 150] {
        let refused = store.commit(writes(count)).await;
        assert!(matches!(refused, Err(StoreError::TooMany(given)) if given == count), "{refused:?}");
    }
    assert_eq!(world.operations(), [""; 0]);
}

#[tokio::test]
async fn an_item_is_deleted_whether_it_is_there_or_not() {
    let world = World::new().await;
    let (store, [write]) = (store(&world), <[Write; 1]>::try_from(writes(1)).unwrap());
    let key = write.key.clone();
    store.commit(vec![write]).await.unwrap();
    for _ in 0..2 {
        store.delete(&key).await.unwrap();
        assert!(store.load([key.clone()]).await.unwrap().is_empty());
    }
    world.fault(|_| Some(aws_error(400, "AccessDeniedException")));
    assert!(matches!(store.delete(&key).await, Err(StoreError::Refused { .. })));
}

#[tokio::test]
async fn existing_tables_are_kept_and_other_errors_are_returned() {
    let world = World::new().await;
    create_tables(&world.dynamodb, "accounts", "events").await.unwrap();
    world.fault(|call| (call.operation == "CreateTable").then(|| aws_error(400, "LimitExceededException")));
    let refused = create_tables(&world.dynamodb, "accounts", "events").await;
    assert!(
        matches!(refused, Err(SchemaError::Create { ref table, .. }) if table == "accounts"),
        "{refused:?}"
    );
}
