//! Taking the stamps off a peer's items, once a migration is finished.
//!
//! The route must be paused: without stamps a late write of ours would find nothing newer. Only an item that still has the
//! stamp that was read is touched, and nothing but that attribute of it. What was stripped is not met again, so whoever
//! starts the same once more goes on.

use crate::access::finding::Findings;
use crate::access::needs::Feature;
use crate::access::preflight::Preflight;
use crate::aws::{Aws, Base};
use crate::backfill::scan::TableScan;
use crate::config::Config;
use crate::connect::Connector;
use crate::control::{Controls, Pause, pauses};
use crate::cutover::standing::{CUTOVER, Standing, Step};
use crate::failure::Failure;
use crate::item::Key;
use crate::ledger::Ledger;
use crate::limit::Rate;
use crate::obeyed;
use crate::peer::Peer;
use crate::retry::{self, GaveUp, Jitter, Policy};
use crate::service::Options;
use crate::state::{Row, StateError, StateTable};
use crate::telemetry::metrics::Metrics;
use crate::view::{Fields, View};
use aws_sdk_dynamodb::types::AttributeValue;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// For how long a call that fails is tried again.
const PATIENCE: Duration = Duration::from_secs(300);
const PAGE: u16 = 1000;
/// Segments that are read at a time, and items of each that are written at a time.
const PARALLEL: u32 = 4;
const IN_FLIGHT: usize = 16;
/// A write costs a unit for so many bytes.
const WRITE_UNIT: usize = 1024;
/// How often it is said how far it is.
const TELL: Duration = Duration::from_secs(10);

/// What is to be stripped.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// A one-way route.
    pub route: String,
    /// One of its peers.
    pub peer: String,
    /// Read units a second.
    pub read_units: Option<u32>,
    /// Write units a second.
    pub write_units: Option<u32>,
}

/// What became of the items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Stripped {
    /// Items that were read.
    pub items: u64,
    /// Stamps that were taken off.
    pub stripped: u64,
    /// Items that had none.
    pub without: u64,
    /// Items that changed while they were stripped; they are as their application wrote them.
    pub changed: u64,
}

impl Stripped {
    fn and(self, other: Self) -> Self {
        Self {
            items: self.items + other.items,
            stripped: self.stripped + other.stripped,
            without: self.without + other.without,
            changed: self.changed + other.changed,
        }
    }
}

