//! The conflict journal: writes of one member that lost to another's, kept in the state table for a while, or in a file.
//!
//! Two writes conflict when neither writer had seen the other's. The last writer wins, and what the other wrote is
//! gone from the tables; here it is said which, and what. A row's key is a function of the write that lost and of the
//! member that won, so a replay writes the same row again. In a file it may so come twice.
//!
//! Rows: `conflict#<group>#<x>`, x the first digit of the key's digest, so that they spread / `<loser's
//! version>#<key digest>#<winner>`. They expire after a week.

use crate::clock::Clock;
use crate::config::{self, Conflicts};
use crate::content::Content;
use crate::failure::{Class, Failure};
use crate::item::Key;
use crate::json;
use crate::state::{EXPIRES, Row, SK, StateTable, get_number, get_text, key, number, text};
use crate::telemetry::metrics::Metrics;
use crate::version::Version;
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

/// How long a conflict is kept.
const RETENTION: Duration = Duration::from_hours(7 * 24);
/// A larger image, as JSON, is not kept: two of them must fit into a row.
const LARGEST: usize = 64 * 1024;
/// A worker that samples keeps so many a second.
const SAMPLED: u32 = 10;

/// How a write lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Something newer stood where it was to be written.
    Superseded,
    /// It was written over something newer, which has come back.
    Repaired,
    /// It created an item that had been deleted later.
    Deleted,
}

impl How {
    /// As it is written down.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Superseded => "superseded",
            Self::Repaired => "repaired",
            Self::Deleted => "deleted",
        }
    }
}

/// One of the two writes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Side<'a> {
    /// Its version.
    pub version: Version,
    /// What it wrote; `None` for a delete.
    pub item: Option<&'a Content>,
}

/// A write that lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conflict<'a> {
    /// The item's key.
    pub key: &'a Key,
    /// The write that is gone.
    pub loser: Side<'a>,
    /// The write that stays.
    pub winner: Side<'a>,
    /// How it lost.
    pub how: How,
    /// At which member.
    pub at: &'a str,
}

/// Where the conflicts of one group are counted and kept. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Journal {
    group: Arc<str>,
    keep: Conflicts,
    /// Where they are appended; in the state table without one.
    file: Option<Arc<PathBuf>>,
    members: Arc<BTreeMap<u8, String>>,
    state: StateTable,
    clock: Clock,
    metrics: Metrics,
    /// The second that is being counted, and how many of it were kept.
    budget: Arc<Mutex<Option<(Instant, u32)>>>,
}

impl Journal {
    /// The journal of a group, whose members have these numbers and names.
    #[must_use]
    pub fn new(
        group: &config::Group,
        members: BTreeMap<u8, String>,
        state: StateTable,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        let (members, budget) = (Arc::new(members), Arc::default());
        let (keep, file) = (group.conflicts, group.conflicts_file.clone().map(Arc::new));
        Self { group: group.name.as_str().into(), keep, file, members, state, clock, metrics, budget }
    }

    fn name(&self, version: Version) -> String {
        let name = self.members.get(&version.member);
        name.map_or_else(|| format!("number {}", version.member), Clone::clone)
    }

    /// Counts a conflict, and keeps it as the config says.
    ///
    /// # Errors
    /// The state table's failure, when all are to be kept: keeping it again changes nothing. One that is kept as a
    /// sample is given up with a line in the log.
    pub async fn write(&self, conflict: Conflict<'_>) -> Result<(), Failure> {
        let (loser, winner) = (self.name(conflict.loser.version), self.name(conflict.winner.version));
        let kept = match self.keep {
            Conflicts::Off => Ok(()),
            Conflicts::Full => self.keep(conflict, &loser, &winner).await,
            Conflicts::Sampled if !self.has_budget() => Ok(()),
            Conflicts::Sampled => {
                if let Err(why) = self.keep(conflict, &loser, &winner).await {
                    tracing::warn!(group = &*self.group, %why, "a conflict could not be kept");
                }
                Ok(())
            }
        };
        if kept.is_ok() {
            self.metrics.conflicts.with_label_values(&[&*self.group, &*loser, &*winner]).inc();
        }
        kept
    }

    fn has_budget(&self) -> bool {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match &mut *budget {
            Some((since, count)) if now.duration_since(*since) < Duration::from_secs(1) => {
                *count += 1;
                *count <= SAMPLED
            }
            budget => {
                *budget = Some((now, 1));
                true
            }
        }
    }

    async fn keep(&self, conflict: Conflict<'_>, loser: &str, winner: &str) -> Result<(), Failure> {
        let kept = Kept {
            key: conflict.key.digest().to_string(),
            key_attributes: json::from_item(conflict.key.attributes()),
            how: conflict.how.name().to_owned(),
            at: conflict.at.to_owned(),
            found: humantime::format_rfc3339_seconds(self.clock.now()).to_string(),
            loser: KeptSide::of(loser, conflict.loser),
            winner: KeptSide::of(winner, conflict.winner),
        };
        if let Some(file) = &self.file {
            let line = kept.document(&self.group, true).to_string() + "\n";
            return append(file, &line).await.map_err(|error| {
                let what = format!(
                    "a conflict cannot be written to the group's conflicts_file, {}: {error}; with conflicts = \"full\" the \
                     change waits, so make room there, or start without conflicts_file",
                    file.display()
                );
                Failure::new(Class::Unrecognised, "ConflictsFile", what)
            });
        }
        let mut row = kept.row(&self.group);
        row.insert(EXPIRES.to_owned(), number((self.clock.since_epoch() + RETENTION).as_secs()));
        self.state.put(row).await
    }
}

