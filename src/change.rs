//! One change of a source table, decoded from a stream record.
//!
//! Decoding is pure and exact: every attribute type, at any nesting, empty strings and binaries and numbers of 38
//! digits come out as they went in; what this build does not know is an error, never dropped.

use crate::content::Content;
use crate::item::Key;
use crate::version::Stamp;
use crate::view::{Fields, View};
use crate::wire::{Body, Record};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    pub content: Content,
    /// The stamp, when the attribute held one. What is not a stamp is left out of both fields.
    pub stamp: Option<Stamp>,
}

impl Image {
    /// Of an item as it was read; `stamp` is the name of our attribute. With `digest` whoever gets it is likely to ask for
    /// its digest.
    #[must_use]
    pub fn of(mut item: Fields<'_>, stamp: &str, digest: bool) -> Self {
        let stamp = match item.take(stamp) {
            Some(View::S(text)) => Stamp::parse(&text),
            _ => None,
        };
        let content = if digest { Content::digested(&item) } else { Content::from(&item) };
        Self { content, stamp }
    }
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
    /// Bytes that it takes in memory, about.
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
    /// The event name is unknown to this build.
    #[error("record {sequence} holds an event that this version of shardwalker does not know")]
    UnknownEvent {
        /// The sequence number.
        sequence: String,
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
    /// Decodes a stream record. `stamp` is the name of the route's stamp attribute. `digests` says that those of new images,
    /// and of old ones with a stamp, are likely to be asked for.
    ///
    /// # Errors
    /// When a part is missing or of a type this build does not know; see [`DecodeError`].
    pub fn decode(record: Record<'_>, stamp: &str, digests: bool) -> Result<Self, DecodeError> {
        let by_ttl = record.user_identity.is_some_and(|by| {
            by.kind.as_deref() == Some("Service")
                && by.principal_id.as_deref() == Some("dynamodb.amazonaws.com")
        });
        let body = record.dynamodb.ok_or_else(|| missing("?", "body"))?;
        let Body {
            approximate_creation_date_time: created,
            keys,
            new_image,
            old_image,
            sequence_number,
            stream_view_type,
        } = body;
        let text = sequence_number.ok_or_else(|| missing("?", "sequence number"))?;
        let sequence =
            SequenceNumber::parse(&text).ok_or_else(|| missing(&text, "decimal sequence number"))?;
        let text = &*text;
        let created = created
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .and_then(|since| UNIX_EPOCH.checked_add(since))
            .ok_or_else(|| missing(text, "creation time"))?;
        let event = match record.event_name.as_deref() {
            Some("INSERT") => Event::Insert,
            Some("MODIFY") => Event::Modify,
            Some("REMOVE") => Event::Remove,
            Some(_) => return Err(DecodeError::UnknownEvent { sequence: text.to_owned() }),
            None => return Err(missing(text, "event name")),
        };
        let keys = keys.filter(|keys| keys.iter().len() > 0).ok_or_else(|| missing(text, "keys"))?;
        let key = Key::of(&keys);
        let old = old_image.map(|item| {
            let digest = digests && item.get(stamp).is_some();
            Image::of(item, stamp, digest)
        });
        let new = new_image.map(|item| Image::of(item, stamp, digests));
        if event != Event::Remove && new.is_none() {
            let view = stream_view_type.map_or_else(|| "unknown".to_owned(), Cow::into_owned);
            return Err(DecodeError::NoImage { sequence: text.to_owned(), view });
        }
        Ok(Self { sequence, created, key, event, old, new, by_ttl, size: 0 }.sized())
    }

    /// The change with its size: what the stream says is the encoded one, and the parts are larger once decoded.
    pub(crate) fn sized(self) -> Self {
        let image = |i: &Option<Image>| i.as_ref().map_or(0, |image| image.content.footprint());
        let images = image(&self.old) + image(&self.new);
        let size = size_of::<Self>() + self.key.attributes().footprint() + images;
        Self { size, ..self }
    }

    /// The stamps seen in the old and the new image, in this order.
    pub fn stamps(&self) -> impl Iterator<Item = Stamp> + '_ {
        [&self.old, &self.new].into_iter().filter_map(|image| image.as_ref()?.stamp)
    }
}

