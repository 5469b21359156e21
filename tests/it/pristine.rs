//! Routes whose peers get no attribute of ours, on the sandbox, in virtual time.

use crate::verify::{differences, request as compared, verify};
use crate::world::{HOME, PEERS, World, eventually, resource_policy};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use shardwalker::backfill::{Backfill, BackfillError, Ended, Request};
use shardwalker::config::Config;
use shardwalker::peer::OnExisting;
use shardwalker::sandbox::Options;
use shardwalker::sandbox::faults::{Effect, Rule};
use shardwalker::task::Tasks;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn world() -> World {
    let world = World::with(Options { initial_shards: 2, ..Options::default() }, Some("NEW_AND_OLD_IMAGES"));
    world.sandbox.admin(HOME, "replicator").unwrap();
    let policy = resource_policy(&world.source, &["DescribeTable", "Scan", "GetItem"]);
    world.sandbox.put_resource_policy(&world.source, &policy).unwrap();
    for peer in &world.peers {
        let actions = ["DescribeTable", "Scan", "GetItem", "PutItem", "DeleteItem"];
        world.sandbox.put_resource_policy(peer, &resource_policy(peer, &actions)).unwrap();
    }
    world
}

fn config(world: &World) -> Config {
    world.config("pristine = true\nstart = \"latest\"", "")
}

/// A table's items as they are.
fn items(world: &World, table: &str) -> BTreeMap<String, Value> {
    let items = world.sandbox.items(table).unwrap();
    items.into_iter().map(|item| (item["id"].to_string(), item)).collect()
}

fn same(world: &World) -> bool {
    let source = items(world, &world.source);
    world.peers.iter().all(|peer| items(world, peer) == source)
}

fn seeds() -> impl Iterator<Item = u64> {
    let given = std::env::var("PRISTINE_SEED").ok().and_then(|seed| seed.parse().ok());
    given.map_or(1..5_u64, |seed| seed..seed + 1).inspect(|seed| eprintln!("PRISTINE_SEED={seed}"))
}

/// Answers that are lost, and calls that are refused.
fn bad_weather(world: &World) {
    for (account, _) in PEERS {
        for (operation, effect) in [
            ("PutItem", Effect::DropAnswer),
            ("DeleteItem", Effect::DropAnswer),
            ("PutItem", Effect::Throttle),
        ] {
            world
                .sandbox
                .faults()
                .add(Rule::new(effect).operation(operation).account(account).probability(0.05));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn peers_hold_the_very_items_of_the_source_whoever_dies() {
    for seed in seeds() {
        let (world, mut random) = (world(), StdRng::seed_from_u64(seed));
        bad_weather(&world);
        let mut worker = world.start(config(&world)).await;
        for round in 0..4 {
            world.load(20, 60, seed * 100 + round).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..4000))).await;
            // What it did since its last checkpoint is done again.
            worker.kill().await;
            worker = world.start(config(&world)).await;
        }
        eventually("the peers hold what the source does", || same(&world)).await;
        world.sandbox.faults().clear();
        worker.stop().await.unwrap();
        assert!(same(&world));
    }
}

fn request(restart: bool) -> Request {
    Request {
        route: "copy".to_owned(),
        segments: Some(3),
        parallel: Some(3),
        existing: Some(OnExisting::Overwrite),
        restart,
        ..Request::default()
    }
}

async fn backfill(world: &World, request: Request) -> Result<Ended, BackfillError> {
    let drain = CancellationToken::new();
    let built = Box::pin(Backfill::build(config(world), request, world.options(true), None, drain)).await?;
    Box::pin(built.run(watch::channel(None).0)).await
}

#[tokio::test(start_paused = true)]
async fn a_backfill_beside_deletes_and_creations_loses_nothing_and_brings_nothing_back() {
    for seed in seeds() {
        let (world, mut random) = (world(), StdRng::seed_from_u64(seed));
        for item in 0..60 {
            world.put(&format!("k{item}"), "before").await;
        }
        tokio::time::sleep(Duration::from_secs(900)).await;
        let worker = world.start(config(&world)).await;
        bad_weather(&world);
        let writes = async {
            for write in 0..150 {
                let id = format!("k{}", random.random_range(0..60));
                match random.random_range(0..3) {
                    0 => world.delete(&id).await,
                    _ => world.put(&id, &format!("v{write}")).await,
                }
                // Deleted and made again at once, while a page is under way.
                if random.random_ratio(1, 4) {
                    world.delete(&id).await;
                    world.put(&id, &format!("w{write}")).await;
                }
                tokio::time::sleep(Duration::from_millis(random.random_range(0..120))).await;
            }
        };
        let copies = async {
            // Some die on the way.
            for budget in [300, 900, 2000] {
                let mut task = Tasks::new();
                let drain = CancellationToken::new();
                let slow = Request { write_units: Some(20), ..request(false) };
                let one =
                    Backfill::build(config(&world), slow, world.options(true), None, drain).await.unwrap();
                task.spawn(one.run(watch::channel(None).0));
                tokio::time::sleep(Duration::from_millis(budget)).await;
                task.abort_all().await;
            }
            assert!(matches!(
                Box::pin(backfill(&world, request(false))).await,
                Ok(Ended::Done | Ended::Before)
            ));
        };
        futures::join!(writes, copies);
        world.sandbox.faults().clear();
        eventually("the peers hold what the source does", || same(&world)).await;
        // Nothing comes later.
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(same(&world), "seed {seed}");
        assert_eq!(Box::pin(backfill(&world, request(true))).await.unwrap(), Ended::Done);
        assert!(same(&world), "seed {seed}");
        worker.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_there_is_replaced_only_when_that_is_said() {
    let world = world();
    world.put("both", "source").await;
    world.put("gone", "source").await;
    tokio::time::sleep(Duration::from_secs(900)).await;
    let other = crate::sandbox_support::Client::admin(&world.sandbox, PEERS[0].0);
    other.put("orders-copy", "both", "theirs").await;
    other.put("orders-copy", "theirs", "alone").await;
    let worker = world.start(config(&world)).await;
    for existing in [None, Some(OnExisting::Keep), Some(OnExisting::Fail)] {
        let refused = Box::pin(backfill(&world, Request { existing, ..request(false) })).await.unwrap_err();
        assert!(refused.to_string().contains("--on-existing overwrite"), "{refused}");
    }
    assert_eq!(Box::pin(backfill(&world, request(false))).await.unwrap(), Ended::Done);
    let found = items(&world, &world.peers[0]);
    assert_eq!(found["{\"S\":\"both\"}"], items(&world, &world.source)["{\"S\":\"both\"}"]);
    assert_eq!(found.len(), 3, "what is under other keys is nobody's business");

    // A comparison by content alone, in which the source is right.
    other.put("orders-copy", "both", "changed").await;
    other.delete("orders-copy", "gone").await;
    let config = config(&world);
    let told = |repair| shardwalker::verify::Request { repair, ..compared("copy") };
    let (tally, lines) = verify(config.clone(), told(false), world.options(false)).await.unwrap();
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(kind, key)| ((*kind).to_owned(), (*key).to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(
        differences(&lines),
        pairs(&[("different", "both"), ("missing", "gone"), ("extra", "theirs")])
    );
    assert_eq!(tally.remaining(), 3);
    let (tally, _) = verify(config, told(true), world.options(false)).await.unwrap();
    assert_eq!((tally.repaired, tally.remaining()), (3, 0));
    assert!(same(&world));
    worker.stop().await.unwrap();
}
