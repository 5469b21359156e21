//! Rates: a fixed budget of calls, and one that adapts to a peer's throttling.
//!
//! [`Rate`] is a token bucket in tokio's time, for calls or for units. [`Adaptive`] has no limit but a configured one until the peer
//! throttles; then it falls below what got through and rises again step by step while writes succeed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// At most so many a second, with a burst of one second's worth. Waiters are served in turn.
#[derive(Debug)]
pub struct Rate {
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    per_second: f64,
    /// When the next call may start; calls book their start in turn.
    next: Instant,
}

impl Rate {
    /// `per_second` calls a second; must be positive.
    #[must_use]
    pub fn new(per_second: f64) -> Self {
        Self { bucket: Mutex::new(Bucket { per_second, next: Instant::now() }) }
    }

    /// Waits for a turn. A turn that was booked and then dropped is lost.
    pub async fn turn(&self) {
        self.spend(1.0).await;
    }

    /// Waits until what was spent before is made up for, and spends `amount` turns at once: for what is counted in
    /// units. What was spent and then dropped is lost.
    pub async fn spend(&self, amount: f64) {
        let start = lock(&self.bucket).book(Duration::from_secs(1), amount);
        tokio::time::sleep_until(start).await;
    }

    /// So much was spent already: whoever is next waits for it.
    pub fn owe(&self, amount: f64) {
        lock(&self.bucket).book(Duration::from_secs(1), amount);
    }
}

impl Bucket {
    fn book(&mut self, burst: Duration, amount: f64) -> Instant {
        let now = Instant::now();
        // What a call cost comes from outside, and may be anything.
        let step = Duration::try_from_secs_f64(amount / self.per_second).unwrap_or_default().min(LONGEST);
        let earliest = now.checked_sub(burst.saturating_sub(step)).unwrap_or(now);
        let start = self.next.max(earliest);
        self.next = start + step;
        start.max(now)
    }
}

