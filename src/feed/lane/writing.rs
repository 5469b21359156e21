//! The steps of one file: the intent in the lease, the file, its entry in the manifest; and what a worker before left of
//! them. Each is repeated until it succeeds.

use super::{FeedLane, Halt, LEAVE, LaneParts, Roll, Taken};
use crate::failure::{Class, Failure};
use crate::feed::file::{self, Entry};
use crate::feed::{Record, found};
use crate::lease::intent::Intent;
use crate::lease::table::HeldError;
use crate::retry::{Pauses, Policy};
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
            // All that was intended is gone.
            if let Some(intent) = self.intended.take() {
                self.is_at(intent.to);
            }
            return Ok(());
        };
        self.parts.status.show(None, records.len(), 1);
        let intent = match self.intended.take() {
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
                Intent { after: self.durable.sequence.clone(), to, path }
            }
        };
        if reason != Roll::Intended && reason != Roll::Page {
            self.intend(&intent).await?;
        }
        let records: Arc<[Taken]> = records.into();
        // A worker that had lost its right may have been faster, with records that are gone by now.
        let there = if reason == Roll::Intended { self.found(&intent).await? } else { None };
        let (bytes, entry) = match there {
            Some(entry) => (entry.bytes, Some(entry)),
            None => {
                let (file, entry) = self.encode(&intent, &records).await?;
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

    /// The bytes of a file and of its entry in the manifest, made on a thread that may be blocked.
    async fn encode(
        &self,
        intent: &Intent,
        records: &Arc<[Taken]>,
    ) -> Result<(Vec<u8>, Option<Entry>), Halt> {
        let parts = Arc::clone(&self.parts);
        let schema = insist(&parts, "state", || async {
            let records: Vec<Record<'_>> = records.iter().map(|taken| taken.record(&parts)).collect();
            Ok(parts.feed.columns(&records).await?)
        })
        .await?;
        let once = || {
            let (parts, records, schema) = (Arc::clone(&parts), Arc::clone(records), schema.clone());
            let intent = intent.clone();
            async move {
                let work = move || {
                    let records: Vec<Record<'_>> = records.iter().map(|taken| taken.record(&parts)).collect();
                    let bytes = parts.feed.encode(&records, schema.as_deref())?;
                    let (after, last) = (intent.after.as_ref(), intent.last());
                    let entry = file::entry(&intent.path, &parts.route, after, &last, &records, bytes.len());
                    Ok::<_, Failure>((bytes, entry.filter(|_| !parts.feed.store.is_stdout())))
                };
                let done = tokio::task::spawn_blocking(work).await;
                let broken =
                    |e: tokio::task::JoinError| Failure::new(Class::Unknown, "Encode", e.to_string());
                Ok(done.map_err(broken)??)
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

/// Repeats a call until it succeeds, the right to write is gone, or a stop was asked for a while ago.
async fn insist<T, F>(parts: &LaneParts, at: &str, call: impl Fn() -> F) -> Result<T, Halt>
where
    F: Future<Output = Result<T, Refused>>,
{
    let mut pauses = Pauses::new(Policy::FOREVER, parts.jitter.clone());
    loop {
        let leave = async {
            parts.drain.cancelled().await;
            tokio::time::sleep(LEAVE).await;
        };
        let result = tokio::select! {
            biased;
            () = parts.fence.cancelled() => return Err(Halt::Fence),
            result = call() => result,
            // Nothing limits how long a reader stalls.
            () = leave, if parts.feed.store.is_stdout() => return Err(Halt::Leave),
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
