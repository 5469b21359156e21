//! Items of the source into a route's feeds, as files marked as a snapshot: one for each page of a segment.
//!
//! A file's name says how many items of the segment were saved before it, and who held the segment then. So whoever goes
//! on after a crash reads the page that was not saved again, into a file of its own, and what the one before still sends
//! lies beside it: an item may be there twice. It has the version of its stamp, or the lowest: every change beats it.
//!
//! Items have the route's shape. One that cannot be shaped is kept as a dead letter of the feed.

use super::copy::{Abandoned, Copier, Scanned};
use super::counts::Fate;
use crate::change::{Change, Event, Image, SequenceNumber};
use crate::content::Content;
use crate::failure::Failure;
use crate::feed::{Feed, Record, file};
use crate::item::Key;
use crate::peer::Seeded;
use crate::retry::{Jitter, Pauses, Policy};
use crate::telemetry::metrics::Metrics;
use object_store::PutPayload;
use std::sync::Arc;
use std::time::SystemTime;
use tokio_util::sync::CancellationToken;

/// What the records of a snapshot are called.
const EVENT: &str = "SNAPSHOT";
/// Before every record of a stream.
const SEQUENCE: &str = "0";

/// Writes items to a route's feeds.
pub(super) struct Snapshots {
    pub(super) route: String,
    pub(super) feeds: Vec<Arc<Feed>>,
    /// Which backfill of the route it is, and to which feed alone if it is.
    pub(super) run: String,
    /// When that was begun: what stands for the items' creation.
    pub(super) begun: SystemTime,
    pub(super) jitter: Jitter,
    pub(super) metrics: Metrics,
}

impl Snapshots {
    /// Writes a page of a segment of which so many items were saved before, by its holder of this `epoch`. `copier` keeps
    /// what cannot be shaped.
    ///
    /// # Errors
    /// [`Abandoned`] when `fence` falls.
    pub(super) async fn write(
        &self,
        copier: &Copier,
        segment: u32,
        epoch: u64,
        before: u64,
        items: &[Scanned],
        fence: &CancellationToken,
    ) -> Result<(), Abandoned> {
        let Some(sequence) =
            SequenceNumber::parse(SEQUENCE).filter(|_| !items.is_empty() && !self.feeds.is_empty())
        else {
            return Ok(());
        };
        let change = |key: &Key, content: &Content, size| Change {
            sequence: sequence.clone(),
            created: self.begun,
            key: key.clone(),
            event: Event::Insert,
            old: None,
            new: Some(Image { content: content.clone(), stamp: None }),
            by_ttl: false,
            size,
        };
        let (mut changes, mut filtered, mut unshaped) = (Vec::new(), 0, Vec::new());
        for item in items.iter().filter(|item| !item.leaving) {
            match &item.shaped {
                None => changes.push((change(&item.key, &item.content, item.size), item.version)),
                Some(Ok(Some((key, content)))) => {
                    changes.push((change(key, content, content.fields().size()), item.version))
                }
                Some(Ok(None)) => filtered += 1,
                Some(Err(why)) => unshaped.push((item, Failure::from(why.clone()))),
            }
        }
        let shard = format!("{segment:05}");
        for feed in &self.feeds {
            for (item, why) in &unshaped {
                copier.letter(feed.name(), item, why, fence).await?;
            }
            let records = changes.iter().map(|(change, version)| Record {
                change,
                event: EVENT,
                version: Some(*version),
                member: &feed.member,
                shard: &shard,
            });
            let records: Vec<Record<'_>> = records.collect();
            if !records.is_empty() {
                self.file(feed, &format!("{segment:05}_{before:012}_{epoch}"), &records, fence).await?;
            }
            let (created, refused) = (Fate::Seeded(Seeded::Created), Fate::Refused);
            let fates = [(created, records.len()), (Fate::Filtered, filtered), (refused, unshaped.len())];
            for (fate, count) in fates.into_iter().filter(|(_, count)| *count > 0) {
                let labels = [&*self.route, feed.name(), fate.name()];
                self.metrics.backfill_items.with_label_values(&labels).inc_by(count as u64);
            }
        }
        Ok(())
    }

    async fn file(
        &self,
        feed: &Feed,
        name: &str,
        records: &[Record<'_>],
        fence: &CancellationToken,
    ) -> Result<(), Abandoned> {
        let root = file::snapshot_root(&feed.settings, &self.route);
        let path = format!("{root}/run={}/{name}.{}", self.run, file::suffix(&feed.settings));
        let (mut pauses, mut gate) = (Pauses::new(Policy::FOREVER, self.jitter.clone()), feed.gate.clone());
        loop {
            tokio::select! {
                biased;
                () = fence.cancelled() => return Err(Abandoned),
                // Nobody is left who could close it.
                _ = gate.wait_for(Option::is_none) => {}
            }
            let written = tokio::select! {
                biased;
                () = fence.cancelled() => return Err(Abandoned),
                written = self.once(feed, &root, &path, records) => written,
            };
            let Err(failure) = written else { return Ok(()) };
            self.metrics.retried(&self.route, feed.name(), failure.class);
            tracing::warn!(feed = feed.name(), why = %failure, remedy = failure.class.remedy(), "a file is written again");
            let pause = pauses.next(failure.class.insist()).unwrap_or(Policy::FOREVER.slow);
            if !crate::retry::pause(pause, fence).await {
                return Err(Abandoned);
            }
        }
    }

    async fn once(&self, feed: &Feed, root: &str, path: &str, records: &[Record<'_>]) -> Result<(), Failure> {
        let schema = feed.columns(records, false).await?;
        // A page is small enough to be encoded in passing.
        let bytes = feed.encode(records, schema.as_deref())?;
        let length = bytes.len();
        feed.store.put(path, PutPayload::from(bytes)).await?;
        if let Some(entry) = file::entry(path, root, None, SEQUENCE, records, length)
            && let Ok(entry) = serde_json::to_vec(&entry)
            && !feed.store.is_stdout()
        {
            feed.store.put(&file::entry_name(root, path), PutPayload::from(entry)).await?;
        }
        let labels = [self.route.as_str(), feed.name()];
        self.metrics.feed_bytes.with_label_values(&labels).inc_by(length as u64);
        self.metrics.feed_files.with_label_values(&[labels[0], labels[1], "snapshot"]).inc();
        Ok(())
    }
}
