//! The judge of an active-active group: every member is written by applications of its own.
//!
//! It folds each member's clock over all that is written there, by applications and by us, and so knows the version
//! of each application's write. An old content may come back, so a content of a key has a set of versions.
//!
//! A delete by an application of an item that is marked as being deleted cannot be told from the second step of our
//! own delete: it counts as that, and has no version of its own.

use super::stream::{Checkpoints, Record, Stream, Wrote};
use super::{Court, Judge, Request, STAMP, show, stamp_of};
use crate::sim::plan::Act;
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};
use shardwalker::invariants::{self, Fate};
use shardwalker::item::{Digest, Item};
use shardwalker::version::{Mark, Stamp, Version};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The attributes of contents.
const FIELDS: [&str; 2] = ["v", "u"];
/// The scope of the group's tombstones.
const SCOPE: &str = "group/g";

struct Member {
    stream: Stream,
    keys: BTreeMap<String, At>,
}

/// One key at one member.
#[derive(Debug, Clone, Default)]
struct At {
    item: Option<Value>,
    /// The version of the last write of an application.
    written: Option<Version>,
    /// The highest stamp that it ever had.
    highest: Option<Version>,
    /// There was no item when the tombstone was this.
    deleted: Option<Version>,
    /// What an application has read, and will put back.
    read: Option<Value>,
}

impl At {
    /// The version of what is there now.
    fn version(&self) -> Option<Version> {
        let item = self.item.as_ref()?;
        match stamp_of(item) {
            Some(stamp) if stamp.digest == digest(item) => Some(stamp.version),
            _ => self.written,
        }
    }
}

/// One key in the whole group.
#[derive(Debug, Clone, Default)]
struct Truth {
    /// The highest version of an application's write, and what that left.
    last: Option<(Version, Option<Value>)>,
    /// All contents that applications wrote, in order.
    contents: Vec<Value>,
    /// The versions of each content.
    versions: HashMap<Digest, BTreeSet<Version>>,
    deletes: BTreeSet<Version>,
    tombstone: Option<Version>,
}

pub(in crate::sim) struct Group {
    court: Court,
    members: Vec<Member>,
    keys: BTreeMap<String, Truth>,
    checkpoints: Checkpoints,
    writes: u64,
}

/// One write to a member that changed something.
struct Changed<'a> {
    member: usize,
    key: &'a str,
    before: Option<&'a Value>,
    after: Option<&'a Value>,
}

impl Group {
    /// A judge of these members, whose streams' clocks are wrong by so many seconds.
    pub(in crate::sim) fn new(
        court: Court,
        members: &[String],
        peers: &[Vec<(String, String)>],
        clocks: &[i64],
    ) -> Self {
        let each = members.iter().zip(peers).zip(clocks).enumerate();
        let members = each.map(|(index, ((table, peers), wrong_by))| {
            let mut stream = Stream::new(table, index + 1, peers);
            stream.clock_off_ms = wrong_by * 1000;
            Member { stream, keys: BTreeMap::new() }
        });
        Self {
            court,
            members: members.collect(),
            keys: BTreeMap::new(),
            checkpoints: Checkpoints::default(),
            writes: 0,
        }
    }

    fn item(&self, member: usize, key: &str) -> Option<Value> {
        self.court.item(&self.members[member].stream.table, &json!({ "id": { "S": key } }))
    }

    /// The member that a request writes to.
    fn member(&self, request: &Request) -> Option<usize> {
        let wrote = request.is_member_write();
        self.members.iter().position(|member| wrote && member.stream.arn == request.table())
    }

    /// Takes a change down, whoever wrote it, with the record that came of it.
    fn take_down(&mut self, changed: &Changed<'_>, wrote: Wrote) -> Option<Record> {
        let Changed { member, key, before, after } = *changed;
        let stamps = [before, after].into_iter().flatten().filter_map(stamp_of);
        let stream = &mut self.members[member].stream;
        let taken = stream.take_down(&self.court.sandbox, key, wrote, stamps);
        let truth = self.keys.entry(key.to_owned()).or_default();
        let at = self.members[member].keys.entry(key.to_owned()).or_default();
        at.item = after.cloned();
        at.highest = at.highest.max(after.and_then(stamp_of).map(|stamp| stamp.version));
        if after.is_none() {
            at.deleted = at.deleted.max(truth.tombstone);
        }
        let Some((_, record)) = taken else {
            self.court.fail(&format!("a change of {key} left no record"));
            return None;
        };
        let version = record.version;
        match wrote {
            Wrote::Echo => return Some(record),
            Wrote::Put => {
                let content = after.map(content_of).unwrap_or_default();
                truth.versions.entry(digest(&content)).or_default().insert(version);
                truth.contents.retain(|known| *known != content);
                truth.contents.push(content);
            }
            Wrote::Delete => {
                truth.deletes.insert(version);
            }
        }
        at.written = Some(version);
        if truth.last.as_ref().is_none_or(|(last, _)| *last < version) {
            truth.last = Some((version, after.map(content_of)));
        }
        self.court.owed += self.members.len() as u64 - 1;
        Some(record)
    }

