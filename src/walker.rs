//! One owned shard, page by page.
//!
//! A walker holds the lease on a shard. It reads the shard once for all its peers, hands every page to a
//! [`Lane`] for each, and writes the lanes' frontiers to the lease. Back-pressure is not asking for the next
//! page. It ends when the shard ends, when it is asked to drain, or when it may not go on; only the first of
//! these marks the shard as done.

use crate::change::{Change, SequenceNumber};
use crate::config::OnGap;
use crate::failure::{Action, Class, Failure};
use crate::gaps::Gap;
use crate::lane::{Frontier, Lane, LaneParts, Page, Position};
use crate::lease::plan::{self, Take};
use crate::lease::row::PeerPosition;
use crate::lease::table::{Held, HeldError};
use crate::retry::{self, GaveUp, Pauses, Policy};
use crate::route::Route;
use crate::stream::reader::{Place, ReadError, Reader};
use crate::task::Tasks;
use crate::telemetry::board::ShardStatus;
use crate::telemetry::metrics::Counted;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
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
    /// Peers that may begin in the shard while it is walked.
    pub joins: mpsc::UnboundedReceiver<(String, Position)>,
    /// Told when a peer finished the shard and that is checkpointed.
    pub progress: mpsc::UnboundedSender<()>,
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The shard was read to its end, and all of it is done and checkpointed.
    Finished,
    /// It was asked to stop; what was taken is done and checkpointed.
    Drained,
    /// Another worker has the lease, or this one may not write.
    Lost,
}

/// How reading ended.
enum Reading {
    Ended,
    Drained,
    /// It waits for an operator, for this reason.
    Stopped(&'static str),
}

/// Walks one shard.
pub struct Walker {
    route: Arc<Route>,
    shard: Arc<str>,
    held: Held,
    take: Take,
    drain: CancellationToken,
    fence: CancellationToken,
    joins: mpsc::UnboundedReceiver<(String, Position)>,
    progress: mpsc::UnboundedSender<()>,
    status: Arc<ShardStatus>,
}

struct RunningLane {
    peer: String,
    frontier: watch::Receiver<Frontier>,
    saved: PeerPosition,
}

impl Walker {
    /// A walker that has not begun.
    #[must_use]
    pub fn new(parts: WalkerParts) -> Self {
        let WalkerParts { route, held, take, drain, fence, joins, progress } = parts;
        let shard: Arc<str> = take.seen.shard.as_str().into();
        let peers: Vec<&str> = take.starts.keys().map(String::as_str).collect();
        let status = route.board.walks(&route.name, &shard, &peers);
        Self { route, shard, held, take, drain, fence, joins, progress, status }
    }

    /// Walks the shard.
    pub async fn run(mut self) -> End {
        let _held = Counted::new(self.route.metrics.leases_held.with_label_values(&[&self.route.name]));
        let span = tracing::info_span!("shard", route = &*self.route.name, shard = &*self.shard);
        let mut joins = std::mem::replace(&mut self.joins, closed());
        let drain = self.drain.clone();
        // A peer that joins starts with the others when the shard is taken again.
        let joined = async {
            if joins.recv().await.is_some() {
                drain.cancel();
            }
            std::future::pending::<End>().await
        };
        let end = tokio::select! {
            end = self.walk().instrument(span) => end,
            end = joined => end,
        };
        self.route.board.leaves(&self.route.name, &self.shard);
        end
    }

