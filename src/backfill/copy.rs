//! Items of the source to the peers: each with its version, at every peer at the same time, until it is done there.
//!
//! Promises that an item counts only when it is durable at every peer, or kept as a dead letter for one. What fails is
//! tried again for as long as the worker may write. Remembers nothing: where to go on is the segment's matter.

use super::counts::{Fate, Fates, Totals};
use super::mirror::Mirror;
use crate::change::{Change, Event, Image, SequenceNumber};
use crate::clock::Clock;
use crate::content::Content;
use crate::dead_letters::{self, DeadLetters, Kept, Reason};
use crate::failure::{Action, Class, Failure};
use crate::item::{Digest, Key};
use crate::limit::Rate;
use crate::peer::{OnExisting, Peer, Seed, Seeded, StepError};
use crate::retry::{Jitter, Pauses, Policy};
use crate::shape::{Shape, Unshaped};
use crate::telemetry::metrics::Metrics;
use crate::version::{Hlc, Mark, Stamp, Version};
use crate::view::Fields;
use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};
use prometheus::IntCounter;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// In place of a shard in a dead letter.
const SHARD: &str = "backfill";
/// Before every record of a stream: the letter of an item that was scanned comes first, and takes the place of that of an
/// earlier scan.
const SEQUENCE: &str = "0";
/// A write unit is so many bytes.
const WRITE_UNIT: usize = 1024;
/// Bytes that a stamp adds to an item, beside its name.
const STAMP: usize = 54;
/// So many items of a segment may wait for the ledger beside those that are under way at a peer: as many as are read of
/// it in one request.
const CHECKED: usize = 100;
/// Of the items that an operator must decide about, so many are named.
pub(super) const NAMED: usize = 5;

/// Copies items to a route's peers.
#[derive(Debug)]
pub(super) struct Copier {
    pub(super) route: String,
    pub(super) targets: Vec<Target>,
    /// The key attributes' names at the source.
    pub(super) keys: Vec<String>,
    /// What the peers get of items.
    pub(super) shape: Option<Arc<Shape>>,
    /// The source, to look at single items; where peers' items have a shape, or had one.
    pub(super) source: Option<Arc<Peer>>,
    /// What the source holds, where the peers get no stamps.
    pub(super) mirror: Option<Mirror>,
    /// The stamp attribute's name.
    pub(super) stamp: String,
    /// The source's number in versions.
    pub(super) member: u8,
    pub(super) group: bool,
    pub(super) existing: OnExisting,
    pub(super) max_drift: Duration,
    /// Items under way at a time at each peer, of one segment.
    pub(super) in_flight: usize,
    pub(super) dead_letters: DeadLetters,
    pub(super) clock: Clock,
    pub(super) jitter: Jitter,
    pub(super) metrics: Metrics,
}

/// A peer.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) peer: Arc<Peer>,
    /// Write units a second.
    pub(super) units: Option<Rate>,
    /// Counts them.
    pub(super) spent: IntCounter,
}

/// An item as it is put.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) content: Content,
    pub(super) key: Key,
    /// What the peers and feeds get, when that is something else.
    pub(super) shaped: Option<Shaped>,
    pub(super) version: Version,
    /// It is being deleted at the source.
    pub(super) leaving: bool,
    pub(super) size: usize,
}

/// An item's key and content at the peers; none when it is filtered out, and why when it cannot be shaped.
pub(super) type Shaped = Result<Option<(Key, Content)>, Unshaped>;

impl Scanned {
    /// The key at the peers; `None` when nothing is put there.
    pub(super) fn target(&self) -> Option<&Key> {
        match &self.shaped {
            None => Some(&self.key),
            Some(shaped) => shaped.as_ref().ok()?.as_ref().map(|(key, _)| key),
        }
    }
}

/// What became of some items.
#[derive(Debug, Default)]
pub(super) struct Copied {
    pub(super) totals: Totals,
    /// Peers and keys of items that an operator must decide about, at most [`NAMED`].
    pub(super) conflicts: Vec<(String, Digest)>,
}

/// The right to write has ended; what was under way may or may not have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Abandoned;

