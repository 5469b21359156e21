//! The steps of one file: the intent in the lease, the file, its entry in the manifest; and what a worker before left of
//! them. Each is repeated until it succeeds, and none is begun while the feed is paused: a pause may mean that the shape
//! of the records is not the accepted one any more.

use super::{FeedLane, Halt, LEAVE, LaneParts, Roll, Taken};
use crate::change::Change;
use crate::dead_letters::{self, Reason};
use crate::failure::{Class, Failure};
use crate::feed::file::{self, Entry};
use crate::feed::parquet::Schema;
use crate::feed::{Record, found};
use crate::lease::intent::Intent;
use crate::lease::table::HeldError;
use crate::retry::{Pauses, Policy};
use crate::shape::Unshaped;
use crate::version::{Hlc, Version};
use object_store::PutPayload;
use std::sync::Arc;
use tokio::time::Instant;

impl FeedLane {
    /// Finds out what the worker before was about to write, and whether it did.
    pub(super) async fn recover(&mut self) -> Result<(), Halt> {
        let parts = Arc::clone(&self.parts);
        if parts.feed.store.is_stdout() {
            return Ok(());
        }
        let intent =
            insist(&parts, "state", || async { Ok(parts.held.intent(parts.feed.name()).await?) }).await?;
        let Some(intent) = intent.filter(|intent| intent.after == self.durable.sequence) else {
            return Ok(());
        };
        let entry = file::entry_name(&parts.root(), &intent.path);
        let known = insist(&parts, parts.feed.name(), || async { Ok(parts.feed.store.get(&entry).await?) });
        if known.await?.is_none() {
            let Some(entry) = self.found(&intent).await? else {
                tracing::info!(
                    feed = parts.feed.name(),
                    file = intent.path,
                    "a file that was begun is written again"
                );
                self.intended = Some(intent);
                return Ok(());
            };
            self.count_file(entry.records, entry.bytes, Roll::Intended);
            self.enter(&intent, entry).await?;
        }
        self.is_at(intent.to);
        Ok(())
    }

    /// The entry of an intended file that is there.
    async fn found(&self, intent: &Intent) -> Result<Option<Entry>, Halt> {
        let parts = &self.parts;
        let file =
            insist(parts, parts.feed.name(), || async { Ok(parts.feed.store.get(&intent.path).await?) });
        let Some(bytes) = file.await? else { return Ok(None) };
        Ok(found::entry(&intent.path, &parts.route, intent.after.as_ref(), &intent.last(), bytes))
    }

    /// Writes a file's entry into the manifest: from then on it counts.
    async fn enter(&self, intent: &Intent, entry: Entry) -> Result<(), Halt> {
        let parts = &self.parts;
        let name = file::entry_name(&parts.root(), &intent.path);
        insist(parts, parts.feed.name(), || async {
            let entry = serde_json::to_vec(&entry);
            let entry = entry.map_err(|e| Failure::new(Class::Invalid, "Entry", e.to_string()))?;
            Ok(parts.feed.store.put(&name, PutPayload::from(entry)).await?)
        })
        .await
    }

