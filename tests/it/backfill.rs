//! Backfills on the sandbox, in virtual time: what is copied, what is left, and what happens on bad days.

mod bad_days;
mod choices;
mod command;
mod export;
mod group;

use crate::sandbox_support::s;
use crate::world::{HOME, SOURCE, STAMP, World, eventually, with};
use shardwalker::backfill::counts::Fate;
use shardwalker::backfill::{Backfill, BackfillError, Ended, Picture, Request};
use shardwalker::config::Config;
use shardwalker::peer::Seeded;
use shardwalker::sandbox::Options;
use shardwalker::sandbox::faults::{Effect, Rule};
use shardwalker::task::Tasks;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A world whose route starts with what is written from now on: only a backfill copies what was there before.
struct Stage {
    world: World,
    /// Little goes on at a time, and little is looked at: hours of virtual time take seconds.
    slowly: bool,
}

/// A process of a backfill.
struct Process {
    drain: CancellationToken,
    pictures: watch::Receiver<Option<Picture>>,
    task: Tasks<Result<Ended, BackfillError>>,
}

const LATEST: &str = "start = \"latest\"";
/// Longer ago than the route's start is taken to be.
const LONG_AGO: Duration = Duration::from_secs(900);

impl Stage {
    fn new() -> Self {
        let world =
            World::with(Options { initial_shards: 2, ..Options::default() }, Some("NEW_AND_OLD_IMAGES"));
        let stage = Self { world, slowly: false };
        stage.allow(&["Scan", "DescribeTable"]);
        stage
    }

    fn allow(&self, actions: &[&str]) {
        allow(&self.world, actions);
    }

    /// So many items that no stream has any more.
    async fn fill(&self, items: usize) {
        for item in 0..items {
            self.world.put(&format!("k{item}"), "before").await;
        }
        tokio::time::sleep(LONG_AGO).await;
    }

    fn config(&self) -> Config {
        let mut config = self.world.config(LATEST, "");
        if self.slowly {
            let (lease, read) = (&mut config.lease, &mut config.read);
            lease.duration = Duration::from_secs(600);
            (lease.renew_interval, lease.look_interval) = (Duration::from_secs(100), Duration::from_secs(30));
            (read.idle_interval, read.list_interval) = (Duration::from_secs(60), Duration::from_secs(600));
            config.write.in_flight = 4;
        }
        config
    }

    async fn build(&self, request: Request) -> Result<Backfill, BackfillError> {
        let config = self.config();
        Backfill::build(config, request, self.world.options(true), None, CancellationToken::new()).await
    }

    async fn start(&self, request: Request) -> Process {
        let (config, drain) = (self.config(), CancellationToken::new());
        let options = self.world.options(true);
        let backfill = Backfill::build(config, request, options, None, drain.clone()).await.unwrap();
        let (pictures, seen) = watch::channel(None);
        let mut task = Tasks::new();
        task.spawn(backfill.run(pictures));
        Process { drain, pictures: seen, task }
    }

    /// A process from its beginning to its end.
    async fn run(&self, request: Request) -> (Ended, Picture) {
        let mut process = self.start(request).await;
        let ended = process.end().await.unwrap();
        (ended, process.picture())
    }

    async fn service(&self) -> crate::world::Worker {
        self.world.start(self.config()).await
    }
}

/// What the source's table policy allows; the identity policy allows everything.
fn allow(world: &World, actions: &[&str]) {
    world.sandbox.admin(HOME, "replicator").unwrap();
    let policy = crate::world::resource_policy(&world.source, actions);
    world.sandbox.put_resource_policy(&world.source, &policy).unwrap();
}

impl Process {
    async fn end(&mut self) -> Result<Ended, BackfillError> {
        let limit = Duration::from_secs(40 * 3600);
        tokio::time::timeout(limit, self.task.join_next()).await.expect("it ends").unwrap().unwrap()
    }

    /// As `kill -9` would.
    async fn kill(mut self) {
        self.task.abort_all().await;
    }

