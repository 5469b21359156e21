//! One change of a source table, decoded from a stream record.
//!
//! This is the only place that knows the stream SDK's types. Decoding is pure and exact: every attribute type,
//! at any nesting, empty strings and binaries and numbers of 38 digits come out as they went in; a value of a
//! type that this build does not know is an error, never dropped.

use crate::item::{Item, Key};
use crate::version::Stamp;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_dynamodbstreams::types::{
    AttributeValue as StreamValue, OperationType, Record, StreamRecord, StreamViewType,
};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::time::SystemTime;

/// A record's place in its shard: 21 to 40 digits, compared as a number, only along a lineage.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SequenceNumber(Box<str>);

impl SequenceNumber {
    /// Reads a decimal number of any length; `None` when it is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| Self(text.into()))
    }

    /// As the stream gave it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self.0.trim_start_matches('0'), other.0.trim_start_matches('0'));
        // The text decides between spellings of one number, to agree with `Eq`.
        a.len().cmp(&b.len()).then_with(|| a.cmp(b)).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What happened to the item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// There was no item before.
    Insert,
    /// There was one before, and there is one after.
    Modify,
    /// There is none after.
    Remove,
}

/// An item before or after a change: its content, and the stamp that it carried.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// The item without the stamp attribute.
    pub content: Item,
    /// The stamp, when the attribute held one. What is not a stamp is left out of both fields.
    pub stamp: Option<Stamp>,
}

/// One change of a source table.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Its place in the shard.
    pub sequence: SequenceNumber,
    /// When the write happened: whole seconds, rounded down; may step back within a shard.
    pub created: SystemTime,
    /// The item's primary key.
    pub key: Key,
    /// What happened.
    pub event: Event,
    /// The item before, when the stream's view has it and there was one.
    pub old: Option<Image>,
    /// The item after; always there for [`Event::Insert`] and [`Event::Modify`].
    pub new: Option<Image>,
    /// Whether the time-to-live service deleted the item.
    pub by_ttl: bool,
    /// Bytes of the record, for bounds on memory.
    pub size: usize,
}

/// Why a record could not be decoded. The shard must not go past it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A part that every record has is not there.
    #[error("record {sequence} has no {part}")]
    Missing {
        /// The sequence number, or `?`.
        sequence: String,
        /// The part's name.
        part: &'static str,
    },
    /// The event name, or an attribute's type, is unknown to this build.
    #[error("record {sequence} holds a {what} that this version of shardwalker does not know")]
    Unknown {
        /// The sequence number.
        sequence: String,
        /// `event` or `value type`.
        what: &'static str,
    },
    /// The stream gives keys only.
    #[error(
        "record {sequence} holds no new image (stream view type {view}); \
         the stream needs NEW_AND_OLD_IMAGES"
    )]
    NoImage {
        /// The sequence number.
        sequence: String,
        /// The record's view type.
        view: String,
    },
}

impl Change {
    /// Decodes a stream record. `stamp` is the name of the route's stamp attribute.
    ///
    /// # Errors
    /// When a part is missing or of a type this build does not know; see [`DecodeError`].
    pub fn decode(record: Record, stamp: &str) -> Result<Self, DecodeError> {
        let event_name = record.event_name;
        let by_ttl = record.user_identity.is_some_and(|by| {
            by.r#type.as_deref() == Some("Service")
                && by.principal_id.as_deref() == Some("dynamodb.amazonaws.com")
        });
        let body = record.dynamodb.ok_or_else(|| missing("?", "body"))?;
        let StreamRecord {
            approximate_creation_date_time: created,
            keys,
            new_image,
            old_image,
            sequence_number,
            size_bytes,
            stream_view_type,
            ..
        } = body;
        let text = sequence_number.ok_or_else(|| missing("?", "sequence number"))?;
        let sequence =
            SequenceNumber::parse(&text).ok_or_else(|| missing(&text, "decimal sequence number"))?;
        let created = created
            .and_then(|time| SystemTime::try_from(time).ok())
            .ok_or_else(|| missing(&text, "creation time"))?;
        let event = match event_name {
            Some(OperationType::Insert) => Event::Insert,
            Some(OperationType::Modify) => Event::Modify,
            Some(OperationType::Remove) => Event::Remove,
            Some(_) => return Err(DecodeError::Unknown { sequence: text, what: "event" }),
            None => return Err(missing(&text, "event name")),
        };
        let keys = keys.filter(|keys| !keys.is_empty()).ok_or_else(|| missing(&text, "keys"))?;
        let unknown = || DecodeError::Unknown { sequence: text.clone(), what: "value type" };
        let key = Key::new(Item(map(keys).ok_or_else(unknown)?));
        let old = old_image.map(|i| image(i, stamp).ok_or_else(unknown)).transpose()?;
        let new = new_image.map(|i| image(i, stamp).ok_or_else(unknown)).transpose()?;
        if event != Event::Remove && new.is_none() {
            let view = stream_view_type.as_ref().map_or("unknown", StreamViewType::as_str).to_owned();
            return Err(DecodeError::NoImage { sequence: text, view });
        }
        // What the stream says is the encoded size of the record; the parts may be larger once decoded.
        let size = size_bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or_else(|| {
            let image = |i: &Option<Image>| i.as_ref().map_or(0, |i| i.content.size());
            key.attributes().size() + image(&old) + image(&new)
        });
        Ok(Self { sequence, created, key, event, old, new, by_ttl, size })
    }

