//! Finding out what must hold, pinning the stream, and joining a backfill or beginning one.

use super::copy::{Copier, Target};
use super::export::Export;
use super::rows::{Job, Known, Rows, State};
use super::scan::TableScan;
use super::segment::Shared;
use super::source::{Source, SourceError};
use super::{Backfill, BackfillError, PARALLEL, Request};
use crate::access::finding::Finding;
use crate::access::needs::Action;
use crate::access::preflight::{Found, Preflight};
use crate::aws::{Aws, Base};
use crate::clock::Clock;
use crate::config::{Config, Route, Start};
use crate::connect::Connector;
use crate::control::{Controls, Gates};
use crate::dead_letters::DeadLetters;
use crate::failure::{Class, Failure};
use crate::item::Key;
use crate::lease::heart::Heart;
use crate::ledger::Ledger;
use crate::limit::Rate;
use crate::numbers;
use crate::peer::{OnExisting, Peer};
use crate::retry::{self, GaveUp, Jitter, Policy};
use crate::service::{Options, worker_name};
use crate::starts;
use crate::state::StateTable;
use crate::telemetry::metrics::Metrics;
use aws_sdk_dynamodb::Client;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A segment is about so large, unless there would be too few or too many of them: one is read in some minutes, and
/// there is enough for several processes to share.
const SEGMENT: u64 = 256 << 20;
const FEWEST: u64 = 8;
/// An export that is begun must not become too old for so long at least.
const ROOM: Duration = Duration::from_secs(3600);
const MOST: u64 = 256;

/// What segments need, once it is known which backfill they are of.
pub(super) struct Parts {
    pub(super) route: Route,
    pub(super) peers: Vec<Arc<Peer>>,
    /// The key attributes' names.
    pub(super) keys: Vec<String>,
    pub(super) client: Client,
    /// The source's ARN.
    pub(super) table: String,
    pub(super) clock: Clock,
    pub(super) request: Request,
    pub(super) dead_letters: DeadLetters,
    pub(super) export: Option<Arc<Export>>,
    pub(super) heart: Arc<Heart>,
}

