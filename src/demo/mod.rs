//! The demo: the whole service on real input, against the embedded sandbox, judged by others.
//!
//! The [`stage`] is three accounts with a table each and the replicator in a fourth. The [`load`] is an
//! application in the source's account. The service is the one that `run` runs, with the same clients; only its
//! HTTP connector leads into the sandbox. An [`observer`] in each peer's account measures the lag, and
//! [`compare`](mod@compare) reads all items from the sandbox itself. This module owns the order of events and nothing of
//! what it shows; how it looks is left to the command.

pub mod active;
pub mod compare;
pub mod figures;
pub mod load;
pub mod observer;
pub mod stage;

use crate::clock::Clock;
use crate::failure::Failure;
use crate::sandbox::error::ApiError;
use crate::service::{self, Service, ServiceError};
use crate::task::Tasks;
use crate::telemetry::metrics::Metrics;
use compare::compare;
use figures::{Changes, Figures, Peer, PeerProgress, Phase, Place, Progress, Shards, Split};
use load::{Load, Tally};
use observer::{Lag, Observer};
use stage::Stage;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The pause between two pictures.
const SHOW: Duration = Duration::from_millis(100);
/// When nothing was done for this long although something is due, something is lost or stuck. Changes come about
/// every 200 ms.
const STUCK: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long the application writes.
    pub length: Duration,
    /// Writes a second, at most.
    pub rate: u32,
    /// Decides the writes, the sandbox's chance and the service's pauses.
    pub seed: u64,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The sandbox.
    #[error("sandbox: {0}")]
    Sandbox(#[from] ApiError),
    /// The embedded config.
    #[error("{0}")]
    Config(#[from] crate::config::Report),
    /// The policies that let the replicator in.
    #[error("{0}")]
    Policy(#[from] crate::access::policy::PolicyError),
    /// The embedded airports.
    #[error("the embedded airports cannot be read")]
    Airports,
    /// The service.
    #[error("the service failed: {0}")]
    Service(#[from] ServiceError),
    /// A call of somebody in the demo.
    #[error("{who} failed: {failure}")]
    Call {
        /// Who called.
        who: &'static str,
        /// What failed.
        failure: Failure,
    },
    /// What was written before the service started does not arrive.
    #[error("the backlog is not copied, and nothing more of it comes")]
    Stuck,
    /// A part of the demo ended before it was asked to.
    #[error("{0} ended early")]
    Ended(&'static str),
}

/// Runs the demo; `show` is called ten times a second. Cancelling `stop` ends the load early, and the rest
/// follows as if its time had come.
///
/// # Errors
/// [`DemoError`]. That the members differ is none: the figures tell.
pub async fn run(
    options: Options,
    stop: &CancellationToken,
    show: &mut (dyn FnMut(&Progress) + Send),
) -> Result<Figures, DemoError> {
    let Options { length, rate, seed } = options;
    // Setting up makes one large future, once.
    let stage = Box::pin(Stage::build(seed)).await?;
    let denied_before_policies = stage.denied().await?;
    stage.let_in()?;
    let source = stage.source();
    let writer = ["dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem"];
    let application = stage.local(source, "application", &writer)?;
    let (mut load, tally) = Load::new(application, &source.arn.table, seed)?;
    load.fill().await?;
    let backlog = tally.borrow().total();

    let drain = CancellationToken::new();
    let built = service::Options {
        base: stage.base.clone(),
        create_state_table: false,
        clock: Clock::system(),
        seed,
    };
    let service = Box::pin(Service::build(stage.config.clone(), built, drain.clone())).await?;
    let metrics = service.metrics().clone();
    let mut run =
        Run { stage: &stage, metrics, tally, lags: Vec::new(), began: Instant::now(), service: Tasks::new() };
    run.service.spawn(service.run());
    if !run.until_caught_up(Phase::CatchingUp, show).await? {
        return Err(DemoError::Stuck);
    }

    let (quiet, unobserved) = (CancellationToken::new(), CancellationToken::new());
    let mut observers = Tasks::new();
    let mut told = Vec::new();
    for (index, member) in stage.peers().enumerate() {
        let client = stage.local(member, "reader", &["dynamodb:BatchGetItem"])?;
        let (observer, lag) = Observer::new(client, &member.arn.table);
        let (sender, writes) = mpsc::channel(observer::QUEUE);
        let unobserved = unobserved.clone();
        observers.spawn(async move { (index, observer.run(writes, unobserved).await) });
        run.lags.push(lag);
        told.push(sender);
    }
    run.began = Instant::now();
    let mut writing = Tasks::new();
    writing.spawn(load.run(rate, told, quiet.clone()));
    let split = run.under_load(length, &mut writing, stop, show).await?;
    let load_seconds = run.began.elapsed().as_secs_f64();
    quiet.cancel();
    joined(&mut writing, "the application").await??;

    let silent = Instant::now();
    let caught_up = run.until_caught_up(Phase::Settling, show).await?;
    let settle_seconds = silent.elapsed().as_secs_f64();
    unobserved.cancel();
    let mut lags = vec![Lag::default(); run.lags.len()];
    while !observers.is_empty() {
        let (index, lag) = joined(&mut observers, "a reader").await?;
        lags[index] = lag?;
    }
    drain.cancel();
    joined(&mut run.service, "the service").await??;

    let comparison = compare(&stage)?;
    let peers =
        stage.peers().zip(comparison.peers).zip(lags).map(|((member, (items, difference)), lag)| Peer {
            place: place(member, items),
            changes: run.changes(&member.name),
            requests: run.metrics.peer_requests.with_label_values(&[run.route(), &member.name]).get(),
            lag,
            difference,
        });
    let peers: Vec<Peer> = peers.collect();
    let writes: Tally = *run.tally.borrow();
    Ok(Figures {
        seed,
        agree: peers.iter().all(|peer| peer.difference.is_empty()),
        caught_up,
        interrupted: stop.is_cancelled(),
        load_seconds: tenths(load_seconds),
        settle_seconds: tenths(settle_seconds),
        backlog,
        writes,
        records_read: run.metrics.records_read.with_label_values(&[run.route()]).get(),
        shards: run.shards()?,
        split,
        denied_before_policies,
        role: stage.role.clone(),
        source: place(source, comparison.source),
        peers,
    })
}

/// The running parts.
struct Run<'a> {
    stage: &'a Stage,
    metrics: Metrics,
    tally: watch::Receiver<Tally>,
    lags: Vec<watch::Receiver<Lag>>,
    began: Instant,
    service: Tasks<Result<(), ServiceError>>,
}

impl Run<'_> {
    /// Shows the load until its time is over or it is stopped, and splits the shards halfway.
    async fn under_load(
        &mut self,
        length: Duration,
        writing: &mut Tasks<Result<(), DemoError>>,
        stop: &CancellationToken,
        show: &mut (dyn FnMut(&Progress) + Send),
    ) -> Result<Option<Split>, DemoError> {
        let mut split = None;
        while self.began.elapsed() < length && !stop.is_cancelled() {
            let left = length.saturating_sub(self.began.elapsed()).min(SHOW);
            tokio::select! {
                ended = joined(writing, "the application") => {
                    ended??;
                    return Err(DemoError::Ended("the application"));
                }
                ended = self.ended() => return Err(ended),
                () = stop.cancelled() => {}
                () = tokio::time::sleep(left) => {}
            }
            let at = self.began.elapsed();
            if split.is_none() && at >= length / 2 {
                let from = self.shards()?.open;
                self.stage.sandbox.split(&self.stage.source().arn.to_string(), None)?;
                split = Some(Split { from, to: self.shards()?.open, at_seconds: tenths(at.as_secs_f64()) });
            }
            show(&self.progress(Phase::Load)?);
        }
        Ok(split)
    }

    /// Waits until every write is done at every peer; `false` when nothing more comes.
    async fn until_caught_up(
        &mut self,
        phase: Phase,
        show: &mut (dyn FnMut(&Progress) + Send),
    ) -> Result<bool, DemoError> {
        let mut moved = (0, Instant::now());
        loop {
            let progress = self.progress(phase)?;
            show(&progress);
            // Every write makes one record, and every record has one outcome at each peer.
            if progress.peers.iter().all(|peer| peer.changes.total() >= progress.writes) {
                return Ok(true);
            }
            let done = progress.peers.iter().map(|peer| peer.changes.total()).sum::<u64>();
            if done > moved.0 {
                moved = (done, Instant::now());
            } else if moved.1.elapsed() > STUCK {
                return Ok(false);
            }
            tokio::select! {
                ended = self.ended() => return Err(ended),
                () = tokio::time::sleep(SHOW) => {}
            }
        }
    }

    /// The service has ended without being asked to.
    async fn ended(&mut self) -> DemoError {
        match joined(&mut self.service, "the service").await {
            Ok(Ok(())) => DemoError::Ended("the service"),
            Ok(Err(error)) => error.into(),
            Err(error) => error,
        }
    }

    fn progress(&self, phase: Phase) -> Result<Progress, DemoError> {
        let peer = |(index, member): (usize, &crate::config::Member)| PeerProgress {
            name: member.name.clone(),
            changes: self.changes(&member.name),
            lag: self.lags.get(index).map(|lag| *lag.borrow()).unwrap_or_default(),
        };
        Ok(Progress {
            phase,
            elapsed: self.began.elapsed(),
            writes: self.tally.borrow().total(),
            shards: self.shards()?,
            peers: self.stage.peers().enumerate().map(peer).collect(),
        })
    }

    fn route(&self) -> &str {
        &self.stage.config.routes[0].name
    }

    fn changes(&self, peer: &str) -> Changes {
        let count =
            |outcome: &str| self.metrics.writes.with_label_values(&[self.route(), peer, outcome]).get();
        Changes {
            applied: count("applied"),
            superseded: count("superseded"),
            folded: count("folded"),
            skipped: count("skipped"),
            dead: count("dead"),
        }
    }

    fn shards(&self) -> Result<Shards, DemoError> {
        let shards = self.stage.sandbox.shards(&self.stage.source().arn.to_string())?;
        let open = shards.iter().filter(|shard| shard.open).count();
        Ok(Shards { open, closed: shards.len() - open })
    }
}

/// The next task to end; one that broke down, or is not there, is an error.
async fn joined<T: Send + 'static>(tasks: &mut Tasks<T>, who: &'static str) -> Result<T, DemoError> {
    tasks.join_next().await.and_then(Result::ok).ok_or(DemoError::Ended(who))
}

fn place(member: &crate::config::Member, items: usize) -> Place {
    Place {
        name: member.name.clone(),
        account: member.arn.account.clone(),
        region: member.arn.region.clone(),
        table: member.arn.table.clone(),
        items,
    }
}

fn tenths(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}