    /// The stamps seen in the old and the new image, in this order.
    pub fn stamps(&self) -> impl Iterator<Item = Stamp> + '_ {
        [&self.old, &self.new].into_iter().filter_map(|image| image.as_ref()?.stamp)
    }
}

fn missing(sequence: &str, part: &'static str) -> DecodeError {
    DecodeError::Missing { sequence: sequence.to_owned(), part }
}

fn image(values: HashMap<String, StreamValue>, stamp: &str) -> Option<Image> {
    let mut content = Item(map(values)?);
    let stamp = match content.0.remove(stamp) {
        Some(AttributeValue::S(text)) => Stamp::parse(&text),
        _ => None,
    };
    Some(Image { content, stamp })
}

/// `None` when a value is of unknown type.
fn map(values: HashMap<String, StreamValue>) -> Option<HashMap<String, AttributeValue>> {
    // Collecting into an option forgets how many there are, and the map would grow step by step.
    let mut decoded = HashMap::with_capacity(values.len());
    for (name, from) in values {
        decoded.insert(name, value(from)?);
    }
    Some(decoded)
}

fn value(from: StreamValue) -> Option<AttributeValue> {
    Some(match from {
        StreamValue::S(text) => AttributeValue::S(text),
        StreamValue::N(number) => AttributeValue::N(number),
        StreamValue::B(bytes) => AttributeValue::B(blob(bytes)),
        StreamValue::Bool(flag) => AttributeValue::Bool(flag),
        StreamValue::Null(flag) => AttributeValue::Null(flag),
        StreamValue::Ss(set) => AttributeValue::Ss(set),
        StreamValue::Ns(set) => AttributeValue::Ns(set),
        StreamValue::Bs(set) => AttributeValue::Bs(set.into_iter().map(blob).collect()),
        StreamValue::L(list) => AttributeValue::L(list.into_iter().map(value).collect::<Option<_>>()?),
        StreamValue::M(values) => AttributeValue::M(map(values)?),
        _ => return None,
    })
}

