//! One run: the world of a plan, its events in time, then quiet, then the verdict.

use super::judge::{Court, Group, Judge, LAKE, OneWay, STATE};
use super::network::{Line, Network, Sabotage};
use super::plan::{Closed, Delays, Event, LEASE, Plan, REQUEST, World};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use shardwalker::aws::Base;
use shardwalker::clock::Clock;
use shardwalker::config::Config;
use shardwalker::item::Digest;
use shardwalker::sandbox::faults::{Effect, Rule, Weather};
use shardwalker::sandbox::iam::Credentials;
use shardwalker::sandbox::pause::Pause;
use shardwalker::sandbox::{Options, Sandbox};
use shardwalker::service::{self, Service};
use shardwalker::task::Tasks;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

const HOME: &str = "999999999999";
const REGION: &str = "eu-west-1";
/// Longer than the retention of streams.
const OUTAGE: Duration = Duration::from_secs(25 * 3600);
/// After the last event everything must have arrived within this.
const CATCH_UP: Duration = Duration::from_secs(600);
/// Then all that the network still holds back lands, and nothing may come of it.
const HELD_BACK: Duration = Duration::from_secs(21);
/// Then nobody may write to a member any more: longer than anything idle waits.
const QUIET: Duration = Duration::from_secs(3);

/// What a run came to.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) world: World,
    pub(super) seed: u64,
    /// What was wrong first.
    pub(super) violation: Option<String>,
    /// Of all that happened.
    pub(super) digest: Digest,
    pub(super) log: Vec<String>,
    pub(super) requests: u64,
    /// Requests that would write to a member, and how many there are when each write of an application takes one at
    /// each peer.
    pub(super) writes: u64,
    pub(super) owed: u64,
    pub(super) virtual_time: Duration,
}

/// Runs a seed in a runtime of its own, on this thread, in virtual time.
pub(super) fn seed(world: World, seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    of(Plan::of(world, seed), sabotage)
}

/// Runs a plan as [`seed`] does.
pub(super) fn of(plan: Plan, sabotage: Option<Sabotage>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(Box::pin(run(plan, sabotage)))
}

async fn run(plan: Plan, sabotage: Option<Sabotage>) -> Outcome {
    let mut stage = Stage::set(plan, sabotage);
    stage.play().await;
    stage.end().await;
    let seed = stage.plan.seed;
    let (world, judge) = (stage.plan.world, stage.judge());
    let court = judge.court();
    Outcome {
        world,
        seed,
        violation: court.violation.clone(),
        digest: court.digest(),
        log: court.log.clone(),
        requests: court.landed,
        writes: court.requests,
        owed: court.owed,
        virtual_time: court.elapsed(),
    }
}

struct Stage {
    plan: Plan,
    sandbox: Sandbox,
    judge: Arc<Mutex<dyn Judge>>,
    keys: Credentials,
    /// By route.
    sources: Vec<String>,
    /// By route and peer: name and ARN.
    peers: Vec<Vec<(String, String)>>,
    denied: BTreeSet<(usize, usize)>,
    closed: BTreeSet<Closed>,
    lines: Vec<Line>,
    delays: Arc<Mutex<Delays>>,
    workers: Vec<Option<Worker>>,
    starts: u64,
    /// The workers stop at what was lost.
    stops: bool,
    /// Where the routes' feed lies.
    lake: Option<tempfile::TempDir>,
    /// The network; it ends with the run.
    _network: Tasks<()>,
}

struct Worker {
    pause: Pause,
    drain: CancellationToken,
    /// Of its machine.
    clock: Clock,
    task: Tasks<()>,
}

