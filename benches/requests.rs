//! Requests to the state table while all shards are open and idle: what the leases alone cost.
//!
//! In the embedded sandbox, in virtual time, so that no figure depends on the machine. Once the shards are shared and
//! the start is over, requests are counted by operation over a window, and so are the units that the sandbox's table
//! engine bills for them by DynamoDB's rules. Idle shards are read more rarely than by default, which the state table
//! does not see.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/figures.rs"]
mod figures;
#[path = "support/settings.rs"]
mod settings;
#[path = "support/stage.rs"]
mod stage;
#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/tap.rs"]
mod tap;

use anyhow::Context;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpClient};
use aws_smithy_types::body::SdkBody;
use clap::Parser;
use figures::metric;
use serde_json::{Value, json};
use shardwalker::config::{Read, Write};
use shardwalker::service::Service;
use shardwalker::task::Tasks;
use stage::Stage;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tap::tapped;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Arguments {
    /// Seconds that are counted.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Shards and workers.
const CASES: [(usize, usize); 4] = [(100, 1), (1000, 1), (10_000, 1), (1000, 3)];
/// What the start leaves behind, such as rows that are read again, has passed after this.
const SETTLED: Duration = Duration::from_secs(180);
/// The start takes no longer.
const PATIENCE: Duration = Duration::from_secs(1800);

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    println!("{:<26} {:>8} {:>8} {:>8} {:>8}   by operation", "a second", "writes", "reads", "WRU", "RRU");
    let mut report = Vec::new();
    for (shards, workers) in CASES {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
        let seconds = arguments.seconds;
        let bill = runtime.block_on(Box::pin(measure(shards, workers, Duration::from_secs(seconds))))?;
        let sum = |write: bool, of: fn(&Cost) -> f64| {
            let costs = bill.iter().filter(|(operation, _)| is_write(operation) == write);
            costs.map(|(_, cost)| of(cost)).sum::<f64>() / seconds as f64
        };
        let requests = |cost: &Cost| cost.requests;
        let units = |cost: &Cost| cost.units;
        let (writes, reads) = (sum(true, requests), sum(false, requests));
        let (write_units, read_units) = (sum(true, units), sum(false, units));
        let each = bill.iter().map(|(name, cost)| format!("{name} {:.2}", cost.requests / seconds as f64));
        let each = each.collect::<Vec<_>>().join(", ");
        let name = format!("{shards} shards, {workers} workers");
        println!("{name:<26} {writes:>8.2} {reads:>8.2} {write_units:>8.2} {read_units:>8.2}   {each}");
        report.push(json!({
            "shards": shards, "workers": workers, "writes_per_second": writes, "reads_per_second": reads,
            "write_units_per_second": write_units, "read_units_per_second": read_units,
        }));
    }
    println!("{}", Value::Array(report));
    Ok(())
}

/// What one operation cost.
#[derive(Debug, Default, Clone)]
struct Cost {
    requests: f64,
    units: f64,
}

type Bill = BTreeMap<String, Cost>;

fn is_write(operation: &str) -> bool {
    ["PutItem", "UpdateItem", "DeleteItem"].contains(&operation)
}

async fn measure(shards: usize, workers: usize, window: Duration) -> anyhow::Result<Bill> {
    let stage = Stage::new(stage::virtual_time(u32::try_from(shards)?), 1)?;
    stage.stream().await?;
    let bill = Arc::new(Mutex::new(Bill::new()));
    let (mut tasks, mut metrics) = (Tasks::new(), Vec::new());
    for worker in 0..workers {
        let mut options = stage.options(1 + worker as u64);
        options.base.http = options.base.http.map(|http| billed(http, Arc::clone(&bill)));
        let read = Read { idle_interval: Duration::from_secs(30), ..Read::default() };
        let config = settings::config(1, read, Write::default().in_flight);
        let service = Service::build(config, options, CancellationToken::new()).await?;
        metrics.push(service.metrics().clone());
        tasks.spawn(service.run());
    }
    let held = || metrics.iter().map(|metrics| metric(metrics, "shardwalker_leases_held"));
    // Within a tenth of the mean is even.
    let even = || held().all(|held| held * workers as f64 >= 0.9 * shards as f64);
    let started = async {
        while held().sum::<f64>() < shards as f64 || !even() {
            sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, started).await.context("the shards are not shared")?;
    sleep(SETTLED).await;
    bill.lock().unwrap_or_else(PoisonError::into_inner).clear();
    sleep(window).await;
    Ok(bill.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// `client`, with what goes to the state table counted, and what it consumes.
fn billed(client: SharedHttpClient, bill: Arc<Mutex<Bill>>) -> SharedHttpClient {
    tapped(client, move |connector, mut request| {
        let operation = tap::operation(&request).to_owned();
        let body = request.body().bytes().and_then(|body| serde_json::from_slice::<Value>(body).ok());
        // Members and streams are addressed by their ARN, the state table by its name.
        let to_state = |body: &Value| {
            body["TableName"] == settings::STATE || body["RequestItems"].get(settings::STATE).is_some()
        };
        let Some(mut body) = body.filter(to_state) else { return connector.call(request) };
        body["ReturnConsumedCapacity"] = "TOTAL".into();
        *request.body_mut() = SdkBody::from(body.to_string());
        let (answer, bill) = (connector.call(request), Arc::clone(&bill));
        HttpConnectorFuture::new(async move {
            let answer = answer.await?;
            let text = answer.body().bytes().unwrap_or_default();
            let consumed = serde_json::from_slice::<Value>(text).unwrap_or_default();
            let units = match &consumed["ConsumedCapacity"] {
                Value::Array(tables) => tables.iter().filter_map(|t| t["CapacityUnits"].as_f64()).sum(),
                table => table["CapacityUnits"].as_f64().unwrap_or_default(),
            };
            let mut bill = bill.lock().unwrap_or_else(PoisonError::into_inner);
            let cost = bill.entry(operation).or_default();
            cost.requests += 1.0;
            cost.units += units;
            drop(bill);
            Ok(answer)
        })
    })
}
