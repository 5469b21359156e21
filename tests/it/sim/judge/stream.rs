//! What was written to a source, record by record with the protocol's versions, and how far the leases say it is
//! done.

use serde_json::Value;
use shardwalker::invariants::{self, Fate};
use shardwalker::sandbox::Sandbox;
use shardwalker::sandbox::arn::Arn;
use shardwalker::sandbox::streams::ShardInfo;
use shardwalker::version::{Hlc, Stamp, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How far ahead of a record's creation a stamp is believed: the config's default.
const DRIFT: Duration = Duration::from_secs(60);

/// What a record is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrote {
    Put,
    Delete,
    /// A write of ours.
    Echo,
}

#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) sequence: u128,
    pub(super) key: String,
    /// The clock after the record, which is the version of an application's write.
    pub(super) version: Version,
    pub(super) wrote: Wrote,
    pub(super) created_ms: u64,
    /// The same, as the stream told it.
    told: Hlc,
    /// The peers that do not get it from the stream any more, as far as the leases say: those that had not done it when
    /// it was trimmed.
    pub(super) lost: BTreeSet<String>,
    /// It was trimmed before its route began: it was never promised to anyone.
    pub(super) early: bool,
}

#[derive(Default)]
pub(super) struct Shard {
    parent: Option<String>,
    pub(super) records: Vec<Record>,
}

/// Everything that was written to one source.
pub(super) struct Stream {
    pub(super) arn: String,
    pub(super) table: Arn,
    /// In versions.
    pub(super) number: u8,
    /// The names of those that it goes to.
    pub(super) peers: Vec<String>,
    pub(super) shards: BTreeMap<String, Shard>,
    /// How wrong the clock is by which it tells creation times.
    pub(super) clock_off_ms: i64,
}

impl Stream {
    pub(super) fn new(arn: &str, number: usize, peers: &[(String, String)]) -> Self {
        Self {
            arn: arn.to_owned(),
            table: Arn::parse(arn).unwrap(),
            number: u8::try_from(number).unwrap(),
            peers: peers.iter().map(|(name, _)| name.clone()).collect(),
            shards: BTreeMap::new(),
            clock_off_ms: 0,
        }
    }

    /// Takes down which shards there are.
    pub(super) fn look(&mut self, sandbox: &Sandbox) -> Vec<ShardInfo> {
        let shards = sandbox.shards(&self.arn).unwrap();
        for shard in &shards {
            self.shards.entry(shard.id.clone()).or_default().parent.clone_from(&shard.parent);
        }
        shards
    }

    /// Takes down the record of a write that has just happened, over and with these stamps; gives its shard. `None`
    /// when it left none, because it changed nothing.
    pub(super) fn take_down(
        &mut self,
        sandbox: &Sandbox,
        key: &str,
        wrote: Wrote,
        stamps: impl IntoIterator<Item = Stamp>,
    ) -> Option<(String, Record)> {
        let created_ms = sandbox.clock().now_ms();
        let told_ms = created_ms.saturating_add_signed(self.clock_off_ms);
        let created = Hlc::from_millis(told_ms / 1000 * 1000);
        let (shard, sequence) = self.look(sandbox).into_iter().find_map(|shard| {
            let newest: u128 = shard.newest?.parse().unwrap();
            let last = self.shards[&shard.id].records.last().map(|record| record.sequence);
            (last.is_none_or(|last| last < newest)).then_some((shard.id, newest))
        })?;
        let mut hlc = self.hlc(&shard).next().max(created);
        for seen in stamps.into_iter().map(|stamp| stamp.version.hlc) {
            if seen <= created.plus(DRIFT) {
                hlc = hlc.max(seen.next());
            }
        }
        let version = Version::new(hlc, self.number);
        let record = Record {
            sequence,
            key: key.to_owned(),
            version,
            wrote,
            created_ms,
            told: created,
            lost: BTreeSet::new(),
            early: false,
        };
        self.shards.get_mut(&shard)?.records.push(record.clone());
        Some((shard, record))
    }

    /// The lowest version by which a peer may know a record of a key. It counts the records of a second: without those
    /// that it lost, it counts fewer.
    pub(super) fn least(&self, key: &str, version: Version, peer: &str) -> Version {
        let is_it = |record: &Record| record.key == key && record.version == version;
        let mut shards = self.shards.iter();
        let found = shards.find_map(|(id, shard)| Some((id, shard.records.iter().position(is_it)? + 1)));
        let without = |(shard, records): (&String, usize)| self.without_lost(shard, records, peer);
        Version::new(found.map_or(version.hlc, without), version.member)
    }

    /// The clock after so many records of a shard, of a peer that reads none of those that it lost.
    fn without_lost(&self, shard: &str, records: usize, peer: &str) -> Hlc {
        let Some(known) = self.shards.get(shard) else { return Hlc::ZERO };
        let before = known.parent.as_deref().map(|parent| self.without_lost(parent, usize::MAX, peer));
        let read = known.records.iter().take(records).enumerate();
        let read = read.filter(|(at, record)| at + 1 == records || !record.lost.contains(peer));
        read.fold(before.unwrap_or(Hlc::ZERO), |clock, (_, record)| clock.next().max(record.told))
    }

