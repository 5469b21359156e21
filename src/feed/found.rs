//! A file that was written, and whose writer did not live to enter it in the manifest: its entry, from what is in it.
//!
//! The file may have been begun under another format or compression than the feed has now; its name tells. Pure.

use super::file::Entry;
use crate::change::SequenceNumber;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;
use bytes::Bytes;
use serde::Deserialize;
use std::io::Read;
use std::time::{Duration, UNIX_EPOCH};

/// What an entry is made of.
#[derive(Default, Deserialize)]
struct Row {
    sequence: String,
    version: String,
    created: String,
    shard: String,
}

/// The entry of a file whose range is after `after` and up to `last`; `None` for what is no file of a feed.
#[must_use]
pub fn entry(
    path: &str,
    route: &str,
    after: Option<&SequenceNumber>,
    last: &str,
    bytes: Vec<u8>,
) -> Option<Entry> {
    let length = bytes.len();
    let rows = if path.ends_with(".parquet") { of_parquet(bytes)? } else { of_lines(path, &bytes)? };
    let first = rows.first()?;
    // Times and versions are texts in their own order.
    let created = || rows.iter().map(|row| &row.created);
    let versions = || rows.iter().map(|row| &row.version);
    Some(Entry {
        path: path.to_owned(),
        route: route.to_owned(),
        shard: first.shard.clone(),
        after: after.map(ToString::to_string),
        first: first.sequence.clone(),
        last: last.to_owned(),
        records: rows.len(),
        bytes: length,
        created_from: created().min()?.clone(),
        created_to: created().max()?.clone(),
        version_from: versions().min()?.clone(),
        version_to: versions().max()?.clone(),
    })
}

fn of_lines(path: &str, bytes: &[u8]) -> Option<Vec<Row>> {
    let text = if path.ends_with(".zst") {
        zstd::decode_all(bytes).ok()?
    } else if path.ends_with(".gz") {
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(bytes).read_to_end(&mut text).ok()?;
        text
    } else {
        bytes.to_vec()
    };
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).ok()).collect()
}

fn of_parquet(bytes: Vec<u8>) -> Option<Vec<Row>> {
    let reader = SerializedFileReader::new(Bytes::from(bytes)).ok()?;
    let row = |columns: ::parquet::record::Row| {
        let mut row = Row::default();
        for (name, field) in columns.get_column_iter() {
            match (name.as_str(), field) {
                ("_sequence", Field::Str(text)) => row.sequence.clone_from(text),
                ("_version", Field::Str(text)) => row.version.clone_from(text),
                ("_shard", Field::Str(text)) => row.shard.clone_from(text),
                ("_created", Field::TimestampMillis(millis)) => {
                    let at = UNIX_EPOCH + Duration::from_millis(u64::try_from(*millis).unwrap_or_default());
                    row.created = humantime::format_rfc3339_seconds(at).to_string();
                }
                _ => {}
            }
        }
        row
    };
    let rows = reader.get_row_iter(None).ok()?.map(|columns| columns.ok().map(row));
    rows.collect::<Option<Vec<_>>>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Change, Event, Image};
    use crate::config::{Compression, FeedFormat, FeedPlace, Images, Partition};
    use crate::feed::parquet::{self, Schema};
    use crate::feed::{Record, file};
    use crate::item::Key;
    use crate::version::{Hlc, Version};
    use serde_json::json;

    #[test]
    fn the_entry_is_the_one_that_the_writer_would_have_made() {
        let item =
            |id: &str| crate::json::to_item(&json!({ "id": { "S": id }, "tags": { "SS": ["x"] } })).unwrap();
        let change = |sequence: &str, seconds: u64| Change {
            sequence: SequenceNumber::parse(sequence).unwrap(),
            created: UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds),
            key: Key::new(item("k")),
            event: Event::Modify,
            old: None,
            new: Some(Image { content: item("k").into(), stamp: None }),
            by_ttl: false,
            size: 0,
        };
        let changes = [change("111", 5), change("112", 4), change("113", 6)];
        let records = changes.iter().enumerate().map(|(index, change)| Record {
            change,
            event: "MODIFY",
            version: Some(Version::new(Hlc::from_millis(7 - index as u64), 1)),
            member: "m",
            shard: "s",
        });
        let records: Vec<Record<'_>> = records.collect();
        let after = SequenceNumber::parse("110");
        for (format, compression) in [
            (FeedFormat::Json, Compression::Zstd),
            (FeedFormat::DynamoJson, Compression::Gzip),
            (FeedFormat::Json, Compression::None),
            (FeedFormat::Parquet, Compression::Zstd),
        ] {
            let feed = crate::config::Feed {
                name: "f".to_owned(),
                place: FeedPlace::Stdout,
                format,
                images: Images::New,
                compression,
                partition: Partition::None,
                roll_bytes: 1,
                roll_age: Duration::from_secs(1),
                columns: Vec::new(),
            };
            let bytes = match format {
                FeedFormat::Parquet => {
                    let columns = parquet::infer(&records);
                    parquet::encode(&feed, &Schema { columns, inferred: true }, &records).unwrap()
                }
                _ => file::lines(&feed, compression, &records).unwrap(),
            };
            let path = format!("r/f/s_111_114.{}", file::suffix(&feed));
            let made = file::entry(&path, "r", after.as_ref(), "114", &records, bytes.len());
            assert_eq!(entry(&path, "r", after.as_ref(), "114", bytes), made, "{path}");
            assert_eq!(entry(&path, "r", None, "114", b"something else".to_vec()), None, "{path}");
        }
    }
}
