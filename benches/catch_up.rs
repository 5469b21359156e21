//! How fast a lane catches up after its peer was down for an hour, and what the other peer notices of it.
//!
//! In the embedded sandbox, in virtual time, behind a network that takes some milliseconds. Two shards are written to
//! steadily, each record an item of its own, so that none covers another. After some minutes one of two peers refuses
//! everything for an hour; then its lanes catch up by a second reader, bounded by five pages of 1,000 records a
//! second. Twice: when AWS's five reads a second are a reader's, as the documentation leaves open, and when they are
//! the shard's.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

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
use aws_sdk_dynamodb::types::AttributeValue;
use clap::Parser;
use figures::{metric, percentiles};
use serde_json::{Value, json};
use shardwalker::config::{Read, Write};
use shardwalker::sandbox;
use shardwalker::sandbox::faults::{Effect, Rule};
use shardwalker::service::Service;
use shardwalker::task::Tasks;
use stage::Stage;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tap::{delayed, watched};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Arguments {
    /// Records a second over all shards.
    #[arg(long, default_value_t = 40)]
    rate: u32,
    /// Minutes that the peer is down.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

const SHARDS: u32 = 2;
/// A request's way and back.
const LATENCY: Duration = Duration::from_millis(4);
/// With both peers up, before and after.
const CALM: Duration = Duration::from_secs(300);
/// What AWS allows: reads a second, and records of one read.
const BOUND: f64 = 5.0 * 1000.0;
/// Catching up takes no longer.
const PATIENCE: Duration = Duration::from_secs(3600);
/// The peer that goes down, and the one that stays; 0 is the source.
const DOWN: usize = 2;
const UP: usize = 1;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut report = serde_json::Map::new();
    for (limits, name) in
        [(false, "five reads a second for a reader"), (true, "five reads a second for a shard")]
    {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
        let figures = runtime.block_on(Box::pin(measure(&arguments, limits)))?;
        figures.print(name);
        report.insert(name.to_owned(), figures.to_json());
    }
    println!("{}", Value::Object(report));
    Ok(())
}

struct Figures {
    /// Records that the peer missed.
    missed: usize,
    /// From the end of the outage to the first write.
    noticed: Duration,
    /// From the first write until all lanes are at the front again, and what was written meanwhile.
    joined: Duration,
    written: usize,
    /// The other peer's lag: before, in the outage, while the lanes catch up.
    lags: [[Duration; 3]; 3],
}

impl Figures {
    /// Records a second of one lane.
    fn rate(&self) -> f64 {
        self.written as f64 / self.joined.as_secs_f64() / f64::from(SHARDS)
    }

    fn print(&self, name: &str) {
        println!("{name}:");
        println!(
            "  {} records missed; the first comes {:.1?} after the outage, the lanes have caught up and joined {:.1?} \
             later: {:.0} records a second a lane, {:.2} of the bound",
            self.missed,
            self.noticed,
            self.joined,
            self.rate(),
            self.rate() / BOUND
        );
        for (when, lag) in ["before", "in the outage", "while the lanes catch up"].iter().zip(&self.lags) {
            let [p50, p99, most] = lag;
            println!("  the other peer's lag {when:<26} p50 {p50:>8.1?}  p99 {p99:>8.1?}  most {most:>8.1?}");
        }
    }

    fn to_json(&self) -> Value {
        let lag = |lag: &[Duration; 3]| {
            let [p50, p99, most] = lag.map(|lag| lag.as_secs_f64() * 1e3);
            json!({ "p50_ms": p50, "p99_ms": p99, "most_ms": most })
        };
        json!({
            "missed": self.missed, "noticed_s": self.noticed.as_secs_f64(),
            "joined_s": self.joined.as_secs_f64(), "records_per_second_and_lane": self.rate(),
            "of_bound": self.rate() / BOUND, "lag_before": lag(&self.lags[0]),
            "lag_in_the_outage": lag(&self.lags[1]), "lag_while_catching_up": lag(&self.lags[2]),
        })
    }
}

