//! The only place that reads the wall clock.
//!
//! A [`Clock`] is the machine's clock, or one that advances with tokio's time, so that a test with paused time
//! turns both together. Durations and timeouts use [`tokio::time::Instant`]; the wall clock is only for what leaves
//! the process (drift ceiling, lag against a record's creation time, expiry of rows).

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// A wall clock. Cheap to copy; copies show the same time.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Source);

#[derive(Debug, Clone, Copy)]
enum Source {
    Machine,
    Tokio { wall: Duration, since: Instant, off: &'static AtomicI64 },
}

impl Clock {
    /// The machine's clock, with every step that is made to it.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::Machine)
    }

    /// A clock that shows `wall` now and goes on with tokio's time. Times before 1970 count as 1970. Must be called
    /// within a tokio runtime when its time is paused. For tests: each such clock keeps a few bytes for good.
    #[must_use]
    pub fn starting_at(wall: SystemTime) -> Self {
        let wall = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(Source::Tokio { wall, since: Instant::now(), off: Box::leak(Box::default()) })
    }

    /// Makes a clock that goes with tokio's time wrong by so many milliseconds from now on. The machine's own clock
    /// is never touched.
    pub fn set_wrong_by(&self, millis: i64) {
        if let Source::Tokio { off, .. } = self.0 {
            off.store(millis, Ordering::Relaxed);
        }
    }

    /// The time since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn since_epoch(&self) -> Duration {
        match self.0 {
            Source::Machine => {
                #[expect(clippy::disallowed_methods, reason = "this is the owner of the wall clock")]
                let now = SystemTime::now();
                now.duration_since(UNIX_EPOCH).unwrap_or_default()
            }
            Source::Tokio { wall, since, off } => {
                let (right, off) = (wall + since.elapsed(), off.load(Ordering::Relaxed));
                let by = Duration::from_millis(off.unsigned_abs());
                if off < 0 { right.saturating_sub(by) } else { right + by }
            }
        }
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
