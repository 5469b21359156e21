//! A file of a feed: its name, its bytes and its entry in the manifest. Pure: the same records give the same file.

use super::{Record, lines};
use crate::change::SequenceNumber;
use crate::config::{self, Compression, FeedFormat, Partition};
use crate::failure::{Class, Failure};
use crate::json::Spelling;
use serde::Serialize;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The level of zstd: its own default.
const ZSTD: i32 = 3;
/// The level of gzip: its own default.
const GZIP: u32 = 6;
/// Text is compressed in pieces of so many bytes: a call for each costs nothing then.
const PIECE: usize = 64 << 10;

/// An entry of a feed's manifest: what one file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The file's name within the feed.
    pub path: String,
    /// The route that wrote it.
    pub route: String,
    /// The shard, or the segment of a snapshot.
    pub shard: String,
    /// The last record before the file; absent at the beginning of the shard.
    pub after: Option<String>,
    /// The first record in the file.
    pub first: String,
    /// The last record that the file stands for; one that a rule leaves out may be the last.
    pub last: String,
    /// Records in the file.
    pub records: usize,
    /// The file's size.
    pub bytes: usize,
    /// When the earliest of the records was created (RFC 3339).
    pub created_from: String,
    /// When the latest of the records was created (RFC 3339).
    pub created_to: String,
    /// The lowest version.
    pub version_from: String,
    /// The highest version.
    pub version_to: String,
}

/// How the names of a feed's files end.
#[must_use]
pub fn suffix(feed: &config::Feed) -> &'static str {
    match (feed.format, feed.compression) {
        (FeedFormat::Parquet, _) => "parquet",
        (_, Compression::Zstd) => "jsonl.zst",
        (_, Compression::Gzip) => "jsonl.gz",
        (_, Compression::None) => "jsonl",
    }
}

/// The directory of a file whose first record was created then; empty without partitions, else with a slash at its end.
#[must_use]
pub fn directory(partition: Partition, created: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(created).to_string();
    let (day, hour) = (text.get(..10).unwrap_or_default(), text.get(11..13).unwrap_or_default());
    match partition {
        Partition::Hour => format!("dt={day}/hour={hour}/"),
        Partition::Day => format!("dt={day}/"),
        Partition::None => String::new(),
    }
}

/// Whether a record belongs to a later partition than the file that began with one created `first`.
#[must_use]
pub fn is_later(partition: Partition, first: SystemTime, created: SystemTime) -> bool {
    let length = match partition {
        Partition::Hour => Duration::from_hours(1),
        Partition::Day => Duration::from_hours(24),
        Partition::None => return false,
    };
    let number =
        |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / length.as_secs();
    number(created) > number(first)
}

/// The directory of a route's changes within a feed's place, which other feeds may share.
#[must_use]
pub fn root(feed: &config::Feed, route: &str) -> String {
    format!("{route}/{}", feed.name)
}

/// The directory of a route's snapshots.
#[must_use]
pub fn snapshot_root(feed: &config::Feed, route: &str) -> String {
    format!("{route}.snapshot/{}", feed.name)
}

/// The name of a file of changes within its feed.
#[must_use]
pub fn name(
    feed: &config::Feed,
    route: &str,
    shard: &str,
    created: SystemTime,
    first: &SequenceNumber,
    last: &SequenceNumber,
) -> String {
    let directory = directory(feed.partition, created);
    format!("{}/{directory}{shard}_{first}_{last}.{}", root(feed, route), suffix(feed))
}

/// The name of the manifest's entry for a file below a root: as the file's, in a directory of its own.
#[must_use]
pub fn entry_name(root: &str, path: &str) -> String {
    let within = path.strip_prefix(root).unwrap_or(path).trim_start_matches('/');
    format!("{root}/_manifest/{within}.json")
}

