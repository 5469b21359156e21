//! One owned shard, page by page.
//!
//! A walker holds the lease on a shard. It reads the shard once for all its peers (`reading`), hands every page to
//! a [`Lane`] for each, or a [`FeedLane`] (`feeds`), and writes the lanes' frontiers to the lease. A lane that is slower than the
//! others is let go and catches up by itself; back-pressure is not asking for the next page. A walk ends when every
//! lane is done with the shard, when it is asked to drain, or when it may not go on; a peer's position is marked as
//! done only when the shard was read to its end and all of it is done there.

mod feeds;
mod pace;
mod reading;

use crate::change::SequenceNumber;
use crate::failure::Failure;
use crate::feed::{self, lane::FeedLane};
use crate::group::apply::GroupLane;
use crate::lane::Position;
use crate::lane::{Frontier, Lane, LaneEnd, LaneParts};
use crate::lease::plan::{self, Start, Take};
use crate::lease::row::PeerPosition;
use crate::lease::table::{Held, HeldError};
use crate::memory::Memory;
use crate::retry::{self, GaveUp, Policy};
use crate::route::Route;
use crate::task::Tasks;
use crate::telemetry::board::{LaneStatus, ShardStatus};
use crate::telemetry::metrics::Counted;
use feeds::{About, Closed, Feeds, Id};
use futures::FutureExt;
use futures::future::BoxFuture;
use pace::Pace;
use reading::Reading;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Pages that a lane may hold back before the reader waits for it.
const PAGES: usize = 2;

/// What a walker is made of.
pub struct WalkerParts {
    /// The route.
    pub route: Arc<Route>,
    /// The lease.
    pub held: Held,
    /// What was planned when it was taken.
    pub take: Take,
    /// Cancelled when the worker should finish what it has and stop.
    pub drain: CancellationToken,
    /// Cancelled when the worker may not write any more.
    pub fence: CancellationToken,
    /// Told when a peer is done with the shard and this is checkpointed: its children may start.
    pub progress: Arc<Notify>,
}

/// A peer whose turn on a shard comes while it is walked. Sent boxed, as pages are: a channel makes room for 32 at once,
/// and there is one a shard.
#[derive(Debug)]
pub struct Join {
    /// The peer.
    pub peer: String,
    /// Where it starts.
    pub start: Start,
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The shard was read to its end, and all of it is done and checkpointed.
    Finished,
    /// It was asked to stop; what was taken is done and checkpointed.
    Drained,
    /// Another worker has the lease, or this one may not write, or a lane broke down. What was sent may still take effect.
    Lost,
}

/// Walks one shard.
pub struct Walker {
    route: Arc<Route>,
    shard: Arc<str>,
    held: Held,
    take: Take,
    drain: CancellationToken,
    fence: CancellationToken,
    progress: Arc<Notify>,
    /// A feed's file is written, and the next one waits for the checkpoint.
    written: Arc<Notify>,
    status: Arc<ShardStatus>,
}

struct RunningLane {
    peer: String,
    frontier: watch::Receiver<Frontier>,
    saved: PeerPosition,
    /// Tells the lane which record the checkpoint has passed.
    told: watch::Sender<Option<SequenceNumber>>,
    status: Arc<LaneStatus>,
    /// Shared by all lanes of the peer.
    memory: Memory,
    /// The shard was read to its end, and all of it is done.
    done: bool,
}

/// The lanes of a walk.
#[derive(Default)]
struct Lanes {
    running: Vec<RunningLane>,
    tasks: Tasks<(Id, LaneEnd)>,
    /// Counted while one of them waits for an operator.
    stopped: Option<Counted>,
}

type Saved = (BTreeMap<String, PeerPosition>, Result<(), HeldError>);

impl Walker {
    /// A walker that has not begun.
    #[must_use]
    pub fn new(parts: WalkerParts) -> Self {
        let WalkerParts { route, held, take, drain, fence, progress } = parts;
        let shard: Arc<str> = take.seen.shard.as_str().into();
        let status = route.board.walks(&route.name, &shard);
        let written = Arc::default();
        Self { route, shard, held, take, drain, fence, progress, written, status }
    }

    /// Walks the shard; `joins` are peers whose turn on it comes meanwhile.
    pub async fn run(self, joins: mpsc::Receiver<Box<Join>>) -> End {
        let _held = Counted::new(self.route.metrics.leases_held.with_label_values(&[&self.route.name]));
        let span = tracing::info_span!("shard", route = &*self.route.name, shard = &*self.shard);
        let end = self.walk(joins).instrument(span).await;
        self.route.board.leaves(&self.route.name, &self.shard);
        end
    }

