//! Backfill over a bare loop of Scan and conditional PutItem: the same SDK clients, the same segments, the same requests
//! under way and the same endpoint, taking turns in one run.
//!
//! The source and the peer are canned: pages and answers are prebuilt, so that what is measured is the SDK and what a
//! backfill does beside it. The state table is the sandbox's, so that rows, leases, what is written down and the ledger
//! cost what they cost. Each round measures the loop, the backfill, and the loop again; the median of the rounds counts.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[allow(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/records.rs"]
mod records;
#[path = "support/settings.rs"]
mod settings;
#[allow(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/stage.rs"]
mod stage;
#[allow(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/tap.rs"]
mod tap;

use anyhow::{Context, ensure};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnConsumedCapacity, ReturnValuesOnConditionCheckFailure};
use aws_smithy_runtime_api::client::http::{HttpConnector as _, HttpConnectorFuture, SharedHttpClient};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use settings::STAMP;
use shardwalker::aws::Aws;
use shardwalker::backfill::{Backfill, Ended, Request};
use shardwalker::config::Read;
use shardwalker::json::from_item;
use shardwalker::sandbox;
use shardwalker::service::Options;
use shardwalker::task::Tasks;
use shardwalker::version::{Stamp, Version};
use stage::Stage;
use std::sync::Arc;
use std::time::Duration;
use tap::{operation, tapped};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Arguments {
    /// Items of a round.
    #[arg(long, default_value_t = 16_000)]
    items: usize,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// As many as a process works on at a time.
const SEGMENTS: usize = 4;
/// Requests under way at the peer, of all segments together.
const CONCURRENCY: usize = 64;
/// Items of a page.
const PAGE: usize = 1000;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(&arguments))?;
    println!("{figures}");
    Ok(())
}

async fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let table: Arc<Vec<Vec<u8>>> = Arc::new((0..arguments.items).map(line).collect());
    let mut rounds = Vec::new();
    for _ in 0..arguments.rounds {
        let stage = Stage::new(sandbox::Options::default(), 1)?;
        stage.stream().await?;
        let before = bare(options(&stage, &table, 1), arguments.items).await?;
        let ours = backfill(options(&stage, &table, 2), arguments.items).await?;
        let after = bare(options(&stage, &table, 3), arguments.items).await?;
        rounds.push(((before + after) / 2, ours));
    }
    let median = |value: &dyn Fn(&(Duration, Duration)) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let items = arguments.items as f64;
    Ok(json!({
        "items": arguments.items,
        "rounds": rounds.len(),
        "bare_items_per_second": median(&|(bare, _)| items / bare.as_secs_f64()).round(),
        "backfill_items_per_second": median(&|(_, ours)| items / ours.as_secs_f64()).round(),
        "ratio": median(&|(bare, ours)| bare.as_secs_f64() / ours.as_secs_f64()),
    }))
}

fn line(index: usize) -> Vec<u8> {
    from_item(&records::item(index, 1)).to_string().into_bytes()
}

/// The sandbox with a canned source and a canned peer before it.
fn options(stage: &Stage, table: &Arc<Vec<Vec<u8>>>, seed: u64) -> Options {
    let mut options = stage.options(seed);
    let table = Arc::clone(table);
    options.base.http = options.base.http.map(|http| canned(http, table));
    options
}

fn canned(http: SharedHttpClient, table: Arc<Vec<Vec<u8>>>) -> SharedHttpClient {
    tapped(http, move |connector, request| {
        let member = request.body().bytes().filter(|body| body.starts_with(b"{\"TableName\":\"arn:"));
        let answer = match (operation(&request), member) {
            ("Scan", Some(body)) => page(&table, body),
            ("PutItem", Some(_)) => Bytes::from_static(b"{}"),
            _ => return connector.call(request),
        };
        HttpConnectorFuture::new(async move {
            // No answer of a network is there in the same turn.
            tokio::task::yield_now().await;
            let ok = http::Response::new(SdkBody::from(answer));
            HttpResponse::try_from(ok).map_err(|error| ConnectorError::user(error.into()))
        })
    })
}

