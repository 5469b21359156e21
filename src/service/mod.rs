//! The service: `Config` -> [`Service::build`] -> [`Service::run`]. Nothing is started while building.
//!
//! `follow` puts a route's parts together, and follows its source from one stream to the next.

mod follow;

use crate::access::finding::Findings;
use crate::access::preflight::{Found, Preflight};
use crate::aws::{Aws, Base};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::control::{Controls, Gates, Keeper};
use crate::cutover::standing::walk;
use crate::failure::Failure;
use crate::gaps::Gaps;
use crate::lease::heart::Heart;
use crate::ledger::Ledger;
use crate::limit::Rate;
use crate::loss::TimeToLoss;
use crate::members::Members;
use crate::numbers::{self, NumberError};
use crate::retry::{self, GaveUp, Jitter, Policy};
use crate::shape::{Shape, accepted};
use crate::state::{StateError, StateTable};
use crate::tables::{Watch, Watched};
use crate::task::Tasks;
use crate::telemetry::board::Board;
use crate::telemetry::http::{self, Admin};
use crate::telemetry::metrics::Metrics;
use follow::{Builder, Followed};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What a service is built with, beside its config.
#[derive(Debug, Clone)]
pub struct Options {
    /// What all clients share.
    pub base: Base,
    /// Make the state table when it does not exist.
    pub create_state_table: bool,
    /// The clock.
    pub clock: Clock,
    /// Decides the pauses and the worker's suffix.
    pub seed: u64,
}

/// Why a service could not start, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The state table.
    #[error(transparent)]
    State(#[from] StateError),
    /// What must hold before a route may run.
    #[error("{0}")]
    Access(#[from] Findings),
    /// A member of a group has a number that is not its own.
    #[error(transparent)]
    Number(#[from] NumberError),
    /// The state table's rows.
    #[error("state table: {0}")]
    Rows(Failure),
    /// The address of the metrics.
    #[error(
        "cannot listen on {address} for metrics and health: {source}; set [admin] listen to another address, or \"off\""
    )]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A route's shape does not fit its source.
    #[error("the shape of route {route} does not fit: {why}")]
    Shape {
        /// The route.
        route: String,
        /// Why.
        why: String,
    },
    /// The source's stream is not the one that the route read before.
    #[error(
        "route {route}: the stream of {member} was turned off and on: it was {old} and is {new} now; what the old one \
         still held, and what was written while it was off, is not in the new one. Start with on_gap = \
         \"continue\" to go on with the new stream; then mend what was lost: shardwalker verify, --repair"
    )]
    NewStream {
        /// The route.
        route: String,
        /// The source member.
        member: String,
        /// The old stream's label.
        old: String,
        /// The new stream's label.
        new: String,
    },
    /// Stopped before it began.
    #[error("stopped while starting")]
    Stopped,
    /// The work did not end within the grace period.
    #[error("not all work was done within {0:?}; what was not checkpointed is read again at the next start")]
    Grace(std::time::Duration),
}

impl From<GaveUp> for ServiceError {
    fn from(gave_up: GaveUp) -> Self {
        match gave_up {
            GaveUp::Failed(failure) => Self::Rows(failure),
            GaveUp::Cancelled => Self::Stopped,
        }
    }
}

/// One worker: all routes of a config.
pub struct Service {
    config: Arc<Config>,
    heart: Arc<Heart>,
    keeper: Keeper,
    clock: Clock,
    jitter: Jitter,
    watch: Watch,
    routes: Vec<Followed>,
    board: Board,
    metrics: Metrics,
    admin: Option<TcpListener>,
    drain: CancellationToken,
}

