//! Backfill: the initial copy of a route's source to its peers, while the stream is applied.
//!
//! A [`Backfill`] is one process of any number that share the work. The source is read in [segments](rows), each held by
//! one process at a time under a lease: conditional on owner and epoch, with the heartbeat of
//! [`crate::lease::heart`]. Every item goes through [`crate::peer`], with a version that every streamed change beats;
//! what is deleted meanwhile stays deleted. A segment is saved only when all items before are durable at every peer. So a
//! backfill may take as long as it likes, stop anywhere, and run again.
//!
//! Before anything is read, the route's place in the stream is pinned ([`crate::starts`]), as its first worker would:
//! whatever changes after that comes with the stream. Applying it is the service's matter, and it must do so within the
//! stream's retention.
//!
//! [`scan`] reads a table in segments, for whoever needs that; [`export`] an export of it; `copy` writes, `segment` is the loop over pages, `begin`
//! finds or begins the work.

pub mod counts;
pub mod export;
pub mod rows;
pub mod scan;

mod begin;
mod copy;
mod picture;
mod segment;
mod source;

pub use picture::{Picture, Segments};
pub use source::SourceError;

use crate::access::finding::{Finding, Findings};
use crate::control::Keeper;
use crate::failure::Failure;
use crate::item::Digest;
use crate::lease::heart::Heart;
use crate::numbers::NumberError;
use crate::peer::OnExisting;
use crate::retry::{self, GaveUp, Jitter, Policy};
use crate::state::StateError;
use crate::task::Tasks;
use crate::telemetry::board::Board;
use crate::telemetry::http::{self, Admin};
use crate::telemetry::metrics::Metrics;
use rows::{Job, Known, Rows, Segment, State};
use segment::{End, Shared};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The route.
    pub route: String,
    /// One of its peers only.
    pub peer: Option<String>,
    /// In how many segments the source is read; `None` for as many as its size suggests. Of a backfill that was begun
    /// already it must be the same.
    pub segments: Option<u32>,
    /// Segments that this process works on at a time; `None` for 4.
    pub parallel: Option<usize>,
    /// Read units that this process may spend in a second.
    pub read_units: Option<u32>,
    /// Write units that it may spend in a second at each peer.
    pub write_units: Option<u32>,
    /// What becomes of items at a peer that we did not write; `None` for what the backfill was begun with, or `Fail`.
    pub existing: Option<OnExisting>,
    /// Begin anew.
    pub restart: bool,
    /// Read eventually consistent, for half of the cost.
    pub eventual: bool,
    /// The folder of an export of the source to be read instead of the source.
    pub export: Option<PathBuf>,
}

/// How a backfill ended, for this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Every item is done.
    Done,
    /// It was done before.
    Before,
    /// Something must be decided.
    Stopped(String),
    /// This process was asked to stop; what is left is left to others, or to the next start.
    Drained,
}

/// Why a backfill could not begin, or failed.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// There is no such route, or it has no such peer.
    #[error("there is no route {0}, or it has no such peer")]
    NoRoute(String),
    /// The state table.
    #[error(transparent)]
    State(#[from] StateError),
    /// What must hold before.
    #[error("{0}")]
    Access(#[from] Findings),
    /// A member of a group has a number that is not its own.
    #[error(transparent)]
    Number(#[from] NumberError),
    /// The state table's rows.
    #[error("state table: {0}")]
    Rows(Failure),
    /// The route leaves out what changes while it is read.
    #[error(
        "route {route} starts at {start}, which is later than now: what changes until then would be lost. Set start to \
         \"latest\" or to a time that has passed"
    )]
    StartsLater {
        /// The route.
        route: String,
        /// Its start.
        start: String,
    },
    /// Another backfill of the same route is under way or done.
    #[error("the backfill of this route is one {0}; ask for the same, or begin anew with --restart")]
    Other(String),
    /// What the backfill rests on is not there any more.
    #[error(
        "{0} since this backfill began, so what was copied before may be of another time; begin anew with --restart"
    )]
    Replaced(&'static str),
    /// It cannot be begun anew while somebody works on it.
    #[error("{0} works on this backfill; stop it first")]
    Busy(String),
    /// Another process has begun it anew.
    #[error("another process has begun this backfill anew")]
    Restarted,
    /// The export is of a time from which on the stream is not applied.
    #[error(
        "the export is of {export}, and the route's place in the stream is pinned since {pinned}: what changed in between would \
         be lost. Export the table again, now that the place is pinned"
    )]
    ExportTooEarly {
        /// The export's time.
        export: String,
        /// When the route first saw the stream.
        pinned: String,
    },
    /// The source.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// The work on a segment came to an end that it should not have.
    #[error("the work on a segment broke off: {0}")]
    Broke(#[from] JoinError),
    /// The address of the metrics.
    #[error("cannot listen for metrics: {0}")]
    Listen(std::io::Error),
    /// The metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Stopped before it began.
    #[error("stopped while starting")]
    Stopped,
}

