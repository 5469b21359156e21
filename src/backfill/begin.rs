//! Finding out what must hold, pinning the stream, and what segments need.

use super::copy::{Copier, Target};
use super::export::{self, Export};
use super::mirror::Mirror;
use super::rows::{Job, Rows, State};
use super::scan::TableScan;
use super::segment::Shared;
use super::snapshot::Snapshots;
use super::source::{Source, SourceError};
use super::{Backfill, BackfillError, PARALLEL, Request};
use crate::access::needs::Feature;
use crate::access::preflight::{Found, Preflight};
use crate::aws::{Aws, Base};
use crate::clock::Clock;
use crate::config::flag::Location;
use crate::config::{Config, FeedPlace, Route, Start};
use crate::connect::Connector;
use crate::control::{Controls, Gates, Pause, Scope};
use crate::cutover;
use crate::dead_letters::DeadLetters;
use crate::failure::Failure;
use crate::feed::Feed;
use crate::feed::store::Store;
use crate::lease::heart::Heart;
use crate::ledger::Ledger;
use crate::limit::Rate;
use crate::numbers;
use crate::peer::{OnExisting, Peer};
use crate::retry::{self, GaveUp, Jitter, Policy};
use crate::service::{Options, worker_name};
use crate::shape::Shape;
use crate::shape::accepted::{self};
use crate::starts;
use crate::state::StateTable;
use crate::telemetry::metrics::Metrics;
use aws_sdk_dynamodb::Client;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
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
    pub(super) feeds: Vec<Arc<Feed>>,
    /// The key attributes' names.
    pub(super) keys: Vec<String>,
    pub(super) client: Client,
    /// The source's ARN.
    pub(super) table: String,
    pub(super) clock: Clock,
    pub(super) request: Request,
    /// The route's shape.
    pub(super) shape: Option<Arc<Shape>>,
    /// The source, to look at single items; where the route has a shape, or had one, or its peers are pristine.
    pub(super) source: Option<Arc<Peer>>,
    /// The peers whose items have another shape.
    pub(super) changed: BTreeMap<Scope, Pause>,
    pub(super) state: StateTable,
    pub(super) dead_letters: DeadLetters,
    pub(super) export: Option<Arc<Export>>,
    pub(super) heart: Arc<Heart>,
}

