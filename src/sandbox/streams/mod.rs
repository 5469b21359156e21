//! Streams of tables: several shards by the hash of the key, splits and rollovers, retention.
//!
//! Owns a stream's shards and lineage, as a state machine whose time and chance are passed in. Promises that a
//! change is in exactly one shard, in the order written per key, and that a parent is closed before its
//! children take records. Leaves to others: the API's spelling ([`api`]), who may read, and which changes there
//! are.

pub mod api;
pub mod shard;

use super::random::Chance;
use super::tables::policies::ResourcePolicy;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shard::{Shard, Window};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a record can be read, and a shard be found after it closed, in milliseconds.
pub const RETENTION_MS: u64 = 24 * 3_600_000;

/// Which images a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ViewType {
    /// Only the key.
    KeysOnly,
    /// The item after the change.
    NewImage,
    /// The item before the change.
    OldImage,
    /// Both.
    NewAndOldImages,
}

impl ViewType {
    /// Whether records carry the item after the change.
    #[must_use]
    pub fn has_new(self) -> bool {
        matches!(self, Self::NewImage | Self::NewAndOldImages)
    }

    /// Whether records carry the item before the change.
    #[must_use]
    pub fn has_old(self) -> bool {
        matches!(self, Self::OldImage | Self::NewAndOldImages)
    }

    /// AWS's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KeysOnly => "KEYS_ONLY",
            Self::NewImage => "NEW_IMAGE",
            Self::OldImage => "OLD_IMAGE",
            Self::NewAndOldImages => "NEW_AND_OLD_IMAGES",
        }
    }
}

/// A shard as the tests and the admin door see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShardInfo {
    /// Its id.
    pub id: String,
    /// The shard that it continues.
    pub parent: Option<String>,
    /// Whether it takes records.
    pub open: bool,
    /// How many records can be read.
    pub records: usize,
    /// The sequence number of the newest record that can be read.
    pub newest: Option<String>,
}

/// What to do to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reshard {
    /// Close it and go on in two children, each with half of its keys.
    Split,
    /// Close it and go on in one child.
    Rollover,
}

/// One stream of a table. A table that turns its stream off and on gets another one.
#[derive(Debug)]
pub struct Stream {
    /// Its ARN.
    pub arn: String,
    /// Its label, a timestamp.
    pub label: String,
    /// The table's name.
    pub table: String,
    /// The table's key schema, as JSON.
    pub key_schema: Value,
    /// Which images its records carry.
    pub view: ViewType,
    /// When it was turned on, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it was turned off.
    pub disabled_ms: Option<u64>,
    /// Its resource policy.
    pub policy: Option<ResourcePolicy>,
    shards: BTreeMap<String, Shard>,
    lifetime_ms: Option<u64>,
    next_rollover_ms: u64,
}

impl Stream {
    /// Opens the shards of a new stream.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "each is a property of the stream that never changes")]
    pub fn open(
        arn: String,
        label: String,
        table: String,
        key_schema: Value,
        view: ViewType,
        shards: u32,
        lifetime: Option<Duration>,
        now_ms: u64,
        chance: &Chance,
    ) -> Self {
        let mut stream = Self {
            arn,
            label,
            table,
            key_schema,
            view,
            created_ms: now_ms,
            disabled_ms: None,
            policy: None,
            shards: BTreeMap::new(),
            lifetime_ms: lifetime.map(super::time::millis),
            next_rollover_ms: u64::MAX,
        };
        let width = u32::MAX / shards.max(1);
        for index in 0..shards.max(1) {
            let end = if index + 1 >= shards { u32::MAX } else { width * (index + 1) - 1 };
            // The first lineage soon gains a digit: its numbers must be compared as numbers. The others start
            // anywhere: numbers of different lineages must not be compared at all.
            let starting = match index {
                0 => 10_u128.pow(21) - 500,
                _ => 10_u128.pow(21) * (1 + u128::from(chance.below(5_000))),
            };
            stream.add(None, width * index..=end, starting, now_ms, chance);
        }
        stream
    }

