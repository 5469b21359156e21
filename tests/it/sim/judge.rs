//! The judge: what was really written at the sources, and whether what the workers do about it is right.
//!
//! An oracle of its own: it writes as the application does, takes down every record that comes of it with the
//! version that the protocol gives it, and looks at the members and the state table beside the workers. It asks
//! the named predicates at every write to a peer, every tombstone and every checkpoint, and at the end.

use super::plan::Act;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use serde_json::{Value, json};
use shardwalker::invariants::{self, Fate, Verdict};
use shardwalker::item::{Digest, Item, Key};
use shardwalker::sandbox::Sandbox;
use shardwalker::sandbox::arn::Arn;
use shardwalker::version::{Hlc, Stamp, Version};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use tokio::time::Instant;

pub(super) const STATE: &str = "state";
const STAMP: &str = "shardwalker";
/// How long records stay in a stream.
const RETENTION_MS: u64 = 24 * 3_600_000;
/// With its other attributes an item may have 400 KB, but not with a stamp.
const LARGE: usize = 400 * 1024 - 50;

/// A request as the judge reads it.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) operation: String,
    pub(super) body: Value,
}

impl Request {
    pub(super) fn of(request: &HttpRequest) -> Self {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let body = request.body().bytes().and_then(|bytes| serde_json::from_slice(bytes).ok());
        Self {
            operation: target.rsplit('.').next().unwrap_or_default().to_owned(),
            body: body.unwrap_or_default(),
        }
    }

    fn table(&self) -> &str {
        self.body["TableName"].as_str().unwrap_or_default()
    }

    fn key(&self) -> &Value {
        if self.operation == "PutItem" { &self.body["Item"] } else { &self.body["Key"] }
    }

    /// Members are named by ARNs, the state table by its name.
    pub(super) fn is_member_write(&self) -> bool {
        matches!(self.operation.as_str(), "PutItem" | "UpdateItem" | "DeleteItem")
            && self.table().starts_with("arn:")
    }

    /// A put that takes effect only where there is no item.
    pub(super) fn is_creation(&self) -> bool {
        self.is_member_write() && self.body["ConditionExpression"] == "attribute_not_exists(#pk)"
    }

    /// A change of a lease that must be its holder's.
    pub(super) fn is_lease_change(&self) -> bool {
        self.operation == "UpdateItem" && self.partition().starts_with("lease#")
    }

    fn partition(&self) -> &str {
        self.key()["pk"]["S"].as_str().unwrap_or_default()
    }

    fn about(&self) -> String {
        let key = self.key();
        let names = [&key["id"]["S"], &key["pk"]["S"], &key["sk"]["S"]];
        let names: Vec<&str> = names.into_iter().filter_map(Value::as_str).collect();
        let table = self.table().rsplit('/').next().unwrap_or_default();
        format!("{table} {} {}", names.join("/"), self.body.to_string().len())
    }
}

/// Everything that was written to one source.
struct Source {
    arn: String,
    table: Arn,
    /// What every key has now.
    items: BTreeMap<String, Value>,
    /// The version of every key's last record, and whether that put it.
    last: BTreeMap<String, (Version, bool)>,
    shards: BTreeMap<String, Shard>,
    /// The version of each write, by the number that is in its content.
    versions: BTreeMap<u64, Version>,
    may_have_gaps: bool,
    must_have_gaps: bool,
}

#[derive(Default)]
struct Shard {
    parent: Option<String>,
    records: Vec<Record>,
}

#[derive(Debug, Clone)]
struct Record {
    sequence: u128,
    key: String,
    version: Version,
    put: bool,
    created_ms: u64,
    /// It aged out before every peer had it, as far as the leases say.
    lost: bool,
}

/// One peer, as its route's lanes have left it.
struct Peer {
    name: String,
    arn: String,
    table: Arn,
    route: usize,
    keys: BTreeMap<String, At>,
}

/// One key at one peer.
#[derive(Debug, Clone, Default)]
struct At {
    present: bool,
    /// The highest version that it ever had.
    highest: Option<Version>,
    tombstone: Option<Version>,
    /// There was no item when the tombstone was this.
    deleted: Option<Version>,
    /// The records that are dead letters.
    letters: BTreeSet<u128>,
}

