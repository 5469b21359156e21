//! One peer of one shard: applies the shard's changes there and says how far it is.
//!
//! A lane takes pages in stream order. Changes of one key are applied in order, different keys concurrently up
//! to a bound. While a change of a key is under way, later ones of that key wait, folded: the last one is
//! applied and covers those before it, with the highest delete among them still raised in the ledger. The
//! lane's [`Frontier`] is contiguous: it never passes a change that is not applied, superseded, skipped by a
//! rule, covered by a later one that is, or kept as a dead letter. In a group only applications' writes are folded;
//! what is to do about writes of our own is done in its turn.
//!
//! `work` carries single changes out. A lane retries for as long as it lives; it ends when its pages end and all is
//! done, or at once when its worker loses the right to write. While its peer is paused it starts nothing new, and what
//! it has not started then does not hold up a stop. The same goes for changes of a group whose versions are too far in
//! the future: another member would not believe them.

mod work;

use crate::apply::{self, Rules, Step};
use crate::change::{Change, SequenceNumber};
use crate::clock::Clock;
use crate::dead_letters::DeadLetters;
use crate::group::apply::GroupLane;
use crate::group::{self, Record, Step as GroupStep};
use crate::item::Digest;
use crate::memory::Reserved;
use crate::peer::Peer;
use crate::retry::Jitter;
use crate::shape::Unshaped;
use crate::telemetry::board::LaneStatus;
use crate::telemetry::metrics::{LaneMetrics, Metrics};
use crate::version::{Fold, Hlc, Version};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// The changes of one read, in stream order. Shared by the lanes of a shard.
#[derive(Debug)]
pub struct Page {
    /// The changes; never empty.
    pub changes: Vec<Change>,
    /// What each of them is in a group: two digests a change, so the first lane that asks answers for all.
    records: OnceLock<Vec<Record>>,
}

impl Page {
    /// A page of these changes.
    #[must_use]
    pub fn new(changes: Vec<Change>) -> Self {
        Self { changes, records: OnceLock::new() }
    }

    /// What each change is, in a group whose members believe stamps up to `max_drift` ahead; all who ask must ask with
    /// the same.
    fn records(&self, max_drift: Duration) -> &[Record] {
        self.records
            .get_or_init(|| self.changes.iter().map(|change| group::classify(change, max_drift)).collect())
    }
}

/// A page with the room that it takes until all of it is done. Sent boxed: a channel makes room for 32 at once.
#[derive(Debug)]
pub struct Handed {
    /// The page.
    pub page: Arc<Page>,
    /// Its room in the memory of the lane's peer.
    pub memory: Reserved,
}

/// How far a lane is: after this record everything is still to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position {
    /// The last record that is done; `None` before the first one.
    pub sequence: Option<SequenceNumber>,
    /// The clock after that record.
    pub hlc: Hlc,
    /// When that record was created.
    pub created: Option<SystemTime>,
}

/// What a lane shows of its progress.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    /// How far it is.
    pub position: Position,
    /// Changes taken and not done.
    pub pending: usize,
}

/// What a lane is made of.
pub struct LaneParts {
    /// The route's name.
    pub route: Arc<str>,
    /// The shard's id.
    pub shard: Arc<str>,
    /// The peer to write to.
    pub peer: Arc<Peer>,
    /// The number of the member that the changes come from.
    pub member: u8,
    /// What the route's config says about single changes.
    pub rules: Rules,
    /// What the lane is in its group; `None` on a one-way route.
    pub group: Option<GroupLane>,
    /// How far ahead of a record's creation a stamp is believed.
    pub max_drift: Duration,
    /// Requests under way at most.
    pub in_flight: usize,
    /// Where to keep what the peer refuses.
    pub dead_letters: DeadLetters,
    /// The worker's clock.
    pub clock: Clock,
    /// The worker's metrics.
    pub metrics: Metrics,
    /// Those of this route and peer.
    pub counters: LaneMetrics,
    /// Seeded pauses.
    pub jitter: Jitter,
    /// What the lane shows of itself.
    pub status: Arc<LaneStatus>,
    /// Cancelled when the worker should finish what it has and stop: what is paused is left.
    pub drain: CancellationToken,
    /// Cancelled when the worker loses the right to write: everything is abandoned.
    pub fence: CancellationToken,
}

