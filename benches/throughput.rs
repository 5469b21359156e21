//! Throughput of the whole path over a bare loop of the same conditional PutItem: the same SDK clients, the
//! same concurrency and the same endpoint, taking turns in one run. The endpoint is a canned one that answers at
//! once, so that the data path is what holds everything up, and then the embedded sandbox through its in-process
//! door.
//!
//! The path is a [`Service`] as the binary builds it: GetRecords, decoding, lanes, conditional puts, checkpoints.
//! The bare loop sends what the path sends, from items that are ready in memory. Each round measures the loop,
//! the path, and the loop again; its ratio is the path's rate over the mean of the two. What is told is the
//! median of the rounds, because other work on the machine comes and goes. CPU time is that of the whole process.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "support/endpoint.rs"]
mod endpoint;
#[allow(dead_code, reason = "the benchmarks share it, and each uses a part")]
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
#[path = "support/worlds.rs"]
mod worlds;

use anyhow::{Context, ensure};
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure};
use clap::Parser;
use records::Kind;
use serde_json::{Value, json};
use settings::STAMP;
use shardwalker::aws::Aws;
use shardwalker::config::Read;
use shardwalker::content::Content;
use shardwalker::item::Item;
use shardwalker::service::{Options, Service};
use shardwalker::task::Tasks;
use shardwalker::version::{Hlc, Stamp, Version};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tap::watched;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use usage::{Stopwatch, Took, spread};
use worlds::{SHARDS, Work, World};

#[derive(Parser)]
struct Arguments {
    /// Records of a round.
    #[arg(long, default_value_t = 16_000)]
    records: usize,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Only the cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Case {
    name: &'static str,
    kind: Kind,
    peers: usize,
    sandbox: bool,
}

const CASES: [Case; 5] = [
    Case { name: "canned modify", kind: Kind::Modify, peers: 1, sandbox: false },
    Case { name: "canned insert", kind: Kind::Insert, peers: 1, sandbox: false },
    Case { name: "canned modify, 2 peers", kind: Kind::Modify, peers: 2, sandbox: false },
    Case { name: "sandbox modify", kind: Kind::Modify, peers: 1, sandbox: true },
    Case { name: "sandbox insert", kind: Kind::Insert, peers: 1, sandbox: true },
];

/// Requests under way in the loop, and in all lanes of the path together.
const CONCURRENCY: usize = 64;
/// A round that takes longer than this is stuck.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!(
        "{:<24} {:>8} {:>8} {:>6} {:>13} {:>9} {:>9} {:>6}",
        "", "bare/s", "path/s", "ratio", "(min to max)", "bare CPU", "path CPU", "ratio"
    );
    let mut report = serde_json::Map::new();
    for case in CASES.iter().filter(|case| case.name.contains(&arguments.only)) {
        let figures = runtime.block_on(measure(case, &arguments))?;
        report.insert(case.name.to_owned(), figures);
    }
    println!("{}", Value::Object(report));
    Ok(())
}

/// Counts puts, and keeps the last one.
#[derive(Default)]
struct Puts {
    seen: AtomicUsize,
    target: AtomicUsize,
    reached: Notify,
    last: Mutex<Vec<u8>>,
}

impl Puts {
    fn note(&self, body: &[u8]) {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        if seen == self.target.load(Ordering::Relaxed) {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = body.to_vec();
            self.reached.notify_one();
        }
    }

    fn expect(&self, puts: usize) {
        self.seen.store(0, Ordering::Relaxed);
        self.target.store(puts, Ordering::Relaxed);
    }

    /// The last put without what differs from put to put.
    fn shape(&self) -> anyhow::Result<Value> {
        let mut body: Value =
            serde_json::from_slice(&self.last.lock().unwrap_or_else(PoisonError::into_inner))?;
        let item = body["Item"].as_object_mut().context("a put without an item")?;
        item.values_mut().for_each(|value| *value = Value::Null);
        if let Some(values) = body["ExpressionAttributeValues"].as_object_mut() {
            values.values_mut().for_each(|value| *value = json!(value["S"].as_str().map(str::len)));
        }
        body["TableName"] = Value::Null;
        Ok(body)
    }
}