    async fn walk(&self) -> End {
        let mut tasks = Tasks::new();
        let (mut senders, mut lanes) = (Vec::new(), Vec::new());
        for (index, (peer, start)) in self.take.starts.iter().enumerate() {
            let Some(lane) = self.lane(index, peer, start) else { continue };
            let (sender, pages) = mpsc::channel(PAGES);
            let saved = PeerPosition { position: start.clone(), done: false };
            lanes.push(RunningLane { peer: peer.clone(), frontier: lane.1, saved });
            senders.push(sender);
            tasks.spawn(lane.0.run(pages));
        }
        tracing::debug!(epoch = self.held.epoch(), lanes = lanes.len(), "walking");
        let mut reading = Box::pin(self.read(senders));
        let mut ended = None;
        let mut ticks = tokio::time::interval(self.route.write.checkpoint_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while ended.is_none() || !tasks.is_empty() {
            tokio::select! {
                // The right to write first; then what ends; checkpoints when nothing else is due.
                biased;
                () = self.fence.cancelled() => return End::Lost,
                end = &mut reading, if ended.is_none() => {
                    self.status.reading_ended();
                    ended = Some(end);
                }
                Some(lane) = tasks.join_next(), if !tasks.is_empty() => match lane {
                    Ok(true) => {}
                    Ok(false) => return End::Lost,
                    Err(panic) => {
                        tracing::error!(%panic, "a lane broke down; the shard is given back and taken again");
                        tasks.abort_all().await;
                        return self.give_back(End::Lost).await;
                    }
                },
                _ = ticks.tick() => if !self.save(&mut lanes).await {
                    return End::Lost;
                },
            }
        }
        let end = match ended {
            Some(Reading::Ended) => End::Finished,
            _ => End::Drained,
        };
        if !self.save_last(&mut lanes, end == End::Finished).await {
            return End::Lost;
        }
        if end == End::Finished {
            let _nobody_asks_any_more = self.progress.send(());
        }
        if let Some(Reading::Stopped(reason)) = ended {
            // The lease is kept, so that no other worker runs into the same wall again and again.
            let stopped = self.route.metrics.shards_stopped.with_label_values(&[&*self.route.name, reason]);
            stopped.inc();
            tokio::select! {
                biased;
                () = self.fence.cancelled() => {}
                () = self.drain.cancelled() => {}
            }
            stopped.dec();
        }
        if end == End::Finished {
            return self.finish().await;
        }
        self.give_back(end).await
    }

    fn lane(&self, index: usize, peer: &str, start: &Position) -> Option<(Lane, watch::Receiver<Frontier>)> {
        let route = &self.route;
        let parts = LaneParts {
            route: Arc::clone(&route.name),
            shard: Arc::clone(&self.shard),
            peer: Arc::clone(route.peers.iter().find(|p| p.name() == peer)?),
            member: route.member,
            rules: route.rules,
            max_drift: route.max_drift,
            in_flight: route.write.in_flight,
            dead_letters: route.dead_letters.clone(),
            clock: route.clock,
            metrics: route.metrics.clone(),
            jitter: route.jitter.clone(),
            status: Arc::clone(self.status.lanes().get(index)?),
            fence: self.fence.clone(),
        };
        Some(Lane::new(parts, start.clone()))
    }

    /// Writes what moved since the last time; `false` when the lease is lost. A failed call is tried again at the
    /// next tick.
    async fn save(&self, lanes: &mut [RunningLane]) -> bool {
        let moved = moved(lanes, false);
        if moved.is_empty() {
            self.status.saved();
            return true;
        }
        match self.held.checkpoint(&moved).await {
            Ok(()) => {
                keep_saved(lanes, moved);
                self.status.saved();
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
    async fn save_last(&self, lanes: &mut [RunningLane], done: bool) -> bool {
        let last = moved(lanes, done);
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

    /// Reads pages and hands them to all lanes, until the shard ends or reading must stop. The senders end with
    /// it, which ends the lanes.
    async fn read(&self, lanes: Vec<mpsc::Sender<Arc<Page>>>) -> Reading {
        let (place, mut last) = self.first_place();
        let mut reader = Reader::new(
            self.route.streams.clone(),
            Arc::clone(&self.route.stream),
            Arc::clone(&self.shard),
            Arc::clone(&self.route.stamp),
            place,
        );
        if self.take.suspect
            && let Some(end) = self.gap(None, false, &mut reader, &lanes, &mut last).await
        {
            return end;
        }
        let mut pauses = Pauses::new(Policy::FOREVER, self.route.jitter.clone());
        let mut wait = self.route.read.min_interval;
        loop {
            let begun = Instant::now();
            let read = tokio::select! {
                biased;
                () = self.drain.cancelled() => return Reading::Drained,
                read = reader.read() => read,
            };
            match read {
                Ok(read) => {
                    pauses.reset();
                    let empty = read.changes.is_empty();
                    if !self.hand_out(read.changes, &lanes, &mut last).await {
                        return Reading::Drained;
                    }
                    if read.end {
                        return Reading::Ended;
                    }
                    let (min, idle) = (self.route.read.min_interval, self.route.read.idle_interval);
                    wait = if empty { (wait * 2).min(idle).max(min) } else { min };
                    let pause = self.route.jitter.around(wait).max(min).saturating_sub(begun.elapsed());
                    if !retry::pause(pause, &self.drain).await {
                        return Reading::Drained;
                    }
                }
                Err(error) => {
                    if let Some(end) =
                        self.read_failed(error, &mut reader, &lanes, &mut last, &mut pauses).await
                    {
                        return end;
                    }
                }
            }
        }
    }

    async fn read_failed(
        &self,
        error: ReadError,
        reader: &mut Reader,
        lanes: &[mpsc::Sender<Arc<Page>>],
        last: &mut Option<SystemTime>,
        pauses: &mut Pauses,
    ) -> Option<Reading> {
        match error {
            // Nothing was read yet, and nothing was expected: the oldest record is another one by now.
            ReadError::Trimmed { after: None } => {
                reader.seek(Place::TrimHorizon);
                None
            }
            ReadError::Trimmed { after } => self.gap(after, false, reader, lanes, last).await,
            ReadError::Gone => self.gap(None, true, reader, lanes, last).await,
            ReadError::Undecodable(error) => Some(self.stop("undecodable", &error.to_string())),
            ReadError::Call(failure) => {
                self.route.metrics.retried(&self.route.name, "stream", failure.class);
                let action = match (failure.class, failure.class.action()) {
                    (Class::IteratorExpired, _) => Action::RetrySoon,
                    (_, Action::GiveBack) => Action::RetrySlowly,
                    (_, action) => action,
                };
                self.status.read_failed(&failure);
                let pause = pauses.next(action).unwrap_or(Policy::FOREVER.slow);
                (!retry::pause(pause, &self.drain).await).then_some(Reading::Drained)
            }
        }
    }

    /// Where the slowest lane goes on, and when its last record was created.
    fn first_place(&self) -> (Place, Option<SystemTime>) {
        let slowest = self.take.starts.values().min_by(|a, b| a.sequence.cmp(&b.sequence));
        let created = slowest.and_then(|position| position.created);
        let sequence: Option<SequenceNumber> = slowest.and_then(|position| position.sequence.clone());
        let place = match (sequence, self.route.rules.not_before) {
            (Some(sequence), _) => Place::After(sequence),
            (None, Some(time)) if self.take.seen.initial => Place::At(time),
            (None, _) => Place::TrimHorizon,
        };
        (place, created)
    }

    /// Gives a page to every lane, waiting for room; `false` when asked to drain meanwhile, or when a lane ended.
    async fn hand_out(
        &self,
        changes: Vec<Change>,
        lanes: &[mpsc::Sender<Arc<Page>>],
        last: &mut Option<SystemTime>,
    ) -> bool {
        let metrics = &self.route.metrics;
        self.status.read();
        let Some(newest) = changes.last() else {
            metrics.pages.with_label_values(&[&*self.route.name, "empty"]).inc();
            return true;
        };
        *last = Some(newest.created);
        metrics.pages.with_label_values(&[&*self.route.name, "full"]).inc();
        self.held.count(changes.len() as u64);
        metrics.records_read.with_label_values(&[&self.route.name]).inc_by(changes.len() as u64);
        let age = self.route.clock.now().duration_since(newest.created).unwrap_or_default();
        metrics.read_lag.with_label_values(&[&self.route.name]).observe(age.as_secs_f64());
        tracing::trace!(changes = changes.len(), "page");
        let page = Arc::new(Page { changes });
        for lane in lanes {
            tokio::select! {
                biased;
                () = self.drain.cancelled() => return false,
                sent = lane.send(Arc::clone(&page)) => if sent.is_err() {
                    return false;
                },
            }
        }
        true
    }

    /// Records are gone: says which, keeps that, and goes on or stops as configured. `Some` when reading ends.
    async fn gap(
        &self,
        after: Option<SequenceNumber>,
        gone: bool,
        reader: &mut Reader,
        lanes: &[mpsc::Sender<Arc<Page>>],
        last: &mut Option<SystemTime>,
    ) -> Option<Reading> {
        let nothing_read = self.take.starts.values().all(|start| start.sequence.is_none());
        if gone && nothing_read && self.take.seen.initial && !self.take.suspect {
            tracing::warn!(
                "the shard aged out before it was read for the first time; the route starts after it"
            );
            return Some(Reading::Ended);
        }
        reader.seek(Place::TrimHorizon);
        let rest = if gone { None } else { reader.read().await.ok() };
        let to = rest.as_ref().and_then(|read| read.changes.first()).map(|change| change.created);
        let after = after.map_or_else(|| "the last checkpoint".to_owned(), |after| after.to_string());
        let gap = Gap { shard: self.shard.to_string(), after, from: *last, to };
        self.route.metrics.gaps.with_label_values(&[&self.route.name]).inc();
        tracing::error!(
            %gap,
            on_gap = ?self.route.on_gap,
            "DATA IS MISSING at the peers: compare the members and copy what differs"
        );
        let keep = || self.route.gaps.keep(&self.route.name, &gap);
        let notice = |failure: &Failure, _| {
            self.route.metrics.retried(&self.route.name, "state", failure.class);
        };
        if retry::run(Policy::FOREVER, &self.route.jitter, &self.drain, notice, keep).await.is_err() {
            return Some(Reading::Drained);
        }
        if self.route.on_gap == OnGap::Stop {
            return Some(self.stop("gap", &gap.to_string()));
        }
        if gone {
            return Some(Reading::Ended);
        }
        let Some(read) = rest else {
            reader.seek(Place::TrimHorizon);
            return None;
        };
        if !self.hand_out(read.changes, lanes, last).await {
            return Some(Reading::Drained);
        }
        read.end.then_some(Reading::Ended)
    }

    fn stop(&self, reason: &'static str, why: &str) -> Reading {
        self.status.stopped(why);
        tracing::error!(reason, why, "the shard stops here and waits for an operator; other shards go on");
        Reading::Stopped(reason)
    }
}

#[expect(clippy::disallowed_methods, reason = "it is closed")]
fn closed() -> mpsc::UnboundedReceiver<(String, Position)> {
    mpsc::unbounded_channel().1
}

/// The positions that differ from what is saved; with `done`, all of them, marked as done.
fn moved(lanes: &[RunningLane], done: bool) -> BTreeMap<String, PeerPosition> {
    let now = |lane: &RunningLane| {
        let position = PeerPosition { position: lane.frontier.borrow().position.clone(), done };
        (lane.saved != position).then(|| (lane.peer.clone(), position))
    };
    lanes.iter().filter_map(now).collect()
}

fn keep_saved(lanes: &mut [RunningLane], mut saved: BTreeMap<String, PeerPosition>) {
    for lane in lanes {
        if let Some(position) = saved.remove(&lane.peer) {
            lane.saved = position;
        }
    }
}