/// While changes are held back, the worker's clock is looked at this often.
const LOOK: Duration = Duration::from_millis(500);
/// Changes that a lane holds before it takes another page: some pages' worth, so that a slow key does not hold
/// up the others at once.
const WINDOW: usize = 2000;
/// Bytes of such changes, so that large items do not fill the memory.
const WINDOW_BYTES: usize = 8 << 20;

/// Applies one shard's changes to one peer.
pub struct Lane {
    context: Arc<LaneParts>,
    fold: Fold,
    /// Records up to here were done before this lane began.
    done_before: Option<SequenceNumber>,
    /// The last record that was taken or done before: what comes up to here again is passed over.
    taken: Option<SequenceNumber>,
    /// The records taken and not passed by the frontier; the first one has number `base`.
    slots: VecDeque<Slot>,
    base: u64,
    /// Bytes of the records taken and not passed.
    bytes: usize,
    keys: HashMap<Digest, KeyState>,
    /// Keys with work that may start, in order.
    ready: VecDeque<Digest>,
    /// Keys that have dead letters.
    dead: HashSet<Digest>,
    running: FuturesUnordered<BoxFuture<'static, Finished>>,
    /// Keys whose next change is held back until the worker's clock has come near its version.
    held: Vec<Digest>,
    /// When they are looked at again.
    look: Instant,
    frontier: watch::Sender<Frontier>,
}

/// How a lane ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneEnd {
    /// The pages ended, and everything is done.
    Done,
    /// It was paused or held changes back, and what it had not started is left for the next worker.
    Left,
    /// The worker lost the right to write.
    Abandoned,
}

struct Slot {
    position: Position,
    size: usize,
    done: bool,
    /// The last slot of a page holds the page's room.
    memory: Option<Reserved>,
}

#[derive(Default)]
struct KeyState {
    running: bool,
    waiting: Option<Work>,
}

/// Changes of one key, in order; the last one covers the others.
struct Work {
    key: Digest,
    items: Vec<WorkItem>,
    dead: bool,
}

#[derive(Clone)]
struct WorkItem {
    page: Arc<Page>,
    index: usize,
    version: Version,
    slot: u64,
    /// What a group does about it; `None` on a one-way route.
    group: Option<GroupStep>,
    /// What a one-way route does about it.
    plan: Result<Step, Unshaped>,
}

impl WorkItem {
    fn change(&self) -> &Change {
        &self.page.changes[self.index]
    }

    /// Whether it deletes the item at the peer.
    fn deletes(&self) -> bool {
        match self.group {
            Some(step) => step == GroupStep::Delete,
            None => self.plan == Ok(Step::Delete),
        }
    }
}

struct Finished {
    key: Digest,
    slots: Vec<u64>,
    dead: bool,
    /// The fence fell, or the lane is to come to rest and its peer fails: the work is not done.
    abandoned: bool,
}

impl Lane {
    /// A lane that goes on from `start`, with the channel that shows its frontier.
    #[must_use]
    pub fn new(parts: LaneParts, start: Position) -> (Self, watch::Receiver<Frontier>) {
        let fold = Fold::from(start.hlc, parts.max_drift);
        let taken = start.sequence.clone();
        let (frontier, shown) = watch::channel(Frontier { position: start, pending: 0 });
        let lane = Self {
            context: Arc::new(parts),
            fold,
            done_before: taken.clone(),
            taken,
            slots: VecDeque::new(),
            base: 0,
            bytes: 0,
            keys: HashMap::new(),
            ready: VecDeque::new(),
            dead: HashSet::new(),
            running: FuturesUnordered::new(),
            held: Vec::new(),
            look: Instant::now(),
            frontier,
        };
        (lane, shown)
    }

