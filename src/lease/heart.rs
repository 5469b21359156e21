//! Which workers live.
//!
//! Each worker has a row with a counter that it raises again and again: one write for all the leases that it
//! holds, and a word on how loaded it is and what it changed. A worker stops by itself before anyone may take its
//! leases: its fence falls when its last successful beat was begun longer ago than the leases' duration less the
//! time limit of a request. The same holds for its last look: whoever does not see what operators ask for does not write.
//!
//! Beats (writes) come at `renew_interval`, and soon after something changed. Looks at the others come at
//! `look_interval`; [`crate::lease::fleet`] says what the rows mean. A look also brings the operator's
//! controls: the gates are set by them before the look counts, and the next beat says so.

use crate::clock::Clock;
use crate::control::Gates;
use crate::failure::Failure;
use crate::lease::fleet::{self, FLEET, Fellow, Figures, Fleet, News};
use crate::retry::Jitter;
use crate::state::{EXPIRES, PK, Row, SK, StateTable, number, text};
use crate::status::progress::{self, PROGRESS};
use crate::telemetry::board::Board;
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A dead worker's row is forgotten after this.
pub const FORGET: Duration = Duration::from_secs(24 * 3600);
/// The attribute of a worker's row that says whether it is a backfill's.
pub const BACKFILL: &str = "backfill";
/// Changes are shown within this, those that come together in one beat.
const SOON: Duration = Duration::from_millis(200);
/// Of looks that fail one after the other, so many are told of once.
const SAID_EVERY: u32 = 30;
/// A shard that was handed over counts as its new owner's for so long, until that one's own figures say so: it
/// looks, takes and beats within three seconds.
const COUNTED_FOR: Duration = Duration::from_secs(5);

/// Shows that this worker lives, and judges whether others do.
#[derive(Debug)]
pub struct Heart {
    state: StateTable,
    worker: Arc<str>,
    clock: Clock,
    config: crate::config::Lease,
    request_timeout: Duration,
    jitter: Jitter,
    /// Something is to be shown before the next beat is due.
    soon: Notify,
    controls: watch::Sender<Option<Arc<Vec<Row>>>>,
    inner: Mutex<Inner>,
    /// What the row shows of the work.
    board: OnceLock<Board>,
    /// Whether the row is that of a backfill, which walks no shards.
    backfill: bool,
    /// What the controls close.
    gates: OnceLock<Gates>,
}

#[derive(Debug)]
struct Inner {
    counter: u64,
    /// When the last beat that succeeded was begun.
    beaten: Option<Instant>,
    /// Cancelled when this worker may not write any more; a new one after it lives again.
    fence: CancellationToken,
    fleet: Fleet,
    /// When the last look that succeeded was begun. What it brought of controls is obeyed.
    looked: Option<Instant>,
    /// Stands for the controls that the gates obey.
    obeyed: String,
    /// This worker's own, by route.
    figures: BTreeMap<String, Figures>,
    /// Wakes the route's replicator.
    nudges: BTreeMap<String, Arc<Notify>>,
    /// Shards that this worker hands over, by route and shard.
    moves: BTreeMap<(String, String), Move>,
}