/// Why nothing, or not everything, was stripped.
#[derive(Debug, thiserror::Error)]
pub enum StripError {
    /// The request does not fit the config, or the route's state.
    #[error("{0}")]
    Request(String),
    /// The state table.
    #[error(transparent)]
    State(#[from] StateError),
    /// What must hold before.
    #[error("{0}")]
    Access(#[from] Findings),
    /// A call that did not succeed in time.
    #[error("{0}; the same command goes on")]
    Call(#[from] Failure),
    /// An item without one of its key's attributes.
    #[error("an item has no attribute {0}, which is of its table's key")]
    NoKey(String),
    /// The metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Asked to stop.
    #[error("stopped as asked; the same command goes on")]
    Stopped,
}

impl From<GaveUp> for StripError {
    fn from(gave_up: GaveUp) -> Self {
        match gave_up {
            GaveUp::Failed(failure) => Self::Call(failure),
            GaveUp::Cancelled => Self::Stopped,
        }
    }
}

struct Stripper {
    peer: Peer,
    scan: TableScan,
    keys: Vec<String>,
    stamp: String,
    units: Option<Rate>,
    jitter: Jitter,
    cancel: CancellationToken,
}

/// An item with an attribute of ours.
struct Found {
    key: Key,
    /// The attribute's value.
    seen: AttributeValue,
    /// What a write of it costs.
    units: usize,
}

/// Takes the stamps off a peer's items.
///
/// # Errors
/// [`StripError`].
pub async fn strip(
    mut config: Config,
    request: Request,
    options: Options,
    cancel: CancellationToken,
) -> Result<Stripped, StripError> {
    let Request { route: name, peer: peer_name, .. } = &request;
    config.routes.retain(|route| route.name == *name);
    let Config { routes, members, .. } = &mut config;
    let Some(route) = routes.first_mut() else {
        return Err(StripError::Request(format!("there is no route {name:?}")));
    };
    if route.group.is_some() {
        let why = format!("{name} is of a group, whose members need their stamps for as long as it lives");
        return Err(StripError::Request(why));
    }
    route.to.retain(|index| members[*index].name == *peer_name);
    let Some(index) = route.to.first().copied() else {
        return Err(StripError::Request(format!("route {name} has no peer {peer_name:?}")));
    };
    let route = route.clone();

    let metrics = Metrics::new()?;
    let base = Base { request_timeout: Some(config.write.request_timeout), ..options.base };
    let (aws, jitter) = (Aws::new(base), Jitter::seeded(options.seed));
    let state = StateTable::new(&config.state, &aws.clients(&config.state.access).await, metrics.clone());
    Box::pin(state.open(false, config.access_patience)).await?;
    let controls = Controls::new(state.clone(), options.clock);
    let patient = Policy::for_at_most(PATIENCE);
    let rows = retry::run(patient, &jitter, &cancel, |_, _| (), || controls.rows()).await?;
    let covers = |peer: &Option<String>| peer.as_ref().is_none_or(|peer| peer == peer_name);
    let finished =
        |row: &Row| Standing::from_row(row).is_some_and(|it| it.route == *name && it.step == Step::Finished);
    let for_good = |pause: &Pause| pause.by != CUTOVER || rows.iter().any(finished);
    let by_whom = pauses(&rows);
    let mut stands = by_whom.iter().filter(|(scope, _)| scope.route == *name && covers(&scope.peer));
    if !stands.any(|(_, pause)| for_good(pause)) {
        let why = format!(
            "route {name} is not paused: a change that came now would find no stamp and take the place of whatever is \
             there. When the migration is finished: shardwalker pause {name} --peer {peer_name}"
        );
        return Err(StripError::Request(why));
    }
    let features = BTreeSet::from([Feature::Strip]);
    let found = {
        let preflight = Preflight::new(&config, &aws, &jitter, &cancel);
        Box::pin(preflight.run(&features)).await?
    };
    let Some(found) = found.get(index).and_then(Option::as_ref) else { return Err(StripError::Stopped) };
    let within = config.lease.duration * 2;
    let others = obeyed::everywhere(&state, &config.lease, within, &jitter, &cancel).await?;
    if !others.is_empty() {
        let why =
            format!("these workers beat and do not see the pause: {}; mend or stop them", others.join(", "));
        return Err(StripError::Request(why));
    }
    // What a worker had begun before it saw the pause has ended by then.
    let ends = config.lease.renew_interval * 2 + config.write.request_timeout;
    if !retry::pause(ends, &cancel).await {
        return Err(StripError::Stopped);
    }
    let ledger = Ledger::new(state.clone(), options.clock, config.state.tombstone_retention);
    let (config, aws, clock, metrics) = (&config, &aws, options.clock, &metrics);
    let connector = Connector { config, aws, ledger, state, gates: None, heart: None, clock, metrics };
    let member = &config.members[index];
    let tables = aws.clients(&member.access).await.tables;
    let stripper = Stripper {
        peer: connector.member(&route, index, found).await,
        scan: TableScan::new(tables, member.arn.to_string(), PARALLEL, false, request.read_units),
        keys: found.keys.iter().map(|(name, _)| name.clone()).collect(),
        stamp: route.stamp,
        units: request.write_units.map(|units| Rate::new(f64::from(units))),
        jitter,
        cancel,
    };
    let segments = stream::iter(0..PARALLEL).map(|segment| Ok(Box::pin(stripper.segment(segment))));
    segments
        .try_buffer_unordered(PARALLEL as usize)
        .try_fold(Stripped::default(), async |all, one| Ok(all.and(one)))
        .await
}

impl Stripper {
    async fn segment(&self, segment: u32) -> Result<Stripped, StripError> {
        let (mut all, mut after, mut told) = (Stripped::default(), None::<Row>, Instant::now());
        loop {
            if self.cancel.is_cancelled() {
                return Err(StripError::Stopped);
            }
            let read = || self.scan.page(segment, after.clone(), PAGE, |item| self.found(item));
            let policy = Policy::for_at_most(PATIENCE);
            let page = retry::run(policy, &self.jitter, &self.cancel, |_, _| (), read).await?;
            let items = stream::iter(page.items).map(|item| Ok(self.item(item)));
            let of_page = items
                .try_buffer_unordered(IN_FLIGHT)
                .try_fold(Stripped::default(), async |all, one| Ok::<_, StripError>(all.and(one)));
            all = all.and(of_page.await?);
            if told.elapsed() >= TELL {
                told = Instant::now();
                tracing::info!(segment, items = all.items, stripped = all.stripped, "stripping");
            }
            after = page.next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// What is needed of an item; `None` when it has no attribute of ours.
    fn found(&self, item: Fields<'_>) -> Result<Option<Found>, StripError> {
        let Some(seen) = item.get(&self.stamp).map(View::to_value) else { return Ok(None) };
        let key = Key::within(&item, &self.keys).map_err(|name| StripError::NoKey(name.to_owned()))?;
        Ok(Some(Found { key, seen, units: item.size().div_ceil(WRITE_UNIT) }))
    }

    async fn item(&self, found: Result<Option<Found>, StripError>) -> Result<Stripped, StripError> {
        let mut one = Stripped { items: 1, ..Stripped::default() };
        let Some(Found { key, seen, units: cost }) = found? else {
            one.without = 1;
            return Ok(one);
        };
        if let Some(units) = &self.units {
            units.spend(cost as f64).await;
        }
        let stripped = self.write(&key, &seen).await?;
        (one.stripped, one.changed) = (u64::from(stripped), u64::from(!stripped));
        Ok(one)
    }

    async fn write(&self, key: &Key, seen: &AttributeValue) -> Result<bool, StripError> {
        let write = || async { self.peer.strip(key, seen).await.map_err(|error| error.failure().clone()) };
        let policy = Policy::for_at_most(PATIENCE);
        Ok(retry::run(policy, &self.jitter, &self.cancel, |_, _| (), write).await?)
    }
}
