//! Comparing members: every item of every member, in parallel, while the service streams and applications write.
//!
//! `pairing` finds what the scans have alike, by digests; what does not fit together is a suspect, which
//! `settle` looks up at every member, strongly consistent, until it has stayed the same for a while: only then it
//! counts. [`judge`] says what it means and what would mend it, and a repair writes that with the conditions of any
//! other write. [`record`] is where the differences go, and from where a comparison goes on that was broken off.

mod compare;
pub mod judge;
mod lag;
mod pairing;
pub mod record;
pub mod schema;
mod settle;

use crate::access::finding::Findings;
use crate::access::needs::Feature;
use crate::access::preflight::{Found, Preflight};
use crate::aws::{Aws, Base};
use crate::backfill::scan::TableScan;
use crate::config::{Config, Route};
use crate::connect::Connector;
use crate::control::{Controls, closed};
use crate::cutover;
use crate::failure::Failure;
use crate::gaps::Gaps;
use crate::item::{Digest, Item, Key};
use crate::ledger::Ledger;
use crate::peer::Peer;
use crate::retry::{self, GaveUp, Jitter, Policy};
use crate::service::Options;
use crate::shape::accepted::expected;
use crate::shape::{Shape, Unshaped};
use crate::state::{StateError, StateTable};
use crate::telemetry::metrics::Metrics;
use crate::view::Fields;
use lag::Lag;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::index;
use record::{Header, Record, Tally};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// A segment is about so large, unless there would be too few or too many of them.
const SEGMENT: u64 = 256 << 20;
const FEWEST: u64 = 4;
const MOST: u64 = 1024;
/// Of a sample: enough that a small share of them is some.
const SAMPLED: u64 = 200;
/// Keys that are looked up at a time: each is a request at every member.
const LOOKS: usize = 32;
/// Keys of a segment that wait for another member's item.
const WAITING: usize = 20_000;
/// When the scans come in different orders: about 300 MB.
const SCATTERED: usize = 1_000_000;
/// For how long a call that fails is tried again.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is to be compared, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// A one-way route, or a group, all of whose members are compared.
    pub of: String,
    /// One peer of a one-way route only.
    pub peer: Option<String>,
    /// Percent of the segments that are read; `None` for all.
    pub sample: Option<f64>,
    /// In how many segments the members are read; `None` for as many as their size suggests.
    pub segments: Option<u32>,
    /// Segments that are read at a time.
    pub parallel: usize,
    /// Read units a second at each member.
    pub read_units: Option<u32>,
    /// Read strongly consistent, for twice the cost. What differs is always looked up so.
    pub consistent: bool,
    /// A difference that has stayed for so long counts, once the workers are as far as it.
    pub settle: Duration,
    /// Write what makes members agree, where it is known who is right.
    pub repair: bool,
    /// Who is right where it is not.
    pub prefer: Option<Prefer>,
    /// End after so many differences.
    pub stop_after: Option<u64>,
    /// A repair deletes no more items than this: a source that was emptied by mistake is no reason to empty its peers.
    pub max_deletes: u64,
}

/// Who is right where the versions do not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prefer {
    /// This member.
    Member(String),
    /// The item whose attribute of this name is the highest, as a number or by its bytes.
    Newest(String),
}

/// Why members could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The request does not fit the config, or the record.
    #[error("{0}")]
    Request(String),
    /// The state table.
    #[error(transparent)]
    State(#[from] StateError),
    /// What must hold before.
    #[error("{0}")]
    Access(#[from] Findings),
    /// A call that did not succeed in time.
    #[error("{0}")]
    Call(#[from] Failure),
    /// An item without one of its key's attributes.
    #[error("an item has no attribute {0}, which is of its table's key")]
    NoKey(String),
    /// The metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Where the differences go.
    #[error("{0}: {1}; mend that, and start the same command again")]
    Output(String, std::io::Error),
    /// A repair would delete more than it may.
    #[error(
        "more than {0} items would be deleted; if that is right, start the same command again with a higher --max-deletes"
    )]
    TooManyDeletes(u64),
    /// As many differences were found as were asked for.
    #[error("stopped after {0} differences; the rest is not compared")]
    Enough(u64),
    /// A segment's task.
    #[error(
        "the comparison of a segment broke down: {0}. Nothing is compared falsely; start the same command again, and report it"
    )]
    Task(#[from] tokio::task::JoinError),
    /// Asked to stop.
    #[error("stopped as asked")]
    Stopped,
}

impl From<GaveUp> for VerifyError {
    fn from(gave_up: GaveUp) -> Self {
        match gave_up {
            GaveUp::Failed(failure) => Self::Call(failure),
            GaveUp::Cancelled => Self::Stopped,
        }
    }
}