impl At {
    fn fate(&self, record: &Record) -> Fate {
        let reached = |mark: Option<Version>| mark.is_some_and(|mark| mark >= record.version);
        match record.put {
            _ if self.letters.contains(&record.sequence) => Fate::Dead,
            true if reached(self.highest) => Fate::Applied,
            true if reached(self.tombstone) => Fate::Superseded,
            false if reached(self.deleted) => Fate::Applied,
            false if self.highest.is_some_and(|highest| highest > record.version) => Fate::Superseded,
            _ if record.lost => Fate::Lost,
            _ => Fate::Open,
        }
    }
}

/// How far a lane is, as its lease says.
#[derive(Debug, Clone, Copy, Default)]
struct Checkpoint {
    sequence: Option<u128>,
    done: bool,
    /// So many records were judged.
    judged: usize,
}

pub(super) struct Judge {
    sandbox: Sandbox,
    home: (String, String),
    begun: Instant,
    sources: Vec<Source>,
    peers: Vec<Peer>,
    digests: HashMap<String, String>,
    /// Keys with a large write: only they may have dead letters.
    large: BTreeSet<String>,
    checkpoints: BTreeMap<(String, String), Checkpoint>,
    writes: u64,
    /// Requests that would write to a member.
    pub(super) requests: u64,
    pub(super) landed: u64,
    pub(super) log: Vec<String>,
    pub(super) violation: Option<String>,
}

impl Judge {
    pub(super) fn new(sandbox: Sandbox, home: (&str, &str)) -> Self {
        Self {
            sandbox,
            home: (home.0.to_owned(), home.1.to_owned()),
            begun: Instant::now(),
            sources: Vec::new(),
            peers: Vec::new(),
            digests: HashMap::new(),
            large: BTreeSet::new(),
            checkpoints: BTreeMap::new(),
            writes: 0,
            requests: 0,
            landed: 0,
            log: Vec::new(),
            violation: None,
        }
    }

    pub(super) fn route(&mut self, source: &str, peers: &[(String, String)]) {
        let route = self.sources.len();
        self.sources.push(Source {
            arn: source.to_owned(),
            table: Arn::parse(source).unwrap(),
            items: BTreeMap::new(),
            last: BTreeMap::new(),
            shards: BTreeMap::new(),
            versions: BTreeMap::new(),
            may_have_gaps: false,
            must_have_gaps: false,
        });
        for (name, arn) in peers {
            let table = Arn::parse(arn).unwrap();
            self.peers.push(Peer {
                name: name.clone(),
                arn: arn.clone(),
                table,
                route,
                keys: BTreeMap::new(),
            });
        }
    }

    pub(super) fn note(&mut self, what: &str) {
        let line = format!("{:>8} {what}", self.begun.elapsed().as_millis());
        self.log.push(line);
    }

    fn rule(&mut self, about: &str, verdict: Verdict) {
        if let Err(violation) = verdict {
            self.fail(&format!("{violation} ({about})"));
        }
    }

    fn fail(&mut self, what: &str) {
        self.note(&format!("!! {what}"));
        self.violation.get_or_insert_with(|| what.to_owned());
    }

    // ---- the application ------------------------------------------------------------------------------------

    /// Writes as an application at the source, and takes down the record that comes of it.
    pub(super) fn write(&mut self, route: usize, key: usize, act: Act) {
        self.writes += 1;
        let (number, key) = (self.writes, format!("k{key}"));
        let id = json!({ "S": key });
        let digest =
            Key::new(Item(HashMap::from([("id".to_owned(), AttributeValue::S(key.clone()))]))).digest();
        self.digests.insert(digest.to_string(), key.clone());
        let value = json!({ "N": number.to_string() });
        if act == Act::PutLarge {
            self.large.insert(key.clone());
        }
        let source = &mut self.sources[route];
        let table = source.table.table.clone();
        let (operation, body) = match act {
            Act::Put | Act::PutLarge => {
                let mut item = json!({ "id": id, "v": value, "put": value });
                if act == Act::PutLarge {
                    item["large"] = json!({ "S": "x".repeat(LARGE) });
                }
                source.items.insert(key.clone(), item.clone());
                ("PutItem", json!({ "TableName": table, "Item": item }))
            }
            Act::Update => {
                let item = source.items.entry(key.clone()).or_insert_with(|| json!({ "id": id }));
                item["v"] = value.clone();
                item["updated"] = value.clone();
                let update = json!({ "TableName": table, "Key": { "id": id },
                    "UpdateExpression": "SET v = :v, updated = :v", "ExpressionAttributeValues": { ":v": value } });
                ("UpdateItem", update)
            }
            Act::Delete => {
                source.items.remove(&key);
                ("DeleteItem", json!({ "TableName": table, "Key": { "id": id } }))
            }
        };
        let (account, region) = (source.table.account.clone(), source.table.region.clone());
        self.sandbox.call(&account, &region, operation, body).unwrap();
        let what = match self.take_down(route, number, &key, act != Act::Delete) {
            Some(record) => format!("{} in {}", record.1.version, record.0),
            None => "no record".to_owned(),
        };
        self.note(&format!("app {operation} {route} {key} #{number}: {what}"));
    }

