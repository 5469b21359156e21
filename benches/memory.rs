//! Memory with many open idle shards: a service against a canned endpoint whose shards are all open and empty.
//!
//! Waits until every shard has been read several times, so that all of them poll at the idle pace, and tells the
//! resident memory then and its peak; fails when the peak is above the goal. One process does nothing else, so
//! the peak is that of the service: without `--shards` each size runs in a process of its own. The canned endpoint has no connections: those of a real client are few,
//! because all shards share one.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "support/endpoint.rs"]
mod endpoint;
#[path = "support/settings.rs"]
mod settings;
#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/usage.rs"]
mod usage;

use anyhow::{Context, ensure};
use clap::Parser;
use endpoint::{Endpoint, Script};
use serde_json::json;
use shardwalker::config::{Read, Write};
use shardwalker::service::Service;
use shardwalker::task::Tasks;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use usage::megabytes;

#[derive(Parser)]
struct Arguments {
    /// Open shards; without it each of the sizes that have a goal.
    #[arg(long)]
    shards: Option<usize>,
    /// Peers of the route.
    #[arg(long, default_value_t = 1)]
    peers: usize,
    /// The goal in MB; without it, that of the next larger size that has one.
    #[arg(long)]
    goal: Option<f64>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Sizes in shards and the goal of each in MB.
const GOALS: [(usize, f64); 3] = [(100, 50.0), (1000, 150.0), (10_000, 300.0)];
/// After so many empty reads a shard is read at the idle interval.
const READS: usize = 8;
/// All shards are read that often before this, or the worker is stuck.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let Some(shards) = arguments.shards else { return each_size(arguments.peers) };
    let goal = GOALS.iter().find(|(size, _)| shards <= *size).map_or(f64::INFINITY, |(_, goal)| *goal);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(shards, arguments.peers, arguments.goal.unwrap_or(goal)))
}

/// Runs every size; fails when one of them does.
fn each_size(peers: usize) -> anyhow::Result<()> {
    let mut missed = Vec::new();
    for (shards, _) in GOALS {
        let sizes = ["--shards".to_owned(), shards.to_string(), "--peers".to_owned(), peers.to_string()];
        if !std::process::Command::new(std::env::current_exe()?).args(sizes).status()?.success() {
            missed.push(shards);
        }
    }
    ensure!(missed.is_empty(), "the goal is missed with {missed:?} shards");
    Ok(())
}

async fn measure(shards: usize, peers: usize, goal: f64) -> anyhow::Result<()> {
    let reads: Arc<Vec<AtomicUsize>> = Arc::new((0..shards).map(|_| AtomicUsize::new(0)).collect());
    let waiting = Arc::new((AtomicUsize::new(shards), Notify::new()));
    let (counting, telling) = (Arc::clone(&reads), Arc::clone(&waiting));
    let endpoint = Endpoint::new(Script {
        shards,
        peers,
        read: Box::new(move |shard, position| {
            if counting[shard].fetch_add(1, Ordering::Relaxed) + 1 == READS
                && telling.0.fetch_sub(1, Ordering::AcqRel) == 1
            {
                telling.1.notify_one();
            }
            endpoint::page(shard, [], position)
        }),
    });
    let drain = CancellationToken::new();
    let config = settings::config(peers, Read::default(), Write::default().in_flight);
    let service = Service::build(config, endpoint.options(), drain.clone()).await?;
    let begun = Instant::now();
    let mut tasks = Tasks::new();
    tasks.spawn(service.run());
    tokio::time::timeout(PATIENCE, waiting.1.notified()).await.context("some shards are not read")?;
    let (took, resident, peak) = (begun.elapsed(), megabytes("VmRSS")?, megabytes("VmHWM")?);
    drain.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let least = reads.iter().map(|reads| reads.load(Ordering::Relaxed)).min().unwrap_or_default();
    println!(
        "{shards} open idle shards, {peers} peers, each read {least} times and more in {took:.1?}: \
         resident {resident:.1} MB, peak {peak:.1} MB (goal: under {goal:.0} MB)"
    );
    println!("{}", json!({ "shards": shards, "peers": peers, "resident_mb": resident, "peak_mb": peak }));
    ensure!(peak < goal, "the peak is above the goal");
    Ok(())
}