    fn picture(&self) -> Picture {
        self.pictures.borrow().clone().expect("it has looked at the rows")
    }

    fn items(&self) -> u64 {
        self.pictures.borrow().as_ref().map_or(0, |picture| picture.totals.items)
    }
}

/// A backfill of everything, in few segments.
fn request() -> Request {
    Request { route: "copy".to_owned(), segments: Some(4), ..Request::default() }
}

fn count(picture: &Picture, peer: &str, seeded: Seeded) -> u64 {
    picture.totals.peers[peer].get(Fate::Seeded(seeded))
}

#[tokio::test(start_paused = true)]
async fn what_was_there_before_is_copied_once_and_what_comes_meanwhile_with_the_stream() {
    let stage = Stage::new();
    let world = &stage.world;
    stage.fill(300).await;
    let worker = stage.service().await;
    world.put("new", "by the stream").await;
    eventually("the stream is followed", || world.items(&world.peers[0]).len() == 1).await;
    let (ended, picture) = stage.run(request()).await;
    assert_eq!((ended, picture.state, picture.totals.items), (Ended::Done, "done", 301));
    for peer in ["b", "c"] {
        assert_eq!(count(&picture, peer, Seeded::Created), 300);
        assert_eq!(count(&picture, peer, Seeded::Newer), 1, "the stream's is newer");
    }
    assert!(world.all_equal());
    assert_eq!(
        world.requests("PutItem", crate::world::PEERS[0].0),
        1 + 1 + 1 + 301,
        "two checks, one write each"
    );
    // Asked for again it has nothing to do; begun anew it changes nothing.
    let (ended, _) = stage.run(request()).await;
    assert_eq!(ended, Ended::Before);
    let (ended, picture) = stage.run(Request { restart: true, ..request() }).await;
    assert_eq!((ended, picture.run), (Ended::Done, 2));
    assert_eq!(count(&picture, "b", Seeded::Unchanged), 300);
    assert!(world.all_equal());
    // Every streamed change beats what was copied.
    world.put("k7", "after").await;
    world.delete("k8").await;
    world.until_equal().await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn several_processes_share_the_work_and_another_goes_on_when_one_dies() {
    let stage = Stage::new();
    let world = &stage.world;
    stage.fill(600).await;
    let worker = stage.service().await;
    let slow = || Request { segments: Some(12), parallel: Some(2), write_units: Some(10), ..request() };
    let (one, mut two) = (stage.start(slow()).await, stage.start(slow()).await);
    let held = || one.pictures.borrow().as_ref().is_some_and(|p| p.owners.len() == 2 && p.segments.held == 4);
    eventually("both hold segments", held).await;
    eventually("a part is done", || one.items() > 100).await;
    one.kill().await;
    assert_eq!(two.end().await.unwrap(), Ended::Done);
    let picture = two.picture();
    // What was not saved is read and counted again, never twice.
    assert_eq!((picture.totals.items, picture.segments.done), (600, 12));
    assert!(world.all_equal());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_asked_to_stop_saves_what_it_has_and_the_next_goes_on_at_once() {
    let stage = Stage::new();
    let world = &stage.world;
    stage.fill(400).await;
    let worker = stage.service().await;
    let slow = || Request { write_units: Some(20), ..request() };
    let mut one = stage.start(slow()).await;
    eventually("a part is done", || one.items() > 100).await;
    one.drain.cancel();
    assert_eq!(one.end().await.unwrap(), Ended::Drained);
    assert!(world.rows("backfill#copy").iter().all(|row| row.get("owner").is_none()));
    let begun = tokio::time::Instant::now();
    let puts = world.requests("PutItem", crate::world::PEERS[0].0);
    let (ended, picture) = stage.run(request()).await;
    assert_eq!((ended, picture.totals.items), (Ended::Done, 400));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(world.requests("PutItem", crate::world::PEERS[0].0) - puts < 300, "not from the beginning");
    assert!(world.all_equal());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn read_and_write_units_are_kept() {
    let stage = Stage::new();
    let world = &stage.world;
    // 2 KB each: 3 write units with the stamp, and half a read unit.
    for item in 0..200 {
        world.put(&format!("k{item}"), &"x".repeat(2100)).await;
    }
    tokio::time::sleep(LONG_AGO).await;
    let worker = stage.service().await;
    let begun = tokio::time::Instant::now();
    let (_, picture) = stage.run(Request { write_units: Some(10), ..request() }).await;
    let took = begun.elapsed().as_secs();
    assert!((55..75).contains(&took), "600 write units at 10 a second took {took} s");
    let units = picture.totals.read_units;
    assert!((100.0..150.0).contains(&units), "{units} read units for 430 KB");
    let begun = tokio::time::Instant::now();
    stage.run(Request { read_units: Some(2), restart: true, ..request() }).await;
    let took = begun.elapsed().as_secs();
    assert!((40..90).contains(&took), "{units} read units at 2 a second took {took} s");
    assert!(world.all_equal());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_said_before_anything_begins() {
    let stage = Stage::new();
    let world = &stage.world;
    stage.allow(&["DescribeTable"]);
    let refused = stage.build(request()).await.err().unwrap().to_string();
    assert!(refused.contains("Scan: AccessDenied") && refused.contains("\"dynamodb:Scan\""), "{refused}");
    assert!(world.rows("backfill#").is_empty());
    let none = stage.build(Request { peer: Some("x".to_owned()), ..request() }).await.err().unwrap();
    assert!(matches!(none, BackfillError::NoRoute(_)), "{none}");
    // Another key, as the table of another application has it.
    let other =
        world.sandbox.create_table(crate::world::PEERS[0].0, "eu-west-1", "other", &["pk"], None).unwrap();
    world.sandbox.put_resource_policy(&other, &crate::world::resource_policy(&other, &["*"])).unwrap();
    let text = world.config_text(LATEST, "").replace(&world.peers[0], &other);
    let config = Config::parse(&text, "test.toml", &|_| None).unwrap();
    stage.allow(&["Scan", "DescribeTable"]);
    let options = world.options(true);
    let wrong = Backfill::build(config, request(), options, None, CancellationToken::new()).await;
    let wrong = wrong.err().unwrap().to_string();
    assert!(wrong.contains("its primary key is pk (S), but that of source is id (S)"), "{wrong}");
    assert_eq!(world.requests("PutItem", SOURCE), 0);
}

#[tokio::test(start_paused = true)]
async fn another_backfill_is_not_mixed_up_with_this_one() {
    let stage = Stage::new();
    stage.fill(200).await;
    let worker = stage.service().await;
    let mut one = stage.start(Request { write_units: Some(1), ..request() }).await;
    eventually("it has begun", || one.items() > 0).await;
    let refused = |request| async {
        let mut other = stage.start(request).await;
        other.end().await.unwrap_err().to_string()
    };
    let segments = refused(Request { segments: Some(5), ..request() }).await;
    assert!(segments.contains("is one in 4 segments"), "{segments}");
    let busy = refused(Request { restart: true, ..request() }).await;
    assert!(busy.contains("works on this backfill"), "{busy}");
    // One for a single peer is another one.
    let (ended, picture) = stage.run(Request { peer: Some("c".to_owned()), ..request() }).await;
    assert_eq!((ended, picture.totals.peers.len()), (Ended::Done, 1));
    one.drain.cancel();
    one.end().await.unwrap();
    let (ended, picture) = stage.run(request()).await;
    assert_eq!((ended, picture.totals.items), (Ended::Done, 200));
    assert!(stage.world.all_equal());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_came_later_is_not_taken_for_one_that_was_copied_to() {
    let stage = Stage::new();
    let world = &stage.world;
    stage.fill(20).await;
    let text = world.config_text(LATEST, "").replace("to = [\"b\", \"c\"]", "to = [\"b\"]");
    let text = text + "[[route]]\nname = \"other\"\nfrom = \"source\"\nto = [\"c\"]\n";
    let config = Config::parse(&text, "test.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"));
    let drain = CancellationToken::new();
    let first = Backfill::build(config, request(), world.options(true), None, drain).await.unwrap();
    assert_eq!(Box::pin(first.run(watch::channel(None).0)).await.unwrap(), Ended::Done);
    let refused = stage.start(request()).await.end().await.unwrap_err().to_string();
    assert!(refused.contains("to b") && refused.contains("--restart"), "{refused}");
    let (ended, _) = stage.run(Request { restart: true, ..request() }).await;
    assert_eq!(ended, Ended::Done);
    assert!(world.all_equal());
    // Nor is a table that was made again the one that was copied to.
    let owner = crate::sandbox_support::Client::admin(&world.sandbox, crate::world::PEERS[0].0);
    owner.db.delete_table().table_name("orders-copy").send().await.unwrap();
    let (account, region) = crate::world::PEERS[0];
    eventually("it is gone", || {
        world.sandbox.create_table(account, region, "orders-copy", &["id"], None).is_ok()
    })
    .await;
    let policy = crate::world::resource_policy(&world.peers[0], &["DescribeTable", "PutItem", "DeleteItem"]);
    world.sandbox.put_resource_policy(&world.peers[0], &policy).unwrap();
    let replaced = stage.start(request()).await.end().await.unwrap_err().to_string();
    assert!(replaced.contains("a peer's table was deleted and made again"), "{replaced}");
    let (ended, _) = stage.run(Request { peer: Some("b".to_owned()), ..request() }).await;
    assert_eq!(ended, Ended::Done, "it is one of its own");
    assert!(world.all_equal());
}

#[tokio::test(start_paused = true)]
async fn the_next_page_is_read_while_one_is_written_and_puts_do_not_wait_for_the_ledger() {
    // One request at a time at each peer.
    let stage = Stage { slowly: true, ..Stage::new() };
    let world = &stage.world;
    stage.fill(40).await;
    let copied = || world.items(&world.peers[0]).len();
    let faults = world.sandbox.faults();
    let puts = || Rule::new(Effect::DelayMs(2000)).operation("PutItem").account(crate::world::PEERS[0].0);
    faults.add(puts());
    let one_segment = Request { segments: Some(1), ..request() };
    let mut process = stage.start(one_segment).await;
    let scans = world.requests("Scan", SOURCE);
    eventually("the next page is read", || world.requests("Scan", SOURCE) == scans + 2).await;
    assert_eq!(copied(), 0, "nothing of the first one is written");
    faults.clear();
    faults.add(Rule::new(Effect::DelayMs(3000)).operation("BatchGetItem").account(HOME));
    eventually("the first is written", || copied() > 0).await;
    let begun = tokio::time::Instant::now();
    eventually("so is the whole page", || copied() >= 10).await;
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}: no answer of the ledger was waited for",
        begun.elapsed()
    );
    faults.clear();
    assert_eq!(process.end().await.unwrap(), Ended::Done);
    assert!(world.all_equal());
}

/// What the stamp attribute of an item at a table is.
fn stamp(world: &World, table: &str, id: &str) -> Option<String> {
    let items = world.sandbox.items(table).unwrap();
    let item = items.into_iter().find(|item| item["id"]["S"] == id)?;
    item[STAMP]["S"].as_str().map(str::to_owned)
}

/// Puts an item as the owner of a table.
async fn put_at(world: &World, account: &str, table: &str, id: &str, value: &str) {
    let region = if account == crate::world::PEERS[1].0 { "us-east-1" } else { "eu-west-1" };
    let owner = crate::sandbox_support::Client::admin_of(&world.sandbox, account, region);
    let item = with(id, &[("value", s(value))]);
    owner.db.put_item().table_name(table).set_item(Some(item)).send().await.unwrap();
}
