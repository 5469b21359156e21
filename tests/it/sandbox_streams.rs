//! Streams: what is captured, how shards live and die, and how listings and pages may be incomplete.

use crate::sandbox_support::*;
use aws_sdk_dynamodb::types::{
    Delete, DeleteRequest, Put, PutRequest, TransactWriteItem, Update, WriteRequest,
};
use aws_sdk_dynamodbstreams::types::{
    OperationType, Record, Shard, ShardFilter, ShardFilterType, ShardIteratorType,
};
use serde_json::json;
use shardwalker::sandbox::Sandbox;
use shardwalker::sandbox::faults::Weather;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Event, old and new value of the records of one key, in order.
fn history(records: &[Record], id: &str) -> Vec<(OperationType, Option<String>, Option<String>)> {
    let value = |image: Option<&std::collections::HashMap<String, _>>| {
        let value: &aws_sdk_dynamodbstreams::types::AttributeValue = image?.get("value")?;
        value.as_s().ok().cloned()
    };
    let data = records.iter().filter_map(|record| Some((record.event_name()?.clone(), record.dynamodb()?)));
    data.filter(|(_, data)| data.keys().unwrap()["id"].as_s().unwrap() == id)
        .map(|(event, data)| (event, value(data.old_image()), value(data.new_image())))
        .collect()
}

fn text(text: &str) -> Option<String> {
    Some(text.into())
}

fn sequence(record: &Record) -> u128 {
    record.dynamodb().unwrap().sequence_number().unwrap().parse().unwrap()
}

async fn describe(client: &Client, stream: &str) -> Vec<Shard> {
    let mut shards = Vec::new();
    let mut after = None;
    loop {
        let call = client.streams.describe_stream().stream_arn(stream);
        let page = call.set_exclusive_start_shard_id(after).send().await.unwrap();
        let description = page.stream_description.unwrap();
        shards.extend(description.shards.unwrap_or_default());
        after = description.last_evaluated_shard_id;
        if after.is_none() {
            return shards;
        }
    }
}

fn setup() -> (Sandbox, Client, String, String) {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let stream = sandbox.stream_arn(&table).unwrap().unwrap();
    let client = Client::admin(&sandbox, A);
    (sandbox, client, table, stream)
}

#[tokio::test(start_paused = true)]
async fn every_way_of_writing_is_captured_with_both_images() {
    use OperationType::{Insert, Modify, Remove};
    let (sandbox, client, table, _) = setup();
    let update = |id: &str, value: &str| {
        let update = client.db.update_item().table_name(&table).key("id", s(id));
        update
            .update_expression("SET #v = :v")
            .expression_attribute_names("#v", "value")
            .expression_attribute_values(":v", s(value))
    };
    client.put(&table, "1", "a").await;
    client.put(&table, "1", "b").await;
    update("1", "c").send().await.unwrap();
    client.delete(&table, "1").await;
    update("1", "d").send().await.unwrap();

    let put = PutRequest::builder().item("id", s("2")).item("value", s("a")).build().unwrap();
    let delete = DeleteRequest::builder().key("id", s("1")).build().unwrap();
    let writes = vec![
        WriteRequest::builder().put_request(put).build(),
        WriteRequest::builder().delete_request(delete).build(),
    ];
    client.db.batch_write_item().request_items(&table, writes).send().await.unwrap();

    let put = Put::builder().table_name(&table).item("id", s("3")).item("value", s("a")).build().unwrap();
    let set = Update::builder()
        .table_name(&table)
        .key("id", s("1"))
        .update_expression("SET #v = :v")
        .expression_attribute_names("#v", "value")
        .expression_attribute_values(":v", s("e"))
        .build()
        .unwrap();
    let delete = Delete::builder().table_name(&table).key("id", s("2")).build().unwrap();
    let action = TransactWriteItem::builder;
    let transaction = client.db.transact_write_items().transact_items(action().put(put).build());
    let transaction = transaction.transact_items(action().update(set).build());
    transaction.transact_items(action().delete(delete).build()).send().await.unwrap();

    let records = client.all_records(&sandbox, &table).await;
    assert_eq!(
        history(&records, "1"),
        [
            (Insert, None, text("a")),
            (Modify, text("a"), text("b")),
            (Modify, text("b"), text("c")),
            (Remove, text("c"), None),
            (Insert, None, text("d")),
            (Remove, text("d"), None),
            (Insert, None, text("e")),
        ]
    );
    assert_eq!(history(&records, "2"), [(Insert, None, text("a")), (Remove, text("a"), None)]);
    assert_eq!(history(&records, "3"), [(Insert, None, text("a"))]);
}