/// When each item was written at the source, and how long after it came to the peer that stays.
#[derive(Debug, Default)]
struct Log {
    written: Vec<Instant>,
    lags: Vec<(Instant, Duration)>,
    /// Writes to the peer that goes down, and the first and the last of them.
    caught_up: usize,
    first: Option<Instant>,
}

type Shared = Arc<Mutex<Log>>;

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes a put that was answered.
fn note(log: &Mutex<Log>, put: &[u8], up: &str) {
    let (mut log, now) = (lock(log), Instant::now());
    let to_up = put.windows(up.len()).take(64).any(|part| part == up.as_bytes());
    if !to_up {
        log.caught_up += 1;
        log.first.get_or_insert(now);
    } else if let Some(written) = records::index(put).and_then(|index| log.written.get(index).copied()) {
        log.lags.push((now, now - written));
    }
}

async fn measure(arguments: &Arguments, limits: bool) -> anyhow::Result<Figures> {
    let options = sandbox::Options { stream_limits: limits, ..stage::virtual_time(SHARDS) };
    let stage = Stage::new(options, 2)?;
    stage.stream().await?;
    let log = Shared::default();
    let mut options = stage.options(1);
    let (noted, up) = (Arc::clone(&log), settings::table(UP).account);
    options.base.http =
        options.base.http.map(|http| watched(delayed(http, LATENCY), move |put| note(&noted, put, &up)));
    let config = settings::config(2, Read::default(), Write::default().in_flight);
    let service = Service::build(config, options, CancellationToken::new()).await?;
    let metrics = service.metrics().clone();
    let mut tasks = Tasks::new();
    tasks.spawn(async move { Ok(service.run().await?) });
    tasks.spawn(write(stage.client(0)?, Duration::from_secs(1) / arguments.rate, Arc::clone(&log)));

    let behind = || metric(&metrics, "shardwalker_lanes_behind");
    sleep(CALM).await;
    ensure!(behind() == 0.0, "a lane is behind before the outage");
    let down = Instant::now();
    for operation in ["PutItem", "DeleteItem"] {
        let rule =
            Rule::new(Effect::Unavailable).account(&settings::table(DOWN).account).operation(operation);
        stage.sandbox.faults().add(rule);
    }
    sleep(Duration::from_secs(60 * arguments.minutes)).await;
    ensure!(behind() == f64::from(SHARDS), "the lanes were not let go");
    stage.sandbox.faults().clear();
    let back = Instant::now();
    let (missed, before) = {
        let mut log = lock(&log);
        log.first = None;
        (log.written.len() - log.caught_up, log.caught_up)
    };
    let joining = async {
        while behind() > 0.0 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, joining).await.context("the lanes do not catch up")?;
    let joined = Instant::now();
    let written = lock(&log).caught_up - before;
    sleep(CALM).await;
    let log = lock(&log);
    ensure!(log.written.len() - log.caught_up <= arguments.rate as usize, "not all records came");
    let first = log.first.context("nothing came after the outage")?;
    let lags = |from: Instant, to: Instant| {
        let within = log.lags.iter().filter(|(at, _)| (from..to).contains(at));
        percentiles(&mut within.map(|(_, lag)| *lag).collect::<Vec<_>>())
    };
    // The start is over a minute before the outage at the latest.
    let lags = [lags(down - CALM + Duration::from_secs(60), down), lags(down, back), lags(back, joined)];
    Ok(Figures { missed, noticed: first - back, joined: joined - first, written, lags })
}

/// Writes items, one after the other, for ever.
async fn write(client: aws_sdk_dynamodb::Client, each: Duration, log: Shared) -> anyhow::Result<()> {
    let table = settings::table(0).table;
    let mut ticks = interval(each);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for index in 0.. {
        ticks.tick().await;
        let put = client.put_item().table_name(&table).item("id", AttributeValue::S(records::key(index)));
        lock(&log).written.push(Instant::now());
        put.item("note", AttributeValue::S("please leave the parcel with the neighbours".into()))
            .send()
            .await?;
    }
    Ok(())
}