/// A page of a segment: every so many-th item, after the one that the request names.
fn page(table: &[Vec<u8>], body: &[u8]) -> Bytes {
    let asked: Value = serde_json::from_slice(body).unwrap_or_default();
    let number = |name: &str| asked[name].as_u64().unwrap_or(1) as usize;
    let (segment, segments, limit) = (number("Segment"), number("TotalSegments"), number("Limit"));
    let after = asked["ExclusiveStartKey"]["id"]["S"].as_str().map(|key| index(key) + segments);
    let begin = after.unwrap_or(if segments == 1 { 0 } else { segment });
    let indices: Vec<usize> = (begin..table.len()).step_by(segments).take(limit).collect();
    let mut answer = b"{\"Items\":[".to_vec();
    for (place, index) in indices.iter().enumerate() {
        if place > 0 {
            answer.push(b',');
        }
        answer.extend_from_slice(&table[*index]);
    }
    answer.extend_from_slice(b"],\"ConsumedCapacity\":{\"CapacityUnits\":128.0}");
    if let Some(last) = indices.last().filter(|last| **last + segments < table.len()) {
        let key = json!({ "id": { "S": format!("order-{last:012}") } });
        answer.extend_from_slice(format!(",\"LastEvaluatedKey\":{key}").as_bytes());
    }
    answer.push(b'}');
    answer.into()
}

fn index(key: &str) -> usize {
    key.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

async fn backfill(options: Options, items: usize) -> anyhow::Result<Duration> {
    let config = settings::config(1, Read::default(), CONCURRENCY);
    let request = Request {
        route: "orders".to_owned(),
        segments: Some(SEGMENTS as u32),
        restart: true,
        ..Request::default()
    };
    let built = Backfill::build(config, request, options, None, CancellationToken::new());
    let backfill = Box::pin(built).await?;
    let (pictures, seen) = watch::channel(None);
    let begun = Instant::now();
    let ended = Box::pin(backfill.run(pictures)).await?;
    let took = begun.elapsed();
    ensure!(ended == Ended::Done, "{ended:?}");
    let copied = seen.borrow().as_ref().map(|picture| picture.totals.items);
    ensure!(copied == Some(items as u64), "{copied:?} items copied");
    Ok(took)
}

async fn bare(options: Options, items: usize) -> anyhow::Result<Duration> {
    let client = Aws::new(options.base).clients(&settings::access()).await.tables;
    let stamp = Stamp::of(&records::item(0, 1), Version::default()).to_string();
    let begun = Instant::now();
    let mut tasks = Tasks::new();
    for segment in 0..SEGMENTS {
        tasks.spawn(bare_segment(client.clone(), segment, stamp.clone()));
    }
    let mut copied = 0;
    while let Some(ended) = tasks.join_next().await {
        copied += ended??;
    }
    let took = begun.elapsed();
    ensure!(copied == items, "{copied} items copied");
    Ok(took)
}

async fn bare_segment(client: Client, segment: usize, stamp: String) -> anyhow::Result<usize> {
    let (source, peer) = (settings::table(0).to_string(), settings::table(1).to_string());
    let (mut after, mut copied) = (None, 0);
    loop {
        let scan = client
            .scan()
            .table_name(&source)
            .consistent_read(true)
            .limit(PAGE as i32)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .segment(segment as i32)
            .total_segments(SEGMENTS as i32)
            .set_exclusive_start_key(after);
        let page = scan.send().await.context("Scan")?;
        let puts = page.items.unwrap_or_default().into_iter().map(|mut item| {
            item.insert(STAMP.to_owned(), AttributeValue::S(stamp.clone()));
            let put = client
                .put_item()
                .table_name(&peer)
                .set_item(Some(item))
                .condition_expression("attribute_not_exists(#pk)")
                .expression_attribute_names("#pk", "id")
                .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
            async move { put.send().await.context("PutItem") }
        });
        copied += stream::iter(puts)
            .buffer_unordered(CONCURRENCY / SEGMENTS)
            .try_fold(0, |count, _| async move { Ok(count + 1) })
            .await?;
        after = page.last_evaluated_key;
        if after.is_none() {
            return Ok(copied);
        }
    }
}
