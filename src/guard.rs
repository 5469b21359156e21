//! The guard of a route: too many deletes at its source, and the route pauses itself.
//!
//! [`Window`] counts, pure. It goes by the records' times of creation, so that a lane that catches up after an
//! outage sees each minute as it was at the source, not as fast as it is applied; shards may come in any order of
//! time. [`Guard`] closes the route's gates. After a resume its window begins anew: what the operator has let go on
//! counts no more.

use crate::clock::Clock;
use crate::config;
use crate::control::Gates;
use crate::telemetry::metrics::Metrics;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// A window slides in steps of this share of its length, but not of less than a second, as records are.
const STEPS: u64 = 60;
/// Steps that are kept: hours of them; when shards are further apart than that, those furthest away are forgotten.
const KEPT: usize = 10_000;

/// Counts changes and deletes by their time of creation.
#[derive(Debug)]
pub struct Window {
    limits: config::Guard,
    step: u64,
    steps: BTreeMap<u64, Counts>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    changes: u64,
    deletes: u64,
}

/// More was deleted than a guard allows.
#[derive(Debug, Clone, PartialEq)]
pub struct Exceeded {
    counts: Counts,
    limits: config::Guard,
    until: SystemTime,
    /// Whether the number of deletes is too large; else their share is.
    by_number: bool,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { changes, deletes } = self.counts;
        let window = humantime::format_duration(self.limits.window);
        let until = humantime::format_rfc3339_seconds(self.until);
        write!(f, "{deletes} of the {changes} changes created within {window} until {until} are deletes")?;
        match (self.by_number, self.limits.max_deletes, self.limits.max_delete_share) {
            (true, Some(most), _) => write!(f, "; the route's guard allows {most}"),
            (_, _, Some(most)) => write!(f, "; the route's guard allows a share of {most}"),
            (_, _, None) => Ok(()),
        }
    }
}

impl Window {
    /// An empty window.
    #[must_use]
    pub fn new(limits: config::Guard) -> Self {
        let step = (limits.window.as_secs() / STEPS).max(1);
        Self { limits, step, steps: BTreeMap::new() }
    }

    /// Counts a change; says when with it too much was deleted in the window that ends with it.
    pub fn take(&mut self, created: SystemTime, delete: bool) -> Option<Exceeded> {
        let at = created.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / self.step;
        let counts = self.steps.entry(at).or_default();
        counts.changes += 1;
        counts.deletes += u64::from(delete);
        if self.steps.len() > KEPT {
            self.forget(at);
        }
        if !delete {
            return None;
        }
        let first = at.saturating_sub((self.limits.window.as_secs() / self.step).saturating_sub(1));
        let counts = self.steps.range(first..=at).fold(Counts::default(), |sum, (_, step)| Counts {
            changes: sum.changes + step.changes,
            deletes: sum.deletes + step.deletes,
        });
        let by_number = self.limits.max_deletes.is_some_and(|most| counts.deletes > u64::from(most));
        #[expect(clippy::cast_precision_loss, reason = "a share of counts far below 2^52")]
        let share = counts.deletes as f64 / counts.changes as f64;
        let by_share = counts.changes >= u64::from(self.limits.min_changes)
            && self.limits.max_delete_share.is_some_and(|most| share > most);
        let until = UNIX_EPOCH + Duration::from_secs((at + 1) * self.step);
        (by_number || by_share).then(|| Exceeded { counts, limits: self.limits.clone(), until, by_number })
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.steps.clear();
    }

    /// Forgets the step that is furthest from `at`.
    fn forget(&mut self, at: u64) {
        let (Some(first), Some(last)) = (self.steps.keys().next(), self.steps.keys().next_back()) else {
            return;
        };
        let furthest = if at.abs_diff(*first) > at.abs_diff(*last) { *first } else { *last };
        self.steps.remove(&furthest);
    }
}

