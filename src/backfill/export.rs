//! An export of a table to S3, as DynamoDB writes it, in a local folder: no read units, and items as they were at one time.
//!
//! Owns the manifest and the data files: which exports can be used, and that a file is what the manifest says before
//! anything of it is copied. Each data file is a segment, and a place in it a number of lines.

use super::source::SourceError;
use crate::item::Item;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::bufread::MultiGzDecoder;
use md5::{Digest as _, Md5};
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A page has no more bytes of lines than about this, as a page of a scan.
const PAGE: usize = 1 << 20;
/// A checksum is taken in pieces of so many bytes.
const PIECE: usize = 1 << 16;

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
    files: Vec<DataFile>,
}

#[derive(Debug)]
struct DataFile {
    path: PathBuf,
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
    /// Lines that were read.
    line: u64,
    /// Open at `line`; `None` before the first page, and after a page that nobody waited for.
    open: Option<Lines>,
}

type Lines = BufReader<MultiGzDecoder<BufReader<File>>>;

/// Lines of a data file.
#[derive(Debug)]
pub(super) struct FilePage {
    pub(super) items: Vec<Item>,
    /// Lines before the next page; `None` at the end of the file.
    pub(super) next: Option<u64>,
}

impl Export {
    /// Reads the manifest of the export in a folder: the one that holds `manifest-summary.json`.
    ///
    /// # Errors
    /// When it cannot be read, or is not a full export in DynamoDB JSON.
    pub fn open(folder: &Path) -> Result<Self, SourceError> {
        let path = folder.join("manifest-summary.json");
        let text = read(&path)?;
        let summary: Summary = serde_json::from_str(&text).map_err(|error| bad(&path, error))?;
        if summary.output_format != "DYNAMODB_JSON" {
            return Err(bad(
                &path,
                format!("its format is {}; DYNAMODB_JSON is needed", summary.output_format),
            ));
        }
        if summary.export_type.as_deref().is_some_and(|kind| kind != "FULL_EXPORT") {
            let why = "it is an incremental export, which holds changes and not items; the stream brings those. Export the \
                       whole table";
            return Err(bad(&path, why));
        }
        let at = summary.export_time.as_deref().map(humantime::parse_rfc3339_weak);
        let at = at.and_then(Result::ok).ok_or_else(|| bad(&path, "it has no exportTime"))?;
        let path = folder.join("manifest-files.json");
        let mut files = Vec::new();
        for line in read(&path)?.lines().filter(|line| !line.trim().is_empty()) {
            let entry: FileEntry = serde_json::from_str(line).map_err(|error| bad(&path, error))?;
            // The key is that of the bucket; below the export's folder it is always the same.
            let name = entry.data_file_s3_key.rsplit('/').next().unwrap_or_default();
            let path = folder.join("data").join(name);
            files.push(DataFile { path, items: entry.item_count, md5: entry.md5_checksum });
        }
        if files.is_empty() {
            return Err(bad(&path, "it names no data file"));
        }
        let Summary { export_arn: arn, table_arn: table, table_id: id, .. } = summary;
        let (items, bytes) = (summary.item_count, summary.billed_size_bytes);
        Ok(Self { arn, table, id, at, items, bytes, files })
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
        FileReading { export: Arc::clone(self), file, line, open: None }
    }
}

impl FileReading {
    /// The next page, of so many items at most. The first one takes as long as reading the whole file, whose checksum is
    /// compared before.
    ///
    /// # Errors
    /// What is wrong with the file. Cancelled, the same page comes again.
    pub(super) async fn page(&mut self, most: u16) -> Result<FilePage, SourceError> {
        let (export, file, line, open) = (Arc::clone(&self.export), self.file, self.line, self.open.take());
        let read = move || {
            let file = export.files.get(file as usize).ok_or(SourceError::Place)?;
            let mut lines = open.map_or_else(|| file.open(line), Ok)?;
            let (items, ended) = file.items(&mut lines, line, most)?;
            Ok((lines, items, ended))
        };
        let read = tokio::task::spawn_blocking(read).await;
        let (lines, items, ended) = read.map_err(|error| SourceError::Export(error.to_string()))??;
        self.line += items.len() as u64;
        self.open = Some(lines);
        Ok(FilePage { items, next: (!ended).then_some(self.line) })
    }
}

impl DataFile {
    /// Opens it at a line, once its checksum is right.
    fn open(&self, line: u64) -> Result<Lines, SourceError> {
        let failed = |error: std::io::Error| bad(&self.path, error);
        let (mut file, mut sum) = (File::open(&self.path).map_err(failed)?, Md5::new());
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece).map_err(failed)? {
                0 => break,
                count => sum.update(&piece[..count]),
            }
        }
        if BASE64.encode(sum.finalize()) != self.md5 {
            return Err(bad(&self.path, "its checksum is not that of the manifest: it was not copied whole"));
        }
        let file = BufReader::new(File::open(&self.path).map_err(failed)?);
        let mut lines = BufReader::new(MultiGzDecoder::new(file));
        let mut skipped = Vec::new();
        for _ in 0..line {
            skipped.clear();
            lines.read_until(b'\n', &mut skipped).map_err(failed)?;
        }
        Ok(lines)
    }

    /// The items of the next lines, and whether they are the last.
    fn items(&self, lines: &mut Lines, before: u64, most: u16) -> Result<(Vec<Item>, bool), SourceError> {
        let (mut items, mut bytes, mut text) = (Vec::new(), 0, Vec::new());
        while items.len() < usize::from(most) && bytes < PAGE {
            text.clear();
            let count = lines.read_until(b'\n', &mut text).map_err(|error| bad(&self.path, error))?;
            if count == 0 {
                let found = before + items.len() as u64;
                if found != self.items {
                    let why = format!("it has {found} items, the manifest says {}", self.items);
                    return Err(bad(&self.path, why));
                }
                return Ok((items, true));
            }
            bytes += count;
            let line: Result<Line, _> = serde_json::from_slice(&text);
            // The parser's own message could hold a value.
            let place = before + items.len() as u64 + 1;
            items.push(line.map_err(|_| bad(&self.path, format!("line {place} holds no item")))?.item);
        }
        Ok((items, false))
    }
}

fn read(path: &Path) -> Result<String, SourceError> {
    std::fs::read_to_string(path).map_err(|error| bad(path, error))
}

fn bad(path: &Path, why: impl std::fmt::Display) -> SourceError {
    SourceError::Export(format!("{}: {why}", path.display()))
}