impl From<GaveUp> for BackfillError {
    fn from(gave_up: GaveUp) -> Self {
        match gave_up {
            GaveUp::Failed(failure) => Self::Rows(failure),
            GaveUp::Cancelled => Self::Stopped,
        }
    }
}

impl From<Finding> for BackfillError {
    fn from(finding: Finding) -> Self {
        Self::Access(Findings(vec![finding]))
    }
}

/// One process of a backfill.
pub struct Backfill {
    request: Request,
    /// What it would be if it was begun now.
    fresh: Job,
    parts: begin::Parts,
    heart: Arc<Heart>,
    keeper: Keeper,
    rows: Rows,
    config: crate::config::Config,
    jitter: Jitter,
    metrics: Metrics,
    admin: Option<TcpListener>,
    drain: CancellationToken,
}

/// All rows are read at each look: so many more of them, and there is one look interval more between two.
const ROWS_A_LOOK: u32 = 100;
/// How often it is said that nobody applies what changes.
const REMIND: Duration = Duration::from_secs(60);
/// After the work is done, this process's row is removed, at most so long.
const LEAVE: Duration = Duration::from_secs(2);

impl Backfill {
    /// This process's name in the state table.
    #[must_use]
    pub fn worker(&self) -> &str {
        self.heart.worker()
    }

    /// The metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Works until every segment is done, whoever does it, or until it is asked to drain. `pictures` shows how far the
    /// backfill is, all processes together.
    ///
    /// # Errors
    /// [`BackfillError`]. What was saved stays.
    pub async fn run(mut self, pictures: watch::Sender<Option<Picture>>) -> Result<Ended, BackfillError> {
        let stop = CancellationToken::new();
        let mut helpers = Tasks::new();
        let once = || async {
            self.heart.beat().await?;
            self.heart.look().await
        };
        let policy = Policy::for_at_most(self.config.access_patience);
        retry::run(policy, &self.jitter, &self.drain, |_, _| (), once).await?;
        let (beating, beats) = (Arc::clone(&self.heart), stop.clone());
        helpers.spawn(async move { beating.run(beats).await });
        if let Some(listener) = self.admin.take() {
            let (board, metrics) = (Board::new(), self.metrics.clone());
            board.ready();
            let admin = Admin { board, metrics, stall_after: self.config.admin.stall_after };
            helpers.spawn(http::serve(listener, admin, stop.clone()));
        }
        let Self { request, fresh, parts, heart, keeper, rows, config, jitter, metrics, admin: _, drain } =
            self;
        helpers.spawn(keeper.run(heart.controls(), jitter.clone(), stop.clone()));
        let join = begin::Join { request: &request, fresh, heart: &heart, rows: &rows, parts: &parts };
        let joined = Box::pin(retry_unless(&drain, join.find(&config, &jitter))).await;
        let ended = match joined {
            Ok(Some(job)) => {
                let rest = CancellationToken::new();
                let shared =
                    Arc::new(parts.share(&config, &job, rows.clone(), jitter, metrics.clone(), rest));
                let crew = Crew {
                    parallel: request.parallel.unwrap_or(PARALLEL),
                    grace: config.grace,
                    peer: request.peer.clone(),
                    request_timeout: config.write.request_timeout,
                    look_interval: config.lease.look_interval,
                    job,
                    shared,
                    heart,
                    rows,
                    metrics,
                    drain,
                    pictures,
                };
                Box::pin(crew.work()).await
            }
            Ok(None) => {
                if let Some(known) = rows.load().await.map_err(BackfillError::Rows)? {
                    pictures.send_replace(Some(Picture::of(&request.route, &known, parts.clock.now())));
                }
                Ok(Ended::Before)
            }
            Err(error) => Err(error),
        };
        stop.cancel();
        let leave = async { while helpers.join_next().await.is_some() {} };
        if tokio::time::timeout(LEAVE, leave).await.is_err() {
            helpers.abort_all().await;
        }
        ended
    }
}