    /// Takes pages until they end and everything is done, until it is paused and the worker drains, or until the
    /// fence falls.
    pub async fn run(mut self, mut pages: mpsc::Receiver<Box<Handed>>) -> LaneEnd {
        let mut gate = self.context.peer.gate();
        let drain = self.context.drain.clone();
        let start = self.frontier.borrow().position.clone();
        self.context.status.show(Some(&start), 0, 0);
        let fence = self.context.fence.clone();
        let context = Arc::clone(&self.context);
        // Large, and not needed afterwards.
        match Box::pin(context.load_dead()).await {
            Some(dead) => self.dead = dead,
            None => return LaneEnd::Abandoned,
        }
        let (mut open, mut leaves) = (true, false);
        while open || !self.slots.is_empty() {
            if leaves && self.running.is_empty() {
                return if fence.is_cancelled() { LaneEnd::Abandoned } else { LaneEnd::Left };
            }
            tokio::select! {
                // The fence first; then what is done, which makes room; then more work.
                biased;
                () = fence.cancelled() => return LaneEnd::Abandoned,
                Some(finished) = self.running.next(), if !self.running.is_empty() => {
                    if finished.abandoned {
                        leaves = true;
                    } else {
                        self.finish(finished);
                    }
                }
                page = pages.recv(), if open && self.has_room() => match page {
                    Some(handed) => self.take(*handed),
                    None => open = false,
                },
                Ok(()) = gate.changed() => {}
                () = drain.cancelled(), if self.stands() && self.running.is_empty() => return LaneEnd::Left,
                () = sleep_until(self.look), if !self.held.is_empty() => {
                    self.ready.extend(self.held.drain(..));
                    // Said again at once where it is not so.
                    self.context.status.held_no_more();
                }
            }
            if !leaves {
                self.start();
            }
            self.show();
        }
        LaneEnd::Done
    }

    /// Whether nothing new starts, for whatever reason.
    fn stands(&self) -> bool {
        !self.held.is_empty() || self.context.peer.paused()
    }

    fn has_room(&self) -> bool {
        self.slots.len() < WINDOW && self.bytes < WINDOW_BYTES
    }

    /// Takes a page. Records that were taken before come again when a lane changes its reader; they are passed over.
    fn take(&mut self, handed: Handed) {
        let Handed { page, memory } = handed;
        for (index, change) in page.changes.iter().enumerate() {
            let before =
                |place: &Option<SequenceNumber>| place.as_ref().is_some_and(|at| change.sequence <= *at);
            if before(&self.taken) {
                if before(&self.done_before) {
                    self.context.counters.skipped.inc();
                }
                continue;
            }
            self.taken = Some(change.sequence.clone());
            let (hlc, disbelieved) = self.fold.step(change.created, change.stamps());
            if disbelieved > 0 {
                self.disbelieve(change, disbelieved);
            }
            let slot = self.base + self.slots.len() as u64;
            let position =
                Position { sequence: Some(change.sequence.clone()), hlc, created: Some(change.created) };
            let todo = self.todo(&page, index);
            self.bytes += change.size;
            self.slots.push_back(Slot { position, size: change.size, done: todo.is_none(), memory: None });
            let Some((group, plan)) = todo else { continue };
            let version = Version::new(hlc, self.context.member);
            self.enqueue(
                change.key.digest(),
                WorkItem { page: Arc::clone(&page), index, version, slot, group, plan },
            );
        }
        if let Some(last) = self.slots.back_mut() {
            // A page with nothing new gives its room back: the last slot has some already.
            last.memory.get_or_insert(memory);
        }
    }