    fn take_down(&mut self, route: usize, number: u64, key: &str, put: bool) -> Option<(String, Record)> {
        let created_ms = self.sandbox.clock().now_ms();
        let created = created_ms / 1000 * 1000;
        let source = &mut self.sources[route];
        let shards = self.sandbox.shards(&source.arn).unwrap();
        for shard in &shards {
            let known = source.shards.entry(shard.id.clone()).or_default();
            known.parent.clone_from(&shard.parent);
        }
        let new = shards.into_iter().find_map(|shard| {
            let newest: u128 = shard.newest?.parse().unwrap();
            let last = source.shards[&shard.id].records.last().map(|record| record.sequence);
            (last.is_none_or(|last| last < newest)).then_some((shard.id, newest))
        });
        let (shard, sequence) = new?;
        let hlc = source.hlc(&shard).next().max(Hlc::from_millis(created));
        let version = Version::new(hlc, u8::try_from(route).unwrap() + 1);
        let record = Record { sequence, key: key.to_owned(), version, put, created_ms, lost: false };
        source.shards.get_mut(&shard)?.records.push(record.clone());
        source.last.insert(key.to_owned(), (version, put));
        source.versions.insert(number, version);
        Some((shard, record))
    }

    // ---- the workers ----------------------------------------------------------------------------------------

    /// What a request will write over.
    pub(super) fn before(&self, request: &Request) -> Option<Value> {
        self.peer(request).and_then(|peer| self.item(&self.peers[peer].table, request.key()))
    }

    pub(super) fn landed(
        &mut self,
        worker: usize,
        request: &Request,
        before: Option<Value>,
        result: &Result<HttpResponse, ConnectorError>,
    ) {
        self.landed += 1;
        let outcome = match result {
            Ok(response) => {
                let bytes = response.body().bytes().unwrap_or_default();
                let body: Value = serde_json::from_slice(bytes).unwrap_or_default();
                let kind = body["__type"].as_str().and_then(|kind| kind.rsplit('#').next());
                format!("{} {}", kind.unwrap_or("ok"), bytes.len())
            }
            Err(_) => "lost".to_owned(),
        };
        self.note(&format!("w{worker} {} {} -> {outcome}", request.operation, request.about()));
        if request.is_member_write() {
            self.requests += 1;
            if self.sources.iter().any(|source| source.arn == request.table()) {
                self.rule("a source", invariants::no_echo(1));
            }
        }
        if let Some(peer) = self.peer(request) {
            let after = self.item(&self.peers[peer].table, request.key());
            if before != after {
                self.changed(peer, request, before.as_ref(), after.as_ref());
            }
        }
        match request.operation.as_str() {
            "UpdateItem" if !request.is_member_write() => self.state_changed(request),
            // Letters are kept with the count of their key, in one transaction, whose answer may be lost.
            "TransactWriteItems" => {
                for act in request.body["TransactItems"].as_array().into_iter().flatten() {
                    if let Some(row) = self.state_row(&act["Put"]["Item"]) {
                        self.letter(&row);
                    }
                }
            }
            _ => {}
        }
    }

    fn peer(&self, request: &Request) -> Option<usize> {
        let wrote = request.is_member_write();
        self.peers.iter().position(|peer| wrote && peer.arn == request.table())
    }

