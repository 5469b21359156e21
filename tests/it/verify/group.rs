//! All members of a group against each other.

use super::{differences, found, request, verify};
use crate::groups::{Group, NAMES, TABLE};
use crate::world::{HOME, resource_policy};
use serde_json::Value;
use shardwalker::verify::judge::Kind;
use shardwalker::verify::record::Tally;
use shardwalker::verify::{Prefer, Request, VerifyError};

const GO_ON: &str = "on_gap = \"continue\"";

fn group() -> Group {
    let group = Group::new();
    group.sandbox.admin(HOME, "replicator").unwrap();
    for table in &group.tables {
        let actions = ["DescribeTable", "Scan", "GetItem", "PutItem", "UpdateItem", "DeleteItem"];
        group.sandbox.put_resource_policy(table, &resource_policy(table, &actions)).unwrap();
    }
    group
}

async fn compare(group: &Group, request: Request) -> Result<(Tally, Vec<Value>), VerifyError> {
    verify(group.config(GO_ON), request, group.options(false)).await
}

fn prefer(name: &str) -> Request {
    Request { repair: true, prefer: Some(Prefer::Member(name.to_owned())), ..request("orders") }
}

/// A group whose streams have lost what the applications did while nobody walked: at a, k1 is new, k2 another one and k3
/// deleted; at b, k4 is another one.
async fn lossy() -> Group {
    let group = group();
    let worker = group.start("").await;
    for id in ["k2", "k3", "k4", "k5"] {
        group.apps[0].put(TABLE, id, "old").await;
    }
    for id in ["k2", "k3", "k4", "k5"] {
        group.until(id, Some("old")).await;
    }
    group.until_quiet().await;
    worker.stop().await.unwrap();
    group.apps[0].put(TABLE, "k1", "lost").await;
    group.update(0, "k2", "lost").await;
    group.apps[0].delete(TABLE, "k3").await;
    group.apps[1].put(TABLE, "k4", "lost").await;
    for table in &group.tables[..2] {
        group.sandbox.trim(table, None).unwrap();
    }
    group
}

#[tokio::test(start_paused = true)]
async fn members_of_a_group_agree_while_all_of_them_are_written() {
    let group = group();
    let worker = group.start("").await;
    for key in 0..50 {
        group.apps[0].put(TABLE, &format!("k{key}"), "before").await;
    }
    group.until("k49", Some("before")).await;
    let busy = async {
        for round in 0..200 {
            for (member, name) in NAMES.iter().enumerate() {
                group.apps[member].put(TABLE, &format!("k{}", round % 50), &format!("{name}{round}")).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    let (compared, ()) = futures::join!(compare(&group, request("orders")), busy);
    let (tally, lines) = compared.unwrap();
    assert_eq!(tally.remaining(), 0, "{lines:#?}");
    assert!(tally.compared > 0);
    group.until_quiet().await;
    let (tally, _) = compare(&group, request("orders")).await.unwrap();
    assert_eq!((tally.compared, tally.equal, tally.remaining()), (50, 50, 0));
    let one = compare(&group, request("orders/a")).await.unwrap_err().to_string();
    assert!(one.contains("verify orders"), "{one}");
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn writes_of_unknown_version_are_settled_by_the_operator_alone() {
    let group = lossy().await;
    let worker = group.start(GO_ON).await;
    group.until_quiet().await;
    let (tally, lines) = compare(&group, Request { repair: true, ..request("orders") }).await.unwrap();
    let unknown = ["k1", "k2", "k3", "k4"].map(|key| (Kind::Unversioned, key));
    assert_eq!(differences(&lines), found(&unknown));
    assert_eq!((tally.remaining(), tally.repaired), (4, 0));
    assert_eq!(group.value(1, "k2").as_deref(), Some("old"), "nothing is settled silently");

    let (tally, lines) = compare(&group, prefer("a")).await.unwrap();
    assert_eq!((tally.remaining(), tally.repaired), (0, 4), "{lines:#?}");
    group.until_quiet().await;
    assert!(group.equal());
    for (key, value) in [("k1", Some("lost")), ("k2", Some("lost")), ("k3", None), ("k4", Some("old"))] {
        assert_eq!(group.value(2, key).as_deref(), value, "{key}");
    }
    // It goes on from there.
    for (member, key) in ["k1", "k2", "k3", "k4"].into_iter().enumerate() {
        group.apps[member % 3].put(TABLE, key, "later").await;
    }
    for key in ["k1", "k2", "k3", "k4"] {
        group.until(key, Some("later")).await;
        group.apps[2].delete(TABLE, key).await;
        group.until(key, None).await;
    }
    group.until_quiet().await;
    assert_eq!(compare(&group, request("orders")).await.unwrap().0.remaining(), 0);
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_newest_by_an_attribute_is_right_where_all_items_have_it() {
    let group = lossy().await;
    let worker = group.start(GO_ON).await;
    group.until_quiet().await;
    let newest = Some(Prefer::Newest("value".to_owned()));
    let newest = Request { repair: true, prefer: newest, ..request("orders") };
    let (tally, lines) = compare(&group, newest).await.unwrap();
    // "old" is the higher text; of k1 and k3 there is only one.
    assert_eq!((tally.remaining(), tally.repaired), (0, 4), "{lines:#?}");
    group.until_quiet().await;
    assert!(group.equal());
    for (key, value) in [("k1", "lost"), ("k2", "old"), ("k3", "old"), ("k4", "old")] {
        assert_eq!(group.value(0, key).as_deref(), Some(value), "{key}");
    }
    let lacking = Some(Prefer::Newest("updated".to_owned()));
    group.apps[0].put(TABLE, "k1", "more").await;
    group.until("k1", Some("more")).await;
    let lacking = Request { repair: true, prefer: lacking, ..request("orders") };
    assert_eq!(
        compare(&group, lacking).await.unwrap().0.remaining(),
        0,
        "nothing is unknown, nothing is asked"
    );
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_member_that_lacks_items_gets_them_with_their_versions() {
    let group = group();
    let worker = group.start("").await;
    for id in ["k1", "k2"] {
        group.apps[0].put(TABLE, id, "value").await;
        group.until(id, Some("value")).await;
    }
    group.until_quiet().await;
    worker.stop().await.unwrap();
    // As if c had been made anew from a backup without k1: no stream tells of that.
    let table = &group.tables[2];
    let before: Vec<Value> = group.sandbox.items(table).unwrap();
    group.apps[2].delete(TABLE, "k1").await;
    group.sandbox.trim(table, None).unwrap();
    let worker = group.start(GO_ON).await;
    let (tally, lines) = compare(&group, request("orders")).await.unwrap();
    assert_eq!((tally.remaining(), before.len()), (1, 2), "{lines:#?}");
    let (tally, _) = compare(&group, prefer("b")).await.unwrap();
    assert_eq!((tally.remaining(), tally.repaired), (0, 1));
    group.until("k1", Some("value")).await;
    group.until_quiet().await;
    assert!(group.equal());
    worker.stop().await.unwrap();
}
