//! Moving writers to the peer and back, on the sandbox, in virtual time.

mod interrupted;
mod operators;
mod refused;
mod unheard;

use crate::sandbox_support::{Client, s};
use crate::world::{HOME, PEERS, REGION, SOURCE, STAMP, Worker, eventually};
use aws_credential_types::provider::SharedCredentialsProvider;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use shardwalker::aws::Base;
use shardwalker::clock::Clock;
use shardwalker::config::Config;
use shardwalker::cutover::standing::Step;
use shardwalker::cutover::{CutoverError, Goal, Report, Request, cutover};
use shardwalker::sandbox::iam::Credentials;
use shardwalker::sandbox::{Options, Sandbox};
use shardwalker::service::{self, Service};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// Two tables with streams, each reached through a role of its account, and the applications that write to them.
pub(crate) struct Pair {
    sandbox: Sandbox,
    tables: [String; 2],
    apps: [Client; 2],
    keys: Credentials,
    seeds: Cell<u64>,
    /// The keys of `[lease]`.
    lease: &'static str,
}

/// What was there before at the source's table.
fn existing(table: &str) -> Value {
    json!({ "Version": "2012-10-17", "Statement": [{
        "Sid": "Auditors", "Effect": "Allow", "Resource": table, "Action": ["dynamodb:Scan"],
        "Principal": { "AWS": "arn:aws:iam::222222222222:user/app" },
    }]})
}

impl Pair {
    pub(crate) fn new() -> Self {
        let start = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let options = Options { start: Some(start), initial_shards: 2, ..Options::default() };
        let sandbox = Sandbox::new(options).unwrap();
        let both = Some("NEW_AND_OLD_IMAGES");
        let accounts = [SOURCE, PEERS[0].0];
        let tables =
            accounts.map(|account| sandbox.create_table(account, REGION, "orders", &["id"], both).unwrap());
        let trust = json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": { "AWS": HOME },
        }]});
        let all = json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Action": "*", "Resource": "*",
        }]});
        for account in accounts {
            sandbox.role(account, "replicator", &trust.to_string(), &all.to_string()).unwrap();
        }
        let apps = accounts.map(|account| Client::new(&sandbox, &sandbox.admin(account, "app").unwrap()));
        let keys = sandbox.admin(HOME, "replicator").unwrap();
        sandbox.put_resource_policy(&tables[0], &existing(&tables[0]).to_string()).unwrap();
        Self { sandbox, tables, apps, keys, seeds: Cell::new(1), lease: "duration = \"12s\"" }
    }

    pub(crate) fn config(&self) -> Config {
        let member = |name: &str, index: usize, account: &str| {
            format!(
                "[[member]]\nname = \"{name}\"\ntable = \"{}\"\n[member.assume_role]\nrole = \"arn:aws:iam::{account}:role/replicator\"\n",
                self.tables[index]
            )
        };
        let text = format!(
            "[state]\ntable = \"shardwalker-state\"\nregion = \"{REGION}\"\n[admin]\nlisten = \"off\"\n\
             [lease]\n{}\n[write]\nrequest_timeout = \"4s\"\n{}{}\
             [[route]]\nname = \"copy\"\nfrom = \"a\"\nto = [\"b\"]\nreversible = true\n",
            self.lease,
            member("a", 0, SOURCE),
            member("b", 1, PEERS[0].0),
        );
        Config::parse(&text, "test.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"))
    }

    fn options(&self, create_state_table: bool) -> service::Options {
        self.options_of(self.keys.clone(), create_state_table)
    }

    fn options_of(&self, keys: Credentials, create_state_table: bool) -> service::Options {
        let keys = aws_credential_types::Credentials::from(keys);
        let base = Base {
            credentials: Some(SharedCredentialsProvider::new(keys)),
            http: Some(self.sandbox.http_client()),
            request_timeout: None,
        };
        let clock = Clock::starting_at(self.sandbox.clock().now());
        service::Options { base, create_state_table, clock, seed: self.seeds.replace(self.seeds.get() + 1) }
    }

    pub(crate) async fn worker(&self) -> Worker {
        let drain = CancellationToken::new();
        Worker::of(Service::build(self.config(), self.options(true), drain.clone()).await.unwrap(), drain)
    }

    /// A worker with an identity of its own.
    async fn worker_of(&self, user: &str) -> Worker {
        let drain = CancellationToken::new();
        let options = self.options_of(self.sandbox.admin(HOME, user).unwrap(), true);
        Worker::of(Service::build(self.config(), options, drain.clone()).await.unwrap(), drain)
    }

    pub(crate) async fn cutover(&self, request: Request) -> Result<Report, CutoverError> {
        let mut told = Vec::new();
        let mut tell = |line: &str| told.push(line.to_owned());
        let cancel = CancellationToken::new();
        let report =
            Box::pin(cutover(self.config(), request, self.options(false), cancel, &mut tell)).await?;
        assert_eq!(report.done, told);
        Ok(report)
    }

    /// One that must come to its goal.
    pub(crate) async fn done(&self, goal: Goal) -> Report {
        let report = self.cutover(request(goal)).await.unwrap();
        assert_eq!(report.refused, None, "{report:?}");
        report
    }

    /// A table's items by their ids: their values.
    fn items(&self, side: usize) -> BTreeMap<String, String> {
        let text = |value: &Value| value["S"].as_str().unwrap_or_default().to_owned();
        let items = self.sandbox.items(&self.tables[side]).unwrap();
        items.iter().map(|item| (text(&item["id"]), text(&item["value"]))).collect()
    }

    /// The statements of a table's policy.
    async fn statements(&self, side: usize) -> Vec<Value> {
        let answer = self.apps[side].db.get_resource_policy().resource_arn(&self.tables[side]).send().await;
        let Ok(answer) = answer else { return Vec::new() };
        let policy: Value = serde_json::from_str(answer.policy().unwrap()).unwrap();
        policy["Statement"].as_array().unwrap().clone()
    }

    /// The step in the state table, with the turn.
    fn step(&self) -> (u64, String) {
        let rows =
            self.sandbox.items(&format!("arn:aws:dynamodb:{REGION}:{HOME}:table/shardwalker-state")).unwrap();
        let row = rows.iter().find(|row| row["sk"]["S"] == "control#copy#/cutover");
        let Some(row) = row else { return (0, "live".to_owned()) };
        (row["turn"]["N"].as_str().unwrap().parse().unwrap(), row["step"]["S"].as_str().unwrap().to_owned())
    }
}

