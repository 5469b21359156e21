//! The judge of one-way routes: each has a source of its own, and nobody else writes to its peers.

use super::files::{LAKE, files_differ};
use super::stream::{Checkpoints, Record, Stream, Wrote, one_version};
use super::{Court, Judge, Request, STAMP, show, stamp_of};
use crate::sim::plan::Act;
use serde_json::{Value, json};
use shardwalker::invariants::{self, Fate};
use shardwalker::sandbox::arn::Arn;
use shardwalker::version::Version;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// How long records stay in a stream.
const RETENTION_MS: u64 = 24 * 3_600_000;
/// With its other attributes an item may have 400 KB, but not with a stamp.
const LARGE: usize = 400 * 1024 - 50;

struct Source {
    stream: Stream,
    /// What every key has now.
    items: BTreeMap<String, Value>,
    /// The version of every key's last record, and whether that put it.
    last: BTreeMap<String, (Version, bool)>,
    /// The version of each write, by the number that is in its content.
    versions: BTreeMap<u64, Version>,
    may_have_gaps: bool,
}

impl Source {
    /// The lowest version by which a peer may know the record of this version of a key.
    fn least(&self, key: &str, version: Version, peer: &str) -> Version {
        if self.may_have_gaps { self.stream.least(key, version, peer) } else { version }
    }

    /// Whether the record of this version of a key was lost for a peer.
    fn lost(&self, key: &str, version: Version, peer: &str) -> bool {
        let mut records = self.stream.shards.values().flat_map(|shard| &shard.records);
        let is_it = |record: &Record| record.key == key && record.version == version;
        self.may_have_gaps && records.any(|record| is_it(record) && record.lost.contains(peer))
    }
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
    /// What became of a record that has at least this version here.
    fn fate(&self, record: &Record, least: Version) -> Fate {
        let reached = |mark: Option<Version>| mark.is_some_and(|mark| mark >= least);
        let put = record.wrote == Wrote::Put;
        match put {
            _ if self.letters.contains(&record.sequence) => Fate::Dead,
            true if reached(self.highest) => Fate::Applied,
            true if reached(self.tombstone) => Fate::Superseded,
            false if reached(self.deleted) => Fate::Applied,
            false if self.highest.is_some_and(|highest| highest > least) => Fate::Superseded,
            _ => Fate::Open,
        }
    }
}

impl Peer {
    fn fate(&self, record: &Record, source: &Source) -> Fate {
        let least = source.least(&record.key, record.version, &self.name);
        let fate = self.keys.get(&record.key).cloned().unwrap_or_default().fate(record, least);
        if fate == Fate::Open && record.lost.contains(&self.name) { Fate::Lost } else { fate }
    }
}

pub(in crate::sim) struct OneWay {
    court: Court,
    sources: Vec<Source>,
    peers: Vec<Peer>,
    /// Keys with a large write: only they may have dead letters.
    large: BTreeSet<String>,
    checkpoints: Checkpoints,
    writes: u64,
    /// Workers stop at what was lost.
    stops: bool,
    /// Where the files of each route's feed are.
    lake: Option<PathBuf>,
}

impl OneWay {
    pub(in crate::sim) fn new(
        court: Court,
        sources: &[String],
        peers: &[Vec<(String, String)>],
        lake: Option<PathBuf>,
    ) -> Self {
        let routed =
            peers.iter().enumerate().flat_map(|(route, peers)| peers.iter().map(move |peer| (route, peer)));
        let peer = |(route, (name, arn)): (usize, &(String, String))| Peer {
            name: name.clone(),
            arn: arn.clone(),
            table: Arn::parse(arn).unwrap(),
            route,
            keys: BTreeMap::new(),
        };
        let pairs = sources.iter().zip(peers).enumerate();
        let stream = |route: usize, source: &String, peers: &[(String, String)]| {
            let mut stream = Stream::new(source, route + 1, peers);
            stream.peers.extend(lake.iter().map(|_| LAKE.to_owned()));
            stream
        };
        let sources = pairs.map(|(route, (source, peers))| Source {
            stream: stream(route, source, peers),
            items: BTreeMap::new(),
            last: BTreeMap::new(),
            versions: BTreeMap::new(),
            may_have_gaps: false,
        });
        Self {
            court,
            sources: sources.collect(),
            peers: routed.map(peer).collect(),
            large: BTreeSet::new(),
            checkpoints: Checkpoints::default(),
            writes: 0,
            stops: false,
            lake,
        }
    }

