//! Peers that are slower than others of their shard: let go, catching up, and taken back.

use crate::sandbox_support::s;
use crate::world::{PEERS, World, eventually, with};
use aws_sdk_dynamodb::types::{AttributeValue, PutRequest, WriteRequest};
use shardwalker::sandbox::Options;
use shardwalker::sandbox::faults::{Effect, Rule};
use std::time::Duration;
use tokio::time::Instant;

/// More than a lane holds with the pages that wait for it.
const MANY: usize = 6_000;
/// Large ones that take more than a peer's part of the memory.
const ITEMS: usize = 100;

/// A world whose source has one shard.
fn one_shard() -> World {
    World::with(Options { initial_shards: 1, ..Options::default() }, Some("NEW_AND_OLD_IMAGES"))
}

/// Writes 50 keys again and again, with values of this `round` only.
async fn rewrite(world: &World, writes: usize, round: u8) {
    for batch in 0..writes / 25 {
        let put = |index: usize| {
            let item = with(
                &format!("k{}", (25 * batch + index) % 50),
                &[("value", s(&format!("r{round} v{batch}")))],
            );
            let put = PutRequest::builder().set_item(Some(item)).build().unwrap();
            WriteRequest::builder().put_request(put).build()
        };
        let puts = (0..25).map(put).collect();
        world.app.db.batch_write_item().request_items("orders", puts).send().await.unwrap();
    }
}

fn down(world: &World) {
    for operation in ["PutItem", "DeleteItem"] {
        world.sandbox.faults().add(Rule::new(Effect::Deny).account(PEERS[1].0).operation(operation));
    }
}