    fn add(
        &mut self,
        parent: Option<String>,
        range: std::ops::RangeInclusive<u32>,
        starting: u128,
        now_ms: u64,
        chance: &Chance,
    ) {
        let id = loop {
            let id = format!("shardId-{now_ms:020}-{}", chance.hex(4));
            if !self.shards.contains_key(&id) {
                break id;
            }
        };
        if let Some(lifetime) = self.lifetime_ms {
            self.next_rollover_ms = self.next_rollover_ms.min(now_ms + lifetime);
        }
        self.shards.insert(id.clone(), Shard::open(id, parent, range, starting, now_ms));
    }

    /// Whether changes are still captured.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.disabled_ms.is_none()
    }

    /// Turns it off: all shards close, and stay readable for the retention.
    pub fn disable(&mut self, now_ms: u64) {
        self.disabled_ms.get_or_insert(now_ms);
        self.shards.values_mut().filter(|shard| shard.is_open()).for_each(|shard| shard.close(now_ms));
    }

    /// Whether it was turned off so long ago that it is gone.
    #[must_use]
    pub fn is_gone(&self, now_ms: u64) -> bool {
        self.disabled_ms.is_some_and(|disabled| disabled + RETENTION_MS <= now_ms)
    }

    /// Lets time do its work: rollovers, trimming, shards that age out.
    pub fn tick(&mut self, now_ms: u64, chance: &Chance) {
        self.roll_over_due(now_ms, chance);
        let horizon = now_ms.saturating_sub(RETENTION_MS);
        if horizon > 0 {
            self.shards.values_mut().for_each(|shard| shard.trim_until(horizon));
            self.shards.retain(|_, shard| !shard.is_spent(horizon));
        }
    }

    fn roll_over_due(&mut self, now_ms: u64, chance: &Chance) {
        let Some(lifetime) =
            self.lifetime_ms.filter(|_| now_ms >= self.next_rollover_ms && self.is_enabled())
        else {
            return;
        };
        self.next_rollover_ms = u64::MAX;
        let due: Vec<String> = self
            .shards
            .values()
            .filter(|shard| shard.is_open() && shard.created_ms + lifetime <= now_ms)
            .map(|shard| shard.id.clone())
            .collect();
        for id in &due {
            self.reshard(id, Reshard::Rollover, now_ms, chance);
        }
        let young = self.shards.values().filter(|shard| shard.is_open()).map(|shard| shard.created_ms).min();
        self.next_rollover_ms = young.map_or(u64::MAX, |created| created + lifetime);
    }

    /// Closes a shard and opens its children; `false` when it is not an open shard of this stream, or too
    /// narrow to be split.
    pub fn reshard(&mut self, id: &str, how: Reshard, now_ms: u64, chance: &Chance) -> bool {
        let Some(shard) = self.shards.get_mut(id).filter(|shard| shard.is_open()) else { return false };
        let (first, last) = (*shard.range.start(), *shard.range.end());
        let ranges = match how {
            Reshard::Rollover => vec![first..=last],
            Reshard::Split if first == last => return false,
            Reshard::Split => {
                let middle = first + (last - first) / 2;
                vec![first..=middle, middle + 1..=last]
            }
        };
        shard.close(now_ms);
        let after = shard.next;
        for range in ranges {
            let starting = after + 1 + u128::from(chance.below(1_000_000));
            self.add(Some(id.into()), range, starting, now_ms, chance);
        }
        true
    }

    /// The open shard for a key's hash.
    pub(super) fn shard_for(&mut self, hash: u32, now_ms: u64, chance: &Chance) -> Option<&mut Shard> {
        self.roll_over_due(now_ms, chance);
        self.shards.values_mut().find(|shard| shard.is_open() && shard.range.contains(&hash))
    }

    /// A shard by id.
    pub(super) fn shard_mut(&mut self, id: &str) -> Option<&mut Shard> {
        self.shards.get_mut(id)
    }

    /// The shards by id.
    pub fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.shards.values()
    }
}

/// The account's budget of DescribeStream calls: ten a second.
#[derive(Debug, Default)]
pub struct DescribeBudget(Window);

impl DescribeBudget {
    /// Whether one more call fits.
    pub fn admit(&mut self, now_ms: u64) -> bool {
        self.0.take(now_ms, 1, 10)
    }
}