    fn take_down(&mut self, route: usize, number: u64, key: &str, wrote: Wrote) -> Option<(String, Record)> {
        let source = &mut self.sources[route];
        let (shard, record) = source.stream.take_down(&self.court.sandbox, key, wrote, [])?;
        self.court.owed += self.peers.iter().filter(|peer| peer.route == route).count() as u64;
        source.last.insert(key.to_owned(), (record.version, wrote == Wrote::Put));
        source.versions.insert(number, record.version);
        Some((shard, record))
    }

    fn peer(&self, request: &Request) -> Option<usize> {
        let wrote = request.is_member_write();
        self.peers.iter().position(|peer| wrote && peer.arn == request.table())
    }

    fn changed(&mut self, peer: usize, request: &Request, before: Option<&Value>, after: Option<&Value>) {
        let key = request.key()["id"]["S"].as_str().unwrap_or_default().to_owned();
        let version = |item: Option<&Value>| item.and_then(stamp_of).map(|stamp| stamp.version);
        let (old, new) = (version(before), version(after));
        let about = format!("{key} at {}", self.peers[peer].name);
        self.court.note(&format!("   {about}: {} -> {}", show(old), show(new)));
        self.court.rule(&about, invariants::versions_never_fall(old, new));
        if let Some(after) = after {
            let source = &self.sources[self.peers[peer].route];
            let number: Option<u64> = after["v"]["N"].as_str().and_then(|number| number.parse().ok());
            let record = number.and_then(|number| source.versions.get(&number).copied());
            match (record, new) {
                (Some(record), Some(new)) => {
                    let least = source.least(&key, record, &self.peers[peer].name);
                    self.court.rule(&about, one_version(record, least, new));
                }
                _ => self.court.fail(&format!("{about}: no stamp, or content that nobody wrote")),
            }
        }
        let at = self.peers[peer].keys.entry(key).or_default();
        at.present = after.is_some();
        at.highest = at.highest.max(new);
        if !at.present {
            at.deleted = at.deleted.max(at.tombstone);
        }
    }