    fn item(&self, table: &Arn, item: &Value) -> Option<Value> {
        let body = json!({ "TableName": table.table, "Key": { "id": item["id"] }, "ConsistentRead": true });
        let answer = self.sandbox.call(&table.account, &table.region, "GetItem", body).unwrap();
        answer.get("Item").cloned()
    }

    fn changed(&mut self, peer: usize, request: &Request, before: Option<&Value>, after: Option<&Value>) {
        let key = request.key()["id"]["S"].as_str().unwrap_or_default().to_owned();
        let version = |item: Option<&Value>| item.and_then(stamp_of).map(|stamp| stamp.version);
        let (old, new) = (version(before), version(after));
        let about = format!("{key} at {}", self.peers[peer].name);
        self.note(&format!("   {about}: {} -> {}", show(old), show(new)));
        self.rule(&about, invariants::versions_never_fall(old, new));
        if let Some(after) = after {
            let source = &self.sources[self.peers[peer].route];
            let number: Option<u64> = after["v"]["N"].as_str().and_then(|number| number.parse().ok());
            let record = number.and_then(|number| source.versions.get(&number).copied());
            match (record, new) {
                (Some(record), Some(new)) => {
                    self.rule(&about, invariants::one_version_per_record(record, new));
                }
                _ => self.fail(&format!("{about}: no stamp, or content that nobody wrote")),
            }
        }
        let at = self.peers[peer].keys.entry(key).or_default();
        at.present = after.is_some();
        at.highest = at.highest.max(new);
        if !at.present {
            at.deleted = at.deleted.max(at.tombstone);
        }
    }

    fn state_changed(&mut self, request: &Request) {
        let Some(row) = &self.state_row(&request.body["Key"]) else { return };
        let partition = request.partition().to_owned();
        if let Some(tombstone) = partition.strip_prefix("ledger#") {
            self.raised(tombstone, row);
        } else if partition.starts_with("lease#") {
            self.checkpoint(row);
        }
    }

    /// The row that has the key of this one.
    fn state_row(&self, row: &Value) -> Option<Value> {
        let (account, region) = &self.home;
        let key = json!({ "pk": row["pk"], "sk": row["sk"] });
        let body = json!({ "TableName": STATE, "Key": key, "ConsistentRead": true });
        let answer = self.sandbox.call(account, region, "GetItem", body).ok()?;
        answer.get("Item").cloned()
    }

