//! One feed of one shard: gathers records into files, and says how far what is durable reaches.
//!
//! A lane takes pages in stream order and holds their records until the file is full, old enough, of another
//! partition, or the shard or the worker ends. Then it remembers the file's range in the lease, writes the file, and
//! after it the manifest's entry, which says that the file is whole. Its [`Frontier`] passes only what is durable.
//!
//! What a worker before it intended is finished first: when the file is there, the records are passed over; else the
//! same records make the same file, whatever memory that takes: that worker had it too. A file that is there is never
//! written again, for the records may be gone by now. An intent stands for the first file after the checkpoint, so the
//! next one waits until the checkpoint has passed the file before.
//!
//! Where the route has a shape, the records have it, and what it lets out is passed over: a range without records makes
//! no file. A record that cannot be shaped is kept as a dead letter before anything passes it, and stands in no file; later
//! changes of its key do not wait for it, because versions order them.
//!
//! Like a peer's lane it retries for as long as it lives, starts nothing while it is paused, and leaves what it cannot
//! write to the next worker when a stop is asked for. `writing` has the steps of one file.

mod writing;

use super::{Feed, HeldBytes, Record, file, lines};
use crate::apply::{self, Rules};
use crate::change::{Change, SequenceNumber};
use crate::clock::Clock;
use crate::dead_letters::DeadLetters;
use crate::lane::{Frontier, Handed, LaneEnd, Page, Position};
use crate::lease::intent::Intent;
use crate::lease::table::Held;
use crate::memory::{self, Memory, Reserved};
use crate::retry::Jitter;
use crate::telemetry::board::LaneStatus;
use crate::telemetry::metrics::{LaneMetrics, Metrics};
use crate::version::{Fold, Hlc, Version};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// A lane that is to come to rest waits no longer than this for a place that fails.
const LEAVE: Duration = Duration::from_secs(1);
/// How often a lane looks at its file's age and at the memory.
const LOOK: Duration = Duration::from_secs(1);

/// What a lane is made of.
pub struct LaneParts {
    /// The route's name.
    pub route: Arc<str>,
    /// The shard's id.
    pub shard: Arc<str>,
    /// The feed.
    pub feed: Arc<Feed>,
    /// The number of the member that the changes come from.
    pub member: u8,
    /// What the route's config says about single changes.
    pub rules: Rules,
    /// How far ahead of a record's creation a stamp is believed.
    pub max_drift: Duration,
    /// Where to keep what cannot be shaped.
    pub dead_letters: DeadLetters,
    /// The lease, for what is about to be written.
    pub held: Held,
    /// The last record that the checkpoint has passed.
    pub saved: watch::Receiver<Option<SequenceNumber>>,
    /// Told when a file is written: the next one waits for the checkpoint.
    pub written: Arc<Notify>,
    /// When the shard was seen to have nothing more to read, while this lane was at the front.
    pub quiet: watch::Receiver<Option<SystemTime>>,
    /// Whether the shard was read to its end, once the pages have ended.
    pub ended: watch::Receiver<bool>,
    /// The feed's part of the memory.
    pub memory: Memory,
    /// The worker's clock.
    pub clock: Clock,
    /// The worker's metrics.
    pub metrics: Metrics,
    /// Those of this route and feed.
    pub counters: LaneMetrics,
    /// Seeded pauses.
    pub jitter: Jitter,
    /// What the lane shows of itself.
    pub status: Arc<LaneStatus>,
    /// Cancelled when the worker should finish what it has and stop.
    pub drain: CancellationToken,
    /// Cancelled when the worker loses the right to write: everything is abandoned.
    pub fence: CancellationToken,
}

/// Why a file is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Roll {
    Size,
    Age,
    Partition,
    Memory,
    ShardEnd,
    Stop,
    /// A worker before this one intended it so.
    Intended,
    /// Lines on the standard output, page by page.
    Page,
}

impl Roll {
    const fn name(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Age => "age",
            Self::Partition => "partition",
            Self::Memory => "memory",
            Self::ShardEnd => "shard-end",
            Self::Stop => "stop",
            Self::Intended => "intended",
            Self::Page => "page",
        }
    }
}

/// Why a lane ends before its time.
enum Halt {
    /// The right to write is gone.
    Fence,
    /// A stop was asked for, and the place fails or is paused.
    Leave,
}

/// A record that waits for its file.
#[derive(Clone)]
struct Taken {
    change: Of,
    hlc: Hlc,
}

/// Where a record is: one that was shaped does not hold its page.
#[derive(Clone)]
enum Of {
    Page(Arc<Page>, usize),
    Shape(Arc<Change>),
}