impl Stage {
    fn set(plan: Plan, sabotage: Option<Sabotage>) -> Self {
        let options = Options {
            seed: plan.seed,
            start: Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
            initial_shards: plan.shards,
            // The plan has the rollovers.
            shard_lifetime: None,
            stream_limits: plan.stream_limits,
            verify_signatures: false,
        };
        let sandbox = Sandbox::new(options).unwrap();
        let keys = sandbox.admin(HOME, "replicator").unwrap();
        let court = Court::new(sandbox.clone(), (HOME, REGION));
        let (sources, peers) = match plan.world {
            World::Routes => routes(&sandbox, &plan.routes),
            World::Group => members(&sandbox, plan.routes.len()),
        };
        let lake = plan.feeds.then(|| tempfile::tempdir().unwrap());
        let judge: Arc<Mutex<dyn Judge>> = match plan.world {
            World::Routes => {
                let lake = lake.as_ref().map(|lake| lake.path().to_owned());
                Arc::new(Mutex::new(OneWay::new(court, &sources, &peers, lake)))
            }
            World::Group => Arc::new(Mutex::new(Group::new(court, &sources, &peers, &plan.stream_clocks))),
        };
        let door = sandbox.http_client();
        let network = Network::new(plan.seed, door, plan.network, Arc::clone(&judge), sabotage);
        let lines = (0..plan.workers).map(|worker| network.line(worker)).collect();
        let delays = network.delays();
        let mut tasks = Tasks::new();
        tasks.spawn(network.run());
        let (stops, workers) = (plan.stops, (0..plan.workers).map(|_| None).collect());
        let stage = Self {
            plan,
            sandbox,
            judge,
            keys,
            sources,
            peers,
            denied: BTreeSet::new(),
            closed: BTreeSet::new(),
            lines,
            delays,
            workers,
            starts: 0,
            stops,
            lake,
            _network: tasks,
        };
        for (source, wrong_by) in stage.sources.iter().zip(&stage.plan.stream_clocks) {
            stage.sandbox.set_stream_clock(source, wrong_by * 1000).unwrap();
        }
        stage.judge().stops_at_gaps(stops);
        stage.sandbox.faults().set_weather(stage.plan.weather);
        stage.set_faults();
        stage
    }