/// How long the first peer takes to get everything that is written, in virtual time.
async fn first_peer_takes(world: &World) -> Duration {
    let begun = Instant::now();
    eventually("the first peer is equal", || world.items(&world.peers[0]) == world.items(&world.source))
        .await;
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_down_is_let_go_and_catches_up() {
    let world = one_shard();
    let worker = world.worker().await;
    rewrite(&world, MANY, 1).await;
    let with_both = first_peer_takes(&world).await;
    world.until_equal().await;
    down(&world);
    rewrite(&world, MANY, 2).await;
    let beside = first_peer_takes(&world).await;
    assert!(
        beside < with_both + Duration::from_secs(3),
        "{beside:?} beside one that is down, else {with_both:?}"
    );
    let behind = |peer: &str| worker.metric("shardwalker_lanes_behind", &[&format!("peer=\"{peer}\"")]);
    assert_eq!((behind("b"), behind("c")), (0.0, 1.0));
    world.sandbox.faults().clear();
    world.until_equal().await;
    eventually("the lane is at the front again", || behind("c") == 0.0).await;
    let read = worker.metric("shardwalker_records_read_total", &[]);
    world.put("k0", "after").await;
    world.until_equal().await;
    assert_eq!(worker.metric("shardwalker_records_read_total", &[]), read + 1.0, "one reader again");
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_peer_delays_the_others_by_a_second_at_most() {
    let world = one_shard();
    let worker = world.worker().await;
    world.sandbox.faults().add(Rule::new(Effect::DelayMs(2000)).account(PEERS[1].0).operation("PutItem"));
    rewrite(&world, MANY, 2).await;
    let took = first_peer_takes(&world).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    world.until_equal().await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_starts_with_peers_far_apart_reads_for_each_from_where_it_is() {
    let world = one_shard();
    let first = world.worker().await;
    rewrite(&world, 50, 1).await;
    world.until_equal().await;
    // Lanes that are nearer than a minute start with one reader.
    tokio::time::sleep(Duration::from_secs(120)).await;
    down(&world);
    rewrite(&world, MANY, 2).await;
    first_peer_takes(&world).await;
    // Until the last checkpoint is written.
    let saved =
        || world.rows("lease#copy").iter().any(|row| row["peers"]["M"]["b"] != row["peers"]["M"]["c"]);
    eventually("the peers' checkpoints differ", saved).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    first.kill().await;
    world.sandbox.faults().clear();
    world.put("k1", "while nobody works").await;
    let second = world.worker().await;
    world.until_equal().await;
    let done = |peer: &str| second.metric("shardwalker_changes_total", &[&format!("peer=\"{peer}\"")]);
    assert_eq!(done("b"), 1.0, "what was up to date gets what is new");
    assert_eq!(done("c"), MANY as f64 + 1.0, "what was down gets everything");
    second.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_catches_up_leaves_the_others_their_reads_of_the_shard() {
    let options = Options { initial_shards: 1, stream_limits: true, ..Options::default() };
    let world = World::with(options, Some("NEW_AND_OLD_IMAGES"));
    let worker = world.worker().await;
    down(&world);
    // Pages of three, and two pages of 1 MB a second at most.
    let big = AttributeValue::S("x".repeat(300_000));
    for item in 0..ITEMS {
        let item = with(&format!("k{item}"), &[("big", big.clone())]);
        world.app.db.put_item().table_name("orders").set_item(Some(item)).send().await.unwrap();
    }
    let behind = || worker.metric("shardwalker_lanes_behind", &["peer=\"c\""]) == 1.0;
    // Tables of this size take long to compare, so the changes are counted.
    let done = || worker.metric("shardwalker_changes_total", &["peer=\"b\""]) as usize;
    eventually("the first peer has it all", || done() == ITEMS).await;
    eventually("the other peer is behind", behind).await;
    world.sandbox.faults().clear();
    let (begun, mut longest, mut writes) = (Instant::now(), Duration::ZERO, 0);
    while behind() {
        let written = Instant::now();
        world.put("small", &writes.to_string()).await;
        writes += 1;
        eventually("the first peer has the small one", || done() == ITEMS + writes).await;
        longest = longest.max(written.elapsed());
    }
    assert!(writes > 10, "it took long enough to tell: {writes} writes in {:?}", begun.elapsed());
    assert!(longest < Duration::from_secs(1), "{longest:?} for one write to the other peer");
    world.until_equal().await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn memory_stays_within_its_bound() {
    let world = one_shard();
    let worker = world.start(world.config("", "[read]\nmemory_mb = 16")).await;
    down(&world);
    let big = AttributeValue::S("x".repeat(100_000));
    for item in 0..ITEMS {
        let item = with(&format!("k{item}"), &[("big", big.clone())]);
        world.app.db.put_item().table_name("orders").set_item(Some(item)).send().await.unwrap();
    }
    let done = |peer: &str| worker.metric("shardwalker_changes_total", &[&format!("peer=\"{peer}\"")]);
    eventually("the first peer has everything", || done("b") == ITEMS as f64).await;
    let buffered = || worker.metric("shardwalker_buffered_bytes", &["peer=\"c\""]);
    eventually("what is held for the peer that is down is counted", || buffered() > 1e6).await;
    assert!(buffered() <= 8.0 * 1024.0 * 1024.0, "{}", buffered());
    world.sandbox.faults().clear();
    eventually("the other peer has everything", || done("c") == ITEMS as f64).await;
    assert!(world.all_equal());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_down_holds_back_no_shards_of_the_others() {
    let world = one_shard();
    let workers = [world.worker().await, world.worker().await];
    rewrite(&world, 100, 1).await;
    world.until_equal().await;
    down(&world);
    for round in 2..5 {
        rewrite(&world, 100, round).await;
        world.sandbox.split(&world.source, None).unwrap();
        rewrite(&world, 50, round + 10).await;
        let took = first_peer_takes(&world).await;
        assert!(took < Duration::from_secs(5), "{took:?} through generation {round} of shards");
    }
    let positions = |peer: &str| {
        let rows = world.rows("lease#copy").into_iter();
        rows.filter(|row| row["peers"]["M"][peer]["M"]["done"]["BOOL"] == true).count()
    };
    eventually("what the first peer is done with is saved", || positions("b") == 1 + 2 + 4).await;
    assert_eq!(positions("c"), 0);
    world.sandbox.faults().clear();
    world.until_equal().await;
    eventually("the other one is through as well", || positions("c") == 1 + 2 + 4).await;
    for worker in workers {
        assert_eq!(worker.metric("shardwalker_gaps_total", &[]), 0.0);
        worker.stop().await.unwrap();
    }
}
