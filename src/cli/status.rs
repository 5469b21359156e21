//! `status`: all workers together, from the state table alone.

use super::table::table;
use super::{ConfigArg, FOUND, answer, complain};
use crate::clock::Clock;
use crate::gaps::Gaps;
use crate::status::{Look, Reader, Status, assemble, moved};
use anyhow::Context as _;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Wait for this, then print; exit with 1 when it takes too long
    #[arg(long, value_enum, value_name = "STATE")]
    wait: Option<Wait>,
    /// How long to wait
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "10min")]
    timeout: Duration,
    /// Print every shard
    #[arg(long)]
    shards: bool,
    /// The gaps of a route are made up for: they need no operator any more
    #[arg(long, value_name = "ROUTE")]
    settle_gaps: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wait {
    /// Every peer has all that was written before
    CaughtUp,
    /// A backfill was begun, and all that were are done
    Backfilled,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let state = super::state_table(&config).await?;
    let clock = Clock::system();
    if let Some(route) = &args.settle_gaps {
        super::pause::check(&config, route, None)?;
        let settled = Gaps::new(state.clone(), clock).settle(route, &super::pause::whoami()).await;
        complain(&format!("route {route}: {} gaps settled", settled.context("the gaps were not settled")?));
    }
    let reader = Reader { config: &config, state, clock };
    let (beat, lease) = (config.lease.renew_interval, config.lease.duration);
    let look = || async { reader.look().await.context("the state table could not be read") };
    let first = look().await?;
    let (status, in_time) = match args.wait {
        None => (settled(&first, beat, lease, look).await?, true),
        Some(Wait::Backfilled) => {
            let begun = Instant::now();
            loop {
                let status = settled(&look().await?, beat, lease, look).await?;
                let (done, late) = (status.backfilled(), begun.elapsed() >= args.timeout);
                if done || late {
                    break (status, done);
                }
                tokio::time::sleep(beat.min(args.timeout.saturating_sub(begun.elapsed()))).await;
            }
        }
        Some(Wait::CaughtUp) => {
            reader.caught_up(args.timeout).await.context("the state table could not be read")?
        }
    };
    if args.json {
        answer(&serde_json::to_string_pretty(&status)?);
    } else {
        print(&status, args.shards);
    }
    if !in_time {
        complain(match args.wait {
            Some(Wait::Backfilled) => "not every backfill was done in time",
            Some(Wait::CaughtUp) | None => "not every peer has caught up in time",
        });
    }
    let fine = in_time && (status.problems.is_empty() || args.wait.is_some());
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// The status of a look; whoever seems dead is looked at again a beat later.
async fn settled<F>(
    first: &Look,
    beat: Duration,
    lease: Duration,
    look: impl Fn() -> F,
) -> anyhow::Result<Status>
where
    F: Future<Output = anyhow::Result<Look>>,
{
    let status = assemble(first, &[], lease);
    if status.workers.values().all(|worker| worker.alive) {
        return Ok(status);
    }
    // Beats are spread by a fifth.
    tokio::time::sleep(beat * 3 / 2).await;
    let second = look().await?;
    Ok(assemble(&second, &moved(first, &second), lease))
}

fn print(status: &Status, shards: bool) {
    let seconds = |seconds: u64| humantime::format_duration(Duration::from_secs(seconds)).to_string();
    let workers: Vec<[String; 4]> = status
        .workers
        .iter()
        .map(|(name, worker)| {
            let held = worker.shards.iter().map(|(route, count)| format!("{route} {count}"));
            [
                name.clone(),
                if worker.alive { "alive" } else { "dead" }.to_owned(),
                format!("{} ago", seconds(worker.beat_seconds_ago)),
                if worker.backfill { "backfill".to_owned() } else { held.collect::<Vec<_>>().join(", ") },
            ]
        })
        .collect();
    answer(&table(["WORKER", "STATE", "BEAT", "SHARDS"], &workers));
    let mut peers = Vec::new();
    for (name, route) in &status.routes {
        for (peer, state) in &route.peers {
            let letters = state.dead_letters;
            let how = match (&state.paused, state.caught_up) {
                _ if route.idle => "idle",
                (Some(_), _) => "paused",
                (None, true) => "caught up",
                (None, false) => "behind",
            };
            peers.push([
                name.clone(),
                peer.clone(),
                how.to_owned(),
                seconds(state.lag_seconds),
                state.pending.to_string(),
                seconds(state.time_to_loss_seconds),
                format!("{} refused, {} behind", letters.refused, letters.behind),
                format!("{} open, {} done", route.shards.len(), route.done),
            ]);
        }
    }
    let header = ["ROUTE", "PEER", "STATE", "LAG", "PENDING", "TIME TO LOSS", "DEAD LETTERS", "SHARDS"];
    answer(&format!("\n{}", table(header, &peers)));
    print_backfills(status);
    if shards {
        print_shards(status);
    }
    for (name, route) in &status.routes {
        for (peer, pause) in
            route.peers.iter().filter_map(|(peer, state)| Some((peer, state.paused.as_ref()?)))
        {
            answer(&format!("\nroute {name}, peer {peer}: {pause}"));
        }
    }
    for problem in &status.problems {
        answer(&format!("\n{}\n  {}", problem.what, problem.remedy));
    }
}

fn print_backfills(status: &Status) {
    let backfills = status.routes.values().flat_map(|route| &route.backfills);
    let rows: Vec<[String; 7]> = backfills
        .map(|backfill| {
            [
                backfill.route.clone(),
                backfill.peer.clone().unwrap_or_else(|| "all".to_owned()),
                backfill.state.to_owned(),
                backfill.begun.clone(),
                format!("{} of about {}", backfill.totals.items, backfill.items_expected),
                format!("{} of {}", backfill.segments.done, backfill.segments.all),
                backfill.owners.join(", "),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let header = ["BACKFILL", "PEERS", "STATE", "BEGUN", "ITEMS", "SEGMENTS DONE", "HELD BY"];
        answer(&format!("\n{}", table(header, &rows)));
    }
}

fn print_shards(status: &Status) {
    let mut rows = Vec::new();
    for (name, route) in &status.routes {
        for shard in &route.shards {
            for (peer, checkpoint) in &shard.peers {
                let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
                rows.push([
                    name.clone(),
                    shard.shard.clone(),
                    or(&shard.owner),
                    peer.clone(),
                    if checkpoint.done { "done".to_owned() } else { or(&checkpoint.created) },
                    or(&checkpoint.sequence),
                ]);
            }
        }
    }
    let header = ["ROUTE", "SHARD", "HELD BY", "PEER", "APPLIED TO", "SEQUENCE"];
    answer(&format!("\n{}", table(header, &rows)));
}
