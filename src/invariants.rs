//! The invariants of replication, by name: one definition each, as predicates over plain data.
//!
//! Whoever holds the data asks: the simulation at every write and checkpoint, a comparison of members at its end.
//! A predicate knows nothing of tables, streams or workers. It answers with a [`Violation`] that carries the
//! invariant's [`name`](Invariant::name) and says what was seen. What the names mean, and which part of the code
//! keeps each, is in `ARCHITECTURE.md`.

use crate::version::Version;
use std::fmt;

/// What always holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// A stamped item's version never falls but by an application's write.
    VersionsNeverFall,
    /// When all lanes have caught up, a member has the value of the highest version, or nothing if that was a
    /// delete.
    NoLostUpdate,
    /// No item stays whose key has a higher version in the ledger.
    NoResurrection,
    /// A replicator's write is never sent on as a new version; a quiet group writes nothing.
    NoEcho,
    /// A checkpoint never passes a record that is not settled.
    FrontierIsContiguous,
    /// A replay gives a record the version that it had.
    OneVersionPerRecord,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::VersionsNeverFall,
        Self::NoLostUpdate,
        Self::NoResurrection,
        Self::NoEcho,
        Self::FrontierIsContiguous,
        Self::OneVersionPerRecord,
    ];

    /// The name in documents, logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::VersionsNeverFall => "versions-never-fall",
            Self::NoLostUpdate => "no-lost-update",
            Self::NoResurrection => "no-resurrection",
            Self::NoEcho => "no-echo",
            Self::FrontierIsContiguous => "frontier-is-contiguous",
            Self::OneVersionPerRecord => "one-version-per-record",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An invariant that does not hold, and what was seen. Never holds values of items.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {seen}")]
pub struct Violation {
    /// Which one.
    pub invariant: Invariant,
    /// What was seen.
    pub seen: String,
}

/// Whether it holds.
pub type Verdict = Result<(), Violation>;

fn holds(invariant: Invariant, condition: bool, seen: impl FnOnce() -> String) -> Verdict {
    if condition { Ok(()) } else { Err(Violation { invariant, seen: seen() }) }
}

/// The version that a write of ours found on an item, and the one that it left: it must not be lower. An item that
/// is absent or has no stamp has no version, and anything may come after it.
///
/// # Errors
/// `versions-never-fall`.
pub fn versions_never_fall(before: Option<Version>, after: Option<Version>) -> Verdict {
    let falls = matches!((before, after), (Some(before), Some(after)) if after < before);
    holds(Invariant::VersionsNeverFall, !falls, || format!("{} -> {}", show(before), show(after)))
}

/// The version that an item must have when all lanes have caught up (`None`: there must be no item), and the one
/// that it has. The contents of equal versions are to be compared beside this.
///
/// # Errors
/// `no-lost-update`.
pub fn no_lost_update(last: Option<Version>, found: Option<Version>) -> Verdict {
    holds(Invariant::NoLostUpdate, last == found, || {
        format!("expected {}, found {}", show(last), show(found))
    })
}

/// An item's version, when there is an item, and its key's tombstone. Holds when nothing is under way.
///
/// # Errors
/// `no-resurrection`.
pub fn no_resurrection(item: Option<Version>, tombstone: Option<Version>) -> Verdict {
    let risen = matches!((item, tombstone), (Some(item), Some(tombstone)) if tombstone > item);
    holds(Invariant::NoResurrection, !risen, || {
        format!("an item of {} under a tombstone of {}", show(item), show(tombstone))
    })
}

/// Requests to write that the replicator sent to a member: those to a one-way route's source at any time, and
/// those to anybody while nobody else writes and all lanes have caught up.
///
/// # Errors
/// `no-echo`.
pub fn no_echo(requests: u64) -> Verdict {
    holds(Invariant::NoEcho, requests == 0, || format!("{requests} writes that nobody asked for"))
}

/// What became of one record at one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its effect is at the peer, or was until something newer came.
    Applied,
    /// Something newer was there already, or covered it: a later change of the same key.
    Superseded,
    /// A rule of the route leaves it out.
    Skipped,
    /// It is kept as a dead letter.
    Dead,
    /// It was trimmed before it was read, and the gap is known.
    Lost,
    /// Nothing is known of it at the peer.
    Open,
}

/// The records that a checkpoint says are done, by name and fate: none may be open.
///
/// # Errors
/// `frontier-is-contiguous`, with the first record that is open.
pub fn frontier_is_contiguous<R: fmt::Display>(passed: impl IntoIterator<Item = (R, Fate)>) -> Verdict {
    let open = passed.into_iter().find(|(_, fate)| *fate == Fate::Open);
    match open {
        None => Ok(()),
        Some((record, _)) => {
            holds(Invariant::FrontierIsContiguous, false, || format!("record {record} was passed, undone"))
        }
    }
}

/// The version that a record has, and the one under which its content or its checkpoint was written.
///
/// # Errors
/// `one-version-per-record`.
pub fn one_version_per_record(record: Version, written: Version) -> Verdict {
    holds(Invariant::OneVersionPerRecord, record == written, || {
        format!("a record of {record} was written as {written}")
    })
}

fn show(version: Option<Version>) -> String {
    version.map_or_else(|| "nothing".to_owned(), |version| version.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Hlc;

    fn v(millis: u64) -> Version {
        Version::new(Hlc::from_millis(millis), 1)
    }

    #[test]
    fn each_predicate_fails_under_its_own_name() {
        let open = [("1", Fate::Applied), ("2", Fate::Open)];
        let failures = [
            versions_never_fall(Some(v(2)), Some(v(1))),
            no_lost_update(Some(v(2)), Some(v(1))),
            no_resurrection(Some(v(1)), Some(v(2))),
            no_echo(1),
            frontier_is_contiguous(open),
            one_version_per_record(v(1), v(2)),
        ];
        let names: Vec<_> = failures.into_iter().map(|verdict| verdict.unwrap_err().invariant).collect();
        assert_eq!(names, Invariant::ALL);
    }

    #[test]
    fn each_predicate_accepts_what_the_rules_allow() {
        let settled = [("1", Fate::Applied), ("2", Fate::Superseded), ("3", Fate::Dead), ("4", Fate::Lost)];
        let verdicts = [
            versions_never_fall(Some(v(1)), Some(v(1))),
            versions_never_fall(Some(v(1)), Some(v(2))),
            versions_never_fall(Some(v(2)), None),
            versions_never_fall(None, Some(v(1))),
            no_lost_update(Some(v(1)), Some(v(1))),
            no_lost_update(None, None),
            no_resurrection(Some(v(2)), Some(v(1))),
            no_resurrection(Some(v(2)), Some(v(2))),
            no_resurrection(None, Some(v(2))),
            no_echo(0),
            frontier_is_contiguous(settled),
            one_version_per_record(v(1), v(1)),
        ];
        assert!(verdicts.iter().all(Result::is_ok), "{verdicts:?}");
    }
}