/// Nothing is waited for longer than this.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A limit on the writes to one peer that backs off on throttling and recovers.
#[derive(Debug)]
pub struct Adaptive {
    /// The configured limit.
    most: Option<Rate>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` while the peer takes everything.
    bucket: Option<Bucket>,
    /// Successes in the current window, and the rate of the last full one.
    window: Instant,
    successes: u32,
    achieved: f64,
    /// One cut per window at most: throttles come in bursts.
    last_cut: Option<Instant>,
}

const WINDOW: Duration = Duration::from_millis(500);
/// What is left of the achieved rate after a throttle.
const CUT: f64 = 0.7;
/// How much the limit grows in a window without throttles.
const GROWTH: f64 = 1.1;
/// The limit never falls below this (writes a second).
const FLOOR: f64 = 5.0;
/// When the limit is this many times what is asked for, it is lifted.
const LIFT: f64 = 4.0;

impl Adaptive {
    /// Nothing but `most` writes a second, if that, until the first throttle.
    #[must_use]
    pub fn new(most: Option<f64>) -> Self {
        let state =
            State { bucket: None, window: Instant::now(), successes: 0, achieved: 0.0, last_cut: None };
        Self { most: most.map(Rate::new), state: Mutex::new(state) }
    }

    /// Waits for a turn.
    pub async fn turn(&self) {
        if let Some(most) = &self.most {
            most.turn().await;
        }
        let start = lock(&self.state).bucket.as_mut().map(|bucket| bucket.book(WINDOW, 1.0));
        if let Some(start) = start {
            tokio::time::sleep_until(start).await;
        }
    }

    /// A write got through.
    pub fn succeeded(&self) {
        let mut state = lock(&self.state);
        state.roll();
        state.successes += 1;
    }

    /// A write was throttled.
    pub fn throttled(&self) {
        let mut state = lock(&self.state);
        state.roll();
        let now = Instant::now();
        if state.last_cut.is_some_and(|cut| now - cut < WINDOW) {
            return;
        }
        state.last_cut = Some(now);
        let seen = f64::from(state.successes) / (now - state.window).max(WINDOW / 5).as_secs_f64();
        let limit = state.bucket.as_ref().map_or(f64::INFINITY, |b| b.per_second);
        let per_second = (state.achieved.max(seen).min(limit) * CUT).max(FLOOR);
        state.bucket = Some(Bucket { per_second, next: now });
    }

    /// The limit in writes a second; `None` while there is none.
    #[must_use]
    pub fn limit(&self) -> Option<f64> {
        let most = self.most.as_ref().map(|rate| lock(&rate.bucket).per_second);
        let adapted = lock(&self.state).bucket.as_ref().map(|bucket| bucket.per_second);
        match (most, adapted) {
            (Some(most), Some(adapted)) => Some(most.min(adapted)),
            (most, adapted) => most.or(adapted),
        }
    }
}

impl State {
    /// Ends the window when it is over, and lets the limit grow if there was no cut in it.
    fn roll(&mut self) {
        let now = Instant::now();
        let length = now - self.window;
        if length < WINDOW {
            return;
        }
        self.achieved = f64::from(self.successes) / length.as_secs_f64();
        (self.window, self.successes) = (now, 0);
        if self.last_cut.is_some_and(|cut| now - cut < WINDOW) {
            return;
        }
        if let Some(bucket) = &mut self.bucket {
            bucket.per_second *= GROWTH;
            if bucket.per_second > LIFT * self.achieved.max(FLOOR) {
                self.bucket = None;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rate_allows_a_burst_of_a_second_and_then_its_rate() {
        let rate = Rate::new(5.0);
        let start = Instant::now();
        tokio::time::advance(Duration::from_secs(10)).await;
        let begun = Instant::now();
        for _ in 0..5 {
            rate.turn().await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO, "burst, {:?} after start", start.elapsed());
        for _ in 0..10 {
            rate.turn().await;
        }
        let took = begun.elapsed();
        assert!((Duration::from_millis(1900)..Duration::from_millis(2101)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_spent_at_once_is_made_up_for_by_the_next() {
        let (rate, begun) = (Rate::new(10.0), Instant::now());
        for (amount, at) in [(128.0, 0.0), (2.0, 12.8), (0.5, 13.0), (1.0, 13.05)] {
            rate.spend(amount).await;
            let now = begun.elapsed().as_secs_f64();
            assert!((now - at).abs() < 0.01, "{amount} at {now}, expected at {at}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cost_that_makes_no_sense_costs_nothing() {
        let (rate, begun) = (Rate::new(1.0), Instant::now());
        for amount in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
            rate.owe(amount);
        }
        rate.turn().await;
        assert!(begun.elapsed() <= Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    /// A peer that takes `capacity` writes a second and throttles the rest, asked for `seconds`.
    async fn drive(limit: &Adaptive, capacity: u32, seconds: u64) -> (u32, u32) {
        let (mut taken, mut refused, mut left) = (0, 0, f64::from(capacity));
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut last = Instant::now();
        while Instant::now() < end {
            limit.turn().await;
            tokio::time::sleep(Duration::from_micros(500)).await;
            let now = Instant::now();
            left = (left + (now - last).as_secs_f64() * f64::from(capacity)).min(f64::from(capacity));
            last = now;
            if left >= 1.0 {
                left -= 1.0;
                taken += 1;
                limit.succeeded();
            } else {
                refused += 1;
                limit.throttled();
            }
        }
        (taken, refused)
    }

    #[tokio::test(start_paused = true)]
    async fn a_configured_limit_is_never_exceeded() {
        let limit = Adaptive::new(Some(50.0));
        assert_eq!(limit.limit(), Some(50.0));
        // A burst of a second's worth, then the rate.
        let (taken, refused) = drive(&limit, 100_000, 20).await;
        assert!((1000..=1050).contains(&taken) && refused == 0, "{taken} taken, {refused} refused");
        drive(&limit, 10, 20).await;
        assert!(limit.limit().is_some_and(|limit| limit < 50.0), "throttling lowers it");
    }

    #[tokio::test(start_paused = true)]
    async fn it_settles_near_the_capacity_with_few_refusals_and_recovers() {
        let limit = Adaptive::new(None);
        drive(&limit, 100, 10).await;
        let (taken, refused) = drive(&limit, 100, 30).await;
        assert!(taken > 2400, "{taken} taken of 3000");
        assert!(refused * 20 < taken, "{refused} refused of {taken}");
        drive(&limit, 100_000, 60).await;
        let (taken, refused) = drive(&limit, 100_000, 5).await;
        assert!(taken > 4000 && refused == 0, "{taken} taken, {refused} refused after recovery");
    }
}
