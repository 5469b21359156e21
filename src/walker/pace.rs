//! How often the readers of one shard read it.
//!
//! A shard is read five times a second at most, by whoever reads it. One reader may use all of that; two that both
//! try to are refused in turns, and the one that pauses longer after a refusal starves: the front, while a lane
//! catches up. So a refusal slows both down a little, and with time both try again to be faster.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What a refusal adds to the interval, in intervals.
const STEP: f64 = 0.25;
/// After so long without a refusal half of what was added is gone.
const HALF: Duration = Duration::from_secs(60);

/// The pace that the readers of one shard keep to.
pub(super) struct Pace {
    fastest: Duration,
    added: Mutex<(f64, Instant)>,
}

impl Pace {
    /// As fast as allowed.
    pub(super) fn new(fastest: Duration) -> Self {
        Self { fastest, added: Mutex::new((0.0, Instant::now())) }
    }

    /// From the beginning of a read to the beginning of the same reader's next.
    pub(super) fn interval(&self) -> Duration {
        let (added, since) = *self.added.lock().unwrap_or_else(PoisonError::into_inner);
        self.slower(left(added, since))
    }

    /// A read was refused for load. The interval from now on.
    pub(super) fn refused(&self) -> Duration {
        let mut guard = self.added.lock().unwrap_or_else(PoisonError::into_inner);
        let (added, since) = *guard;
        *guard = (left(added, since) + STEP, Instant::now());
        self.slower(guard.0)
    }

    fn slower(&self, added: f64) -> Duration {
        self.fastest.mul_f64(1.0 + added)
    }
}

fn left(added: f64, since: Instant) -> f64 {
    added * 0.5_f64.powf(since.elapsed().as_secs_f64() / HALF.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_slows_down_and_is_forgotten() {
        let fastest = Duration::from_millis(200);
        let pace = Pace::new(fastest);
        assert_eq!(pace.interval(), fastest);
        assert_eq!(pace.refused(), Duration::from_millis(250));
        for _ in 1..4 {
            pace.refused();
        }
        assert_eq!(pace.interval(), 2 * fastest);
        tokio::time::sleep(HALF).await;
        assert_eq!(pace.interval(), Duration::from_millis(300));
        tokio::time::sleep(20 * HALF).await;
        assert!(pace.interval() < fastest + Duration::from_millis(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_that_somebody_else_reads_is_still_tried_every_few_seconds() {
        let pace = Pace::new(Duration::from_millis(200));
        for _ in 0..10_000 {
            tokio::time::sleep(pace.refused()).await;
        }
        let interval = pace.interval();
        assert!((Duration::from_secs(1)..Duration::from_secs(4)).contains(&interval), "{interval:?}");
    }
}
