//! Records as lines of JSON: pure, and the same bytes for the same records, whoever writes them.
//!
//! Names are sorted, and so are sets; nothing depends on a clock, a hash map's order or the pages that the records
//! came in.

use super::Record;
use crate::change::{Event, Image};
use crate::config::Images;
use crate::item::Item;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::collections::HashMap;

/// How items are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// As plain JSON: numbers are numbers, sets are lists, binaries are base64. Types are lost.
    Plain,
    /// As DynamoDB JSON: exact.
    Typed,
}

/// The name of an event.
#[must_use]
pub fn event(event: Event) -> &'static str {
    match event {
        Event::Insert => "INSERT",
        Event::Modify => "MODIFY",
        Event::Remove => "REMOVE",
    }
}

/// Appends a record's line, with the line's end.
pub fn line(record: &Record<'_>, spelling: Spelling, images: Images, out: &mut Vec<u8>) {
    let change = record.change;
    out.extend_from_slice(b"{\"event\":\"");
    out.extend_from_slice(record.event.as_bytes());
    out.extend_from_slice(b"\",\"key\":");
    item(change.key.attributes(), spelling, out);
    out.extend_from_slice(b",\"new\":");
    image(change.new.as_ref(), spelling, out);
    if images == Images::Both {
        out.extend_from_slice(b",\"old\":");
        image(change.old.as_ref(), spelling, out);
    }
    let version = record.version.map(|version| version.to_string());
    for (name, text) in [
        ("sequence", Some(change.sequence.as_str())),
        ("version", version.as_deref()),
        ("created", Some(humantime::format_rfc3339_seconds(change.created).to_string().as_str())),
        ("member", Some(record.member)),
        ("shard", Some(record.shard)),
    ] {
        let Some(text) = text else { continue };
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        string(text, out);
    }
    if change.by_ttl {
        out.extend_from_slice(b",\"ttl\":true");
    }
    out.extend_from_slice(b"}\n");
}

fn image(image: Option<&Image>, spelling: Spelling, out: &mut Vec<u8>) {
    match image {
        Some(image) => item(&image.content, spelling, out),
        None => out.extend_from_slice(b"null"),
    }
}

fn item(item: &Item, spelling: Spelling, out: &mut Vec<u8>) {
    map(&item.0, spelling, out);
}

/// Appends a map, its names in order.
pub fn map(map: &HashMap<String, AttributeValue>, spelling: Spelling, out: &mut Vec<u8>) {
    entries(map.iter().collect(), spelling, out);
}

/// Appends entries as a map, in the order of their names.
pub fn entries(mut entries: Vec<(&String, &AttributeValue)>, spelling: Spelling, out: &mut Vec<u8>) {
    entries.sort_unstable_by_key(|(name, _)| *name);
    out.push(b'{');
    for (index, (name, inner)) in entries.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        string(name, out);
        out.push(b':');
        value(inner, spelling, out);
    }
    out.push(b'}');
}

/// Appends a value.
pub fn value(value: &AttributeValue, spelling: Spelling, out: &mut Vec<u8>) {
    match spelling {
        Spelling::Plain => inner(value, spelling, out),
        Spelling::Typed => {
            out.extend_from_slice(b"{\"");
            out.extend_from_slice(kind(value).as_bytes());
            out.extend_from_slice(b"\":");
            inner(value, spelling, out);
            out.push(b'}');
        }
    }
}

fn kind(value: &AttributeValue) -> &'static str {
    match value {
        AttributeValue::S(_) => "S",
        AttributeValue::N(_) => "N",
        AttributeValue::B(_) => "B",
        AttributeValue::Bool(_) => "BOOL",
        AttributeValue::Ss(_) => "SS",
        AttributeValue::Ns(_) => "NS",
        AttributeValue::Bs(_) => "BS",
        AttributeValue::L(_) => "L",
        AttributeValue::M(_) => "M",
        // Decoding refuses values of unknown type.
        _ => "NULL",
    }
}

fn inner(inner: &AttributeValue, spelling: Spelling, out: &mut Vec<u8>) {
    let plain = spelling == Spelling::Plain;
    match inner {
        AttributeValue::S(text) => string(text, out),
        AttributeValue::N(digits) if plain && is_json_number(digits) => {
            out.extend_from_slice(digits.as_bytes())
        }
        AttributeValue::N(digits) => string(digits, out),
        AttributeValue::B(bytes) => binary(bytes, out),
        AttributeValue::Bool(flag) => out.extend_from_slice(if *flag { b"true" } else { b"false" }),
        AttributeValue::Ss(set) => list(sorted(set), out, |text, out| string(text, out)),
        AttributeValue::Ns(set) if plain => list(sorted(set), out, |digits, out| {
            if is_json_number(digits) {
                out.extend_from_slice(digits.as_bytes())
            } else {
                string(digits, out)
            }
        }),
        AttributeValue::Ns(set) => list(sorted(set), out, |digits, out| string(digits, out)),
        AttributeValue::Bs(set) => {
            let mut set: Vec<&Blob> = set.iter().collect();
            set.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
            list(set, out, binary);
        }
        AttributeValue::L(values) => {
            list(values.iter().collect(), out, |inner, out| value(inner, spelling, out))
        }
        AttributeValue::M(entries) => map(entries, spelling, out),
        AttributeValue::Null(_) if !plain => out.extend_from_slice(b"true"),
        _ => out.extend_from_slice(b"null"),
    }
}