impl Service {
    /// Checks what must hold, and puts the parts together. Cancelling `drain` later asks the service to stop.
    ///
    /// # Errors
    /// [`ServiceError`]: everything that does not hold, at once.
    pub async fn build(
        config: Config,
        options: Options,
        drain: CancellationToken,
    ) -> Result<Self, ServiceError> {
        let metrics = Metrics::new()?;
        let board = Board::new();
        let base = Base { request_timeout: Some(config.write.request_timeout), ..options.base };
        let aws = Aws::new(base);
        let jitter = Jitter::seeded(options.seed);
        let state = StateTable::new(&config.state, &aws.clients(&config.state.access).await, metrics.clone());
        Box::pin(state.open(options.create_state_table, config.access_patience)).await?;
        let admin = match config.admin.listen {
            None => None,
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .map_err(|source| ServiceError::Listen { address, source })?,
            ),
        };
        let preflight = Preflight::new(&config, &aws, &jitter, &drain);
        let patient = Policy::for_at_most(config.access_patience);
        let load = || Members::load(&state, &config);
        let members = retry::run(patient, &jitter, &drain, |_, _| (), load).await?;
        let found = Box::pin(preflight.start(&members.known(&config))).await?;
        if drain.is_cancelled() {
            return Err(ServiceError::Stopped);
        }
        let keep = || members.keep(&state, &config, &found);
        retry::run(patient, &jitter, &drain, |_, _| (), keep).await?;
        for group in &config.groups {
            let claim = || numbers::claim(&state, options.clock, &config, group);
            Box::pin(retry::run(patient, &jitter, &drain, |_, _| (), claim)).await??;
        }
        let worker = worker_name(&config.lease, options.seed);
        let heart = Arc::new(Heart::new(
            state.clone(),
            worker.into(),
            options.clock,
            &config.lease,
            config.write.request_timeout,
            jitter.clone(),
        ));
        heart.publishes(board.clone());
        let controls = Controls::new(state.clone(), options.clock);
        let shapes = shapes(&config, &found)?;
        let expected = accepted::expected(&config, |route| Some(shapes.get(route)?.identity()));
        let claim = || accepted::claim(&state, options.clock, &expected);
        Box::pin(retry::run(patient, &jitter, &drain, |_, _| (), claim)).await?;
        let (gates, keeper) = Gates::new(config.lanes(), expected, controls.clone());
        let rows = retry::run(patient, &jitter, &drain, |_, _| (), || controls.rows()).await;
        let rows = rows.map_err(ServiceError::from)?;
        gates.apply(&rows);
        heart.obeys(gates.clone());
        for (route, peer, pause) in gates.all() {
            if let Some(pause) = pause.filter(|pause| pause.by == accepted::SHAPE) {
                tracing::error!(route, peer, "NOTHING IS WRITTEN to this peer: {}", pause.why);
            }
        }
        board.has(gates.clone(), options.clock);
        let watch = Watch {
            tables: watched(&config, &aws).await,
            state: state.clone(),
            gaps: Gaps::new(state.clone(), options.clock),
            gates: gates.clone(),
            clock: options.clock,
            metrics: metrics.clone(),
        };
        watch.look().await;
        let mut budgets: BTreeMap<String, Arc<Rate>> = BTreeMap::new();
        let rate = f64::from(config.read.describe_rate);
        for route in &config.routes {
            let account = config.members[route.from].arn.account.clone();
            budgets.entry(account).or_insert_with(|| Arc::new(Rate::new(rate)));
            if walk(route, &rows).is_some() {
                board.expects(&route.name, config.read.list_interval);
            }
        }
        let config = Arc::new(config);
        let builder = Arc::new(Builder {
            ledger: Ledger::new(state.clone(), options.clock, config.state.tombstone_retention),
            config: Arc::clone(&config),
            aws,
            gates,
            state,
            clock: options.clock,
            jitter: jitter.clone(),
            found,
            shapes,
            budgets,
            heart: Arc::clone(&heart),
            metrics: metrics.clone(),
            board: board.clone(),
            drain: drain.clone(),
        });
        let mut routes = Vec::new();
        for route in 0..config.routes.len() {
            routes.push(Box::pin(Arc::clone(&builder).route(route, &rows)).await?);
        }
        let clock = options.clock;
        Ok(Self { config, heart, keeper, watch, clock, jitter, routes, board, metrics, admin, drain })
    }

    /// What the service shows of its work.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// This worker's name in the state table.
    #[must_use]
    pub fn worker(&self) -> &str {
        self.heart.worker()
    }

    /// The metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The address of `/metrics` and `/healthz`, when it listens.
    #[must_use]
    pub fn admin_address(&self) -> Option<std::net::SocketAddr> {
        self.admin.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Runs until asked to drain, and until what was taken is done, within the grace period.
    ///
    /// # Errors
    /// [`ServiceError::Rows`] when this worker could not show itself even once;
    /// [`ServiceError::Grace`] when the work did not end in time.
    pub async fn run(self) -> Result<(), ServiceError> {
        let Self {
            config,
            heart,
            keeper,
            watch,
            clock,
            jitter,
            routes: followed,
            board,
            metrics,
            admin,
            drain,
        } = self;
        let stop_heart = CancellationToken::new();
        let stop_admin = CancellationToken::new();
        let mut helpers = Tasks::new();
        if let Some(listener) = admin {
            let metrics = metrics.clone();
            let admin = Admin { board: board.clone(), metrics, stall_after: config.admin.stall_after };
            helpers.spawn(http::serve(listener, admin, stop_admin.clone()));
        }
        let policy = Policy::for_at_most(config.access_patience);
        // The others are known before the first lease is taken.
        let once = || async {
            heart.beat().await?;
            heart.look().await
        };
        let first = retry::run(policy, &Jitter::seeded(0), &drain, |_, _| (), once).await;
        match first {
            Ok(()) => {}
            Err(GaveUp::Failed(failure)) => return Err(ServiceError::Rows(failure)),
            Err(GaveUp::Cancelled) => return Ok(()),
        }
        tracing::info!(worker = &**heart.worker(), routes = followed.len(), "working");
        let beating = Arc::clone(&heart);
        let stop = stop_heart.clone();
        helpers.spawn(async move { beating.run(stop).await });
        helpers.spawn(keeper.run(jitter.clone(), stop_heart.clone()));
        let loss = TimeToLoss::new(board.clone(), metrics.clone(), clock);
        helpers.spawn(loss.run(stop_heart.clone()));
        helpers.spawn(watch.run(stop_heart.clone()));
        let mut routes = Tasks::new();
        let waiting = Arc::new(AtomicUsize::new(followed.len()));
        for route in followed {
            let (waiting, board) = (Arc::clone(&waiting), board.clone());
            routes.spawn(route.run(move || {
                if waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
                    board.ready();
                }
            }));
        }
        drain.cancelled().await;
        board.draining();
        let finish = async { while routes.join_next().await.is_some() {} };
        let in_time = tokio::time::timeout(config.grace, finish).await;
        routes.abort_all().await;
        stop_heart.cancel();
        stop_admin.cancel();
        let leave = async { while helpers.join_next().await.is_some() {} };
        if tokio::time::timeout(LEAVE, leave).await.is_err() {
            helpers.abort_all().await;
        }
        in_time.map_err(|_| ServiceError::Grace(config.grace))
    }
}