impl Copier {
    /// An item, sorted; the name of a key attribute that it lacks otherwise.
    pub(super) fn scanned(&self, item: Fields<'_>) -> Result<Scanned, String> {
        let size = item.size();
        let key = Key::within(&item, &self.keys)?;
        let Image { content, stamp } = Image::of(item, &self.stamp, !self.targets.is_empty());
        // What is too far ahead is not believed: no streamed change would beat it.
        let ceiling = Hlc::from_millis(self.clock.millis()).plus(self.max_drift);
        let clean = stamp.filter(|stamp| stamp.version.hlc <= ceiling && stamp.digest == content.digest());
        let believed = clean.filter(|_| self.mirror.is_none());
        let version = believed.map_or(Version::new(Hlc::ZERO, self.member), |stamp| stamp.version);
        let leaving = clean.is_some_and(|stamp| stamp.mark == Mark::Deleted);
        let shaped = self.shape.as_ref().map(|shape| shaped(shape, &content));
        Ok(Scanned { content, key, shaped, version, leaving, size })
    }

    /// Copies items until each is done at every peer.
    ///
    /// # Errors
    /// [`Abandoned`] when `fence` falls.
    pub(super) async fn copy(
        &self,
        items: &[Scanned],
        fence: &CancellationToken,
    ) -> Result<Copied, Abandoned> {
        let (mut copied, mut abandoned) = (Copied::default(), None);
        let mut counted = vec![Fates::default(); self.targets.len()];
        let places: Vec<Semaphore> = self.targets.iter().map(|_| Semaphore::new(self.in_flight)).collect();
        let (mut rest, mut under_way) = (items.iter(), FuturesUnordered::new());
        loop {
            let room = (self.in_flight + CHECKED).saturating_sub(under_way.len());
            for item in rest.by_ref().take(room) {
                under_way.push(self.everywhere(item, &places, fence));
            }
            let Some((item, fates)) = under_way.next().await else { break };
            copied.totals.items += 1;
            copied.totals.bytes += item.size as u64;
            for ((target, counted), fate) in self.targets.iter().zip(&mut counted).zip(fates) {
                let fate = match fate {
                    Ok(fate) => fate,
                    // The others end by themselves: no request is left behind that could take effect later.
                    Err(end) => {
                        abandoned = Some(end);
                        continue;
                    }
                };
                counted.add(fate);
                if fate == Fate::Seeded(Seeded::Conflict)
                    && copied.conflicts.len() < NAMED
                    && let Some(key) = item.target()
                {
                    copied.conflicts.push((target.peer.name().to_owned(), key.digest()));
                }
            }
        }
        for (target, fates) in self.targets.iter().zip(counted) {
            let peer = target.peer.name();
            for (fate, count) in fates.iter() {
                let labels = [&*self.route, peer, fate.name()];
                self.metrics.backfill_items.with_label_values(&labels).inc_by(count);
            }
            copied.totals.peers.insert(peer.to_owned(), fates);
        }
        abandoned.map_or(Ok(copied), Err)
    }

    /// Sees to keys whose items may have been created by somebody who died before the ledger was read.
    ///
    /// # Errors
    /// [`Abandoned`] when `fence` falls.
    pub(super) async fn settle(&self, keys: &[Key], fence: &CancellationToken) -> Result<(), Abandoned> {
        let mut settling = FuturesUnordered::new();
        for key in keys {
            for target in &self.targets {
                if settling.len() >= self.in_flight {
                    settling.next().await.unwrap_or(Ok(()))?;
                }
                settling.push(self.settle_one(target, key, fence));
            }
        }
        while let Some(settled) = settling.next().await {
            settled?;
        }
        Ok(())
    }

    async fn settle_one(
        &self,
        target: &Target,
        key: &Key,
        fence: &CancellationToken,
    ) -> Result<(), Abandoned> {
        let peer = &target.peer;
        match &self.mirror {
            Some(mirror) => self.insist(peer, fence, || mirror.settle(peer, key)).await.map(drop),
            None => self.insist(peer, fence, || peer.settle(key, Version::default())).await.map(drop),
        }
    }

