//! Several workers on one route: who walks what, as they come, leave and die.

use crate::world::{HOME, SOURCE, Worker, World, eventually};
use serde_json::Value;
use shardwalker::sandbox::Options;
use shardwalker::sandbox::faults::{Effect, Rule};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

fn world(shards: u32) -> World {
    let options = Options { initial_shards: shards, shard_lifetime: None, ..Options::default() };
    World::with(options, Some("NEW_AND_OLD_IMAGES"))
}

fn held(workers: &[&Worker]) -> Vec<usize> {
    workers.iter().map(|worker| worker.metric("shardwalker_leases_held", &[]) as usize).collect()
}

/// The rows of leases, by shard.
fn leases(world: &World) -> BTreeMap<String, Value> {
    let mut rows = world.rows("lease#");
    rows.retain(|row| row["sk"]["S"] != "!lister");
    rows.into_iter().map(|row| (row["sk"]["S"].as_str().unwrap().to_owned(), row)).collect()
}

fn lister(world: &World) -> Value {
    world.rows("lease#").into_iter().find(|row| row["sk"]["S"] == "!lister").unwrap_or_default()
}

/// How long it took until the workers hold so many shards each, in any order.
async fn until_held(workers: &[&Worker], expected: &[usize]) -> Duration {
    let begun = Instant::now();
    let sorted = || {
        let mut held = held(workers);
        held.sort_unstable();
        held
    };
    eventually(&format!("{expected:?} shards"), || sorted() == expected).await;
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn shards_are_shared_as_workers_come_leave_and_die() {
    let world = world(12);
    world.load(40, 100, 1).await;
    let one = world.worker().await;
    until_held(&[&one], &[12]).await;
    let (two, three) = futures::join!(world.worker(), world.worker());
    let took = until_held(&[&one, &two, &three], &[4, 4, 4]).await;
    assert!(took < Duration::from_secs(30), "in balance after {took:?}");
    world.load(40, 100, 2).await;
    world.until_equal().await;

    // Once in balance nothing moves any more.
    let epochs = |world: &World| leases(world).values().map(|row| row["epoch"].clone()).collect::<Vec<_>>();
    let before = epochs(&world);
    world.load(40, 100, 3).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(epochs(&world), before);

    two.stop().await.unwrap();
    let took = until_held(&[&one, &three], &[6, 6]).await;
    assert!(took < Duration::from_secs(3), "what was given back was taken after {took:?}");
    world.load(40, 100, 4).await;
    one.kill().await;
    let took = until_held(&[&three], &[12]).await;
    // The lease's duration of 12 s, less the age of the last beat, and a look.
    assert!((8..15).contains(&took.as_secs()), "what the dead one held was taken after {took:?}");
    world.until_equal().await;
    let four = world.worker().await;
    until_held(&[&three, &four], &[6, 6]).await;
    world.load(40, 100, 5).await;
    world.until_equal().await;
    for worker in [three, four] {
        assert_eq!(worker.metric("shardwalker_leases_lost_total", &[]), 0.0, "handed over, not torn away");
        assert_eq!(worker.problems(), Vec::<String>::new());
        worker.stop().await.unwrap();
    }
    assert!(leases(&world).values().all(|row| row.get("owner").is_none()), "all is given back");
    assert_eq!(world.rows("fleet").len(), 1, "the dead one's row is left");
}

#[tokio::test(start_paused = true)]
async fn children_are_walked_within_a_second_of_their_parents_end() {
    let world = world(6);
    let config = || world.config("", "[read]\nidle_interval = \"200ms\"");
    let (one, two) = futures::join!(world.start(config()), world.start(config()));
    until_held(&[&one, &two], &[3, 3]).await;
    for round in 0..4 {
        let before = leases(&world);
        world.sandbox.roll_over(&world.source, None).unwrap();
        let finished = |row: &Value| row.get("expires").is_some();
        let parents = || leases(&world).into_iter().filter(|(shard, _)| before.contains_key(shard));
        eventually("a parent is finished", || parents().filter(|(_, row)| finished(row)).count() > round * 6)
            .await;
        let begun = Instant::now();
        let walked = || leases(&world).iter().filter(|(_, row)| row.get("owner").is_some()).count() == 6;
        let all = || parents().all(|(_, row)| finished(&row)) && leases(&world).len() == before.len() + 6;
        eventually("all children are walked", || all() && walked()).await;
        // All parents end within one read interval of each other.
        assert!(begun.elapsed() < Duration::from_millis(1200), "{:?}", begun.elapsed());
        world.load(30, 60, round as u64).await;
        world.until_equal().await;
    }
    for worker in [one, two] {
        assert_eq!(worker.problems(), Vec::<String>::new());
        worker.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_children_of_many_shards_that_end_together_are_found_together() {
    let world = world(30);
    let worker = world.start(world.config("", "[read]\nidle_interval = \"200ms\"")).await;
    until_held(&[&worker], &[30]).await;
    // The budget of calls is full again.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = leases(&world);
    world.sandbox.roll_over(&world.source, None).unwrap();
    let finished = |row: &Value| row.get("expires").is_some();
    let parents = || leases(&world).into_iter().filter(|(shard, _)| before.contains_key(shard));
    eventually("all parents are finished", || parents().all(|(_, row)| finished(&row))).await;
    let begun = Instant::now();
    let walked = || leases(&world).iter().filter(|(_, row)| row.get("owner").is_some()).count() == 30;
    eventually("all children are walked", walked).await;
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert_eq!(worker.problems(), Vec::<String>::new());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_worker_lists_for_all_and_another_does_when_it_dies() {
    let world = world(4);
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(world.worker().await);
    }
    let all: Vec<&Worker> = workers.iter().collect();
    until_held(&all, &[1, 1, 1, 1]).await;
    world.sandbox.counters().reset();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let calls = world.requests("DescribeStream", SOURCE);
    // Some of the sandbox's pages are short, and then it takes two.
    assert!((25..=70).contains(&calls), "{calls} calls by 4 workers in 300 s, one listing each 10 s");
    assert!(workers.iter().all(|worker| worker.problems().is_empty()));
    // The lister is the first, which found nobody there.
    let first = lister(&world)["owner"]["S"].as_str().unwrap().to_owned();
    workers.remove(0).kill().await;
    let owner = || lister(&world)["owner"]["S"].as_str().map(str::to_owned);
    eventually("another lists", || owner().is_some_and(|owner| owner != first)).await;
    let listings = || lister(&world)["listings"]["N"].as_str().unwrap().parse::<u64>().unwrap();
    let before = listings();
    eventually("and goes on", || listings() > before + 1).await;
    // What the new lister finds, all learn: shards that come without a parent that anybody reads.
    world.load(30, 100, 1).await;
    world.sandbox.split(&world.source, None).unwrap();
    world.load(30, 100, 2).await;
    world.until_equal().await;
    // A stop gives the right to list back at once.
    let second = owner().unwrap();
    let index = workers.iter().position(|worker| worker.name() == second).unwrap();
    workers.remove(index).stop().await.unwrap();
    let begun = Instant::now();
    eventually("a third lists", || owner().is_some_and(|owner| owner != second)).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    for worker in workers {
        worker.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn order_is_kept_while_shards_move() {
    let world = world(4);
    let mut workers = vec![world.worker().await];
    for round in 0..6 {
        // Rewrites of few keys, so that many changes of a key are under way whenever its shard moves.
        world.load(8, 150, round).await;
        match round % 3 {
            0 => workers.push(world.worker().await),
            1 => tokio::time::sleep(Duration::from_secs(15)).await,
            _ => workers.remove(0).stop().await.unwrap(),
        }
        world.load(8, 150, 100 + round).await;
    }
    world.until_equal().await;
    let moved: u64 =
        leases(&world).values().map(|row| row["epoch"]["N"].as_str().unwrap().parse::<u64>().unwrap()).sum();
    assert!(moved > 8, "leases changed hands {moved} times");
    for worker in workers {
        assert_eq!(worker.metric("shardwalker_gaps_total", &[]), 0.0);
        worker.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_does_not_come_to_rest_is_handed_over_as_it_is() {
    let world = world(2);
    let config = || {
        let mut config = world.config("", "");
        config.lease.handoff_timeout = Duration::from_secs(2);
        config
    };
    let one = world.start(config()).await;
    until_held(&[&one], &[2]).await;
    let two = world.start(config()).await;
    // A peer refuses everything for load: draining cannot end.
    let peer = crate::world::PEERS[0].0;
    world.sandbox.faults().add(Rule::new(Effect::Throttle).operation("PutItem").account(peer));
    world.load(10, 40, 1).await;
    let took = until_held(&[&one, &two], &[1, 1]).await;
    assert!((2..20).contains(&took.as_secs()), "{took:?}");
    world.sandbox.faults().clear();
    world.until_equal().await;
    for worker in [one, two] {
        assert_eq!(worker.metric("shardwalker_leases_lost_total", &[]), 0.0);
        worker.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn lost_answers_of_the_state_table_strand_no_shard() {
    let world = world(8);
    let faults = world.sandbox.faults();
    for effect in [Effect::DropAnswer, Effect::DropRequest, Effect::Throttle] {
        faults.add(Rule::new(effect).account(HOME).probability(0.1));
    }
    let (one, two, three) = futures::join!(world.worker(), world.worker(), world.worker());
    world.load(30, 200, 1).await;
    world.sandbox.split(&world.source, None).unwrap();
    world.load(30, 200, 2).await;
    two.kill().await;
    world.until_equal().await;
    faults.clear();
    world.load(30, 100, 3).await;
    world.until_equal().await;
    for worker in [one, three] {
        worker.stop().await.unwrap();
    }
}

/// What the leases alone cost, in requests to the state table: shards are idle, so there are no checkpoints.
#[tokio::test(start_paused = true)]
async fn idle_shards_cost_the_state_table_nothing() {
    let mut costs = Vec::new();
    for shards in [6, 36] {
        let world = world(shards);
        let config = || world.config("", "[read]\nidle_interval = \"30s\"");
        let workers = [world.start(config()).await, world.start(config()).await];
        let all = || held(&[&workers[0], &workers[1]]);
        // Within a tenth of the mean is even.
        let even = |held: usize| held as f64 >= 0.45 * f64::from(shards);
        eventually("they are even", || all().into_iter().all(even)).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        world.sandbox.counters().reset();
        tokio::time::sleep(Duration::from_secs(300)).await;
        let writes = ["PutItem", "UpdateItem", "DeleteItem"].map(|operation| world.requests(operation, HOME));
        let reads = ["Query", "GetItem", "BatchGetItem"].map(|operation| world.requests(operation, HOME));
        costs.push((writes.iter().sum::<u64>(), reads.iter().sum::<u64>()));
        for worker in workers {
            worker.stop().await.unwrap();
        }
    }
    // In 300 s: a beat of each worker every 2 s, and the lister's row every 10 s; a look of each every second, and
    // its rows or the lister's every 10 s.
    for (writes, reads) in &costs {
        assert!((300..=400).contains(writes), "{costs:?}");
        assert!((600..=800).contains(reads), "{costs:?}");
    }
}
