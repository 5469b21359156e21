//! Time to loss: how long until a record leaves the stream before it was applied.
//!
//! A stream keeps a record for 24 hours. For each route and peer this shows, as a gauge, when the oldest record that
//! this worker has not applied will be gone, and says so in the log on the way down: at 12 hours, 6 hours and one
//! hour, once each. What a worker does not hold it does not know: `shardwalker status` looks at all of them.

use crate::clock::Clock;
use crate::lease::plan::RETENTION;
use crate::telemetry::board::Board;
use crate::telemetry::metrics::Metrics;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Said once each on the way down.
const THRESHOLDS: [Duration; 3] =
    [Duration::from_secs(12 * 3600), Duration::from_secs(6 * 3600), Duration::from_secs(3600)];
/// So far above a threshold it may be said again.
const REARM: Duration = Duration::from_secs(600);
/// The pause between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// An idle shard is read at least this often, whatever `idle_interval` is.
const AT_TIP: Duration = Duration::from_secs(180);

/// The time until the oldest unapplied record, created at `oldest`, leaves the stream; the whole retention when there
/// is none.
#[must_use]
pub fn left(oldest: Option<SystemTime>, now: SystemTime) -> Duration {
    let age = oldest.map_or(Duration::ZERO, |oldest| now.duration_since(oldest).unwrap_or_default());
    RETENTION.saturating_sub(age)
}

/// Which thresholds of one route and peer were said already: pure.
#[derive(Debug, Default)]
struct Thresholds {
    /// How many of [`THRESHOLDS`], from the first.
    said: usize,
}

impl Thresholds {
    /// The threshold that is to be said now, the lowest one that was passed.
    fn pass(&mut self, left: Duration) -> Option<Duration> {
        let passed = THRESHOLDS.iter().filter(|threshold| left <= **threshold).count();
        let kept = THRESHOLDS.iter().filter(|threshold| left <= **threshold + REARM).count();
        let new = passed > self.said;
        self.said = self.said.min(kept).max(passed);
        new.then(|| THRESHOLDS[passed - 1])
    }
}

/// Watches the time to loss of a worker's lanes.
pub struct TimeToLoss {
    board: Board,
    metrics: Metrics,
    clock: Clock,
    thresholds: BTreeMap<(String, String), Thresholds>,
}

impl TimeToLoss {
    /// One that has not looked yet.
    #[must_use]
    pub fn new(board: Board, metrics: Metrics, clock: Clock) -> Self {
        Self { board, metrics, clock, thresholds: BTreeMap::new() }
    }

    /// Looks, again and again, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.look();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn look(&mut self) {
        let now = Instant::now();
        let progress = self.board.progress(now.checked_sub(AT_TIP).unwrap_or(now));
        let mut seen = BTreeMap::new();
        for (route, progress) in progress {
            for (peer, progress) in progress.peers {
                let left = left(progress.oldest, self.clock.now());
                self.metrics.time_to_loss.with_label_values(&[&route, &peer]).set(left.as_secs_f64());
                let name = (route.clone(), peer);
                let mut thresholds = self.thresholds.remove(&name).unwrap_or_default();
                if let Some(threshold) = thresholds.pass(left) {
                    tracing::warn!(
                        route,
                        peer = name.1,
                        left = %humantime::format_duration(Duration::from_secs(left.as_secs())),
                        pending = progress.pending,
                        "changes will be lost: less than {} until the oldest one that is not applied leaves the stream",
                        humantime::format_duration(threshold)
                    );
                }
                seen.insert(name, thresholds);
            }
        }
        // What this worker no longer holds is another's to watch.
        for (route, peer) in self.thresholds.keys() {
            let _ = self.metrics.time_to_loss.remove_label_values(&[route, peer]);
        }
        self.thresholds = seen;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    const fn hours(hours: u64) -> Duration {
        Duration::from_secs(hours * 3600)
    }

    #[test]
    fn a_record_is_gone_a_day_after_its_creation() {
        let now = UNIX_EPOCH + hours(100);
        assert_eq!(left(None, now), hours(24));
        assert_eq!(left(Some(now), now), hours(24));
        assert_eq!(left(Some(now - hours(20)), now), hours(4));
        assert_eq!(left(Some(now - hours(30)), now), Duration::ZERO);
        assert_eq!(left(Some(now + hours(1)), now), hours(24), "clocks differ");
    }

    #[test]
    fn each_threshold_is_said_once_on_the_way_down() {
        let mut thresholds = Thresholds::default();
        assert_eq!(thresholds.pass(hours(24)), None);
        assert_eq!(thresholds.pass(hours(12)), Some(hours(12)));
        assert_eq!(thresholds.pass(hours(11)), None);
        // To and fro around it is not said again.
        assert_eq!(thresholds.pass(hours(12) + Duration::from_secs(5)), None);
        assert_eq!(thresholds.pass(hours(12)), None);
        // Two at once: the lower one.
        assert_eq!(thresholds.pass(Duration::from_secs(60)), Some(hours(1)));
        assert_eq!(thresholds.pass(Duration::ZERO), None);
        // It caught up, and falls behind again.
        assert_eq!(thresholds.pass(hours(23)), None);
        assert_eq!(thresholds.pass(hours(6)), Some(hours(6)));
    }
}