impl Backfill {
    /// Checks what must hold and pins the route's place in the stream. Reads and writes no item, but for one scanned to see
    /// that it may be. With `listen` the metrics are served there.
    ///
    /// # Errors
    /// [`BackfillError`].
    pub async fn build(
        config: Config,
        request: Request,
        options: Options,
        listen: Option<SocketAddr>,
        drain: CancellationToken,
    ) -> Result<Self, BackfillError> {
        let siblings = siblings(&config, &request.route);
        let config = only(config, &request)?;
        let route = config.routes.first().ok_or(BackfillError::Stopped)?.clone();
        let metrics = Metrics::new()?;
        let base = Base { request_timeout: Some(config.write.request_timeout), ..options.base };
        let (aws, jitter) = (Aws::new(base), Jitter::seeded(options.seed));
        let state = StateTable::new(&config.state, &aws.clients(&config.state.access).await, metrics.clone());
        Box::pin(state.open(options.create_state_table, config.access_patience)).await?;
        let admin = match listen {
            None => None,
            Some(address) => Some(TcpListener::bind(address).await.map_err(BackfillError::Listen)?),
        };
        let preflight = Preflight { config: &config, aws: &aws, jitter: &jitter, cancel: &drain };
        let found = Box::pin(preflight.run()).await?;
        let source = found_of(&found, route.from)?;
        same_keys(&config, &route, &found)?;
        let patient = Policy::for_at_most(config.access_patience);
        if let Some(group) = route.group.and_then(|group| config.groups.get(group)) {
            let claim = || numbers::claim(&state, options.clock, &config, group);
            Box::pin(retry::run(patient, &jitter, &drain, |_, _| (), claim)).await??;
        }
        let stream = source.stream.as_ref().map(|stream| stream.label.clone()).unwrap_or_default();
        let pin = || starts::begun(&state, options.clock, &route.name, &stream);
        let pinned = retry::run(patient, &jitter, &drain, |_, _| (), pin).await?;
        // What is copied to a member of a group shows in its stream, which is to be followed from before.
        for (name, member) in siblings.iter().filter(|(_, member)| route.to.contains(member)) {
            if let Some(theirs) = &found_of(&found, *member)?.stream {
                let pin = || starts::begun(&state, options.clock, name, &theirs.label);
                retry::run(patient, &jitter, &drain, |_, _| (), pin).await?;
            }
        }
        if let Start::At(start) = route.start
            && start > options.clock.now()
        {
            let start = humantime::format_rfc3339_seconds(start).to_string();
            return Err(BackfillError::StartsLater { route: route.name, start });
        }
        if let Some(older) = pinned.after {
            tracing::warn!(
                route = route.name,
                older,
                "the source's stream is a new one; the service decides when to go on with it"
            );
        }
        let member = &config.members[route.from];
        let client = aws.clients(&member.access).await.tables;
        let table = member.arn.to_string();
        let describe = || async { Ok(client.describe_table().table_name(&table).send().await?) };
        let described = retry::run(patient, &jitter, &drain, |_, _| (), describe).await?.table;
        let size = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok()).unwrap_or_default();
        let items = size(described.as_ref().and_then(|table| table.item_count()));
        let bytes = size(described.as_ref().and_then(|table| table.table_size_bytes()));
        let export = match &request.export {
            None => {
                let probe = TableScan::new(client.clone(), table.clone(), 1, !request.eventual, None);
                let once = || async { probe.page(0, None, 1).await.map(drop) };
                match retry::run(patient, &jitter, &drain, |_, _| (), once).await {
                    Err(GaveUp::Failed(failure)) if failure.class == Class::Denied => {
                        return Err(may_not_scan(&member.name, &table, &failure).into());
                    }
                    probed => probed?,
                }
                None
            }
            Some(folder) => {
                let export = Export::open(folder)?;
                let now = options.clock.now();
                let retention = config.state.tombstone_retention;
                fits(&export, &table, &source.id, route.start, pinned.at, now, retention)?;
                Some(Arc::new(export))
            }
        };
        let worker = format!("backfill-{}", worker_name(&config.lease, options.seed));
        let timeout = config.write.request_timeout;
        let heart =
            Heart::new(state.clone(), worker.into(), options.clock, &config.lease, timeout, jitter.clone());
        let heart = Arc::new(heart.of_backfill());
        let controls = Controls::new(state.clone(), options.clock);
        let (gates, keeper) = Gates::new(config.lanes(), controls.clone());
        gates.apply(&retry::run(patient, &jitter, &drain, |_, _| (), || controls.rows()).await?);
        let connector = Connector {
            config: &config,
            aws: &aws,
            ledger: Ledger::new(state.clone(), options.clock, config.state.tombstone_retention),
            state: state.clone(),
            gates: Some(&gates),
            heart: Some(&heart),
            clock: options.clock,
            metrics: &metrics,
        };
        let (mut peers, mut tables) = (Vec::new(), BTreeMap::new());
        for &peer in &route.to {
            let found = found_of(&found, peer)?;
            tables.insert(config.members[peer].name.clone(), found.id.clone());
            peers.push(Arc::new(connector.peer(&route, peer, found).await));
        }
        let now = options.clock.now();
        let fresh = Job {
            run: 1,
            source: export.as_ref().map_or_else(|| "scan".to_owned(), |export| export.arn.clone()),
            table: source.id.clone(),
            peers: tables,
            stream,
            segments: match &export {
                Some(export) => export.segments(),
                None => request.segments.unwrap_or((bytes / SEGMENT).clamp(FEWEST, MOST) as u32),
            },
            existing: request.existing.unwrap_or(OnExisting::Fail),
            items: export.as_ref().map_or(items, |export| export.items),
            bytes: export.as_ref().map_or(bytes, |export| export.bytes),
            begun: now,
            state: State::Running,
            since: now,
        };
        let rows = Rows::new(state.clone(), &route.name, request.peer.as_deref(), Arc::clone(heart.worker()));
        let parts = Parts {
            keys: source.keys.iter().map(|(name, _)| name.clone()).collect(),
            peers,
            client,
            table,
            clock: options.clock,
            request: request.clone(),
            dead_letters: DeadLetters::new(state, options.clock, config.dead_letters.per_key),
            export,
            heart: Arc::clone(&heart),
            route,
        };
        Ok(Self { request, fresh, parts, heart, keeper, rows, config, jitter, metrics, admin, drain })
    }
}

/// The routes of the same group, each with its source; none on a one-way route.
fn siblings(config: &Config, route: &str) -> Vec<(String, usize)> {
    let group = config.routes.iter().find(|known| known.name == route).and_then(|route| route.group);
    let same = config.routes.iter().filter(|known| group.is_some() && known.group == group);
    same.map(|route| (route.name.clone(), route.from)).collect()
}

/// The config with this route and these peers alone.
fn only(mut config: Config, request: &Request) -> Result<Config, BackfillError> {
    let no_route = || BackfillError::NoRoute(request.route.clone());
    config.routes.retain(|route| route.name == request.route);
    let Config { routes, members, .. } = &mut config;
    let route = routes.first_mut().ok_or_else(no_route)?;
    if let Some(peer) = &request.peer {
        route.to.retain(|index| members[*index].name == *peer);
    }
    if route.to.is_empty() {
        return Err(no_route());
    }
    Ok(config)
}

fn found_of(found: &[Option<Found>], index: usize) -> Result<&Found, BackfillError> {
    // Preflight has found every member of the route, or said why not.
    found.get(index).and_then(Option::as_ref).ok_or(BackfillError::Stopped)
}