/// The shapes of the routes that have one, by their names.
fn shapes(config: &Config, found: &[Option<Found>]) -> Result<BTreeMap<String, Arc<Shape>>, ServiceError> {
    let mut shapes = BTreeMap::new();
    for route in &config.routes {
        let source = found.get(route.from).and_then(Option::as_ref);
        let (Some(shape), Some(source)) = (&route.shape, source) else { continue };
        let fitted = Shape::fit(shape, &source.keys).map_err(|wrong| {
            let (route, why) = (route.name.clone(), wrong.join("; "));
            ServiceError::Shape { route, why }
        })?;
        shapes.insert(route.name.clone(), Arc::new(fitted));
    }
    Ok(shapes)
}

/// The tables of all routes' members.
async fn watched(config: &Config, aws: &Aws) -> Vec<Watched> {
    let mut tables = Vec::new();
    for route in &config.routes {
        for member in std::iter::once(&route.from).chain(&route.to).map(|index| &config.members[*index]) {
            tables.push(Watched {
                route: route.name.clone(),
                on_gap: route.on_gap,
                member: member.name.clone(),
                table: member.arn.to_string(),
                client: aws.clients(&member.access).await.tables,
            });
        }
    }
    tables
}

/// After the work is done, this worker's row is removed and open connections are answered, at most so long.
const LEAVE: Duration = Duration::from_secs(2);

/// The configured name, or the host's, with a suffix that makes every start another worker.
pub(crate) fn worker_name(config: &config::Lease, seed: u64) -> String {
    let host =
        || std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned());
    let name = config.worker.clone().or_else(host).unwrap_or_else(|| "worker".to_owned());
    format!("{name}-{:08x}", seed as u32 ^ (seed >> 32) as u32)
}