fn blob(bytes: aws_sdk_dynamodbstreams::primitives::Blob) -> Blob {
    Blob::new(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_dynamodbstreams::primitives::{Blob as StreamBlob, DateTime};
    use aws_sdk_dynamodbstreams::types::Identity;
    use proptest::prelude::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn stream_value() -> impl Strategy<Value = StreamValue> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..20).prop_map(StreamBlob::new);
        let leaf = prop_oneof![
            ".{0,20}".prop_map(StreamValue::S),
            "-?[1-9][0-9]{0,37}".prop_map(StreamValue::N),
            bytes().prop_map(StreamValue::B),
            any::<bool>().prop_map(StreamValue::Bool),
            Just(StreamValue::Null(true)),
            prop::collection::vec(".{1,5}", 1..4).prop_map(StreamValue::Ss),
            prop::collection::vec("[1-9][0-9]{0,5}", 1..4).prop_map(StreamValue::Ns),
            prop::collection::vec(bytes(), 1..4).prop_map(StreamValue::Bs),
        ];
        leaf.prop_recursive(32, 64, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(StreamValue::L),
                prop::collection::hash_map(".{0,5}", inner, 0..3).prop_map(StreamValue::M),
            ]
        })
    }

    /// An independent spelling of a value, to compare both SDKs' types by.
    macro_rules! spell {
        ($name:ident, $type:ident) => {
            fn $name(value: &$type) -> serde_json::Value {
                use serde_json::json;
                let bytes = |b: &[u8]| json!(b);
                match value {
                    $type::S(v) => json!({ "S": v }),
                    $type::N(v) => json!({ "N": v }),
                    $type::B(v) => json!({ "B": bytes(v.as_ref()) }),
                    $type::Bool(v) => json!({ "BOOL": v }),
                    $type::Null(v) => json!({ "NULL": v }),
                    $type::Ss(v) => json!({ "SS": v }),
                    $type::Ns(v) => json!({ "NS": v }),
                    $type::Bs(v) => json!({ "BS": v.iter().map(|b| bytes(b.as_ref())).collect::<Vec<_>>() }),
                    $type::L(v) => json!({ "L": v.iter().map($name).collect::<Vec<_>>() }),
                    $type::M(v) => json!({ "M": v.iter().map(|(k, v)| (k.clone(), $name(v))).collect::<serde_json::Map<_, _>>() }),
                    other => panic!("{other:?}"),
                }
            }
        };
    }
    spell!(spell_stream, StreamValue);
    spell!(spell_table, AttributeValue);

    fn record(event: OperationType, new: Option<HashMap<String, StreamValue>>) -> Record {
        let body = StreamRecord::builder()
            .sequence_number("111100000000000000000000001")
            .approximate_creation_date_time(DateTime::from_secs(1_700_000_000))
            .keys("id", StreamValue::S("k".into()))
            .set_new_image(new)
            .build();
        Record::builder().event_name(event).dynamodb(body).build()
    }

    proptest! {
        #[test]
        fn every_type_at_any_nesting_is_kept_exactly(
            values in prop::collection::hash_map(".{0,8}", stream_value(), 0..6),
        ) {
            let change = Change::decode(record(OperationType::Insert, Some(values.clone())), "~stamp~").unwrap();
            let content = change.new.unwrap().content;
            prop_assert_eq!(content.0.len(), values.len());
            for (name, value) in &values {
                prop_assert_eq!(spell_table(&content.0[name]), spell_stream(value));
            }
        }

        #[test]
        fn sequence_numbers_compare_as_numbers(a in 0u128.., b in 0u128.., zeros in 0usize..3) {
            let parse = |text: String| SequenceNumber::parse(&text).unwrap();
            let (x, y) = (parse(format!("{}{a}", "0".repeat(zeros))), parse(b.to_string()));
            if a != b {
                prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            }
        }

        #[test]
        fn what_is_not_a_number_is_refused(text in ".{0,12}") {
            let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
            prop_assert_eq!(SequenceNumber::parse(&text).is_some(), digits);
        }
    }

    #[test]
    fn thirty_two_levels_of_nesting_survive() {
        let mut deep = StreamValue::N("9".repeat(38));
        for level in 0..32 {
            deep = if level % 2 == 0 {
                StreamValue::L(vec![deep])
            } else {
                StreamValue::M(HashMap::from([(String::from("m"), deep)]))
            };
        }
        let image = HashMap::from([("deep".to_owned(), deep.clone())]);
        let change = Change::decode(record(OperationType::Modify, Some(image)), "s").unwrap();
        assert_eq!(spell_table(&change.new.unwrap().content.0["deep"]), spell_stream(&deep));
    }

    #[test]
    fn the_stamp_leaves_the_content() {
        let content = Item(HashMap::from([("id".to_owned(), AttributeValue::S("k".into()))]));
        let stamp = Stamp::of(&content, crate::version::Version::default());
        let stamped = HashMap::from([
            ("id".to_owned(), StreamValue::S("k".into())),
            ("sw".to_owned(), StreamValue::S(stamp.to_string())),
        ]);
        let change = Change::decode(record(OperationType::Modify, Some(stamped)), "sw").unwrap();
        assert_eq!(change.stamps().collect::<Vec<_>>(), [stamp]);
        assert_eq!(change.new, Some(Image { content, stamp: Some(stamp) }));
        assert_eq!(change.created, UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    }

    #[test]
    fn only_the_service_itself_is_ttl() {
        let by = |kind: &str, principal: &str| {
            let identity = Identity::builder().r#type(kind).principal_id(principal).build();
            let mut record = record(OperationType::Remove, None);
            record.user_identity = Some(identity);
            Change::decode(record, "s").unwrap().by_ttl
        };
        assert!(by("Service", "dynamodb.amazonaws.com"));
        assert!(!by("Service", "other.amazonaws.com"));
        assert!(!by("User", "dynamodb.amazonaws.com"));
    }

    #[test]
    fn records_that_lack_a_part_are_refused_with_its_name() {
        let error = |record| Change::decode(record, "s").unwrap_err().to_string();
        assert_eq!(error(Record::builder().build()), "record ? has no body");
        let mut no_keys = record(OperationType::Remove, None);
        no_keys.dynamodb.as_mut().unwrap().keys = None;
        assert_eq!(error(no_keys), "record 111100000000000000000000001 has no keys");
        let mut keys_only = record(OperationType::Insert, None);
        keys_only.dynamodb.as_mut().unwrap().stream_view_type = Some(StreamViewType::KeysOnly);
        assert!(error(keys_only).contains("view type KEYS_ONLY"));
    }
}