/// Watches what the lanes of one route and peer take.
#[derive(Debug)]
pub struct Guard {
    route: String,
    peer: String,
    gates: Gates,
    clock: Clock,
    metrics: Metrics,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    window: Window,
    /// When the gate was opened last, as far as this window knows.
    opened: Option<Instant>,
}

impl Guard {
    /// A guard that has seen nothing yet.
    #[must_use]
    pub fn new(
        route: &str,
        peer: &str,
        limits: config::Guard,
        gates: Gates,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        let opened = gates.open_since(route, peer).ok().flatten();
        let inner = Mutex::new(Inner { window: Window::new(limits), opened });
        Self { route: route.to_owned(), peer: peer.to_owned(), gates, clock, metrics, inner }
    }

    /// A lane takes a change that will be applied; the route is paused when it deletes too much.
    pub fn takes(&self, created: SystemTime, delete: bool) {
        let exceeded = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            if let Ok(opened) = self.gates.open_since(&self.route, &self.peer)
                && opened != inner.opened
            {
                inner.opened = opened;
                inner.window.clear();
            }
            inner.window.take(created, delete)
        };
        let Some(exceeded) = exceeded else { return };
        if self.gates.trip(&self.route, &exceeded.to_string(), self.clock) {
            self.metrics.guard_trips.with_label_values(&[&self.route]).inc();
            tracing::error!(
                route = self.route,
                peer = self.peer,
                why = %exceeded,
                "TOO MUCH IS DELETED: the route paused itself; look at the source, then: shardwalker resume {}",
                self.route
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(max_deletes: Option<u32>, max_delete_share: Option<f64>) -> Window {
        let window = Duration::from_secs(60);
        Window::new(config::Guard { window, max_deletes, max_delete_share, min_changes: 10 })
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    #[test]
    fn deletes_of_a_window_are_counted_and_older_ones_forgotten() {
        let mut window = window(Some(3), None);
        for second in [0, 20, 59] {
            assert_eq!(window.take(at(second), true), None);
        }
        // The first one is out of the window by now.
        assert_eq!(window.take(at(60), true), None);
        let exceeded = window.take(at(61), true).unwrap();
        assert_eq!(exceeded.counts, Counts { changes: 4, deletes: 4 });
        assert_eq!(
            exceeded.to_string(),
            "4 of the 4 changes created within 1m until 2027-01-15T08:01:02Z are deletes; the route's guard allows 3"
        );
        window.clear();
        assert_eq!(window.take(at(61), true), None);
    }

    #[test]
    fn a_share_counts_from_enough_changes_on() {
        let mut window = window(None, Some(0.5));
        for _ in 0..4 {
            assert_eq!(window.take(at(0), false), None);
        }
        for _ in 0..5 {
            assert_eq!(window.take(at(1), true), None, "fewer than ten changes");
        }
        let exceeded = window.take(at(2), true).unwrap();
        assert_eq!(exceeded.counts, Counts { changes: 10, deletes: 6 });
        assert!(exceeded.to_string().ends_with("allows a share of 0.5"), "{exceeded}");
        // Changes that are no deletes never trip it.
        assert_eq!(window.take(at(2), false), None);
    }

    #[test]
    fn catching_up_shows_every_minute_as_it_was() {
        let mut window = window(Some(5), None);
        // A day of one delete every twenty seconds, however fast it is taken, and another shard after it.
        for shard in 0..2 {
            for second in (shard..86_400).step_by(40) {
                assert_eq!(window.take(at(second), true), None, "{second}");
            }
        }
        assert!(window.steps.len() <= KEPT);
        assert!((0..6).any(|_| window.take(at(600), true).is_some()));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut window = window(Some(5), None);
        for second in 0..3 * KEPT as u64 {
            window.take(at(second), false);
        }
        assert_eq!(window.steps.len(), KEPT);
        // A shard that is far behind still counts.
        for _ in 0..5 {
            assert_eq!(window.take(at(0), true), None);
        }
        assert!(window.take(at(0), true).is_some());
    }
}
