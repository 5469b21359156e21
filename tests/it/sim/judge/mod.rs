//! The judges: what was really written at the members, and whether what the workers do about it is right.
//!
//! Oracles of their own: a judge writes as the applications do, takes down every record that comes of it with the
//! version that the protocol gives it, and looks at the members and the state table beside the workers. It asks
//! the named predicates at every write to a member, every tombstone and every checkpoint, and at the end.
//!
//! Here is what all judges have; [`one_way`] judges routes whose peers nobody else writes to, [`group`] members that
//! are each written by applications of their own, and `files` what a feed beside a route's peers holds.

mod files;
mod group;
mod one_way;
mod request;
mod stream;

pub(super) use files::LAKE;
pub(super) use group::Group;
pub(super) use one_way::OneWay;
pub(super) use request::Request;

use super::plan::Act;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::ConnectorError;
use serde_json::{Value, json};
use shardwalker::invariants::Verdict;
use shardwalker::item::{Digest, Item, Key};
use shardwalker::sandbox::Sandbox;
use shardwalker::sandbox::arn::Arn;
use shardwalker::version::{Stamp, Version};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

pub(super) const STATE: &str = "state";
const STAMP: &str = "shardwalker";

/// Who judges a run.
pub(super) trait Judge: Send {
    /// What it has found so far.
    fn court(&self) -> &Court;
    /// To add to it.
    fn court_mut(&mut self) -> &mut Court;
    /// Writes as an application at a source, and takes down the record that comes of it.
    fn write(&mut self, source: usize, key: usize, act: Act);
    /// What a request will write over.
    fn before(&self, request: &Request) -> Option<Value>;
    /// A worker's request has landed, on an item that was `before`.
    fn landed(&mut self, request: &Request, before: Option<Value>);
    /// A source has other shards than before.
    fn resharded(&mut self, source: usize);
    /// Time has passed: records that were not done before have aged out. So have those of `shard`, of whatever age.
    fn age(&mut self, source: usize, shard: Option<&str>);
    /// Whether workers stop at what they have lost, and may not pass over it.
    fn stops_at_gaps(&mut self, stops: bool);
    /// The shards of a source whose records are all done.
    fn settled_shards(&self, source: usize) -> Vec<String>;
    /// The shards of a source that every peer has begun.
    fn begun_shards(&self, source: usize) -> Vec<String>;
    /// Whether everything that was written has arrived and is checkpointed.
    fn caught_up(&self) -> bool;
    /// Complains of what is not as it must be when all is quiet.
    fn conclude(&mut self);
}

/// What all judges have: the sandbox, the log, the first violation, and counts.
pub(super) struct Court {
    sandbox: Sandbox,
    home: (String, String),
    begun: Instant,
    digests: HashMap<String, String>,
    /// Writes of applications that left a record, once for each peer that they go to.
    pub(super) owed: u64,
    /// Requests that would write to a member.
    pub(super) requests: u64,
    pub(super) landed: u64,
    pub(super) log: Vec<String>,
    pub(super) violation: Option<String>,
}

impl Court {
    pub(super) fn new(sandbox: Sandbox, home: (&str, &str)) -> Self {
        Self {
            sandbox,
            home: (home.0.to_owned(), home.1.to_owned()),
            begun: Instant::now(),
            digests: HashMap::new(),
            owed: 0,
            requests: 0,
            landed: 0,
            log: Vec::new(),
            violation: None,
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

    pub(super) fn fail(&mut self, what: &str) {
        self.note(&format!("!! {what}"));
        self.violation.get_or_insert_with(|| what.to_owned());
    }

    /// A digest of everything that happened, in order.
    pub(super) fn digest(&self) -> Digest {
        let text = self.log.join("\n");
        Item(HashMap::from([("log".to_owned(), AttributeValue::S(text))])).digest(None)
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Takes down that a request has landed, and what was answered.
    pub(super) fn arrived(
        &mut self,
        worker: usize,
        request: &Request,
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
        if request.is_member_write() && !request.is_question() {
            self.requests += 1;
        }
    }

    /// The name of a key, whose digest is known from now on.
    fn key(&mut self, key: usize) -> String {
        let name = format!("k{key}");
        let id = AttributeValue::S(name.clone());
        let digest = Key::new(Item(HashMap::from([("id".to_owned(), id)]))).digest();
        self.digests.insert(digest.to_string(), name.clone());
        name
    }

    fn call(&self, table: &Arn, operation: &str, body: Value) -> Value {
        self.sandbox.call(&table.account, &table.region, operation, body).unwrap()
    }

    /// The item of a member that has the key of this one.
    fn item(&self, table: &Arn, item: &Value) -> Option<Value> {
        let body = json!({ "TableName": table.table, "Key": { "id": item["id"] }, "ConsistentRead": true });
        self.call(table, "GetItem", body).get("Item").cloned()
    }

    /// The row of the state table that has the key of this one.
    fn state_row(&self, row: &Value) -> Option<Value> {
        let (account, region) = &self.home;
        let key = json!({ "pk": row["pk"], "sk": row["sk"] });
        let body = json!({ "TableName": STATE, "Key": key, "ConsistentRead": true });
        let answer = self.sandbox.call(account, region, "GetItem", body).ok()?;
        answer.get("Item").cloned()
    }

    fn state_rows(&self, prefix: &'static str) -> impl Iterator<Item = Value> + use<> {
        let (account, region) = &self.home;
        let state = format!("arn:aws:dynamodb:{region}:{account}:table/{STATE}");
        let rows = self.sandbox.items(&state).unwrap_or_default();
        rows.into_iter().filter(move |row| row["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with(prefix)))
    }

    /// The rows of the state table that a request, which has landed, may have changed.
    fn state_changed(&self, request: &Request) -> Vec<Value> {
        match request.operation.as_str() {
            "UpdateItem" if !request.is_member_write() => {
                self.state_row(&request.body["Key"]).into_iter().collect()
            }
            // Letters are kept with the count of their key, in one transaction, whose answer may be lost.
            "TransactWriteItems" => {
                let acts = request.body["TransactItems"].as_array().into_iter().flatten();
                acts.filter_map(|act| self.state_row(&act["Put"]["Item"])).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What a row of the ledger says: whose tombstone, of which key, and its version.
    fn tombstone(&self, row: &Value) -> Option<(String, String, Option<Version>)> {
        let (scope, digest) = row["pk"]["S"].as_str()?.strip_prefix("ledger#")?.rsplit_once('#')?;
        let key = self.digests.get(digest)?.clone();
        let version = row["version"]["S"].as_str().and_then(|text| text.parse().ok());
        Some((scope.to_owned(), key, version))
    }
}

fn stamp_of(item: &Value) -> Option<Stamp> {
    item[STAMP]["S"].as_str().and_then(Stamp::parse)
}

fn show(version: Option<Version>) -> String {
    version.map_or_else(|| "nothing".to_owned(), |version| version.to_string())
}
