//! One-way replication across accounts, on the sandbox, in virtual time.

use crate::sandbox_support::{Client, s};
use crate::world::{PEERS, World, eventually, resource_policy, with};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, StreamSpecification};
use shardwalker::sandbox::Options;
use shardwalker::sandbox::faults::{Effect, Rule, Weather};
use std::collections::HashMap;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn inserts_updates_and_deletes_reach_both_peers_through_splits_and_rollovers() {
    let world = World::new();
    world.load(50, 100, 1).await;
    let worker = world.worker().await;
    world.load(50, 200, 2).await;
    world.sandbox.split(&world.source, None).unwrap();
    world.load(50, 200, 3).await;
    world.until_equal().await;
    world.sandbox.roll_over(&world.source, None).unwrap();
    world.sandbox.split(&world.source, None).unwrap();
    world.load(50, 200, 4).await;
    world.until_equal().await;
    assert!(!world.items(&world.source).is_empty());
    assert_eq!(worker.metric("shardwalker_gaps_total", &[]), 0.0);
    assert_eq!(worker.problems(), Vec::<String>::new());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_read_serves_all_peers_and_one_request_each_write() {
    let world = World::new();
    for id in 0..40 {
        world.put(&format!("k{id}"), "first").await;
    }
    let worker = world.worker().await;
    world.until_equal().await;
    let reads = worker.metric("shardwalker_records_read_total", &[]);
    assert_eq!(reads, 40.0);
    for id in 0..40 {
        world.put(&format!("k{id}"), "second").await;
    }
    world.until_equal().await;
    for id in 0..40 {
        world.delete(&format!("k{id}")).await;
    }
    world.until_equal().await;
    assert_eq!(worker.metric("shardwalker_records_read_total", &[]), 120.0);
    for (account, _) in PEERS {
        // One more each is the check at the start.
        assert_eq!(world.requests("PutItem", account), 81, "{account}");
        assert_eq!(world.requests("DeleteItem", account), 41, "{account}");
        assert_eq!(world.requests("GetItem", account), 0, "{account}");
    }
    for peer in ["b", "c"] {
        let peer = format!("peer=\"{peer}\"");
        let applied = worker.metric("shardwalker_changes_total", &[&peer, "outcome=\"applied\""]);
        assert_eq!(applied, 120.0);
    }
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_type_arrives_exactly() {
    let world = World::new();
    let n = |text: &str| AttributeValue::N(text.to_owned());
    let mut deep = n("12345678901234567890123456789012345678");
    for level in 0..30 {
        deep = if level % 2 == 0 {
            AttributeValue::L(vec![deep])
        } else {
            AttributeValue::M(HashMap::from([("m".to_owned(), deep)]))
        };
    }
    let item = with(
        "all",
        &[
            ("empty", s("")),
            ("text", s("grüße 👋")),
            ("big", n("-1.2345678901234567890123456789012345678E+125")),
            ("small", n("1E-130")),
            ("bytes", AttributeValue::B(Blob::new([0, 255, 1]))),
            ("nothing", AttributeValue::B(Blob::new([]))),
            ("yes", AttributeValue::Bool(true)),
            ("no", AttributeValue::Bool(false)),
            ("null", AttributeValue::Null(true)),
            ("list", AttributeValue::L(vec![])),
            ("map", AttributeValue::M(HashMap::new())),
            ("texts", AttributeValue::Ss(vec!["b".into(), "a".into()])),
            ("numbers", AttributeValue::Ns(vec!["3".into(), "1.5".into()])),
            ("binaries", AttributeValue::Bs(vec![Blob::new([2]), Blob::new([1])])),
            ("deep", deep),
        ],
    );
    world.app.db.put_item().table_name("orders").set_item(Some(item)).send().await.unwrap();
    let worker = world.worker().await;
    world.until_equal().await;
    assert_eq!(world.items(&world.peers[0]).len(), 1);
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_killed_worker_loses_nothing_and_a_stopped_one_repeats_nothing() {
    let world = World::new();
    for round in 0..4 {
        let worker = world.worker().await;
        world.load(30, 150, round).await;
        let done = || worker.metric("shardwalker_changes_total", &[]) > 20.0;
        eventually("some changes are done", done).await;
        worker.kill().await;
        world.load(30, 50, 100 + round).await;
    }
    let worker = world.worker().await;
    world.until_equal().await;
    worker.stop().await.unwrap();
    let before: u64 = PEERS.iter().map(|(account, _)| world.requests("PutItem", account)).sum();
    let worker = world.worker().await;
    world.put("one more", "x").await;
    world.until_equal().await;
    let after: u64 = PEERS.iter().map(|(account, _)| world.requests("PutItem", account)).sum();
    assert_eq!(after - before, 2 * 2, "a check and one write for each peer");
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn lost_answers_throttles_and_errors_change_nothing_in_the_end() {
    let world = World::new();
    let faults = world.sandbox.faults();
    let worker = world.worker().await;
    for effect in [
        Effect::DropAnswer,
        Effect::DropRequest,
        Effect::InternalError,
        Effect::InternalErrorAfter,
        Effect::ProvisionedThroughputExceeded,
        Effect::TransactionConflict,
        Effect::DelayMs(700),
    ] {
        for operation in ["PutItem", "DeleteItem", "UpdateItem", "BatchGetItem", "Query", "GetRecords"] {
            for account in ["222222222222", "333333333333", "999999999999"] {
                faults.add(Rule::new(effect).operation(operation).account(account).probability(0.04));
            }
        }
        faults.add(Rule::new(Effect::DropAnswer).operation("GetRecords").probability(0.05));
    }
    faults.set_weather(Weather {
        empty_pages: 0.2,
        short_listings: 0.3,
        children_listed_after_ms: 3000,
        closed_listed_after_ms: 2000,
        policy_delay_ms: 0,
    });
    for round in 0..3 {
        world.load(20, 100, round).await;
        world.sandbox.split(&world.source, None).unwrap();
    }
    world.until_equal().await;
    assert!(worker.metric("shardwalker_retries_total", &["unknown-outcome"]) > 0.0);
    assert!(worker.metric("shardwalker_retries_total", &["throttled"]) > 0.0);
    faults.clear();
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_iterator_that_expired_is_opened_after_the_last_record() {
    let world = World::new();
    let worker = world.worker().await;
    world.load(20, 60, 1).await;
    world.until_equal().await;
    world.sandbox.faults().add(Rule::new(Effect::ExpireIterator).operation("GetRecords").times(10));
    world.load(20, 60, 2).await;
    world.until_equal().await;
    assert!(worker.metric("shardwalker_retries_total", &["iterator-expired"]) > 0.0);
    assert_eq!(worker.metric("shardwalker_records_read_total", &[]), worker_records(&world));
    worker.stop().await.unwrap();
}

/// Every write that changed something made one record.
fn worker_records(world: &World) -> f64 {
    world.sandbox.shards(&world.source).unwrap().iter().map(|shard| shard.records).sum::<usize>() as f64
}

/// So many items of 20 KB are twice as much as a lane holds (8 MB) with the pages on their way to it.
const LARGE: usize = 1000;

#[tokio::test(start_paused = true)]
async fn a_shard_that_ages_out_while_its_peers_refuse_is_no_silent_loss() {
    let world = World::with(Options { initial_shards: 1, ..Options::default() }, Some("NEW_AND_OLD_IMAGES"));
    let worker = world.worker().await;
    world.load(20, 60, 1).await;
    world.until_equal().await;
    for (account, _) in crate::world::PEERS {
        world.sandbox.faults().add(Rule::new(Effect::Unavailable).operation("PutItem").account(account));
    }
    for item in 0..LARGE {
        world.put(&format!("new{item}"), &"x".repeat(20_000)).await;
    }
    // The last have been read by nobody.
    world.sandbox.roll_over(&world.source, None).unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.sandbox.advance(Duration::from_secs(25 * 3600));
    world.sandbox.faults().clear();
    let stopped = || worker.metric("shardwalker_shards_stopped", &["gap"]) == 1.0;
    eventually("the shard stops at the gap", stopped).await;
    assert!(world.items(&world.peers[0]).len() < LARGE);
    let gaps = world.rows("gaps#copy");
    let after = gaps[0]["after"]["S"].as_str().unwrap();
    assert!(gaps.len() == 1 && after.bytes().all(|b| b.is_ascii_digit()), "{gaps:?}");
    assert!(
        worker.problems().iter().any(|problem| problem.contains("were trimmed")),
        "{:?}",
        worker.problems()
    );
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_stops_at_a_gap_does_not_look_done_while_the_others_go_on() {
    let world = World::with(Options { initial_shards: 1, ..Options::default() }, Some("NEW_AND_OLD_IMAGES"));
    let worker = world.worker().await;
    world.load(20, 60, 1).await;
    world.until_equal().await;
    world.sandbox.faults().add(Rule::new(Effect::Unavailable).operation("PutItem").account(PEERS[0].0));
    for item in 0..LARGE {
        world.put(&format!("new{item}"), &"x".repeat(20_000)).await;
    }
    let all = world.items(&world.source).len();
    let done = || worker.metric("shardwalker_changes_total", &["peer=\"c\"", "outcome=\"applied\""]) as usize;
    eventually("the other peer has all", || done() >= LARGE).await;
    eventually("and the load before", || world.items(&world.peers[1]).len() == all).await;
    world.sandbox.trim(&world.source, None).unwrap();
    world.sandbox.faults().clear();
    world.put("after", "the gap").await;
    let stopped = || worker.metric("shardwalker_shards_stopped", &["gap"]) == 1.0;
    eventually("one lane stops at the gap", stopped).await;
    let gaps = world.rows("gaps#copy");
    assert_eq!((gaps.len(), gaps[0]["peers"]["SS"].to_string()), (1, r#"["b"]"#.to_owned()));
    eventually("the other goes on", || world.items(&world.peers[1]).len() == all + 1).await;
    // Nothing is left to do for it, and nothing is done.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let progress = worker.board.progress(tokio::time::Instant::now() - Duration::from_secs(10));
    let peers = &progress["copy"].peers;
    assert!(peers["b"].oldest.is_some() && peers["c"].oldest.is_none(), "{peers:?}");
    assert!(world.items(&world.peers[0]).len() < all);
    assert!(!worker.problems().is_empty());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn trimmed_records_stop_the_shard_loudly() {
    let world = World::new();
    let worker = world.worker().await;
    world.load(10, 30, 1).await;
    world.until_equal().await;
    worker.stop().await.unwrap();
    world.load(10, 30, 2).await;
    world.sandbox.trim(&world.source, None).unwrap();
    world.put("after", "the gap").await;

    let worker = world.worker().await;
    let stopped = || worker.metric("shardwalker_shards_stopped", &["gap"]) == 2.0;
    eventually("both shards stopped", stopped).await;
    assert_eq!(worker.metric("shardwalker_gaps_total", &[]), 2.0);
    let problems = worker.problems();
    assert_eq!(problems.len(), 2);
    assert!(problems[0].contains("were trimmed before they were read"), "{problems:?}");
    let gaps = world.rows("gaps#copy");
    assert!(gaps.iter().all(|gap| gap["peers"]["SS"] == serde_json::json!(["b", "c"])), "{gaps:?}");
    assert_eq!(gaps.len(), 2);
    assert!(!world.items(&world.peers[0]).contains_key("{\"S\":\"after\"}"));
    worker.stop().await.unwrap();

    let worker = world.start(world.config("on_gap = \"continue\"", "")).await;
    let arrived = || world.items(&world.peers[0]).contains_key("{\"S\":\"after\"}");
    eventually("what came after the gap is there", arrived).await;
    assert_eq!(worker.metric("shardwalker_gaps_total", &[]), 0.0, "they were counted when they were found");
    assert_eq!(world.rows("gaps#copy").len(), 2);
    assert_eq!(worker.problems(), Vec::<String>::new());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_peer_refuses_is_kept_and_later_changes_of_its_key_wait() {
    let world = World::new();
    let worker = world.worker().await;
    world.put("big", "small at first").await;
    world.put("other", "1").await;
    world.until_equal().await;
    // It fits at the source, but not with the stamp.
    let big = with("big", &[("value", s(&"x".repeat(400 * 1024 - 20)))]);
    world.app.db.put_item().table_name("orders").set_item(Some(big)).send().await.unwrap();
    let kept = |reason: &str| {
        let reason = format!("reason=\"{reason}\"");
        worker.metric("shardwalker_dead_letters_total", &[&reason])
    };
    eventually("it is kept for both peers", || kept("refused") == 2.0).await;
    world.put("big", "small again").await;
    world.put("other", "2").await;
    eventually("the later change waits", || kept("behind") == 2.0).await;
    let other = || world.items(&world.peers[1])["{\"S\":\"other\"}"]["value"]["S"] == "2";
    eventually("other keys go on", other).await;
    for peer in &world.peers {
        assert_eq!(world.items(peer)["{\"S\":\"big\"}"]["value"]["S"], "small at first");
    }
    let letters = world.rows("dead#copy#b");
    let heads: Vec<_> = letters.iter().filter(|row| row.get("reason").is_some()).collect();
    assert_eq!(heads.len(), 2);
    assert_eq!(heads[0]["reason"]["S"], "refused");
    assert!(heads[0]["message"]["S"].as_str().unwrap().contains("size"), "{}", heads[0]["message"]);
    assert_eq!(heads[1]["reason"]["S"], "behind");
    assert_eq!(world.rows("dead-keys#copy#b").len(), 1);
    worker.stop().await.unwrap();

    // A worker that starts later knows the key.
    let worker = world.worker().await;
    world.put("big", "still waiting").await;
    let kept = || worker.metric("shardwalker_dead_letters_total", &["reason=\"behind\""]) == 2.0;
    eventually("it waits after a restart", kept).await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn deletes_by_time_to_live_are_forwarded_as_configured() {
    for (setting, left) in [("ttl_deletes = true", 0), ("ttl_deletes = false", 1)] {
        let world = World::new();
        let specification = aws_sdk_dynamodb::types::TimeToLiveSpecification::builder()
            .attribute_name("expires")
            .enabled(true)
            .build()
            .unwrap();
        let ttl = world.app.db.update_time_to_live().table_name("orders");
        ttl.time_to_live_specification(specification).send().await.unwrap();
        let item = with("old", &[("expires", AttributeValue::N("1799990000".into()))]);
        let worker = world.start(world.config(setting, "")).await;
        world.app.db.put_item().table_name("orders").set_item(Some(item)).send().await.unwrap();
        world.until_equal().await;
        assert_eq!(world.sandbox.sweep_ttl().unwrap(), 1);
        world.put("last", "x").await;
        let settled = || worker.metric("shardwalker_changes_total", &["peer=\"b\""]) == 3.0;
        eventually("all three changes are done", settled).await;
        assert_eq!(world.items(&world.peers[0]).len(), 1 + left, "{setting}");
        worker.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn two_workers_share_and_the_second_takes_over() {
    let world = World::new();
    let first = world.worker().await;
    eventually("the first holds both shards", || first.metric("shardwalker_leases_held", &[]) == 2.0).await;
    let second = world.worker().await;
    world.load(30, 150, 1).await;
    eventually("each has one", || second.metric("shardwalker_leases_held", &[]) == 1.0).await;
    first.kill().await;
    world.load(30, 150, 2).await;
    world.until_equal().await;
    assert_eq!(second.metric("shardwalker_leases_held", &[]), 2.0);
    // A stop hands over at once.
    let third = world.worker().await;
    second.stop().await.unwrap();
    world.load(30, 50, 3).await;
    world.until_equal().await;
    third.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_cut_off_from_the_state_table_stops_before_another_takes_over() {
    let world = World::new();
    let first = world.worker().await;
    world.load(20, 50, 1).await;
    world.until_equal().await;
    world.sandbox.faults().add(Rule::new(Effect::DropRequest).account("999999999999"));
    eventually("its fence falls", || first.metric("shardwalker_leases_held", &[]) == 0.0).await;
    let before = world.requests("PutItem", PEERS[0].0);
    world.load(20, 50, 2).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.requests("PutItem", PEERS[0].0), before, "it writes nothing without the right to");
    world.sandbox.faults().clear();
    world.until_equal().await;
    assert_eq!(first.metric("shardwalker_leases_held", &[]), 2.0);
    first.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn latest_and_a_time_leave_out_what_was_before() {
    let world = World::new();
    world.put("before", "x").await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    world.put("between", "x").await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let latest = world.start(world.config("start = \"latest\"", "")).await;
    eventually("it walks", || latest.metric("shardwalker_pages_read_total", &[]) >= 2.0).await;
    world.put("after", "x").await;
    let has = |id: &str| world.items(&world.peers[0]).contains_key(&format!("{{\"S\":\"{id}\"}}"));
    eventually("the change after the start arrives", || has("after")).await;
    assert!(!has("before") && !has("between"));
    latest.kill().await;
    // What comes while nobody runs is not before the start, also when nothing was checkpointed.
    world.put("while down", "x").await;
    let latest = world.start(world.config("start = \"latest\"", "")).await;
    eventually("it arrives", || has("while down")).await;
    assert!(!has("before") && !has("between"));
    latest.stop().await.unwrap();

    let world = World::new();
    world.put("before", "x").await;
    tokio::time::sleep(Duration::from_secs(7200)).await;
    let middle = humantime::format_rfc3339_seconds(world.sandbox.clock().now()).to_string();
    world.put("between", "x").await;
    let at = world.start(world.config(&format!("start = \"{middle}\""), "")).await;
    let has = |id: &str| world.items(&world.peers[0]).contains_key(&format!("{{\"S\":\"{id}\"}}"));
    eventually("the change at the time arrives", || has("between")).await;
    assert!(!has("before"));
    at.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_new_images_is_enough() {
    let world = World::with(Options { initial_shards: 2, ..Options::default() }, Some("NEW_IMAGE"));
    let worker = world.worker().await;
    world.load(20, 100, 1).await;
    world.until_equal().await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_down_gets_everything_later() {
    let world = World::new();
    let worker = world.worker().await;
    world.load(20, 50, 1).await;
    world.until_equal().await;
    world.sandbox.faults().add(Rule::new(Effect::Deny).account(PEERS[1].0));
    world.load(20, 50, 2).await;
    let source = || world.items(&world.source);
    eventually("the other peer is not held up", || world.items(&world.peers[0]) == source()).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let problems = worker.problems();
    assert!(
        problems.iter().any(|p| p.contains("applied at c") && p.contains("AccessDenied")),
        "{problems:?}"
    );
    world.sandbox.faults().clear();
    world.until_equal().await;
    assert_eq!(worker.problems(), Vec::<String>::new());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn idle_shards_are_read_about_once_a_second_and_busy_ones_within_their_rate() {
    let options = Options { initial_shards: 2, stream_limits: true, ..Options::default() };
    let world = World::with(options, Some("NEW_AND_OLD_IMAGES"));
    let worker = world.worker().await;
    world.load(50, 3000, 1).await;
    world.until_equal().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    world.sandbox.counters().reset();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let reads = world.requests("GetRecords", "111111111111");
    assert!((500..=720).contains(&reads), "{reads} reads of 2 idle shards in 300 s");
    for round in 0..20 {
        world.load(50, 50, round).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.until_equal().await;
    // Reads are begun within the rate; one that is slower than the next may arrive beyond it.
    let over = worker.metric("shardwalker_retries_total", &["at=\"stream\""]);
    assert!(over <= 1.0, "{over} reads over the rate");
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_was_made_again_with_other_keys_gets_no_dead_letters() {
    let world = World::new();
    let worker = world.start(world.config("on_gap = \"continue\"", "")).await;
    world.load(10, 20, 1).await;
    world.until_equal().await;
    let (account, region) = PEERS[0];
    let admin = Client::admin(&world.sandbox, account);
    admin.db.delete_table().table_name("orders-copy").send().await.unwrap();
    let other = world.sandbox.create_table(account, region, "orders-copy", &["other"], None).unwrap();
    let policy = resource_policy(&other, &["DescribeTable", "PutItem", "DeleteItem"]);
    world.sandbox.put_resource_policy(&other, &policy).unwrap();
    world.load(10, 20, 2).await;
    let stands = || worker.problems().iter().any(|problem| problem.contains("EveryWriteRefused"));
    eventually("it stands still and says why", stands).await;
    assert_eq!(worker.metric("shardwalker_dead_letters_total", &[]), 0.0);
    // The right table comes back: nothing was lost.
    admin.db.delete_table().table_name("orders-copy").send().await.unwrap();
    let right = world.sandbox.create_table(account, region, "orders-copy", &["id"], None).unwrap();
    let policy = resource_policy(&right, &["DescribeTable", "PutItem", "DeleteItem"]);
    world.sandbox.put_resource_policy(&right, &policy).unwrap();
    eventually("all of it is applied", || worker.problems().is_empty()).await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_was_made_again_is_not_mistaken_for_the_old_one() {
    let world = World::new();
    let worker = world.worker().await;
    world.load(10, 30, 1).await;
    world.until_equal().await;
    let (account, region) = PEERS[0];
    Client::admin(&world.sandbox, account).db.delete_table().table_name("orders-copy").send().await.unwrap();
    let new = world.sandbox.create_table(account, region, "orders-copy", &["id"], None).unwrap();
    let policy = resource_policy(&new, &["DescribeTable", "PutItem", "DeleteItem"]);
    world.sandbox.put_resource_policy(&new, &policy).unwrap();
    let said = || worker.problems().iter().any(|problem| problem.contains("b was deleted and made again"));
    eventually("the route pauses and says why", said).await;
    assert_eq!(worker.metric("shardwalker_gaps_total", &[]), 1.0);
    world.put("k1", "while it is paused").await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!world.items(&world.peers[0]).contains_key(r#"{"S":"k1"}"#), "nothing more is written");
    assert_eq!(world.rows("gaps#copy").len(), 1);
    assert_eq!(world.rows("fleet").iter().filter(|row| row["by"]["S"] == "guard").count(), 1);
    worker.stop().await.unwrap();
    // Another worker sees the pause, and the same table as before.
    let next = world.worker().await;
    eventually("it is paused for the next one too", || !next.problems().is_empty()).await;
    assert_eq!(next.metric("shardwalker_gaps_total", &[]), 0.0);
    next.stop().await.unwrap();
}

/// Turns the source's stream on or off.
async fn stream(world: &World, on: bool) {
    let specification = StreamSpecification::builder().stream_enabled(on);
    let view = on.then_some(aws_sdk_dynamodb::types::StreamViewType::NewAndOldImages);
    let specification = specification.set_stream_view_type(view).build().unwrap();
    world
        .app
        .db
        .update_table()
        .table_name("orders")
        .stream_specification(specification)
        .send()
        .await
        .unwrap();
}

fn all_done(world: &World) -> bool {
    let rows = world.rows("lease#copy");
    let mut shards = rows.iter().filter(|row| row["sk"]["S"] != "!lister");
    shards.all(|row| ["b", "c"].iter().all(|peer| row["peers"]["M"][peer]["M"]["done"]["BOOL"] == true))
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_turned_off_is_a_problem_and_a_new_one_needs_a_decision() {
    let world = World::new();
    let worker = world.worker().await;
    world.load(10, 20, 1).await;
    world.until_equal().await;
    stream(&world, false).await;
    let off = || worker.problems().iter().any(|problem| problem.contains("was turned off"));
    eventually("health says so", off).await;
    let told = worker.board.progress(tokio::time::Instant::now())["copy"].trouble.clone();
    assert_eq!(told.as_deref(), Some("the source's stream was turned off"), "and so does status");
    eventually("the old stream is read to its end", || all_done(&world)).await;
    worker.stop().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    stream(&world, true).await;
    world.allow_source();
    world.put("in the new stream", "x").await;

    for _ in 0..2 {
        let said = world.build(world.config("", "")).await.err().unwrap().to_string();
        assert!(said.contains("route copy: the stream of source was turned off and on"), "{said}");
    }
    let worker = world.start(world.config("on_gap = \"continue\"", "")).await;
    world.until_equal().await;
    assert_eq!(worker.metric("shardwalker_gaps_total", &[]), 1.0);
    assert_eq!(world.rows("gaps#copy").len(), 1);
    worker.stop().await.unwrap();
    world.build(world.config("", "")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_an_old_stream_still_has_is_read_before_the_new_one() {
    let world = World::new();
    let first = world.worker().await;
    world.load(10, 20, 1).await;
    world.until_equal().await;
    first.stop().await.unwrap();
    world.load(10, 40, 2).await;
    stream(&world, false).await;
    stream(&world, true).await;
    world.allow_source();
    world.put("in the new stream", "x").await;
    let worker = world.start(world.config("on_gap = \"continue\"", "")).await;
    world.until_equal().await;
    assert_eq!(world.rows("gaps#copy").len(), 1);
    // Without leave to go on, the old one is read all the same.
    world.load(10, 20, 3).await;
    worker.stop().await.unwrap();
    world.load(10, 40, 4).await;
    let before = world.items(&world.source);
    stream(&world, false).await;
    stream(&world, true).await;
    world.allow_source();
    world.put("in the third stream", "x").await;
    let worker = world.start(world.config("", "")).await;
    eventually("what the old one had is there", || world.items(&world.peers[1]) == before).await;
    let said = || worker.problems().iter().any(|problem| problem.contains("turned off and on"));
    eventually("and it says what it waits for", said).await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn workers_follow_a_source_to_its_new_stream_and_name_the_policy_that_it_lacks() {
    let world = World::new();
    let config = || world.config("on_gap = \"continue\"", "");
    let workers = [world.start(config()).await, world.start(config()).await];
    world.load(10, 30, 1).await;
    world.until_equal().await;
    world.load(10, 30, 2).await;
    stream(&world, false).await;
    stream(&world, true).await;
    world.put("in the new stream", "x").await;
    let new = world.sandbox.stream_arn(&world.source).unwrap().unwrap();
    for worker in &workers {
        let named =
            |problem: &String| problem.contains("no policy that allows to read it") && problem.contains(&new);
        eventually("the missing policy is named", || worker.problems().iter().any(named)).await;
    }
    world.allow_source();
    world.until_equal().await;
    assert_eq!(world.rows("gaps#copy").len(), 1);
    for worker in workers {
        eventually("all is well", || worker.problems().is_empty()).await;
        worker.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn two_workers_that_start_together_on_an_old_table_find_no_gaps() {
    // Roots name a parent that was trimmed long ago.
    let world = World::new();
    world.load(20, 50, 1).await;
    tokio::time::sleep(Duration::from_secs(5 * 3600)).await;
    world.sandbox.roll_over(&world.source, None).unwrap();
    tokio::time::sleep(Duration::from_secs(23 * 3600)).await;
    world.load(20, 50, 2).await;
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    let (one, two) = futures::join!(world.worker(), world.worker());
    world.load(20, 50, 3).await;
    let changes =
        || one.metric("shardwalker_changes_total", &[]) + two.metric("shardwalker_changes_total", &[]);
    eventually("changes are applied", || changes() > 0.0).await;
    for worker in [one, two] {
        assert_eq!(worker.metric("shardwalker_gaps_total", &[]), 0.0);
        assert_eq!(worker.problems(), Vec::<String>::new());
        worker.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_away_for_longer_than_the_retention_says_so_even_of_shards_it_never_read() {
    let world = World::new();
    let worker = world.worker().await;
    eventually("it walks", || worker.metric("shardwalker_pages_read_total", &[]) >= 2.0).await;
    worker.stop().await.unwrap();
    world.load(20, 50, 1).await;
    tokio::time::sleep(Duration::from_secs(30 * 3600)).await;
    let worker = world.worker().await;
    let stopped = || worker.metric("shardwalker_shards_stopped", &["gap"]) >= 2.0;
    eventually("both shards stopped", stopped).await;
    worker.stop().await.unwrap();
}