async fn measure(case: &Case, arguments: &Arguments) -> anyhow::Result<Value> {
    let work = Work { kind: case.kind, records: arguments.records, peers: case.peers };
    let world = if case.sandbox { World::Sandbox } else { World::canned(work) };
    let puts = work.records * work.peers;
    let counted = Arc::new(Puts::default());
    let items: Arc<Vec<Item>> = Arc::new((0..work.records).map(|index| records::item(index, 2)).collect());
    let mut rounds = Vec::new();
    for _ in 0..arguments.rounds {
        let before = bare(prepare(&world, work, &counted).await?, work, &items, &counted).await?;
        let bare_shape = counted.shape()?;
        let path = path(prepare(&world, work, &counted).await?, work, &counted).await?;
        ensure!(counted.shape()? == bare_shape, "the loop and the path do not send the same: {bare_shape}");
        let after = bare(prepare(&world, work, &counted).await?, work, &items, &counted).await?;
        let bare = Took::between(before, after);
        rounds.push((bare, path));
    }
    let median_of = |value: &dyn Fn(&(Took, Took)) -> f64| spread(&rounds, value);
    let count = puts as f64;
    let (bare_rate, ..) = median_of(&|(bare, _)| count / bare.wall.as_secs_f64());
    let (path_rate, ..) = median_of(&|(_, path)| count / path.wall.as_secs_f64());
    let (ratio, least, most) = median_of(&|(bare, path)| bare.wall.as_secs_f64() / path.wall.as_secs_f64());
    let (bare_cpu, ..) = median_of(&|(bare, _)| bare.cpu.as_secs_f64() * 1e6 / count);
    let (path_cpu, ..) = median_of(&|(_, path)| path.cpu.as_secs_f64() * 1e6 / count);
    let (cpu_ratio, ..) = median_of(&|(bare, path)| bare.cpu.as_secs_f64() / path.cpu.as_secs_f64());
    let name = case.name;
    println!(
        "{name:<24} {bare_rate:>8.0} {path_rate:>8.0} {ratio:>6.2} ({least:>4.2} to {most:>4.2}) \
         {bare_cpu:>6.0} µs {path_cpu:>6.0} µs {cpu_ratio:>6.2}"
    );
    Ok(json!({
        "puts": puts,
        "rounds": rounds.len(),
        "bare_puts_per_second": bare_rate.round(),
        "path_puts_per_second": path_rate.round(),
        "ratio": ratio,
        "ratio_least": least,
        "ratio_most": most,
        "bare_cpu_us_per_put": bare_cpu,
        "path_cpu_us_per_put": path_cpu,
        "cpu_ratio": cpu_ratio,
    }))
}

/// What reaches the world, with the puts counted.
async fn prepare(world: &World, work: Work, counted: &Arc<Puts>) -> anyhow::Result<Options> {
    let mut options = world.prepare(work).await?;
    let counting = Arc::clone(counted);
    options.base.http = options.base.http.map(|http| watched(http, move |body| counting.note(body)));
    Ok(options)
}

/// The whole path, from the start of the service to the last put.
async fn path(options: Options, work: Work, counted: &Puts) -> anyhow::Result<Took> {
    // The least time between two reads of a shard is there for AWS's limit: here it would be the only one.
    let read = Read { min_interval: Duration::from_millis(1), ..Read::default() };
    let config = settings::config(work.peers, read, CONCURRENCY / SHARDS / work.peers);
    let drain = CancellationToken::new();
    let service = Service::build(config, options, drain.clone()).await?;
    counted.expect(work.records * work.peers);
    let clock = Stopwatch::start()?;
    let mut tasks = Tasks::new();
    tasks.spawn(service.run());
    tokio::time::timeout(PATIENCE, counted.reached.notified()).await.context("the path is stuck")?;
    let took = clock.stop()?;
    drain.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(took)
}

/// What the path sends, from items in memory.
async fn bare(options: Options, work: Work, items: &Arc<Vec<Item>>, counted: &Puts) -> anyhow::Result<Took> {
    let client = Aws::new(options.base).clients(&settings::access()).await.tables;
    let version = Version::new(Hlc::from_millis(1_767_225_600_000), 0);
    let stamp = Stamp::of(&Content::from(&items[0]), version).to_string();
    let next = Arc::new(AtomicUsize::new(0));
    counted.expect(items.len() * work.peers);
    let clock = Stopwatch::start()?;
    let mut tasks = Tasks::new();
    for _ in 0..CONCURRENCY {
        let (client, items, next) = (client.clone(), Arc::clone(items), Arc::clone(&next));
        let (stamp, version) = (stamp.clone(), version.to_string());
        let tables: Vec<String> = (1..=work.peers).map(|peer| settings::table(peer).to_string()).collect();
        tasks.spawn(async move {
            let text = |value: &str| AttributeValue::S(value.to_owned());
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(index / work.peers) else { return Ok(()) };
                let mut item = item.0.clone();
                item.insert(STAMP.to_owned(), text(&stamp));
                let request = client
                    .put_item()
                    .table_name(&tables[index % work.peers])
                    .set_item(Some(item))
                    .expression_attribute_names("#pk", "id")
                    .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
                let request = match work.kind {
                    Kind::Insert => request.condition_expression("attribute_not_exists(#pk)"),
                    Kind::Modify => request
                        .condition_expression(format!("attribute_exists(#pk) AND ({OVERWRITABLE})"))
                        .expression_attribute_names("#stamp", STAMP)
                        .expression_attribute_values(":string", text("S"))
                        .expression_attribute_values(":version", text(&version))
                        .expression_attribute_values(":ceiling", text(&format!("{version}~"))),
                };
                request.send().await?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        let result: anyhow::Result<()> = ended?;
        result?;
    }
    counted.reached.notified().await;
    clock.stop()
}

/// As the path says it; [`Puts::shape`] holds both together.
const OVERWRITABLE: &str = "attribute_not_exists(#stamp) OR NOT attribute_type(#stamp, :string) \
     OR #stamp < :version OR #stamp > :ceiling";
