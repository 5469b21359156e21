//! One account's tables and streams in one Region.
//!
//! Owns the table engine's database, the tables' metadata that the engine does not keep (ARNs, ids, streams,
//! policies) and the capture of changes. Everything happens under the one lock that guards a Region, so a
//! write and its record are one step. Leaves to others: who may do what.

pub mod control;
pub mod engine;
pub mod items;
pub mod policies;
pub mod request;
pub mod ttl;

use super::arn::Arn;
use super::error::{ApiError, ApiResult};
use super::faults::Faults;
use super::random::Chance;
use super::streams::shard::Record;
use super::streams::{DescribeBudget, Reshard, ShardInfo, Stream};
use super::time::VirtualClock;
use bytes::Bytes;
use dynoxide::{Database, Item};
use engine::{item_size, render_item};
use policies::ResourcePolicy;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What is the same for all Regions of a sandbox.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The time.
    pub clock: VirtualClock,
    /// The chance.
    pub chance: Chance,
    /// The faults.
    pub faults: Faults,
    /// Shards of a new stream.
    pub initial_shards: u32,
    /// How long a shard lives before it rolls over; for ever if absent.
    pub shard_lifetime: Option<Duration>,
    /// Whether reading streams is limited in rate.
    pub limits: bool,
}

/// What the engine does not know about a table.
#[derive(Debug)]
pub struct Table {
    /// Its ARN.
    pub arn: Arn,
    /// Its unique id.
    pub id: String,
    /// Its key attributes, the partition key first.
    pub keys: Vec<String>,
    /// The ARN of its latest stream, on or off.
    pub latest_stream: Option<String>,
    /// Whether that stream captures.
    pub captures: bool,
    /// How wrong the clock is by which its stream tells creation times.
    pub clock_off_ms: i64,
    /// Its resource policy.
    pub policy: Option<ResourcePolicy>,
}

/// One account's tables in one Region.
pub struct Region {
    /// The account's id.
    pub account: String,
    /// The Region's name.
    pub name: String,
    db: Database,
    tables: BTreeMap<String, Table>,
    streams: BTreeMap<String, Stream>,
    describe_budget: DescribeBudget,
    env: Environment,
}

/// What a record's JSON needs beside its key and images, in bytes; a guess that saves growing.
const RECORD_FRAME: usize = 512;

/// Who deleted an item, when it was not a caller.
const TTL_SERVICE: &str = r#","userIdentity":{"PrincipalId":"dynamodb.amazonaws.com","Type":"Service"}"#;

impl Region {
    /// An empty Region of an account.
    ///
    /// # Errors
    /// When the engine cannot open a database in memory.
    pub fn new(account: &str, name: &str, env: Environment) -> ApiResult<Self> {
        Ok(Self {
            account: account.into(),
            name: name.into(),
            db: Database::memory_with_clock(Arc::new(env.clock.clone()))?,
            tables: BTreeMap::new(),
            streams: BTreeMap::new(),
            describe_budget: DescribeBudget::default(),
            env,
        })
    }

    /// Milliseconds since 1970.
    pub(in crate::sandbox) fn now_ms(&self) -> u64 {
        self.env.clock.now_ms()
    }

    pub(in crate::sandbox) fn chance(&self) -> &Chance {
        &self.env.chance
    }

    pub(in crate::sandbox) fn faults(&self) -> &Faults {
        &self.env.faults
    }

    pub(in crate::sandbox) fn limits(&self) -> bool {
        self.env.limits
    }

    pub(in crate::sandbox) fn describe_budget(&mut self) -> &mut DescribeBudget {
        &mut self.describe_budget
    }

    pub(in crate::sandbox) fn streams_mut(&mut self) -> &mut BTreeMap<String, Stream> {
        &mut self.streams
    }

