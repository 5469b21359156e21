//! The record of a letter as bytes: JSON with both images in DynamoDB JSON, compressed.

use crate::change::{Change, Event, Image, SequenceNumber};
use crate::failure::{Class, Failure};
use crate::item::{Item, Key};
use crate::json;
use crate::version::Stamp;
use serde_json::{Value, json};

/// zstd's own default: the images of a record compress well at any level.
const LEVEL: i32 = 3;

/// The bytes of a record.
///
/// # Errors
/// When they cannot be compressed.
pub(super) fn encode(change: &Change) -> Result<Vec<u8>, Failure> {
    zstd::bulk::compress(to_json(change).to_string().as_bytes(), LEVEL)
        .map_err(|e| Failure::new(Class::Unrecognised, "Compression", e.to_string()))
}

/// A record as JSON, its images in DynamoDB JSON.
#[must_use]
pub fn to_json(change: &Change) -> Value {
    let event = match change.event {
        Event::Insert => "INSERT",
        Event::Modify => "MODIFY",
        Event::Remove => "REMOVE",
    };
    let image = |image: &Image| {
        json!({
            "content": json::from_fields(&image.content.fields()),
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
/// When the bytes are not what [`DeadLetters::keep`](super::DeadLetters::keep) wrote.
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
        let stamp = value["stamp"].as_str().and_then(Stamp::parse);
        Ok(Some(Image { content: item(&value["content"])?.into(), stamp }))
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
        key: Key::new(item(&value["key"])?),
        event,
        old: image(&value["old"])?,
        new: image(&value["new"])?,
        by_ttl: value["by_ttl"].as_bool().unwrap_or_default(),
        size: text.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_dynamodb::types::AttributeValue;
    use std::collections::HashMap;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn a_record_comes_back_as_it_was() {
        let item = |value: &str| {
            Item(HashMap::from([
                ("id".to_owned(), AttributeValue::S("a".into())),
                ("value".to_owned(), AttributeValue::N(value.into())),
            ]))
        };
        let key = Item(HashMap::from([("id".to_owned(), AttributeValue::S("a".into()))]));
        let image = |value: &str| Image { content: item(value).into(), stamp: None };
        let mut change = Change {
            sequence: SequenceNumber::parse("000123").unwrap(),
            created: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            key: Key::new(key),
            event: Event::Modify,
            old: Some(image("1")),
            new: Some(image("12345678901234567890123456789012345678")),
            by_ttl: true,
            size: 0,
        };
        let read = decode(&encode(&change).unwrap()).unwrap();
        change.size = read.size;
        assert_eq!(read, change);
        assert_eq!(decode(b"no").unwrap_err().code, "BadDeadLetter");
    }
}
