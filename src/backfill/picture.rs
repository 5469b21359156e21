//! How far a backfill is, all processes together: what `status`, the bar and `--json` show.

use super::counts::{Fate, Totals};
use super::rows::{Known, State};
use serde::Serialize;
use std::time::{Duration, SystemTime};

/// How far a backfill is. Serialises to what `--json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Picture {
    /// The route.
    pub route: String,
    /// The only peer that it is for; `None` for all of the route's.
    pub peer: Option<String>,
    /// Counts backfills of the same peers.
    pub run: u64,
    /// `running`, `stopped` or `done`.
    pub state: &'static str,
    /// Why it is stopped.
    pub why: Option<String>,
    /// `scan`, or an export's ARN.
    pub source: String,
    /// What becomes of items that we did not write.
    pub on_existing: &'static str,
    /// When it began (RFC 3339).
    pub begun: String,
    /// Seconds since then, or until it was done.
    pub seconds: u64,
    /// Its segments.
    pub segments: Segments,
    /// About how many items there are, as DynamoDB said when it began: its count is some hours old.
    pub items_expected: u64,
    /// And their bytes.
    pub bytes_expected: u64,
    /// What is done.
    #[serde(flatten)]
    pub totals: Totals,
    /// Who works on it.
    #[serde(skip)]
    pub owners: Vec<String>,
}

/// How many segments are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Segments {
    /// All of them.
    pub all: u32,
    /// Somebody works on them.
    pub held: u32,
    /// They are done.
    pub done: u32,
}

impl Picture {
    /// Of what the rows show.
    #[must_use]
    pub fn of(route: &str, known: &Known, now: SystemTime) -> Self {
        let job = &known.job;
        let (state, why) = match &job.state {
            State::Running => ("running", None),
            State::Stopped(why) => ("stopped", Some(why.clone())),
            State::Done => ("done", None),
        };
        let until = if job.state == State::Done { job.since } else { now };
        let mut owners: Vec<String> = known.segments.iter().filter_map(|s| s.owner.clone()).collect();
        let held = owners.len() as u32;
        owners.sort_unstable();
        owners.dedup();
        let done = known.segments.iter().filter(|segment| segment.done).count() as u32;
        Self {
            route: route.to_owned(),
            peer: known.peer.clone(),
            run: job.run,
            state,
            why,
            source: job.source.clone(),
            on_existing: job.existing.name(),
            begun: humantime::format_rfc3339_seconds(job.begun).to_string(),
            seconds: until.duration_since(job.begun).unwrap_or_default().as_secs(),
            segments: Segments { all: job.segments, held, done },
            items_expected: job.items,
            bytes_expected: job.bytes,
            totals: known.totals(),
            owners,
        }
    }

    /// Items of a fate, at all peers together.
    #[must_use]
    pub fn count(&self, fate: Fate) -> u64 {
        self.totals.peers.values().map(|fates| fates.get(fate)).sum()
    }

    /// How much is done, from 0 to 1, as far as that can be known: by items where DynamoDB has counted them, else by
    /// segments. Below 1 until all is done.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        if self.state == "done" {
            return 1.0;
        }
        let by_segments = f64::from(self.segments.done) / f64::from(self.segments.all.max(1));
        let by_items = self.totals.items as f64 / self.items_expected.max(1) as f64;
        let known = if self.items_expected == 0 { by_segments } else { by_items };
        known.clamp(0.0, 0.99)
    }

    /// The time that is left at this rate of items a second; `None` when nothing can be said.
    #[must_use]
    pub fn left(&self, rate: f64) -> Option<Duration> {
        let items = self.items_expected.checked_sub(self.totals.items).filter(|items| *items > 0)?;
        Duration::try_from_secs_f64(items as f64 / rate).ok().filter(|_| rate > 0.0)
    }
}