/// Segments that a process works on at a time: with fewer, reading and writing would wait for each other.
pub(crate) const PARALLEL: usize = 4;

async fn retry_unless<T>(
    drain: &CancellationToken,
    work: impl Future<Output = Result<T, BackfillError>>,
) -> Result<T, BackfillError> {
    tokio::select! {
        biased;
        () = drain.cancelled() => Err(BackfillError::Stopped),
        done = work => done,
    }
}

/// The segments that this process holds, and the decision about more.
struct Crew {
    parallel: usize,
    grace: Duration,
    peer: Option<String>,
    request_timeout: Duration,
    look_interval: Duration,
    job: Job,
    shared: Arc<Shared>,
    heart: Arc<Heart>,
    rows: Rows,
    metrics: Metrics,
    drain: CancellationToken,
    pictures: watch::Sender<Option<Picture>>,
}

/// What this process knows of segments beside their rows.
#[derive(Default)]
struct Watched {
    /// Those that it works on.
    holding: BTreeSet<u32>,
    /// The epoch of each, and when it was first read with it.
    seen: BTreeMap<u32, (u64, Instant)>,
    /// When it was last said that nobody applies what changes.
    reminded: Option<Instant>,
}

impl Crew {
    async fn work(&self) -> Result<Ended, BackfillError> {
        let mut tasks = Tasks::new();
        let mut watched = Watched::default();
        let ended = loop {
            match self.step(&mut tasks, &mut watched).await {
                Ok(None) => {}
                Ok(Some(ended)) => break Ok(ended),
                Err(error) => break Err(error),
            }
            let pause = self.look_interval * (2 + self.job.segments / ROWS_A_LOOK);
            tokio::select! {
                biased;
                Some(joined) = tasks.join_next() => match joined {
                    Ok((number, end)) => {
                        watched.holding.remove(&number);
                        match self.ended(end).await {
                            Ok(None) => {}
                            Ok(Some(ended)) => break Ok(ended),
                            Err(error) => break Err(error),
                        }
                    }
                    Err(error) => break Err(error.into()),
                },
                () = self.drain.cancelled() => break Ok(Ended::Drained),
                () = tokio::time::sleep(pause) => {}
            }
        };
        self.shared.drain.cancel();
        let rest = async { while tasks.join_next().await.is_some() {} };
        // What does not come to rest in time is taken by others once this process's lease has run out.
        if tokio::time::timeout(self.grace, rest).await.is_err() {
            tasks.abort_all().await;
        }
        ended
    }

    /// Looks at the rows, and takes what may be taken.
    async fn step(
        &self,
        tasks: &mut Tasks<(u32, End)>,
        watched: &mut Watched,
    ) -> Result<Option<Ended>, BackfillError> {
        let known = match self.rows.load().await {
            Ok(Some(known)) => known,
            Ok(None) => return Err(BackfillError::Restarted),
            // What is held goes on as long as it may.
            Err(failure) => {
                tracing::warn!(why = %failure, "the rows of the backfill were not read");
                return Ok(None);
            }
        };
        if known.job.run != self.job.run {
            return Err(BackfillError::Restarted);
        }
        let now = self.shared.clock.now();
        let route = &self.shared.route;
        self.metrics
            .backfill_segments
            .with_label_values(&[route])
            .set(i64::from(self.job.segments) - known.segments.iter().filter(|s| s.done).count() as i64);
        self.pictures.send_replace(Some(Picture::of(route, &known, now)));
        match &known.job.state {
            State::Done => return Ok(Some(Ended::Done)),
            State::Stopped(why) => return Ok(Some(Ended::Stopped(why.clone()))),
            State::Running => {}
        }
        if known.is_done() {
            let done = Job { state: State::Done, since: now, ..self.job.clone() };
            if self.rows.set(&done).await.is_ok() {
                let known = Known { job: done, ..known };
                self.pictures.send_replace(Some(Picture::of(route, &known, now)));
                return Ok(Some(Ended::Done));
            }
            return Ok(None);
        }
        self.remind(watched);
        let Some(fence) = self.heart.fence() else { return Ok(None) };
        for (number, seen) in self.free(&known, watched) {
            if watched.holding.len() >= self.parallel {
                break;
            }
            match self.rows.take(self.job.run, number, seen.as_ref()).await {
                Ok(Some(held)) => {
                    watched.holding.insert(number);
                    let (shared, fence) = (Arc::clone(&self.shared), fence.clone());
                    tasks.spawn(async move { (number, Box::pin(shared.work(held, fence)).await) });
                }
                Ok(None) => {}
                Err(failure) => tracing::warn!(why = %failure, "a segment was not taken"),
            }
        }
        Ok(None)
    }

