//! Feeds: destinations that take a route's changes as files, or as lines on the standard output.
//!
//! A feed is one more kind of lane on a shard ([`lane`]). Its records go into files in stream order; a file is whole or
//! not there ([`store`]), its name and bytes are a function of the shard and the range of records ([`mod@file`], [`lines`],
//! [`parquet`]), and the range is remembered in the lease before the file is written
//! ([`lease::intent`](crate::lease::intent)). So every record is in exactly one file, whoever crashes when. On the
//! standard output there are no names, and a record may come again.
//!
//! [`watermark`] says what is complete. [`tail`] follows a stream without any of this.

pub mod file;
pub mod found;
pub mod lane;
pub mod lines;
pub mod output;
pub mod parquet;
pub mod store;
pub mod tail;
pub mod watermark;

use crate::change::Change;
use crate::config::{self, Compression, FeedFormat};
use crate::control::Pause;
use crate::failure::{Class, Failure};
use crate::version::Version;
use parquet::Schema;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use store::Store;
use tokio::sync::{OnceCell, Semaphore, watch};

/// A feed as one route writes to it.
#[derive(Debug)]
pub struct Feed {
    /// What the config says.
    pub settings: config::Feed,
    /// The member whose changes these are.
    pub member: String,
    /// Where the files are.
    pub store: Store,
    /// Holds a pause while nothing may be written.
    pub gate: watch::Receiver<Option<Pause>>,
    /// The columns, once they are known; of Parquet only.
    pub schema: OnceCell<Arc<Schema>>,
    /// Where inferred columns are kept.
    pub schemas: parquet::Schemas,
    /// Bytes that the open files of all shards hold.
    pub held: Arc<AtomicUsize>,
    /// The right to encode a file: one at a time, so that what that takes beside the records is bounded.
    pub encoding: Arc<Semaphore>,
}

/// A record as it stands in a feed.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The change; of an item in a snapshot, an insert.
    pub change: &'a Change,
    /// `INSERT`, `MODIFY`, `REMOVE` or `SNAPSHOT`.
    pub event: &'a str,
    /// Its version; `None` where no checkpoint tells it.
    pub version: Option<Version>,
    /// The member that it comes from.
    pub member: &'a str,
    /// The shard, or the segment of a snapshot.
    pub shard: &'a str,
}

impl Feed {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Whether nothing may be written.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.gate.borrow().is_some()
    }

    /// The bytes of a file of these records. Takes CPU: for a thread that may be blocked.
    ///
    /// # Errors
    /// A failure within the encoder.
    pub fn encode(&self, records: &[Record<'_>], schema: Option<&Schema>) -> Result<Vec<u8>, Failure> {
        match (self.settings.format, schema) {
            (FeedFormat::Parquet, Some(schema)) => parquet::encode(&self.settings, schema, records),
            (FeedFormat::Parquet, None) => {
                Err(Failure::new(Class::Invalid, "NoSchema", "the columns are not known"))
            }
            (FeedFormat::Json | FeedFormat::DynamoJson, _) => {
                let stdout = self.store.is_stdout();
                let compression = if stdout { Compression::None } else { self.settings.compression };
                file::lines(&self.settings, compression, records)
            }
        }
    }

    /// The columns for files of Parquet; `None` for lines. Inferred from these records when the config has none and
    /// nobody inferred them before. Deletes tell only what keys are made of: where none of the records has a new image
    /// and nothing is known yet, the file has no columns of attributes, as it is when it must be `bare`.
    ///
    /// # Errors
    /// The state table's failure.
    pub async fn columns(&self, records: &[Record<'_>], bare: bool) -> Result<Option<Arc<Schema>>, Failure> {
        if self.settings.format != FeedFormat::Parquet {
            return Ok(None);
        }
        let inferred = self.settings.columns.is_empty();
        let schema = |columns| Some(Arc::new(Schema { columns, inferred }));
        if bare && inferred {
            return Ok(schema(Vec::new()));
        }
        if let Some(known) = self.schema.get() {
            return Ok(Some(Arc::clone(known)));
        }
        let known = if !inferred {
            Some(self.settings.columns.clone())
        } else if records.iter().any(|record| record.change.new.is_some()) {
            Some(self.schemas.settle(parquet::infer(records)).await?)
        } else {
            self.schemas.kept().await?
        };
        match known {
            None => Ok(schema(Vec::new())),
            Some(columns) => {
                let known = self.schema.get_or_init(async || Arc::new(Schema { columns, inferred })).await;
                Ok(Some(Arc::clone(known)))
            }
        }
    }
}

/// Bytes that an open file holds, as the feed counts them.
#[derive(Debug)]
struct HeldBytes {
    all: Arc<AtomicUsize>,
    own: usize,
}

impl HeldBytes {
    fn new(all: Arc<AtomicUsize>) -> Self {
        Self { all, own: 0 }
    }

    fn add(&mut self, bytes: usize) {
        self.own += bytes;
        self.all.fetch_add(bytes, Ordering::Relaxed);
    }

    fn clear(&mut self) {
        self.all.fetch_sub(std::mem::take(&mut self.own), Ordering::Relaxed);
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.clear();
    }
}
