//! The one retry layer: pauses, patience and cancellation. The only user of the `backoff` crate.
//!
//! `backoff` gives the exponential ladder; the jitter (full: anything from nothing to the rung) is ours and
//! seeded, and so is the elapsed time, which follows tokio's clock. Every wait can be cancelled.

use crate::failure::{Action, Failure};
use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Seeded randomness for pauses, shared by whoever waits.
#[derive(Debug, Clone)]
pub struct Jitter(Arc<Mutex<StdRng>>);

impl Jitter {
    /// Jitter that a seed decides.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// Anything from zero to `limit`.
    #[must_use]
    pub fn up_to(&self, limit: Duration) -> Duration {
        limit.mul_f64(self.fraction())
    }

    /// `around`, give or take a fifth.
    #[must_use]
    pub fn around(&self, around: Duration) -> Duration {
        around.mul_f64(0.8 + 0.4 * self.fraction())
    }

    fn fraction(&self) -> f64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).random()
    }
}

/// How long to pause between tries, and when to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The ladder's first rung.
    pub first: Duration,
    /// Its highest rung.
    pub longest: Duration,
    /// The highest rung for what only an operator or time mends.
    pub slow: Duration,
    /// Give up this long after the first try; `None` never.
    pub patience: Option<Duration>,
}

impl Policy {
    /// Never gives up: for work that must be done before a checkpoint may move.
    pub const FOREVER: Self = Self {
        first: Duration::from_millis(50),
        longest: Duration::from_secs(5),
        slow: Duration::from_secs(15),
        patience: None,
    };

    /// Gives up after `patience`.
    #[must_use]
    pub const fn for_at_most(patience: Duration) -> Self {
        Self { patience: Some(patience), ..Self::FOREVER }
    }
}

/// The pauses of one thing that is tried again and again.
pub struct Pauses {
    policy: Policy,
    soon: ExponentialBackoff,
    slow: ExponentialBackoff,
    since: Instant,
    jitter: Jitter,
}

impl Pauses {
    /// Starts at the first rung, now.
    #[must_use]
    pub fn new(policy: Policy, jitter: Jitter) -> Self {
        let ladder = |first, longest| ExponentialBackoff {
            current_interval: first,
            initial_interval: first,
            randomization_factor: 0.0,
            multiplier: 2.0,
            max_interval: longest,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        let soon = ladder(policy.first, policy.longest);
        let slow = ladder(policy.slow / 16, policy.slow);
        Self { policy, soon, slow, since: Instant::now(), jitter }
    }

    /// The pause before the next try after a failure of this action's kind; `None` to give up.
    pub fn next(&mut self, action: Action) -> Option<Duration> {
        let ladder = match action {
            Action::RetrySoon => &mut self.soon,
            Action::RetrySlowly => &mut self.slow,
            Action::GiveBack => return None,
        };
        let pause = self.jitter.up_to(ladder.next_backoff().unwrap_or(self.policy.longest));
        match self.policy.patience {
            Some(patience) if self.since.elapsed() + pause > patience => None,
            _ => Some(pause),
        }
    }

    /// Back to the first rung, and the patience begins anew.
    pub fn reset(&mut self) {
        self.soon.reset();
        self.slow.reset();
        self.since = Instant::now();
    }
}

/// Why a call was given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GaveUp {
    /// It was cancelled while waiting.
    #[error("cancelled")]
    Cancelled,
    /// It failed for good, or for longer than the patience.
    #[error("{0}")]
    Failed(#[from] Failure),
}

/// Waits `pause`; `false` when cancelled before that.
pub async fn pause(pause: Duration, cancel: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = cancel.cancelled() => false,
        () = tokio::time::sleep(pause) => true,
    }
}

/// Runs `call` until it succeeds, fails in a way that only its caller can handle, or patience ends. `notice`
/// sees every failure that is tried again, with the number of tries so far. The call itself is not cut off by
/// `cancel`: only the pauses are.
///
/// # Errors
/// [`GaveUp`].
pub async fn run<T, C, F>(
    policy: Policy,
    jitter: &Jitter,
    cancel: &CancellationToken,
    mut notice: impl FnMut(&Failure, u32),
    mut call: C,
) -> Result<T, GaveUp>
where
    C: FnMut() -> F,
    F: Future<Output = Result<T, Failure>>,
{
    let mut pauses = Pauses::new(policy, jitter.clone());
    for tries in 1.. {
        let failure = match call().await {
            Ok(value) => return Ok(value),
            Err(failure) => failure,
        };
        let Some(wait) = pauses.next(failure.class.action()) else { return Err(failure.into()) };
        notice(&failure, tries);
        if !pause(wait, cancel).await {
            return Err(GaveUp::Cancelled);
        }
    }
    Err(GaveUp::Cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Class;
    use std::cell::Cell;

    fn failing(class: Class) -> Failure {
        Failure::new(class, "Code", "message")
    }

    #[tokio::test(start_paused = true)]
    async fn tries_until_it_works() {
        let (tries, seen) = (Cell::new(0), Cell::new(0));
        let result = run(
            Policy::FOREVER,
            &Jitter::seeded(1),
            &CancellationToken::new(),
            |_, n| seen.set(n),
            || async {
                tries.set(tries.get() + 1);
                if tries.get() < 5 { Err(failing(Class::Throttled)) } else { Ok(tries.get()) }
            },
        )
        .await;
        assert_eq!((result, seen.get()), (Ok(5), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn gives_back_what_no_retry_mends() {
        for class in [Class::Condition, Class::Invalid, Class::IteratorExpired, Class::Trimmed] {
            let tries = Cell::new(0);
            let result: Result<(), _> = run(
                Policy::FOREVER,
                &Jitter::seeded(1),
                &CancellationToken::new(),
                |_, _| (),
                || async {
                    tries.set(tries.get() + 1);
                    Err(failing(class))
                },
            )
            .await;
            assert_eq!((result, tries.get()), (Err(GaveUp::Failed(failing(class))), 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn patience_is_bounded_and_follows_tokio_time() {
        let start = Instant::now();
        let policy = Policy::for_at_most(Duration::from_secs(30));
        let denied = || async { Err::<(), _>(failing(Class::Denied)) };
        let result = run(policy, &Jitter::seeded(7), &CancellationToken::new(), |_, _| (), denied).await;
        assert!(matches!(result, Err(GaveUp::Failed(f)) if f.class == Class::Denied));
        assert!((Duration::from_secs(10)..=Duration::from_secs(30)).contains(&start.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_wait_ends_at_once() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let start = Instant::now();
        let denied = || async { Err::<(), _>(failing(Class::Denied)) };
        let result = run(Policy::FOREVER, &Jitter::seeded(7), &cancel, |_, _| (), denied).await;
        assert_eq!((result, start.elapsed()), (Err(GaveUp::Cancelled), Duration::ZERO));
    }

    #[test]
    fn the_ladder_rises_to_its_highest_rung() {
        let mut pauses = Pauses::new(Policy::FOREVER, Jitter::seeded(3));
        let longest = (0..200).filter_map(|_| pauses.next(Action::RetrySoon)).max().unwrap();
        assert!(longest > Duration::from_secs(4) && longest <= Policy::FOREVER.longest, "{longest:?}");
        pauses.reset();
        assert!(pauses.next(Action::RetrySoon).unwrap() <= Policy::FOREVER.first);
    }
}