    /// Judges a write of ours that changed something.
    fn ours(&mut self, changed: &Changed<'_>) {
        let Changed { member, key, before, after } = *changed;
        let about = format!("{key} at s{member}");
        let stamp = |item: Option<&Value>| item.and_then(stamp_of);
        let (old, new) = (stamp(before), stamp(after));
        self.court.note(&format!("   {about}: {} -> {}", say(before), say(after)));
        let version = |stamp: Option<Stamp>| stamp.map(|stamp| stamp.version);
        self.court.rule(&about, invariants::versions_never_fall(version(old), version(new)));
        let truth = self.keys.entry(key.to_owned()).or_default();
        match new {
            None if after.is_some() => self.court.fail(&format!("{about}: no stamp")),
            None => {}
            Some(stamp) => {
                let of = match stamp.mark {
                    Mark::Put => truth.versions.get(&stamp.digest),
                    Mark::Deleted => Some(&truth.deletes),
                };
                let known = of.and_then(|of| of.get(&stamp.version).or(of.last())).copied();
                let verdict = known.map(|known| invariants::one_version_per_record(known, stamp.version));
                match verdict {
                    Some(verdict) => self.court.rule(&about, verdict),
                    None => self.court.fail(&format!("{about}: content that nobody wrote")),
                }
            }
        }
        self.take_down(changed, Wrote::Echo);
    }

    fn raised(&mut self, key: &str, version: Option<Version>) {
        let truth = self.keys.entry(key.to_owned()).or_default();
        if version < truth.tombstone {
            self.court.fail(&format!("the tombstone of {key} fell"));
        }
        if !version.is_some_and(|version| truth.deletes.contains(&version)) {
            self.court.fail(&format!("the tombstone of {key} is {}, which no delete had", show(version)));
        }
        truth.tombstone = version;
        for member in &mut self.members {
            let at = member.keys.entry(key.to_owned()).or_default();
            if at.item.is_none() {
                at.deleted = at.deleted.max(version);
            }
        }
    }

    /// What became of a record at a peer.
    fn fate(&self, peer: &str, record: &Record) -> Fate {
        let number = peer.strip_prefix('s').and_then(|number| number.parse::<usize>().ok());
        let at = number.and_then(|number| self.members.get(number)?.keys.get(&record.key));
        let at = at.cloned().unwrap_or_default();
        let tombstone = self.keys.get(&record.key).and_then(|truth| truth.tombstone);
        let reached = |mark: Option<Version>| mark.is_some_and(|mark| mark >= record.version);
        match record.wrote {
            // Whether something was to be done about it is seen at the end.
            Wrote::Echo => Fate::Skipped,
            Wrote::Put if reached(at.highest) => Fate::Applied,
            Wrote::Put if reached(tombstone) => Fate::Superseded,
            Wrote::Delete if reached(tombstone) && reached(at.deleted) => Fate::Applied,
            // A newer delete, which its own lane brings to every member.
            Wrote::Delete if tombstone.is_some_and(|tombstone| tombstone > record.version) => {
                Fate::Superseded
            }
            Wrote::Delete if reached(tombstone) && reached(at.highest) => Fate::Superseded,
            Wrote::Put | Wrote::Delete => Fate::Open,
        }
    }

    fn checkpoint(&mut self, lease: &Value) {
        let Some(place) = lease["pk"]["S"].as_str() else { return };
        let route = |index: &usize| place.starts_with(&format!("lease#g/s{index}#"));
        let Some(member) = (0..self.members.len()).find(route) else { return };
        let mut checkpoints = std::mem::take(&mut self.checkpoints);
        let wrong = checkpoints.judge(
            &self.members[member].stream,
            lease,
            |peer, record| self.fate(peer, record),
            |_, record| record.version,
        );
        self.checkpoints = checkpoints;
        wrong.iter().for_each(|wrong| self.court.fail(wrong));
    }