    /// Closes the file: writes it, and what it stands for is durable.
    pub(super) async fn roll(&mut self, reason: Roll) -> Result<(), Halt> {
        let parts = Arc::clone(&self.parts);
        let records = std::mem::take(&mut self.records);
        let (Some(first), to) = (records.first(), self.passed.clone()) else {
            // All that was intended is gone, or the shape that was accepted since lets none of it through.
            if let Some(intent) = self.intended.take() {
                if let Some(entry) = self.found(&intent).await? {
                    self.enter(&intent, entry).await?;
                }
                self.is_at(intent.to);
            }
            return Ok(());
        };
        self.parts.status.show(None, records.len(), 1);
        let intended = self.intended.take();
        let begun = intended.is_some();
        let bare = intended.as_ref().is_some_and(|intent| intent.bare);
        let schema = self.schema(&records, bare).await?;
        let intent = match intended {
            Some(intent) => intent,
            None => {
                let last = to.sequence.as_ref().unwrap_or(&first.change().sequence);
                let (shard, first) = (&*parts.shard, first.change());
                let path = file::name(
                    &parts.feed.settings,
                    &parts.route,
                    shard,
                    first.created,
                    &first.sequence,
                    last,
                );
                let bare = schema.as_ref().is_some_and(|schema| schema.columns.is_empty());
                Intent { after: self.durable.sequence.clone(), to, path, bare }
            }
        };
        if !begun && reason != Roll::Page {
            self.intend(&intent).await?;
        }
        let records: Arc<[Taken]> = records.into();
        // A worker that had lost its right may have been faster, with records that are gone by now.
        let there = if begun { self.found(&intent).await? } else { None };
        let (bytes, entry) = match there {
            Some(entry) => (entry.bytes, Some(entry)),
            None => {
                let (file, entry) = self.encode(&intent, &records, schema).await?;
                let file = PutPayload::from(file);
                insist(&parts, parts.feed.name(), || async {
                    Ok(parts.feed.store.put(&intent.path, file.clone()).await?)
                })
                .await?;
                (file.content_length(), entry)
            }
        };
        if let Some(entry) = entry {
            self.enter(&intent, entry).await?;
        }
        self.count(&records, bytes, reason);
        (self.bytes, self.opened) = (0, Instant::now());
        self.rooms.clear();
        self.held.clear();
        // A range that was intended may end with records that are gone by now.
        self.is_at(intent.to);
        if reason != Roll::Page {
            parts.written.notify_one();
        }
        Ok(())
    }

    /// Remembers a file in the lease, once the checkpoint has passed the one before.
    async fn intend(&mut self, intent: &Intent) -> Result<(), Halt> {
        let parts = Arc::clone(&self.parts);
        let mut saved = parts.saved.clone();
        tokio::select! {
            biased;
            () = parts.fence.cancelled() => return Err(Halt::Fence),
            seen = saved.wait_for(|saved| *saved == intent.after) => if seen.is_err() {
                return Err(Halt::Fence);
            }
        }
        insist(&parts, "state", || async {
            parts.held.intend(parts.feed.name(), intent).await.map_err(Refused::from)
        })
        .await
    }

    /// Keeps a change that cannot be shaped as a dead letter.
    pub(super) async fn keep(&self, change: &Change, hlc: Hlc, why: Unshaped) -> Result<(), Halt> {
        let (parts, why) = (&self.parts, Failure::from(why));
        let (reason, version) = (Reason::of(&why), Version::new(hlc, parts.member));
        let lane = dead_letters::Lane { route: &parts.route, peer: parts.feed.name(), shard: &parts.shard };
        insist(parts, "state", || async {
            Ok(parts.dead_letters.keep(lane, change, version, reason, &why).await?)
        })
        .await?;
        let labels = [&*parts.route, parts.feed.name(), reason.name()];
        parts.metrics.dead_letters.with_label_values(&labels).inc();
        parts.counters.dead.inc();
        tracing::error!(
            feed = parts.feed.name(),
            key = %change.key.digest(),
            sequence = %change.sequence,
            %why,
            "a change cannot be shaped; it is kept as a dead letter, and stands in no file"
        );
        Ok(())
    }

    /// The columns of a file of Parquet.
    async fn schema(&self, records: &[Taken], bare: bool) -> Result<Option<Arc<Schema>>, Halt> {
        let parts = &self.parts;
        insist(parts, "state", || async {
            let records: Vec<Record<'_>> = records.iter().map(|taken| taken.record(parts)).collect();
            Ok(parts.feed.columns(&records, bare).await?)
        })
        .await
    }

    /// The bytes of a file and of its entry in the manifest, made on a thread that may be blocked.
    async fn encode(
        &self,
        intent: &Intent,
        records: &Arc<[Taken]>,
        schema: Option<Arc<Schema>>,
    ) -> Result<(Vec<u8>, Option<Entry>), Halt> {
        let parts = Arc::clone(&self.parts);
        let once = || {
            let (parts, records, schema) = (Arc::clone(&parts), Arc::clone(records), schema.clone());
            let intent = intent.clone();
            async move {
                let broken =
                    |e: &dyn std::fmt::Display| Failure::new(Class::Unknown, "Encode", e.to_string());
                let right = Arc::clone(&parts.feed.encoding).acquire_owned();
                let right = right.await.map_err(|e| broken(&e))?;
                let work = move || {
                    // Also when nobody waits for it any more.
                    let _right = right;
                    let records: Vec<Record<'_>> = records.iter().map(|taken| taken.record(&parts)).collect();
                    let bytes = parts.feed.encode(&records, schema.as_deref())?;
                    let (after, last) = (intent.after.as_ref(), intent.last());
                    let entry = file::entry(&intent.path, &parts.route, after, &last, &records, bytes.len());
                    Ok::<_, Failure>((bytes, entry.filter(|_| !parts.feed.store.is_stdout())))
                };
                let done = tokio::task::spawn_blocking(work).await;
                Ok(done.map_err(|e| broken(&e))??)
            }
        };
        insist(&parts, parts.feed.name(), once).await
    }

