//! Dead letters: records that a peer refuses for good, kept whole in the state table.
//!
//! A letter holds the record with both images, compressed, and split over rows where one cannot hold it, with
//! its version and the reason. Later changes of the same key wait behind it, in order, so that a retry applies
//! them as they happened. Letters never expire; nothing here deletes one.
//!
//! Rows: `dead#<route>#<peer>` / `<key digest>#<sequence number>#<part>`, where part 0 is written last and
//! makes the letter exist; and `dead-keys#<route>#<peer>` / `<key digest>`, the keys that have letters.

use crate::change::{Change, Event, Image, SequenceNumber};
use crate::clock::Clock;
use crate::failure::{Class, Failure};
use crate::item::{Digest, Item};
use crate::json;
use crate::state::{PK, Row, SK, StateTable, number, text};
use crate::version::Version;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};
use std::collections::HashSet;

/// What one row holds of a letter: below the 400 KB of an item, with room for its other attributes.
const PART: usize = 350 * 1024;
/// zstd's own default: the images of a record compress well at any level.
const LEVEL: i32 = 3;

/// Why a record became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The peer refused it for good.
    Refused,
    /// An earlier change of the same key is a dead letter.
    Behind,
}

impl Reason {
    /// The label in metrics and rows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Behind => "behind",
        }
    }
}

/// Where a letter belongs.
#[derive(Debug, Clone, Copy)]
pub struct Lane<'a> {
    /// The route's name.
    pub route: &'a str,
    /// The peer's name.
    pub peer: &'a str,
    /// The shard's id.
    pub shard: &'a str,
}

/// The dead letters of a state table. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    state: StateTable,
    clock: Clock,
}

impl DeadLetters {
    /// The dead letters in a state table.
    #[must_use]
    pub fn new(state: StateTable, clock: Clock) -> Self {
        Self { state, clock }
    }

    /// The keys of a lane that have letters, in any shard. Strongly consistent.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn keys(&self, route: &str, peer: &str) -> Result<HashSet<Digest>, Failure> {
        let rows = self.state.rows(&keys_partition(route, peer), "", &[SK]).await?;
        let digest = |row: &Row| row.get(SK)?.as_s().ok().and_then(|text| Digest::parse(text));
        Ok(rows.iter().filter_map(digest).collect())
    }

    /// Whether a key has letters now. Strongly consistent.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn has(&self, route: &str, peer: &str, key: Digest) -> Result<bool, Failure> {
        let rows = self.state.rows(&letters_partition(route, peer), &format!("{key}#"), &[SK]).await?;
        Ok(!rows.is_empty())
    }

    /// Keeps a record. Keeping it again changes nothing: the first reason stays.
    ///
    /// # Errors
    /// The failure of a call; what was written so far is completed by the next try.
    pub async fn keep(
        &self,
        lane: Lane<'_>,
        change: &Change,
        version: Version,
        reason: Reason,
        failure: &Failure,
    ) -> Result<(), Failure> {
        let key = change.key.digest();
        let body = encode(change).to_string();
        let body = zstd::bulk::compress(body.as_bytes(), LEVEL)
            .map_err(|e| Failure::new(Class::Unrecognised, "Compression", e.to_string()))?;
        let parts: Vec<&[u8]> = body.chunks(PART).collect();
        let pk = letters_partition(lane.route, lane.peer);
        let sort = |part: usize| format!("{key}#{}#{part:04}", padded(&change.sequence));
        self.put(Row::from([
            (PK.into(), text(keys_partition(lane.route, lane.peer))),
            (SK.into(), text(key.to_string())),
        ]))
        .await?;
        for (part, bytes) in parts.iter().enumerate().skip(1) {
            self.put(Row::from([
                (PK.into(), text(&pk)),
                (SK.into(), text(sort(part))),
                ("data".into(), AttributeValue::B(Blob::new(*bytes))),
            ]))
            .await?;
        }
        let head = Row::from([
            (PK.into(), text(&pk)),
            (SK.into(), text(sort(0))),
            ("data".into(), AttributeValue::B(Blob::new(*parts.first().unwrap_or(&&[][..])))),
            ("parts".into(), number(parts.len())),
            ("shard".into(), text(lane.shard)),
            ("sequence".into(), text(change.sequence.as_str())),
            ("version".into(), text(version.to_string())),
            ("reason".into(), text(reason.name())),
            ("code".into(), text(&failure.code)),
            ("message".into(), text(&failure.message)),
            ("kept_at".into(), text(humantime::format_rfc3339_seconds(self.clock.now()).to_string())),
        ]);
        match self.put_new(head).await {
            Err(failure) if failure.class == Class::Condition => Ok(()),
            other => other,
        }
    }

    async fn put(&self, row: Row) -> Result<(), Failure> {
        let request = self.state.call("PutItem").put_item().table_name(self.state.name());
        request.set_item(Some(row)).send().await?;
        Ok(())
    }

    async fn put_new(&self, row: Row) -> Result<(), Failure> {
        let request = self.state.call("PutItem").put_item().table_name(self.state.name());
        request
            .set_item(Some(row))
            .condition_expression("attribute_not_exists(#pk)")
            .expression_attribute_names("#pk", PK)
            .send()
            .await?;
        Ok(())
    }
}