    fn raised(&mut self, name: &str, key: String, version: Option<Version>) {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.name == name) else { return };
        let at = peer.keys.entry(key).or_default();
        let fell = version < at.tombstone;
        at.tombstone = version;
        if !at.present {
            at.deleted = at.deleted.max(version);
        }
        if fell {
            self.court.fail("a tombstone fell");
        }
    }

    /// A dead letter; its first row makes it one.
    fn letter(&mut self, row: &Value) {
        let place = row["pk"]["S"].as_str().filter(|place| place.starts_with("dead#"));
        let (Some(place), Some(letter)) = (place, row["sk"]["S"].as_str()) else { return };
        let Some(sequence) = row["sequence"]["S"].as_str().and_then(|text| text.parse().ok()) else { return };
        let digest = letter.split('#').next().unwrap_or_default();
        let Some(key) = self.court.digests.get(digest).cloned() else { return };
        if !self.large.contains(&key) {
            self.court.fail(&format!("a dead letter of {key}, which every peer can take"));
        }
        let name = place.rsplit('#').next().unwrap_or_default();
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.name == name) {
            peer.keys.entry(key).or_default().letters.insert(sequence);
        }
    }

    /// Judges what a lease says is done.
    fn checkpoint(&mut self, lease: &Value) {
        let known = self.peers.iter().find(|peer| lease["peers"]["M"].get(&peer.name).is_some());
        let Some(route) = known.map(|peer| peer.route) else { return };
        let source = &self.sources[route];
        let least = |name: &str, record: &Record| source.least(&record.key, record.version, name);
        let fate = |name: &str, record: &Record| {
            if name == LAKE {
                // What is in its files is seen in the end.
                return Fate::Applied;
            }
            let peer = self.peers.iter().find(|peer| peer.name == name);
            match peer.map_or(Fate::Open, |peer| peer.fate(record, source)) {
                Fate::Lost if self.stops && !record.early => Fate::Open,
                fate => fate,
            }
        };
        let wrong = self.checkpoints.judge(&source.stream, lease, fate, least);
        wrong.iter().for_each(|wrong| self.court.fail(wrong));
    }

    /// The gaps of a route, as the state table has them.
    fn gaps(&self, route: usize) -> Vec<Value> {
        let own = format!("gaps#r{route}");
        self.court.state_rows("gaps#").filter(|row| row["pk"]["S"] == own.as_str()).collect()
    }

    /// The records of a route that a peer has lost, and that no gap tells of: one of their shard, or, when that aged out
    /// as a whole, of a later one.
    fn silent(&self, route: usize) -> Vec<String> {
        let gaps = self.gaps(route);
        let mut silent = Vec::new();
        for peer in self.peers.iter().filter(|peer| peer.route == route) {
            let source = &self.sources[route];
            let stream = &source.stream;
            for (shard, known) in &stream.shards {
                let of =
                    |gap: &&Value| gap["shard"]["S"].as_str().is_some_and(|at| stream.leads_to(shard, at));
                let tells = |gap: &Value| {
                    let peers = gap["peers"]["SS"].as_array();
                    peers.is_some_and(|peers| peers.iter().any(|name| *name == peer.name.as_str()))
                };
                let kept = gaps.iter().filter(of).any(tells);
                let lost = |record: &&Record| !record.early && peer.fate(record, source) == Fate::Lost;
                let lost = known.records.iter().filter(|_| !kept).find(lost);
                silent.extend(lost.map(|record| {
                    format!("{} of {shard} was lost for {}, and no gap says so", record.sequence, peer.name)
                }));
            }
        }
        silent
    }

    /// Where the peers of a route differ from what was written.
    fn differences(&self, route: usize) -> Vec<String> {
        let source = &self.sources[route];
        let mut differences = Vec::new();
        for peer in self.peers.iter().filter(|peer| peer.route == route) {
            let mut found = BTreeMap::new();
            for mut item in self.court.sandbox.items(&peer.arn).unwrap() {
                let stamp = stamp_of(&item);
                item.as_object_mut().unwrap().remove(STAMP);
                found.insert(item["id"]["S"].as_str().unwrap_or_default().to_owned(), (item, stamp));
            }
            for (key, (version, put)) in &source.last {
                let last = put.then_some(*version);
                let (item, stamp) = found.remove(key).unzip();
                if peer.keys.get(key).is_some_and(|at| !at.letters.is_empty())
                    || source.lost(key, *version, &peer.name)
                {
                    continue;
                }
                let stamp = stamp.flatten();
                let version = stamp.map(|stamp| stamp.version);
                let name = &peer.name;
                let fewer = |found: Version| {
                    last.is_some_and(|last| source.least(key, last, name) <= found && found < last)
                };
                let last = version.filter(|found| fewer(*found)).or(last);
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
}

impl Judge for OneWay {
    fn court(&self) -> &Court {
        &self.court
    }

    fn court_mut(&mut self) -> &mut Court {
        &mut self.court
    }

    fn write(&mut self, source: usize, key: usize, act: Act) {
        self.writes += 1;
        let (route, number, key) = (source, self.writes, self.court.key(key));
        let id = json!({ "S": key });
        let value = json!({ "N": number.to_string() });
        if act == Act::PutLarge {
            self.large.insert(key.clone());
        }
        let source = &mut self.sources[route];
        let table = source.stream.table.clone();
        let (operation, body) = match act {
            Act::Update => {
                let item = source.items.entry(key.clone()).or_insert_with(|| json!({ "id": id }));
                item["v"] = value.clone();
                item["updated"] = value.clone();
                let update = json!({ "TableName": table.table, "Key": { "id": id },
                    "UpdateExpression": "SET v = :v, updated = :v", "ExpressionAttributeValues": { ":v": value } });
                ("UpdateItem", update)
            }
            Act::Delete => {
                source.items.remove(&key);
                ("DeleteItem", json!({ "TableName": table.table, "Key": { "id": id } }))
            }
            // The others tell apart what is on an item beside its content, which nothing is here.
            _ => {
                let mut item = json!({ "id": id, "v": value, "put": value });
                if act == Act::PutLarge {
                    item["large"] = json!({ "S": "x".repeat(LARGE) });
                }
                source.items.insert(key.clone(), item.clone());
                ("PutItem", json!({ "TableName": table.table, "Item": item }))
            }
        };
        self.court.call(&table, operation, body);
        let wrote = if act == Act::Delete { Wrote::Delete } else { Wrote::Put };
        let what = match self.take_down(route, number, &key, wrote) {
            Some((shard, record)) => format!("{} in {shard}", record.version),
            None => "no record".to_owned(),
        };
        self.court.note(&format!("app {operation} {route} {key} #{number}: {what}"));
    }

    fn before(&self, request: &Request) -> Option<Value> {
        self.peer(request).and_then(|peer| self.court.item(&self.peers[peer].table, request.key()))
    }

    fn landed(&mut self, request: &Request, before: Option<Value>) {
        let source = self.sources.iter().any(|source| source.stream.arn == request.table());
        if source && request.is_member_write() {
            self.court.rule("a source", invariants::no_echo(1));
        }
        if let Some(peer) = self.peer(request) {
            let after = self.court.item(&self.peers[peer].table, request.key());
            if before != after {
                self.changed(peer, request, before.as_ref(), after.as_ref());
            }
        }
        for row in self.court.state_changed(request) {
            if let Some((name, key, version)) = self.court.tombstone(&row) {
                self.raised(&name, key, version);
            }
            self.letter(&row);
            self.checkpoint(&row);
        }
    }

    fn resharded(&mut self, source: usize) {
        self.sources[source].stream.look(&self.court.sandbox);
    }

    fn age(&mut self, route: usize, shard: Option<&str>) {
        let horizon = self.court.sandbox.clock().now_ms().saturating_sub(RETENTION_MS);
        // A route begins with a row for its stream; one for a table is written before that.
        let is_start = |row: &Value| row["sk"]["S"].as_str().is_some_and(|sk| sk.starts_with("stream#"));
        let own = format!("route#r{route}");
        let mut rows = self.court.state_rows("route#");
        let begun = rows.any(|row| row["pk"]["S"] == own.as_str() && is_start(&row));
        let source = &mut self.sources[route];
        let peers = &source.stream.peers;
        for (id, known) in &mut source.stream.shards {
            let trimmed = shard == Some(id);
            for record in known.records.iter_mut().filter(|record| trimmed || record.created_ms <= horizon) {
                let lacks = |name: &&String| {
                    let saved = self.checkpoints.of(id, name);
                    !saved.done && saved.sequence < Some(record.sequence)
                };
                record.early |= !begun;
                record.lost.extend(peers.iter().filter(lacks).cloned());
            }
        }
        source.may_have_gaps = true;
    }

    fn stops_at_gaps(&mut self, stops: bool) {
        self.stops = stops;
    }

    fn settled_shards(&self, source: usize) -> Vec<String> {
        self.checkpoints.shards(&self.court.sandbox, &self.sources[source].stream).0
    }

    fn begun_shards(&self, source: usize) -> Vec<String> {
        let stream = &self.sources[source].stream;
        let begun = |shard: &String| {
            stream.peers.iter().all(|peer| self.checkpoints.of(shard, peer).sequence.is_some())
        };
        let shards = self.court.sandbox.shards(&stream.arn).unwrap().into_iter().map(|shard| shard.id);
        shards.filter(begun).collect()
    }

    fn caught_up(&self) -> bool {
        (0..self.sources.len()).all(|route| {
            let stream = &self.sources[route].stream;
            let (_, open) = self.checkpoints.shards(&self.court.sandbox, stream);
            // What was lost must be found, too, and a shard may first have to be taken from a worker that is gone.
            open.is_empty() && self.silent(route).is_empty() && self.differences(route).is_empty()
        })
    }

    fn conclude(&mut self) {
        for route in 0..self.sources.len() {
            let source = &self.sources[route];
            let kept = self.court.sandbox.items(&source.stream.arn).unwrap();
            let mut written: Vec<Value> = source.items.values().cloned().collect();
            written.sort_by_cached_key(Value::to_string);
            assert_eq!(kept, written, "the oracle knows the source");
            for difference in self.differences(route) {
                self.court.fail(&difference);
            }
            let (_, open) = self.checkpoints.shards(&self.court.sandbox, &self.sources[route].stream);
            open.iter().for_each(|shard| self.court.fail(&format!("shard {shard} is not done")));
            let wrong =
                self.lake.as_deref().map(|lake| files_differ(lake, route, &self.sources[route].stream));
            wrong.into_iter().flatten().for_each(|wrong| self.court.fail(&wrong));
        }
        for route in 0..self.sources.len() {
            let gaps = self.gaps(route);
            if let Some(gap) = gaps.first().filter(|_| !self.sources[route].may_have_gaps) {
                self.court.fail(&format!("nothing was lost, but there is a gap: {gap}"));
            }
            self.silent(route).iter().for_each(|lost| self.court.fail(lost));
        }
    }
}