impl Backfill {
    /// Checks what must hold, permissions included, and pins the route's place in the stream. Reads and writes no item. With `listen` the metrics are served there.
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
        if route.pristine && !route.to.is_empty() && request.existing != Some(OnExisting::Overwrite) {
            return Err(BackfillError::Pristine(route.name));
        }
        let metrics = Metrics::new()?;
        let base = Base { request_timeout: Some(config.write.request_timeout), ..options.base };
        let (aws, jitter) = (Aws::new(base), Jitter::seeded(options.seed));
        let state = StateTable::new(&config.state, &aws.clients(&config.state.access).await, metrics.clone());
        Box::pin(state.open(options.create_state_table, config.access_patience)).await?;
        let patient = Policy::for_at_most(config.access_patience);
        let turn = || cutover::turn(&state, &route);
        let turn =
            retry::run(patient, &jitter, &drain, |_, _| (), turn).await?.map_err(BackfillError::Idle)?;
        let admin = match listen {
            None => None,
            Some(address) => Some(TcpListener::bind(address).await.map_err(BackfillError::Listen)?),
        };
        let preflight = Preflight::new(&config, &aws, &jitter, &drain);
        // An export is read from files; single items are looked at again all the same.
        let looks = !route.to.is_empty() && (route.shape.is_some() || route.pristine);
        let reads = request.export.is_none() || looks;
        let features = reads.then_some(Feature::Backfill).into_iter().collect();
        let found = Box::pin(preflight.run(&features)).await?;
        let source = found_of(&found, route.from)?;
        if let Some(group) = route.group.and_then(|group| config.groups.get(group)) {
            let claim = || numbers::claim(&state, options.clock, &config, group);
            Box::pin(retry::run(patient, &jitter, &drain, |_, _| (), claim)).await??;
        }
        let shape = match &route.shape {
            None => None,
            Some(shape) => {
                let fitted = Shape::fit(shape, &source.keys);
                Some(Arc::new(fitted.map_err(|wrong| BackfillError::Shape(wrong.join("; ")))?))
            }
        };
        let expected = accepted::expected(&config, |_| Some(shape.as_ref()?.identity()));
        let claim = || accepted::claim(&state, options.clock, &expected);
        Box::pin(retry::run(patient, &jitter, &drain, |_, _| (), claim)).await?;
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
        let (items, bytes) = (source.items, source.bytes);
        let export = match &request.export {
            None => None,
            Some(location) => {
                let place = location.place(&member.access);
                let export = Box::pin(open(location, &place, &aws, &jitter, &drain, patient)).await?;
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
        let known = retry::run(patient, &jitter, &drain, |_, _| (), || controls.rows()).await?;
        let changed = accepted::changed(&known, &expected);
        let (gates, keeper) = Gates::new(config.lanes(), expected, controls.clone());
        gates.apply(&known);
        heart.obeys(gates.clone());
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
        let mut feeds = Vec::new();
        for settings in route.feeds.iter().map(|index| &config.feeds[*index]) {
            tables.insert(settings.name.clone(), "a feed".to_owned());
            let feed = connector.feed(&route, settings).await;
            feeds.push(Arc::new(
                feed.map_err(|why| BackfillError::Feed { feed: settings.name.clone(), why })?,
            ));
        }
        let now = options.clock.now();
        let fresh = Job {
            run: 1,
            source: export.as_ref().map_or_else(|| "scan".to_owned(), |export| export.arn.clone()),
            table: source.id.clone(),
            peers: tables,
            stream,
            shape: shape.as_ref().map(|shape| shape.identity().to_string()).unwrap_or_default(),
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
            feeds,
            client,
            table,
            clock: options.clock,
            request: request.clone(),
            changed,
            source: if shape.is_some() || route.pristine || accepted::is_known(&known, &route.name) {
                Some(Arc::new(connector.member(&route, route.from, source).await))
            } else {
                None
            },
            shape,
            state: state.clone(),
            dead_letters: DeadLetters::new(state, options.clock, config.dead_letters.per_key),
            export,
            heart: Arc::clone(&heart),
            route,
        };
        Ok(Self { request, turn, fresh, parts, heart, keeper, rows, config, jitter, metrics, admin, drain })
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
    let Config { routes, members, feeds, .. } = &mut config;
    let route = routes.first_mut().ok_or_else(no_route)?;
    if let Some(peer) = &request.peer {
        route.to.retain(|index| members[*index].name == *peer);
        route.feeds.retain(|index| feeds[*index].name == *peer);
    }
    if route.to.is_empty() && route.feeds.is_empty() {
        return Err(no_route());
    }
    Ok(config)
}

fn found_of(found: &[Option<Found>], index: usize) -> Result<&Found, BackfillError> {
    // Preflight has found every member of the route, or said why not.
    found.get(index).and_then(Option::as_ref).ok_or(BackfillError::Stopped)
}

/// Reads the manifest of an export.
async fn open(
    location: &Location,
    place: &FeedPlace,
    aws: &Aws,
    jitter: &Jitter,
    drain: &CancellationToken,
    patient: Policy,
) -> Result<Export, BackfillError> {
    let failed = |what: &str, why: Failure| export::bad(&format!("{location}{what}"), why);
    let store = Store::existing(place, aws).await.map_err(|why| failed("", why))?;
    let mut parts = [Vec::new(), Vec::new()];
    for (name, part) in [export::SUMMARY, export::FILES].into_iter().zip(&mut parts) {
        let what = format!("/{name}");
        let get = || store.get(name);
        let got =
            retry::run(patient, jitter, drain, |_, _| (), get).await.map_err(|gave_up| match gave_up {
                GaveUp::Failed(why) => failed(&what, why).into(),
                GaveUp::Cancelled => BackfillError::Stopped,
            })?;
        *part = got.ok_or_else(|| export::bad(&format!("{location}{what}"), "it is not there"))?;
    }
    let [summary, files] = parts;
    Ok(Export::new(store, &summary, &files)?)
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

impl Parts {
    /// What the source holds, where the peers get no stamps.
    pub(super) fn mirror(&self) -> Option<Mirror> {
        let source = self.source.as_ref().filter(|_| self.route.pristine)?;
        Some(Mirror { source: Arc::clone(source), shape: self.shape.clone() })
    }

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
        let mirror = self.mirror();
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
            shape: self.shape,
            source: self.source,
            mirror,
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
        let snapshots = Snapshots {
            route: route.name.clone(),
            feeds: self.feeds,
            run: request
                .peer
                .as_ref()
                .map_or_else(|| job.run.to_string(), |peer| format!("{}-{peer}", job.run)),
            begun: job.begun,
            jitter: jitter.clone(),
            metrics: metrics.clone(),
        };
        let scan =
            || TableScan::new(self.client, self.table, job.segments, !request.eventual, request.read_units);
        Shared {
            route: route.name,
            source: self.export.map_or_else(|| Source::Scan(scan()), Source::Export),
            copier,
            snapshots,
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
