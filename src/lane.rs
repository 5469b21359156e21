//! One peer of one shard: applies the shard's changes there and says how far it is.
//!
//! A lane takes pages in stream order. Changes of one key are applied in order, different keys concurrently up
//! to a bound. While a change of a key is under way, later ones of that key wait, folded: the last one is
//! applied and covers those before it, with the highest delete among them still raised in the ledger. The
//! lane's [`Frontier`] is contiguous: it never passes a change that is not applied, superseded, skipped by a
//! rule, covered by a later one that is, or kept as a dead letter.
//!
//! A lane retries for as long as it lives; it ends when its pages end and all is done, or at once when its
//! worker loses the right to write.

use crate::apply::{self, Rules, Step};
use crate::change::{Change, SequenceNumber};
use crate::clock::Clock;
use crate::dead_letters::{self, DeadLetters, Kept, Reason};
use crate::failure::{Action, Class, Failure};
use crate::item::Digest;
use crate::peer::{Outcome, Peer, StepError};
use crate::retry::{Jitter, Pauses, Policy};
use crate::telemetry::board::LaneStatus;
use crate::telemetry::metrics::{Counted, Metrics};
use crate::version::{Fold, Hlc, Version};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// The changes of one read, in stream order. Shared by the lanes of a shard.
#[derive(Debug)]
pub struct Page {
    /// The changes; never empty.
    pub changes: Vec<Change>,
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
    /// Seeded pauses.
    pub jitter: Jitter,
    /// What the lane shows of itself.
    pub status: Arc<LaneStatus>,
    /// Cancelled when the worker should finish what it has and stop: what is paused is left.
    pub drain: CancellationToken,
    /// Cancelled when the worker loses the right to write: everything is abandoned.
    pub fence: CancellationToken,
}

/// Changes that a lane holds before it takes another page: some pages' worth, so that a slow key does not hold
/// up the others at once.
const WINDOW: usize = 2000;
/// Bytes of such changes, so that large items do not fill the memory.
const WINDOW_BYTES: usize = 8 << 20;

/// Once a peer that was down takes writes again, those that wait come back within about this.
const SPREAD: Duration = Duration::from_secs(1);

/// Applies one shard's changes to one peer.
pub struct Lane {
    context: Arc<LaneParts>,
    fold: Fold,
    /// Records up to here were done before this lane began.
    done_before: Option<SequenceNumber>,
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
    frontier: watch::Sender<Frontier>,
}

/// How a lane ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneEnd {
    /// The pages ended, and everything is done.
    Done,
    /// It was paused, and what it had not started is left for the next worker.
    Left,
    /// The worker lost the right to write.
    Abandoned,
}

struct Slot {
    position: Position,
    size: usize,
    done: bool,
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
}

impl WorkItem {
    fn change(&self) -> &Change {
        &self.page.changes[self.index]
    }
}

struct Finished {
    key: Digest,
    slots: Vec<u64>,
    dead: bool,
    /// The fence fell: nothing is known about the work.
    abandoned: bool,
}

impl Lane {
    /// A lane that goes on from `start`, with the channel that shows its frontier.
    #[must_use]
    pub fn new(parts: LaneParts, start: Position) -> (Self, watch::Receiver<Frontier>) {
        let fold = Fold::from(start.hlc, parts.max_drift);
        let done_before = start.sequence.clone();
        let (frontier, shown) = watch::channel(Frontier { position: start, pending: 0 });
        let lane = Self {
            context: Arc::new(parts),
            fold,
            done_before,
            slots: VecDeque::new(),
            base: 0,
            bytes: 0,
            keys: HashMap::new(),
            ready: VecDeque::new(),
            dead: HashSet::new(),
            running: FuturesUnordered::new(),
            frontier,
        };
        (lane, shown)
    }

    /// Takes pages until they end and everything is done, until it is paused and the worker drains, or until the
    /// fence falls.
    pub async fn run(mut self, mut pages: mpsc::Receiver<Arc<Page>>) -> LaneEnd {
        let mut gate = self.context.peer.gate();
        let drain = self.context.drain.clone();
        let start = self.frontier.borrow().position.clone();
        self.context.status.show(Some(&start), 0, 0);
        let fence = self.context.fence.clone();
        let context = Arc::clone(&self.context);
        match context.load_dead().await {
            Some(dead) => self.dead = dead,
            None => return LaneEnd::Abandoned,
        }
        let mut open = true;
        while open || !self.slots.is_empty() {
            tokio::select! {
                // The fence first; then what is done, which makes room; then more work.
                biased;
                () = fence.cancelled() => return LaneEnd::Abandoned,
                Some(finished) = self.running.next(), if !self.running.is_empty() => {
                    if finished.abandoned {
                        return LaneEnd::Abandoned;
                    }
                    self.finish(finished);
                }
                page = pages.recv(), if open && self.has_room() => match page {
                    Some(page) => self.take(&page),
                    None => open = false,
                },
                Ok(()) = gate.changed() => {}
                () = drain.cancelled(), if self.context.peer.paused() && self.running.is_empty() => {
                    return LaneEnd::Left;
                }
            }
            self.start();
            self.show();
        }
        LaneEnd::Done
    }