    /// What was written to a shard; nothing when no write was seen since it was opened.
    pub(super) fn records(&self, shard: &str) -> &[Record] {
        self.shards.get(shard).map_or(&[], |known| &known.records)
    }

    /// Whether a shard is the other one, or among those that it came of.
    pub(super) fn leads_to(&self, shard: &str, other: &str) -> bool {
        let mut at = Some(other);
        while let Some(id) = at {
            if id == shard {
                return true;
            }
            at = self.shards.get(id).and_then(|known| known.parent.as_deref());
        }
        false
    }

    /// The clock after a shard's last record, or after its parents' when it has none.
    fn hlc(&self, shard: &str) -> Hlc {
        let Some(known) = self.shards.get(shard) else { return Hlc::ZERO };
        match (known.records.last(), &known.parent) {
            (Some(record), _) => record.version.hlc,
            (None, Some(parent)) => self.hlc(parent),
            (None, None) => Hlc::ZERO,
        }
    }
}

/// Judges the version by which a peer knows a record: the record's, or, after it lost some, at least the lowest.
pub(super) fn one_version(record: Version, least: Version, written: Version) -> invariants::Verdict {
    let fewer = written.member == record.member && least <= written && written < record;
    invariants::one_version_per_record(if fewer { written } else { record }, written)
}

/// How far a lane is, as its lease says.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Checkpoint {
    pub(super) sequence: Option<u128>,
    pub(super) done: bool,
    /// So many records were judged.
    judged: usize,
}

/// How far all lanes are, by shard and peer.
#[derive(Default)]
pub(super) struct Checkpoints(BTreeMap<(String, String), Checkpoint>);

impl Checkpoints {
    pub(super) fn of(&self, shard: &str, peer: &str) -> Checkpoint {
        self.0.get(&(shard.to_owned(), peer.to_owned())).copied().unwrap_or_default()
    }

    /// Judges what a lease says is done; `fate` is what became of a record at a peer. Gives what is wrong.
    pub(super) fn judge(
        &mut self,
        stream: &Stream,
        lease: &Value,
        fate: impl Fn(&str, &Record) -> Fate,
        least: impl Fn(&str, &Record) -> Version,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        let Some(shard) = lease["shard"]["S"].as_str() else { return wrong };
        for (name, position) in lease["peers"]["M"].as_object().into_iter().flatten() {
            let position = &position["M"];
            let sequence: Option<u128> =
                position["sequence"]["S"].as_str().map(|sequence| sequence.parse().unwrap());
            let done = position["done"]["BOOL"].as_bool().unwrap_or_default();
            let saved = self.of(shard, name);
            let about = format!("{shard} for {name}");
            if sequence < saved.sequence || (saved.done && !done) {
                wrong.push(format!("a checkpoint went back ({about})"));
            }
            let records = stream.records(shard);
            let passed = records.partition_point(|record| done || Some(record.sequence) <= sequence);
            let fate = |record: &Record| {
                (format!("{} ({}, {})", record.sequence, record.key, record.version), fate(name, record))
            };
            let fates: Vec<_> = records[saved.judged.min(passed)..passed].iter().map(fate).collect();
            let mut verdicts = vec![invariants::frontier_is_contiguous(fates)];
            let at = records.iter().find(|record| Some(record.sequence) == sequence);
            let hlc = position["hlc"]["S"].as_str().and_then(|text| text.parse::<Hlc>().ok());
            if let (Some(record), Some(hlc)) = (at, hlc) {
                let written = Version::new(hlc, record.version.member);
                verdicts.push(one_version(record.version, least(name, record), written));
            }
            let violations = verdicts.into_iter().filter_map(Result::err);
            wrong.extend(violations.map(|violation| format!("{violation} ({about})")));
            let saved = Checkpoint { sequence, done, judged: passed };
            self.0.insert((shard.to_owned(), name.clone()), saved);
        }
        wrong
    }

    /// Whether every record of a shard is done at every peer of its source, as far as the leases say.
    fn settled(&self, stream: &Stream, shard: &str, open: bool) -> bool {
        stream.peers.iter().all(|peer| {
            let kept = stream.records(shard).iter().rfind(|record| !record.lost.contains(peer));
            let last = kept.map(|record| record.sequence);
            let saved = self.of(shard, peer);
            saved.done || (open && saved.sequence >= last)
        })
    }

    /// The shards of a source whose records are all done, and those that have open ones.
    pub(super) fn shards(&self, sandbox: &Sandbox, stream: &Stream) -> (Vec<String>, Vec<String>) {
        let shards = sandbox.shards(&stream.arn).unwrap();
        let (settled, open): (Vec<_>, Vec<_>) =
            shards.into_iter().partition(|shard| self.settled(stream, &shard.id, shard.open));
        let ids = |shards: Vec<ShardInfo>| shards.into_iter().map(|shard| shard.id).collect();
        (ids(settled), ids(open))
    }
}
