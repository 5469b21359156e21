//! Records a second into a feed's files over a bare loop that reads the same pages by the same SDK from the same canned
//! endpoint and keeps nothing, in turns, in one run; and memory with many open shards, each with an open file.
//!
//! The path is a [`Service`] as the binary builds it: GetRecords, decoding, the clock, lines or Parquet, compression, files
//! in a directory (in memory where there is one, so that no disk is measured), the manifest, checkpoints. The bare loop is
//! GetRecords of the SDK on as many shards at a time. Each round measures the loop, the path, and the loop again; what is told
//! is the median of the rounds. CPU time is that of the whole process.
//!
//! For memory one process does nothing else, and the shards give more than fits into the bound: the peak must stay under
//! `memory_mb` and what a worker takes beside it.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "support/endpoint.rs"]
mod endpoint;
#[allow(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/records.rs"]
mod records;
#[path = "support/settings.rs"]
mod settings;
#[path = "support/usage.rs"]
mod usage;

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Parser;
use endpoint::{Endpoint, Script};
use records::Kind;
use serde_json::{Value, json};
use shardwalker::aws::Aws;
use shardwalker::config::{Compression, Config, Feed, FeedFormat, FeedPlace, Images, Partition, Read, Write};
use shardwalker::service::{Options, Service};
use shardwalker::task::Tasks;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use usage::{Stopwatch, Took, megabytes, spread};

#[derive(Parser)]
struct Arguments {
    /// Records of a round.
    #[arg(long, default_value_t = 256_000)]
    records: usize,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only the cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Measure memory alone, with so many open shards.
    #[arg(long)]
    shards: Option<usize>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Case {
    name: &'static str,
    format: FeedFormat,
}

const CASES: [Case; 3] = [
    Case { name: "json lines", format: FeedFormat::Json },
    Case { name: "dynamodb-json lines", format: FeedFormat::DynamoJson },
    Case { name: "parquet", format: FeedFormat::Parquet },
];

/// Shards of the throughput's stream.
const SHARDS: usize = 4;
/// Records of a page: 1 MB of them, which is all that GetRecords gives.
const PAGE: usize = 400;
/// Open shards when memory is measured.
const OPEN: usize = 100;
/// Records that each of them gives: together several times what fits into the bound.
const EACH: usize = 2_000;
/// What a worker with so many shards may take beside `memory_mb`: itself, and one file of the feed while it is made.
const BESIDE_MB: f64 = 100.0;
/// A round that takes longer than this is stuck.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often it is looked at whether all is written.
const LOOK: Duration = Duration::from_millis(1);
/// The last page of a shard that has ended.
const END: &[u8] = b"{\"Records\":[]}";
const FEED: &str = "lake";

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let cases = CASES.iter().filter(|case| case.name.contains(&arguments.only));
    // A thread that ends takes its CPU time with it.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().thread_keep_alive(Duration::from_secs(3600)).build()?;
    if let Some(shards) = arguments.shards {
        for case in cases {
            runtime.block_on(memory(case, shards))?;
        }
        return Ok(());
    }
    println!(
        "{:<24} {:>8} {:>8} {:>6} {:>13} {:>9} {:>9} {:>6}",
        "", "bare/s", "feed/s", "ratio", "(min to max)", "bare CPU", "feed CPU", "ratio"
    );
    let mut report = serde_json::Map::new();
    for case in cases.clone() {
        report.insert(case.name.to_owned(), runtime.block_on(measure(case, &arguments))?);
    }
    println!("{}", Value::Object(report));
    let mut missed = Vec::new();
    for case in cases {
        let sizes = ["--only", case.name, "--shards", &OPEN.to_string()];
        if !std::process::Command::new(std::env::current_exe()?).args(sizes).status()?.success() {
            missed.push(case.name);
        }
    }
    ensure!(missed.is_empty(), "more memory than the bound with {missed:?}");
    Ok(())
}

async fn measure(case: &Case, arguments: &Arguments) -> anyhow::Result<Value> {
    let shards: Vec<Vec<Bytes>> = (0..SHARDS).map(|shard| pages(arguments.records, shard)).collect();
    let read = move |shard: usize, number: usize| shards[shard][number.min(shards[shard].len() - 1)].clone();
    let endpoint = Endpoint::new(Script { shards: SHARDS, peers: 0, read: Box::new(read) });
    let mut rounds = Vec::new();
    for _ in 0..arguments.rounds {
        let before = bare(endpoint.options(), arguments.records).await?;
        let path = path(case, endpoint.options(), arguments.records).await?;
        let after = bare(endpoint.options(), arguments.records).await?;
        let bare = Took::between(before, after);
        rounds.push((bare, path));
    }
    let median_of = |value: &dyn Fn(&(Took, Took)) -> f64| spread(&rounds, value);
    let count = arguments.records as f64;
    let (bare_rate, ..) = median_of(&|(bare, _)| count / bare.wall.as_secs_f64());
    let (path_rate, ..) = median_of(&|(_, path)| count / path.wall.as_secs_f64());
    let (ratio, least, most) = median_of(&|(bare, path)| bare.wall.as_secs_f64() / path.wall.as_secs_f64());
    let (bare_cpu, ..) = median_of(&|(bare, _)| bare.cpu.as_secs_f64() * 1e6 / count);
    let (path_cpu, ..) = median_of(&|(_, path)| path.cpu.as_secs_f64() * 1e6 / count);
    let (cpu_ratio, ..) = median_of(&|(bare, path)| bare.cpu.as_secs_f64() / path.cpu.as_secs_f64());
    println!(
        "{:<24} {bare_rate:>8.0} {path_rate:>8.0} {ratio:>6.2} ({least:>4.2} to {most:>4.2}) \
         {bare_cpu:>6.1} µs {path_cpu:>6.1} µs {cpu_ratio:>6.2}",
        case.name
    );
    Ok(json!({
        "records": arguments.records,
        "rounds": rounds.len(),
        "bare_records_per_second": bare_rate.round(),
        "feed_records_per_second": path_rate.round(),
        "ratio": ratio,
        "ratio_least": least,
        "ratio_most": most,
        "bare_cpu_us_per_record": bare_cpu,
        "feed_cpu_us_per_record": path_cpu,
        "cpu_ratio": cpu_ratio,
    }))
}