    fn has_room(&self) -> bool {
        self.slots.len() < WINDOW && self.bytes < WINDOW_BYTES
    }

    fn take(&mut self, page: &Arc<Page>) {
        for (index, change) in page.changes.iter().enumerate() {
            if self.done_before.as_ref().is_some_and(|done| change.sequence <= *done) {
                self.count("skipped", 1);
                continue;
            }
            let (hlc, disbelieved) = self.fold.step(change.created, change.stamps());
            if disbelieved > 0 {
                self.disbelieve(change, disbelieved);
            }
            let slot = self.base + self.slots.len() as u64;
            let position =
                Position { sequence: Some(change.sequence.clone()), hlc, created: Some(change.created) };
            let skipped = matches!(apply::plan(change, &self.context.rules), Step::Skip(_));
            self.bytes += change.size;
            self.slots.push_back(Slot { position, size: change.size, done: skipped });
            if skipped {
                self.count("skipped", 1);
                continue;
            }
            let delete = matches!(apply::plan(change, &self.context.rules), Step::Delete);
            self.context.peer.takes(change.created, delete);
            let version = Version::new(hlc, self.context.member);
            self.enqueue(change.key.digest(), WorkItem { page: Arc::clone(page), index, version, slot });
        }
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
        let labels = [&*context.route, context.peer.name()];
        context
            .metrics
            .rate_limit
            .with_label_values(&labels)
            .set(context.peer.limit().limit().unwrap_or(f64::INFINITY));
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

    fn count(&self, outcome: &str, by: u64) {
        let labels = [&*self.context.route, self.context.peer.name(), outcome];
        self.context.metrics.writes.with_label_values(&labels).inc_by(by);
    }
}

/// What became of one try.
enum Tried {
    Done(Outcome),
    Refused(Failure),
    Abandoned,
}

impl LaneParts {
    /// The keys that have dead letters; `None` when the fence fell.
    async fn load_dead(self: &Arc<Self>) -> Option<HashSet<Digest>> {
        let mut pauses = Pauses::new(Policy::FOREVER, self.jitter.clone());
        loop {
            match self.dead_letters.keys(&self.route, self.peer.name()).await {
                Ok(keys) => {
                    self.peer.got_through();
                    return Some(keys);
                }
                Err(failure) => self.failed("state", &failure, &mut pauses).await.then_some(())?,
            }
        }
    }

    /// Applies the last change of `work`; when the peer refuses that for good, the one before it, and so on.
    /// What was refused is kept as dead letters, in order.
    async fn carry_out(self: Arc<Self>, work: Work) -> Finished {
        let in_flight = self.metrics.in_flight.with_label_values(&[&self.route, self.peer.name()]);
        let _counted = Counted::new(in_flight);
        let result = self.settle(&work).await;
        let slots = work.items.iter().map(|item| item.slot).collect();
        Finished { key: work.key, slots, dead: result == Some(true), abandoned: result.is_none() }
    }

    /// `None` when the fence fell, else whether the key has dead letters now.
    async fn settle(&self, work: &Work) -> Option<bool> {
        let mut pauses = Pauses::new(Policy::FOREVER, self.jitter.clone());
        let items = self.put_behind(work, &mut pauses).await?;
        if items.is_empty() {
            return Some(true);
        }
        let deletes = items.iter().filter(|i| matches!(apply::plan(i.change(), &self.rules), Step::Delete));
        let raise = deletes.map(|item| item.version).max();
        let mut refused: Vec<Failure> = Vec::new();
        let mut tried = None;
        for item in items.iter().rev() {
            match self.try_one(item, raise, &mut pauses).await {
                Tried::Done(outcome) => {
                    tried = Some(outcome);
                    break;
                }
                Tried::Refused(failure) => refused.push(failure),
                Tried::Abandoned => return None,
            }
        }
        let kept = items.len() - refused.len();
        if let (Some(item), Some(why)) = (items.last(), refused.first()) {
            self.confirm(item, why, &mut pauses).await?;
        }
        for (item, why) in items[kept..].iter().zip(refused.iter().rev()) {
            self.keep(item, Reason::Refused, why, &mut pauses).await?;
        }
        if let Some(outcome) = tried {
            self.count_done(&items[..kept], outcome);
        }
        self.status.moving();
        self.peer.got_through();
        Some(!refused.is_empty())
    }

    /// Sees that the peer refuses this item and not every item: a table that was made again with other keys refuses
    /// all, and nothing of that is a dead letter. Waits until a write that changes nothing is accepted.
    async fn confirm(&self, item: &WorkItem, why: &Failure, pauses: &mut Pauses) -> Option<()> {
        while let Err(failure) = self.peer.accepts(&item.change().key).await {
            let what = format!("{why}; and so is a write that changes nothing: {failure}");
            let all = Failure::new(Class::Unrecognised, "EveryWriteRefused", what);
            self.failed(self.peer.name(), &all, pauses).await.then_some(())?;
        }
        Some(())
    }