#[derive(Debug)]
struct Move {
    target: String,
    weight: f64,
    /// Since when it is this worker's no more.
    left: Option<Instant>,
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
        let inner = Inner {
            counter: 0,
            beaten: None,
            fence: CancellationToken::new(),
            fleet: Fleet::default(),
            looked: None,
            obeyed: String::new(),
            figures: BTreeMap::new(),
            nudges: BTreeMap::new(),
            moves: BTreeMap::new(),
        };
        let controls = watch::Sender::new(None);
        let (config, soon, inner) = (config.clone(), Notify::new(), Mutex::new(inner));
        let board = OnceLock::new();
        let (backfill, gates) = (false, OnceLock::new());
        Self {
            state,
            worker,
            clock,
            config,
            request_timeout,
            jitter,
            soon,
            controls,
            inner,
            board,
            backfill,
            gates,
        }
    }

    /// The heart of a backfill: its row says so, because whoever looks for workers that walk shards does not mean it.
    #[must_use]
    pub fn of_backfill(self) -> Self {
        Self { backfill: true, ..self }
    }

    /// From now on each look sets these gates, and each beat says by which controls they are set. The first gates stay.
    pub fn obeys(&self, gates: Gates) {
        self.gates.get_or_init(|| gates);
    }

    /// From now on each beat publishes how far the work is. The first board stays.
    pub fn publishes(&self, board: Board) {
        self.board.get_or_init(|| board);
    }

    /// What leases are configured to do.
    #[must_use]
    pub fn config(&self) -> &crate::config::Lease {
        &self.config
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
        let fresh = inner.proof().is_some_and(|proof| proof.elapsed() < self.margin());
        (fresh && !inner.fence.is_cancelled()).then(|| inner.fence.clone())
    }

    /// Owners whose leases may be taken: they have not shown that they live for a lease's duration.
    #[must_use]
    pub fn dead<'a>(&self, owners: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
        let owners = owners.into_iter().filter(|owner| **owner != *self.worker);
        lock(&self.inner).fleet.dead(owners, Instant::now(), self.config.duration)
    }

    /// When the last look that succeeded was begun. Who is dead by it may live again since, and may have taken what
    /// was seen with that owner only after it.
    #[must_use]
    pub fn looked(&self) -> Option<Instant> {
        lock(&self.inner).looked
    }

    /// The other living workers that have a part in a route, and how loaded each is. A shard that this worker hands
    /// to one of them counts as that one's at once.
    #[must_use]
    pub fn living(&self, route: &str) -> Vec<Fellow> {
        let mut inner = lock(&self.inner);
        inner.moves.retain(|_, step| step.left.is_none_or(|left| left.elapsed() < COUNTED_FOR));
        let mut fellows = inner.fleet.living(route);
        for fellow in &mut fellows {
            let coming = inner.moves.values().filter(|step| step.target == fellow.name);
            fellow.load += coming.map(|step| step.weight).sum::<f64>();
        }
        fellows
    }

    /// This worker among the others: its shards of all routes, and what they weigh without those that it is
    /// handing over.
    #[must_use]
    pub fn me(&self) -> Fellow {
        let inner = lock(&self.inner);
        let shards = inner.figures.values().map(|figures| figures.shards).sum();
        let load = inner.figures.values().map(Figures::load).sum::<f64>();
        let going = inner.moves.values().filter(|step| step.left.is_none()).map(|step| step.weight);
        Fellow { name: self.worker.to_string(), shards, load: (load - going.sum::<f64>()).max(0.0) }
    }

    /// Begins to hand a shard over.
    pub fn hands_over(&self, route: &str, shard: &str, target: &str, weight: f64) {
        let step = Move { target: target.to_owned(), weight, left: None };
        lock(&self.inner).moves.insert((route.to_owned(), shard.to_owned()), step);
    }

    /// A shard is walked no more; others should look at its lease.
    pub fn gave_up(&self, route: &str, shard: &str) {
        if let Some(step) = lock(&self.inner).moves.get_mut(&(route.to_owned(), shard.to_owned())) {
            step.left = Some(Instant::now());
        }
        self.changed(route, [shard]);
    }

    /// How many shards of a route this worker is handing over now.
    #[must_use]
    pub fn handing_over(&self, route: &str) -> usize {
        let inner = lock(&self.inner);
        inner.moves.iter().filter(|((of, _), step)| of == route && step.left.is_none()).count()
    }

    /// Shows what this worker has of a route: with the next beat, or soon when the number of shards changed.
    pub fn report(&self, route: &str, shards: usize, rate: f64) {
        let mut inner = lock(&self.inner);
        let new = !inner.figures.contains_key(route);
        let figures = inner.figures.entry(route.to_owned()).or_default();
        let shards = shards as u64;
        if new || figures.shards != shards {
            self.soon.notify_one();
        }
        (figures.shards, figures.rate) = (shards, rate);
    }

    /// Others should look at these leases of a route: shown soon.
    pub fn changed<'a>(&self, route: &str, shards: impl IntoIterator<Item = &'a str>) {
        let mut inner = lock(&self.inner);
        let figures = inner.figures.entry(route.to_owned()).or_default();
        for shard in shards {
            figures.change(shard);
            self.soon.notify_one();
        }
    }

    /// This worker takes shards of a route from now on.
    pub fn joins(&self, route: &str) {
        lock(&self.inner).figures.entry(route.to_owned()).or_default().leaving = false;
    }

    /// This worker takes no more shards of a route.
    pub fn leaves(&self, route: &str) {
        lock(&self.inner).figures.entry(route.to_owned()).or_default().leaving = true;
        self.soon.notify_one();
    }

    /// Wakes a route's replicator when there is [`Self::news`].
    #[must_use]
    pub fn nudge(&self, route: &str) -> Arc<Notify> {
        Arc::clone(lock(&self.inner).nudges.entry(route.to_owned()).or_default())
    }

    /// What others changed in a route since this was last asked for.
    #[must_use]
    pub fn news(&self, route: &str) -> News {
        lock(&self.inner).fleet.news(route)
    }

    /// The rows of the fleet's partition whose sort key begins with `control#`, in the order of their sort keys, as
    /// they were last read.
    #[must_use]
    pub fn controls(&self) -> watch::Receiver<Option<Arc<Vec<Row>>>> {
        self.controls.subscribe()
    }

    /// Beats and looks until `stop`; then this worker's row is removed.
    pub async fn run(&self, stop: CancellationToken) {
        // A look that hangs keeps no beat waiting.
        tokio::join!(self.beats(&stop), self.looks(&stop));
        if let Err(failure) = self.leave().await {
            tracing::warn!(why = %failure, "this worker's row was not removed; it expires by itself");
        }
    }

    async fn beats(&self, stop: &CancellationToken) {
        loop {
            let begun = Instant::now();
            let result = self.beat().await;
            if let Err(failure) = &result {
                tracing::warn!(why = %failure, remedy = failure.class.remedy(), "this worker's row was not renewed");
            }
            let interval = self.config.renew_interval;
            let pause = match result {
                Ok(()) => self.jitter.around(interval),
                Err(_) => self.jitter.around(interval / 4),
            };
            let soon = async {
                self.soon.notified().await;
                tokio::time::sleep_until(begun + SOON).await;
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.lapses() => self.fall(),
                () = tokio::time::sleep(pause) => {}
                () = soon => {}
            }
        }
    }

    async fn looks(&self, stop: &CancellationToken) {
        let mut failed = 0_u32;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.jitter.around(self.config.look_interval)) => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                looked = self.look() => match looked {
                    Ok(()) => failed = 0,
                    // Nobody is taken for dead meanwhile.
                    Err(failure) => {
                        if failed.is_multiple_of(SAID_EVERY) {
                            let remedy = failure.class.remedy();
                            tracing::warn!(why = %failure, remedy, "the workers' rows and the controls were not read");
                        }
                        failed += 1;
                    }
                }
            }
        }
    }

    /// One beat. Public for tests and for the first beat of a start.
    ///
    /// # Errors
    /// The failure of the call; the fence may have fallen meanwhile.
    pub async fn beat(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        self.fall_if_lapsed();
        let row = {
            let mut inner = lock(&self.inner);
            inner.counter += 1;
            fleet::to_row(inner.counter, &inner.figures, &inner.obeyed)
        };
        let expires = (self.clock.since_epoch() + FORGET).as_secs();
        let write = self
            .state
            .call("PutItem")
            .put_item()
            .table_name(self.state.name())
            .set_item(Some(row))
            .item(PK, text(FLEET))
            .item(SK, text(fleet::sort(&self.worker)))
            .item(PROGRESS, progress::to_attribute(&self.progress(begun)))
            .item(EXPIRES, number(expires))
            .item(BACKFILL, AttributeValue::Bool(self.backfill))
            .send();
        let answer = tokio::select! {
            biased;
            answer = write => answer.map(|_| ()).map_err(Failure::from),
            // The request's own time limit ends it; the fence does not wait for that.
            () = async { self.lapses().await; self.fall(); std::future::pending().await } => Ok(()),
        };
        answer?;
        // After a pause the answer may be seen before the time: what lapsed meanwhile is given up all the same.
        self.fall_if_lapsed();
        let mut inner = lock(&self.inner);
        if begun.elapsed() < self.margin() {
            inner.beaten = Some(begun);
            self.rise(&mut inner);
        }
        Ok(())
    }

    /// The right to write again, once both a beat and a look are new enough.
    fn rise(&self, inner: &mut Inner) {
        let fresh = inner.proof().is_some_and(|proof| proof.elapsed() < self.margin());
        if fresh && inner.fence.is_cancelled() {
            inner.fence = CancellationToken::new();
            tracing::info!("this worker's row is renewed again; it may take leases");
        }
    }

    /// One look at the others. Public for tests and for the first look of a start.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn look(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        let rows = self.state.rows(FLEET, "", &[]).await?;
        let controls = fleet::controls(&rows);
        // Before the look counts: who may write obeys.
        let obeyed = self.gates.get().map(|gates| {
            gates.apply(&controls);
            fleet::controls_digest(&controls)
        });
        self.fall_if_lapsed();
        let mut inner = lock(&self.inner);
        inner.looked = Some(begun);
        self.rise(&mut inner);
        if let Some(obeyed) = obeyed.filter(|obeyed| *obeyed != inner.obeyed) {
            inner.obeyed = obeyed;
            self.soon.notify_one();
        }
        let told = inner.fleet.look(&rows, &self.worker, Instant::now(), self.config.duration);
        for nudge in told.iter().filter_map(|route| inner.nudges.get(route)) {
            nudge.notify_one();
        }
        drop(inner);
        self.controls.send_if_modified(|known| {
            let new = known.as_deref() != Some(&controls);
            if new {
                *known = Some(Arc::new(controls));
            }
            new
        });
        Ok(())
    }

    /// How far the work is; a shard that was read to its tip within about a beat has nothing left.
    fn progress(&self, now: Instant) -> BTreeMap<String, progress::RouteProgress> {
        let since = now.checked_sub(self.config.renew_interval * 3 / 2).unwrap_or(now);
        self.board.get().map(|board| board.progress(since)).unwrap_or_default()
    }

    async fn leave(&self) -> Result<(), Failure> {
        self.state
            .call("DeleteItem")
            .delete_item()
            .table_name(self.state.name())
            .key(PK, text(FLEET))
            .key(SK, text(fleet::sort(&self.worker)))
            .send()
            .await?;
        Ok(())
    }

    /// For how long a beat gives the right to write.
    fn margin(&self) -> Duration {
        self.config.duration.saturating_sub(self.request_timeout)
    }

    fn falls_at(&self) -> Option<Instant> {
        let inner = lock(&self.inner);
        inner.proof().filter(|_| !inner.fence.is_cancelled()).map(|proof| proof + self.margin())
    }

    /// Waits until the right to write has lapsed; for ever while there is none.
    async fn lapses(&self) {
        loop {
            match self.falls_at() {
                Some(at) if at <= Instant::now() => return,
                // It may be put off until then.
                at => sleep_until(at).await,
            }
        }
    }

    fn fall_if_lapsed(&self) {
        if self.falls_at().is_some_and(|at| Instant::now() >= at) {
            self.fall();
        }
    }

    fn fall(&self) {
        let inner = lock(&self.inner);
        if !inner.fence.is_cancelled() {
            tracing::error!(
                "this worker's row was not renewed, or the controls were not read, in time: it stops writing, others may take over"
            );
            inner.fence.cancel();
        }
    }
}

impl Inner {
    /// When what gives the right to write was begun: a beat, and a look at the controls.
    fn proof(&self) -> Option<Instant> {
        Some(self.beaten?.min(self.looked?))
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
