//! Memory of a backfill and of a comparison with tables of 10,000, 100,000 and 1,000,000 items: once pages are as large as they
//! become, it must not depend on them.
//!
//! The members are canned: their pages are made up and their puts forgotten, so that the peak is that of the work, with
//! the state table's sandbox, which is the same at every size. One process does one thing with one size; without
//! `--work` each of them runs in a process of its own, and the run fails when the largest needs much more than the one before
//! it. With 10,000 items a backfill's pages are still small.

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
#[path = "support/usage.rs"]
mod usage;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use moving::Members;
use serde_json::{Value, json};
use shardwalker::sandbox;
use stage::Stage;
use std::process::{Command, Stdio};
use usage::megabytes;

#[derive(Parser)]
struct Arguments {
    /// What is done; without it, both with each of the sizes.
    #[arg(long)]
    work: Option<Work>,
    /// Items of the tables; without it, each of the sizes.
    #[arg(long)]
    items: Option<usize>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Work {
    Backfill,
    Verify,
}

const SIZES: [usize; 3] = [10_000, 100_000, 1_000_000];
/// The most that the largest size may need over the one before it: what an allocator keeps differs from run to run.
const FLAT: f64 = 1.15;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (works, sizes) = (arguments.work, arguments.items);
    if let (Some(work), Some(items)) = (works, sizes) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(measure(work, items));
    }
    let works = works.map_or_else(|| vec![Work::Backfill, Work::Verify], |work| vec![work]);
    let sizes = sizes.map_or_else(|| SIZES.to_vec(), |items| vec![items]);
    let mut missed = Vec::new();
    for work in works {
        let peaks = sizes.iter().map(|items| apart(work, *items)).collect::<anyhow::Result<Vec<f64>>>()?;
        let growth = match peaks.as_slice() {
            [.., before, largest] => largest / before,
            _ => 1.0,
        };
        println!("{}", json!({ "work": name(work), "peaks_mb": peaks, "growth": growth }));
        if growth > FLAT {
            missed.push(name(work));
        }
    }
    ensure!(missed.is_empty(), "memory grows with the table: {missed:?}");
    Ok(())
}

fn name(work: Work) -> &'static str {
    match work {
        Work::Backfill => "backfill",
        Work::Verify => "verify",
    }
}

/// The peak in a process of its own.
fn apart(work: Work, items: usize) -> anyhow::Result<f64> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--work", name(work), "--items", &items.to_string()]).stderr(Stdio::inherit());
    let output = command.output()?;
    ensure!(output.status.success(), "{} of {items} items failed", name(work));
    let told: Value = serde_json::from_slice(&output.stdout)?;
    println!("{told}");
    told["peak_mb"].as_f64().context("no peak")
}

async fn measure(work: Work, items: usize) -> anyhow::Result<()> {
    let stage = Stage::new(sandbox::Options::default(), 1)?;
    stage.stream().await?;
    moving::state(&stage).await?;
    let (options, before) = (Members::new(items).options(&stage, 1), megabytes("VmRSS")?);
    let took = match work {
        Work::Backfill => moving::backfill(options, items).await?,
        Work::Verify => moving::verify(options, items).await?,
    };
    let peak = megabytes("VmHWM")?;
    println!(
        "{}",
        json!({ "work": name(work), "items": items, "seconds": took.wall.as_secs_f64(), "before_mb": before, "peak_mb": peak })
    );
    Ok(())
}