    async fn everywhere<'i>(
        &self,
        item: &'i Scanned,
        places: &[Semaphore],
        fence: &CancellationToken,
    ) -> (&'i Scanned, Vec<Result<Fate, Abandoned>>) {
        // A future of a request is large: it is not moved about.
        if let ([target], [places]) = (&*self.targets, places) {
            return (item, vec![self.one(target, item, places, fence).await]);
        }
        let each = self.targets.iter().zip(places);
        let each = each.map(|(target, places)| Box::pin(self.one(target, item, places, fence)));
        (item, join_all(each).await)
    }

    async fn one(
        &self,
        target: &Target,
        item: &Scanned,
        places: &Semaphore,
        fence: &CancellationToken,
    ) -> Result<Fate, Abandoned> {
        if item.leaving {
            return Ok(Fate::Leaving);
        }
        let peer = &target.peer;
        let (key, content) = match &item.shaped {
            None => (&item.key, &item.content),
            Some(Ok(Some((key, content)))) => (key, content),
            Some(Ok(None)) => return Ok(Fate::Filtered),
            Some(Err(why)) => {
                self.letter(peer.name(), item, &why.clone().into(), fence).await?;
                return Ok(Fate::Refused);
            }
        };
        let size = if item.shaped.is_some() { content.fields().size() } else { item.size };
        let cost = (size + self.stamp.len() + STAMP).div_ceil(WRITE_UNIT);
        let shaped = self.source.is_some();
        let seed = Seed { content, key, version: item.version, group: self.group, shaped };
        target.spend(cost).await;
        // The state table's answers are not waited for in a place of the peer's.
        let place = Mutex::new(places.acquire().await.ok());
        let placed = || drop(place.lock().unwrap_or_else(PoisonError::into_inner).take());
        let seeded = match &self.mirror {
            Some(mirror) => self.insist(peer, fence, || mirror.seed(peer, key, content)).await?,
            None => self.insist(peer, fence, || peer.seed(seed, self.existing, placed)).await?,
        };
        let seeded = match seeded {
            Ok(Seeded::Stale(seen)) => {
                target.spend(cost).await;
                match self.insist(peer, fence, || self.reshape(peer, item, seen)).await? {
                    Ok(seeded) => seeded,
                    Err(why) => return self.refused(peer, item, &why, fence).await,
                }
            }
            Ok(seeded) => seeded,
            Err(why) => return self.refused(peer, item, &why, fence).await,
        };
        if matches!(seeded, Seeded::Updated | Seeded::Overwritten) {
            // The first try failed by its condition, and cost as much.
            target.spend(cost).await;
        }
        Ok(Fate::Seeded(seeded))
    }

    /// Gives an item that a change has put at the peer this shape, as the source has it now.
    async fn reshape(&self, peer: &Peer, item: &Scanned, seen: Stamp) -> Result<Seeded, StepError> {
        let Some(source) = &self.source else { return Ok(Seeded::Newer) };
        let home = |error: StepError| StepError::Home(error.failure().clone());
        let Some(image) = source.look(&item.key).await.map_err(home)? else { return Ok(Seeded::Newer) };
        let content = match &self.shape {
            None => Some(image.content),
            Some(shape) => {
                let shaped = shaped(shape, &image.content).map_err(|why| StepError::Peer(why.into()))?;
                shaped.map(|(_, content)| content)
            }
        };
        match content {
            Some(content) if content.digest() != seen.digest => peer.reshape(&content, seen).await,
            // A change of it is on its way, or the stream has brought it by now.
            _ => Ok(Seeded::Newer),
        }
    }

    /// Keeps what the peer refuses for good as a dead letter, once it is sure that it does not refuse everything.
    async fn refused(
        &self,
        peer: &Peer,
        item: &Scanned,
        why: &Failure,
        fence: &CancellationToken,
    ) -> Result<Fate, Abandoned> {
        if let Some(key) = item.target().filter(|_| Reason::of(why) == Reason::Refused) {
            let mut pauses = Pauses::new(Policy::FOREVER, self.jitter.clone());
            while let Err(all) = peer.accepts_others(key, why).await {
                self.failed(peer.name(), peer, &all, &mut pauses, fence).await?;
            }
        }
        self.letter(peer.name(), item, why, fence).await?;
        Ok(Fate::Refused)
    }

    /// Tries a step until it is done, or the peer refuses it for good.
    async fn insist<T, F>(
        &self,
        peer: &Peer,
        fence: &CancellationToken,
        step: impl Fn() -> F,
    ) -> Result<Result<T, Failure>, Abandoned>
    where
        F: Future<Output = Result<T, StepError>>,
    {
        let (mut pauses, mut gate) = (Pauses::new(Policy::FOREVER, self.jitter.clone()), peer.gate());
        loop {
            tokio::select! {
                biased;
                () = fence.cancelled() => return Err(Abandoned),
                // Nobody is left who could close it.
                _ = gate.wait_for(Option::is_none) => {}
            }
            let (at, failure) = match step().await {
                Ok(done) => {
                    peer.got_through();
                    return Ok(Ok(done));
                }
                Err(StepError::Peer(why)) if why.class == Class::Invalid => return Ok(Err(why)),
                Err(StepError::Peer(why) | StepError::Home(why)) => (peer.name(), why),
                Err(StepError::State(why)) => ("state", why),
            };
            self.failed(at, peer, &failure, &mut pauses, fence).await?;
        }
    }

    /// Keeps an item as a dead letter of a peer or a feed.
    pub(super) async fn letter(
        &self,
        peer: &str,
        item: &Scanned,
        why: &Failure,
        fence: &CancellationToken,
    ) -> Result<(), Abandoned> {
        let mut pauses = Pauses::new(Policy::FOREVER, self.jitter.clone());
        let Some(sequence) = SequenceNumber::parse(SEQUENCE) else { return Ok(()) };
        let change = Change {
            sequence,
            created: self.clock.now(),
            key: item.key.clone(),
            event: Event::Insert,
            old: None,
            new: Some(Image { content: item.content.clone(), stamp: None }),
            by_ttl: false,
            size: item.size,
        };
        let lane = dead_letters::Lane { route: &self.route, peer, shard: SHARD };
        loop {
            let failure = match self.keep(lane, &change, item.version, why).await {
                Ok(Kept::Kept | Kept::Free) => break,
                Err(failure) => failure,
            };
            self.told("state", &failure);
            let pause = pauses.next(failure.class.insist()).unwrap_or(Policy::FOREVER.slow);
            if !crate::retry::pause(pause, fence).await {
                return Err(Abandoned);
            }
        }
        let labels = [&*self.route, peer, Reason::of(why).name()];
        self.metrics.dead_letters.with_label_values(&labels).inc();
        tracing::error!(
            peer,
            key = %item.key.digest(),
            code = why.code,
            "an item cannot be copied; it is kept as a dead letter"
        );
        Ok(())
    }

    /// Keeps a letter in place of one of an earlier scan, which may hold other content.
    async fn keep(
        &self,
        lane: dead_letters::Lane<'_>,
        change: &Change,
        version: Version,
        why: &Failure,
    ) -> Result<Kept, Failure> {
        let letters = self.dead_letters.letters(lane.route, lane.peer, Some(change.key.digest())).await?;
        for earlier in letters.iter().filter(|letter| letter.shard == SHARD) {
            self.dead_letters.remove(lane.route, lane.peer, earlier).await?;
        }
        self.dead_letters.keep(lane, change, version, Reason::of(why), why).await
    }

    /// Notes a failure and waits.
    async fn failed(
        &self,
        at: &str,
        peer: &Peer,
        failure: &Failure,
        pauses: &mut Pauses,
        fence: &CancellationToken,
    ) -> Result<(), Abandoned> {
        self.told(at, failure);
        if peer.wait_after(failure, pauses, &self.jitter, fence).await { Ok(()) } else { Err(Abandoned) }
    }

    fn told(&self, at: &str, failure: &Failure) {
        self.metrics.retried(&self.route, at, failure.class);
        if failure.class.insist() != Action::RetrySoon {
            tracing::warn!(at, why = %failure, remedy = failure.class.remedy(), "a write is tried again");
        }
    }
}

pub(super) fn shaped(shape: &Shape, content: &Content) -> Shaped {
    let item = content.item();
    if !shape.lets_through(&item)? {
        return Ok(None);
    }
    shape.item(&item).map(|(key, item)| Some((key, item.into())))
}

impl Target {
    async fn spend(&self, units: usize) {
        self.spent.inc_by(units as u64);
        if let Some(rate) = &self.units {
            rate.spend(units as f64).await;
        }
    }
}