    /// Where members have something else than what was written last.
    fn differences(&self) -> Vec<String> {
        let mut differences = Vec::new();
        for (key, truth) in &self.keys {
            let Some((last, content)) = &truth.last else { continue };
            for (index, member) in self.members.iter().enumerate() {
                let at = member.keys.get(key).cloned().unwrap_or_default();
                let about = format!("{key} at s{index}");
                let expected = content.as_ref().map(|_| *last);
                let verdicts = [
                    invariants::no_lost_update(expected, at.version()),
                    invariants::no_resurrection(at.version(), truth.tombstone),
                ];
                let violations = verdicts.into_iter().filter_map(Result::err);
                differences.extend(violations.map(|violation| format!("{violation} ({about})")));
                if at.item.as_ref().map(content_of) != *content {
                    differences.push(format!("{about} has another content than was written last"));
                }
                if at.item.as_ref().and_then(stamp_of).is_some_and(|stamp| stamp.mark == Mark::Deleted) {
                    differences.push(format!("{about} is marked as being deleted"));
                }
            }
        }
        differences
    }
}

impl Judge for Group {
    fn court(&self) -> &Court {
        &self.court
    }

    fn court_mut(&mut self) -> &mut Court {
        &mut self.court
    }

    fn write(&mut self, source: usize, key: usize, act: Act) {
        self.writes += 1;
        let (member, number, key) = (source, self.writes, self.court.key(key));
        let table = self.members[member].stream.table.clone();
        let before = self.item(member, &key);
        let new = json!({ "id": { "S": key }, "v": { "N": number.to_string() } });
        let put = |item: Value| json!({ "TableName": table.table, "Item": item });
        let (operation, body) = match act {
            Act::Put | Act::PutLarge => ("PutItem", put(new)),
            Act::BatchPut => {
                let request = json!({ "PutRequest": { "Item": new } });
                ("BatchWriteItem", json!({ "RequestItems": { (table.table.as_str()): [request] } }))
            }
            Act::TransactPut => ("TransactWriteItems", json!({ "TransactItems": [{ "Put": put(new) }] })),
            Act::Delete => ("DeleteItem", json!({ "TableName": table.table, "Key": { "id": { "S": key } } })),
            Act::Update => {
                let mut item = before.clone().unwrap_or(new);
                item[FIELDS[usize::from(number % 3 == 0)]] = json!({ "N": number.to_string() });
                ("UpdateItem", update(&table.table, &item))
            }
            Act::Back(before) => {
                let contents = self.keys.get(&key).map_or(&[][..], |truth| &truth.contents);
                let item = contents.iter().rev().nth(before).cloned().unwrap_or(new);
                ("UpdateItem", update(&table.table, &item))
            }
            Act::Read => {
                self.members[member].keys.entry(key).or_default().read = before;
                return;
            }
            Act::WriteBack => {
                let read = self.members[member].keys.get(&key).and_then(|at| at.read.clone());
                let mut item = read.unwrap_or_else(|| new.clone());
                item["v"] = new["v"].clone();
                ("PutItem", put(item))
            }
        };
        self.court.call(&table, operation, body);
        let after = self.item(member, &key);
        let removes = |mark: Stamp| mark.mark == Mark::Deleted && after.is_none();
        let wrote = match &after {
            Some(_) => Wrote::Put,
            None if before.as_ref().and_then(stamp_of).is_some_and(removes) => Wrote::Echo,
            None => Wrote::Delete,
        };
        let (before, after) = (before.as_ref(), after.as_ref());
        let changed = Changed { member, key: &key, before, after };
        let record = if before == after { None } else { self.take_down(&changed, wrote) };
        let version = show(record.map(|record| record.version));
        let (before, after) = (say(before), say(after));
        self.court.note(&format!("app {act:?} s{member} {key} #{number}: {version}: {before} -> {after}"));
    }

    fn before(&self, request: &Request) -> Option<Value> {
        let member = self.member(request)?;
        self.item(member, request.key()["id"]["S"].as_str()?)
    }

