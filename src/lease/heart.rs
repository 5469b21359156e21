//! Which workers live.
//!
//! Each worker has a row with a counter that it raises again and again: one write for all the leases that it
//! holds. Others judge by their own monotonic clock how long a counter has stood still; wall clocks are never
//! compared. A worker stops by itself before anyone may take its leases: its fence falls when its last
//! successful beat was begun longer ago than the leases' duration less the time limit of a request.
//!
//! Rows: `fleet` / `worker#<worker>`: the counter, and how far the worker is ([`crate::status::progress`]).

use crate::clock::Clock;
use crate::control::FLEET;
use crate::failure::Failure;
use crate::retry::Jitter;
use crate::state::{EXPIRES, PK, SK, StateTable, get_number, get_text, number, text};
use crate::status::progress::{self, PROGRESS};
use crate::telemetry::board::Board;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const WORKER: &str = "worker#";
const COUNTER: &str = "counter";
/// A dead worker's row is forgotten after this.
pub const FORGET: Duration = Duration::from_secs(24 * 3600);

/// Shows that this worker lives, and judges whether others do.
#[derive(Debug)]
pub struct Heart {
    state: StateTable,
    worker: Arc<str>,
    clock: Clock,
    duration: Duration,
    interval: Duration,
    request_timeout: Duration,
    jitter: Jitter,
    inner: Mutex<Inner>,
    /// What the row shows of the work.
    board: OnceLock<Board>,
}

#[derive(Debug)]
struct Inner {
    counter: u64,
    /// When the last beat that succeeded was begun.
    beaten: Option<Instant>,
    /// Cancelled when this worker may not write any more; a new one after it lives again.
    fence: CancellationToken,
    others: BTreeMap<String, Seen>,
    /// Owners that had no row, since they were first looked for.
    missing: BTreeMap<String, Instant>,
    /// When the others' rows were last read.
    looked: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    counter: u64,
    changed: Instant,
}

impl Heart {
    /// A heart that has not beaten yet.
    #[must_use]
    pub fn new(
        state: StateTable,
        worker: Arc<str>,
        clock: Clock,
        config: &crate::config::Lease,
        request_timeout: Duration,
        jitter: Jitter,
    ) -> Self {
        let fence = CancellationToken::new();
        let inner = Inner {
            counter: 0,
            beaten: None,
            fence,
            others: BTreeMap::new(),
            missing: BTreeMap::new(),
            looked: None,
        };
        let (duration, interval) = (config.duration, config.renew_interval);
        let (inner, board) = (Mutex::new(inner), OnceLock::new());
        Self { state, worker, clock, duration, interval, request_timeout, jitter, inner, board }
    }

    /// From now on each beat publishes how far the work is. The first board stays.
    pub fn publishes(&self, board: Board) {
        self.board.get_or_init(|| board);
    }

    /// This worker's name.
    #[must_use]
    pub fn worker(&self) -> &Arc<str> {
        &self.worker
    }

    /// The right to write, as long as this token is not cancelled; `None` while there is none.
    #[must_use]
    pub fn fence(&self) -> Option<CancellationToken> {
        let inner = lock(&self.inner);
        let fresh = inner.beaten.is_some_and(|beaten| beaten.elapsed() < self.margin());
        (fresh && !inner.fence.is_cancelled()).then(|| inner.fence.clone())
    }

