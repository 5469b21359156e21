//! Throughput of one, two and four workers on one route: what a second worker adds.
//!
//! Each worker has a thread and a single-threaded runtime of its own, as a process of its own would have with one
//! core. Streams and peers are the canned endpoint, which answers at once in the worker's own thread; the state table
//! is a real one in the embedded sandbox, by which the workers share the shards. Records can be read once the shards
//! are shared evenly, so that what is measured is walking, not starting. The sizes take turns; medians of the rounds.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "support/endpoint.rs"]
mod endpoint;
#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/figures.rs"]
mod figures;
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
#[path = "support/worlds.rs"]
mod worlds;

use anyhow::{Context, anyhow};
use aws_smithy_runtime_api::client::http::{HttpConnector, SharedHttpClient};
use clap::Parser;
use endpoint::{Endpoint, Script};
use figures::metric;
use records::Kind;
use serde_json::json;
use shardwalker::config::{Lease, Read};
use shardwalker::sandbox;
use shardwalker::service::{Options, Service};
use shardwalker::telemetry::metrics::Metrics;
use stage::Stage;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tap::{operation, tapped, watched};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use worlds::Work;

#[derive(Parser)]
struct Arguments {
    /// Records of a round.
    #[arg(long, default_value_t = 32_000)]
    records: usize,
    /// Rounds; the medians count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

const SHARDS: usize = 8;
/// Requests under way for one shard: 64 in all.
const IN_FLIGHT: usize = 64 / SHARDS;
const WORKERS: [usize; 3] = [1, 2, 4];
/// Sharing the shards, or a round, takes no longer.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let work = Work { kind: Kind::Modify, records: arguments.records, peers: 1 };
    let course = Arc::new(Course::new(work));
    let mut rounds: Vec<Vec<f64>> = Vec::new();
    for _ in 0..arguments.rounds {
        let rates =
            WORKERS.iter().map(|workers| Ok(work.records as f64 / run(&course, *workers)?.as_secs_f64()));
        rounds.push(rates.collect::<anyhow::Result<_>>()?);
    }
    println!("{:<10} {:>10} {:>6} {:>14}", "workers", "records/s", "ratio", "(min to max)");
    let mut report = Vec::new();
    for (index, workers) in WORKERS.iter().enumerate() {
        let (rate, ..) = median(rounds.iter().map(|round| round[index]));
        let (ratio, least, most) = median(rounds.iter().map(|round| round[index] / round[0]));
        println!("{workers:<10} {rate:>10.0} {ratio:>6.2} ({least:>4.2} to {most:>4.2})");
        report.push(json!({
            "workers": workers, "records_per_second": rate.round(),
            "ratio": ratio, "ratio_least": least, "ratio_most": most,
        }));
    }
    println!("{}", json!({ "rounds": arguments.rounds, "records": work.records, "workers": report }));
    Ok(())
}

/// The middle one, the least and the most.
fn median(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

/// The records, and how many of them came.
struct Course {
    endpoint: Endpoint,
    records: usize,
    /// Whether the records can be read.
    open: Arc<AtomicBool>,
    written: AtomicUsize,
    done: Notify,
}

impl Course {
    fn new(work: Work) -> Self {
        let pages: Vec<_> = (0..SHARDS).map(|shard| worlds::pages(work, shard, SHARDS)).collect();
        let open = Arc::new(AtomicBool::new(false));
        let opened = Arc::clone(&open);
        let read = move |shard: usize, number: usize| match opened.load(Ordering::Acquire) {
            true => pages[shard][number.min(pages[shard].len() - 1)].clone(),
            false => endpoint::page(shard, [], number),
        };
        let endpoint = Endpoint::new(Script { shards: SHARDS, peers: 1, read: Box::new(read) });
        let (written, done) = (AtomicUsize::new(0), Notify::new());
        Self { endpoint, records: work.records, open, written, done }
    }

    /// A worker's options: the state table is the stage's, everything else is canned.
    fn options(self: &Arc<Self>, stage: &Stage, seed: u64) -> Options {
        let mut options = stage.options(seed);
        let (endpoint, course) = (self.endpoint.clone(), Arc::clone(self));
        let way = move |http: SharedHttpClient| {
            let forked = tapped(http, move |state, request| {
                // The table's making names it last.
                let made = operation(&request) == "CreateTable";
                let to_state = made
                    || request.body().bytes().is_some_and(|body| {
                        body.starts_with(b"{\"TableName\":\"state\"")
                            || body.starts_with(b"{\"RequestItems\":{\"state\"")
                    });
                if to_state { state.call(request) } else { endpoint.call(request) }
            });
            watched(forked, move |_| {
                if course.written.fetch_add(1, Ordering::AcqRel) + 1 == course.records {
                    course.done.notify_one();
                }
            })
        };
        options.base.http = options.base.http.map(way);
        options
    }
}

/// How long so many workers take for all records.
fn run(course: &Arc<Course>, workers: usize) -> anyhow::Result<Duration> {
    let stage = Stage::new(sandbox::Options::default(), 0)?;
    course.open.store(false, Ordering::Release);
    course.written.store(0, Ordering::Release);
    let (drain, metrics) = (CancellationToken::new(), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        let start = |worker: usize| {
            let (options, drain, metrics) = (course.options(&stage, worker as u64), &drain, &metrics);
            scope.spawn(move || runtime()?.block_on(Box::pin(work(options, drain, metrics))))
        };
        let threads: Vec<_> = (0..workers).map(start).collect();
        let took = runtime()?.block_on(time(course, workers, &metrics));
        drain.cancel();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a worker broke down"))??;
        }
        took
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// One worker, until it is asked to stop.
async fn work(
    options: Options,
    drain: &CancellationToken,
    metrics: &Mutex<Vec<Metrics>>,
) -> anyhow::Result<()> {
    // The least times are there for AWS's limits: here they would be the only ones.
    let short = Duration::from_millis(1);
    let read = Read { min_interval: short, idle_interval: 20 * short, ..Read::default() };
    let mut config = settings::config(1, read, IN_FLIGHT);
    // A late start is made up for sooner than with the defaults: a worker writes for a lease less a request's time limit.
    config.write.request_timeout = Duration::from_secs(1);
    config.lease = Lease {
        duration: Duration::from_secs(6),
        renew_interval: Duration::from_secs(1),
        look_interval: Duration::from_millis(200),
        ..Lease::default()
    };
    let service = Service::build(config, options, drain.clone()).await?;
    metrics.lock().unwrap_or_else(PoisonError::into_inner).push(service.metrics().clone());
    Ok(service.run().await?)
}

/// Opens the course once the shards are shared; how long it takes until the last record is written.
async fn time(course: &Course, workers: usize, metrics: &Mutex<Vec<Metrics>>) -> anyhow::Result<Duration> {
    let even = || {
        let metrics = metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let held = |metrics| metric(metrics, "shardwalker_leases_held") as usize;
        metrics.len() == workers && metrics.iter().all(|metrics| held(metrics) == SHARDS / workers)
    };
    let shared = async {
        while !even() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, shared).await.with_context(|| {
        let metrics = metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let held: Vec<f64> =
            metrics.iter().map(|metrics| metric(metrics, "shardwalker_leases_held")).collect();
        format!("the shards are not shared: {workers} workers hold {held:?}")
    })?;
    let begun = Instant::now();
    course.open.store(true, Ordering::Release);
    timeout(PATIENCE, course.done.notified()).await.context("the workers are stuck")?;
    Ok(begun.elapsed())
}
