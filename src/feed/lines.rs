//! Records as lines of JSON: pure, and the same bytes for the same records, whoever writes them.
//!
//! Names are sorted, and so are sets; nothing depends on a clock, a hash map's order or the pages that the records
//! came in.

use super::Record;
use crate::change::{Event, Image};
use crate::config::Images;
use crate::json::{Spelling, write_fields, write_text};
use crate::view::Fields;

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
    write_fields(&Fields::of(&change.key.attributes().0), spelling, out);
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
        write_text(text, out);
    }
    if change.by_ttl {
        out.extend_from_slice(b",\"ttl\":true");
    }
    out.extend_from_slice(b"}\n");
}

fn image(image: Option<&Image>, spelling: Spelling, out: &mut Vec<u8>) {
    match (image, spelling) {
        (None, _) => out.extend_from_slice(b"null"),
        (Some(image), Spelling::Typed) => out.extend_from_slice(image.content.text().as_bytes()),
        (Some(image), Spelling::Plain) => write_fields(&image.content.fields(), spelling, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Change, SequenceNumber};
    use crate::item::Key;
    use crate::version::{Hlc, Version};
    use serde_json::json;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn a_line_names_everything() {
        let key = crate::json::to_item(&json!({ "id": { "S": "k" } })).unwrap();
        let change = Change {
            sequence: SequenceNumber::parse("111").unwrap(),
            created: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            key: Key::new(key.clone()),
            event: Event::Remove,
            old: Some(Image { content: key.into(), stamp: None }),
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
