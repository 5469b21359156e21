//! An export of a table to S3, as DynamoDB writes it, in a folder or a bucket: no read units, and items as they were at one
//! time.
//!
//! Owns the manifest and the data files: which exports can be used, and that a file is what the manifest says before
//! anything of it is copied. Each data file is a segment, and a place in it a number of lines. A file is read twice, piece by
//! piece: for its checksum, and then for its lines, which are those of the very file that was checked.

use super::source::SourceError;
use crate::failure::Class;
use crate::feed::store::{Seen, Store};
use crate::item::Item;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::write::MultiGzDecoder;
use md5::{Digest as _, Md5};
use serde::Deserialize;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The names of the manifest's two parts.
pub(super) const SUMMARY: &str = "manifest-summary.json";
pub(super) const FILES: &str = "manifest-files.json";

/// A page has no more bytes of lines than about this, as a page of a scan.
const PAGE: usize = 1 << 20;
/// A file is fetched in pieces of so many bytes: few requests, and little to hold for each segment.
const PIECE: u64 = 1 << 20;
/// So many compressed bytes are unpacked at a time: a thousand times as many at the very most.
const BITE: usize = 1 << 14;

/// A full export in DynamoDB JSON.
#[derive(Debug)]
pub struct Export {
    /// Its ARN.
    pub arn: String,
    /// The ARN of the table that was exported.
    pub table: String,
    /// That table's id.
    pub id: String,
    /// The time as of which the items are.
    pub at: SystemTime,
    /// How many items there are.
    pub items: u64,
    /// About how many bytes.
    pub bytes: u64,
    store: Store,
    files: Vec<DataFile>,
}

#[derive(Debug)]
struct DataFile {
    /// Below the export's folder.
    name: String,
    items: u64,
    /// In base64.
    md5: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    export_arn: String,
    table_arn: String,
    #[serde(default)]
    table_id: String,
    export_time: Option<String>,
    output_format: String,
    export_type: Option<String>,
    #[serde(default)]
    item_count: u64,
    #[serde(default)]
    billed_size_bytes: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileEntry {
    item_count: u64,
    md5_checksum: String,
    data_file_s3_key: String,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "Item")]
    item: Item,
}

/// A data file that is being read.
#[derive(Debug)]
pub(super) struct FileReading {
    export: Arc<Export>,
    file: u32,
    /// Lines that pages gave.
    line: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Nothing is known of the file.
    Begun,
    /// The checksum of its first bytes.
    Summing(Seen, Md5, u64),
    /// It is what the manifest says.
    Reading(Box<Lines>),
}

/// A file's lines, unpacked as they are asked for.
struct Lines {
    seen: Seen,
    /// Bytes that were fetched.
    fetched: u64,
    /// What was fetched and is not unpacked yet.
    packed: Vec<u8>,
    /// How much of that is unpacked.
    bitten: usize,
    unpack: MultiGzDecoder<Vec<u8>>,
    /// Whether all is.
    whole: bool,
    /// How much of what is unpacked was given.
    given: usize,
    /// Lines before the first one of the next page.
    skip: u64,
    /// The page that is being filled, and its bytes.
    page: Vec<Item>,
    bytes: usize,
}

/// Lines of a data file.
#[derive(Debug)]
pub(super) struct FilePage {
    pub(super) items: Vec<Item>,
    /// Lines before the next page; `None` at the end of the file.
    pub(super) next: Option<u64>,
}

impl Export {
    /// An export by its manifest's two parts, in the folder that holds them.
    ///
    /// # Errors
    /// When it is not a full export in DynamoDB JSON.
    pub fn new(store: Store, summary: &[u8], files: &[u8]) -> Result<Self, SourceError> {
        let Summary {
            export_arn: arn,
            table_arn: table,
            table_id: id,
            export_time,
            output_format,
            export_type,
            item_count: items,
            billed_size_bytes: bytes,
        } = serde_json::from_slice(summary).map_err(|error| bad(SUMMARY, error))?;
        if output_format != "DYNAMODB_JSON" {
            return Err(bad(SUMMARY, format!("its format is {output_format}; DYNAMODB_JSON is needed")));
        }
        if export_type.as_deref().is_some_and(|kind| kind != "FULL_EXPORT") {
            let why = "it is an incremental export, which holds changes and not items; the stream brings those. Export the \
                       whole table";
            return Err(bad(SUMMARY, why));
        }
        let at = export_time.as_deref().map(humantime::parse_rfc3339_weak);
        let at = at.and_then(Result::ok).ok_or_else(|| bad(SUMMARY, "it has no exportTime"))?;
        let mut listed = Vec::new();
        for line in files.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            let entry: FileEntry = serde_json::from_slice(line).map_err(|error| bad(FILES, error))?;
            // The key is that of the bucket; below the export's folder it is always the same.
            let name = entry.data_file_s3_key.rsplit('/').next().unwrap_or_default();
            let (name, items) = (format!("data/{name}"), entry.item_count);
            listed.push(DataFile { name, items, md5: entry.md5_checksum });
        }
        if listed.is_empty() {
            return Err(bad(FILES, "it names no data file"));
        }
        Ok(Self { arn, table, id, at, items, bytes, store, files: listed })
    }

    /// How many data files there are.
    #[must_use]
    pub fn segments(&self) -> u32 {
        u32::try_from(self.files.len()).unwrap_or(u32::MAX)
    }

    /// Whether deletes since then are still known at a time.
    pub(super) fn fresh(&self, by: SystemTime, retention: Duration) -> Result<(), SourceError> {
        if self.at + retention < by {
            return Err(SourceError::TooOld(humantime::format_rfc3339_seconds(self.at).to_string()));
        }
        Ok(())
    }

    /// A data file from a line on.
    pub(super) fn read(self: &Arc<Self>, file: u32, line: u64) -> FileReading {
        FileReading { export: Arc::clone(self), file, line, stage: Stage::Begun }
    }
}

