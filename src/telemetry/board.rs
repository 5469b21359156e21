//! What is going on right now, for `/healthz`, `/api/status` and the gauges that are worked out when asked for.
//!
//! Walkers and lanes write their own part, each under a short lock of its own; readers take a picture.

use crate::change::SequenceNumber;
use crate::clock::Clock;
use crate::control::{self, Gates, Pause};
use crate::failure::Failure;
use crate::lane::Position;
use crate::status::progress::{PeerProgress, RouteProgress};
use crate::stream::graph;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Everything that a process works on. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Board {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    routes: BTreeMap<String, RouteEntry>,
    controls: Option<(Gates, Clock)>,
    ready: bool,
    draining: bool,
}

#[derive(Debug)]
struct RouteEntry {
    listed: Instant,
    /// How often it is listed when all is well.
    interval: Duration,
    trouble: Option<String>,
    /// The stream is off: nothing will come any more.
    off: bool,
    shards: BTreeMap<String, Arc<ShardStatus>>,
}

/// A shard that this worker walks, as seen from outside.
#[derive(Debug)]
pub struct ShardStatus {
    clock: Option<Clock>,
    inner: Mutex<ShardInner>,
    lanes: Mutex<Vec<Arc<LaneStatus>>>,
}

#[derive(Debug)]
struct ShardInner {
    read: Instant,
    /// Reads that failed since the last one that succeeded, and when that was last said.
    failed: u32,
    said: Option<Instant>,
    trouble: Option<String>,
    stopped: Option<String>,
    unsaved: Option<Instant>,
    /// There is nothing more to read.
    ended: bool,
    /// Everything that was created before this has been read; not known before the first page.
    through: Option<SystemTime>,
    /// Pages without a record, one after the other, since the last one that had any.
    empty: u32,
    /// When the last page was one of so many empty ones that nothing is left to read.
    tip: Option<Instant>,
}

/// One lane of a shard, as seen from outside.
#[derive(Debug)]
pub struct LaneStatus {
    peer: String,
    inner: Mutex<LaneInner>,
}

#[derive(Debug)]
struct LaneInner {
    sequence: Option<SequenceNumber>,
    created: Option<SystemTime>,
    /// When the first record that is not done was created.
    oldest: Option<SystemTime>,
    pending: usize,
    running: usize,
    moved: Instant,
    trouble: Option<String>,
    said: Option<Instant>,
    /// Why changes are held back, and when that was last said.
    held: Option<String>,
    held_said: Option<Instant>,
    /// Whether a second reader feeds it.
    behind: bool,
    /// It gets no more pages, and waits for an operator.
    stopped: bool,
}

/// A trouble that lasts is said again after this long.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// A page may be empty in the middle of a shard; DynamoDB does not say how far a reader is. So many in a row are taken
/// for the end of what there is.
const EMPTY_AT_TIP: u32 = 3;
/// Reads that fail fewer times in a row are not worth a line.
const FAILED_OFTEN: u32 = 5;

/// A picture of a process's work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Picture {
    /// Whether the first listing of every route is done and no stop was asked for.
    pub ready: bool,
    /// Whether a stop was asked for.
    pub draining: bool,
    /// The routes by name.
    pub routes: BTreeMap<String, BTreeMap<String, ShardPicture>>,
    /// What an operator or a guard paused, a line each.
    pub paused: Vec<String>,
    /// Why the work stands still, a line each; empty while it goes on. A route that its guard paused is one of them.
    pub problems: Vec<String>,
}

/// A picture of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShardPicture {
    /// Seconds since the last successful read.
    pub read_seconds_ago: u64,
    /// Why it stopped, when it did.
    pub stopped: Option<String>,
    /// Seconds since the oldest progress that is not checkpointed.
    pub unsaved_seconds: u64,
    /// The lanes by peer.
    pub lanes: BTreeMap<String, LanePicture>,
}

/// A picture of one lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LanePicture {
    /// The last record that is done.
    pub sequence: Option<String>,
    /// When that record was created (RFC 3339).
    pub created: Option<String>,
    /// Changes taken and not done.
    pub pending: usize,
    /// Changes under way.
    pub running: usize,
    /// Whether it catches up by a reader of its own.
    pub behind: bool,
    /// What keeps it from moving.
    pub trouble: Option<String>,
}

impl Board {
    /// An empty board.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The worker's gates and clock, before anything is walked.
    pub fn has(&self, gates: Gates, clock: Clock) {
        lock(&self.shared).controls = Some((gates, clock));
    }

    /// The shards of a route were listed just now, successfully.
    pub fn listed(&self, route: &str) {
        let mut shared = lock(&self.shared);
        let entry = entry(&mut shared, route);
        (entry.listed, entry.trouble) = (Instant::now(), None);
    }

