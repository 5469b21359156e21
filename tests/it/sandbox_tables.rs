//! Tables and items through the gateway: names, errors, and the answers that the engine must give right.

use crate::sandbox_support::*;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, KeysAndAttributes, Put, PutRequest,
    ReturnConsumedCapacity, ReturnValue, ReturnValuesOnConditionCheckFailure, ScalarAttributeType,
    StreamSpecification, StreamViewType, TransactWriteItem, WriteRequest,
};

#[tokio::test(start_paused = true)]
async fn a_table_is_created_described_and_listed_under_its_own_arn() {
    let sandbox = sandbox();
    let client = Client::admin(&sandbox, A);
    let key = KeySchemaElement::builder().attribute_name("id").key_type(KeyType::Hash).build().unwrap();
    let attribute = AttributeDefinition::builder()
        .attribute_name("id")
        .attribute_type(ScalarAttributeType::S)
        .build()
        .unwrap();
    let stream = StreamSpecification::builder()
        .stream_enabled(true)
        .stream_view_type(StreamViewType::NewImage)
        .build()
        .unwrap();
    let create = client.db.create_table().table_name("orders").billing_mode(BillingMode::PayPerRequest);
    let create = create.key_schema(key).attribute_definitions(attribute).stream_specification(stream);
    let created = create.send().await.unwrap().table_description.unwrap();
    assert_eq!(created.table_arn(), Some("arn:aws:dynamodb:eu-west-1:111111111111:table/orders"));

    for name in ["orders", created.table_arn().unwrap()] {
        let table = client.db.describe_table().table_name(name).send().await.unwrap().table.unwrap();
        assert_eq!(table.table_arn(), created.table_arn());
        assert_eq!(table.table_id(), created.table_id());
        assert_eq!(table.latest_stream_arn(), created.latest_stream_arn());
        let specification = table.stream_specification().unwrap();
        assert_eq!(specification.stream_view_type(), Some(&StreamViewType::NewImage));
    }
    assert_eq!(client.db.list_tables().send().await.unwrap().table_names(), ["orders"]);
    assert!(Client::admin(&sandbox, B).db.list_tables().send().await.unwrap().table_names().is_empty());

    client.db.delete_table().table_name("orders").send().await.unwrap();
    let error = client.db.describe_table().table_name("orders").send().await.unwrap_err();
    assert_eq!(failure(error).0, "ResourceNotFoundException");
}