fn sorted(set: &[String]) -> Vec<&String> {
    let mut set: Vec<&String> = set.iter().collect();
    set.sort_unstable();
    set
}

fn list<T>(values: Vec<T>, out: &mut Vec<u8>, mut each: impl FnMut(T, &mut Vec<u8>)) {
    out.push(b'[');
    for (index, value) in values.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        each(value, out);
    }
    out.push(b']');
}

fn binary(bytes: &Blob, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(BASE64.encode(bytes.as_ref()).as_bytes());
    out.push(b'"');
}

fn string(text: &str, out: &mut Vec<u8>) {
    let before = out.len();
    // A string into memory cannot fail; an empty one would be no JSON.
    if serde_json::to_writer(&mut *out, text).is_err() {
        out.truncate(before);
        out.extend_from_slice(b"\"\"");
    }
}

/// Whether a number may stand in JSON as DynamoDB wrote it.
fn is_json_number(digits: &str) -> bool {
    let rest = digits.strip_prefix('-').unwrap_or(digits);
    let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let all = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let no_zero_in_front = whole == "0" || !whole.starts_with('0');
    all(whole)
        && no_zero_in_front
        && all(fraction)
        && all(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Change, SequenceNumber};
    use crate::item::Key;
    use crate::version::{Hlc, Version};
    use serde_json::{Value, json};
    use std::time::{Duration, UNIX_EPOCH};

    fn all_types() -> Value {
        json!({
            "s": { "S": "a\"\n\u{1F600}" }, "n": { "N": "12345678901234567890123456789012345678" },
            "b": { "B": "AP8=" }, "t": { "BOOL": true }, "z": { "NULL": true }, "ss": { "SS": ["b", "a"] },
            "ns": { "NS": ["2", "1E+2"] }, "bs": { "BS": ["BA==", "AQ=="] },
            "l": { "L": [{ "M": { "x": { "L": [] } } }] }, "m": { "M": {} }
        })
    }

    fn spelled(spelling: Spelling) -> String {
        let mut out = Vec::new();
        map(&crate::json::to_item(&all_types()).unwrap().0, spelling, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn typed_items_are_what_they_were() {
        let read: Value = serde_json::from_str(&spelled(Spelling::Typed)).unwrap();
        let mut expected = all_types();
        expected["ss"]["SS"] = json!(["a", "b"]);
        expected["ns"]["NS"] = json!(["1E+2", "2"]);
        expected["bs"]["BS"] = json!(["AQ==", "BA=="]);
        assert_eq!(read, expected);
    }

    #[test]
    fn plain_items_keep_every_digit() {
        assert_eq!(
            spelled(Spelling::Plain),
            r#"{"b":"AP8=","bs":["AQ==","BA=="],"l":[{"x":[]}],"m":{},"n":12345678901234567890123456789012345678,"ns":[1E+2,2],"s":"a\"\n😀","ss":["a","b"],"t":true,"z":null}"#
        );
    }

    #[test]
    fn only_what_json_reads_stands_as_a_number() {
        for good in ["0", "-1.50", "1E-130", "0.1"] {
            assert!(is_json_number(good) && serde_json::from_str::<Value>(good).is_ok(), "{good}");
        }
        for bad in ["", "-", ".5", "1.", "01", "1e", "NaN", "+1"] {
            assert!(!is_json_number(bad), "{bad}");
        }
    }

    #[test]
    fn a_line_names_everything() {
        let key = crate::json::to_item(&json!({ "id": { "S": "k" } })).unwrap();
        let change = Change {
            sequence: SequenceNumber::parse("111").unwrap(),
            created: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            key: Key::new(key.clone()),
            event: Event::Remove,
            old: Some(Image { content: key, stamp: None }),
            new: None,
            by_ttl: true,
            size: 0,
        };
        let version = Some(Version::new(Hlc::from_millis(1), 3));
        let record = Record {
            change: &change,
            event: event(change.event),
            version,
            member: "orders",
            shard: "shardId-1",
        };
        let mut out = Vec::new();
        line(&record, Spelling::Plain, Images::Both, &mut out);
        let expected = concat!(
            r#"{"event":"REMOVE","key":{"id":"k"},"new":null,"old":{"id":"k"},"sequence":"111","#,
            r#""version":"0000000000010000.03","created":"2023-11-14T22:13:20Z","member":"orders","#,
            r#""shard":"shardId-1","ttl":true}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