#[tokio::test(start_paused = true)]
async fn what_changes_nothing_makes_no_record() {
    let (sandbox, client, table, _) = setup();
    let numbers = |set: &[&str]| {
        let set = set.iter().map(|n| (*n).to_owned()).collect();
        aws_sdk_dynamodb::types::AttributeValue::Ns(set)
    };
    let put = |value: &str, set: &[&str]| {
        let put = client.db.put_item().table_name(&table).item("id", s("1"));
        put.item("n", n(value)).item("set", numbers(set)).send()
    };
    put("1", &["1", "2"]).await.unwrap();
    put("1.0", &["2.0", "1"]).await.unwrap();
    let update = client.db.update_item().table_name(&table).key("id", s("1"));
    let same = update.update_expression("SET n = :n").expression_attribute_values(":n", n("1"));
    same.send().await.unwrap();
    client.delete(&table, "absent").await;
    let failed = client.db.put_item().table_name(&table).item("id", s("1"));
    failed.condition_expression("attribute_not_exists(id)").send().await.unwrap_err();
    assert_eq!(client.all_records(&sandbox, &table).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_record_is_what_aws_sends() {
    let (sandbox, client, table, _) = setup();
    tokio::time::advance(Duration::from_millis(1_999)).await;
    client.put(&table, "1", "abc").await;
    let records = client.all_records(&sandbox, &table).await;
    let record = &records[0];
    let data = record.dynamodb().unwrap();
    assert_eq!((record.aws_region(), record.event_source()), (Some(REGION), Some("aws:dynamodb")));
    assert_eq!((record.event_version(), record.event_id().map(str::len)), (Some("1.1"), Some(32)));
    assert!(record.user_identity().is_none());
    let created = data.approximate_creation_date_time().unwrap();
    assert_eq!((created.secs(), created.subsec_nanos()), (1_767_225_601, 0), "whole seconds, rounded down");
    assert!((21..=40).contains(&data.sequence_number().unwrap().len()));
    let (key, item) = ("id1".len(), "id1valueabc".len());
    assert_eq!(data.size_bytes(), Some(i64::try_from(key + item).unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_view_shows_only_its_images() {
    for (view, new, old) in [
        ("KEYS_ONLY", false, false),
        ("NEW_IMAGE", true, false),
        ("OLD_IMAGE", false, true),
        ("NEW_AND_OLD_IMAGES", true, true),
    ] {
        let sandbox = sandbox();
        let table = sandbox.create_table(A, REGION, "orders", &["id"], Some(view)).unwrap();
        let client = Client::admin(&sandbox, A);
        client.put(&table, "1", "a").await;
        client.put(&table, "1", "b").await;
        let records = client.all_records(&sandbox, &table).await;
        let data = records[1].dynamodb().unwrap();
        assert_eq!((data.new_image().is_some(), data.old_image().is_some()), (new, old), "{view}");
        assert_eq!(data.stream_view_type().unwrap().as_str(), view);
    }
}

#[tokio::test(start_paused = true)]
async fn keys_spread_over_shards_and_stay_in_order() {
    let (sandbox, client, table, stream) = setup();
    for round in 0..5 {
        for key in 0..40 {
            client.put(&table, &key.to_string(), &round.to_string()).await;
        }
    }
    let mut home: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut crossed_a_digit = false;
    for shard in sandbox.shards(&table).unwrap() {
        let (records, ended) = client.shard_records(&stream, &shard.id).await;
        assert!(!records.is_empty() && !ended, "{} records in {}", records.len(), shard.id);
        assert!(records.is_sorted_by(|a, b| sequence(a) < sequence(b)));
        let digits: BTreeSet<usize> =
            records.iter().map(|record| sequence(record).to_string().len()).collect();
        crossed_a_digit |= digits.len() > 1;
        for record in &records {
            let id = record.dynamodb().unwrap().keys().unwrap()["id"].as_s().unwrap().clone();
            home.entry(id).or_default().insert(shard.id.clone());
        }
    }
    assert_eq!(home.len(), 40);
    assert!(home.values().all(|shards| shards.len() == 1), "{home:?}");
    assert!(crossed_a_digit, "numbers that gain a digit must be met in tests");
}

#[tokio::test(start_paused = true)]
async fn splits_and_rollovers_keep_the_lineage() {
    let (sandbox, client, table, stream) = setup();
    for key in 0..40 {
        client.put(&table, &key.to_string(), "before").await;
    }
    let parents = sandbox.shards(&table).unwrap();
    tokio::time::advance(Duration::from_millis(5)).await;
    sandbox.split(&table, Some(&parents[0].id)).unwrap();
    sandbox.roll_over(&table, Some(&parents[1].id)).unwrap();
    sandbox.split(&table, Some(&parents[0].id)).unwrap_err();
    for key in 0..40 {
        client.put(&table, &key.to_string(), "after").await;
    }
    let shards = describe(&client, &stream).await;
    let children = |parent: &str| {
        let mine = shards.iter().filter(|shard| shard.parent_shard_id() == Some(parent));
        mine.map(|shard| shard.shard_id().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((children(&parents[0].id).len(), children(&parents[1].id).len()), (2, 1));
    assert_eq!((children(&parents[2].id).len(), shards.len()), (0, 7));

    for parent in &parents[..2] {
        let listed = shards.iter().find(|shard| shard.shard_id() == Some(&parent.id)).unwrap();
        let ending = listed.sequence_number_range().unwrap().ending_sequence_number().unwrap();
        let (records, ended) = client.shard_records(&stream, &parent.id).await;
        assert!(ended, "a closed shard ends");
        let mut keys_after = BTreeSet::new();
        for child in children(&parent.id) {
            for record in client.shard_records(&stream, &child).await.0 {
                assert!(sequence(&record) > ending.parse().unwrap());
                keys_after.insert(record.dynamodb().unwrap().keys().unwrap()["id"].as_s().unwrap().clone());
            }
        }
        let keys_before: BTreeSet<String> = records
            .iter()
            .map(|record| record.dynamodb().unwrap().keys().unwrap()["id"].as_s().unwrap().clone())
            .collect();
        assert_eq!(keys_before, keys_after, "the children hold the parent's keys");
    }

    let filter = ShardFilter::builder().r#type(ShardFilterType::ChildShards).shard_id(&parents[0].id).build();
    let answer =
        client.streams.describe_stream().stream_arn(&stream).shard_filter(filter).send().await.unwrap();
    let found = answer.stream_description().unwrap().shards();
    let found: Vec<_> = found.iter().map(|shard| shard.shard_id().unwrap().to_owned()).collect();
    assert_eq!(found, children(&parents[0].id));
}

#[tokio::test(start_paused = true)]
async fn shards_roll_over_by_time_and_age_out() {
    let sandbox = with(|options| options.initial_shards = 1);
    let table = orders(&sandbox);
    let stream = sandbox.stream_arn(&table).unwrap().unwrap();
    let client = Client::admin(&sandbox, A);
    client.put(&table, "1", "a").await;
    let first = sandbox.shards(&table).unwrap()[0].clone();
    sandbox.advance(Duration::from_secs(4 * 3600));
    client.put(&table, "1", "b").await;
    let shards = sandbox.shards(&table).unwrap();
    assert_eq!((shards.len(), shards[0].open, shards[1].open), (2, false, true));
    assert_eq!(shards[1].parent.as_ref(), Some(&first.id));

    sandbox.advance(DAY);
    let left = describe(&client, &stream).await;
    assert!(left.iter().all(|shard| shard.shard_id() != Some(&first.id)), "aged out");
    assert!(left.iter().any(|shard| shard.parent_shard_id().is_some()), "a parent may be gone");
    let call = client.streams.get_shard_iterator().stream_arn(&stream).shard_id(&first.id);
    let error = call.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await.unwrap_err();
    assert_eq!(failure(error).0, "ResourceNotFoundException");
}

#[tokio::test(start_paused = true)]
async fn old_records_are_trimmed_and_reading_them_fails_loudly() {
    let sandbox = with(|options| (options.initial_shards, options.shard_lifetime) = (1, None));
    let table = orders(&sandbox);
    let stream = sandbox.stream_arn(&table).unwrap().unwrap();
    let client = Client::admin(&sandbox, A);
    client.put(&table, "1", "a").await;
    client.put(&table, "2", "a").await;
    let shard = sandbox.shards(&table).unwrap()[0].id.clone();
    let (records, _) = client.shard_records(&stream, &shard).await;
    let first = records[0].dynamodb().unwrap().sequence_number().unwrap().to_owned();
    let last = records[1].dynamodb().unwrap().sequence_number().unwrap().to_owned();
    let after = |number: &str| {
        let call = client.streams.get_shard_iterator().stream_arn(&stream).shard_id(&shard);
        call.shard_iterator_type(ShardIteratorType::AfterSequenceNumber).sequence_number(number).send()
    };
    let waiting = after(&first).await.unwrap().shard_iterator.unwrap();
    sandbox.trim(&table, Some(&shard)).unwrap();
    let error = client.streams.get_records().shard_iterator(waiting).send().await.unwrap_err();
    assert_eq!(failure(error).0, "TrimmedDataAccessException");
    assert_eq!(failure(after(&first).await.unwrap_err()).0, "TrimmedDataAccessException");
    after(&last).await.expect("right after the last trimmed record nothing was lost");

    client.put(&table, "3", "a").await;
    let (records, _) = client.shard_records(&stream, &shard).await;
    assert_eq!(records.len(), 1, "the trim horizon is where reading is possible");
    let read = records[0].dynamodb().unwrap().sequence_number().unwrap().to_owned();
    sandbox.advance(DAY);
    assert_eq!(client.shard_records(&stream, &shard).await.0.len(), 0);
    after(&read).await.expect("everything up to there was read: nothing is missing");
}

#[tokio::test(start_paused = true)]
async fn iterators_expire_and_start_where_they_are_told() {
    let sandbox = with(|options| options.initial_shards = 1);
    let table = orders(&sandbox);
    let stream = sandbox.stream_arn(&table).unwrap().unwrap();
    let client = Client::admin(&sandbox, A);
    let shard = sandbox.shards(&table).unwrap()[0].id.clone();
    for key in ["1", "2", "3"] {
        client.put(&table, key, "a").await;
        sandbox.advance(Duration::from_secs(10));
    }
    let (records, _) = client.shard_records(&stream, &shard).await;
    let second = records[1].dynamodb().unwrap().sequence_number().unwrap().to_owned();
    let call = || client.streams.get_shard_iterator().stream_arn(&stream).shard_id(&shard);
    let count = async |iterator: &str| {
        let page = client.streams.get_records().shard_iterator(iterator).send().await.unwrap();
        (page.records().len(), page.next_shard_iterator.unwrap())
    };
    let open = async |call: aws_sdk_dynamodbstreams::operation::get_shard_iterator::builders::GetShardIteratorFluentBuilder| {
        call.send().await.unwrap().shard_iterator.unwrap()
    };
    use ShardIteratorType::{AfterSequenceNumber, AtSequenceNumber, Latest, TrimHorizon};
    let from = open(call().shard_iterator_type(TrimHorizon)).await;
    assert_eq!(count(&from).await.0, 3);
    let at = open(call().shard_iterator_type(AtSequenceNumber).sequence_number(&second)).await;
    assert_eq!(count(&at).await.0, 2);
    let after = open(call().shard_iterator_type(AfterSequenceNumber).sequence_number(&second)).await;
    assert_eq!(count(&after).await.0, 1);
    let latest = open(call().shard_iterator_type(Latest)).await;
    let (none, next) = count(&latest).await;
    assert_eq!(none, 0);
    client.put(&table, "4", "a").await;
    assert_eq!(count(&next).await.0, 1);

    let body = json!({
        "StreamArn": stream, "ShardId": shard, "ShardIteratorType": "AT_TIMESTAMP", "Timestamp": 1_767_225_605
    });
    let by_time = sandbox.call(A, REGION, "GetShardIterator", body).unwrap();
    assert_eq!(count(by_time["ShardIterator"].as_str().unwrap()).await.0, 3, "all but the first");

    sandbox.advance(Duration::from_secs(15 * 60));
    count(&next).await;
    sandbox.advance(Duration::from_secs(1));
    let error = client.streams.get_records().shard_iterator(next).send().await.unwrap_err();
    assert_eq!(failure(error).0, "ExpiredIteratorException");
    let error = client.streams.get_records().shard_iterator("nonsense").send().await.unwrap_err();
    assert_eq!(failure(error).0, "ValidationException");
}

#[tokio::test(start_paused = true)]
async fn pages_are_bounded() {
    let sandbox = with(|options| options.initial_shards = 1);
    let table = orders(&sandbox);
    let stream = sandbox.stream_arn(&table).unwrap().unwrap();
    let client = Client::admin(&sandbox, A);
    let shard = sandbox.shards(&table).unwrap()[0].id.clone();
    for key in 0..5 {
        client.put(&table, &key.to_string(), &"x".repeat(300_000)).await;
    }
    let first = client.oldest(&stream, &shard).await;
    let page = client.streams.get_records().shard_iterator(&first).send().await.unwrap();
    assert_eq!(page.records().len(), 3, "a page holds 1 MB");
    let page = client.streams.get_records().shard_iterator(&first).limit(2).send().await.unwrap();
    assert_eq!(page.records().len(), 2);
    let rest = client.streams.get_records().shard_iterator(page.next_shard_iterator.unwrap()).send().await;
    assert_eq!(rest.unwrap().records().len(), 3);
    let error = client.streams.get_records().shard_iterator(&first).limit(1001).send().await.unwrap_err();
    assert_eq!(failure(error).0, "ValidationException");
}

#[tokio::test(start_paused = true)]
async fn listings_are_paged_and_may_lag() {
    let (sandbox, client, table, stream) = setup();
    let whole = describe(&client, &stream).await;
    let page = client.streams.describe_stream().stream_arn(&stream).limit(3).send().await.unwrap();
    let description = page.stream_description().unwrap();
    assert_eq!(description.shards().len(), 3);
    assert_eq!(description.last_evaluated_shard_id(), description.shards()[2].shard_id());

    sandbox.faults().set_weather(Weather { short_listings: 0.7, ..Weather::default() });
    let mut cut_short = 0;
    for _ in 0..20 {
        assert_eq!(describe(&client, &stream).await, whole, "short pages lose nothing");
        let page = client.streams.describe_stream().stream_arn(&stream).send().await.unwrap();
        cut_short += u32::from(page.stream_description().unwrap().last_evaluated_shard_id().is_some());
    }
    assert!(cut_short > 0);

    let lag =
        Weather { children_listed_after_ms: 5_000, closed_listed_after_ms: 9_000, ..Weather::default() };
    sandbox.faults().set_weather(lag);
    let parent = sandbox.shards(&table).unwrap()[0].id.clone();
    sandbox.split(&table, Some(&parent)).unwrap();
    let closed = |shards: &[Shard]| {
        let parent = shards.iter().find(|shard| shard.shard_id() == Some(&parent)).unwrap();
        parent.sequence_number_range().unwrap().ending_sequence_number().is_some()
    };
    let seen = describe(&client, &stream).await;
    assert_eq!((seen.len(), closed(&seen)), (4, false), "neither the children nor the end");
    tokio::time::advance(Duration::from_secs(5)).await;
    let seen = describe(&client, &stream).await;
    assert_eq!((seen.len(), closed(&seen)), (6, false), "an open parent with children");
    tokio::time::advance(Duration::from_secs(4)).await;
    assert!(closed(&describe(&client, &stream).await));
}

#[tokio::test(start_paused = true)]
async fn pages_may_be_empty_in_the_middle() {
    let sandbox = with(|options| options.initial_shards = 1);
    let table = orders(&sandbox);
    let stream = sandbox.stream_arn(&table).unwrap().unwrap();
    let client = Client::admin(&sandbox, A);
    let shard = sandbox.shards(&table).unwrap()[0].id.clone();
    for key in 0..10 {
        client.put(&table, &key.to_string(), "a").await;
    }
    sandbox.roll_over(&table, Some(&shard)).unwrap();
    sandbox.faults().set_weather(Weather { empty_pages: 0.5, ..Weather::default() });
    let mut iterator = Some(client.oldest(&stream, &shard).await);
    let (mut records, mut empty) = (0, 0);
    while let Some(at) = iterator {
        let page = client.streams.get_records().shard_iterator(at).limit(1).send().await.unwrap();
        records += page.records().len();
        empty += u32::from(page.records().is_empty());
        iterator = page.next_shard_iterator;
    }
    assert_eq!(records, 10);
    assert!(empty > 0);
}

#[tokio::test(start_paused = true)]
async fn reading_is_limited_when_asked() {
    let sandbox = with(|options| (options.initial_shards, options.stream_limits) = (1, true));
    let table = orders(&sandbox);
    let stream = sandbox.stream_arn(&table).unwrap().unwrap();
    let client = Client::admin(&sandbox, A);
    let shard = sandbox.shards(&table).unwrap()[0].id.clone();
    let iterator = client.oldest(&stream, &shard).await;
    let read = || client.streams.get_records().shard_iterator(&iterator).send();
    for _ in 0..5 {
        read().await.unwrap();
    }
    assert_eq!(failure(read().await.unwrap_err()).0, "LimitExceededException");
    tokio::time::advance(Duration::from_secs(1)).await;
    read().await.unwrap();

    let describe = || client.streams.describe_stream().stream_arn(&stream).send();
    for _ in 0..10 {
        describe().await.unwrap();
    }
    assert_eq!(failure(describe().await.unwrap_err()).0, "ThrottlingException");
    tokio::time::advance(Duration::from_secs(1)).await;
    describe().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn expired_items_are_deleted_by_the_service() {
    let (sandbox, client, table, _) = setup();
    let ttl = json!({"AttributeName": "expires", "Enabled": true});
    let body = json!({"TableName": "orders", "TimeToLiveSpecification": ttl});
    sandbox.call(A, REGION, "UpdateTimeToLive", body).unwrap();
    for (id, at) in [("due", "1767225610"), ("later", "1767225700"), ("ancient", "1000")] {
        let put = client.db.put_item().table_name(&table).item("id", s(id)).item("expires", n(at));
        put.send().await.unwrap();
    }
    assert_eq!(sandbox.sweep_ttl().unwrap(), 0);
    sandbox.advance(Duration::from_secs(10));
    assert_eq!(sandbox.sweep_ttl().unwrap(), 1);
    let records = client.all_records(&sandbox, &table).await;
    let removed: Vec<_> =
        records.iter().filter(|record| record.event_name() == Some(&OperationType::Remove)).collect();
    assert_eq!(removed.len(), 1);
    let identity = removed[0].user_identity().unwrap();
    assert_eq!(identity.principal_id(), Some("dynamodb.amazonaws.com"));
    assert_eq!(identity.r#type(), Some("Service"));
    assert_eq!(sandbox.items(&table).unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn streams_are_listed() {
    let (sandbox, client, _, first) = setup();
    sandbox.create_table(A, REGION, "other", &["id"], Some("KEYS_ONLY")).unwrap();
    let all = client.streams.list_streams().send().await.unwrap();
    assert_eq!(all.streams().len(), 2);
    let one = client.streams.list_streams().table_name("orders").send().await.unwrap();
    assert_eq!(one.streams()[0].stream_arn(), Some(first.as_str()));
    let page = client.streams.list_streams().limit(1).send().await.unwrap();
    let rest =
        client.streams.list_streams().exclusive_start_stream_arn(page.last_evaluated_stream_arn().unwrap());
    assert_eq!(rest.send().await.unwrap().streams().len(), 1);
}
