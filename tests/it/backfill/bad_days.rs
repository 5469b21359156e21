//! Bad days: what is deleted, rewritten, throttled, cut off or killed while a backfill runs.

use super::{Process, Stage, put_at, request};
use crate::sandbox_support::s;
use crate::world::{HOME, PEERS, SOURCE, Worker, eventually, with};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use shardwalker::backfill::counts::Fate;
use shardwalker::backfill::{Ended, Request};
use shardwalker::sandbox::faults::{Effect, Rule};
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn what_is_deleted_during_the_scan_stays_deleted() {
    let stage = Stage::new();
    let world = &stage.world;
    stage.fill(300).await;
    let worker = stage.service().await;
    let mut process = stage.start(Request { write_units: Some(30), ..request() }).await;
    eventually("it has begun", || process.items() > 0).await;
    for item in 0..300 {
        world.delete(&format!("k{item}")).await;
    }
    assert_eq!(process.end().await.unwrap(), Ended::Done);
    assert!(world.items(&world.source).is_empty());
    world.until_equal().await;
    worker.stop().await.unwrap();
}

/// The put of a scanned item that is deleted meanwhile takes effect, and its process dies before it reads the ledger. No
/// scan would ever show that item again.
async fn brought_back(stage: &Stage) -> Worker {
    let world = &stage.world;
    stage.fill(40).await;
    let worker = stage.service().await;
    let faults = world.sandbox.faults();
    let (peer, key) = (PEERS[0].0, json!({ "S": "k5" }));
    faults.add(Rule::new(Effect::DelayMs(3000)).operation("PutItem").account(peer).key(key));
    let process = stage.start(request()).await;
    let copied = || world.items(&world.peers[0]).len();
    eventually("all but one are copied", || copied() == 39).await;
    world.delete("k5").await;
    eventually("the stream has deleted it", || world.rows("ledger#b#").len() == 1).await;
    faults.add(Rule::new(Effect::DropRequest).operation("BatchGetItem").account(HOME));
    eventually("the put takes effect", || copied() == 40).await;
    process.kill().await;
    faults.clear();
    worker
}