    fn raised(&mut self, tombstone: &str, row: &Value) {
        let Some((name, digest)) = tombstone.rsplit_once('#') else { return };
        let Some(key) = self.digests.get(digest).cloned() else { return };
        let version: Option<Version> = row["version"]["S"].as_str().and_then(|text| text.parse().ok());
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.name == name) else { return };
        let at = peer.keys.entry(key).or_default();
        let fell = version < at.tombstone;
        at.tombstone = version;
        if !at.present {
            at.deleted = at.deleted.max(version);
        }
        if fell {
            self.fail("a tombstone fell");
        }
    }

    /// A dead letter; its first row makes it one.
    fn letter(&mut self, row: &Value) {
        let place = row["pk"]["S"].as_str().filter(|place| place.starts_with("dead#"));
        let (Some(place), Some(letter)) = (place, row["sk"]["S"].as_str()) else { return };
        let Some(sequence) = row["sequence"]["S"].as_str().and_then(|text| text.parse().ok()) else { return };
        let digest = letter.split('#').next().unwrap_or_default();
        let Some(key) = self.digests.get(digest).cloned() else { return };
        if !self.large.contains(&key) {
            self.fail(&format!("a dead letter of {key}, which every peer can take"));
        }
        let name = place.rsplit('#').next().unwrap_or_default();
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.name == name) {
            peer.keys.entry(key).or_default().letters.insert(sequence);
        }
    }

    /// Judges what a lease says is done.
    fn checkpoint(&mut self, row: &Value) {
        let Some(shard) = row["shard"]["S"].as_str() else { return };
        let known = self.peers.iter().find(|peer| row["peers"]["M"].get(&peer.name).is_some());
        let Some(route) = known.map(|peer| peer.route) else { return };
        for (name, position) in row["peers"]["M"].as_object().into_iter().flatten() {
            let position = &position["M"];
            let sequence: Option<u128> =
                position["sequence"]["S"].as_str().map(|sequence| sequence.parse().unwrap());
            let done = position["done"]["BOOL"].as_bool().unwrap_or_default();
            let saved = self.checkpoints.get(&(shard.to_owned(), name.clone())).copied().unwrap_or_default();
            let about = format!("{shard} for {name}");
            if sequence < saved.sequence || (saved.done && !done) {
                self.fail(&format!("a checkpoint went back ({about})"));
            }
            let records = self.sources[route].records(shard);
            let passed = records.partition_point(|record| done || Some(record.sequence) <= sequence);
            let Some(peer) = self.peers.iter().find(|peer| peer.name == *name) else { continue };
            let fate = |record: &Record| {
                let at = peer.keys.get(&record.key).cloned().unwrap_or_default();
                (format!("{} ({}, {})", record.sequence, record.key, record.version), at.fate(record))
            };
            let fates: Vec<_> = records[saved.judged.min(passed)..passed].iter().map(fate).collect();
            let verdict = invariants::frontier_is_contiguous(fates);
            let at = records.iter().find(|record| Some(record.sequence) == sequence).map(|r| r.version);
            let hlc = position["hlc"]["S"].as_str().and_then(|text| text.parse::<Hlc>().ok());
            self.rule(&about, verdict);
            if let (Some(version), Some(hlc)) = (at, hlc) {
                let written = Version::new(hlc, version.member);
                self.rule(&about, invariants::one_version_per_record(version, written));
            }
            let saved = Checkpoint { sequence, done, judged: passed };
            self.checkpoints.insert((shard.to_owned(), name.clone()), saved);
        }
    }

    /// Time has passed: records that were not done before have aged out.
    pub(super) fn age(&mut self) {
        let horizon = self.sandbox.clock().now_ms() - RETENTION_MS;
        // A route begins with a row for its stream; one for a table is written before that.
        let is_start = |row: &Value| row["sk"]["S"].as_str().is_some_and(|sk| sk.starts_with("stream#"));
        for route in 0..self.sources.len() {
            let own = format!("route#r{route}");
            let begun = self.state_rows("route#").any(|row| row["pk"]["S"] == own.as_str() && is_start(&row));
            let names: Vec<String> =
                self.peers.iter().filter(|peer| peer.route == route).map(|peer| peer.name.clone()).collect();
            let source = &mut self.sources[route];
            for (id, shard) in &mut source.shards {
                for record in shard.records.iter_mut().filter(|record| record.created_ms <= horizon) {
                    let saved = |name: &String| self.checkpoints.get(&(id.clone(), name.clone())).copied();
                    record.lost = !names
                        .iter()
                        .map(saved)
                        .map(Option::unwrap_or_default)
                        .all(|saved| saved.done || saved.sequence >= Some(record.sequence));
                    // What was there before the route began was never promised.
                    source.must_have_gaps |= record.lost && begun;
                }
            }
            source.may_have_gaps = true;
        }
    }

    fn state_rows(&self, prefix: &'static str) -> impl Iterator<Item = Value> + use<> {
        let (account, region) = &self.home;
        let state = format!("arn:aws:dynamodb:{region}:{account}:table/{STATE}");
        let rows = self.sandbox.items(&state).unwrap_or_default();
        rows.into_iter().filter(move |row| row["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with(prefix)))
    }

    // ---- the end --------------------------------------------------------------------------------------------

    /// Whether every record of a shard is done at every peer of its route, as far as the leases say.
    fn settled(&self, route: usize, shard: &str, open: bool) -> bool {
        let kept = self.sources[route].records(shard).iter().rfind(|record| !record.lost);
        let last = kept.map(|record| record.sequence);
        self.peers.iter().filter(|peer| peer.route == route).all(|peer| {
            let saved = self.checkpoints.get(&(shard.to_owned(), peer.name.clone())).copied();
            let saved = saved.unwrap_or_default();
            saved.done || (open && saved.sequence >= last)
        })
    }

    /// The shards of a source whose records are all done.
    pub(super) fn settled_shards(&self, route: usize) -> Vec<String> {
        let shards = self.sandbox.shards(&self.sources[route].arn).unwrap();
        let settled = shards.into_iter().filter(|shard| self.settled(route, &shard.id, shard.open));
        settled.map(|shard| shard.id).collect()
    }

    /// Whether everything that was written has arrived and is checkpointed.
    pub(super) fn caught_up(&self) -> bool {
        (0..self.sources.len()).all(|route| {
            let shards = self.sandbox.shards(&self.sources[route].arn).unwrap();
            self.settled_shards(route).len() == shards.len() && self.differences(route).is_empty()
        })
    }

    /// Where the peers of a route differ from what was written.
    fn differences(&self, route: usize) -> Vec<String> {
        let source = &self.sources[route];
        let mut differences = Vec::new();
        for peer in self.peers.iter().filter(|peer| peer.route == route) {
            let mut found = BTreeMap::new();
            for mut item in self.sandbox.items(&peer.arn).unwrap() {
                let stamp = stamp_of(&item);
                item.as_object_mut().unwrap().remove(STAMP);
                found.insert(item["id"]["S"].as_str().unwrap_or_default().to_owned(), (item, stamp));
            }
            for (key, (version, put)) in &source.last {
                let last = put.then_some(*version);
                let (item, stamp) = found.remove(key).unzip();
                if peer.keys.get(key).is_some_and(|at| !at.letters.is_empty()) || source.lost(key, *version) {
                    continue;
                }
                let stamp = stamp.flatten();
                let version = stamp.map(|stamp| stamp.version);
                let name = &peer.name;
                if let Err(violation) = invariants::no_lost_update(last, version) {
                    differences.push(format!("{violation} ({key} at {name})"));
                } else if item.as_ref() != source.items.get(key) {
                    differences.push(format!("{key} at {name} has another content than the source"));
                }
                let tombstone = peer.keys.get(key).and_then(|at| at.tombstone);
                if let Err(violation) = invariants::no_resurrection(version, tombstone) {
                    differences.push(format!("{violation} ({key} at {name})"));
                }
            }
            let strange = found.keys();
            differences.extend(strange.map(|key| format!("{key} at {} was never written", peer.name)));
        }
        differences
    }

    /// What is not as it must be when all is quiet.
    pub(super) fn conclude(&mut self) {
        for route in 0..self.sources.len() {
            let kept = self.sandbox.items(&self.sources[route].arn).unwrap();
            let mut written: Vec<Value> = self.sources[route].items.values().cloned().collect();
            written.sort_by_cached_key(Value::to_string);
            assert_eq!(kept, written, "the oracle knows the source");
            for difference in self.differences(route) {
                self.fail(&difference);
            }
            let shards = self.sandbox.shards(&self.sources[route].arn).unwrap();
            for shard in shards {
                if !self.settled(route, &shard.id, shard.open) {
                    self.fail(&format!("shard {} is not done", shard.id));
                }
            }
        }
        for route in 0..self.sources.len() {
            let own = format!("gaps#r{route}");
            let gaps: Vec<Value> =
                self.state_rows("gaps#").filter(|row| row["pk"]["S"] == own.as_str()).collect();
            let source = &self.sources[route];
            if let Some(gap) = gaps.first().filter(|_| !source.may_have_gaps) {
                self.fail(&format!("nothing was lost, but there is a gap: {gap}"));
            } else if gaps.is_empty() && source.must_have_gaps {
                self.fail("records were lost unread, and there is no gap");
            }
        }
    }

    /// A digest of everything that happened, in order.
    pub(super) fn digest(&self) -> Digest {
        let text = self.log.join("\n");
        Item(HashMap::from([("log".to_owned(), AttributeValue::S(text))])).digest(None)
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Source {
    /// What was written to a shard; nothing when no write was seen since it was opened.
    fn records(&self, shard: &str) -> &[Record] {
        self.shards.get(shard).map_or(&[], |known| &known.records)
    }

    /// Whether the record of this version of a key was lost.
    fn lost(&self, key: &str, version: Version) -> bool {
        let mut records = self.shards.values().flat_map(|shard| &shard.records);
        self.may_have_gaps
            && records.any(|record| record.key == key && record.version == version && record.lost)
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

fn stamp_of(item: &Value) -> Option<Stamp> {
    item[STAMP]["S"].as_str().and_then(Stamp::parse)
}

fn show(version: Option<Version>) -> String {
    version.map_or_else(|| "nothing".to_owned(), |version| version.to_string())
}
