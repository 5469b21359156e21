//! How long a shard stands still when its worker dies or is asked to stop: from that moment to the first record of
//! the shard that another worker has applied at the peer.
//!
//! In the embedded sandbox, in virtual time, behind a network that takes some milliseconds: the figures are about
//! waiting, and none of them depends on the machine. Each repetition has a world of its own: two workers, or three in
//! turn, share a few shards that are written to steadily; at a moment that the seed decides, in any part of the beat,
//! one of them is dropped with all its tasks and requests, or asked to drain as SIGTERM does. Each of its shards
//! counts once.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/figures.rs"]
mod figures;
#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/records.rs"]
mod records;
#[path = "support/settings.rs"]
mod settings;
#[path = "support/stage.rs"]
mod stage;
#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/tap.rs"]
mod tap;

use anyhow::{Context, ensure};
use clap::Parser;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use shardwalker::config::{Lease, Read, Write};
use shardwalker::sandbox;
use shardwalker::service::{Service, ServiceError};
use shardwalker::task::Tasks;
use stage::Stage;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tap::{delayed, watched};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Arguments {
    /// Repetitions of each case.
    #[arg(long, default_value_t = 60)]
    repetitions: u64,
    /// For so long all shards have been where they are when one worker leaves: so that every worker has read the
    /// rows since, which it does each `list_interval` (10 s).
    #[arg(long, default_value = "15s")]
    settled: humantime::Duration,
    /// Decides the moments.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Divides by two and by three workers.
const SHARDS: usize = 6;
/// A request's way and back.
const LATENCY: Duration = Duration::from_millis(4);
/// Between two writes to the same shard.
const TRICKLE: Duration = Duration::from_millis(250);
/// Seconds of the leases: the shortest that is of use, one between, and the default.
const LEASES: [u64; 3] = [6, 12, 30];
/// Nothing that is waited for takes longer.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy)]
enum Leaves {
    /// As `kill -9` makes it.
    Killed,
    /// As SIGTERM makes it.
    Stopped,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (repetitions, seed) = (arguments.repetitions, arguments.seed);
    println!("seed {seed}, {repetitions} repetitions of each case; in parentheses: in leases");
    println!("{:<24} {:>6} {:>18} {:>18} {:>18}", "", "shards", "p50", "p99", "most");
    let mut report = serde_json::Map::new();
    for (leaves, name) in [(Leaves::Killed, "killed"), (Leaves::Stopped, "stopped")] {
        for lease in LEASES.map(Duration::from_secs) {
            let mut gaps = Vec::new();
            for repetition in 0..repetitions {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
                let random = StdRng::seed_from_u64((seed << 32) + repetition);
                gaps.extend(
                    runtime.block_on(Box::pin(repeat(&arguments, repetition, random, lease, leaves)))?,
                );
            }
            let percentiles = figures::percentiles(&mut gaps).map(|gap| gap.as_secs_f64());
            let cells = percentiles.map(|gap| format!("{gap:.2} s ({:.2})", gap / lease.as_secs_f64()));
            let [p50, p99, most] = percentiles;
            let name = format!("{name}, lease {} s", lease.as_secs());
            println!("{name:<24} {:>6} {:>18} {:>18} {:>18}", gaps.len(), cells[0], cells[1], cells[2]);
            report.insert(name, json!({ "shards": gaps.len(), "p50_s": p50, "p99_s": p99, "most_s": most }));
        }
    }
    println!("{}", json!({ "seed": seed, "repetitions": repetitions, "failover": Value::Object(report) }));
    Ok(())
}

/// By item: which worker applies its changes, and since when it is that one.
#[derive(Debug, Default)]
struct Applied(Mutex<BTreeMap<usize, (usize, Instant)>>);

impl Applied {
    fn note(&self, worker: usize, put: &[u8]) {
        let Some(index) = records::index(put) else { return };
        let mut applied = self.lock();
        if applied.get(&index).is_none_or(|(before, _)| *before != worker) {
            applied.insert(index, (worker, Instant::now()));
        }
    }

    /// Those of the items whose changes a worker applies.
    fn of(&self, worker: usize, items: &[usize]) -> Vec<usize> {
        let applied = self.lock();
        let by = |index: &&usize| applied.get(index).is_some_and(|(by, _)| *by == worker);
        items.iter().filter(by).copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, (usize, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Worker {
    drain: CancellationToken,
    task: Tasks<Result<(), ServiceError>>,
}

/// How long each shard of the worker that leaves stood still.
async fn repeat(
    arguments: &Arguments,
    repetition: u64,
    mut random: StdRng,
    lease: Duration,
    leaves: Leaves,
) -> anyhow::Result<Vec<Duration>> {
    let options = sandbox::Options { seed: random.random(), ..stage::virtual_time(SHARDS as u32) };
    let stage = Stage::new(options, 1)?;
    stage.stream().await?;
    let items = one_item_of_each_shard(&stage).await?;
    let (client, table) = (stage.client(0)?, settings::table(0).table);
    let mut writer = Tasks::new();
    let written = items.clone();
    writer.spawn(async move {
        for revision in 1.. {
            for index in &written {
                let item = records::item(*index, revision).0;
                client.put_item().table_name(&table).set_item(Some(item)).send().await?;
                sleep(TRICKLE / SHARDS as u32).await;
            }
        }
        anyhow::Ok(())
    });
    let applied = Arc::new(Applied::default());
    let count = 2 + repetition as usize % 2;
    let mut workers = Vec::new();
    for worker in 0..count {
        workers.push(start(&stage, worker, random.random(), lease, &applied).await?);
        sleep(lease.mul_f64(random.random::<f64>() / 3.0)).await;
    }
    let even = || (0..count).all(|worker| applied.of(worker, &items).len() == SHARDS / count);
    until("the shards are shared", even).await?;
    sleep(arguments.settled.into()).await;
    sleep(lease.mul_f64(random.random())).await;
    ensure!(even(), "what is in balance moved");

    let leaving = random.random_range(0..count);
    let shards = applied.of(leaving, &items);
    let mut left = workers.swap_remove(leaving);
    let begun = Instant::now();
    match leaves {
        Leaves::Killed => left.task.abort_all().await,
        Leaves::Stopped => left.drain.cancel(),
    }
    until("the others go on", || applied.of(leaving, &items).is_empty()).await?;
    let applied = applied.lock();
    shards.iter().map(|index| Ok(applied.get(index).context("never applied")?.1 - begun)).collect()
}

/// Items that are in different shards, one for each.
async fn one_item_of_each_shard(stage: &Stage) -> anyhow::Result<Vec<usize>> {
    let (client, source) = (stage.client(0)?, settings::table(0));
    let mut items = BTreeMap::new();
    for index in 0.. {
        let before = stage.sandbox.shards(&source.to_string())?;
        let item = records::item(index, 0).0;
        client.put_item().table_name(&source.table).set_item(Some(item)).send().await?;
        let after = stage.sandbox.shards(&source.to_string())?;
        let went_to = after.iter().zip(&before).find(|(after, before)| after.records > before.records);
        let (shard, _) = went_to.context("a write without a record")?;
        items.entry(shard.id.clone()).or_insert(index);
        if items.len() == SHARDS {
            break;
        }
    }
    Ok(items.into_values().collect())
}

async fn start(
    stage: &Stage,
    worker: usize,
    seed: u64,
    lease: Duration,
    applied: &Arc<Applied>,
) -> anyhow::Result<Worker> {
    let mut config = settings::config(1, Read::default(), Write::default().in_flight);
    // As a config file's: a beat each sixth of the lease, and a request takes a third of it at most.
    config.lease = Lease { duration: lease, renew_interval: lease / 6, ..Lease::default() };
    config.write.request_timeout = config.write.request_timeout.min(lease / 3);
    let mut options = stage.options(seed);
    let applied = Arc::clone(applied);
    options.base.http =
        options.base.http.map(|http| watched(delayed(http, LATENCY), move |put| applied.note(worker, put)));
    let drain = CancellationToken::new();
    let service = Service::build(config, options, drain.clone()).await?;
    let mut task = Tasks::new();
    task.spawn(service.run());
    Ok(Worker { drain, task })
}

/// Waits for a state.
async fn until(what: &'static str, state: impl Fn() -> bool) -> anyhow::Result<()> {
    let look = async {
        while !state() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, look).await.context(what)
}