    fn judge(&self) -> MutexGuard<'_, dyn Judge + 'static> {
        self.judge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan's faults, and the peers that refuse everything now.
    fn set_faults(&self) {
        let faults = self.sandbox.faults();
        faults.clear();
        for (route, peer) in &self.denied {
            let account = self.peers[*route][*peer].1.split(':').nth(4).unwrap_or_default();
            for operation in ["PutItem", "UpdateItem", "DeleteItem"] {
                faults.add(Rule::new(Effect::Deny).account(account).operation(operation));
            }
        }
        for closed in &self.closed {
            let account = |route: usize| self.sources[route].split(':').nth(4).unwrap_or_default();
            let rules = match *closed {
                Closed::Stream(route) => ["DescribeStream", "GetShardIterator", "GetRecords"]
                    .map(|read| Rule::new(Effect::Deny).account(account(route)).operation(read))
                    .to_vec(),
                Closed::Source(route) => vec![Rule::new(Effect::Unavailable).account(account(route))],
                Closed::State => vec![Rule::new(Effect::Deny).account(HOME)],
            };
            for rule in rules {
                faults.add(rule.caller(HOME));
            }
        }
        self.plan.faults.iter().for_each(|rule| faults.add(rule.clone()));
    }

    /// Lets everything happen, each at its time.
    async fn play(&mut self) {
        let mut begun = Instant::now();
        for (at, event) in self.plan.events.clone() {
            sleep_until(begun + at).await;
            if self.judge().court().violation.is_some() {
                return;
            }
            self.happen(event).await;
            // What takes its time moves what comes after it.
            begun = begun.max(Instant::now() - at);
        }
    }

    async fn happen(&mut self, event: Event) {
        if !matches!(event, Event::Write { .. }) {
            self.judge().court_mut().note(&format!("-- {event:?}"));
        }
        match event {
            Event::Write { route, key, act } => self.judge().write(route, key, act),
            Event::Reshard { route, pick, split } => {
                let source = &self.sources[route];
                let mut open = self.sandbox.shards(source).unwrap();
                open.retain(|shard| shard.open);
                let shard = Some(open[pick % open.len()].id.as_str());
                let how = if split { Sandbox::split } else { Sandbox::roll_over };
                how(&self.sandbox, source, shard).unwrap();
                self.judge().resharded(route);
            }
            Event::RollOver { route } => {
                self.sandbox.roll_over(&self.sources[route], None).unwrap();
                self.judge().resharded(route);
            }
            Event::Trim { route, pick } => {
                let settled = self.judge().settled_shards(route);
                if !settled.is_empty() {
                    let shard = Some(settled[pick % settled.len()].as_str());
                    self.sandbox.trim(&self.sources[route], shard).unwrap();
                }
            }
            Event::TrimUnread { route, pick } => {
                let begun = self.judge().begun_shards(route);
                if !begun.is_empty() {
                    let shard = Some(begun[pick % begun.len()].as_str());
                    self.judge().age(route, shard);
                    self.sandbox.trim(&self.sources[route], shard).unwrap();
                    // What comes next has another creation time, as most that is left when records age out.
                    sleep(Duration::from_secs(1)).await;
                }
            }
            Event::Start { worker, skew } => self.start(worker, skew),
            Event::Crash { worker } => {
                if let Some(mut gone) = self.workers[worker].take() {
                    gone.task.abort_all().await;
                }
            }
            Event::Stop { worker } => {
                if let Some(leaving) = &self.workers[worker] {
                    leaving.drain.cancel();
                }
            }
            Event::Pause { worker } => {
                if let Some(worker) = &self.workers[worker] {
                    worker.pause.hold();
                }
            }
            Event::Resume { worker } => {
                if let Some(worker) = &self.workers[worker] {
                    worker.pause.resume();
                }
            }
            Event::Step { worker, skew } => {
                if let Some(worker) = &self.workers[worker] {
                    worker.clock.set_wrong_by(skew * 1000);
                }
            }
            Event::Outage => {
                let mut back = Vec::new();
                for (index, worker) in self.workers.iter_mut().enumerate() {
                    if let Some(mut gone) = worker.take() {
                        gone.task.abort_all().await;
                        back.push(index);
                    }
                }
                sleep(OUTAGE).await;
                (0..self.sources.len()).for_each(|route| self.judge().age(route, None));
                back.into_iter().for_each(|worker| self.start(worker, 0));
            }
            Event::Deny { route, peer } => {
                self.denied.insert((route, peer));
                self.set_faults();
            }
            Event::Allow { route, peer } => {
                self.denied.remove(&(route, peer));
                self.set_faults();
            }
            Event::Close(closed) => {
                self.closed.insert(closed);
                self.set_faults();
            }
            Event::Open(closed) => {
                self.closed.remove(&closed);
                self.set_faults();
            }
        }
    }

    /// Starts a worker, in place of the one that was there. Whatever ends it but a stop, it is started again.
    fn start(&mut self, worker: usize, skew: i64) {
        let (pause, drain) = (Pause::new(), CancellationToken::new());
        let (config, stop) = (self.config(worker), drain.clone());
        let keys = aws_credential_types::Credentials::from(self.keys.clone());
        let base = Base {
            credentials: Some(SharedCredentialsProvider::new(keys)),
            http: Some(SharedHttpClient::new(self.lines[worker].clone())),
            request_timeout: None,
        };
        self.starts += 1;
        let (seed, starts) = (self.plan.seed, self.starts);
        let clock = Clock::starting_at(self.sandbox.clock().now());
        clock.set_wrong_by(skew * 1000);
        let life = async move {
            for again in 0.. {
                let options = service::Options {
                    base: base.clone(),
                    create_state_table: true,
                    clock,
                    seed: (seed << 20) ^ (starts << 10) ^ again,
                };
                if let Ok(service) = Box::pin(Service::build(config.clone(), options, stop.clone())).await {
                    // How it ends is seen at the end: by what it left undone.
                    let _ = Box::pin(service.run()).await;
                }
                if stop.is_cancelled() {
                    return;
                }
                sleep(Duration::from_secs(1)).await;
            }
        };
        let mut task = Tasks::new();
        task.spawn(pause.over(life));
        self.workers[worker] = Some(Worker { pause, drain, clock, task });
    }

    fn config(&self, worker: usize) -> Config {
        let mut text = format!(
            "grace = \"60s\"\n[state]\ntable = \"{STATE}\"\nregion = \"{REGION}\"\n[admin]\nlisten = \"off\"\n\
             [lease]\nduration = \"{}s\"\nrenew_interval = \"3s\"\nworker = \"w{worker}\"\n\
             [write]\nrequest_timeout = \"{}s\"\nin_flight = {}\n\
             [read]\nidle_interval = \"2s\"\nlist_interval = \"5s\"\n",
            LEASE.as_secs(),
            REQUEST.as_secs(),
            self.plan.in_flight,
        );
        for (route, source) in self.sources.iter().enumerate() {
            let number = route + 1;
            let _ =
                write!(text, "[[member]]\nname = \"s{route}\"\ntable = \"{source}\"\nnumber = {number}\n");
            // In a group they are sources themselves.
            for (name, table) in self.peers[route].iter().filter(|_| self.plan.world == World::Routes) {
                let _ = write!(text, "[[member]]\nname = \"{name}\"\ntable = \"{table}\"\n");
            }
        }
        match self.plan.world {
            World::Routes => self.route_sections(&mut text),
            World::Group => {
                let names: Vec<_> = (0..self.sources.len()).map(|member| format!("\"s{member}\"")).collect();
                let _ = write!(text, "[[group]]\nname = \"g\"\nmembers = [{}]\n", names.join(", "));
            }
        }
        Config::parse(&text, "sim.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"))
    }

