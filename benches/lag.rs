//! Lag at a load of half the limit: from the moment when a record could be read to the moment when its write
//! at the peer is answered, on a canned endpoint.
//!
//! First the limit: all records can be read at once. Then the load: every record becomes readable at a moment of
//! its own, evenly over all shards. A record's creation time has whole seconds, so the metric of the service
//! cannot tell this lag. Most of it is waiting for the next read, which AWS limits: so it is measured again with
//! hardly any time between two reads of a shard.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "support/endpoint.rs"]
mod endpoint;
#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/records.rs"]
mod records;
#[path = "support/settings.rs"]
mod settings;
#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/tap.rs"]
mod tap;

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Parser;
use endpoint::{Endpoint, Script};
use records::Kind;
use serde_json::{Value, json};
use shardwalker::config::Read;
use shardwalker::service::Service;
use shardwalker::task::Tasks;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tap::watched;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Arguments {
    /// Records that tell the limit.
    #[arg(long, default_value_t = 16_000)]
    records: usize,
    /// Seconds of load.
    #[arg(long, default_value_t = 15)]
    seconds: usize,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

const SHARDS: usize = 4;
/// Requests under way for one shard: 64 in all.
const IN_FLIGHT: usize = 64 / SHARDS;
/// Records of a page at most: 1 MB of them, which is all that GetRecords gives.
const PAGE: usize = 500;
/// The load's first part, in which the worker takes its shards up, does not count.
const WARM_UP: f64 = 0.2;
/// After the last record became readable, everything is there before this, or the load was too much.
const PATIENCE: Duration = Duration::from_secs(60);
/// Least times between two reads of a shard: the default, which is the least that a config file may ask for, and
/// one that leaves the worker's own part of the lag.
const INTERVALS: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(5)];

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let unlimited = Read { min_interval: Duration::from_millis(1), ..Read::default() };
    let burst = runtime.block_on(Load::run(arguments.records, f64::INFINITY, unlimited))?;
    let limit = arguments.records as f64 / burst.took.as_secs_f64();
    let rate = (limit / 2.0).floor();
    println!("limit {limit:.0}/s, load {rate:.0}/s over {SHARDS} shards");
    let mut report = serde_json::Map::new();
    for interval in INTERVALS {
        let read = Read { min_interval: interval, ..Read::default() };
        let records = rate as usize * arguments.seconds;
        let mut lags = runtime.block_on(Load::run(records, rate, read))?.lags;
        lags.drain(..(records as f64 * WARM_UP) as usize);
        lags.sort_unstable();
        let at = |share: f64| lags[((lags.len() - 1) as f64 * share) as usize];
        let (p50, p99, most) = (at(0.5), at(0.99), at(1.0));
        println!("reads every {interval:>5.0?}: lag p50 {p50:>8.1?}  p99 {p99:>8.1?}  most {most:>8.1?}");
        let millis = |lag: Duration| lag.as_secs_f64() * 1e3;
        report.insert(
            format!("{}ms", interval.as_millis()),
            json!({ "p50_ms": millis(p50), "p99_ms": millis(p99), "most_ms": millis(most), "records": lags.len() }),
        );
    }
    println!(
        "{}",
        json!({ "limit_per_second": limit, "load_per_second": rate, "lag": Value::Object(report) })
    );
    Ok(())
}

/// Records that become readable one after the other, and when their writes came.
struct Load {
    records: Vec<Vec<u8>>,
    per_second: f64,
    begun: OnceLock<Instant>,
    /// By record: nanoseconds from the begin to its write; 0 while it has not come.
    written: Vec<AtomicU64>,
    missing: AtomicUsize,
    done: Notify,
}

struct Ran {
    /// In the order of the records.
    lags: Vec<Duration>,
    /// From the begin to the last write.
    took: Duration,
}

impl Load {
    async fn run(records: usize, per_second: f64, read: Read) -> anyhow::Result<Ran> {
        ensure!(records > 0, "a load of no records");
        let load = Arc::new(Self {
            records: (0..records).map(|index| records::record(index, Kind::Modify)).collect(),
            per_second,
            begun: OnceLock::new(),
            written: (0..records).map(|_| AtomicU64::new(0)).collect(),
            missing: AtomicUsize::new(records),
            done: Notify::new(),
        });
        let (reading, writing) = (Arc::clone(&load), Arc::clone(&load));
        let endpoint = Endpoint::new(Script {
            shards: SHARDS,
            peers: 1,
            read: Box::new(move |shard, from| reading.page(shard, from)),
        });
        let mut options = endpoint.options();
        options.base.http = options.base.http.map(|http| watched(http, move |body| writing.note(body)));
        let drain = CancellationToken::new();
        let service = Service::build(settings::config(1, read, IN_FLIGHT), options, drain.clone()).await?;
        let mut tasks = Tasks::new();
        tasks.spawn(service.run());
        let begun = *load.begun.get_or_init(Instant::now);
        let enough = load.readable_after(records - 1) + PATIENCE;
        tokio::time::timeout(enough, load.done.notified()).await.context("the load was not applied")?;
        let took = begun.elapsed();
        drain.cancel();
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        let lag = |(index, written): (usize, &AtomicU64)| {
            Duration::from_nanos(written.load(Ordering::Relaxed)).saturating_sub(load.readable_after(index))
        };
        Ok(Ran { lags: load.written.iter().enumerate().map(lag).collect(), took })
    }

    /// When a record becomes readable, from the begin.
    fn readable_after(&self, index: usize) -> Duration {
        Duration::from_secs_f64(index as f64 / self.per_second)
    }

    /// Record `n` of a shard is record `n * SHARDS + shard` of the load.
    fn page(&self, shard: usize, from: usize) -> Bytes {
        let elapsed = self.begun.get().map(Instant::elapsed);
        let readable = |index: &usize| elapsed.is_some_and(|elapsed| self.readable_after(*index) <= elapsed);
        let indices = (from..).map(|n| n * SHARDS + shard).take_while(|index| *index < self.records.len());
        let page: Vec<&[u8]> =
            indices.take_while(readable).take(PAGE).map(|index| &*self.records[index]).collect();
        let next = from + page.len();
        endpoint::page(shard, page, next)
    }

    fn note(&self, put: &[u8]) {
        let now = self.begun.get().map(|begun| begun.elapsed().as_nanos() as u64);
        let slot = records::index(put).and_then(|index| self.written.get(index));
        let (Some(slot), Some(now)) = (slot, now) else { return };
        if slot.swap(now, Ordering::Relaxed) == 0 && self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }
}