/// One of the members that are compared.
#[derive(Debug)]
struct Side {
    name: String,
    /// Its key attributes' names.
    keys: Vec<String>,
    number: u8,
    peer: Peer,
    scan: TableScan,
    /// Whether its stream has lost records that nobody has made up for.
    gap: bool,
}

/// A comparison that is ready to run.
#[derive(Debug)]
pub struct Verify {
    /// The turn of the route's cutover in which this began: a repair ends with it.
    turn: Option<u64>,
    state: StateTable,
    /// Of a group one of its routes.
    route: Route,
    /// On a one-way route the source is the first.
    sides: Vec<Side>,
    group: bool,
    /// What the peers get of the source's items.
    shape: Option<Shape>,
    /// Keys of a segment that wait for another member's item.
    waiting: usize,
    /// Keys at the source of items that cannot be shaped and were told of.
    unshaped: Mutex<HashSet<Digest>>,
    /// Keys at the peers of shaped items that were told of: the scans may bring one at different times.
    told: Mutex<HashSet<Digest>>,
    stamp: String,
    max_drift: Duration,
    request: Request,
    options: Options,
    jitter: Jitter,
    drain: CancellationToken,
    /// Those that are not done yet.
    left: Vec<u32>,
    record: Mutex<Record>,
    /// Differences that remain, so far.
    found: AtomicU64,
    /// Keys whose items a repair has deleted, or was about to.
    deletes: AtomicU64,
    /// How many keys are looked up at a time.
    looks: Semaphore,
    lag: Lag,
}

