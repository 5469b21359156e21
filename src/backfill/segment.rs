//! One segment that this process holds: page by page, until it is done or must stop.
//!
//! A page's keys are written down before anything of it is created, and the segment is saved after all of it is done.
//! So whoever goes on after a crash reads again what was not saved, and finds out which items the dead one may have
//! brought back after they were deleted at the source: a scan would not show those any more. While a page is written the
//! next one is read: what changes after that comes with the stream, however long it waits here.

use super::copy::{Abandoned, Copied, Copier, Scanned};
use super::counts::{Fate, Fates};
use super::rows::{Held, HeldError, Rows};
use super::snapshot::Snapshots;
use super::source::{Batch, Reading, Source, SourceError};
use crate::clock::Clock;
use crate::failure::{Action, Failure};
use crate::item::Digest;
use crate::lease::heart::Heart;
use crate::peer::Seeded;
use crate::retry::{self, Jitter, Pauses, Policy};
use crate::telemetry::metrics::Metrics;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The keys that are written down at once take no more than this: an item holds 400 KB.
const KEYS: usize = 300 * 1024;
/// A page has so many items: enough that what a page costs beside its items does not count, few enough that a segment is
/// saved every few seconds whatever the rate.
const FEWEST: u16 = 10;
const MOST: u16 = 1000;
/// A page that took longer is too large. One that took less than a tenth of it may be four times as large, and one that took
/// less than a third of it twice: what a page costs beside its items may be most of it.
const LONG: Duration = Duration::from_secs(10);

/// What a page of an export brings back must be known as deleted for so long at least: the page takes its time.
const ROOM: Duration = Duration::from_secs(900);

/// What the segments of a process share.
pub(super) struct Shared {
    pub(super) route: String,
    pub(super) source: Source,
    pub(super) copier: Copier,
    pub(super) snapshots: Snapshots,
    pub(super) rows: Rows,
    pub(super) heart: Arc<Heart>,
    /// What is written down is of use for as long as tombstones are kept.
    pub(super) keep: Duration,
    pub(super) clock: Clock,
    pub(super) jitter: Jitter,
    pub(super) metrics: Metrics,
    /// Asks to come to rest at the next page.
    pub(super) drain: CancellationToken,
}

/// How the work on a segment ended.
#[derive(Debug)]
pub(super) enum End {
    /// It is done.
    Done,
    /// It was given back.
    Rested,
    /// Another process has it, or the right to write has ended.
    Lost,
    /// Items that an operator must decide about: how many by peer, and some of them.
    Conflicts(BTreeMap<String, u64>, Vec<(String, Digest)>),
    /// The source cannot be read any further.
    Failed(SourceError),
}

impl From<Abandoned> for End {
    fn from(_: Abandoned) -> Self {
        Self::Lost
    }
}

impl Shared {
    /// Works on a segment until it ends. Nothing is written after `fence` has fallen.
    pub(super) async fn work(self: Arc<Self>, mut held: Held, fence: CancellationToken) -> End {
        let end = match self.pages(&mut held, &fence).await {
            Ok(end) | Err(end) => end,
        };
        if matches!(end, End::Rested | End::Conflicts(..) | End::Failed(_))
            && let Err(failure) = held.give_back().await
        {
            tracing::debug!(why = %failure, "a segment was not given back; others take it when this process is gone");
        }
        end
    }

    async fn pages(&self, held: &mut Held, fence: &CancellationToken) -> Result<End, End> {
        self.see_to_the_dead(held, fence).await?;
        let number = held.segment().number;
        let mut reading = self.source.open(number, held.segment().cursor.as_ref()).map_err(End::Failed)?;
        let mut most = FEWEST;
        let mut page = self.read(&mut reading, most, fence).await?;
        loop {
            if self.drain.is_cancelled() {
                return Ok(End::Rested);
            }
            let begun = Instant::now();
            let last = page.cursor.is_none();
            // The next page is read while this one is written; that it cannot be counts once this one is saved.
            let ahead = async {
                let next = if last { Ok(None) } else { self.read(&mut reading, most, fence).await.map(Some) };
                Ok(next)
            };
            let ((), next) = futures::try_join!(self.page(held, page, fence), ahead)?;
            let Some(next) = next? else {
                // Of no use any more; it expires by itself.
                let _ = self.rows.forget_keys(&held.keys_sort()).await;
                return Ok(End::Done);
            };
            page = next;
            most = match begun.elapsed() {
                took if took > LONG => (most / 2).max(FEWEST),
                took if took < LONG / 10 => most.saturating_mul(4).min(MOST),
                took if took < LONG / 3 => most.saturating_mul(2).min(MOST),
                _ => most,
            };
        }
    }

