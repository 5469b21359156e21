//! The only place that reads the wall clock.
//!
//! A [`Clock`] is a wall clock that advances with tokio's time, so that a test with paused time turns both
//! together. Durations and timeouts use [`tokio::time::Instant`]; the wall clock is only for what leaves the
//! process (drift ceiling, lag against a record's creation time, expiry of rows).

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// A wall clock that follows tokio's time from a starting point. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: Duration,
    since: Instant,
}

impl Clock {
    /// The machine's clock, read once; steps of the machine's clock after that are not followed, which keeps
    /// lags and ceilings steady. Must be called within a tokio runtime when its time is paused.
    #[must_use]
    pub fn system() -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the owner of the wall clock")]
        let now = SystemTime::now();
        Self::starting_at(now)
    }

    /// A clock that shows `wall` now. Times before 1970 count as 1970.
    #[must_use]
    pub fn starting_at(wall: SystemTime) -> Self {
        Self { wall: wall.duration_since(UNIX_EPOCH).unwrap_or_default(), since: Instant::now() }
    }

    /// The time since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn since_epoch(&self) -> Duration {
        self.wall + self.since.elapsed()
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn millis(&self) -> u64 {
        u64::try_from(self.since_epoch().as_millis()).unwrap_or(u64::MAX)
    }

    /// The wall clock's time.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        UNIX_EPOCH + self.since_epoch()
    }
}