    /// The segments that this process may take, in an order of its own.
    fn free(&self, known: &Known, watched: &mut Watched) -> Vec<(u32, Option<Segment>)> {
        let now = Instant::now();
        for segment in &known.segments {
            let seen = watched.seen.entry(segment.number).or_insert((segment.epoch, now));
            if seen.0 != segment.epoch {
                *seen = (segment.epoch, now);
            }
        }
        let owners = known.segments.iter().filter_map(|segment| segment.owner.as_deref());
        let dead = self.heart.dead(owners);
        let looked = self.heart.looked();
        let mut rows: BTreeMap<u32, &Segment> = known.segments.iter().map(|s| (s.number, s)).collect();
        let mut hasher = DefaultHasher::new();
        self.heart.worker().hash(&mut hasher);
        let first = (hasher.finish() % u64::from(self.job.segments.max(1))) as u32;
        let numbers = (first..self.job.segments).chain(0..first);
        let free = numbers.filter(|number| !watched.holding.contains(number)).filter_map(|number| {
            let Some(segment) = rows.remove(&number) else { return Some((number, None)) };
            let may = match segment.owner.as_deref() {
                _ if segment.done => false,
                None => true,
                Some(owner) if owner == &**self.heart.worker() => true,
                // It may live again since the look that shows it dead, and hold this only since then.
                Some(owner) => {
                    let since = watched.seen.get(&number).map(|(_, since)| *since);
                    dead.contains(owner) && since.zip(looked).is_some_and(|(since, looked)| since < looked)
                }
            };
            may.then(|| (number, Some(segment.clone())))
        });
        free.collect()
    }

    /// What an end means for the whole.
    async fn ended(&self, end: End) -> Result<Option<Ended>, BackfillError> {
        match end {
            End::Done | End::Rested => Ok(None),
            End::Lost => {
                // Requests that were under way have ended one way or the other before anything is taken again.
                tokio::time::sleep(self.request_timeout).await;
                Ok(None)
            }
            End::Conflicts(counts, some) => {
                let why = conflict(&self.shared.route, self.peer.as_deref(), &counts, &some);
                let stopped = Job {
                    state: State::Stopped(why.clone()),
                    since: self.shared.clock.now(),
                    ..self.job.clone()
                };
                self.rows.set(&stopped).await.map_err(BackfillError::Rows)?;
                if let Some(known) = self.rows.load().await.map_err(BackfillError::Rows)? {
                    let picture = Picture::of(&self.shared.route, &known, self.shared.clock.now());
                    self.pictures.send_replace(Some(picture));
                }
                Ok(Some(Ended::Stopped(why)))
            }
            End::Failed(error) => Err(error.into()),
        }
    }

    fn remind(&self, watched: &mut Watched) {
        let route = &self.shared.route;
        let walked = !self.heart.living(route).is_empty();
        if walked || watched.reminded.is_some_and(|before| before.elapsed() < REMIND) {
            return;
        }
        watched.reminded = Some(Instant::now());
        tracing::warn!(
            route,
            "no worker of the service walks this route: what changes meanwhile is not applied, and leaves the stream \
             after 24 hours; start one: shardwalker run"
        );
    }
}

fn conflict(
    route: &str,
    peer: Option<&str>,
    counts: &BTreeMap<String, u64>,
    some: &[(String, Digest)],
) -> String {
    let counts: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(peer, count)| format!("{count} at {peer}"))
        .collect();
    let some: Vec<String> = some.iter().take(copy::NAMED).map(|(_, key)| key.to_string()).collect();
    let peer = peer.map(|peer| format!(" --peer {peer}")).unwrap_or_default();
    format!(
        "there are items that this replicator did not write and that differ from the source's: {} on one page, with keys \
         of these digests: {}. Decide, and go on with: shardwalker backfill {route}{peer} --on-existing keep|overwrite",
        counts.join(", "),
        some.join(", ")
    )
}