fn missing(sequence: &str, part: &'static str) -> DecodeError {
    DecodeError::Missing { sequence: sequence.to_owned(), part }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Identity;
    use aws_sdk_dynamodb::types::AttributeValue;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    /// Any value as DynamoDB JSON, spelled here and not by the crate; the order of a set's members means nothing.
    fn typed_value() -> impl Strategy<Value = Value> {
        let text = |bytes: Vec<u8>| json!({ "B": BASE64.encode(bytes) });
        let texts = |sets: BTreeSet<Vec<u8>>| json!({ "BS": sets.iter().map(|b| BASE64.encode(b)).collect::<Vec<_>>() });
        let bytes = || prop::collection::vec(any::<u8>(), 0..20);
        let leaf = prop_oneof![
            ".{0,20}".prop_map(|v| json!({ "S": v })),
            "-?[1-9][0-9]{0,37}".prop_map(|v| json!({ "N": v })),
            bytes().prop_map(text),
            any::<bool>().prop_map(|v| json!({ "BOOL": v })),
            Just(json!({ "NULL": true })),
            prop::collection::btree_set(".{1,5}", 1..4).prop_map(|v| json!({ "SS": v })),
            prop::collection::btree_set("[1-9][0-9]{0,5}", 1..4).prop_map(|v| json!({ "NS": v })),
            prop::collection::btree_set(bytes(), 1..4).prop_map(texts),
        ];
        leaf.prop_recursive(32, 64, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(|v| json!({ "L": v })),
                prop::collection::btree_map(".{0,5}", inner, 0..3).prop_map(|v| json!({ "M": v })),
            ]
        })
    }

    /// An independent spelling of a value.
    fn spell(value: &AttributeValue) -> Value {
        use AttributeValue as A;
        let bytes = |b: &aws_sdk_dynamodb::primitives::Blob| BASE64.encode(b.as_ref());
        match value {
            A::S(v) => json!({ "S": v }),
            A::N(v) => json!({ "N": v }),
            A::B(v) => json!({ "B": bytes(v) }),
            A::Bool(v) => json!({ "BOOL": v }),
            A::Null(v) => json!({ "NULL": v }),
            A::Ss(v) => json!({ "SS": v }),
            A::Ns(v) => json!({ "NS": v }),
            A::Bs(v) => json!({ "BS": v.iter().map(bytes).collect::<Vec<_>>() }),
            A::L(v) => json!({ "L": v.iter().map(spell).collect::<Vec<_>>() }),
            A::M(v) => {
                json!({ "M": v.iter().map(|(k, v)| (k.clone(), spell(v))).collect::<serde_json::Map<_, _>>() })
            }
            other => panic!("{other:?}"),
        }
    }

    /// A record as the stream writes it, with `more` in its body.
    fn record(event: &str, more: Value) -> String {
        let mut body = json!({
            "SequenceNumber": "111100000000000000000000001",
            "ApproximateCreationDateTime": 1_700_000_000,
            "Keys": { "id": { "S": "k" } },
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "eventName": event, "dynamodb": body }).to_string()
    }

    fn decode(record: &str, stamp: &str) -> Result<Change, DecodeError> {
        Change::decode(serde_json::from_str(record).unwrap(), stamp, true)
    }

    proptest! {
        #[test]
        fn every_type_at_any_nesting_is_kept_exactly(
            values in prop::collection::btree_map(".{0,8}", typed_value(), 0..6),
        ) {
            let record = record("INSERT", json!({ "NewImage": values }));
            let content = decode(&record, "~stamp~").unwrap().new.unwrap().content;
            prop_assert_eq!(content.digest(), Content::read(content.text()).unwrap().digest());
            let content = content.item();
            prop_assert_eq!(content.0.len(), values.len());
            for (name, value) in &values {
                prop_assert_eq!(&spell(&content.0[name]), value);
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
        let mut deep = json!({ "N": "9".repeat(38) });
        for level in 0..32 {
            deep = if level % 2 == 0 { json!({ "L": [deep] }) } else { json!({ "M": { "m": deep } }) };
        }
        let change = decode(&record("MODIFY", json!({ "NewImage": { "deep": deep } })), "s").unwrap();
        assert_eq!(spell(&change.new.unwrap().content.item().0["deep"]), deep);
    }

    #[test]
    fn the_stamp_leaves_the_content() {
        let content = Content::read(r#"{"id":{"S":"k"}}"#).unwrap();
        let stamp = Stamp::of(&content, crate::version::Version::default());
        let stamped = json!({ "NewImage": { "id": { "S": "k" }, "sw": { "S": stamp.to_string() } } });
        let change = decode(&record("MODIFY", stamped), "sw").unwrap();
        assert_eq!(change.stamps().collect::<Vec<_>>(), [stamp]);
        assert_eq!(change.new, Some(Image { content, stamp: Some(stamp) }));
        assert_eq!(change.created, UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    }

    #[test]
    fn only_the_service_itself_is_ttl() {
        let by = |kind: &str, principal: &str| {
            let identity = Identity { principal_id: Some(principal.into()), kind: Some(kind.into()) };
            let text = record("REMOVE", json!({}));
            let mut record: Record<'_> = serde_json::from_str(&text).unwrap();
            record.user_identity = Some(identity);
            Change::decode(record, "s", true).unwrap().by_ttl
        };
        assert!(by("Service", "dynamodb.amazonaws.com"));
        assert!(!by("Service", "other.amazonaws.com"));
        assert!(!by("User", "dynamodb.amazonaws.com"));
    }

    #[test]
    fn records_that_lack_a_part_are_refused_with_its_name() {
        let error = |record: String| decode(&record, "s").unwrap_err().to_string();
        assert_eq!(error("{}".to_owned()), "record ? has no body");
        let no_keys = record("REMOVE", json!({ "Keys": null }));
        assert_eq!(error(no_keys), "record 111100000000000000000000001 has no keys");
        let keys_only = record("INSERT", json!({ "StreamViewType": "KEYS_ONLY" }));
        assert!(error(keys_only).contains("view type KEYS_ONLY"));
        assert!(error(record("REPLACE", json!({}))).contains("an event that this version"));
    }

    #[test]
    fn a_value_of_unknown_type_is_refused_with_its_attribute() {
        let page = r#"{"Records":[{"dynamodb":{"NewImage":{"a":{"S":"x"},"b":{"Z":"1"}}}}]}"#;
        let why = serde_json::from_str::<crate::wire::Page>(page).unwrap_err().to_string();
        assert!(why.contains("attribute \"b\": unknown variant `Z`"), "{why}");
    }
}