/// Gathers one shard's changes into files of one feed.
pub struct FeedLane {
    parts: Arc<LaneParts>,
    fold: Fold,
    /// The last record that was taken or done before, with the clock after it.
    passed: Position,
    /// What is durable.
    durable: Position,
    /// What a worker before this one was about to write.
    intended: Option<Intent>,
    records: Vec<Taken>,
    /// The room of the pages that the records are in.
    rooms: Vec<Reserved>,
    held: HeldBytes,
    /// Bytes that the records take.
    bytes: u64,
    /// When the first of the records came.
    opened: Instant,
    frontier: watch::Sender<Frontier>,
}

impl FeedLane {
    /// A lane that goes on from `start`, with the channel that shows its frontier.
    #[must_use]
    pub fn new(parts: LaneParts, start: Position) -> (Self, watch::Receiver<Frontier>) {
        let (frontier, shown) = watch::channel(Frontier { position: start.clone(), pending: 0 });
        let lane = Self {
            fold: Fold::from(start.hlc, parts.max_drift),
            passed: start.clone(),
            durable: start,
            intended: None,
            records: Vec::new(),
            rooms: Vec::new(),
            held: HeldBytes::new(Arc::clone(&parts.feed.held)),
            bytes: 0,
            opened: Instant::now(),
            frontier,
            parts: Arc::new(parts),
        };
        (lane, shown)
    }

    /// Takes pages until they end and everything is durable, until a stop is asked for while nothing can be written, or
    /// until the fence falls.
    pub async fn run(mut self, pages: mpsc::Receiver<Box<Handed>>) -> LaneEnd {
        self.parts.status.show(Some(&self.durable), 0, 0);
        match self.work(pages).await {
            Ok(()) => LaneEnd::Done,
            Err(Halt::Fence) => LaneEnd::Abandoned,
            Err(Halt::Leave) => LaneEnd::Left,
        }
    }

    async fn work(&mut self, mut pages: mpsc::Receiver<Box<Handed>>) -> Result<(), Halt> {
        let (parts, mut open) = (Arc::clone(&self.parts), true);
        let (mut gate, mut quiet) = (parts.feed.gate.clone(), parts.quiet.clone());
        Box::pin(self.recover()).await?;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while open || !self.records.is_empty() {
            let paused = parts.feed.paused();
            if !open && !paused {
                let reason = if *parts.ended.borrow() { Roll::ShardEnd } else { Roll::Stop };
                if reason == Roll::Stop && self.intended.is_some() {
                    // The file that was intended is longer: whoever reads on has all of its records.
                    return Err(Halt::Leave);
                }
                self.roll(reason).await?;
                continue;
            }
            tokio::select! {
                biased;
                () = parts.fence.cancelled() => return Err(Halt::Fence),
                page = pages.recv(), if open && !paused => match page {
                    Some(handed) => self.take(handed).await?,
                    None => open = false,
                },
                _ = gate.changed(), if paused => {}
                () = parts.drain.cancelled(), if paused => return Err(Halt::Leave),
                Ok(()) = quiet.changed() => {
                    let at = *quiet.borrow_and_update();
                    if pages.is_empty() {
                        self.quiet(at);
                    }
                }
                _ = looks.tick() => {
                    self.lend();
                    if !paused && let Some(reason) = self.due() {
                        self.roll(reason).await?;
                    }
                }
            }
            self.show();
        }
        if *parts.ended.borrow() {
            // Of what was intended nothing was left.
            self.roll(Roll::ShardEnd).await?;
            self.reached(self.passed.clone());
        }
        Ok(())
    }

