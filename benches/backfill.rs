//! Backfill over a bare loop of Scan and conditional PutItem: the same SDK clients, the same segments, the same requests
//! under way and the same endpoint, taking turns in one run.
//!
//! The members are canned, and so is the ledger: pages and answers are made up, so that what is measured is the SDK and
//! what a backfill does beside it. The rest of the state table is the sandbox's, so that rows, leases and what is written
//! down cost what they cost. Each round measures the loop, the backfill, and the loop again; the median of the rounds
//! counts. CPU time is that of the whole process.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "support/canned.rs"]
mod canned;
#[path = "support/moving.rs"]
mod moving;
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
#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/usage.rs"]
mod usage;

use anyhow::{Context, ensure};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnConsumedCapacity, ReturnValuesOnConditionCheckFailure};
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use moving::{CONCURRENCY, Figures, Members, PAGE, SEGMENTS};
use serde_json::Value;
use settings::STAMP;
use shardwalker::aws::Aws;
use shardwalker::sandbox;
use shardwalker::service::Options;
use shardwalker::task::Tasks;
use shardwalker::version::{Stamp, Version};
use stage::Stage;
use std::time::Duration;
use usage::{Stopwatch, Took};

#[derive(Parser)]
struct Arguments {
    /// Items of a round.
    #[arg(long, default_value_t = 64_000)]
    items: usize,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The sandbox answers for the ledger as well, and takes its time for it.
    #[arg(long)]
    ledger: bool,
    /// Milliseconds that every request of both takes on its way, there and back.
    #[arg(long, default_value_t = 0)]
    latency: u64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(&arguments))?;
    println!("{figures}");
    Ok(())
}

async fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let items = arguments.items;
    let members =
        Members { items, ledger: !arguments.ledger, latency: Duration::from_millis(arguments.latency) };
    let mut figures = Figures::new("backfill", items);
    for _ in 0..arguments.rounds {
        let stage = Stage::new(sandbox::Options::default(), 1)?;
        stage.stream().await?;
        let before = bare(members.options(&stage, 1), items).await?;
        let ours = moving::backfill(members.options(&stage, 2), items).await?;
        let after = bare(members.options(&stage, 3), items).await?;
        figures.round(before, ours, after);
    }
    Ok(figures.told())
}

async fn bare(options: Options, items: usize) -> anyhow::Result<Took> {
    let client = Aws::new(options.base).clients(&settings::access()).await.tables;
    let stamp = Stamp::of(&records::item(0, 1).into(), Version::default()).to_string();
    let clock = Stopwatch::start()?;
    let mut tasks = Tasks::new();
    for segment in 0..SEGMENTS {
        tasks.spawn(bare_segment(client.clone(), segment, stamp.clone()));
    }
    let mut copied = 0;
    while let Some(ended) = tasks.join_next().await {
        copied += ended??;
    }
    let took = clock.stop()?;
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