/// Opened for each line, so that the file may be rotated at any time.
async fn append(file: &Path, line: &str) -> std::io::Result<()> {
    let mut options = tokio::fs::OpenOptions::new();
    options.append(true).create(true);
    // It holds whole items.
    #[cfg(unix)]
    options.mode(0o600);
    let mut file = options.open(file).await?;
    file.write_all(line.as_bytes()).await?;
    file.flush().await
}

/// A conflict as it was kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The digest of the item's key.
    pub key: String,
    /// The key's attributes, in DynamoDB JSON.
    pub key_attributes: Value,
    /// How the loser lost.
    pub how: String,
    /// At which member.
    pub at: String,
    /// When it was found (RFC 3339).
    pub found: String,
    /// The write that is gone.
    pub loser: KeptSide,
    /// The write that stays.
    pub winner: KeptSide,
}

/// One of the writes of a conflict that was kept.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptSide {
    /// The member's name.
    pub member: String,
    /// The write's version, as in stamps.
    pub version: String,
    /// The item in DynamoDB JSON; `None` for a delete, and for one that was too large.
    pub image: Option<Value>,
    /// The size of an image that was not kept, as JSON, in bytes.
    pub too_large: Option<u64>,
}

impl KeptSide {
    fn of(member: &str, side: Side<'_>) -> Self {
        let image = side.item.map(|item| json::from_fields(&item.fields()));
        let size = image.as_ref().map_or(0, |image| image.to_string().len());
        Self {
            member: member.to_owned(),
            version: side.version.to_string(),
            image: image.filter(|_| size <= LARGEST),
            too_large: (size > LARGEST).then_some(size as u64),
        }
    }

    fn document(&self, whole: bool) -> Value {
        let mut value = json!({ "member": self.member, "version": self.version });
        if whole {
            value["image"] = self.image.clone().unwrap_or_default();
            value["image_too_large_bytes"] = json!(self.too_large);
        }
        value
    }
}

impl Kept {
    /// As JSON; with what both members had written when it is to be `whole`.
    #[must_use]
    pub fn document(&self, group: &str, whole: bool) -> Value {
        let mut value = json!({
            "group": group,
            "key": self.key,
            "how": self.how,
            "at": self.at,
            "found": self.found,
            "loser": self.loser.document(whole),
            "winner": self.winner.document(whole),
        });
        if whole {
            value["key_attributes"] = self.key_attributes.clone();
        }
        value
    }

    fn sort(&self) -> String {
        format!("{}#{}#{}", self.loser.version, self.key, self.winner.member)
    }

    /// As a row, which never expires.
    fn row(&self, group: &str) -> Row {
        let digit = self.key.get(..1).unwrap_or_default();
        let mut row = key(&partition(group, digit), &self.sort());
        let mut set = |name: &str, value: String| row.insert(name.to_owned(), text(value));
        set("key", self.key.clone());
        set("key_attributes", self.key_attributes.to_string());
        set("how", self.how.clone());
        set("at", self.at.clone());
        set("found", self.found.clone());
        for (name, side) in [("loser", &self.loser), ("winner", &self.winner)] {
            set(name, side.member.clone());
            set(&format!("{name}_version"), side.version.clone());
            if let Some(image) = &side.image {
                set(&format!("{name}_image"), image.to_string());
            }
            if let Some(size) = side.too_large {
                set(&format!("{name}_too_large"), size.to_string());
            }
        }
        row
    }
}

/// What a conflict has beside the images.
const PLAIN: [&str; 10] =
    [SK, EXPIRES, "key", "how", "at", "found", "loser", "loser_version", "winner", "winner_version"];

/// The newest conflicts of a group that are kept and match, `most` of them, in the order of the losers' versions; with
/// what both members had written when they are to be `whole`.
///
/// # Errors
/// The failure of a call.
pub async fn list(
    state: &StateTable,
    group: &str,
    now: Duration,
    matches: impl Fn(&Kept) -> bool,
    most: usize,
    whole: bool,
) -> Result<Vec<Kept>, Failure> {
    let digits = "0123456789abcdef".chars();
    let partitions = digits.map(|digit| partition(group, &digit.to_string()));
    // TTL takes its time.
    let lives = |row: &Row| get_number::<u64>(row, EXPIRES).is_none_or(|expires| expires > now.as_secs());
    let wanted = |row: &Row| lives(row) && matches(&read(row));
    let newest = partitions.map(|pk| {
        let wanted = &wanted;
        async move { state.newest(&pk, &PLAIN, most, wanted).await }
    });
    let rows = try_join_all(newest).await?;
    let mut kept: Vec<Kept> = rows.iter().flatten().map(read).collect();
    kept.sort_by_key(Kept::sort);
    kept.drain(..kept.len().saturating_sub(most));
    if whole {
        for kept in &mut kept {
            let digit = kept.key.get(..1).unwrap_or_default();
            // One that has expired since stays as it is known.
            if let Some(row) = state.get(&partition(group, digit), &kept.sort()).await? {
                *kept = read(&row);
            }
        }
    }
    Ok(kept)
}

fn read(row: &Row) -> Kept {
    let field = |name: &str| get_text(row, name).unwrap_or("unknown").to_owned();
    let value = |name: &str| get_text(row, name).and_then(|text| serde_json::from_str(text).ok());
    let side = |side: &str| KeptSide {
        member: field(side),
        version: field(&format!("{side}_version")),
        image: value(&format!("{side}_image")),
        too_large: get_text(row, &format!("{side}_too_large")).and_then(|size| size.parse().ok()),
    };
    Kept {
        key: field("key"),
        key_attributes: value("key_attributes").unwrap_or_default(),
        how: field("how"),
        at: field("at"),
        found: field("found"),
        loser: side("loser"),
        winner: side("winner"),
    }
}

fn partition(group: &str, digit: &str) -> String {
    format!("conflict#{group}#{digit}")
}