    async fn walk(&self, mut joins: mpsc::Receiver<Box<Join>>) -> End {
        let feeds = Feeds::new(self.take.starts.values().map(|start| &start.position));
        let mut lanes = Lanes::default();
        for (peer, start) in &self.take.starts {
            self.open(peer, start, false, &feeds, &mut lanes);
        }
        tracing::debug!(epoch = self.held.epoch(), lanes = lanes.running.len(), "walking");
        let (take, drain, status) = (&self.take, &self.drain, &*self.status);
        let (route, shard, held) = (&*self.route, &self.shard, &self.held);
        let pace = Pace::new(route.read.min_interval);
        let reading = Reading { route, shard, held, take, feeds: &feeds, pace, status, drain };
        let mut front = Some(Box::pin(reading.front()));
        let mut behind = Some(Box::pin(reading.behind()));
        let mut saving: Option<BoxFuture<'_, Saved>> = None;
        let mut ticks = tokio::time::interval(self.route.write.checkpoint_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !lanes.tasks.is_empty() {
            tokio::select! {
                // The right to write first; then what ends; checkpoints when nothing else is due.
                biased;
                () = self.fence.cancelled() => return End::Lost,
                () = self.drain.cancelled(), if front.is_some() || behind.is_some() => {
                    (front, behind) = (None, None);
                    feeds.drain();
                }
                Some(ended) = lanes.tasks.join_next() => match ended {
                    Ok((id, LaneEnd::Done)) => {
                        lanes.running[id].done = feeds.closed(id) == Some(Closed::Ended);
                        ticks.reset_immediately();
                    }
                    // A stop was asked for while its peer is paused.
                    Ok((_, LaneEnd::Left)) => {}
                    Ok((_, LaneEnd::Abandoned)) => return End::Lost,
                    Err(panic) => {
                        tracing::error!(%panic, "a lane broke down; the shard is given back and taken again");
                        lanes.tasks.abort_all().await;
                        return End::Lost;
                    }
                },
                () = maybe(&mut front) => front = None,
                () = maybe(&mut behind) => behind = None,
                (moved, result) = maybe(&mut saving) => {
                    saving = None;
                    if !self.saved(&mut lanes.running, moved, result) {
                        return End::Lost;
                    }
                }
                Some(join) = joins.recv(), if behind.is_some() => {
                    self.open(&join.peer, &join.start, true, &feeds, &mut lanes);
                }
                () = self.written.notified() => ticks.reset_immediately(),
                _ = ticks.tick(), if saving.is_none() => {
                    self.look_for_stopped(&feeds, &mut lanes);
                    saving = self.save(&feeds, &lanes.running);
                }
            }
        }
        drop((front, behind));
        if let Some(saving) = saving {
            let (moved, result) = saving.await;
            if !self.saved(&mut lanes.running, moved, result) {
                return End::Lost;
            }
        }
        // Large, and not needed while the shard is walked.
        self.look_for_stopped(&feeds, &mut lanes);
        Box::pin(self.end(&mut lanes)).await
    }

    /// Lanes that wait for an operator do not hold up the others, and must not look as if they were done.
    fn look_for_stopped(&self, feeds: &Feeds, lanes: &mut Lanes) {
        for (id, lane) in lanes.running.iter().enumerate() {
            if let Some(Closed::Stopped(reason)) = feeds.closed(id) {
                lane.status.stops();
                let shards = &self.route.metrics.shards_stopped;
                let count = || Counted::new(shards.with_label_values(&[&*self.route.name, reason]));
                lanes.stopped.get_or_insert_with(count);
            }
        }
    }

    /// Writes the last positions and gives the lease back; keeps it while the shard waits for an operator.
    async fn end(&self, lanes: &mut Lanes) -> End {
        if !self.save_last(&mut lanes.running).await {
            return End::Lost;
        }
        if lanes.stopped.is_some() {
            // The lease is kept, so that no other worker runs into the same wall again and again.
            tokio::select! {
                biased;
                () = self.fence.cancelled() => {}
                () = self.drain.cancelled() => {}
            }
            return self.give_back(End::Drained).await;
        }
        if !lanes.running.iter().all(|lane| lane.done) {
            return self.give_back(End::Drained).await;
        }
        let done = |peer: &&str| {
            let before = self.take.seen.peers.get(*peer).is_some_and(|before| before.done);
            before || lanes.running.iter().any(|lane| lane.peer == **peer)
        };
        if self.route.peer_names().iter().all(done) {
            return self.finish().await;
        }
        // The parent is not done yet at the other peers; their turn comes with another lease.
        self.give_back(End::Finished).await
    }

    /// Starts the lane of a peer or a feed; `late` when others are under way.
    fn open(&self, peer: &str, start: &Start, late: bool, feeds: &Feeds, lanes: &mut Lanes) {
        let route = &self.route;
        let Some(index) = route.peer_names().iter().position(|name| *name == peer) else { return };
        if lanes.running.iter().any(|lane| lane.peer == peer) {
            return;
        }
        let mut position = start.position.clone();
        position.hlc = position.hlc.max(route.floor);
        let status = self.status.lane(peer);
        let memory = route.memory[index].clone();
        let (told, saved) = watch::channel(start.position.sequence.clone());
        let (sender, pages) = mpsc::channel(PAGES);
        let id = lanes.running.len();
        let labels = [&*route.name, peer];
        let about = About {
            name: peer.to_owned(),
            behind: route.metrics.lanes_behind.with_label_values(&labels),
            let_go: route.metrics.lanes_let_go.with_label_values(&labels),
        };
        feeds.add(id, sender, memory.clone(), start, late, about);
        let frontier = match index.checked_sub(route.peers.len()) {
            None => {
                let (lane, frontier) = self.peer_lane(index, &status, position.clone());
                lanes.tasks.spawn(async move { (id, lane.run(pages).await) });
                frontier
            }
            Some(feed) => {
                let parts = self.feed_parts(
                    feed,
                    &status,
                    saved,
                    (feeds.quiet_of(id), feeds.ended_of(id)),
                    memory.clone(),
                );
                let (lane, frontier) = FeedLane::new(parts, position.clone());
                lanes.tasks.spawn(async move { (id, lane.run(pages).await) });
                frontier
            }
        };
        let saved = PeerPosition { position, done: false };
        lanes.running.push(RunningLane {
            peer: peer.to_owned(),
            frontier,
            saved,
            told,
            status,
            memory,
            done: false,
        });
    }

    fn peer_lane(
        &self,
        index: usize,
        status: &Arc<LaneStatus>,
        position: Position,
    ) -> (Lane, watch::Receiver<Frontier>) {
        let route = &self.route;
        let peer = &route.peers[index];
        let parts = LaneParts {
            route: Arc::clone(&route.name),
            shard: Arc::clone(&self.shard),
            peer: Arc::clone(peer),
            member: route.member,
            rules: route.rules.clone(),
            group: route.group.as_ref().and_then(|group| GroupLane::new(group, index)),
            max_drift: route.max_drift,
            in_flight: route.write.in_flight,
            dead_letters: route.dead_letters.clone(),
            clock: route.clock,
            metrics: route.metrics.clone(),
            counters: route.metrics.lane(&route.name, peer.name()),
            jitter: route.jitter.clone(),
            status: Arc::clone(status),
            drain: self.drain.clone(),
            fence: self.fence.clone(),
        };
        Lane::new(parts, position)
    }

    fn feed_parts(
        &self,
        index: usize,
        status: &Arc<LaneStatus>,
        saved: watch::Receiver<Option<SequenceNumber>>,
        (quiet, ended): (watch::Receiver<Option<SystemTime>>, watch::Receiver<bool>),
        memory: Memory,
    ) -> feed::lane::LaneParts {
        let route = &self.route;
        let feed = &route.feeds[index];
        feed::lane::LaneParts {
            route: Arc::clone(&route.name),
            shard: Arc::clone(&self.shard),
            feed: Arc::clone(feed),
            member: route.member,
            rules: route.rules.clone(),
            max_drift: route.max_drift,
            dead_letters: route.dead_letters.clone(),
            held: self.held.clone(),
            saved,
            written: Arc::clone(&self.written),
            quiet,
            ended,
            memory,
            clock: route.clock,
            metrics: route.metrics.clone(),
            counters: route.metrics.lane(&route.name, feed.name()),
            jitter: route.jitter.clone(),
            status: Arc::clone(status),
            drain: self.drain.clone(),
            fence: self.fence.clone(),
        }
    }

    /// Begins to write what moved since the last time; `None` when nothing did.
    fn save<'a>(&'a self, feeds: &Feeds, lanes: &[RunningLane]) -> Option<BoxFuture<'a, Saved>> {
        for (id, lane) in lanes.iter().enumerate() {
            lane.status.is_behind(feeds.is_behind(id));
            let taken = i64::try_from(lane.memory.taken()).unwrap_or(i64::MAX);
            self.route.metrics.buffered.with_label_values(&[&*self.route.name, &lane.peer]).set(taken);
        }
        let moved = moved(lanes);
        if moved.is_empty() {
            self.status.saved();
            return None;
        }
        Some(
            async move {
                let result = self.held.checkpoint(&moved).await;
                (moved, result)
            }
            .boxed(),
        )
    }

    /// A checkpoint was written, or not; `false` when the lease is lost. A failed call is tried again at the next tick.
    fn saved(
        &self,
        lanes: &mut [RunningLane],
        moved: BTreeMap<String, PeerPosition>,
        result: Result<(), HeldError>,
    ) -> bool {
        match result {
            Ok(()) => {
                let finished = moved.values().any(|position| position.done);
                keep_saved(lanes, moved);
                self.status.saved();
                if finished {
                    self.progress.notify_one();
                }
                true
            }
            Err(HeldError::Lost) => self.lost(),
            Err(HeldError::Call(failure)) => {
                self.status.unsaved();
                self.route.metrics.retried(&self.route.name, "state", failure.class);
                tracing::warn!(why = %failure, remedy = failure.class.remedy(), "a checkpoint was not written");
                true
            }
        }
    }

    /// Writes the last positions, for as long as it takes; `false` when the lease is lost.
    async fn save_last(&self, lanes: &mut [RunningLane]) -> bool {
        let last = moved(lanes);
        match self.insist(|| self.held.checkpoint(&last)).await {
            Ok(()) => true,
            Err(HeldError::Lost) => self.lost(),
            Err(HeldError::Call(_)) => false,
        }
    }

    async fn give_back(&self, end: End) -> End {
        self.given_back(self.insist(|| self.held.release()).await, end)
    }

    /// Gives a lease back whose shard is done; its row is kept for longer than the stream keeps the shard.
    async fn finish(&self) -> End {
        let expires = self.route.clock.since_epoch() + 2 * plan::RETENTION;
        self.given_back(self.insist(|| self.held.finish(expires)).await, End::Finished)
    }

    fn given_back(&self, result: Result<(), HeldError>, end: End) -> End {
        match result {
            Ok(()) | Err(HeldError::Call(_)) => end,
            Err(HeldError::Lost) => {
                self.lost();
                End::Lost
            }
        }
    }

    /// Repeats a change of the lease until it happens, the lease is lost, or the fence falls.
    async fn insist<F>(&self, call: impl Fn() -> F) -> Result<(), HeldError>
    where
        F: Future<Output = Result<(), HeldError>>,
    {
        let notice = |failure: &Failure, _| {
            self.route.metrics.retried(&self.route.name, "state", failure.class);
        };
        // A lost lease is no failure to try again: it passes through as success of the call.
        let once = || async {
            match call().await {
                Ok(()) => Ok(Ok(())),
                Err(HeldError::Lost) => Ok(Err(HeldError::Lost)),
                Err(HeldError::Call(failure)) => Err(failure),
            }
        };
        match retry::run(Policy::FOREVER, &self.route.jitter, &self.fence, notice, once).await {
            Ok(result) => result,
            Err(GaveUp::Failed(failure)) => Err(HeldError::Call(failure)),
            Err(GaveUp::Cancelled) => Err(HeldError::Lost),
        }
    }

    fn lost(&self) -> bool {
        self.route.metrics.leases_lost.with_label_values(&[&self.route.name]).inc();
        tracing::warn!("the lease was lost to another worker; this one stops walking the shard");
        false
    }
}

/// Drives a future when there is one; never ends otherwise.
async fn maybe<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// The positions that differ from what is saved.
fn moved(lanes: &[RunningLane]) -> BTreeMap<String, PeerPosition> {
    let now = |lane: &RunningLane| {
        let position = PeerPosition { position: lane.frontier.borrow().position.clone(), done: lane.done };
        (lane.saved != position).then(|| (lane.peer.clone(), position))
    };
    lanes.iter().filter_map(now).collect()
}

fn keep_saved(lanes: &mut [RunningLane], mut saved: BTreeMap<String, PeerPosition>) {
    for lane in lanes {
        if let Some(position) = saved.remove(&lane.peer) {
            lane.told.send_replace(position.position.sequence.clone());
            lane.saved = position;
        }
    }
}