    fn route_sections(&self, text: &mut String) {
        if let Some(lake) = &self.lake {
            let place = lake.path().display();
            let _ = write!(text, "[[feed]]\nname = \"{LAKE}\"\nurl = \"file://{place}\"\n");
            text.push_str("compression = \"none\"\npartition = \"none\"\nroll_age = \"3s\"\n");
        }
        for (route, peers) in self.peers.iter().enumerate() {
            let lake = self.lake.iter().map(|_| LAKE);
            let names = peers.iter().map(|(name, _)| name.as_str()).chain(lake);
            let names: Vec<_> = names.map(|name| format!("\"{name}\"")).collect();
            let to = names.join(", ");
            let _ = write!(text, "[[route]]\nname = \"r{route}\"\nfrom = \"s{route}\"\nto = [{to}]\n");
            if self.plan.shaped {
                text.push_str("shape = { filter = 'item.id != \"\"', exclude = [\"none\"] }\n");
            }
            if self.plan.loses() && !self.stops {
                text.push_str("on_gap = \"continue\"\n");
            }
        }
    }

    /// No more faults; then everything must arrive, and stay as it is, and the workers must leave in order.
    async fn end(&mut self) {
        self.judge().court_mut().note("-- the faults end");
        self.denied.clear();
        self.closed.clear();
        self.sandbox.faults().clear();
        self.sandbox.faults().set_weather(Weather::default());
        *self.delays.lock().unwrap_or_else(PoisonError::into_inner) = Delays::CALM;
        self.workers.iter().flatten().for_each(|worker| worker.pause.resume());
        if self.stops {
            // For a while nothing gets past what was lost; then an operator lets all go on.
            sleep(2 * LEASE).await;
            self.stops = false;
            self.judge().stops_at_gaps(false);
            for worker in 0..self.workers.len() {
                self.happen(Event::Crash { worker }).await;
                self.start(worker, 0);
            }
        }
        if self.workers.iter().flatten().all(|worker| worker.drain.is_cancelled()) {
            self.start(0, 0);
        }
        let limit = Instant::now() + CATCH_UP;
        loop {
            let (violated, caught_up) = {
                let judge = self.judge();
                (judge.court().violation.is_some(), judge.caught_up())
            };
            if violated {
                return;
            }
            if caught_up {
                break;
            }
            if Instant::now() > limit {
                let mut judge = self.judge();
                judge.court_mut().note("-- too late");
                judge.conclude();
                judge.court_mut().fail("not caught up in time");
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
        self.judge().court_mut().note("-- caught up");
        if self.plan.network.held > 0.0 {
            sleep(HELD_BACK).await;
        }
        sleep(QUIET).await;
        let requests = self.judge().court().requests;
        sleep(QUIET).await;
        let echoes = self.judge().court().requests - requests;
        if let Err(violation) = shardwalker::invariants::no_echo(echoes) {
            self.judge().court_mut().fail(&violation.to_string());
        }
        self.judge().conclude();
        self.leave().await;
    }

    async fn leave(&mut self) {
        self.judge().court_mut().note("-- all leave");
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let Some(worker) = worker else { continue };
            worker.drain.cancel();
            let end = async { while worker.task.join_next().await.is_some() {} };
            if tokio::time::timeout(Duration::from_secs(90), end).await.is_err() {
                let mut judge = self.judge.lock().unwrap_or_else(PoisonError::into_inner);
                judge.court_mut().fail(&format!("worker {index} did not leave in time"));
            }
        }
        let mut judge = self.judge();
        judge.conclude();
    }
}

/// The tables of sources, and the names and tables of each one's peers.
type Tables = (Vec<String>, Vec<Vec<(String, String)>>);

/// A table with a stream in an account of its own.
fn source(sandbox: &Sandbox, number: usize, region: &str, name: &str) -> String {
    let account = format!("{}", 111_111_111_111_u64 + number as u64);
    let view = Some("NEW_AND_OLD_IMAGES");
    let table = sandbox.create_table(&account, region, name, &["id"], view).unwrap();
    allow(sandbox, &table);
    allow(sandbox, &sandbox.stream_arn(&table).unwrap().unwrap());
    table
}

/// For each route a source and so many peers.
fn routes(sandbox: &Sandbox, counts: &[usize]) -> Tables {
    let (mut sources, mut peers) = (Vec::new(), Vec::new());
    for (route, count) in counts.iter().enumerate() {
        sources.push(source(sandbox, route, REGION, "source"));
        let peer = |peer: usize| {
            let account = format!("{}", 222_222_222_222_u64 + (route * 10 + peer) as u64);
            let region = if peer == 1 { "us-east-1" } else { REGION };
            let table = sandbox.create_table(&account, region, "copy", &["id"], None).unwrap();
            allow(sandbox, &table);
            (format!("r{route}p{peer}"), table)
        };
        peers.push((0..*count).map(peer).collect());
    }
    (sources, peers)
}

/// So many members, each with all others as its peers.
fn members(sandbox: &Sandbox, count: usize) -> Tables {
    let region = |member: usize| if member == 1 { "us-east-1" } else { REGION };
    let named = |member: usize| (format!("s{member}"), source(sandbox, member, region(member), "member"));
    let all: Vec<(String, String)> = (0..count).map(named).collect();
    let others = |own: &(String, String)| all.iter().filter(|other| *other != own).cloned().collect();
    (all.iter().map(|(_, table)| table.clone()).collect(), all.iter().map(others).collect())
}

pub(super) fn allow(sandbox: &Sandbox, arn: &str) {
    let policy = serde_json::json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Principal": { "AWS": HOME }, "Resource": arn, "Action": "dynamodb:*" },
    ]});
    sandbox.put_resource_policy(arn, &policy.to_string()).unwrap();
}
