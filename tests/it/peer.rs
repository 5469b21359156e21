//! Conditional writes to a peer, tombstones, leases and dead letters: each rule by itself, on the sandbox.

use crate::sandbox_support::s;
use crate::world::{HOME, PEERS, STAMP, World, with};
use aws_sdk_dynamodb::types::AttributeValue;
use prometheus::IntCounter;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use shardwalker::aws::{Aws, Clients};
use shardwalker::change::{Change, Event, Image, SequenceNumber};
use shardwalker::clock::Clock;
use shardwalker::content::Content;
use shardwalker::dead_letters::{self, DeadLetters, Reason};
use shardwalker::failure::{Class, Failure};
use shardwalker::item::{Item, Key};
use shardwalker::lane::Position;
use shardwalker::lease::heart::Heart;
use shardwalker::lease::row::{Lease, PeerPosition};
use shardwalker::lease::table::{HeldError, LeaseTable};
use shardwalker::ledger::Ledger;
use shardwalker::peer::{Outcome, Peer, PeerParts};
use shardwalker::retry::Jitter;
use shardwalker::sandbox::faults::{Effect, Rule};
use shardwalker::state::StateTable;
use shardwalker::stream::graph::Shard;
use shardwalker::telemetry::metrics::Metrics;
use shardwalker::version::{Hlc, Stamp, Version};
use std::collections::BTreeMap;
use std::time::Duration;

struct Parts {
    world: World,
    peer: Peer,
    ledger: Ledger,
    state: StateTable,
    clock: Clock,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn parts() -> Parts {
    let world = World::new();
    let config = world.config("", "");
    let (service, _) = world.build(config.clone()).await.unwrap();
    drop(service);
    let aws = Aws::new(world.base());
    let home: Clients = aws.clients(&config.state.access).await;
    let state = StateTable::new(&config.state, &home, Metrics::new().unwrap());
    let clock = Clock::starting_at(world.sandbox.clock().now());
    let ledger = Ledger::new(state.clone(), clock, 7 * DAY);
    let peer = Peer::new(PeerParts {
        name: "b".into(),
        scope: "b".into(),
        client: aws.clients(&config.members[1].access).await.tables,
        table: world.peers[0].clone(),
        partition_key: "id".into(),
        stamp: STAMP.into(),
        pristine: false,
        max_drift: Duration::from_secs(60),
        max_writes: None,
        gate: None,
        guard: None,
        clock,
        ledger: ledger.clone(),
        heart: None,
        requests: IntCounter::new("requests", "requests").unwrap(),
    });
    Parts { world, peer, ledger, state, clock }
}

impl Parts {
    /// A version so many seconds from now.
    fn at(&self, seconds: i64) -> Version {
        let now = i64::try_from(self.clock.millis()).unwrap();
        Version::new(Hlc::from_millis(u64::try_from(now + seconds * 1000).unwrap()), 0)
    }

    async fn put(&self, value: &str, version: Version, creates: bool) -> Outcome {
        let content = Content::from(Item(with("k", &[("value", s(value))])));
        self.peer.put(&content, &key(), version, creates).await.unwrap()
    }

    async fn delete(&self, version: Version) -> Outcome {
        self.peer.raise(&key(), version).await.unwrap();
        self.peer.delete(&key(), version).await.unwrap()
    }

    fn value(&self) -> Option<String> {
        let items = self.world.sandbox.items(&self.world.peers[0]).unwrap();
        items.first().map(|item| item["value"]["S"].as_str().unwrap_or("?").to_owned())
    }