    /// Owners whose leases may be taken: their counter has stood still for a lease's duration, or they have had
    /// no row for that long, as far as this worker has looked: time in which it did not look proves nothing.
    #[must_use]
    pub fn dead<'a>(&self, owners: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
        let mut inner = lock(&self.inner);
        let Some(looked) = inner.looked else { return BTreeSet::new() };
        let mut dead = BTreeSet::new();
        for owner in owners.into_iter().filter(|owner| **owner != *self.worker) {
            let since = match inner.others.get(owner) {
                Some(seen) => seen.changed,
                None => *inner.missing.entry(owner.to_owned()).or_insert_with(Instant::now),
            };
            if looked.saturating_duration_since(since) >= self.duration {
                dead.insert(owner.to_owned());
            }
        }
        dead
    }

    /// Beats until `stop`; then this worker's row is removed.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            let result = self.beat().await;
            if let Err(failure) = &result {
                tracing::warn!(why = %failure, remedy = failure.class.remedy(), "this worker's row was not renewed");
            }
            let pause = match result {
                Ok(()) => self.jitter.around(self.interval),
                Err(_) => self.jitter.around(self.interval / 4),
            };
            let fall = self.falls_at();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep_until(fall) => self.fall(),
                () = tokio::time::sleep(pause) => {}
            }
        }
        if let Err(failure) = self.leave().await {
            tracing::warn!(why = %failure, "this worker's row was not removed; it expires by itself");
        }
    }

    /// One beat and one look at the others. Public for tests and for the first beat of a start.
    ///
    /// # Errors
    /// The failure of a call; the fence may have fallen meanwhile.
    pub async fn beat(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        let counter = {
            let mut inner = lock(&self.inner);
            inner.counter += 1;
            inner.counter
        };
        let expires = (self.clock.since_epoch() + FORGET).as_secs();
        let write = self
            .state
            .call("PutItem")
            .put_item()
            .table_name(self.state.name())
            .item(PK, text(FLEET))
            .item(SK, text(format!("{WORKER}{}", self.worker)))
            .item(PROGRESS, progress::to_attribute(&self.progress(begun)))
            .item(COUNTER, number(counter))
            .item(EXPIRES, number(expires))
            .send();
        let answer = tokio::select! {
            biased;
            answer = write => answer.map(|_| ()).map_err(Failure::from),
            // The request's own time limit ends it; the fence does not wait for that.
            () = async { sleep_until(self.falls_at()).await; self.fall(); std::future::pending().await } => Ok(()),
        };
        answer?;
        let rows = self.state.rows(FLEET, WORKER, &[]).await;
        let mut inner = lock(&self.inner);
        if begun.elapsed() < self.margin() {
            inner.beaten = Some(begun);
            if inner.fence.is_cancelled() {
                inner.fence = CancellationToken::new();
                tracing::info!("this worker's row is renewed again; it may take leases");
            }
        }
        let now = Instant::now();
        let rows = rows?;
        let counters = rows
            .iter()
            .filter_map(|row| Some((get_text(row, SK)?.strip_prefix(WORKER)?, get_number(row, COUNTER)?)));
        let before = std::mem::take(&mut inner.others);
        inner.others = counters
            .map(|(worker, counter)| {
                let same = before.get(worker).filter(|seen| seen.counter == counter).copied();
                (worker.to_owned(), same.unwrap_or(Seen { counter, changed: now }))
            })
            .collect();
        let others = std::mem::take(&mut inner.missing).into_iter();
        inner.missing = others.filter(|(owner, _)| !inner.others.contains_key(owner)).collect();
        inner.looked = Some(now);
        Ok(())
    }

    /// How far the work is; a shard that was read to its tip within about a beat has nothing left.
    fn progress(&self, now: Instant) -> BTreeMap<String, progress::RouteProgress> {
        let since = now.checked_sub(self.interval * 3 / 2).unwrap_or(now);
        self.board.get().map(|board| board.progress(since)).unwrap_or_default()
    }

    async fn leave(&self) -> Result<(), Failure> {
        self.state
            .call("DeleteItem")
            .delete_item()
            .table_name(self.state.name())
            .key(PK, text(FLEET))
            .key(SK, text(format!("{WORKER}{}", self.worker)))
            .send()
            .await?;
        Ok(())
    }

    /// For how long a beat gives the right to write.
    fn margin(&self) -> Duration {
        self.duration.saturating_sub(self.request_timeout)
    }

    fn falls_at(&self) -> Option<Instant> {
        let inner = lock(&self.inner);
        inner.beaten.filter(|_| !inner.fence.is_cancelled()).map(|beaten| beaten + self.margin())
    }

    fn fall(&self) {
        let inner = lock(&self.inner);
        if !inner.fence.is_cancelled() {
            tracing::error!(
                "this worker's row could not be renewed in time: it stops writing, others may take over"
            );
            inner.fence.cancel();
        }
    }
}

/// Never, when there is no time.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