    /// Whether there is something to do about a change of a page, and what a group and a one-way route do.
    fn todo(&self, page: &Page, index: usize) -> Option<(Option<GroupStep>, Result<Step, Unshaped>)> {
        let (context, change) = (&self.context, &page.changes[index]);
        let plan = apply::plan(change, &context.rules);
        if matches!(plan, Ok(Step::Skip(_))) {
            context.counters.skipped.inc();
            return None;
        }
        let Some(lane) = &context.group else {
            // What cannot be judged becomes a dead letter when its turn has come.
            context.peer.takes(change.created, plan == Ok(Step::Delete));
            return Some((None, plan));
        };
        let step = lane.step(page.records(context.max_drift)[index]);
        match step {
            GroupStep::Nothing => {
                context.counters.echoes.inc();
                return None;
            }
            GroupStep::Put { .. } => context.peer.takes(change.created, false),
            GroupStep::Delete => context.peer.takes(change.created, true),
            GroupStep::Check(_) | GroupStep::Repair(_) => {}
        }
        Some((Some(step), plan))
    }

    fn enqueue(&mut self, key: Digest, item: WorkItem) {
        let state = self.keys.entry(key).or_default();
        match &mut state.waiting {
            Some(work) => work.items.push(item),
            None => {
                state.waiting = Some(Work { key, items: vec![item], dead: false });
                if !state.running {
                    self.ready.push_back(key);
                }
            }
        }
    }

    fn start(&mut self) {
        while self.running.len() < self.context.in_flight && !self.context.peer.paused() {
            let Some(key) = self.ready.pop_front() else { break };
            let Some(state) = self.keys.get_mut(&key) else { continue };
            let Some(mut work) = state.waiting.take() else { continue };
            state.waiting = self.context.hold_back(&mut work);
            if work.items.is_empty() {
                if self.held.is_empty() {
                    self.look = Instant::now() + LOOK;
                }
                self.held.push(key);
                continue;
            }
            state.running = true;
            work.dead = self.dead.contains(&key);
            self.running.push(Box::pin(Arc::clone(&self.context).carry_out(work)));
        }
    }

    fn finish(&mut self, finished: Finished) {
        if finished.dead {
            self.dead.insert(finished.key);
        } else {
            self.dead.remove(&finished.key);
        }
        for slot in finished.slots {
            let index = usize::try_from(slot - self.base).unwrap_or(usize::MAX);
            if let Some(slot) = self.slots.get_mut(index) {
                slot.done = true;
            }
        }
        match self.keys.get_mut(&finished.key) {
            Some(state) if state.waiting.is_some() => {
                state.running = false;
                self.ready.push_back(finished.key);
            }
            _ => {
                self.keys.remove(&finished.key);
            }
        }
    }

    /// Moves the frontier over what is done, and shows it.
    fn show(&mut self) {
        let mut position = None;
        while self.slots.front().is_some_and(|slot| slot.done) {
            if let Some(slot) = self.slots.pop_front() {
                self.base += 1;
                self.bytes -= slot.size;
                position = Some(slot.position);
            }
        }
        let pending = self.slots.len();
        self.context.status.show(position.as_ref(), pending, self.running.len());
        self.context.status.waits_for(self.slots.front().and_then(|slot| slot.position.created));
        let context = &self.context;
        context.counters.rate_limit.set(context.peer.limit().limit().unwrap_or(f64::INFINITY));
        self.frontier.send_if_modified(|frontier| {
            let changed = position.is_some() || frontier.pending != pending;
            if let Some(position) = position {
                frontier.position = position;
            }
            frontier.pending = pending;
            changed
        });
    }

    fn disbelieve(&self, change: &Change, count: usize) {
        let context = &self.context;
        context.metrics.stamps_disbelieved.with_label_values(&[&context.route]).inc_by(count as u64);
        tracing::debug!(
            peer = context.peer.name(),
            sequence = %change.sequence,
            key = %change.key.digest(),
            "a stamp is further ahead of its record's creation than max_clock_drift; it is not believed"
        );
    }
}