impl Verify {
    /// Checks what must hold, permissions included; writes nothing but the record's first line.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub async fn build(
        config: Config,
        request: Request,
        options: Options,
        record: Record,
        drain: CancellationToken,
    ) -> Result<Self, VerifyError> {
        let config = only(config, &request)?;
        let Some(route) = config.routes.first().cloned() else { return Err(VerifyError::Stopped) };
        let members = members(&config);
        let names: Vec<&str> = members.iter().map(|index| config.members[*index].name.as_str()).collect();
        fits(&request, route.group.is_some(), &names)?;

        let metrics = Metrics::new()?;
        let base = Base { request_timeout: Some(config.write.request_timeout), ..options.base.clone() };
        let (aws, jitter) = (Aws::new(base), Jitter::seeded(options.seed));
        let state = StateTable::new(&config.state, &aws.clients(&config.state.access).await, metrics.clone());
        Box::pin(state.open(false, config.access_patience)).await?;
        let patient = Policy::for_at_most(config.access_patience);
        let controls = Controls::new(state.clone(), options.clock);
        let rows = retry::run(patient, &jitter, &drain, |_, _| (), || controls.rows()).await?;
        let turn = || cutover::turn(&state, &route);
        let turn = match retry::run(patient, &jitter, &drain, |_, _| (), turn).await? {
            Err(why) if request.repair => return Err(VerifyError::Request(why)),
            turn => turn.ok(),
        };
        let repair = request.repair.then_some(Feature::Repair);
        let features = BTreeSet::from_iter([Feature::Verify].into_iter().chain(repair));
        let preflight = Preflight::new(&config, &aws, &jitter, &drain);
        let found = Box::pin(preflight.run(&features)).await?;
        let found: Vec<&Found> = members.iter().filter_map(|index| found.get(*index)?.as_ref()).collect();
        let Some(first) = found.first().filter(|_| found.len() == members.len()) else {
            return Err(VerifyError::Stopped);
        };

        let shape = match &route.shape {
            None => None,
            Some(shape) => {
                let fitted = Shape::fit(shape, &first.keys);
                Some(fitted.map_err(|wrong| VerifyError::Request(wrong.join("; ")))?)
            }
        };
        let closed = closed(&rows, &expected(&config, |_| Some(shape.as_ref()?.identity())));
        let concerns = |name: &str| config.routes.iter().any(|route| route.name == name);
        if let Some((scope, pause)) =
            closed.iter().find(|(scope, _)| request.repair && concerns(&scope.route))
        {
            let remedy = pause.remedy();
            let why = format!("{scope} is {pause}, and a repair writes; {remedy}, or leave --repair out");
            return Err(VerifyError::Request(why));
        }
        let names = |found: &Found| found.keys.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let partition = |found: &&Found| found.keys.first().map(|(name, _)| name.clone()).unwrap_or_default();
        // Where the partitions are others, the scans of one part of the tables have nothing to do with each other.
        let scattered = shape
            .as_ref()
            .is_some_and(|shape| !found[1..].iter().all(|found| shape.keeps_partitions(&partition(found))));
        if scattered && (request.sample.is_some() || request.segments.is_some_and(|segments| segments > 1)) {
            let why = "the shape gives items other partition keys, so that the tables can only be compared as a whole: \
                       leave --sample and --segments out";
            return Err(VerifyError::Request(why.to_owned()));
        }
        let request = Request { segments: if scattered { Some(1) } else { request.segments }, ..request };
        let shape_name = shape.as_ref().map(|shape| shape.identity().to_string()).unwrap_or_default();
        let header =
            Header { shape: shape_name, ..header(&config, &request, &members, &found, options.seed) };
        let (header, left, record) = record.begin(header)?;
        let gaps = Gaps::new(state.clone(), options.clock);
        let ledger = Ledger::new(state.clone(), options.clock, config.state.tombstone_retention);
        let clock = options.clock;
        let connector = Connector {
            config: &config,
            aws: &aws,
            ledger,
            state: state.clone(),
            gates: None,
            heart: None,
            clock,
            metrics: &metrics,
        };
        let mut sides = Vec::new();
        for (index, found) in members.iter().zip(&found) {
            let member = &config.members[*index];
            let tables = aws.clients(&member.access).await.tables;
            let (consistent, units) = (request.consistent, request.read_units);
            sides.push(Side {
                name: member.name.clone(),
                keys: names(found),
                number: member.number,
                peer: connector.member(&route, *index, found).await,
                scan: TableScan::new(tables, member.arn.to_string(), header.segments, consistent, units),
                gap: lost(&config, *index, &gaps, &jitter, &drain).await?,
            });
        }
        let lag = Lag::new(config, state.clone(), options.clock, request.settle * settle::CHANGING);
        Ok(Self {
            turn,
            state,
            sides,
            group: route.group.is_some(),
            waiting: if scattered { SCATTERED } else { WAITING },
            unshaped: Mutex::default(),
            told: Mutex::default(),
            shape,
            stamp: route.stamp.clone(),
            max_drift: route.max_clock_drift,
            route,
            request,
            options,
            jitter,
            drain,
            left,
            record: Mutex::new(record),
            found: AtomicU64::new(0),
            deletes: AtomicU64::new(0),
            looks: Semaphore::new(LOOKS),
            lag,
        })
    }

    /// Compares; gives what was found, parts that were compared before included.
    ///
    /// # Errors
    /// [`VerifyError`]; what is done is in the record.
    pub async fn run(self) -> Result<Tally, VerifyError> {
        let verify = Arc::new(self);
        if !verify.segments().await? {
            return Err(VerifyError::Enough(verify.found.load(Ordering::Relaxed)));
        }
        // Nobody else has it any more.
        let verify = Arc::into_inner(verify).ok_or(VerifyError::Stopped)?;
        verify.record.into_inner().unwrap_or_else(PoisonError::into_inner).end()
    }

    /// The key and the content's digest by which an item of a member is compared; `None` when the filter does not let it through.
    fn compared(&self, side: usize, mut item: Fields<'_>) -> Result<Option<(Key, Digest)>, Compared> {
        item.take(&self.stamp);
        let key =
            Key::within(&item, &self.sides[side].keys).map_err(|name| Compared::NoKey(name.to_owned()))?;
        if self.shape.is_none() || side > 0 {
            return Ok(Some((key, item.digest())));
        }
        match self.shaped(&item.to_item()) {
            Ok(shaped) => Ok(shaped.map(|(key, item)| (key, item.digest(None)))),
            Err(why) => Err(Compared::Unshaped(key, why)),
        }
    }

    /// An item of the source as its peers get it; `None` when the filter does not let it through.
    fn shaped(&self, item: &Item) -> Result<Option<(Key, Item)>, Unshaped> {
        match &self.shape {
            Some(shape) if shape.lets_through(item)? => shape.item(item).map(Some),
            _ => Ok(None),
        }
    }

    /// A policy for calls that go on for a while.
    fn patience() -> Policy {
        Policy::for_at_most(PATIENCE)
    }
}

/// Why an item is not compared.
enum Compared {
    /// It has no attribute of this name, which is of its table's key.
    NoKey(String),
    /// The item of the source with this key cannot be shaped.
    Unshaped(Key, Unshaped),
}

/// The members of the only route, the source first, or of the only group.
fn members(config: &Config) -> Vec<usize> {
    let Some(route) = config.routes.first() else { return Vec::new() };
    match route.group.and_then(|group| config.groups.get(group)) {
        Some(group) => group.members.clone(),
        None => std::iter::once(route.from).chain(route.to.iter().copied()).collect(),
    }
}