impl FileReading {
    /// The next page, of so many items at most. The first one takes as long as fetching the whole file, whose checksum is
    /// compared before.
    ///
    /// # Errors
    /// What is wrong with the file. After a call that failed, and cancelled, it goes on where it was.
    pub(super) async fn page(&mut self, most: u16) -> Result<FilePage, SourceError> {
        let file = self.export.files.get(self.file as usize).ok_or(SourceError::Place)?;
        loop {
            match &mut self.stage {
                Stage::Begun => {
                    let seen = self.export.store.look(&file.name).await.map_err(SourceError::Call)?;
                    let seen = seen.ok_or_else(|| bad(&file.name, "it is not there"))?;
                    self.stage = Stage::Summing(seen, Md5::new(), 0);
                }
                Stage::Summing(seen, sum, at) if *at < seen.size => {
                    let piece = file.piece(&self.export.store, seen, *at).await?;
                    sum.update(&piece);
                    *at += piece.len() as u64;
                }
                Stage::Summing(seen, sum, _) => {
                    if BASE64.encode(sum.clone().finalize()) != file.md5 {
                        let why = "its checksum is not that of the manifest: it was not copied whole";
                        return Err(bad(&file.name, why));
                    }
                    self.stage = Stage::Reading(Box::new(Lines::new(seen.clone(), self.line)));
                }
                Stage::Reading(lines) => {
                    let ended = !lines.fill(&self.export.store, file, most, self.line).await?;
                    let items = std::mem::take(&mut lines.page);
                    lines.bytes = 0;
                    self.line += items.len() as u64;
                    if ended && self.line != file.items {
                        let why = format!("it has {} items, the manifest says {}", self.line, file.items);
                        return Err(bad(&file.name, why));
                    }
                    return Ok(FilePage { items, next: (!ended).then_some(self.line) });
                }
            }
        }
    }
}

impl DataFile {
    /// The bytes from a place on, which is not the end.
    async fn piece(&self, store: &Store, seen: &Seen, from: u64) -> Result<Vec<u8>, SourceError> {
        let to = seen.size.min(from + PIECE);
        match store.part(&self.name, seen, from..to).await {
            Ok(piece) if piece.is_empty() => Err(bad(&self.name, "it became shorter while it was read")),
            Ok(piece) => Ok(piece),
            Err(failure) if matches!(failure.class, Class::Condition | Class::NotFound) => {
                Err(bad(&self.name, "it was replaced while it was read"))
            }
            Err(failure) => Err(SourceError::Call(failure)),
        }
    }
}

impl Lines {
    fn new(seen: Seen, skip: u64) -> Self {
        let unpack = MultiGzDecoder::new(Vec::new());
        Self {
            seen,
            fetched: 0,
            packed: Vec::new(),
            bitten: 0,
            unpack,
            whole: false,
            given: 0,
            skip,
            page: Vec::new(),
            bytes: 0,
        }
    }

    /// Fills the page; `false` when the file has no more. `before` lines came before it.
    async fn fill(
        &mut self,
        store: &Store,
        file: &DataFile,
        most: u16,
        before: u64,
    ) -> Result<bool, SourceError> {
        while self.page.len() < usize::from(most) && self.bytes < PAGE {
            let unpacked = &self.unpack.get_ref()[self.given..];
            let end = unpacked.iter().position(|byte| *byte == b'\n');
            let last = (self.whole && !unpacked.is_empty()).then_some(unpacked.len());
            if let Some(end) = end.or(last) {
                if self.skip > 0 {
                    self.skip -= 1;
                } else {
                    let line: Result<Line, _> = serde_json::from_slice(&unpacked[..end]);
                    // The parser's own message could hold a value.
                    let place = before + self.page.len() as u64 + 1;
                    let line = line.map_err(|_| bad(&file.name, format!("line {place} holds no item")))?;
                    self.page.push(line.item);
                    self.bytes += end;
                }
                self.given += (end + 1).min(unpacked.len());
            } else if self.whole {
                return Ok(false);
            } else if self.bitten < self.packed.len() {
                self.bite().map_err(|error| bad(&file.name, error))?;
            } else if self.fetched < self.seen.size {
                self.packed = file.piece(store, &self.seen, self.fetched).await?;
                (self.bitten, self.fetched) = (0, self.fetched + self.packed.len() as u64);
            } else {
                self.unpack.try_finish().map_err(|error| bad(&file.name, error))?;
                self.whole = true;
            }
        }
        Ok(true)
    }