    /// What an application writes at the peer itself, with this in the stamp's place.
    async fn application(&self, stamp: Option<AttributeValue>) {
        let admin = self.world.sandbox.admin(PEERS[0].0, "admin").unwrap();
        let client = crate::sandbox_support::Client::new(&self.world.sandbox, &admin);
        let mut item = with("k", &[("value", s("application"))]);
        item.extend(stamp.map(|stamp| (STAMP.to_owned(), stamp)));
        client.db.put_item().table_name("orders-copy").set_item(Some(item)).send().await.unwrap();
    }
}

fn key() -> Key {
    Key::new(Item(with("k", &[])))
}

#[tokio::test(start_paused = true)]
async fn only_what_is_newer_takes_effect_whatever_the_guess() {
    for creates in [true, false] {
        let parts = parts().await;
        assert_eq!(parts.put("2", parts.at(-8), creates).await, Outcome::Applied);
        assert_eq!(parts.put("1", parts.at(-9), creates).await, Outcome::Superseded);
        assert_eq!(
            parts.put("2 again", parts.at(-8), creates).await,
            Outcome::Applied,
            "its own, from before"
        );
        assert_eq!(parts.value().unwrap(), "2");
        assert_eq!(parts.put("3", parts.at(-7), creates).await, Outcome::Applied);
        assert_eq!(parts.delete(parts.at(-8)).await, Outcome::Superseded);
        assert_eq!(parts.value().unwrap(), "3");
        assert_eq!(parts.delete(parts.at(-6)).await, Outcome::Applied);
        assert_eq!(parts.value(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_put_does_not_bring_a_deleted_item_back() {
    for creates in [true, false] {
        let parts = parts().await;
        parts.put("1", parts.at(-9), true).await;
        parts.delete(parts.at(-5)).await;
        // The write of a worker that was cut off before the delete.
        assert_eq!(parts.put("late", parts.at(-7), creates).await, Outcome::Superseded);
        assert_eq!(parts.value(), None);
        assert_eq!(parts.put("newer", parts.at(-4), creates).await, Outcome::Applied);
        assert_eq!(parts.value().unwrap(), "newer");
    }
}

/// The condition of a request is made when it is sent. What was written while it was on its way is not in the future.
#[tokio::test(start_paused = true)]
async fn a_put_that_was_on_its_way_for_minutes_replaces_nothing() {
    let parts = parts().await;
    parts.put("newer", parts.at(0), true).await;
    // As a worker made it that signed it four minutes ago.
    parts.clock.set_wrong_by(-240_000);
    let late = Version::new(Hlc::from_millis(parts.clock.millis()), 0);
    assert_eq!(parts.put("late", late, false).await, Outcome::Superseded);
    assert_eq!(parts.delete(late).await, Outcome::Superseded);
    assert_eq!(parts.value().unwrap(), "newer");
}

#[tokio::test(start_paused = true)]
async fn a_creation_whose_check_never_came_is_checked_by_the_replay() {
    let parts = parts().await;
    let (v, tombstone) = (parts.at(-7), parts.at(-5));
    parts.ledger.raise("b", key().digest(), tombstone).await.unwrap();
    let content = Content::from(Item(with("k", &[("value", s("created by a worker that died"))])));
    let stamp = Stamp::of(&content, v).to_string();
    parts.application(Some(s(&stamp))).await;
    assert_eq!(parts.put("created by a worker that died", v, false).await, Outcome::Superseded);
    assert_eq!(parts.value(), None);
}

#[tokio::test(start_paused = true)]
async fn what_has_no_stamp_or_none_to_believe_is_overwritten_and_deleted() {
    let parts = parts().await;
    let future = Stamp::of(&Item::default().into(), parts.at(3600)).to_string();
    let stamps = [
        None,
        Some(AttributeValue::N("5".into())),
        Some(AttributeValue::Bool(true)),
        Some(s("")),
        Some(s("not a stamp")),
        Some(s(&format!("{}.zz", parts.at(0)))),
        Some(s(&future)),
    ];
    for stamp in stamps {
        for creates in [true, false] {
            parts.application(stamp.clone()).await;
            assert_eq!(parts.put("ours", parts.at(0), creates).await, Outcome::Applied, "{stamp:?}");
            assert_eq!(parts.value().unwrap(), "ours");
        }
        parts.application(stamp.clone()).await;
        assert_eq!(parts.delete(parts.at(0)).await, Outcome::Applied, "{stamp:?}");
        assert_eq!(parts.value(), None);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_replay_of_old_records_does_not_take_todays_stamps_for_the_future() {
    let parts = parts().await;
    parts.put("today", parts.at(0), true).await;
    assert_eq!(parts.put("an hour ago", parts.at(-3600), false).await, Outcome::Superseded);
    assert_eq!(parts.value().unwrap(), "today");
}

#[tokio::test(start_paused = true)]
async fn lost_answers_do_not_change_the_outcome() {
    let parts = parts().await;
    let faults = parts.world.sandbox.faults();
    for operation in ["PutItem", "DeleteItem"] {
        faults.add(Rule::new(Effect::DropAnswer).operation(operation).account(PEERS[0].0).times(1));
    }
    let content = Content::from(Item(with("k", &[("value", s("1"))])));
    let version = parts.at(-3);
    assert!(parts.peer.put(&content, &key(), version, true).await.is_err());
    assert_eq!(parts.peer.put(&content, &key(), version, true).await.unwrap(), Outcome::Applied);
    assert!(parts.peer.delete(&key(), parts.at(-2)).await.is_err());
    assert_eq!(parts.peer.delete(&key(), parts.at(-2)).await.unwrap(), Outcome::Applied);
    assert_eq!(parts.value(), None);
}

#[tokio::test(start_paused = true)]
async fn tombstones_only_rise_and_many_are_read_in_few_requests() {
    let parts = parts().await;
    let (ledger, digest) = (&parts.ledger, key().digest());
    assert_eq!(ledger.read("b", digest).await.unwrap(), None);
    for (raised, expected) in [(-5, -5), (-9, -5), (-1, -1)] {
        ledger.raise("b", digest, parts.at(raised)).await.unwrap();
        assert_eq!(ledger.read("b", digest).await.unwrap(), Some(parts.at(expected)));
    }
    assert_eq!(ledger.read("c", digest).await.unwrap(), None, "another scope");
    parts.world.sandbox.faults().add(Rule::new(Effect::DelayMs(5)).operation("BatchGetItem").account(HOME));
    let before = parts.world.requests("BatchGetItem", HOME);
    let digests: Vec<_> = (0..500).map(|n| Item(with(&n.to_string(), &[])).digest(None)).collect();
    let raised = parts.at(-4);
    ledger.raise("b", digests[321], raised).await.unwrap();
    let read = futures::future::join_all(digests.iter().map(|digest| ledger.read("b", *digest))).await;
    let found: Vec<_> =
        read.into_iter().map(Result::unwrap).enumerate().filter(|(_, v)| v.is_some()).collect();
    assert_eq!(found, [(321, Some(raised))]);
    let requests = parts.world.requests("BatchGetItem", HOME) - before;
    assert!(requests <= 20, "{requests} requests for 500 reads");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_dropped_leaves_the_others_their_answers() {
    let parts = parts().await;
    parts.world.sandbox.faults().add(Rule::new(Effect::DelayMs(500)).operation("BatchGetItem").account(HOME));
    let digests: Vec<_> = (0..60).map(|n| Item(with(&n.to_string(), &[])).digest(None)).collect();
    let (gone, left) = digests.split_at(30);
    let gone = futures::future::join_all(gone.iter().map(|digest| parts.ledger.read("b", *digest)));
    let left = futures::future::join_all(left.iter().map(|digest| parts.ledger.read("b", *digest)));
    let gone = tokio::time::timeout(Duration::from_millis(100), gone);
    let (gone, left) = futures::join!(gone, tokio::time::timeout(Duration::from_secs(10), left));
    assert!(gone.is_err());
    assert!(left.unwrap().into_iter().all(|answer| answer == Ok(None)));
}

fn lease() -> Lease {
    let peers = BTreeMap::from([("b".to_owned(), PeerPosition::default())]);
    let shard = Shard { id: "shardId-1".into(), parent: None, closed: false };
    Lease { initial: true, peers, ..Lease::new(&shard) }
}

fn position(sequence: &str, millis: u64) -> BTreeMap<String, PeerPosition> {
    let position =
        Position { sequence: SequenceNumber::parse(sequence), hlc: Hlc::from_millis(millis), created: None };
    BTreeMap::from([("b".to_owned(), PeerPosition { position, done: false })])
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_fenced_and_its_positions_never_go_back() {
    let parts = parts().await;
    let table = |worker: &str| LeaseTable::new(parts.state.clone(), "copy", "stream", worker.into());
    let (one, two) = (table("one"), table("two"));
    assert!(one.add(&lease()).await.unwrap());
    assert!(!two.add(&lease()).await.unwrap());
    let (held, row) = one.take(&lease()).await.unwrap().unwrap();
    assert_eq!((held.epoch(), row.owner.as_deref()), (1, Some("one")));
    assert!(two.take(&lease()).await.unwrap().is_none(), "what it saw is not true any more");
    held.checkpoint(&position("10", 100)).await.unwrap();
    assert_eq!(held.checkpoint(&position("9", 90)).await, Err(HeldError::Lost));
    let mut done = position("10", 100);
    done.values_mut().for_each(|peer| peer.done = true);
    held.checkpoint(&done).await.unwrap();
    held.checkpoint(&done).await.unwrap();
    // Sent before, and held back by the network.
    assert_eq!(held.checkpoint(&position("10", 100)).await, Err(HeldError::Lost));
    // A checkpoint of the old owner after the lease was taken from it.
    let (new, row) = two.take(&row).await.unwrap().unwrap();
    assert_eq!(row.peers, done);
    assert_eq!(held.checkpoint(&position("20", 200)).await, Err(HeldError::Lost));
    assert_eq!(held.release().await, Err(HeldError::Lost));
    new.checkpoint(&position("11", 110)).await.unwrap();
    new.release().await.unwrap();
    assert_eq!(new.checkpoint(&position("12", 120)).await, Err(HeldError::Lost));
    let rows = one.load().await.unwrap().leases;
    assert_eq!((rows[0].owner.as_deref(), rows[0].epoch), (None, 2));
    assert_eq!(rows[0].peers, position("11", 110));
}

#[tokio::test(start_paused = true)]
async fn a_take_whose_answer_was_lost_is_recognised() {
    let parts = parts().await;
    let table = LeaseTable::new(parts.state.clone(), "copy", "stream", "one".into());
    table.add(&lease()).await.unwrap();
    parts
        .world
        .sandbox
        .faults()
        .add(Rule::new(Effect::DropAnswer).operation("UpdateItem").account(HOME).times(1));
    assert!(table.take(&lease()).await.is_err());
    let (held, _) = table.take(&lease()).await.unwrap().unwrap();
    assert_eq!(held.epoch(), 1);
    held.checkpoint(&position("1", 1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_dead_when_its_counter_stands_still_for_a_lease() {
    let parts = parts().await;
    let config = parts.world.config("", "").lease;
    let heart = |worker: &str| {
        let timeout = Duration::from_secs(4);
        Heart::new(parts.state.clone(), worker.into(), parts.clock, &config, timeout, Jitter::seeded(1))
    };
    let (one, two) = (heart("one"), heart("two"));
    assert!(one.fence().is_none(), "no right to write before the first beat");
    one.beat().await.unwrap();
    assert!(one.fence().is_none(), "nor before the first look at what operators ask for");
    one.look().await.unwrap();
    assert!(one.fence().is_some());
    for _ in 0..4 {
        two.beat().await.unwrap();
        two.look().await.unwrap();
        one.beat().await.unwrap();
        assert!(two.dead(["one", "two", "never seen"]).is_empty());
        tokio::time::sleep(config.duration / 4).await;
    }
    two.beat().await.unwrap();
    two.look().await.unwrap();
    assert_eq!(two.dead(["one", "never seen"]).into_iter().collect::<Vec<_>>(), ["never seen"]);
    // Time in which it did not look proves nothing; and its own right to write is gone by then.
    tokio::time::sleep(config.duration * 2).await;
    assert!(two.dead(["one"]).is_empty());
    assert!(two.fence().is_none());
    // A worker that came after the last look is not dead because it was never seen.
    assert!(two.dead(["new"]).is_empty());
    two.beat().await.unwrap();
    assert!(two.fence().is_none(), "it does not know what operators asked for meanwhile");
    two.look().await.unwrap();
    assert!(two.fence().is_some());
    assert_eq!(two.dead(["one", "new"]).into_iter().collect::<Vec<_>>(), ["one"]);
}

#[tokio::test(start_paused = true)]
async fn a_letter_larger_than_a_row_is_split_and_comes_back_whole() {
    let parts = parts().await;
    let letters = DeadLetters::new(parts.state.clone(), parts.clock, 1000);
    let mut random = StdRng::seed_from_u64(7);
    let mut image = || {
        let mut bytes = vec![0; 300 * 1024];
        random.fill_bytes(&mut bytes);
        let content = Content::from(Item(with("k", &[("bytes", AttributeValue::B(bytes.into()))])));
        Some(Image { content, stamp: None })
    };
    let change = Change {
        sequence: SequenceNumber::parse("123456789012345678901").unwrap(),
        created: parts.world.sandbox.clock().now(),
        key: key(),
        event: Event::Modify,
        old: image(),
        new: image(),
        by_ttl: false,
        size: 0,
    };
    let lane = dead_letters::Lane { route: "copy", peer: "b", shard: "shardId-1" };
    let why = Failure::new(Class::Invalid, "ValidationException", "Item size has exceeded");
    for reason in [Reason::Refused, Reason::Behind] {
        letters.keep(lane, &change, parts.at(0), reason, &why).await.unwrap();
    }
    assert_eq!(letters.keys("copy", "b").await.unwrap().into_iter().collect::<Vec<_>>(), [key().digest()]);
    let rows = parts.world.rows("dead#copy#b");
    assert!(rows.len() >= 2, "{} rows", rows.len());
    assert_eq!(rows[0]["reason"]["S"], "refused", "the first reason stays");
    assert_eq!(rows[0]["parts"]["N"], rows.len().to_string());
    let letter = letters.letters("copy", "b", None).await.unwrap().remove(0);
    assert_eq!((letter.attempts, letter.reason), (1, Reason::Refused));
    let back = letters.record("copy", "b", &letter).await.unwrap();
    assert_eq!(
        (back.sequence, back.key, back.old, back.new),
        (change.sequence, change.key, change.old, change.new)
    );
    for _ in 0..2 {
        letters.remove("copy", "b", &letter).await.unwrap();
        assert!(parts.world.rows("dead#copy#b").is_empty());
    }
    assert!(letters.release("copy", "b", key().digest()).await.unwrap());
    assert!(parts.world.rows("dead-keys#copy#b").is_empty());
}
