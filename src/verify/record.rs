//! Where differences go: JSON lines, on stdout or in a file.
//!
//! In a file, a line for each segment that is done stands behind the differences that were found in it. A comparison that
//! was broken off goes on behind the last one: differences of a segment that was not done are taken out first, because
//! it is compared again.

use super::VerifyError;
use super::judge::Kind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

/// What is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The route or group.
    pub of: String,
    /// The members' tables by their names.
    pub members: BTreeMap<String, String>,
    /// In how many segments they are read.
    pub segments: u32,
    /// The segments of the sample; `None` for all.
    pub sample: Option<Vec<u32>>,
    /// The route's shape; empty for none.
    #[serde(default)]
    pub shape: String,
}

/// What was found. Adds up.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Keys that were compared.
    pub compared: u64,
    /// Of these, those under which the scans found the same.
    pub equal: u64,
    /// Those that were the same when they were looked up again: a change was on its way.
    pub in_flight: u64,
    /// Those that were changed again and again, so that nothing can be said.
    pub changing: u64,
    /// Differences by kind.
    pub differences: BTreeMap<String, u64>,
    /// Differences that were mended and are there no more.
    pub repaired: u64,
    /// Read units of the scans.
    pub read_units: f64,
}

impl Tally {
    /// Differences that were not mended.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.differences.values().sum::<u64>().saturating_sub(self.repaired)
    }

    /// Of one kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> u64 {
        self.differences.get(kind.name()).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.compared += other.compared;
        self.equal += other.equal;
        self.in_flight += other.in_flight;
        self.changing += other.changing;
        for (kind, count) in &other.differences {
            *self.differences.entry(kind.clone()).or_default() += count;
        }
        self.repaired += other.repaired;
        self.read_units += other.read_units;
    }
}

/// Takes differences.
#[derive(Debug)]
pub struct Record {
    /// `None` for stdout, or nowhere.
    file: Option<(PathBuf, File)>,
    /// Whether nobody wants the lines.
    quiet: bool,
    /// What an earlier process has written, as far as it counts.
    before: Option<Header>,
    done: BTreeSet<u32>,
    tally: Tally,
}

impl Record {
    /// On stdout; it cannot be gone on with.
    #[must_use]
    pub fn stdout() -> Self {
        Self { file: None, quiet: false, before: None, done: BTreeSet::new(), tally: Tally::default() }
    }

    /// Nowhere: only what was found in all counts.
    #[must_use]
    pub fn nowhere() -> Self {
        Self { quiet: true, ..Self::stdout() }
    }

    /// In a file, which may hold a comparison that was broken off.
    ///
    /// # Errors
    /// The file cannot be read or written, or is no such record, or one of a comparison that is done.
    pub fn open(path: &Path) -> Result<Self, VerifyError> {
        let failed = |error| VerifyError::Output(path.display().to_string(), error);
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed(error)),
        };
        let mut record = Self::stdout();
        let kept = record.take_up(path, &text)?;
        if kept != text {
            let beside = path.with_extension("tmp");
            std::fs::write(&beside, kept).and_then(|()| std::fs::rename(&beside, path)).map_err(failed)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        record.file = Some((path.to_owned(), file));
        Ok(record)
    }

    /// Reads what is there; gives what of it counts.
    fn take_up(&mut self, path: &Path, text: &str) -> Result<String, VerifyError> {
        let wrong =
            |what: &str| VerifyError::Request(format!("{}: {what}; name another file", path.display()));
        // The last line may have been cut off.
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let mut kept = String::new();
        let mut open = String::new();
        for (number, line) in lines.enumerate() {
            let value: Value = serde_json::from_str(line).map_err(|_| wrong("it holds something else"))?;
            if number == 0 {
                let header = value.get("verify").cloned().ok_or_else(|| wrong("it holds something else"))?;
                self.before =
                    Some(serde_json::from_value(header).map_err(|_| wrong("it holds something else"))?);
                kept.push_str(line);
                continue;
            }
            if value.get("summary").is_some() {
                return Err(wrong("it holds a comparison that is done"));
            }
            open.push_str(line);
            if let Some(tally) = value.get("done") {
                let tally: Tally =
                    serde_json::from_value(tally.clone()).map_err(|_| wrong("it holds something else"))?;
                let segment = value["segment"].as_u64().and_then(|number| u32::try_from(number).ok());
                self.done.insert(segment.ok_or_else(|| wrong("it holds something else"))?);
                self.tally.add(&tally);
                // Others may have been under way at the same time: theirs are told apart by their segment.
                let number = value["segment"].clone();
                let (its, others): (Vec<&str>, Vec<&str>) = open.split_inclusive('\n').partition(|line| {
                    serde_json::from_str::<Value>(line).is_ok_and(|value| value["segment"] == number)
                });
                kept.push_str(&its.concat());
                open = others.concat();
            }
        }
        Ok(kept)
    }

    /// Begins, or goes on; gives what is compared and which segments are left.
    ///
    /// # Errors
    /// The file is of another comparison, or cannot be written.
    pub(super) fn begin(mut self, header: Header) -> Result<(Header, Vec<u32>, Self), VerifyError> {
        let header = match self.before.take() {
            None => {
                self.line(&json!({ "verify": header }))?;
                header
            }
            Some(before) => {
                let same = before.of == header.of
                    && before.members == header.members
                    && before.shape == header.shape
                    && before.sample.is_some() == header.sample.is_some();
                if !same {
                    let file =
                        self.file.as_ref().map(|(path, _)| path.display().to_string()).unwrap_or_default();
                    let why = format!("{file}: it is of another comparison; name another file");
                    return Err(VerifyError::Request(why));
                }
                before
            }
        };
        let all = header.sample.clone().unwrap_or_else(|| (0..header.segments).collect());
        let left = all.into_iter().filter(|segment| !self.done.contains(segment)).collect();
        Ok((header, left, self))
    }

    /// Takes a line.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn line(&mut self, line: &Value) -> Result<(), VerifyError> {
        let text = format!("{line}\n");
        match &mut self.file {
            Some((path, file)) => {
                let failed = |error| VerifyError::Output(path.display().to_string(), error);
                file.write_all(text.as_bytes()).map_err(failed)
            }
            None if self.quiet => Ok(()),
            // A reader that has gone away has seen enough.
            None => match std::io::stdout().lock().write_all(text.as_bytes()) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(VerifyError::Stopped),
                done => done.map_err(|error| VerifyError::Output("stdout".to_owned(), error)),
            },
        }
    }

    /// A segment is done.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn segment(&mut self, segment: u32, tally: &Tally) -> Result<(), VerifyError> {
        self.tally.add(tally);
        self.done.insert(segment);
        self.line(&json!({ "segment": segment, "done": tally }))
    }

    /// How many segments are done, and what was found in them.
    pub(super) fn so_far(&self) -> (usize, &Tally) {
        (self.done.len(), &self.tally)
    }

    /// Everything is done.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn end(mut self) -> Result<Tally, VerifyError> {
        self.line(&json!({ "summary": self.tally }))?;
        if let Some((path, file)) = &self.file {
            file.sync_all().map_err(|error| VerifyError::Output(path.display().to_string(), error))?;
        }
        Ok(self.tally)
    }
}
