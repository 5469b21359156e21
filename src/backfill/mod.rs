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
//! [`scan`] reads a table in segments, for whoever needs that; [`export`] an export of it; `copy` writes, `segment` is the loop over pages,
//! `crew` takes segments, `begin` finds out what must hold, `join` which backfill it is.

pub mod counts;
pub mod export;
pub mod rows;
pub mod scan;

mod begin;
mod copy;
mod crew;
mod join;
mod mirror;
mod picture;
mod segment;
mod snapshot;
mod source;

pub use picture::{Picture, Segments};
pub use source::SourceError;

use crate::access::finding::Findings;
use crate::config::Route;
use crate::config::flag::Location;
use crate::control::{ControlRows, Keeper};
use crate::cutover::standing;
use crate::failure::Failure;
use crate::lease::heart::Heart;
use crate::numbers::NumberError;
use crate::peer::OnExisting;
use crate::retry::{self, GaveUp, Jitter, Policy};
use crate::state::{Row, StateError};
use crate::task::Tasks;
use crate::telemetry::board::Board;
use crate::telemetry::http::{self, Admin};
use crate::telemetry::metrics::Metrics;
use rows::{Job, Rows};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinError;
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
    /// Where an export of the source is, to be read instead of the source: what holds `manifest-summary.json`.
    pub export: Option<Location>,
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
    /// A feed's place cannot be used.
    #[error("feed {feed}: its place cannot be used: {why}")]
    Feed {
        /// The feed.
        feed: String,
        /// Why not.
        why: Failure,
    },
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
    /// It would write to the side where writers are.
    #[error("{0}")]
    Idle(String),
    /// What was read in one turn of a cutover may be old in another.
    #[error(
        "the writers of route {0} are being moved, so this backfill ends: what it has read may be old when they come back. \
         It goes on where it was, with the same command, once it is its turn again"
    )]
    Moved(String),
    /// It cannot be begun anew while somebody works on it.
    #[error("{0} works on this backfill; stop it first")]
    Busy(String),
    /// Whose an item is at a pristine peer, nobody can tell.
    #[error(
        "route {0} is pristine: nothing tells what was at its peers before from what changes have brought since, so neither can \
         be kept. What the source holds takes the place of whatever is there under its keys: say so with --on-existing overwrite"
    )]
    Pristine(String),
    /// A worker may not have seen what was written for all of them.
    #[error(
        "worker {0} beats and does not see that the new shape is accepted; mend or stop it, then start the same again"
    )]
    Unheard(String),
    /// The route's shape does not fit its source, or is not the one that the peers' items have.
    #[error("{0}")]
    Shape(String),
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

/// One process of a backfill.
pub struct Backfill {
    request: Request,
    /// The turn of the route's cutover, in which this ends.
    turn: u64,
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
        let Self {
            request,
            turn,
            fresh,
            parts,
            heart,
            keeper,
            rows,
            config,
            jitter,
            metrics,
            admin: _,
            drain,
        } = self;
        helpers.spawn(keeper.run(jitter.clone(), stop.clone()));
        let moved = CancellationToken::new();
        helpers.spawn(within(turn, parts.route.clone(), heart.controls(), moved.clone(), stop.clone()));
        let join = join::Join { request: &request, fresh, heart: &heart, rows: &rows, parts: &parts };
        let joined = Box::pin(retry_unless(&drain, join.find(&config, &jitter))).await;
        let ended = match joined {
            Ok(Some(job)) => {
                let rest = CancellationToken::new();
                let shared =
                    Arc::new(parts.share(&config, &job, rows.clone(), jitter, metrics.clone(), rest));
                let crew = crew::Crew {
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
                    moved,
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

/// Cancels `moved` as soon as a turn of the route's cutover is over, or about to be.
async fn within(
    turn: u64,
    route: Route,
    mut controls: ControlRows,
    moved: CancellationToken,
    stop: CancellationToken,
) {
    loop {
        let over = |rows: &Vec<Row>| standing::turn(&route, rows) != Ok(turn);
        if controls.borrow_and_update().as_deref().is_some_and(over) {
            return moved.cancel();
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = controls.changed() => if changed.is_err() { return },
        }
    }
}