/// Whether one of the routes that lead from a member has lost records.
async fn lost(
    config: &Config,
    member: usize,
    gaps: &Gaps,
    jitter: &Jitter,
    cancel: &CancellationToken,
) -> Result<bool, VerifyError> {
    for route in config.routes.iter().filter(|route| route.from == member) {
        let list = || gaps.list(&route.name);
        let list = retry::run(Policy::for_at_most(PATIENCE), jitter, cancel, |_, _| (), list).await?;
        if list.iter().any(|gap| gap.settled.is_none()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The config with the route, or the group's routes, alone.
fn only(mut config: Config, request: &Request) -> Result<Config, VerifyError> {
    let of = &request.of;
    let group = config.groups.iter().position(|group| group.name == *of);
    if let Some(route) = config.route(of).filter(|route| route.group.is_some()) {
        let group = route.group.and_then(|group| config.groups.get(group));
        let group = group.map_or("", |group| &group.name);
        let why =
            format!("{of} is one member of group {group}, all of whose members are compared: verify {group}");
        return Err(VerifyError::Request(why));
    }
    let wanted = |route: &Route| match group {
        Some(group) => route.group == Some(group),
        None => route.name == *of,
    };
    if !config.routes.iter().any(wanted) {
        let routes = config.routes.iter().filter(|route| route.group.is_none()).map(|route| &route.name);
        let names: Vec<&str> =
            routes.chain(config.groups.iter().map(|group| &group.name)).map(String::as_str).collect();
        let why = format!("there is no route or group {of:?}; there are {}", names.join(", "));
        return Err(VerifyError::Request(why));
    }
    let Config { routes, members, feeds, .. } = &mut config;
    routes.retain(wanted);
    let to_feed = |route: &Route| match &request.peer {
        Some(peer) => route.feeds.iter().any(|index| feeds[*index].name == *peer),
        None => route.to.is_empty(),
    };
    if routes.iter().any(to_feed) {
        let why = format!(
            "{} is a feed: its files are a history and not a state that could be compared; _watermark.json says up to when \
             it is complete",
            request.peer.as_deref().unwrap_or("what the route leads to")
        );
        return Err(VerifyError::Request(why));
    }
    if let Some(peer) = &request.peer {
        let (Some(route), None) = (routes.first_mut(), group) else {
            return Err(VerifyError::Request(format!("{of} is a group, all of whose members are compared")));
        };
        let peers: Vec<String> = route.to.iter().map(|index| members[*index].name.clone()).collect();
        route.to.retain(|index| members[*index].name == *peer);
        if route.to.is_empty() {
            let why = format!("route {of} has no peer {peer:?}; its peers are {}", peers.join(", "));
            return Err(VerifyError::Request(why));
        }
    }
    Ok(config)
}

/// Whether the preference makes sense.
fn fits(request: &Request, group: bool, members: &[&str]) -> Result<(), VerifyError> {
    let why = match &request.prefer {
        None => return Ok(()),
        Some(Prefer::Newest(_)) if !group => {
            "on a one-way route the source is right; --prefer-newest is for groups".to_owned()
        }
        Some(Prefer::Member(name)) if !group && members.first() != Some(&name.as_str()) => {
            let source = members.first().copied().unwrap_or_default();
            format!(
                "a one-way route writes to its peers only: --prefer {source}, its source, is all that it can take"
            )
        }
        Some(Prefer::Member(name)) if !members.contains(&name.as_str()) => {
            format!("there is no member {name:?} among {}", members.join(", "))
        }
        Some(_) => return Ok(()),
    };
    Err(VerifyError::Request(why))
}

fn header(config: &Config, request: &Request, members: &[usize], found: &[&Found], seed: u64) -> Header {
    let bytes = found.iter().map(|found| found.bytes).max().unwrap_or_default();
    let fewest = if request.sample.is_some() { SAMPLED } else { FEWEST };
    let segments = request.segments.unwrap_or((bytes / SEGMENT).clamp(fewest, MOST) as u32);
    let sample = request.sample.map(|percent| {
        let many = (f64::from(segments) * percent / 100.0).ceil().clamp(1.0, f64::from(segments)) as usize;
        let chosen = index::sample(&mut StdRng::seed_from_u64(seed), segments as usize, many);
        let mut chosen: Vec<u32> = chosen.into_iter().map(|segment| segment as u32).collect();
        chosen.sort_unstable();
        chosen
    });
    let members = members.iter().map(|index| {
        let member = &config.members[*index];
        (member.name.clone(), member.arn.to_string())
    });
    Header {
        of: request.of.clone(),
        members: members.collect::<BTreeMap<_, _>>(),
        segments,
        sample,
        shape: String::new(),
    }
}
