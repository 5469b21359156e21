//! What a group of three costs: its throughput over that of a one-way route to two peers, and its lag.
//!
//! Both are on the embedded sandbox through its in-process door. Throughput: all members have copies of the same items, and
//! one member's changes are all there when the service begins: it has to write each to the two others. In a group it has to
//! read what it wrote from their streams, too, and to see that it is its own. The service has one thread and the endpoint
//! another. The CPU time of the service's thread counts, until nothing is left to do: it is what bounds the throughput
//! where the endpoint does not, and here it may. Route and group take turns; the median of the rounds counts. Lag: all three
//! members are written at once, other keys at each, from the answer to the application to that at each of the others.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/records.rs"]
mod records;
#[path = "support/settings.rs"]
mod settings;
#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/stage.rs"]
mod stage;
#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/tap.rs"]
mod tap;
#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/usage.rs"]
mod usage;

use anyhow::Context;
use clap::Parser;
use serde_json::json;
use shardwalker::config::{Config, Read};
use shardwalker::sandbox;
use shardwalker::service::{Options, Service};
use shardwalker::task::Tasks;
use stage::Stage;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tap::{elsewhere, watched};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;
use usage::{Took, spread};

#[derive(Parser)]
struct Arguments {
    /// Changes of a round of the throughput.
    #[arg(long, default_value_t = 4_000)]
    records: usize,
    /// Rounds of the throughput.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of the load for the lag.
    #[arg(long, default_value_t = 20)]
    seconds: usize,
    /// Writes a second at each member in that time.
    #[arg(long, default_value_t = 100)]
    rate: usize,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

const MEMBERS: usize = 3;
const SHARDS: u32 = 4;
/// The name of the service's thread.
const SERVICE: &str = "service";
/// Enough for what is left once the last put has arrived.
const REST: Duration = Duration::from_secs(3);
/// Requests under way in all lanes of one member.
const CONCURRENCY: usize = 64;
/// What takes longer than this is stuck.
const PATIENCE: Duration = Duration::from_secs(300);
/// The load's first part, in which the worker takes its shards up, does not count.
const WARM_UP: f64 = 0.2;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let one_thread = |name: &str| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()
    };
    let (runtime, endpoint) = (one_thread(SERVICE)?, one_thread("endpoint")?);
    let mut rounds = Vec::new();
    for _ in 0..arguments.rounds {
        let route = runtime.block_on(throughput(arguments.records, false, endpoint.handle()))?;
        let mesh = runtime.block_on(throughput(arguments.records, true, endpoint.handle()))?;
        rounds.push((route, mesh));
    }
    let puts = (arguments.records * (MEMBERS - 1)) as f64;
    let rate = |took: &Took| puts / took.wall.as_secs_f64();
    let micros = |took: &Took| took.cpu.as_secs_f64() * 1e6 / puts;
    let (share, least, most) = spread(&rounds, &|(route, mesh)| micros(route) / micros(mesh));
    let (wall, wall_least, wall_most) = spread(&rounds, &|(route, mesh)| rate(mesh) / rate(route));
    let (route, mesh) =
        (spread(&rounds, &|(route, _)| rate(route)).0, spread(&rounds, &|(_, mesh)| rate(mesh)).0);
    let (route_cpu, mesh_cpu) =
        (spread(&rounds, &|(route, _)| micros(route)).0, spread(&rounds, &|(_, mesh)| micros(mesh)).0);
    println!(
        "CPU of a put: one way {route_cpu:.1} µs, group {mesh_cpu:.1} µs: {share:.2} ({least:.2} to {most:.2})"
    );
    println!(
        "puts a second: one way {route:.0}, group {mesh:.0}: {wall:.2} ({wall_least:.2} to {wall_most:.2})"
    );
    let mut lags = tokio::runtime::Runtime::new()?.block_on(lag(&arguments))?;
    lags.sort_unstable();
    let at = |share: f64| lags[((lags.len() - 1) as f64 * share) as usize];
    println!("lag at {} writes/s at each member: p50 {:.1?} p99 {:.1?}", arguments.rate, at(0.5), at(0.99));
    println!(
        "{}",
        json!({
            "one_way_puts_per_second": route,
            "group_puts_per_second": mesh,
            "one_way_cpu_us_per_put": route_cpu,
            "group_cpu_us_per_put": mesh_cpu,
            "wall_share": wall,
            "share": share,
            "share_least": least,
            "share_most": most,
            "lag_p50_ms": at(0.5).as_secs_f64() * 1e3,
            "lag_p99_ms": at(0.99).as_secs_f64() * 1e3,
            "lags": lags.len(),
        })
    );
    Ok(())
}

/// A running service, and what it puts.
struct Running {
    drain: CancellationToken,
    tasks: Tasks<anyhow::Result<()>>,
}