    /// Listing a route's shards, or its leases, fails.
    pub fn route_in_trouble(&self, route: &str, why: &str) {
        entry(&mut lock(&self.shared), route).trouble = Some(why.to_owned());
    }

    /// A route will be worked on: from now on it must be listed, about every `interval`.
    pub fn expects(&self, route: &str, interval: Duration) {
        entry(&mut lock(&self.shared), route).interval = interval;
    }

    /// A route is not worked on any more.
    pub fn forgets(&self, route: &str) {
        lock(&self.shared).routes.remove(route);
    }

    /// Whether a route's stream takes records.
    pub fn stream_is(&self, route: &str, on: bool) {
        let mut shared = lock(&self.shared);
        let entry = entry(&mut shared, route);
        if !on && !entry.off {
            tracing::error!(
                route,
                "the source's stream was turned off: nothing more will come; turn it on again, and allow the new \
                 stream in its own resource policy"
            );
        }
        entry.off = !on;
    }

    /// Every route has been listed once.
    pub fn ready(&self) {
        lock(&self.shared).ready = true;
    }

    /// A stop was asked for.
    pub fn draining(&self) {
        lock(&self.shared).draining = true;
    }

    /// This worker walks a shard from now on.
    #[must_use]
    pub fn walks(&self, route: &str, shard: &str) -> Arc<ShardStatus> {
        let inner = ShardInner {
            read: Instant::now(),
            failed: 0,
            said: None,
            trouble: None,
            stopped: None,
            unsaved: None,
            ended: false,
            through: None,
            empty: 0,
            tip: None,
        };
        let mut shared = lock(&self.shared);
        let clock = shared.controls.as_ref().map(|(_, clock)| *clock);
        let status = Arc::new(ShardStatus { clock, inner: Mutex::new(inner), lanes: Mutex::new(Vec::new()) });
        entry(&mut shared, route).shards.insert(shard.to_owned(), Arc::clone(&status));
        status
    }

    /// This worker walks a shard no more.
    pub fn leaves(&self, route: &str, shard: &str) {
        entry(&mut lock(&self.shared), route).shards.remove(shard);
    }

    /// A picture; what has not moved for `stall_after` is a problem.
    #[must_use]
    pub fn picture(&self, stall_after: Duration) -> Picture {
        let shared = lock(&self.shared);
        let (mut problems, mut paused) = (Vec::new(), Vec::new());
        let mut routes = BTreeMap::new();
        let gates = shared.controls.as_ref().map(|(gates, _)| gates);
        for (route, peer, pause) in gates.into_iter().flat_map(Gates::all) {
            let Some(pause) = pause else { continue };
            let line = format!("route {route}, peer {peer}: {pause}");
            if pause.by == control::GUARD {
                problems.push(line.clone());
            }
            paused.push(line);
        }
        for (name, route) in &shared.routes {
            problems.extend(route.stale(stall_after).map(|why| format!("route {name}: {why}")));
            problems.extend(route.is_off().map(|why| format!("route {name}: {why}")));
            let shards = route.shards.iter().map(|(shard, status)| {
                (shard.clone(), status.picture(name, shard, stall_after, gates, &mut problems))
            });
            routes.insert(name.clone(), shards.collect());
        }
        let ready = shared.ready && !shared.draining;
        Picture { ready, draining: shared.draining, routes, paused, problems }
    }

    /// What this worker has to do, and how far it is, by route. A peer has everything when nothing is left to apply,
    /// and nothing was left to read at a look after `since`.
    #[must_use]
    pub fn progress(&self, since: Instant) -> BTreeMap<String, RouteProgress> {
        let shared = lock(&self.shared);
        let mut routes = BTreeMap::new();
        for (name, route) in &shared.routes {
            let mut progress = RouteProgress { trouble: route.trouble(), ..RouteProgress::default() };
            for (shard, status) in &route.shards {
                status.progress(shard, since, &mut progress);
            }
            routes.insert(name.clone(), progress);
        }
        routes
    }

    /// Why each route and peer is paused; `None` for those that are not.
    #[must_use]
    pub fn pauses(&self) -> Vec<(String, String, Option<Pause>)> {
        let shared = lock(&self.shared);
        let gates = shared.controls.iter().flat_map(|(gates, _)| gates.all());
        gates.map(|(route, peer, pause)| (route.to_owned(), peer.to_owned(), pause)).collect()
    }
}

impl RouteEntry {
    /// That its shards were not listed for too long, and for longer than `least`.
    fn stale(&self, least: Duration) -> Option<String> {
        let since = self.listed.elapsed();
        let why = self.trouble.as_deref().unwrap_or("unknown cause");
        (since > least.max(3 * self.interval))
            .then(|| format!("its shards were last listed {} s ago: {why}", since.as_secs()))
    }