    fn count(&self, records: &[Taken], bytes: usize, reason: Roll) {
        let (parts, now) = (&self.parts, self.parts.clock.now());
        for taken in records {
            let lag = now.duration_since(taken.change().created).unwrap_or_default();
            parts.counters.lag.observe(lag.as_secs_f64());
        }
        self.count_file(records.len(), bytes, reason);
    }

    fn count_file(&self, records: usize, bytes: usize, reason: Roll) {
        let parts = &self.parts;
        let labels = [&*parts.route, parts.feed.name()];
        parts.counters.applied.inc_by(records as u64);
        parts.metrics.feed_bytes.with_label_values(&labels).inc_by(bytes as u64);
        parts.metrics.feed_files.with_label_values(&[labels[0], labels[1], reason.name()]).inc();
        parts.status.moving();
    }
}

impl LaneParts {
    /// The directory of the changes.
    fn root(&self) -> String {
        file::root(&self.feed.settings, &self.route)
    }
}

impl Intent {
    /// The last record that the file stands for.
    fn last(&self) -> String {
        self.to.sequence.as_ref().map(ToString::to_string).unwrap_or_default()
    }
}

/// Why a call did not succeed.
enum Refused {
    Lost,
    Failed(Failure),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<HeldError> for Refused {
    fn from(error: HeldError) -> Self {
        match error {
            HeldError::Lost => Self::Lost,
            HeldError::Call(failure) => Self::Failed(failure),
        }
    }
}

/// Repeats a call until it succeeds, the right to write is gone, or a stop was asked for a while ago. A pause breaks it off
/// until it is over: whatever the call came to, repeating it is harmless. Lines on the standard output would come twice.
async fn insist<T, F>(parts: &LaneParts, at: &str, call: impl Fn() -> F) -> Result<T, Halt>
where
    F: Future<Output = Result<T, Refused>>,
{
    let mut pauses = Pauses::new(Policy::FOREVER, parts.jitter.clone());
    let (mut gate, stdout) = (parts.feed.gate.clone(), parts.feed.store.is_stdout());
    loop {
        tokio::select! {
            biased;
            () = parts.fence.cancelled() => return Err(Halt::Fence),
            () = parts.drain.cancelled(), if parts.feed.paused() => return Err(Halt::Leave),
            // Nobody is left who could close it.
            _ = gate.wait_for(Option::is_none) => {}
        }
        let leave = async {
            parts.drain.cancelled().await;
            tokio::time::sleep(LEAVE).await;
        };
        let result = tokio::select! {
            biased;
            () = parts.fence.cancelled() => return Err(Halt::Fence),
            result = call() => result,
            Ok(_) = gate.wait_for(Option::is_some), if !stdout => continue,
            // Nothing limits how long a reader stalls.
            () = leave, if stdout => return Err(Halt::Leave),
        };
        let failure = match result {
            Ok(value) => return Ok(value),
            Err(Refused::Lost) => return Err(Halt::Fence),
            Err(Refused::Failed(failure)) => failure,
        };
        parts.metrics.retried(&parts.route, at, failure.class);
        parts.status.stalled(&failure);
        let leave = async {
            parts.drain.cancelled().await;
            tokio::time::sleep(LEAVE).await;
        };
        let pause = pauses.next(failure.class.insist()).unwrap_or(Policy::FOREVER.slow);
        tokio::select! {
            biased;
            () = parts.fence.cancelled() => return Err(Halt::Fence),
            () = leave => return Err(Halt::Leave),
            () = tokio::time::sleep(pause) => {}
        }
    }
}