#[tokio::test(start_paused = true)]
async fn accounts_and_regions_do_not_see_each_other() {
    let sandbox = sandbox();
    let arn = orders(&sandbox);
    let keys = sandbox.admin(A, "admin").unwrap();
    Client::new(&sandbox, &keys).put("orders", "1", "a").await;

    let error = Client::admin(&sandbox, B).db.scan().table_name("orders").send().await.unwrap_err();
    assert_eq!(failure(error).0, "ResourceNotFoundException", "a plain name is the caller's own account's");
    let elsewhere = aws_sdk_dynamodb::Client::new(&sandbox.sdk_config(&keys, "us-east-1"));
    let error = elsewhere.scan().table_name("orders").send().await.unwrap_err();
    assert_eq!(failure(error).0, "ResourceNotFoundException");
    let (code, message) = failure(elsewhere.scan().table_name(&arn).send().await.unwrap_err());
    assert_eq!(code, "ValidationException");
    assert!(message.contains("Invalid AWS region in"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_condition_returns_the_item_when_asked() {
    let sandbox = sandbox();
    let arn = orders(&sandbox);
    let client = Client::admin(&sandbox, A);
    client.put(&arn, "1", "old").await;
    let put = client.db.put_item().table_name(&arn).item("id", s("1"));
    let put = put.condition_expression("attribute_not_exists(id)");
    let error = put
        .clone()
        .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
        .send()
        .await
        .unwrap_err();
    let PutItemError::ConditionalCheckFailedException(failed) = error.into_service_error() else {
        panic!("another error")
    };
    assert_eq!(failed.item().unwrap()["value"], s("old"));
    let error = put.send().await.unwrap_err().into_service_error();
    assert!(matches!(error, PutItemError::ConditionalCheckFailedException(e) if e.item().is_none()));
}

#[tokio::test(start_paused = true)]
async fn answers_carry_what_the_caller_asked_for_and_no_more() {
    let sandbox = sandbox();
    let arn = orders(&sandbox);
    let client = Client::admin(&sandbox, A);
    let put = || client.db.put_item().table_name(&arn).item("id", s("1"));
    let silent = put().item("value", s("a")).send().await.unwrap();
    assert_eq!((silent.attributes(), silent.consumed_capacity()), (None, None));
    let asked = put()
        .item("value", s("b"))
        .return_values(ReturnValue::AllOld)
        .return_consumed_capacity(ReturnConsumedCapacity::Total)
        .send()
        .await
        .unwrap();
    assert_eq!(asked.attributes().unwrap()["value"], s("a"));
    let capacity = asked.consumed_capacity().unwrap();
    assert_eq!((capacity.table_name(), capacity.capacity_units()), (Some(arn.as_str()), Some(1.0)));

    let update = || {
        let update = client.db.update_item().table_name(&arn).key("id", s("1"));
        update.update_expression("SET #v = :v").expression_attribute_names("#v", "value")
    };
    let silent = update().expression_attribute_values(":v", s("c")).send().await.unwrap();
    assert_eq!(silent.attributes(), None);
    let asked = update()
        .expression_attribute_values(":v", s("d"))
        .return_values(ReturnValue::UpdatedOld)
        .send()
        .await
        .unwrap();
    assert_eq!(asked.attributes().unwrap()["value"], s("c"));
    let silent = client.db.delete_item().table_name(&arn).key("id", s("1")).send().await.unwrap();
    assert_eq!(silent.attributes(), None);
}

#[tokio::test(start_paused = true)]
async fn an_item_over_the_limit_is_refused() {
    let sandbox = sandbox();
    let arn = orders(&sandbox);
    let client = Client::admin(&sandbox, A);
    let put = |bytes: usize| {
        let item = client.db.put_item().table_name(&arn).item("id", s("1"));
        item.item("value", s(&"x".repeat(bytes))).send()
    };
    let overhead = "id1value".len();
    put(400 * 1024 - overhead).await.unwrap();
    let (code, message) = failure(put(400 * 1024 - overhead + 1).await.unwrap_err());
    assert_eq!(code, "ValidationException");
    assert_eq!(message, "Item size has exceeded the maximum allowed size");
}

#[tokio::test(start_paused = true)]
async fn batches_and_transactions_take_arns_and_answer_with_them() {
    let sandbox = sandbox();
    let arn = orders(&sandbox);
    let client = Client::admin(&sandbox, A);
    let write = |id: &str| {
        let put = PutRequest::builder().item("id", s(id)).build().unwrap();
        WriteRequest::builder().put_request(put).build()
    };
    let batch = client.db.batch_write_item().request_items(&arn, vec![write("1"), write("2")]);
    let twice = batch.clone().request_items("orders", vec![write("3")]);
    assert_eq!(failure(twice.send().await.unwrap_err()).0, "ValidationException");
    batch.send().await.unwrap();
    let keys = KeysAndAttributes::builder().keys([("id".into(), s("1"))].into()).build().unwrap();
    let read = client.db.batch_get_item().request_items(&arn, keys).send().await.unwrap();
    assert_eq!(read.responses().unwrap()[&arn].len(), 1);

    let put = |table: &str, id: &str| {
        let put = Put::builder().table_name(table).item("id", s(id)).build().unwrap();
        TransactWriteItem::builder().put(put).build()
    };
    let both = client.db.transact_write_items().transact_items(put(&arn, "3"));
    both.transact_items(put("orders", "4")).send().await.unwrap();
    assert_eq!(sandbox.items(&arn).unwrap().len(), 4);

    let other = sandbox.create_table(B, REGION, "orders", &["id"], None).unwrap();
    let across = client.db.transact_write_items().transact_items(put(&arn, "5"));
    let error = across.transact_items(put(&other, "5")).send().await.unwrap_err();
    assert_eq!(failure(error).0, "ValidationException", "a transaction never spans accounts");
}

#[tokio::test(start_paused = true)]
async fn numbers_come_back_canonical() {
    let sandbox = sandbox();
    let arn = orders(&sandbox);
    let client = Client::admin(&sandbox, A);
    let put = client.db.put_item().table_name(&arn).item("id", s("1"));
    put.item("value", n("001.500")).send().await.unwrap();
    let item = client.db.get_item().table_name(&arn).key("id", s("1")).send().await.unwrap().item.unwrap();
    assert_eq!(item["value"], n("1.5"));
}