    fn is_off(&self) -> Option<String> {
        self.off.then(|| "the source's stream was turned off".to_owned())
    }

    /// What stands against all of it, as others are told.
    fn trouble(&self) -> Option<String> {
        self.is_off().or_else(|| self.stale(SAY_AGAIN))
    }
}

impl ShardStatus {
    /// Another lane of this shard.
    #[must_use]
    pub fn lane(&self, peer: &str) -> Arc<LaneStatus> {
        let inner = LaneInner {
            sequence: None,
            created: None,
            oldest: None,
            pending: 0,
            running: 0,
            moved: Instant::now(),
            trouble: None,
            said: None,
            held: None,
            held_said: None,
            behind: false,
            stopped: false,
        };
        let lane = Arc::new(LaneStatus { peer: peer.to_owned(), inner: Mutex::new(inner) });
        lock(&self.lanes).push(Arc::clone(&lane));
        lane
    }

    /// A read succeeded.
    pub fn read(&self) {
        let mut inner = lock(&self.inner);
        (inner.read, inner.failed, inner.trouble) = (Instant::now(), 0, None);
    }

    /// What the page had that was just read: when its newest record was created, `None` for an empty page.
    pub fn page(&self, newest: Option<SystemTime>) {
        let mut inner = lock(&self.inner);
        inner.empty = if newest.is_some() { 0 } else { inner.empty + 1 };
        if inner.empty >= EMPTY_AT_TIP {
            inner.tip = Some(Instant::now());
            inner.through = self.clock.map(|clock| clock.now()).or(inner.through);
        } else if newest.is_some() {
            (inner.tip, inner.through) = (None, newest);
        }
    }

    /// There is nothing more to read.
    pub fn reading_ended(&self) {
        lock(&self.inner).ended = true;
    }

    /// A read failed and will be tried again; said when it goes on failing, and again while it lasts.
    pub fn read_failed(&self, failure: &Failure) {
        let mut inner = lock(&self.inner);
        inner.failed += 1;
        inner.trouble = Some(failure.to_string());
        if inner.failed >= FAILED_OFTEN && inner.said.is_none_or(|at| at.elapsed() > SAY_AGAIN) {
            inner.said = Some(Instant::now());
            tracing::warn!(
                why = %failure,
                times = inner.failed,
                remedy = failure.class.remedy(),
                "reads of the shard fail; they are tried again"
            );
        }
    }

    /// The shard waits for an operator.
    pub fn stopped(&self, why: &str) {
        lock(&self.inner).stopped = Some(why.to_owned());
    }

    /// All progress is checkpointed.
    pub fn saved(&self) {
        lock(&self.inner).unsaved = None;
    }

    /// Progress could not be checkpointed; the first time since it was counts.
    pub fn unsaved(&self) {
        lock(&self.inner).unsaved.get_or_insert_with(Instant::now);
    }

    /// Adds this shard to the progress of its route.
    fn progress(&self, shard: &str, since: Instant, route: &mut RouteProgress) {
        let inner = lock(&self.inner);
        if let Some(why) = &inner.stopped {
            route.stopped.insert(shard.to_owned(), why.clone());
        }
        let at_tip = inner.ended && inner.stopped.is_none() || inner.tip.is_some_and(|tip| tip >= since);
        // A shard of which nothing was read yet has nothing that is older than itself.
        let born = || graph::born(shard).or(self.clock.map(|clock| clock.now()));
        for lane in &*lock(&self.lanes) {
            let lane_inner = lock(&lane.inner);
            let oldest = match (lane_inner.pending, at_tip) {
                (0, _) if lane_inner.stopped => lane_inner.created.or_else(born),
                (0, _) if lane_inner.behind => lane_inner.created.or_else(born),
                (0, true) => None,
                (0, false) => inner.through.max(lane_inner.created).or_else(born),
                _ => lane_inner.oldest.or(lane_inner.created).or_else(born),
            };
            let progress = PeerProgress { oldest, pending: lane_inner.pending as u64, lanes: 1 };
            let all = route.peers.entry(lane.peer.clone()).or_default();
            *all = all.and(&progress);
        }
    }