    /// Keeps the changes of a key that has dead letters behind these; gives the rest when an operator has taken the
    /// letters away, all of it for a key that has none.
    async fn put_behind<'w>(&self, work: &'w Work, pauses: &mut Pauses) -> Option<&'w [WorkItem]> {
        let why = Failure::new(Class::Invalid, "Behind", "an earlier change of this key is a dead letter");
        let mut rest = &work.items[..];
        while let Some((item, later)) = rest.split_first().filter(|_| work.dead) {
            match self.keep(item, Reason::Behind, &why, pauses).await? {
                Kept::Kept => rest = later,
                Kept::Free => break,
            }
        }
        Some(rest)
    }

    /// Tries one change until it is done or refused for good.
    async fn try_one(&self, item: &WorkItem, raise: Option<Version>, pauses: &mut Pauses) -> Tried {
        let mut raise = raise;
        loop {
            if self.fence.is_cancelled() {
                return Tried::Abandoned;
            }
            let result = match raise {
                Some(version) => match self.peer.raise(&item.change().key, version).await {
                    Ok(()) => {
                        raise = None;
                        continue;
                    }
                    Err(error) => Err(error),
                },
                None => self.step(item).await,
            };
            match result {
                Ok(outcome) => return Tried::Done(outcome),
                Err(StepError::Peer(failure)) if failure.class == Class::Invalid => {
                    return Tried::Refused(failure);
                }
                Err(error) => {
                    let at = match error {
                        StepError::Peer(_) => self.peer.name(),
                        StepError::State(_) => "state",
                    };
                    if !self.failed(at, error.failure(), pauses).await {
                        return Tried::Abandoned;
                    }
                }
            }
        }
    }

    async fn step(&self, item: &WorkItem) -> Result<Outcome, StepError> {
        let change = item.change();
        match apply::plan(change, &self.rules) {
            Step::Put { content, creates } => {
                self.peer.put(content, &change.key, item.version, creates).await
            }
            Step::Delete => self.peer.delete(&change.key, item.version).await,
            // Skipped changes never become work.
            Step::Skip(_) => Ok(Outcome::Superseded),
        }
    }

    async fn keep(
        &self,
        item: &WorkItem,
        reason: Reason,
        why: &Failure,
        pauses: &mut Pauses,
    ) -> Option<Kept> {
        let lane = dead_letters::Lane { route: &self.route, peer: self.peer.name(), shard: &self.shard };
        loop {
            match self.dead_letters.keep(lane, item.change(), item.version, reason, why).await {
                Ok(Kept::Kept) => break,
                Ok(Kept::Free) => return Some(Kept::Free),
                Err(failure) => self.failed("state", &failure, pauses).await.then_some(())?,
            }
        }
        let labels = [&*self.route, self.peer.name(), reason.name()];
        self.metrics.dead_letters.with_label_values(&labels).inc();
        self.metrics.writes.with_label_values(&[&self.route, self.peer.name(), "dead"]).inc();
        tracing::error!(
            peer = self.peer.name(),
            key = %item.change().key.digest(),
            sequence = %item.change().sequence,
            reason = reason.name(),
            code = why.code,
            "a change cannot be applied; it is kept as a dead letter, and later changes of its key wait"
        );
        Some(Kept::Kept)
    }

    /// Notes a failure and waits; `false` when the fence fell.
    async fn failed(&self, at: &str, failure: &Failure, pauses: &mut Pauses) -> bool {
        self.metrics.retried(&self.route, at, failure.class);
        if failure.class.action() != Action::RetrySoon {
            self.status.stalled(failure);
        }
        let action = match failure.class.action() {
            // Nobody above could do better than to try again.
            Action::GiveBack => Action::RetrySlowly,
            action => action,
        };
        let pause = pauses.next(action).unwrap_or(Policy::FOREVER.slow);
        let spread = self.jitter.around(SPREAD);
        tokio::select! {
            biased;
            () = self.fence.cancelled() => false,
            () = tokio::time::sleep(pause), if action == Action::RetrySoon => true,
            () = self.peer.slowly(pause, spread), if action == Action::RetrySlowly => true,
        }
    }

    fn count_done(&self, items: &[WorkItem], outcome: Outcome) {
        let (Some((_, covered)), now) = (items.split_last(), self.clock.now()) else { return };
        let outcome = match outcome {
            Outcome::Applied => "applied",
            Outcome::Superseded => "superseded",
        };
        let writes =
            |outcome| self.metrics.writes.with_label_values(&[&self.route, self.peer.name(), outcome]);
        writes(outcome).inc();
        if !covered.is_empty() {
            writes("folded").inc_by(covered.len() as u64);
        }
        let lag = self.metrics.lag.with_label_values(&[&self.route, self.peer.name()]);
        for item in items {
            lag.observe(now.duration_since(item.change().created).unwrap_or_default().as_secs_f64());
        }
    }
}