/// A group's tables are compared with its first member's only.
fn same_keys(config: &Config, route: &Route, found: &[Option<Found>]) -> Result<(), BackfillError> {
    let keys = &found_of(found, route.from)?.keys;
    for &peer in &route.to {
        if found_of(found, peer)?.keys != *keys {
            let what = format!("its primary key differs from that of {}", config.members[route.from].name);
            let remedy = format!(
                "the tables of route {} must have the same key attributes, by name and type",
                route.name
            );
            return Err(Finding::new(&config.members[peer].name, None, what, remedy).into());
        }
    }
    Ok(())
}

/// Whether an export is of this table, and of a time that the stream and the ledger reach back to.
fn fits(
    export: &Export,
    table: &str,
    id: &str,
    start: Start,
    pinned: SystemTime,
    now: SystemTime,
    retention: Duration,
) -> Result<(), BackfillError> {
    let time = |at| humantime::format_rfc3339_seconds(at).to_string();
    if export.table != table {
        return Err(SourceError::Export(format!("it is of {}", export.table)).into());
    }
    if !export.id.is_empty() && export.id != id {
        return Err(BackfillError::Replaced("the source's table was deleted and made again"));
    }
    let from = match start {
        Start::At(start) => pinned.max(start),
        Start::Latest | Start::TrimHorizon => pinned,
    };
    if export.at < from {
        return Err(BackfillError::ExportTooEarly { export: time(export.at), pinned: time(from) });
    }
    Ok(export.fresh(now + ROOM, retention)?)
}

fn may_not_scan(member: &str, table: &str, failure: &Failure) -> Finding {
    let remedy = format!(
        "allow dynamodb:Scan on {table}, in the identity policy of the role that makes the call, and across accounts in \
         the table's resource policy as well; it is needed for a backfill only (`policy --features backfill`)"
    );
    Finding::new(member, Some(Action::Scan), failure.to_string(), remedy)
}

impl Parts {
    /// What the segments of a job share. `rest` asks them to come to rest.
    pub(super) fn share(
        self,
        config: &Config,
        job: &Job,
        rows: Rows,
        jitter: Jitter,
        metrics: Metrics,
        rest: CancellationToken,
    ) -> Shared {
        let Self { route, request, .. } = self;
        let parallel = request.parallel.unwrap_or(PARALLEL).max(1);
        let target = |peer: Arc<Peer>| Target {
            units: request.write_units.map(|units| Rate::new(f64::from(units))),
            spent: metrics.backfill_write_units.with_label_values(&[&*route.name, peer.name()]),
            peer,
        };
        let copier = Copier {
            route: route.name.clone(),
            targets: self.peers.into_iter().map(target).collect(),
            keys: self.keys,
            stamp: route.stamp,
            member: config.members[route.from].number,
            group: route.group.is_some(),
            existing: job.existing,
            max_drift: route.max_clock_drift,
            in_flight: config.write.in_flight.div_ceil(parallel),
            dead_letters: self.dead_letters,
            clock: self.clock,
            jitter: jitter.clone(),
            metrics: metrics.clone(),
        };
        let scan =
            || TableScan::new(self.client, self.table, job.segments, !request.eventual, request.read_units);
        Shared {
            route: route.name,
            source: self.export.map_or_else(|| Source::Scan(scan()), Source::Export),
            copier,
            rows,
            heart: self.heart,
            keep: config.state.tombstone_retention,
            clock: self.clock,
            jitter,
            metrics,
            drain: rest,
        }
    }
}

/// Finds the backfill that is asked for, or begins it.
pub(super) struct Join<'a> {
    pub(super) request: &'a Request,
    pub(super) fresh: Job,
    pub(super) heart: &'a Heart,
    pub(super) rows: &'a Rows,
    pub(super) parts: &'a Parts,
}