/// The pages of one of the shards, which ends with the last.
fn pages(records: usize, shard: usize) -> Vec<Bytes> {
    let indices = (shard..records).step_by(SHARDS);
    let records: Vec<Vec<u8>> = indices.map(|index| records::record(index, Kind::Modify)).collect();
    let full = records
        .chunks(PAGE)
        .enumerate()
        .map(|(number, chunk)| endpoint::page(shard, chunk.iter().map(Vec::as_slice), number + 1));
    full.chain([Bytes::from_static(END)]).collect()
}

/// GetRecords of the SDK on all shards, to their ends.
async fn bare(options: Options, records: usize) -> anyhow::Result<Took> {
    let client = Aws::new(options.base).clients(&settings::access()).await.streams;
    let clock = Stopwatch::start()?;
    let mut tasks = Tasks::new();
    for shard in 0..SHARDS {
        let client = client.clone();
        tasks.spawn(async move {
            let (mut iterator, mut read) = (Some(format!("{shard}:0")), 0);
            while let Some(at) = iterator {
                let page = client.get_records().shard_iterator(at).send().await?;
                read += page.records.unwrap_or_default().len();
                iterator = page.next_shard_iterator;
            }
            anyhow::Ok(read)
        });
    }
    let mut read = 0;
    while let Some(ended) = tasks.join_next().await {
        read += ended??;
    }
    let took = clock.stop()?;
    ensure!(read == records, "{read} records were read of {records}");
    Ok(took)
}

/// The whole path, from the start of the service to the last file.
async fn path(case: &Case, options: Options, records: usize) -> anyhow::Result<Took> {
    let directory = directory()?;
    let config = config(case, directory.path(), Write::default());
    let drain = CancellationToken::new();
    let service = Service::build(config, options, drain.clone()).await?;
    let applied = service.metrics().lane("orders", FEED).applied;
    let clock = Stopwatch::start()?;
    let mut tasks = Tasks::new();
    tasks.spawn(service.run());
    let all = async {
        while applied.get() < records as u64 {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.context("the path is stuck")?;
    let took = clock.stop()?;
    drain.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    ensure!(applied.get() == records as u64, "{} records were written of {records}", applied.get());
    Ok(took)
}

/// The peak of a worker whose shards give more than fits into the bound.
async fn memory(case: &Case, shards: usize) -> anyhow::Result<()> {
    // Made when it is asked for: pages that lie ready would be in the figure.
    let read = move |shard: usize, number: usize| {
        let first = number * PAGE;
        if first >= EACH {
            return endpoint::page(shard, [], number);
        }
        let numbers = first..(first + PAGE).min(EACH);
        let records: Vec<Vec<u8>> =
            numbers.map(|index| records::record(shard * EACH + index, Kind::Modify)).collect();
        endpoint::page(shard, records.iter().map(Vec::as_slice), number + 1)
    };
    let endpoint = Endpoint::new(Script { shards, peers: 0, read: Box::new(read) });
    let directory = directory()?;
    let config = config(case, directory.path(), Write::default());
    let bound = f64::from(config.read.memory_mb) * f64::from(1 << 20) / 1e6 + BESIDE_MB;
    let drain = CancellationToken::new();
    let service = Service::build(config, endpoint.options(), drain.clone()).await?;
    let metrics = service.metrics().clone();
    let mut tasks = Tasks::new();
    tasks.spawn(service.run());
    let read = || metrics.records_read.with_label_values(&["orders"]).get();
    let all = async {
        while read() < (shards * EACH) as u64 {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.context("the path is stuck")?;
    drain.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let (peak, files) = (megabytes("VmHWM")?, metrics.lane("orders", FEED).applied.get());
    ensure!(files == (shards * EACH) as u64, "{files} records were written");
    let name = case.name;
    println!(
        "{name}: {shards} open shards with {EACH} records each: peak {peak:.1} MB (bound: {bound:.0} MB, of which \
         {BESIDE_MB:.0} MB beside memory_mb)"
    );
    println!("{}", json!({ "case": name, "shards": shards, "peak_mb": peak, "bound_mb": bound }));
    ensure!(peak < bound, "the peak is above the bound");
    Ok(())
}

/// A directory in memory, where there is one.
fn directory() -> anyhow::Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    Ok(if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? })
}

fn config(case: &Case, directory: &Path, write: Write) -> Config {
    // The least time between two reads of a shard is there for AWS's limit: here it would be the only one.
    let read = Read { min_interval: Duration::from_millis(1), ..Read::default() };
    let mut config = settings::config(0, read, write.in_flight);
    config.routes[0].feeds = vec![0];
    config.feeds = vec![Feed {
        name: FEED.to_owned(),
        place: FeedPlace::Files(directory.to_owned()),
        format: case.format,
        images: Images::New,
        compression: Compression::Zstd,
        partition: Partition::Hour,
        roll_bytes: 16 << 20,
        roll_age: Duration::from_secs(300),
        columns: Vec::new(),
    }];
    config
}
