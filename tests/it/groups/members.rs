//! What becomes of a group's members: one is added, items expire, applications write what they had read.

use super::{Group, STAMP, TABLE};
use crate::sandbox_support::Client;
use crate::world::{HOME, eventually, resource_policy};
use aws_sdk_dynamodb::types::{AttributeValue, TimeToLiveSpecification};
use shardwalker::backfill::{Backfill, Ended, Request};
use shardwalker::config::Config;
use shardwalker::service::Service;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[tokio::test(start_paused = true)]
async fn a_member_that_is_added_is_brought_up_to_date_by_a_backfill() {
    let group = Group::new();
    let worker = group.start("").await;
    for key in 0..20 {
        group.apps[key % 3].put(TABLE, &format!("k{key}"), "before").await;
    }
    group.until("k19", Some("before")).await;
    group.until_quiet().await;
    worker.stop().await.unwrap();
    // No stream tells of these items any more.
    for table in &group.tables {
        group.sandbox.trim(table, None).unwrap();
    }
    group.sandbox.admin(HOME, "replicator").unwrap();
    let view = Some("NEW_AND_OLD_IMAGES");
    let table = group.sandbox.create_table("444444444444", "eu-west-1", TABLE, &["id"], view).unwrap();
    let stream = group.sandbox.stream_arn(&table).unwrap().unwrap();
    for (arn, actions) in [
        (&table, &["DescribeTable", "GetItem", "PutItem", "UpdateItem", "DeleteItem"][..]),
        (&stream, &["DescribeStream", "GetRecords", "GetShardIterator"]),
        (&group.tables[0], &["DescribeTable", "GetItem", "PutItem", "UpdateItem", "DeleteItem", "Scan"]),
    ] {
        group.sandbox.put_resource_policy(arn, &resource_policy(arn, actions)).unwrap();
    }
    let text = group.text("on_gap = \"continue\"").replace("\"c\"]", "\"c\", \"d\"]")
        + &format!("[[member]]\nname = \"d\"\ntable = \"{table}\"\nnumber = 4\n");
    let config = || Config::parse(&text, "group.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"));
    let drain = CancellationToken::new();
    let service = Service::build(config(), group.options(true), drain.clone()).await.unwrap();
    let worker = crate::world::Worker::of(service, drain);
    let request = Request { route: "orders/a".to_owned(), peer: Some("d".to_owned()), ..Request::default() };
    let (options, drain) = (group.options(true), CancellationToken::new());
    let backfill = Box::pin(Backfill::build(config(), request, options, None, drain)).await.unwrap();
    let (ended, applied) = futures::join!(Box::pin(backfill.run(watch::channel(None).0)), async {
        group.apps[1].put(TABLE, "k0", "meanwhile").await;
        group.apps[2].delete(TABLE, "k1").await;
    });
    assert!(matches!(ended, Ok(Ended::Done)), "{ended:?} {applied:?}");
    let values = || {
        let items = group.sandbox.items(&table).unwrap();
        let text = |value: &serde_json::Value| value["S"].as_str().unwrap().to_owned();
        items
            .iter()
            .map(|item| (text(&item["id"]), text(&item["value"])))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    eventually("d has what the others have", || {
        let there = values();
        there.len() == 19 && there["k0"] == "meanwhile" && there["k2"] == "before"
    })
    .await;
    Client::admin_of(&group.sandbox, "444444444444", "eu-west-1").put(TABLE, "k2", "from d").await;
    group.until("k2", Some("from d")).await;
    group.until_quiet().await;
    assert!(group.equal());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_member_expires_its_own_items_unless_deletes_by_time_to_live_are_forwarded() {
    for (setting, everywhere) in [("", false), ("ttl_deletes = true", true)] {
        let group = Group::new();
        let specification =
            TimeToLiveSpecification::builder().attribute_name("expires").enabled(true).build().unwrap();
        let ttl = group.apps[0].db.update_time_to_live().table_name(TABLE);
        ttl.time_to_live_specification(specification).send().await.unwrap();
        let worker = group.start(setting).await;
        group.apps[0].put(TABLE, "k", "value").await;
        let update = group.apps[0].db.update_item().table_name(TABLE);
        let update = update.key("id", AttributeValue::S("k".to_owned()));
        let update = update.update_expression("SET expires = :then");
        let then = AttributeValue::N("1799990000".to_owned());
        update.expression_attribute_values(":then", then).send().await.unwrap();
        group.until("k", Some("value")).await;
        group.until_quiet().await;
        assert_eq!(group.sandbox.sweep_ttl().unwrap(), 1, "only a expires items");
        group.apps[0].put(TABLE, "last", "value").await;
        group.until("last", Some("value")).await;
        group.until_quiet().await;
        let left = (0..3).map(|member| group.value(member, "k").is_some()).collect::<Vec<_>>();
        assert_eq!(left, if everywhere { [false; 3] } else { [false, true, true] }, "{setting}");
        worker.stop().await.unwrap();
    }
}

/// An application reads an item of ours, another puts a whole item, and the first puts its own back with our attribute.
#[tokio::test(start_paused = true)]
async fn whole_items_that_are_put_back_pause_nothing() {
    let group = Group::new();
    let worker = group.start("").await;
    for key in 0..15 {
        let id = format!("k{key}");
        group.apps[0].put(TABLE, &id, "copied").await;
        group.until(&id, Some("copied")).await;
        group.until_quiet().await;
        let mut read = group.read(1, &id).await;
        assert!(read.contains_key(STAMP));
        group.apps[1].put(TABLE, &id, "whole").await;
        read.insert("value".to_owned(), AttributeValue::S("put back".to_owned()));
        group.apps[1].db.put_item().table_name(TABLE).set_item(Some(read)).send().await.unwrap();
        group.until(&id, Some("put back")).await;
    }
    group.until_quiet().await;
    assert!(worker.problems().is_empty(), "{:?}", worker.problems());
    assert!(group.equal());
    worker.stop().await.unwrap();
}

/// Stamps that are newer than those of the items before and do not match: what digests that are not stable would cause.
#[tokio::test(start_paused = true)]
async fn writes_that_come_back_as_others_pause_the_route() {
    let group = Group::new();
    let worker = group.start("").await;
    for key in 0..10 {
        let id = format!("k{key}");
        group.apps[0].put(TABLE, &id, "copied").await;
        group.until(&id, Some("copied")).await;
    }
    group.until_quiet().await;
    for key in 0..10 {
        let mut item = group.read(1, &format!("k{key}")).await;
        let stamp = item[STAMP].as_s().unwrap();
        let newer = u64::from_str_radix(&stamp[..16], 16).unwrap() + 1;
        let newer = format!("{newer:016x}{}", &stamp[16..]);
        item.insert(STAMP.to_owned(), AttributeValue::S(newer));
        item.insert("value".to_owned(), AttributeValue::S("another".to_owned()));
        group.apps[1].db.put_item().table_name(TABLE).set_item(Some(item)).send().await.unwrap();
    }
    let paused =
        || worker.problems().iter().any(|problem| problem.contains("orders/b") && problem.contains("paused"));
    eventually("the route of b is paused", paused).await;
    worker.stop().await.unwrap();
}
