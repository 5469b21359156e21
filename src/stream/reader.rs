//! Reading one shard, page by page.
//!
//! A reader holds an iterator and the place that it has reached. An iterator that expired is opened anew after
//! the last sequence number. Records that were trimmed before they were read are an error of their own, never a
//! silent jump. One call is one request: pauses and retries belong to the caller.

use crate::change::{Change, DecodeError, SequenceNumber};
use crate::failure::{Action, Class, Failure, TIMEOUT};
use crate::memory;
use crate::wire::{self, Page, Unreadable};
use aws_sdk_dynamodbstreams::Client;
use aws_sdk_dynamodbstreams::types::ShardIteratorType;
use std::sync::Arc;
use std::time::SystemTime;

/// Where in a shard to read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The oldest record that is left.
    TrimHorizon,
    /// The first record at or after a time, where the endpoint knows how; else the oldest.
    At(SystemTime),
    /// After a record.
    After(SequenceNumber),
}

/// Why a read did not give records.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ReadError {
    /// The records after the place are gone: data was lost. The reader keeps its place.
    #[error("records were trimmed before they were read")]
    Trimmed {
        /// The last record that was read; `None` when none was.
        after: Option<SequenceNumber>,
    },
    /// The shard is gone with all its records.
    #[error("the shard does not exist any more")]
    Gone,
    /// A record that this build cannot decode; the reader keeps its place before the page.
    #[error(transparent)]
    Undecodable(#[from] DecodeError),
    /// A page that this build cannot read; the reader keeps its place before it.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// A call failed; the reader keeps its place.
    #[error("{0}")]
    Call(Failure),
}

/// What a read gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The changes in order; often none, also in the middle of a shard.
    pub changes: Vec<Change>,
    /// Whether the shard ends here.
    pub end: bool,
}

/// Reads one shard.
#[derive(Debug)]
pub struct Reader {
    client: Client,
    stream: Arc<str>,
    shard: Arc<str>,
    stamp: Arc<str>,
    digests: bool,
    place: Place,
    iterator: Option<String>,
    /// Records asked for at most. An endpoint that cannot give a whole page in a request's time limit would never
    /// give the next one either: the page is halved until it comes. Of items that take far more memory than DynamoDB
    /// counts, such as those of many small values, so many are asked for as fit.
    limit: i32,
}

/// What GetRecords gives at most.
const PAGE: i32 = 1000;
/// A page is not halved below this.
const SMALLEST_PAGE: i32 = 25;

impl Reader {
    /// A reader that will read from `place`. Sends nothing. `stamp` is the route's stamp attribute.
    #[must_use]
    pub fn new(client: Client, stream: Arc<str>, shard: Arc<str>, stamp: Arc<str>, place: Place) -> Self {
        Self { client, stream, shard, stamp, digests: false, place, iterator: None, limit: PAGE }
    }

    /// The same for one who is likely to ask for the digests of images.
    #[must_use]
    pub fn with_digests(self, digests: bool) -> Self {
        Self { digests, ..self }
    }

    /// Goes on from another place at the next read.
    pub fn seek(&mut self, place: Place) {
        (self.place, self.iterator) = (place, None);
    }

    /// The next records: one GetRecords, and before it GetShardIterator when there is no iterator.
    ///
    /// # Errors
    /// [`ReadError`]; reading again goes on from the same place.
    pub async fn read(&mut self) -> Result<Read, ReadError> {
        let iterator = match self.iterator.take() {
            Some(iterator) => iterator,
            None => self.open().await?,
        };
        let answer = match wire::get_records(&self.client, &iterator, self.limit).await {
            Ok(answer) => answer,
            Err(failure) => {
                if failure.code == TIMEOUT {
                    self.limit = (self.limit / 2).max(SMALLEST_PAGE);
                }
                match failure.class {
                    // Opened anew at the next read.
                    Class::IteratorExpired => {}
                    Class::Trimmed => return Err(self.trimmed()),
                    Class::NotFound => return Err(ReadError::Gone),
                    // Refused for good: another iterator may do.
                    class if class.action() == Action::GiveBack => {}
                    _ => self.iterator = Some(iterator),
                }
                return Err(ReadError::Call(failure));
            }
        };
        let page = answer.read::<Page<'_>>().map_err(|failure| {
            self.iterator = Some(iterator);
            ReadError::Call(failure)
        })??;
        let decoded =
            page.records.into_iter().map(|record| Change::decode(record, &self.stamp, self.digests));
        let changes: Vec<Change> = decoded.collect::<Result<_, _>>()?;
        let bytes: usize = changes.iter().map(|change| change.size).sum();
        let fitting = (bytes > memory::PAGE).then(|| changes.len() * memory::PAGE / bytes);
        let fitting = fitting.and_then(|records| i32::try_from(records).ok()).unwrap_or(PAGE);
        self.limit = (self.limit + SMALLEST_PAGE).min(fitting).clamp(SMALLEST_PAGE, PAGE);
        if let Some(last) = changes.last() {
            self.place = Place::After(last.sequence.clone());
        }
        self.iterator = page.next_shard_iterator.filter(|iterator| !iterator.is_empty());
        Ok(Read { changes, end: self.iterator.is_none() })
    }

    async fn open(&mut self) -> Result<String, ReadError> {
        match self.ask(&self.place).await {
            Ok(iterator) => Ok(iterator),
            // The newest kind of iterator: endpoints that do not know it start at the beginning.
            Err(failure) if failure.class == Class::Invalid && matches!(self.place, Place::At(_)) => {
                self.place = Place::TrimHorizon;
                self.ask(&self.place).await.map_err(ReadError::Call)
            }
            Err(failure) => Err(match failure.class {
                Class::Trimmed => self.trimmed(),
                Class::NotFound => ReadError::Gone,
                _ => ReadError::Call(failure),
            }),
        }
    }

    async fn ask(&self, place: &Place) -> Result<String, Failure> {
        let request = self.client.get_shard_iterator().stream_arn(&*self.stream).shard_id(&*self.shard);
        let request = match place {
            Place::TrimHorizon => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
            Place::At(time) => {
                request.shard_iterator_type(ShardIteratorType::AtTimestamp).timestamp((*time).into())
            }
            Place::After(sequence) => request
                .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
                .sequence_number(sequence.as_str()),
        };
        let answer = request.send().await?;
        answer.shard_iterator.ok_or_else(|| {
            Failure::new(Class::Unrecognised, "NoIterator", "GetShardIterator gave no iterator")
        })
    }

    fn trimmed(&self) -> ReadError {
        let after = match &self.place {
            Place::After(sequence) => Some(sequence.clone()),
            Place::TrimHorizon | Place::At(_) => None,
        };
        ReadError::Trimmed { after }
    }
}