impl Running {
    async fn start(config: Config, options: Options) -> anyhow::Result<Self> {
        let drain = CancellationToken::new();
        let service = Service::build(config, options, drain.clone()).await?;
        let mut tasks = Tasks::new();
        tasks.spawn(async move { Ok(service.run().await?) });
        Ok(Self { drain, tasks })
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.drain.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// What it takes to put at the two other members what changed at one, where all have copies of the same items.
async fn throughput(records: usize, group: bool, endpoint: &Handle) -> anyhow::Result<Took> {
    let stage = stage().await?;
    for member in 0..MEMBERS {
        stage.stream_of(member).await?;
    }
    fill(&stage, 0, records, 1).await?;
    copied(&stage, 1, records, group, endpoint).await?;
    fill(&stage, 0, records, 2).await?;
    copied(&stage, 2, records, group, endpoint).await
}

/// Until all that is in the streams is copied: the time up to the last put, and the service's CPU time up to the end.
async fn copied(
    stage: &Stage,
    seed: u64,
    records: usize,
    group: bool,
    endpoint: &Handle,
) -> anyhow::Result<Took> {
    let puts = records * (MEMBERS - 1);
    let (seen, reached) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let mut options = stage.options(seed);
    let (count, done) = (Arc::clone(&seen), Arc::clone(&reached));
    let endpoint = endpoint.clone();
    options.base.http = options.base.http.map(|http| {
        watched(elsewhere(http, endpoint), move |_| {
            if count.fetch_add(1, Ordering::AcqRel) + 1 == puts {
                done.notify_one();
            }
        })
    });
    let (begun, cpu) = (Instant::now(), usage::cpu_of(|name| name == SERVICE)?);
    let running = Running::start(config(group, Read::default()), options).await?;
    tokio::time::timeout(PATIENCE, reached.notified()).await.context("the changes did not arrive")?;
    let wall = begun.elapsed();
    // What was put comes back in the members' streams.
    tokio::time::sleep(REST).await;
    let cpu = usage::cpu_of(|name| name == SERVICE)?.saturating_sub(cpu);
    running.stop().await?;
    Ok(Took { wall, cpu })
}

fn config(group: bool, read: Read) -> Config {
    let in_flight = CONCURRENCY / SHARDS as usize / (MEMBERS - 1);
    if group {
        settings::mesh(MEMBERS, read, in_flight)
    } else {
        settings::config(MEMBERS - 1, read, in_flight)
    }
}

async fn stage() -> anyhow::Result<Stage> {
    let options =
        sandbox::Options { initial_shards: SHARDS, shard_lifetime: None, ..sandbox::Options::default() };
    Stage::new(options, MEMBERS - 1)
}

async fn fill(stage: &Stage, member: usize, records: usize, revision: u32) -> anyhow::Result<()> {
    records::fill(&stage.client(member)?, &settings::table(member).table, records, revision).await
}

/// When each write was answered to its application, and the lags of its copies.
struct Load {
    written: Vec<Mutex<Option<Instant>>>,
    /// Lags of copies whose writes were answered.
    lags: Mutex<Vec<(usize, Duration)>>,
    missing: AtomicUsize,
    done: Notify,
}

impl Load {
    fn note(&self, put: &[u8]) {
        let now = Instant::now();
        let Some(index) = records::index(put) else { return };
        let Some(slot) = self.written.get(index) else { return };
        // A copy can be quicker than the application's answer.
        let lag = lock(slot).map_or(Duration::ZERO, |written| now - written);
        lock(&self.lags).push((index, lag));
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lags of all copies of a load on all members.
async fn lag(arguments: &Arguments) -> anyhow::Result<Vec<Duration>> {
    let stage = stage().await?;
    for member in 0..MEMBERS {
        stage.stream_of(member).await?;
    }
    let each = arguments.rate * arguments.seconds;
    let records = each * MEMBERS;
    let load = Arc::new(Load {
        written: (0..records).map(|_| Mutex::new(None)).collect(),
        lags: Mutex::new(Vec::with_capacity(records * 2)),
        missing: AtomicUsize::new(records * (MEMBERS - 1)),
        done: Notify::new(),
    });
    let mut options = stage.options(1);
    let noting = Arc::clone(&load);
    options.base.http = options.base.http.map(|http| watched(http, move |body| noting.note(body)));
    let running = Running::start(config(true, Read::default()), options).await?;
    let mut writers: Tasks<anyhow::Result<()>> = Tasks::new();
    for member in 0..MEMBERS {
        let (client, table) = (stage.client(member)?, settings::table(member).table);
        let (load, rate) = (Arc::clone(&load), arguments.rate);
        writers.spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / u32::try_from(rate)?);
            for n in 0..each {
                ticks.tick().await;
                let index = n * MEMBERS + member;
                let item = records::item(index, 1).0;
                client.put_item().table_name(&table).set_item(Some(item)).send().await?;
                *lock(&load.written[index]) = Some(Instant::now());
            }
            Ok(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    tokio::time::timeout(PATIENCE, load.done.notified()).await.context("the load did not arrive")?;
    running.stop().await?;
    let first = (records as f64 * WARM_UP) as usize;
    let lags = lock(&load.lags);
    Ok(lags.iter().filter(|(index, _)| *index >= first).map(|(_, lag)| *lag).collect())
}
