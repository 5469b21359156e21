//! What the benchmarks of moving a table have in common: a backfill and a comparison of canned members, and the figures
//! of rounds.

use super::canned::canned;
use super::settings;
use super::stage::Stage;
use super::tap::delayed;
use super::usage::{Stopwatch, Took, spread};
use anyhow::ensure;
use serde_json::{Value, json};
use shardwalker::backfill::{Backfill, Ended, Request};
use shardwalker::config::Read;
use shardwalker::service::{Options, Service};
use shardwalker::verify::record::Record;
use shardwalker::verify::{self, Verify};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// As many as a process works on at a time.
pub(crate) const SEGMENTS: usize = 4;
/// Requests under way at the peer, of all segments together.
pub(crate) const CONCURRENCY: usize = 64;
/// Items of a page of a bare loop.
#[allow(dead_code, reason = "not every benchmark has a bare loop")]
pub(crate) const PAGE: usize = 1000;

/// What is before the sandbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Members {
    /// Items that they hold.
    pub(crate) items: usize,
    /// Whether the ledger is canned, too.
    pub(crate) ledger: bool,
    /// What every request takes on its way, there and back.
    pub(crate) latency: Duration,
}

impl Members {
    #[allow(dead_code, reason = "not every benchmark has them so")]
    pub(crate) fn new(items: usize) -> Self {
        Self { items, ledger: true, latency: Duration::ZERO }
    }

    /// The sandbox with canned members before it; the seed must be its own.
    pub(crate) fn options(self, stage: &Stage, seed: u64) -> Options {
        let mut options = stage.options(seed);
        let http = options.base.http.map(|http| canned(http, self.items, self.ledger));
        let far = !self.latency.is_zero();
        options.base.http = http.map(|http| if far { delayed(http, self.latency) } else { http });
        options
    }
}

/// Makes the state table.
#[allow(dead_code, reason = "a backfill makes it itself")]
pub(crate) async fn state(stage: &Stage) -> anyhow::Result<()> {
    let config = settings::config(1, Read::default(), CONCURRENCY);
    Service::build(config, stage.options(9), CancellationToken::new()).await?;
    Ok(())
}

/// What a backfill takes.
#[allow(dead_code, reason = "not every benchmark has one")]
pub(crate) async fn backfill(options: Options, items: usize) -> anyhow::Result<Took> {
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
    let clock = Stopwatch::start()?;
    let ended = Box::pin(backfill.run(pictures)).await?;
    let took = clock.stop()?;
    ensure!(ended == Ended::Done, "{ended:?}");
    let copied = seen.borrow().as_ref().map(|picture| picture.totals.items);
    ensure!(copied == Some(items as u64), "{copied:?} items copied");
    Ok(took)
}

/// What a comparison takes.
#[allow(dead_code, reason = "not every benchmark has one")]
pub(crate) async fn verify(options: Options, items: usize) -> anyhow::Result<Took> {
    let config = settings::config(1, Read::default(), CONCURRENCY);
    let request = verify::Request {
        of: "orders".to_owned(),
        peer: None,
        sample: None,
        segments: Some(SEGMENTS as u32),
        parallel: SEGMENTS,
        read_units: None,
        consistent: false,
        settle: Duration::from_secs(30),
        repair: false,
        prefer: None,
        stop_after: None,
        max_deletes: 0,
    };
    let built = Verify::build(config, request, options, Record::nowhere(), CancellationToken::new());
    let verify = Box::pin(built).await?;
    let clock = Stopwatch::start()?;
    let tally = Box::pin(verify.run()).await?;
    let took = clock.stop()?;
    ensure!(tally.equal == items as u64 && tally.remaining() == 0, "{tally:?}");
    Ok(took)
}

/// Rounds of a bare loop, ours, and the loop again.
#[allow(dead_code, reason = "not every benchmark has a bare loop")]
pub(crate) struct Figures {
    what: &'static str,
    items: usize,
    rounds: Vec<(Took, Took)>,
}

#[allow(dead_code, reason = "not every benchmark has a bare loop")]
impl Figures {
    pub(crate) fn new(what: &'static str, items: usize) -> Self {
        Self { what, items, rounds: Vec::new() }
    }

    pub(crate) fn round(&mut self, before: Took, ours: Took, after: Took) {
        let bare = Took::between(before, after);
        self.rounds.push((bare, ours));
    }

    /// The medians, and the range of the ratio.
    pub(crate) fn told(&self) -> Value {
        let of = |value: &dyn Fn(&(Took, Took)) -> f64| spread(&self.rounds, value);
        let items = self.items as f64;
        let (ratio, lowest, highest) = of(&|(bare, ours)| bare.wall.as_secs_f64() / ours.wall.as_secs_f64());
        json!({
            "what": self.what,
            "items": self.items,
            "rounds": self.rounds.len(),
            "bare_items_per_second": of(&|(bare, _)| items / bare.wall.as_secs_f64()).0.round(),
            "items_per_second": of(&|(_, ours)| items / ours.wall.as_secs_f64()).0.round(),
            "ratio": ratio,
            "lowest_ratio": lowest,
            "highest_ratio": highest,
            "cpu_ratio": of(&|(bare, ours)| bare.cpu.as_secs_f64() / ours.cpu.as_secs_f64()).0,
        })
    }
}