    /// Unpacks some more.
    fn bite(&mut self) -> std::io::Result<()> {
        let given = std::mem::take(&mut self.given);
        self.unpack.get_mut().drain(..given);
        let to = self.packed.len().min(self.bitten + BITE);
        self.unpack.write_all(&self.packed[self.bitten..to])?;
        self.bitten = to;
        Ok(())
    }
}

impl std::fmt::Debug for Lines {
    /// Without items.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("fetched", &self.fetched).finish_non_exhaustive()
    }
}

pub(super) fn bad(name: &str, why: impl std::fmt::Display) -> SourceError {
    SourceError::Export(format!("{name}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::{Aws, Base};
    use crate::config::FeedPlace;
    use aws_sdk_dynamodb::types::AttributeValue;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};
    use std::path::Path;

    /// Lines of many sizes, which do not pack well; one is larger than a page.
    fn lines() -> Vec<String> {
        let mut random = StdRng::seed_from_u64(7);
        let mut line = |size: usize| {
            let text: String = (0..size).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect();
            format!("{{\"Item\":{{\"id\":{{\"S\":\"{text}\"}}}}}}")
        };
        [5, 300_000, 17, PAGE + 5, 600_000, 1, 1, 400_000].map(&mut line).into()
    }

    /// A data file of two gzip members, as they may be joined.
    fn packed(text: &str) -> Vec<u8> {
        let (one, two) = text.split_at(text.len() / 3);
        let pack = |part: &str| {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(part.as_bytes()).unwrap();
            gzip.finish().unwrap()
        };
        [pack(one), pack(two)].concat()
    }

    async fn export(folder: &Path, data: &[u8], items: usize) -> Arc<Export> {
        std::fs::create_dir_all(folder.join("data")).unwrap();
        std::fs::write(folder.join("data/a.json.gz"), data).unwrap();
        let place = FeedPlace::Files(folder.to_owned());
        let store = Store::existing(&place, &Aws::new(Base::default())).await.unwrap();
        let summary = r#"{"exportArn":"e","tableArn":"t","exportTime":"2026-01-01T00:00:00Z","outputFormat":"DYNAMODB_JSON"}"#;
        let md5 = BASE64.encode(Md5::digest(data));
        let files =
            format!(r#"{{"itemCount":{items},"md5Checksum":"{md5}","dataFileS3Key":"x/data/a.json.gz"}}"#);
        Arc::new(Export::new(store, summary.as_bytes(), files.as_bytes()).unwrap())
    }

    async fn rest(reading: &mut FileReading, most: u16) -> Result<Vec<String>, SourceError> {
        let mut found = Vec::new();
        loop {
            let FilePage { items, next } = reading.page(most).await?;
            assert!(items.len() <= usize::from(most));
            found.extend(items.into_iter().map(|item| match &item.0["id"] {
                AttributeValue::S(text) => text.clone(),
                other => panic!("{other:?}"),
            }));
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    #[tokio::test]
    async fn every_line_comes_once_from_wherever_a_file_is_gone_on_with() {
        let lines = lines();
        let texts: Vec<String> =
            lines.iter().map(|line| line.split('"').nth(7).unwrap().to_owned()).collect();
        for end in ["\n", ""] {
            let folder = tempfile::TempDir::new().unwrap();
            let data = packed(&(lines.join("\n") + end));
            assert!(data.len() as u64 > PIECE, "more than one piece");
            let export = export(folder.path(), &data, lines.len()).await;
            for from in [0, 3, lines.len() - 1, lines.len()] {
                for most in [1, 100] {
                    let found = rest(&mut export.read(0, from as u64), most).await.unwrap();
                    assert_eq!(found, texts[from..], "from {from}, {most} at a time");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_or_torn_gives_no_further_item() {
        let lines = lines();
        let folder = tempfile::TempDir::new().unwrap();
        let data = packed(&lines.join("\n"));
        let whole = export(folder.path(), &data, lines.len()).await;
        let mut reading = whole.read(0, 0);
        assert_eq!(reading.page(1).await.unwrap().items.len(), 1);
        std::fs::remove_file(folder.path().join("data/a.json.gz")).unwrap();
        let why = rest(&mut reading, 1).await.unwrap_err().to_string();
        assert!(why.contains("it was replaced while it was read"), "{why}");
        std::fs::write(folder.path().join("data/a.json.gz"), &data[..data.len() - 9]).unwrap();
        let why = rest(&mut whole.read(0, 0), 1).await.unwrap_err().to_string();
        assert!(why.contains("it was not copied whole"), "{why}");
        // What the manifest says itself is wrong.
        let torn = export(folder.path(), &data[..data.len() - 9], lines.len()).await;
        assert!(rest(&mut torn.read(0, 0), 1).await.is_err());
        let more = export(folder.path(), &data, lines.len() + 1).await;
        let why = rest(&mut more.read(0, 0), 1).await.unwrap_err().to_string();
        assert!(why.contains("it has 8 items, the manifest says 9"), "{why}");
    }
}