impl Join<'_> {
    /// The backfill to work on; `None` when it is done.
    ///
    /// # Errors
    /// [`BackfillError`].
    pub(super) async fn find(&self, config: &Config, jitter: &Jitter) -> Result<Option<Job>, BackfillError> {
        let cancel = CancellationToken::new();
        let policy = Policy::for_at_most(config.access_patience);
        let load = || self.rows.load();
        let mut restart = self.request.restart;
        loop {
            let known = retry::run(policy, jitter, &cancel, |_, _| (), load).await?;
            let (job, before) = match known {
                None => (self.fresh.clone(), None),
                Some(known) if restart => {
                    let run = known.job.run + 1;
                    self.idle(run, &config.lease).await?;
                    let existing = self.request.existing.unwrap_or(known.job.existing);
                    (Job { run, existing, ..self.fresh.clone() }, Some(known.job.run))
                }
                Some(known) => {
                    let joined = self.join(known).await?;
                    if let Some(job) = &joined {
                        // Whoever began it may have died before it came to that.
                        self.end_before(job.run, &config.lease).await?;
                    }
                    return Ok(joined);
                }
            };
            let begin = || self.rows.begin(&job, before);
            if !retry::run(policy, jitter, &cancel, |_, _| (), begin).await? {
                // Another process was faster, or an answer was lost: it is joined.
                restart = false;
                continue;
            }
            // Somebody may have joined the run before while this one began.
            self.end_before(job.run, &config.lease).await?;
            tracing::info!(
                route = self.request.route,
                segments = job.segments,
                run = job.run,
                "the backfill begins"
            );
            return Ok(Some(job));
        }
    }

    async fn join(&self, known: Known) -> Result<Option<Job>, BackfillError> {
        let Known { job, .. } = known;
        if job.source != self.fresh.source {
            return Err(BackfillError::Other(format!("from {}", job.source)));
        }
        if !job.peers.keys().eq(self.fresh.peers.keys()) {
            let peers: Vec<&str> = job.peers.keys().map(String::as_str).collect();
            return Err(BackfillError::Other(format!("to {}", peers.join(", "))));
        }
        if job.peers != self.fresh.peers {
            return Err(BackfillError::Replaced("a peer's table was deleted and made again"));
        }
        if job.table != self.fresh.table {
            return Err(BackfillError::Replaced("the source's table was deleted and made again"));
        }
        if job.stream != self.fresh.stream {
            return Err(BackfillError::Replaced("the source's stream was turned off and on"));
        }
        if job.state == State::Done {
            return Ok(None);
        }
        if self.request.segments.is_some_and(|segments| segments != job.segments) {
            return Err(BackfillError::Other(format!("in {} segments", job.segments)));
        }
        let existing = self.request.existing.unwrap_or(job.existing);
        if job.state == State::Running && existing == job.existing {
            return Ok(Some(job));
        }
        if job.state == State::Running {
            return Err(BackfillError::Other(format!("with --on-existing {}", job.existing.name())));
        }
        let now = self.parts.clock.now();
        let job = Job { existing, state: State::Running, since: now, ..job };
        if !self.rows.set(&job).await.map_err(BackfillError::Rows)? {
            return Err(BackfillError::Restarted);
        }
        Ok(Some(job))
    }

    /// Waits until it is sure that nobody works on the runs before one; gives the rows of their segments.
    async fn idle(&self, run: u64, lease: &crate::config::Lease) -> Result<Vec<String>, BackfillError> {
        let (begun, most) = (Instant::now(), lease.duration + lease.look_interval * 5);
        let mut read = begun;
        let mut rows = self.rows.earlier(run).await.map_err(BackfillError::Rows)?;
        loop {
            let owners: Vec<&str> = rows.iter().filter_map(|(_, owner)| owner.as_deref()).collect();
            let dead = self.heart.dead(owners.iter().copied());
            // By a look before the rows were read, one may be dead that lives again since.
            let looked = self.heart.looked().is_some_and(|looked| looked > read);
            match owners.iter().find(|owner| !looked || !dead.contains(**owner)) {
                None => return Ok(rows.into_iter().map(|(sort, _)| sort).collect()),
                Some(living) if begun.elapsed() > most => {
                    return Err(BackfillError::Busy((*living).to_owned()));
                }
                Some(_) => tokio::time::sleep(lease.look_interval.min(Duration::from_secs(1))).await,
            }
            if looked {
                read = Instant::now();
                rows = self.rows.earlier(run).await.map_err(BackfillError::Rows)?;
            }
        }
    }

    /// Ends the runs before one: what they were about to create and may not have looked up in the ledger is looked up
    /// once nobody works on them. Doing it again changes nothing.
    async fn end_before(&self, run: u64, lease: &crate::config::Lease) -> Result<(), BackfillError> {
        let segments = self.idle(run, lease).await?;
        for (sort, keys) in self.rows.earlier_keys(run).await.map_err(BackfillError::Rows)? {
            for key in &keys {
                self.settle(key).await.map_err(BackfillError::Rows)?;
            }
            if self.heart.fence().is_none() {
                let why = "this process's row in the state table was not renewed in time";
                return Err(BackfillError::Rows(Failure::new(Class::Transient, "NotAlive", why)));
            }
            self.rows.forget_keys(&sort).await.map_err(BackfillError::Rows)?;
        }
        for sort in &segments {
            self.rows.forget(sort).await.map_err(BackfillError::Rows)?;
        }
        Ok(())
    }

    async fn settle(&self, key: &Key) -> Result<(), Failure> {
        for peer in &self.parts.peers {
            let settled = peer.settle(key, crate::version::Version::default()).await;
            settled.map_err(|error| error.failure().clone())?;
        }
        Ok(())
    }
}
