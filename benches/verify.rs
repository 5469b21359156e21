//! A comparison over a bare scan of both tables: the same SDK clients, the same segments at the same time and the same
//! endpoint, taking turns in one run.
//!
//! The members are canned: pages are made up, so that what is measured is the SDK and what a comparison does beside it.
//! Each round measures the scans, the comparison, and the scans again; the median of the rounds counts.

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
use aws_sdk_dynamodb::types::ReturnConsumedCapacity;
use clap::Parser;
use futures::future::try_join_all;
use moving::{Figures, Members, PAGE, SEGMENTS};
use serde_json::Value;
use shardwalker::aws::Aws;
use shardwalker::sandbox;
use shardwalker::service::Options;
use shardwalker::task::Tasks;
use stage::Stage;
use usage::{Stopwatch, Took};

#[derive(Parser)]
struct Arguments {
    /// Items of each table.
    #[arg(long, default_value_t = 100_000)]
    items: usize,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
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
    let mut figures = Figures::new("verify", items);
    for _ in 0..arguments.rounds {
        let stage = Stage::new(sandbox::Options::default(), 1)?;
        stage.stream().await?;
        moving::state(&stage).await?;
        let members = Members::new(items);
        let before = bare(members.options(&stage, 1), items).await?;
        let ours = moving::verify(members.options(&stage, 2), items).await?;
        let after = bare(members.options(&stage, 3), items).await?;
        figures.round(before, ours, after);
    }
    Ok(figures.told())
}

async fn bare(options: Options, items: usize) -> anyhow::Result<Took> {
    let client = Aws::new(options.base).clients(&settings::access()).await.tables;
    let clock = Stopwatch::start()?;
    let mut tasks = Tasks::new();
    for segment in 0..SEGMENTS {
        let client = client.clone();
        tasks.spawn(async move {
            // Both tables at the same time, as a comparison reads them.
            let both = (0..2).map(|member| scan(&client, member, segment));
            try_join_all(both).await
        });
    }
    let mut read = [0, 0];
    while let Some(ended) = tasks.join_next().await {
        for (member, count) in ended??.into_iter().enumerate() {
            read[member] += count;
        }
    }
    let took = clock.stop()?;
    ensure!(read == [items; 2], "{read:?} items read");
    Ok(took)
}

async fn scan(client: &Client, member: usize, segment: usize) -> anyhow::Result<usize> {
    let (table, mut after, mut read) = (settings::table(member).to_string(), None, 0);
    loop {
        let scan = client
            .scan()
            .table_name(&table)
            .consistent_read(false)
            .limit(PAGE as i32)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .segment(segment as i32)
            .total_segments(SEGMENTS as i32)
            .set_exclusive_start_key(after);
        let page = scan.send().await.context("Scan")?;
        read += page.items.unwrap_or_default().len();
        after = page.last_evaluated_key;
        if after.is_none() {
            return Ok(read);
        }
    }
}