    /// Takes a page. Records that were taken before come again when a lane changes its reader; they are passed over.
    async fn take(&mut self, handed: Box<Handed>) -> Result<(), Halt> {
        let Handed { page, mut memory } = *handed;
        let parts = Arc::clone(&self.parts);
        let settings = &parts.feed.settings;
        for (index, change) in page.changes.iter().enumerate() {
            if self.passed.sequence.as_ref().is_some_and(|at| change.sequence <= *at) {
                continue;
            }
            let over = |intent: &Intent| intent.to.sequence.as_ref().is_some_and(|to| change.sequence > *to);
            if self.intended.as_ref().is_some_and(over) {
                // Its last records were trimmed.
                self.roll(Roll::Intended).await?;
            }
            let first = self.records.first().map(|first| first.change().created);
            if self.intended.is_none()
                && first.is_some_and(|first| file::is_later(settings.partition, first, change.created))
            {
                self.roll(Roll::Partition).await?;
            }
            let (hlc, disbelieved) = self.fold.step(change.created, change.stamps());
            if disbelieved > 0 {
                parts
                    .metrics
                    .stamps_disbelieved
                    .with_label_values(&[&parts.route])
                    .inc_by(disbelieved as u64);
            }
            self.passed =
                Position { sequence: Some(change.sequence.clone()), hlc, created: Some(change.created) };
            match apply::record(change, &parts.rules, settings.images) {
                Ok(Some(record)) => {
                    if self.records.is_empty() {
                        self.opened = Instant::now();
                    }
                    self.bytes += record.size as u64;
                    let change = match record {
                        Cow::Borrowed(_) => Of::Page(Arc::clone(&page), index),
                        Cow::Owned(shaped) => Of::Shape(Arc::new(shaped)),
                    };
                    self.records.push(Taken { change, hlc });
                }
                Ok(None) => parts.counters.skipped.inc(),
                Err(why) => self.keep(change, hlc, why).await?,
            }
            let reaches = |intent: &Intent| self.passed.sequence >= intent.to.sequence;
            match &self.intended {
                Some(intent) if reaches(intent) => self.roll(Roll::Intended).await?,
                None if self.bytes >= settings.roll_bytes => self.roll(Roll::Size).await?,
                _ => {}
            }
        }
        if self.records.is_empty() {
            // All that was passed is durable, or left out. What was intended is found by where the checkpoint is.
            if self.intended.is_none() {
                self.reached(self.passed.clone());
            }
        } else if parts.feed.store.is_stdout() {
            self.roll(Roll::Page).await?;
        } else {
            if parts.rules.shape.is_some() {
                // The page is not held any longer.
                let needed = usize::try_from(self.bytes).unwrap_or(usize::MAX);
                memory.shrink(needed.saturating_sub(self.held.own));
            }
            self.held.add(memory.bytes());
            self.rooms.push(memory);
            self.lend();
        }
        Ok(())
    }

    /// A file that was intended is not closed early, so what it takes beyond the bound is not counted. It is no more than
    /// what the worker before had room for.
    fn lend(&mut self) {
        if self.intended.is_some() && self.is_full() {
            tracing::warn!(
                feed = self.parts.feed.name(),
                bytes = self.bytes,
                "a file that was begun needs more than its part of memory_mb, and is finished beyond that"
            );
            self.rooms.clear();
            self.held.clear();
        }
    }

    /// Whether the open files take their part of the memory. The other half is for pages that are being read, and a
    /// whole one must always find room.
    fn is_full(&self) -> bool {
        let total = self.parts.memory.total();
        self.parts.feed.held.load(Ordering::Relaxed) > (total / 2).min(total.saturating_sub(memory::PAGE))
    }

    /// Why the file is to be closed now, if it is.
    fn due(&self) -> Option<Roll> {
        if self.records.is_empty() || self.intended.is_some() {
            return None;
        }
        if self.opened.elapsed() >= self.parts.feed.settings.roll_age {
            return Some(Roll::Age);
        }
        self.is_full().then_some(Roll::Memory)
    }

    /// The shard had nothing more to read at `at`, and this lane had all of it.
    fn quiet(&mut self, at: Option<SystemTime>) {
        if self.records.is_empty() && self.intended.is_none() && at > self.durable.created {
            self.passed.created = at;
            self.reached(self.passed.clone());
        }
    }

    /// Everything up to here is durable, and the lane goes on from here.
    fn is_at(&mut self, position: Position) {
        self.fold = Fold::from(position.hlc, self.parts.max_drift);
        self.passed = position.clone();
        self.reached(position);
    }

    fn reached(&mut self, position: Position) {
        self.durable = position;
        self.frontier.send_modify(|frontier| frontier.position = self.durable.clone());
    }

    fn show(&self) {
        let status = &self.parts.status;
        // A file that waits to be full is no trouble.
        status.show(Some(&self.durable), self.records.len(), 0);
        status.waits_for(self.records.first().map(|first| first.change().created));
        let pending = self.records.len();
        self.frontier
            .send_if_modified(|frontier| std::mem::replace(&mut frontier.pending, pending) != pending);
    }
}

impl Taken {
    fn change(&self) -> &Change {
        match &self.change {
            Of::Page(page, index) => &page.changes[*index],
            Of::Shape(change) => change,
        }
    }

    fn record<'a>(&'a self, parts: &'a LaneParts) -> Record<'a> {
        let change = self.change();
        Record {
            change,
            event: lines::event(change.event),
            version: Some(Version::new(self.hlc, parts.member)),
            member: &parts.feed.member,
            shard: &parts.shard,
        }
    }
}