    /// Copies a page, and saves that it is done.
    async fn page(&self, held: &mut Held, page: Batch, fence: &CancellationToken) -> Result<(), End> {
        self.source.fresh(self.clock.now() + ROOM, self.keep).map_err(End::Failed)?;
        let Batch { items, cursor, read_units } = page;
        let last = cursor.is_none();
        let mut totals = held.segment().totals.clone();
        totals.read_units += read_units;
        let Copied { totals: copied, conflicts } = self.batch(held, items, fence).await?;
        if !conflicts.is_empty() {
            let count =
                |(peer, fates): (&String, &Fates)| (peer.clone(), fates.get(Fate::Seeded(Seeded::Conflict)));
            return Err(End::Conflicts(copied.peers.iter().map(count).collect(), conflicts));
        }
        totals.merge(&copied);
        loop {
            match held.save(cursor.clone(), totals.clone(), last).await {
                Ok(()) => return Ok(()),
                Err(HeldError::Lost) => return Err(End::Lost),
                Err(HeldError::Call(failure)) => self.wait("state", &failure, fence).await?,
            }
        }
    }

    /// What was about to be created by those who held the segment before and may not have looked at the ledger.
    async fn see_to_the_dead(&self, held: &Held, fence: &CancellationToken) -> Result<(), End> {
        for (sort, keys) in self.state(fence, || held.earlier_keys()).await? {
            self.copier.settle(&keys, fence).await?;
            if self.heart.fence().is_none() {
                return Err(End::Lost);
            }
            self.state(fence, || self.rows.forget_keys(&sort)).await?;
        }
        Ok(())
    }

    async fn read(&self, reading: &mut Reading, most: u16, fence: &CancellationToken) -> Result<Batch, End> {
        let mut pauses = Pauses::new(Policy::FOREVER, self.jitter.clone());
        loop {
            let page = tokio::select! {
                biased;
                () = fence.cancelled() => return Err(End::Lost),
                () = self.drain.cancelled() => return Err(End::Rested),
                page = self.source.page(reading, most, &self.copier) => page,
            };
            let failure = match page {
                Ok(page) => {
                    self.metrics
                        .backfill_read_units
                        .with_label_values(&[&self.route])
                        .inc_by(page.read_units);
                    return Ok(page);
                }
                Err(SourceError::Call(failure)) => failure,
                Err(error) => return Err(End::Failed(error)),
            };
            self.metrics.retried(&self.route, "source", failure.class);
            let action = failure.class.insist();
            if action != Action::RetrySoon {
                tracing::warn!(why = %failure, remedy = failure.class.remedy(), "the source is read again");
            }
            let pause = pauses.next(action).unwrap_or(Policy::FOREVER.slow);
            if self.drain.is_cancelled() {
                return Err(End::Rested);
            }
            if !retry::pause(pause, fence).await {
                return Err(End::Lost);
            }
        }
    }

    /// Copies a page, in parts whose keys can be written down.
    async fn batch(
        &self,
        held: &Held,
        items: Vec<Scanned>,
        fence: &CancellationToken,
    ) -> Result<Copied, End> {
        let segment = held.segment();
        let (number, epoch, before) = (segment.number, segment.epoch, segment.totals.items);
        self.snapshots.write(&self.copier, number, epoch, before, &items, fence).await?;
        let mut copied = Copied::default();
        for part in parts(&items) {
            // In a group the peer's own walker sees what was created; in a feed nothing is.
            if !self.copier.group && !self.copier.targets.is_empty() {
                let keys: Vec<_> = part.iter().filter_map(Scanned::target).collect();
                let now = || self.clock.since_epoch();
                self.state(fence, || held.write_down(&keys, self.keep, now())).await?;
            }
            let Copied { totals, conflicts } = self.copier.copy(part, fence).await?;
            copied.totals.merge(&totals);
            copied.conflicts.extend(conflicts);
        }
        Ok(copied)
    }

    /// A call of the state table until it succeeds.
    async fn state<T, F>(&self, fence: &CancellationToken, call: impl Fn() -> F) -> Result<T, End>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        loop {
            match call().await {
                Ok(done) => return Ok(done),
                Err(failure) => self.wait("state", &failure, fence).await?,
            }
        }
    }

    async fn wait(&self, at: &str, failure: &Failure, fence: &CancellationToken) -> Result<(), End> {
        self.metrics.retried(&self.route, at, failure.class);
        let pause = self.jitter.around(Duration::from_secs(1));
        if retry::pause(pause, fence).await { Ok(()) } else { Err(End::Lost) }
    }
}

/// Items in order, in parts with no more than [`KEYS`] bytes of keys.
fn parts(items: &[Scanned]) -> Vec<&[Scanned]> {
    let (mut parts, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (index, item) in items.iter().enumerate() {
        let size = item.target().map_or(0, |key| key.attributes().size());
        if bytes + size > KEYS && index > begin {
            parts.push(&items[begin..index]);
            (begin, bytes) = (index, 0);
        }
        bytes += size;
    }
    if begin < items.len() {
        parts.push(&items[begin..]);
    }
    parts
}