pub(crate) fn request(goal: Goal) -> Request {
    Request {
        route: "copy".to_owned(),
        goal,
        attach_deny: true,
        writers_stopped: false,
        principals: Vec::new(),
        within: Duration::from_secs(300),
        sample: None,
        read_units: None,
        marker_key: None,
    }
}

/// An application that writes all the while, a third of it to one key, and knows what it was told to have written.
pub(crate) struct Application<'p> {
    pair: &'p Pair,
    /// Where it writes.
    side: Cell<usize>,
    stop: Cell<bool>,
    held: RefCell<BTreeMap<String, String>>,
    written: Cell<u64>,
    refused: Cell<u64>,
}

impl<'p> Application<'p> {
    pub(crate) fn new(pair: &'p Pair) -> Self {
        let (side, stop, held) = (Cell::new(0), Cell::new(false), RefCell::default());
        Self { pair, side, stop, held, written: Cell::new(0), refused: Cell::new(0) }
    }

    pub(crate) async fn write(&self, id: &str, value: Option<&str>) {
        let db = &self.pair.apps[self.side.get()].db;
        let took = match value {
            Some(value) => db
                .put_item()
                .table_name("orders")
                .item("id", s(id))
                .item("value", s(value))
                .send()
                .await
                .is_ok(),
            None => db.delete_item().table_name("orders").key("id", s(id)).send().await.is_ok(),
        };
        let count = if took { &self.written } else { &self.refused };
        count.set(count.get() + 1);
        if took {
            let mut held = self.held.borrow_mut();
            match value {
                Some(value) => held.insert(id.to_owned(), value.to_owned()),
                None => held.remove(id),
            };
        }
    }

