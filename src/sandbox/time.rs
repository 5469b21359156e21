//! The sandbox's one clock.
//!
//! Wall time is a base plus the time that tokio's clock has run since, plus what [`VirtualClock::advance`]
//! added: a test with paused time turns it, and retention or expiry can be tried without waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// The clock of one sandbox; clones share it.
#[derive(Debug, Clone)]
pub struct VirtualClock {
    base_ms: u64,
    since: Instant,
    advanced_ms: Arc<AtomicU64>,
}

impl VirtualClock {
    /// A clock that shows `start` now. Times before 1970 count as 1970.
    #[must_use]
    pub fn starting_at(start: SystemTime) -> Self {
        let base = start.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { base_ms: millis(base), since: Instant::now(), advanced_ms: Arc::default() }
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.base_ms + millis(self.since.elapsed()) + self.advanced_ms.load(Ordering::Relaxed)
    }

    /// The wall time.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.now_ms())
    }

    /// Moves the clock forward, at once and for everybody.
    pub fn advance(&self, by: Duration) {
        self.advanced_ms.fetch_add(millis(by), Ordering::Relaxed);
    }
}

/// Whole milliseconds of a duration.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl dynoxide::storage_backend::Clock for VirtualClock {
    fn now_unix_secs(&self) -> u64 {
        self.now_ms() / 1000
    }

    fn now_unix_secs_f64(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of wall time are far below 2^52")]
        let ms = self.now_ms() as f64;
        ms / 1000.0
    }
}

impl aws_smithy_async::time::TimeSource for VirtualClock {
    fn now(&self) -> SystemTime {
        VirtualClock::now(self)
    }
}

/// What was set and when it takes effect: AWS applies policies seconds after it accepted them.
#[derive(Debug, Clone, Default)]
pub struct Propagating<T> {
    current: T,
    previous: Option<(T, u64)>,
}

impl<T: Clone> Propagating<T> {
    /// A value that has always been there.
    #[must_use]
    pub fn settled(value: T) -> Self {
        Self { current: value, previous: None }
    }

    /// Sets the value, to take effect at `effective_ms`.
    pub fn set(&mut self, value: T, now_ms: u64, effective_ms: u64) {
        let seen = self.effective(now_ms).clone();
        self.previous = (effective_ms > now_ms).then_some((seen, effective_ms));
        self.current = value;
    }

    /// What decides at `now_ms`.
    #[must_use]
    pub fn effective(&self, now_ms: u64) -> &T {
        match &self.previous {
            Some((value, until)) if now_ms < *until => value,
            _ => &self.current,
        }
    }

    /// What was set last, in effect or not.
    #[must_use]
    pub fn latest(&self) -> &T {
        &self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_follows_paused_time_and_advances() {
        let clock = VirtualClock::starting_at(UNIX_EPOCH + Duration::from_secs(1_000));
        assert_eq!(clock.now_ms(), 1_000_000);
        tokio::time::advance(Duration::from_secs(2)).await;
        clock.advance(Duration::from_secs(3));
        assert_eq!(clock.now_ms(), 1_005_000);
    }

    #[test]
    fn a_value_takes_effect_when_it_has_propagated() {
        let mut value = Propagating::settled(1);
        value.set(2, 10, 20);
        assert_eq!((*value.effective(19), *value.effective(20), *value.latest()), (1, 2, 2));
        value.set(3, 15, 15);
        assert_eq!(*value.effective(15), 3);
    }
}