    /// A table's metadata.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.get(name)
    }

    /// The names of the tables, in order.
    pub fn table_names(&self) -> impl Iterator<Item = &String> {
        self.tables.keys()
    }

    pub(in crate::sandbox) fn table_mut(&mut self, name: &str) -> Option<&mut Table> {
        self.tables.get_mut(name)
    }

    /// The policy on a table (also for its indexes) or a stream.
    #[must_use]
    pub fn policy_of(&self, arn: &Arn) -> Option<&ResourcePolicy> {
        match arn.part {
            super::arn::Part::Stream(_) => self.streams.get(&arn.to_string())?.policy.as_ref(),
            _ => self.tables.get(&arn.table)?.policy.as_ref(),
        }
    }

    /// Puts one change into the table's stream; nothing when the stream is off or nothing changed.
    fn capture(&mut self, table: &str, old: Option<&Item>, new: Option<&Item>, by_ttl: bool) {
        let Some(Table { keys, latest_stream: Some(stream), captures: true, clock_off_ms, .. }) =
            self.tables.get(table)
        else {
            return;
        };
        let (clock_off_ms, Some(stream)) = (*clock_off_ms, self.streams.get_mut(stream)) else { return };
        let render = |item: &Item| {
            let mut out = Vec::with_capacity(256);
            render_item(item, &mut out);
            out
        };
        let (old_json, new_json) = (old.map(render), new.map(render));
        let Some(image) = new.or(old).filter(|_| old_json != new_json) else { return };
        let key: Item = keys.iter().filter_map(|k| Some((k.clone(), image.get(k)?.clone()))).collect();
        let mut partition = Vec::new();
        if let Some(value) = keys.first().and_then(|name| key.get(name)) {
            engine::render_value(value, &mut partition);
        }

        let at_ms = self.env.clock.now_ms();
        let chance = &self.env.chance;
        let view = stream.view;
        let Some(shard) = stream.shard_for(key_hash(&partition), at_ms, chance) else { return };
        let sequence = shard.take_sequence(chance.below(900));
        let mut size = item_size(&key);
        let event = match (old, new) {
            (None, _) => "INSERT",
            (Some(_), Some(_)) => "MODIFY",
            (Some(_), None) => "REMOVE",
        };
        let head = format!(
            "{{\"eventID\":\"{}\",\"eventName\":\"{event}\",\"eventVersion\":\"1.1\",\
             \"eventSource\":\"aws:dynamodb\",\"awsRegion\":\"{}\",\"dynamodb\":{{\
             \"ApproximateCreationDateTime\":{},\"Keys\":",
            chance.hex(16),
            self.name,
            at_ms.saturating_add_signed(clock_off_ms) / 1000,
        );
        let images_len = old_json.as_ref().map_or(0, Vec::len) + new_json.as_ref().map_or(0, Vec::len);
        let mut json = Vec::with_capacity(RECORD_FRAME + partition.len() + images_len);
        json.extend_from_slice(head.as_bytes());
        render_item(&key, &mut json);
        let images = [
            (",\"NewImage\":", new, new_json.filter(|_| view.has_new())),
            (",\"OldImage\":", old, old_json.filter(|_| view.has_old())),
        ];
        for (name, item, rendered) in images {
            if let (Some(item), Some(rendered)) = (item, rendered) {
                size += item_size(item);
                json.extend_from_slice(name.as_bytes());
                json.extend_from_slice(&rendered);
            }
        }
        let tail = format!(
            ",\"SequenceNumber\":\"{sequence}\",\"SizeBytes\":{size},\"StreamViewType\":\"{}\"}}{}}}",
            view.name(),
            if by_ttl { TTL_SERVICE } else { "" },
        );
        json.extend_from_slice(tail.as_bytes());
        // Kept for a day: without what was reserved and not used.
        shard.push(Record { sequence, at_ms, size, json: Bytes::from(json.into_boxed_slice()) });
    }

    /// Makes the clock that a table's stream tells creation times by wrong by so many milliseconds. Nothing else
    /// goes by it.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn set_stream_clock(&mut self, table: &str, off_ms: i64) -> ApiResult<()> {
        let found = self.tables.get_mut(table);
        found.ok_or_else(|| ApiError::not_found(format!("no table {table}")))?.clock_off_ms = off_ms;
        Ok(())
    }

    fn latest_stream_mut(&mut self, table: &str) -> ApiResult<&mut Stream> {
        let arn = self.tables.get(table).and_then(|table| table.latest_stream.clone());
        arn.and_then(|arn| self.streams.get_mut(&arn))
            .ok_or_else(|| ApiError::not_found(format!("Requested resource not found: no stream on {table}")))
    }

    /// Splits a shard of the table's stream, or rolls it over; all its open shards if none is named.
    ///
    /// # Errors
    /// When there is no such open shard.
    pub fn reshard(&mut self, table: &str, shard: Option<&str>, how: Reshard) -> ApiResult<()> {
        let (now, chance) = (self.now_ms(), self.env.chance.clone());
        let stream = self.latest_stream_mut(table)?;
        let ids: Vec<String> = match shard {
            Some(id) => vec![id.into()],
            None => stream.shards().filter(|shard| shard.is_open()).map(|shard| shard.id.clone()).collect(),
        };
        for id in ids {
            if !stream.reshard(&id, how, now, &chance) {
                return Err(ApiError::not_found(format!("{id} is not an open shard that can be divided")));
            }
        }
        Ok(())
    }

    /// The shards of the table's latest stream, by id.
    ///
    /// # Errors
    /// When it has none.
    pub fn shards(&mut self, table: &str) -> ApiResult<Vec<ShardInfo>> {
        let (now, chance) = (self.now_ms(), self.env.chance.clone());
        let stream = self.latest_stream_mut(table)?;
        stream.tick(now, &chance);
        Ok(stream.shards().map(super::streams::shard::Shard::info).collect())
    }

    /// Drops all records of a shard, or of all shards if none is named.
    ///
    /// # Errors
    /// When there is no such shard.
    pub fn trim(&mut self, table: &str, shard: Option<&str>) -> ApiResult<()> {
        let stream = self.latest_stream_mut(table)?;
        let ids: Vec<String> = match shard {
            Some(id) => vec![id.into()],
            None => stream.shards().map(|shard| shard.id.clone()).collect(),
        };
        for id in ids {
            let found = stream.shard_mut(&id);
            found.ok_or_else(|| ApiError::not_found(format!("no shard {id}")))?.trim_all();
        }
        Ok(())
    }
}

/// Where a partition key falls among the shards: FNV-1a, with the high bits mixed, since ranges divide by them.
fn key_hash(key: &[u8]) -> u32 {
    let fnv = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    u32::try_from(mixed >> 32).unwrap_or_default()
}