    pub(crate) async fn run(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        while !self.stop.get() {
            let key = if random.random_ratio(1, 3) { 0 } else { random.random_range(1..30) };
            let value = format!("{}@{}", self.written.get(), self.side.get());
            let value = (!random.random_ratio(1, 4)).then_some(value.as_str());
            self.write(&format!("k{key}"), value).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(100..600))).await;
        }
    }

    /// Moves, and writes there for a while.
    pub(crate) async fn moves(&self, side: usize) {
        self.side.set(side);
        let before = self.written.get();
        eventually("it writes at the other side", || self.written.get() > before + 30).await;
    }

    /// Both sides hold what it wrote.
    pub(crate) async fn until_equal(&self) {
        eventually("both sides hold what was written", || {
            let held = self.held.borrow();
            self.pair.items(0) == *held && self.pair.items(1) == *held
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn writers_move_and_come_back_and_nothing_is_lost() {
    let pair = Pair::new();
    let workers = [pair.worker().await, pair.worker().await];
    let app = Application::new(&pair);
    let steps = async {
        app.moves(0).await;
        for turn in 0..2 {
            let (goal, side) = if turn % 2 == 0 { (Goal::Peer, 1) } else { (Goal::Source, 0) };
            let report = pair.done(goal).await;
            assert_eq!(
                (report.turn, report.step, report.writers_at.as_str()),
                (turn + 1, Step::Live, ["a", "b"][side])
            );
            assert!(app.refused.replace(0) > 0, "the statement keeps writers out");
            // Again: nothing is left to do.
            assert_eq!(pair.done(goal).await.turn, turn + 1);
            app.moves(side).await;
        }
        app.stop.set(true);
    };
    futures::join!(app.run(1), steps);
    app.until_equal().await;
    // What was attached is off; what was there is as it was.
    let before = existing(&pair.tables[0])["Statement"].as_array().unwrap().clone();
    assert_eq!((pair.statements(0).await, pair.step()), (before.clone(), (2, "live".to_owned())));
    assert_eq!(pair.statements(1).await.len(), 1, "writers stay out of the side that they left");

    pair.done(Goal::Peer).await;
    assert_eq!(pair.statements(1).await, [Value::Null; 0]);
    app.side.set(1);
    app.write("only here", Some("x")).await;
    app.until_equal().await;
    let report = pair.done(Goal::Finish).await;
    assert_eq!((report.step, report.writers_at.as_str()), (Step::Finished, "b"));
    assert_eq!(pair.done(Goal::Finish).await.step, Step::Finished);
    app.write("after the end", Some("x")).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(pair.items(1).len(), pair.items(0).len() + 1, "nothing comes back any more");
    let refused = pair.cutover(request(Goal::Source)).await.unwrap().refused.unwrap();
    assert!(refused.what.contains("finished"), "{refused:?}");
    for worker in workers {
        assert_eq!(worker.problems(), [""; 0]);
        worker.stop().await.unwrap();
    }
}

/// A key that is put, deleted and made anew right before each turn, and touched in each way right after it.
#[tokio::test(start_paused = true)]
async fn what_is_written_after_a_turn_wins_over_all_before() {
    let pair = Pair::new();
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    for turn in 0..5_usize {
        app.side.set(turn % 2);
        for key in ["put", "deleted", "updated", "kept", "made"] {
            for n in 0..10 {
                app.write(key, Some(&format!("{turn}.{n}"))).await;
            }
        }
        app.write("deleted", None).await;
        app.write("made", None).await;
        app.until_equal().await;
        pair.done(if turn % 2 == 0 { Goal::Peer } else { Goal::Source }).await;
        app.side.set((turn + 1) % 2);
        app.write("put", Some("over")).await;
        app.write("kept", None).await;
        app.write("made", Some("anew")).await;
        let side = &pair.apps[app.side.get()].db;
        let update = side.update_item().table_name("orders").key("id", s("updated"));
        let update = update.update_expression("SET #v = :v").expression_attribute_names("#v", "value");
        update.expression_attribute_values(":v", s("part")).send().await.unwrap();
        app.held.borrow_mut().insert("updated".to_owned(), "part".to_owned());
        app.until_equal().await;
    }
    // Copies carry stamps, and no marker is left.
    let items = pair.sandbox.items(&pair.tables[0]).unwrap();
    assert!(items.iter().all(|item| item.get("shardwalker_cutover").is_none()));
    assert!(items.iter().any(|item| item.get(STAMP).is_some()));
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_starts_later_walks_the_right_way() {
    let pair = Pair::new();
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    app.write("k", Some("1")).await;
    app.until_equal().await;
    pair.done(Goal::Peer).await;
    worker.kill().await;
    app.side.set(1);
    app.write("k", Some("2")).await;
    // Whoever ignores where writers are is not copied.
    let worker = pair.worker().await;
    app.until_equal().await;
    pair.sandbox.put_resource_policy(&pair.tables[0], &existing(&pair.tables[0]).to_string()).unwrap();
    pair.apps[0].put("orders", "stray", "x").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!pair.items(1).contains_key("stray"));
    let routes = worker.board.progress(tokio::time::Instant::now());
    assert_eq!(routes.keys().collect::<Vec<_>>(), ["copy/back"]);
    // And is found when they come back.
    let refused = pair.cutover(request(Goal::Source)).await.unwrap().refused.unwrap();
    assert!(refused.what.contains("1 of 2 items differ"), "{refused:?}");
    worker.stop().await.unwrap();
}