#[tokio::test(start_paused = true)]
async fn an_item_that_a_dead_process_brought_back_is_deleted_again() {
    for restart in [false, true] {
        let stage = Stage::new();
        let world = &stage.world;
        let worker = brought_back(&stage).await;
        let (ended, _) = stage.run(Request { restart, ..request() }).await;
        assert_eq!(ended, Ended::Done);
        assert!(world.all_equal(), "restart {restart}");
        worker.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn processes_may_be_killed_in_every_phase() {
    let seed = std::env::var("SHARDWALKER_SEED").ok().map_or(20_260_101, |seed| seed.parse().unwrap());
    println!("SHARDWALKER_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let stage = Stage::new();
    let world = &stage.world;
    stage.fill(250).await;
    let worker = stage.service().await;
    let faults = world.sandbox.faults();
    for (operation, account) in [
        ("PutItem", PEERS[0].0),
        ("PutItem", HOME),
        ("UpdateItem", HOME),
        ("BatchGetItem", HOME),
        ("Scan", SOURCE),
    ] {
        for effect in [Effect::DropAnswer, Effect::DelayMs(300), Effect::InternalErrorAfter] {
            faults.add(Rule::new(effect).operation(operation).account(account).probability(0.02));
        }
    }
    let one = || Request { segments: Some(8), parallel: Some(3), write_units: Some(20), ..request() };
    let mut processes: Vec<Process> = Vec::new();
    for round in 0..12 {
        processes.push(stage.start(one()).await);
        world.load(250, 30, seed + round).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..4000))).await;
        if processes.len() > 2 || random.random_ratio(1, 2) {
            let index = random.random_range(0..processes.len());
            processes.swap_remove(index).kill().await;
        }
        if random.random_ratio(1, 3) {
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
    }
    for process in processes {
        process.kill().await;
    }
    let (ended, _) = stage.run(one()).await;
    assert!(matches!(ended, Ended::Done | Ended::Before), "{ended:?}");
    faults.clear();
    world.until_equal().await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_hot_key_that_is_rewritten_all_the_time_ends_with_its_last_value() {
    let stage = Stage::new();
    let world = &stage.world;
    stage.fill(100).await;
    let worker = stage.service().await;
    let process = stage.start(Request { write_units: Some(10), ..request() });
    let writes = async {
        for n in 0..1000 {
            world.put("k50", &format!("v{n}")).await;
            if n % 40 == 0 {
                world.delete("k50").await;
            }
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    };
    let (mut process, ()) = futures::join!(process, writes);
    assert_eq!(process.end().await.unwrap(), Ended::Done);
    world.until_equal().await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_throttled_to_a_tenth_slows_the_backfill_and_nothing_else() {
    let stage = Stage::new();
    let world = &stage.world;
    stage.fill(100).await;
    let worker = stage.service().await;
    let throttle = Rule::new(Effect::ProvisionedThroughputExceeded).operation("PutItem").account(PEERS[0].0);
    world.sandbox.faults().add(throttle.probability(0.9));
    let (ended, picture) = stage.run(request()).await;
    assert_eq!((ended, picture.totals.items), (Ended::Done, 100));
    assert!(world.all_equal());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_largest_items_are_copied_and_those_that_the_stamp_makes_too_large_are_dead_letters() {
    let stage = Stage::new();
    let world = &stage.world;
    stage.fill(5).await;
    for (id, size) in [("fits", 400 * 1024 - 200), ("too large", 400 * 1024 - 20)] {
        let item = with(id, &[("value", s(&"x".repeat(size)))]);
        world.app.db.put_item().table_name("orders").set_item(Some(item)).send().await.unwrap();
    }
    tokio::time::sleep(super::LONG_AGO).await;
    let worker = stage.service().await;
    let (ended, picture) = stage.run(request()).await;
    assert_eq!((ended, picture.totals.items), (Ended::Done, 7));
    assert_eq!((picture.count(Fate::Refused), world.items(&world.peers[0]).len()), (2, 6));
    let letters = world.rows("dead#copy#b");
    assert_eq!(letters[0]["shard"]["S"], "backfill");
    assert_eq!(letters[0]["version"]["S"], "0000000000000000.00");
    worker.stop().await.unwrap();
    // Scanned again with other content, its letter takes the place of the first.
    let item = with("too large", &[("value", s(&"y".repeat(400 * 1024 - 20)))]);
    world.app.db.put_item().table_name("orders").set_item(Some(item)).send().await.unwrap();
    stage.run(Request { restart: true, ..request() }).await;
    let again = world.rows("dead#copy#b");
    assert_eq!(again.len(), letters.len());
    assert_ne!(again[0]["data"], letters[0]["data"]);
}

#[tokio::test(start_paused = true)]
async fn a_backfill_may_take_longer_than_the_stream_keeps_records() {
    let stage = Stage::new();
    let world = &stage.world;
    stage.fill(120).await;
    let begun = Instant::now();
    // Some of it every nine hours; between, each key is written again, or deleted, or left as it is.
    for part in 0..5 {
        let worker = stage.service().await;
        let slow = Request { segments: Some(40), parallel: Some(1), write_units: Some(10), ..request() };
        let mut process = stage.start(slow).await;
        eventually("a part is done", || process.items() > part * 20).await;
        process.drain.cancel();
        assert_eq!(process.end().await.unwrap(), Ended::Drained);
        worker.stop().await.unwrap();
        for item in (0..120).filter(|item| item % 5 == part) {
            match item % 3 {
                0 => world.put(&format!("k{item}"), "changed").await,
                1 => world.delete(&format!("k{item}")).await,
                _ => {}
            }
        }
        tokio::time::sleep(Duration::from_secs(9 * 3600)).await;
    }
    let worker = stage.service().await;
    let (ended, picture) = stage.run(Request { segments: Some(40), ..request() }).await;
    assert_eq!((ended, picture.run), (Ended::Done, 1));
    assert!(begun.elapsed() > Duration::from_secs(45 * 3600), "{:?}", begun.elapsed());
    world.until_equal().await;
    assert_eq!(worker.metric("shardwalker_gaps_total", &[]), 0.0);
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_network_that_is_cut_for_an_hour_costs_an_hour() {
    let stage = Stage { slowly: true, ..Stage::new() };
    let world = &stage.world;
    stage.fill(200).await;
    let worker = stage.service().await;
    let mut process = stage.start(Request { write_units: Some(20), ..request() }).await;
    eventually("it has begun", || process.items() > 0).await;
    world.sandbox.faults().add(Rule::new(Effect::DropRequest).caller(HOME));
    for item in 0..20 {
        world.delete(&format!("k{item}")).await;
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    world.sandbox.faults().clear();
    let begun = Instant::now();
    assert_eq!(process.end().await.unwrap(), Ended::Done);
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    world.until_equal().await;
    worker.stop().await.unwrap();
}

/// The service comes hours after the backfill, when the shards that the backfill pinned are closed and have children.
#[tokio::test(start_paused = true)]
async fn what_changes_between_the_backfill_and_a_service_that_comes_later_is_applied_though_its_shard_is_closed()
 {
    let stage = Stage::new();
    let world = &stage.world;
    stage.fill(20).await;
    let (ended, _) = stage.run(request()).await;
    assert_eq!(ended, Ended::Done);
    for item in 0..5 {
        world.put(&format!("k{item}"), "changed").await;
        world.delete(&format!("k{}", item + 5)).await;
    }
    world.sandbox.roll_over(&world.source, None).unwrap();
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    let worker = stage.service().await;
    world.until_equal().await;
    assert_eq!(worker.metric("shardwalker_gaps_total", &[]), 0.0);
    worker.stop().await.unwrap();
}

/// As when an item was brought back by a process that died; but then an application of the peer puts one of its own.
#[tokio::test(start_paused = true)]
async fn what_the_peers_application_put_after_a_crash_is_not_taken_for_what_was_brought_back() {
    let stage = Stage::new();
    let world = &stage.world;
    let worker = brought_back(&stage).await;
    put_at(world, PEERS[0].0, "orders-copy", "k5", "theirs").await;
    let (ended, _) = stage.run(request()).await;
    assert_eq!(ended, Ended::Done);
    let items = world.sandbox.items(&world.peers[0]).unwrap();
    let theirs = items.iter().find(|item| item["id"]["S"] == "k5").map(|item| &item["value"]["S"]);
    assert_eq!(theirs, Some(&json!("theirs")));
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_restart_did_not_see_to_before_it_died_is_left_to_the_next_process() {
    let stage = Stage::new();
    let world = &stage.world;
    let worker = brought_back(&stage).await;
    let faults = world.sandbox.faults();
    faults.add(Rule::new(Effect::DropRequest).operation("BatchGetItem").account(HOME));
    let restart = stage.start(Request { restart: true, ..request() }).await;
    let second = || world.rows("backfill#copy").iter().any(|row| row["run"]["N"] == "2");
    eventually("it begins anew", second).await;
    restart.kill().await;
    faults.clear();
    let (ended, picture) = stage.run(request()).await;
    assert_eq!((ended, picture.run), (Ended::Done, 2));
    assert!(world.all_equal());
    worker.stop().await.unwrap();
}