    fn picture(
        &self,
        route: &str,
        shard: &str,
        stall: Duration,
        gates: Option<&Gates>,
        problems: &mut Vec<String>,
    ) -> ShardPicture {
        // A reader that waits for its lanes reads nothing, and that is right.
        let lanes = lock(&self.lanes);
        let waits = lanes.iter().any(|lane| lock(&lane.inner).pending > 0);
        let inner = lock(&self.inner);
        if let Some(since) = inner.unsaved.filter(|since| since.elapsed() > stall) {
            let seconds = since.elapsed().as_secs();
            problems.push(format!(
                "route {route}: shard {shard}: no checkpoint could be written for {seconds} s"
            ));
        }
        if let Some(why) = &inner.stopped {
            problems.push(format!("route {route}: shard {shard} stopped: {why}"));
        } else if !inner.ended && !waits && inner.read.elapsed() > stall {
            let (seconds, why) =
                (inner.read.elapsed().as_secs(), inner.trouble.as_deref().unwrap_or("unknown cause"));
            problems.push(format!("route {route}: shard {shard} was last read {seconds} s ago: {why}"));
        }
        let lanes = lanes.iter().map(|lane| {
            let inner = lock(&lane.inner);
            // What is paused does not move, and that is right; nor has it moved yet when it was just let go on.
            let opened = gates.map_or(Ok(None), |gates| gates.open_since(route, &lane.peer));
            let due = opened.is_ok_and(|opened| opened.is_none_or(|opened| opened.elapsed() > stall));
            let trouble = inner.trouble.as_ref().or(inner.held.as_ref());
            if due && inner.pending > 0 && inner.moved.elapsed() > stall {
                let why = trouble.map_or("unknown cause", String::as_str);
                let seconds = inner.moved.elapsed().as_secs();
                let peer = &lane.peer;
                problems.push(format!(
                    "route {route}: nothing of shard {shard} was applied at {peer} for {seconds} s: {why}"
                ));
            }
            let picture = LanePicture {
                sequence: inner.sequence.as_ref().map(ToString::to_string),
                created: inner.created.map(|at| humantime::format_rfc3339_seconds(at).to_string()),
                pending: inner.pending,
                running: inner.running,
                behind: inner.behind,
                trouble: trouble.cloned(),
            };
            (lane.peer.clone(), picture)
        });
        let lanes = lanes.collect();
        ShardPicture {
            read_seconds_ago: inner.read.elapsed().as_secs(),
            stopped: inner.stopped.clone(),
            unsaved_seconds: inner.unsaved.map_or(0, |since| since.elapsed().as_secs()),
            lanes,
        }
    }
}

impl LaneStatus {
    /// What the lane holds now; `position` when its frontier moved.
    pub fn show(&self, position: Option<&Position>, pending: usize, running: usize) {
        let mut inner = lock(&self.inner);
        if let Some(position) = position {
            inner.sequence.clone_from(&position.sequence);
            inner.created = position.created;
        }
        if position.is_some() || inner.pending == 0 {
            inner.moved = Instant::now();
        }
        (inner.pending, inner.running) = (pending, running);
    }

    /// When the first record that is not done was created; `None` when all that was taken is done.
    pub fn waits_for(&self, oldest: Option<SystemTime>) {
        lock(&self.inner).oldest = oldest;
    }

    /// It gets no more pages, because the shard waits for an operator.
    pub fn stops(&self) {
        lock(&self.inner).stopped = true;
    }

    /// Whether a second reader feeds it.
    pub fn is_behind(&self, behind: bool) {
        lock(&self.inner).behind = behind;
    }

    /// A change went through.
    pub fn moving(&self) {
        lock(&self.inner).trouble = None;
    }

    /// A failure that time or an operator must mend; said at once, and again while it lasts.
    pub fn stalled(&self, failure: &Failure) {
        let mut inner = lock(&self.inner);
        let new = inner.trouble.replace(failure.to_string()).is_none();
        if new || inner.said.is_none_or(|at| at.elapsed() > SAY_AGAIN) {
            inner.said = Some(Instant::now());
            tracing::warn!(
                peer = self.peer,
                why = %failure,
                remedy = failure.class.remedy(),
                "writes to a peer fail; they are tried again, and nothing is lost while the stream keeps the records"
            );
        }
    }

    /// The source's clock is so far ahead of this machine's that its changes wait; said at once, and again while it
    /// lasts.
    pub fn held_back(&self, ahead: Duration) {
        let mut inner = lock(&self.inner);
        let seconds = ahead.as_secs();
        inner.held = Some(format!("the source's clock is {seconds} s ahead of this machine's"));
        if inner.held_said.is_none_or(|at| at.elapsed() > SAY_AGAIN) {
            inner.held_said = Some(Instant::now());
            tracing::warn!(
                peer = self.peer,
                ahead_seconds = seconds,
                remedy = "set this machine's clock right; if it is, the source's is wrong, and time mends it",
                "changes are held back: their versions are too far in the future for other members to believe"
            );
        }
    }

    /// Nothing is held back any more.
    pub fn held_no_more(&self) {
        lock(&self.inner).held = None;
    }
}

fn entry<'a>(shared: &'a mut Shared, route: &str) -> &'a mut RouteEntry {
    shared.routes.entry(route.to_owned()).or_insert_with(|| RouteEntry {
        listed: Instant::now(),
        interval: Duration::ZERO,
        trouble: None,
        off: false,
        shards: BTreeMap::new(),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