    fn landed(&mut self, request: &Request, before: Option<Value>) {
        if let Some(member) = self.member(request) {
            let key = request.key()["id"]["S"].as_str().unwrap_or_default();
            let after = self.item(member, key);
            if before != after {
                self.ours(&Changed { member, key, before: before.as_ref(), after: after.as_ref() });
            }
        }
        for row in self.court.state_changed(request) {
            match self.court.tombstone(&row) {
                Some((scope, key, version)) if scope == SCOPE => self.raised(&key, version),
                Some((scope, ..)) => self.court.fail(&format!("a tombstone of {scope}")),
                None => {}
            }
            if row["pk"]["S"].as_str().is_some_and(|place| place.starts_with("dead#")) {
                self.court.fail(&format!("a dead letter, though every member can take it: {row}"));
            }
            self.checkpoint(&row);
        }
    }

    fn resharded(&mut self, source: usize) {
        self.members[source].stream.look(&self.court.sandbox);
    }

    fn age(&mut self, _: usize, _: Option<&str>) {
        self.court.fail("this judge knows of nothing that is lost");
    }

    fn stops_at_gaps(&mut self, _: bool) {}

    fn settled_shards(&self, source: usize) -> Vec<String> {
        self.checkpoints.shards(&self.court.sandbox, &self.members[source].stream).0
    }

    fn begun_shards(&self, _: usize) -> Vec<String> {
        Vec::new()
    }

    fn caught_up(&self) -> bool {
        let open = |member: &Member| self.checkpoints.shards(&self.court.sandbox, &member.stream).1;
        self.members.iter().all(|member| open(member).is_empty()) && self.differences().is_empty()
    }

    fn conclude(&mut self) {
        for member in &self.members {
            let kept = self.court.sandbox.items(&member.stream.arn).unwrap();
            let mut known: Vec<Value> = member.keys.values().filter_map(|at| at.item.clone()).collect();
            known.sort_by_cached_key(Value::to_string);
            assert_eq!(kept, known, "the oracle knows the members");
        }
        let mut wrong = self.differences();
        for member in &self.members {
            let (_, open) = self.checkpoints.shards(&self.court.sandbox, &member.stream);
            wrong.extend(open.iter().map(|shard| format!("shard {shard} is not done")));
        }
        wrong.extend(self.court.state_rows("gaps#").map(|gap| format!("nothing was lost, but a gap: {gap}")));
        wrong.iter().for_each(|wrong| self.court.fail(wrong));
    }
}

/// An update after which an item has these contents.
fn update(table: &str, item: &Value) -> Value {
    let (set, removed): (Vec<&str>, Vec<&str>) = FIELDS.iter().partition(|field| item.get(field).is_some());
    let sets: Vec<String> = set.iter().map(|field| format!("{field} = :{field}")).collect();
    let mut expression = format!("SET {}", sets.join(", "));
    if !removed.is_empty() {
        expression += &format!(" REMOVE {}", removed.join(", "));
    }
    let values: Value = set.iter().map(|field| (format!(":{field}"), item[field].clone())).collect();
    json!({ "TableName": table, "Key": { "id": item["id"] }, "UpdateExpression": expression,
        "ExpressionAttributeValues": values })
}

fn content_of(item: &Value) -> Value {
    let mut content = item.clone();
    if let Some(content) = content.as_object_mut() {
        content.remove(STAMP);
    }
    content
}

/// The digest of an item's content.
fn digest(item: &Value) -> Digest {
    let attributes = item.as_object().into_iter().flatten().filter(|(name, _)| *name != STAMP);
    let typed = |value: &Value| match (value["S"].as_str(), value["N"].as_str()) {
        (Some(text), _) => AttributeValue::S(text.to_owned()),
        (_, Some(number)) => AttributeValue::N(number.to_owned()),
        _ => AttributeValue::Null(true),
    };
    Item(attributes.map(|(name, value)| (name.clone(), typed(value))).collect()).digest(None)
}

/// An item for the log.
fn say(item: Option<&Value>) -> String {
    let Some(item) = item else { return "nothing".to_owned() };
    let fields = FIELDS.iter().filter_map(|field| Some(format!("{field}{}", item[field]["N"].as_str()?)));
    let content = fields.collect::<Vec<_>>().join(" ");
    match stamp_of(item) {
        None => format!("[{content}]"),
        Some(stamp) => {
            let mark = if stamp.mark == Mark::Put { 'p' } else { 'd' };
            let clean = if stamp.digest == digest(item) { "" } else { " dirty" };
            format!("[{content} {}.{mark}{clean}]", stamp.version)
        }
    }
}
