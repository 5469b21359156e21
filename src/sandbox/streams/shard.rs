//! One shard: its records, its place in the lineage, what may still be read of it.
//!
//! Promises: sequence numbers rise along a lineage (and mean nothing across lineages); a closed shard never
//! changes but by trimming.

use super::ShardInfo;
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// One record of a stream, ready to be sent.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its sequence number.
    pub sequence: u128,
    /// When it was written, in milliseconds since 1970.
    pub at_ms: u64,
    /// The size that counts against a page: keys and images.
    pub size: usize,
    /// The record as JSON.
    pub json: Bytes,
}

/// A shard of a stream.
#[derive(Debug)]
pub struct Shard {
    /// `shardId-<20 digits of milliseconds>-<8 hex digits>`.
    pub id: String,
    /// The shard that it continues; it may be gone.
    pub parent: Option<String>,
    /// The hashes of the keys that it holds.
    pub range: RangeInclusive<u32>,
    /// When it was opened, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it was closed.
    pub closed_ms: Option<u64>,
    /// Its first sequence number.
    pub starting: u128,
    /// The number after its last one.
    pub next: u128,
    /// The last sequence number that was trimmed away.
    trimmed: Option<u128>,
    records: VecDeque<Record>,
    reads: Window,
    read_bytes: Window,
}

/// What a position in a shard is good for.
#[derive(Debug, PartialEq, Eq)]
pub enum Page<'a> {
    /// The records from there on; the position after them; whether the shard ends there.
    Records {
        /// In order.
        records: Vec<&'a Record>,
        /// Where to go on.
        next: u128,
        /// Whether nothing can follow.
        end: bool,
    },
    /// What was there has been trimmed.
    Trimmed,
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Record {}

impl Shard {
    /// An open shard.
    #[must_use]
    pub fn open(
        id: String,
        parent: Option<String>,
        range: RangeInclusive<u32>,
        starting: u128,
        now_ms: u64,
    ) -> Self {
        Self {
            id,
            parent,
            range,
            created_ms: now_ms,
            closed_ms: None,
            starting,
            next: starting,
            trimmed: None,
            records: VecDeque::new(),
            reads: Window::default(),
            read_bytes: Window::default(),
        }
    }

    /// What there is to know about it from outside.
    #[must_use]
    pub fn info(&self) -> ShardInfo {
        ShardInfo {
            id: self.id.clone(),
            parent: self.parent.clone(),
            open: self.is_open(),
            records: self.records.len(),
            newest: self.records.back().map(|record| record.sequence.to_string()),
        }
    }

    /// Whether it still takes records.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.closed_ms.is_none()
    }

    /// The number that the next record gets; `step` leaves a gap after it.
    pub fn take_sequence(&mut self, step: u64) -> u128 {
        let sequence = self.next;
        self.next += 1 + u128::from(step);
        sequence
    }

    /// Adds a record whose number was taken.
    pub fn push(&mut self, record: Record) {
        self.records.push_back(record);
    }

    /// Closes it.
    pub fn close(&mut self, now_ms: u64) {
        self.closed_ms.get_or_insert(now_ms);
    }

    /// Drops the records written at or before `horizon_ms`.
    pub fn trim_until(&mut self, horizon_ms: u64) {
        while let Some(record) = self.records.pop_front_if(|record| record.at_ms <= horizon_ms) {
            self.trimmed = Some(record.sequence);
        }
    }

    /// Drops all records, as if they had aged out: whoever has read the last of them loses nothing.
    pub fn trim_all(&mut self) {
        self.trimmed = self.records.back().map(|record| record.sequence).or(self.trimmed);
        self.records.clear();
    }

    /// Whether it is closed and nothing of it is left.
    #[must_use]
    pub fn is_spent(&self, horizon_ms: u64) -> bool {
        self.records.is_empty() && self.closed_ms.is_some_and(|closed| closed <= horizon_ms)
    }

    /// The oldest position that can still be read.
    #[must_use]
    pub fn horizon(&self) -> u128 {
        self.trimmed.map_or(self.starting, |trimmed| trimmed + 1)
    }

    /// The position of the first record written at or after a time.
    #[must_use]
    pub fn position_at(&self, at_ms: u64) -> u128 {
        self.records.iter().find(|record| record.at_ms >= at_ms).map_or(self.next, |record| record.sequence)
    }

    /// What is to be read from a position, at most so many records and bytes (but at least one record).
    #[must_use]
    pub fn page(&self, from: u128, limit: usize, max_bytes: usize) -> Page<'_> {
        if from < self.horizon() && self.trimmed.is_some() {
            return Page::Trimmed;
        }
        let first = self.records.partition_point(|record| record.sequence < from);
        let mut records = Vec::new();
        let mut bytes = 0;
        for record in self.records.range(first..).take(limit) {
            bytes += record.size;
            if bytes > max_bytes && !records.is_empty() {
                break;
            }
            records.push(record);
        }
        let last = first + records.len() == self.records.len();
        // Past the last record the position is the shard's end, so that trimming what was read loses nothing.
        let next = if last { self.next.max(from) } else { self.records[first + records.len()].sequence };
        Page::Records { records, next, end: last && !self.is_open() }
    }

    /// Whether one more read fits the shard's rate: five calls and 2 MB a second.
    pub fn admit_read(&mut self, now_ms: u64) -> bool {
        self.read_bytes.spent(now_ms) < 2 << 20 && self.reads.take(now_ms, 1, 5)
    }

    /// Counts what was read against the rate.
    pub fn count_read(&mut self, now_ms: u64, bytes: u64) {
        self.read_bytes.take(now_ms, bytes, u64::MAX);
    }
}

/// What was spent within the last second.
#[derive(Debug, Default)]
pub struct Window(VecDeque<(u64, u64)>);

impl Window {
    fn spent(&mut self, now_ms: u64) -> u64 {
        while self.0.front().is_some_and(|(at, _)| at + 1000 <= now_ms) {
            self.0.pop_front();
        }
        self.0.iter().map(|(_, cost)| cost).sum()
    }

    /// Spends if the limit allows it.
    pub fn take(&mut self, now_ms: u64, cost: u64, limit: u64) -> bool {
        let fits = self.spent(now_ms).saturating_add(cost) <= limit;
        if fits {
            self.0.push_back((now_ms, cost));
        }
        fits
    }
}