/// The entry of a file of these records, which are not empty.
#[must_use]
pub fn entry(
    path: &str,
    route: &str,
    after: Option<&SequenceNumber>,
    last: &str,
    records: &[Record<'_>],
    bytes: usize,
) -> Option<Entry> {
    let first = records.first()?;
    let created = || records.iter().map(|record| record.change.created);
    let versions = || records.iter().filter_map(|record| record.version);
    let time = |at: SystemTime| humantime::format_rfc3339_seconds(at).to_string();
    Some(Entry {
        path: path.to_owned(),
        route: route.to_owned(),
        shard: first.shard.to_owned(),
        after: after.map(ToString::to_string),
        first: first.change.sequence.to_string(),
        last: last.to_owned(),
        records: records.len(),
        bytes,
        created_from: time(created().min()?),
        created_to: time(created().max()?),
        version_from: versions().min().unwrap_or_default().to_string(),
        version_to: versions().max().unwrap_or_default().to_string(),
    })
}

/// Records as lines of text, compressed the same way every time. The text is never there as a whole, unless it is what is
/// asked for.
///
/// # Errors
/// When memory does not suffice.
pub fn lines(
    feed: &config::Feed,
    compression: Compression,
    records: &[Record<'_>],
) -> Result<Vec<u8>, Failure> {
    compressed(feed, compression, records)
        .map_err(|error| Failure::new(Class::Transient, "Compress", error.to_string()))
}

fn compressed(
    feed: &config::Feed,
    compression: Compression,
    records: &[Record<'_>],
) -> std::io::Result<Vec<u8>> {
    match compression {
        Compression::None => {
            let mut text = Vec::new();
            write(feed, records, &mut text)?;
            Ok(text)
        }
        Compression::Zstd => {
            let mut encoder = zstd::Encoder::new(Vec::new(), ZSTD)?;
            write(feed, records, &mut encoder)?;
            encoder.finish()
        }
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP));
            write(feed, records, &mut encoder)?;
            encoder.finish()
        }
    }
}

fn write(feed: &config::Feed, records: &[Record<'_>], out: &mut impl Write) -> std::io::Result<()> {
    let spelling = match feed.format {
        FeedFormat::DynamoJson => Spelling::Typed,
        FeedFormat::Json | FeedFormat::Parquet => Spelling::Plain,
    };
    let mut text = Vec::new();
    for record in records {
        lines::line(record, spelling, feed.images, &mut text);
        if text.len() >= PIECE {
            out.write_all(&text)?;
            text.clear();
        }
    }
    out.write_all(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Change, Event, Image};
    use crate::item::{Item, Key};
    use aws_sdk_dynamodb::types::AttributeValue;
    use std::io::Read;

    const AT: Duration = Duration::from_secs(1_700_000_000);

    #[test]
    fn partitions_are_directories_in_utc() {
        let at = UNIX_EPOCH + AT;
        assert_eq!(directory(Partition::Hour, at), "dt=2023-11-14/hour=22/");
        assert_eq!(directory(Partition::Day, at), "dt=2023-11-14/");
        assert_eq!(directory(Partition::None, at), "");
        let later = |partition, seconds| is_later(partition, at, at + Duration::from_secs(seconds));
        assert!(!later(Partition::Hour, 2799) && later(Partition::Hour, 2800));
        assert!(!later(Partition::Day, 6399) && later(Partition::Day, 6400));
        assert!(!later(Partition::None, 1 << 30));
        assert!(!is_later(Partition::Hour, at, UNIX_EPOCH), "one that steps back stays");
    }

    #[test]
    fn what_is_compressed_reads_back_and_is_the_same_every_time() {
        let feed = config::Feed {
            name: "f".to_owned(),
            place: config::FeedPlace::Stdout,
            format: FeedFormat::Json,
            images: config::Images::New,
            compression: Compression::Zstd,
            partition: Partition::None,
            roll_bytes: 1,
            roll_age: Duration::from_secs(1),
            columns: Vec::new(),
        };
        let change = |n: u32| {
            let text = |n: u32| AttributeValue::S(n.wrapping_mul(n).wrapping_mul(40_503).to_string());
            let key = Item([("id".to_owned(), text(n))].into());
            Change {
                sequence: SequenceNumber::parse(&n.to_string()).unwrap(),
                created: UNIX_EPOCH + AT,
                key: Key::new(key.clone()),
                event: Event::Insert,
                old: None,
                new: Some(Image { content: key.into(), stamp: None }),
                by_ttl: false,
                size: 0,
            }
        };
        let changes: Vec<Change> = (0..3000).map(change).collect();
        let record = |change| Record { change, event: "INSERT", version: None, member: "m", shard: "s" };
        let records: Vec<Record<'_>> = changes.iter().map(record).collect();
        let with = |compression| lines(&feed, compression, &records).unwrap();
        let text = with(Compression::None);
        assert!(text.len() > 2 * PIECE && text.iter().filter(|byte| **byte == b'\n').count() == 3000);
        assert_eq!(zstd::decode_all(with(Compression::Zstd).as_slice()).unwrap(), text);
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(with(Compression::Gzip).as_slice()).read_to_end(&mut read).unwrap();
        assert_eq!(read, text);
        for compression in [Compression::Zstd, Compression::Gzip] {
            assert_eq!(with(compression), with(compression));
        }
    }
}