fn letters_partition(route: &str, peer: &str) -> String {
    format!("dead#{route}#{peer}")
}

fn keys_partition(route: &str, peer: &str) -> String {
    format!("dead-keys#{route}#{peer}")
}

/// A sequence number whose text sorts as the number does.
fn padded(sequence: &SequenceNumber) -> String {
    format!("{:0>40}", sequence.as_str())
}

fn encode(change: &Change) -> Value {
    let event = match change.event {
        Event::Insert => "INSERT",
        Event::Modify => "MODIFY",
        Event::Remove => "REMOVE",
    };
    let image = |image: &Image| {
        json!({
            "content": json::from_item(&image.content),
            "stamp": image.stamp.map(|stamp| stamp.to_string()),
        })
    };
    json!({
        "sequence": change.sequence.as_str(),
        "created": humantime::format_rfc3339_seconds(change.created).to_string(),
        "key": json::from_item(change.key.attributes()),
        "event": event,
        "old": change.old.as_ref().map(image),
        "new": change.new.as_ref().map(image),
        "by_ttl": change.by_ttl,
    })
}

/// The record of a letter, from its parts in order.
///
/// # Errors
/// When the bytes are not what [`DeadLetters::keep`] wrote.
pub fn decode(body: &[u8]) -> Result<Change, Failure> {
    let bad = |why: &str| Failure::new(Class::Unrecognised, "BadDeadLetter", why.to_owned());
    let text = zstd::stream::decode_all(body).map_err(|e| bad(&e.to_string()))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| bad(&e.to_string()))?;
    let field = |name: &str| value[name].as_str().ok_or_else(|| bad(name));
    let item =
        |value: &Value| -> Result<Item, Failure> { json::to_item(value).map_err(|e| bad(&e.to_string())) };
    let image = |value: &Value| -> Result<Option<Image>, Failure> {
        if value.is_null() {
            return Ok(None);
        }
        let stamp = value["stamp"].as_str().and_then(crate::version::Stamp::parse);
        Ok(Some(Image { content: item(&value["content"])?, stamp }))
    };
    let event = match field("event")? {
        "INSERT" => Event::Insert,
        "MODIFY" => Event::Modify,
        "REMOVE" => Event::Remove,
        _ => return Err(bad("event")),
    };
    Ok(Change {
        sequence: SequenceNumber::parse(field("sequence")?).ok_or_else(|| bad("sequence"))?,
        created: humantime::parse_rfc3339(field("created")?).map_err(|e| bad(&e.to_string()))?,
        key: crate::item::Key::new(item(&value["key"])?),
        event,
        old: image(&value["old"])?,
        new: image(&value["new"])?,
        by_ttl: value["by_ttl"].as_bool().unwrap_or_default(),
        size: text.len(),
    })
}
