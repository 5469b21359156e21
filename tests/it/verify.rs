//! Comparing members on the sandbox, in virtual time: what is found, what is mended, and what is left to an operator.

mod command;
mod group;
mod schema;

use crate::operator::Operator;
use crate::sandbox_support::Client;
use crate::world::{HOME, PEERS, SOURCE, World, eventually, resource_policy};
use serde_json::Value;
use shardwalker::config::Config;
use shardwalker::sandbox::faults::{Effect, Rule};
use shardwalker::service;
use shardwalker::verify::judge::Kind;
use shardwalker::verify::record::{Record, Tally};
use shardwalker::verify::{Prefer, Request, Verify, VerifyError};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub(crate) fn request(of: &str) -> Request {
    Request {
        of: of.to_owned(),
        peer: None,
        sample: None,
        segments: Some(4),
        parallel: 2,
        read_units: None,
        consistent: false,
        settle: Duration::from_secs(30),
        repair: false,
        prefer: None,
        stop_after: None,
        max_deletes: 1000,
    }
}

/// A comparison, and the lines of its record.
pub(crate) async fn verify(
    config: Config,
    request: Request,
    options: service::Options,
) -> Result<(Tally, Vec<Value>), VerifyError> {
    verify_after(config, request, options, async || ()).await
}

/// A comparison that begins `after` something that its preparations must not see.
async fn verify_after(
    config: Config,
    request: Request,
    options: service::Options,
    after: impl AsyncFnOnce(),
) -> Result<(Tally, Vec<Value>), VerifyError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("differences");
    let record = Record::open(&file)?;
    let ready = Box::pin(Verify::build(config, request, options, record, CancellationToken::new())).await?;
    after().await;
    let tally = Box::pin(ready.run()).await?;
    Ok((tally, lines(&file)))
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The differences among a record's lines: kind and key, in order of the keys.
pub(crate) fn differences(lines: &[Value]) -> Vec<(String, String)> {
    let found = lines.iter().filter(|line| line.get("kind").is_some());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut found: Vec<_> = found.map(|line| (text(&line["key"]["id"]["S"]), text(&line["kind"]))).collect();
    found.sort();
    found.into_iter().map(|(key, kind)| (kind, key)).collect()
}

fn found(pairs: &[(Kind, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(kind, key)| (kind.name().to_owned(), (*key).to_owned())).collect()
}

/// A gap does not stop the shard.
const GO_ON: &str = "on_gap = \"continue\"";

/// The replicator may do what a comparison and a repair take.
fn allow(world: &World) {
    world.sandbox.admin(HOME, "replicator").unwrap();
    let policy = resource_policy(&world.source, &["DescribeTable", "Scan", "GetItem"]);
    world.sandbox.put_resource_policy(&world.source, &policy).unwrap();
    for peer in &world.peers {
        let actions = ["DescribeTable", "Scan", "GetItem", "PutItem", "DeleteItem"];
        world.sandbox.put_resource_policy(peer, &resource_policy(peer, &actions)).unwrap();
    }
}

async fn compare(world: &World, request: Request) -> Result<(Tally, Vec<Value>), VerifyError> {
    verify(world.config(GO_ON, ""), request, world.options(false)).await
}

/// A table's values by key.
fn values(world: &World, table: &str) -> BTreeMap<String, String> {
    let items = world.sandbox.items(table).unwrap();
    let text = |value: &Value| value["S"].as_str().unwrap().to_owned();
    items.iter().map(|item| (text(&item["id"]), text(&item["value"]))).collect()
}

/// The application of a peer's account.
fn theirs(world: &World, peer: usize) -> Client {
    Client::admin_of(&world.sandbox, PEERS[peer].0, PEERS[peer].1)
}

/// What applications did, of which the stream has lost a part: k1 is new, k2 another one, k3 deleted.
async fn lossy() -> World {
    let world = World::new();
    allow(&world);
    let worker = world.worker().await;
    for id in ["k0", "k2", "k3", "k4"] {
        world.put(id, "old").await;
    }
    world.until_equal().await;
    worker.stop().await.unwrap();
    world.put("k1", "lost").await;
    world.put("k2", "lost").await;
    world.delete("k3").await;
    world.sandbox.trim(&world.source, None).unwrap();
    world
}

#[tokio::test(start_paused = true)]
async fn members_that_are_equal_have_no_differences_while_they_are_written() {
    let world = World::new();
    allow(&world);
    let worker = world.worker().await;
    world.load(300, 900, 1).await;
    world.until_equal().await;
    let busy = async {
        for round in 0..400 {
            // Of other values than before; some keys again and again.
            world.put(&format!("k{}", round % 7), &round.to_string()).await;
            world.put(&format!("new{round}"), "new").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (compared, ()) = futures::join!(compare(&world, request("copy")), busy);
    let (tally, lines) = compared.unwrap();
    assert_eq!(tally.remaining(), 0, "{lines:#?}");
    assert!(tally.compared > 200 && tally.equal > 200, "{tally:?}");
    assert_eq!(tally.compared, tally.equal + tally.in_flight + tally.changing);
    assert!(tally.read_units > 0.0);
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_for_longer_than_differences_settle_is_no_difference() {
    let world = World::new();
    allow(&world);
    for id in 0..120 {
        world.put(&format!("k{id}"), "new").await;
    }
    // Two a second: the last ones come after a minute.
    let config = || world.config("max_writes_per_second = { b = 2 }", "");
    let worker = world.start(config()).await;
    eventually("the other peer has all", || world.items(&world.peers[1]) == world.items(&world.source)).await;
    let settle = Duration::from_secs(5);
    let request = || Request { settle, peer: Some("b".into()), ..request("copy") };
    let missing = || 120 - world.items(&world.peers[0]).len();
    assert!(missing() > 60, "{} are on their way", missing());
    let (tally, lines) = verify(config(), request(), world.options(false)).await.unwrap();
    assert_eq!(tally.remaining(), 0, "{lines:#?}");
    assert!(tally.in_flight > 50, "{tally:?}");
    // One that no worker brings counts after the same time, whatever else is on its way: nobody waits for what is new.
    theirs(&world, 0).delete("orders-copy", "k7").await;
    let begun = tokio::time::Instant::now();
    let (_, lines) = verify(config(), request(), world.options(false)).await.unwrap();
    assert_eq!(differences(&lines), found(&[(Kind::Missing, "k7")]));
    assert!(begun.elapsed() < 4 * settle, "{:?}", begun.elapsed());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn workers_that_do_not_come_further_are_not_waited_for() {
    let world = World::new();
    allow(&world);
    let worker = world.worker().await;
    world.put("k1", "old").await;
    world.until_equal().await;
    let begun = tokio::time::Instant::now();
    let standstill = async || {
        world.sandbox.faults().add(Rule::new(Effect::Unavailable).operation("GetRecords"));
        world.put("k1", "new").await;
    };
    let compared = verify_after(world.config(GO_ON, ""), request("copy"), world.options(false), standstill);
    let (_, lines) = compared.await.unwrap();
    assert_eq!(differences(&lines), found(&[(Kind::Different, "k1"), (Kind::Different, "k1")]));
    assert!(begun.elapsed() > Duration::from_secs(60), "they might have come further");
    world.sandbox.faults().clear();
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_down_is_not_waited_for_while_others_are_written_to() {
    let world = World::new();
    allow(&world);
    let worker = world.worker().await;
    world.put("k1", "old").await;
    world.until_equal().await;
    let down = async || {
        world.sandbox.faults().add(Rule::new(Effect::Unavailable).account(PEERS[0].0).operation("PutItem"));
        world.put("k1", "new").await;
    };
    let only = Request { peer: Some("b".to_owned()), ..request("copy") };
    let compared = verify_after(world.config(GO_ON, ""), only, world.options(false), down);
    // What waits for the peer gets more and more, at times that are no whole seconds.
    let writes = async {
        for id in 0.. {
            tokio::time::sleep(Duration::from_millis(3100)).await;
            world.put(&format!("w{id}"), "new").await;
        }
    };
    let compared = tokio::time::timeout(Duration::from_secs(600), async {
        tokio::select! { compared = compared => compared, () = writes => unreachable!("it writes for ever") }
    });
    let (_, lines) = Box::pin(compared).await.expect("it ends").unwrap();
    assert_eq!(differences(&lines)[0], (Kind::Different.name().to_owned(), "k1".to_owned()));
    world.sandbox.faults().clear();
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_stream_has_lost_is_found_and_mended_and_changes_go_on() {
    let world = lossy().await;
    let worker = world.start(world.config(GO_ON, "")).await;
    let (tally, lines) = compare(&world, request("copy")).await.unwrap();
    let twice = [
        (Kind::Missing, "k1"),
        (Kind::Missing, "k1"),
        (Kind::Different, "k2"),
        (Kind::Different, "k2"),
        (Kind::Extra, "k3"),
        (Kind::Extra, "k3"),
    ];
    assert_eq!(differences(&lines), found(&twice), "at both peers");
    assert_eq!((tally.remaining(), tally.repaired, tally.compared), (6, 0, 5));
    assert_eq!(values(&world, &world.peers[0])["k2"], "old", "nothing is written without --repair");
    let only = Request { peer: Some("b".to_owned()), ..request("copy") };
    assert_eq!(compare(&world, only).await.unwrap().0.remaining(), 3);

    let (tally, _) = compare(&world, Request { repair: true, ..request("copy") }).await.unwrap();
    assert_eq!((tally.remaining(), tally.repaired), (0, 6));
    assert!(world.all_equal());
    // What comes later is newer than what was mended.
    for id in ["k1", "k2", "k3"] {
        world.put(id, "later").await;
    }
    world.until_equal().await;
    for id in ["k1", "k2", "k3", "k4"] {
        world.delete(id).await;
    }
    world.until_equal().await;
    assert_eq!(compare(&world, request("copy")).await.unwrap().0.remaining(), 0);
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_an_application_wrote_at_a_peer_is_replaced_only_when_that_is_said() {
    let world = World::new();
    allow(&world);
    let worker = world.worker().await;
    world.put("k0", "source").await;
    world.until_equal().await;
    let app = theirs(&world, 0);
    app.put("orders-copy", "k0", "theirs").await;
    app.put("orders-copy", "mine", "theirs").await;
    let repair = Request { repair: true, ..request("copy") };
    let (tally, lines) = compare(&world, repair.clone()).await.unwrap();
    assert_eq!(differences(&lines), found(&[(Kind::Foreign, "k0"), (Kind::Foreign, "mine")]));
    assert_eq!((tally.remaining(), tally.repaired), (2, 0));
    let why = lines.iter().find_map(|line| line.get("why")?.as_str()).unwrap();
    assert!(why.contains("--prefer source"), "{why}");
    assert_eq!(values(&world, &world.peers[0])["mine"], "theirs");

    for (prefer, says) in [
        (Prefer::Member("b".to_owned()), "--prefer source"),
        (Prefer::Newest("value".to_owned()), "is for groups"),
    ] {
        let wrong = compare(&world, Request { prefer: Some(prefer), ..repair.clone() }).await.unwrap_err();
        assert!(wrong.to_string().contains(says), "{wrong}");
    }
    let prefer = Some(Prefer::Member("source".to_owned()));
    let (tally, _) = compare(&world, Request { prefer, ..repair }).await.unwrap();
    assert_eq!((tally.remaining(), tally.repaired), (0, 2));
    assert!(world.all_equal());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_key_that_changes_all_the_time_is_no_difference() {
    let world = World::new();
    allow(&world);
    let worker = world.worker().await;
    world.put("k0", "quiet").await;
    world.until_equal().await;
    let done = CancellationToken::new();
    let busy = async {
        for round in 0.. {
            if done.is_cancelled() {
                break;
            }
            world.put("hot", &round.to_string()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let compared = async {
        eventually("it was written", || values(&world, &world.peers[0]).contains_key("hot")).await;
        let compared = compare(&world, request("copy")).await.unwrap();
        done.cancel();
        compared
    };
    let ((tally, lines), ()) = futures::join!(compared, busy);
    assert_eq!((tally.remaining(), tally.equal, tally.changing), (0, 1, 1), "{lines:#?}");
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_comparison_that_was_broken_off_goes_on_where_it_was() {
    let world = World::new();
    allow(&world);
    world.worker().await.stop().await.unwrap();
    for item in 0..60 {
        world.put(&format!("k{item:02}"), "unsent").await;
    }
    let one_peer = Request { peer: Some("b".to_owned()), segments: Some(8), parallel: 1, ..request("copy") };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("differences");
    let build = async |drain: &CancellationToken, request: Request| {
        let record = Record::open(&file)?;
        let (config, options) = (world.config("", ""), world.options(false));
        Box::pin(Verify::build(config, request, options, record, drain.clone())).await
    };
    let drain = CancellationToken::new();
    let first = build(&drain, one_peer.clone()).await.unwrap();
    let stop = async {
        eventually("three segments are done", || {
            lines(&file).iter().filter(|line| line.get("done").is_some()).count() == 3
        })
        .await;
        // In the middle of the fourth.
        tokio::time::sleep(Duration::from_secs(10)).await;
        drain.cancel();
    };
    let (ended, ()) = futures::join!(Box::pin(first.run()), stop);
    assert!(matches!(ended, Err(VerifyError::Stopped)), "{ended:?}");
    // As a crash leaves it: a difference of a segment that was not done, and half a line.
    let mut text = std::fs::read_to_string(&file).unwrap();
    text += "{\"segment\":7,\"kind\":\"missing\",\"key\":{\"id\":{\"S\":\"k00\"}}}\n{\"segm";
    std::fs::write(&file, text).unwrap();
    let before = world.requests("Scan", SOURCE);
    let tally =
        Box::pin(build(&CancellationToken::new(), one_peer.clone()).await.unwrap().run()).await.unwrap();
    assert_eq!(
        world.requests("Scan", SOURCE) - before,
        5 + 1,
        "five segments, and the check of the permission"
    );
    assert_eq!((tally.compared, tally.of(Kind::Missing)), (60, 60));
    let keys: Vec<String> = (0..60).map(|item| format!("k{item:02}")).collect();
    let told: Vec<String> = differences(&lines(&file)).into_iter().map(|(_, key)| key).collect();
    assert_eq!(told, keys, "each once");

    let wrong = build(&CancellationToken::new(), one_peer).await.unwrap_err().to_string();
    assert!(wrong.contains("it holds a comparison that is done; name another file"), "{wrong}");
    std::fs::write(&file, "something else\n").unwrap();
    let wrong = build(&CancellationToken::new(), request("copy")).await.unwrap_err().to_string();
    assert!(wrong.contains("it holds something else; name another file"), "{wrong}");
}

#[tokio::test(start_paused = true)]
async fn a_sample_reads_a_part() {
    let world = World::new();
    allow(&world);
    world.worker().await.stop().await.unwrap();
    for item in 0..100 {
        world.put(&format!("k{item}"), "unsent").await;
    }
    let before = world.requests("Scan", SOURCE);
    let sample = Request { sample: Some(25.0), segments: Some(40), ..request("copy") };
    let (tally, lines) = compare(&world, sample).await.unwrap();
    assert_eq!(world.requests("Scan", SOURCE) - before, 10 + 1);
    assert!((5..60).contains(&tally.compared), "{tally:?}");
    assert_eq!(tally.remaining(), tally.compared * 2);
    assert_eq!(lines[0]["verify"]["sample"].as_array().unwrap().len(), 10);
    // And it ends early when that is asked for.
    let few = Request { stop_after: Some(10), segments: Some(40), parallel: 1, ..request("copy") };
    let ended = compare(&world, few).await.unwrap_err();
    assert!(matches!(ended, VerifyError::Enough(10..60)), "{ended}");
}

/// What is on its way when a sample is read is no difference, no more than when all is read; and what stays is one.
#[tokio::test(start_paused = true)]
async fn a_sample_counts_only_what_has_stayed() {
    let world = World::new();
    allow(&world);
    let worker = world.worker().await;
    for item in 0..200 {
        world.put(&format!("k{item:03}"), "old").await;
    }
    world.until_equal().await;
    // What is deleted at a peer by hand stays; what is written meanwhile comes ten seconds later.
    for item in 0..20 {
        theirs(&world, 0).delete("orders-copy", &format!("k{item:03}")).await;
    }
    for (account, _) in PEERS {
        world.sandbox.faults().add(Rule::new(Effect::DelayMs(3000)).operation("PutItem").account(account));
    }
    let busy = async {
        for item in 100..200 {
            world.put(&format!("k{item:03}"), "new").await;
        }
    };
    let sample = |settle| Request {
        sample: Some(50.0),
        segments: Some(40),
        parallel: 20,
        settle: Duration::from_secs(settle),
        ..request("copy")
    };
    let (compared, ()) = futures::join!(compare(&world, sample(30)), busy);
    let (tally, lines) = compared.unwrap();
    let differing = differences(&lines);
    assert!(tally.in_flight > 0, "something was on its way: {tally:?}");
    assert!(!differing.is_empty() && differing.len() < 20, "a part of what is missing: {differing:?}");
    assert!(differing.iter().all(|(kind, key)| kind == "missing" && key.as_str() < "k020"), "{differing:?}");
    assert_eq!(tally.remaining(), differing.len() as u64);
    assert_eq!(tally.compared, tally.equal + tally.in_flight + tally.changing + tally.remaining());
    world.sandbox.faults().clear();
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_source_that_was_emptied_empties_no_peer() {
    let world = World::new();
    allow(&world);
    let worker = world.worker().await;
    for item in 0..30 {
        world.put(&format!("k{item}"), "value").await;
    }
    world.until_equal().await;
    worker.stop().await.unwrap();
    for item in 0..30 {
        world.delete(&format!("k{item}")).await;
    }
    world.sandbox.trim(&world.source, None).unwrap();
    let careful = Request { repair: true, max_deletes: 5, ..request("copy") };
    let refused = compare(&world, careful.clone()).await.unwrap_err();
    assert!(matches!(refused, VerifyError::TooManyDeletes(5)), "{refused}");
    let left: usize = world.peers.iter().map(|peer| values(&world, peer).len()).sum();
    assert_eq!(left, 60 - 5);
    let (tally, _) = compare(&world, Request { max_deletes: 60, ..careful }).await.unwrap();
    assert_eq!((tally.remaining(), tally.repaired), (0, 55));
    assert!(world.all_equal());
}

#[tokio::test(start_paused = true)]
async fn what_stands_against_it_is_said_first() {
    let world = World::new();
    let worker = world.worker().await;
    let denied = compare(&world, request("copy")).await.unwrap_err().to_string();
    for action in ["\"dynamodb:Scan\"", "\"dynamodb:GetItem\""] {
        assert!(denied.contains(action), "{action}: {denied}");
    }
    allow(&world);
    for (of, peer, says) in [
        ("nothing", None, "there is no route or group \"nothing\"; there are copy"),
        ("copy", Some("x"), "route copy has no peer \"x\"; its peers are b, c"),
    ] {
        let request = Request { peer: peer.map(str::to_owned), ..request(of) };
        let wrong = compare(&world, request).await.unwrap_err().to_string();
        assert!(wrong.contains(says), "{wrong}");
    }
    let operator = Operator::new(&world).await;
    operator.controls.pause(&Operator::route(), "maintenance", "me").await.unwrap();
    let repair = Request { repair: true, ..request("copy") };
    let wrong = compare(&world, repair).await.unwrap_err().to_string();
    assert!(wrong.contains("resume it first"), "{wrong}");
    assert_eq!(
        compare(&world, request("copy")).await.unwrap().0.remaining(),
        0,
        "reading is no matter of pauses"
    );
    worker.stop().await.unwrap();
}
