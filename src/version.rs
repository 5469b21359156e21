//! Versions: the total order of writes, and the stamp that carries one on an item.
//!
//! A [`Version`] is `(hlc, member)`. An [`Hlc`] is a hybrid logical clock: 48 bits of milliseconds since 1970
//! and 16 bits of counter. A [`Stamp`] is the one string attribute on an item that a replicator wrote. Its
//! text sorts as its version does, so that DynamoDB compares versions in a condition on strings:
//! `stamp < "hlc.member"` is true exactly for the stamps of lower versions.

use crate::content::Content;
use crate::item::Digest;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bits of an [`Hlc`] that count within a millisecond.
const COUNTER_BITS: u32 = 16;
/// Milliseconds that fit into 48 bits (the year 10889).
const MAX_MILLIS: u64 = (1 << 48) - 1;

/// A hybrid logical clock's reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Hlc(u64);

impl Hlc {
    /// Before everything: what a lane starts from that never read a record.
    pub const ZERO: Self = Self(0);

    /// The first reading of a millisecond since 1970.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self((if millis > MAX_MILLIS { MAX_MILLIS } else { millis }) << COUNTER_BITS)
    }

    /// The first reading of a time.
    #[must_use]
    pub fn from_time(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_millis(u64::try_from(since.as_millis()).unwrap_or(MAX_MILLIS))
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// The reading after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The first reading of the millisecond that is `drift` after this one's.
    #[must_use]
    pub fn plus(self, drift: Duration) -> Self {
        let drift = u64::try_from(drift.as_millis()).unwrap_or(MAX_MILLIS);
        Self::from_millis(self.millis().saturating_add(drift))
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for Hlc {
    type Err = BadVersion;

    /// Reads exactly what `Display` writes: 16 lower-case hex digits.
    fn from_str(text: &str) -> Result<Self, BadVersion> {
        hex_field(text, 16).map(Self).ok_or(BadVersion)
    }
}

/// A write's place in the total order: first by clock, then by the member where it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Version {
    /// The clock's reading.
    pub hlc: Hlc,
    /// The small fixed number of the member where an application wrote.
    pub member: u8,
}

impl Version {
    /// A version from its parts.
    #[must_use]
    pub const fn new(hlc: Hlc, member: u8) -> Self {
        Self { hlc, member }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02x}", self.hlc, self.member)
    }
}

impl std::str::FromStr for Version {
    type Err = BadVersion;

    /// Reads exactly what `Display` writes: `hlc.member` in lower-case hex.
    fn from_str(text: &str) -> Result<Self, BadVersion> {
        let (hlc, member) = text.split_once('.').ok_or(BadVersion)?;
        let member = hex_field(member, 2).and_then(|n| u8::try_from(n).ok()).ok_or(BadVersion)?;
        Ok(Self { hlc: hlc.parse()?, member })
    }
}

/// A text that is not a version or a clock reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a version (16 hex digits, '.', 2 hex digits)")]
pub struct BadVersion;

/// Whether a stamped item is alive or in the first step of a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mark {
    /// Put: the item is alive.
    Put,
    /// Being deleted: the removal that follows is a replicator's.
    Deleted,
}

/// What a replicator leaves on an item: version, mark and the content's digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp {
    /// The write's version.
    pub version: Version,
    /// Alive or being deleted.
    pub mark: Mark,
    /// The digest of the item without the stamp.
    pub digest: Digest,
}

impl Stamp {
    /// The stamp of an item's content as written with `version`.
    #[must_use]
    pub fn of(content: &Content, version: Version) -> Self {
        Self { version, mark: Mark::Put, digest: content.digest() }
    }

    /// Reads a stamp; `None` for anything that [`fmt::Display`] would not have written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.splitn(4, '.');
        let (hlc, member, mark, digest) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let version = Version { hlc: hlc.parse().ok()?, member: u8::try_from(hex_field(member, 2)?).ok()? };
        let mark = match mark {
            "p" => Mark::Put,
            "d" => Mark::Deleted,
            _ => return None,
        };
        Some(Self { version, mark, digest: Digest::parse(digest)? })
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.mark {
            Mark::Put => 'p',
            Mark::Deleted => 'd',
        };
        write!(f, "{}.{mark}.{}", self.version, self.digest)
    }
}

/// Exactly `width` lower-case hex digits, at most 16.
fn hex_field(text: &str, width: usize) -> Option<u64> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (text.len() == width && text.bytes().all(lower_hex)).then(|| u64::from_str_radix(text, 16).ok())?
}

/// The clock that a lane folds over its shard, record by record, in stream order.
///
/// A pure function of the records: a replay from a checkpoint `(sequence number, hlc)` gives every record the
/// version that it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fold {
    hlc: Hlc,
    max_drift: Duration,
}

impl Fold {
    /// A fold that goes on from a checkpoint's clock.
    #[must_use]
    pub const fn from(hlc: Hlc, max_drift: Duration) -> Self {
        Self { hlc, max_drift }
    }

    /// The clock after the last record.
    #[must_use]
    pub const fn hlc(&self) -> Hlc {
        self.hlc
    }

    /// Takes the next record, created at `created`, with the stamps seen in its images; returns its clock
    /// reading, and how many of the stamps were not believed because they were too far ahead of `created`.
    pub fn step(&mut self, created: SystemTime, stamps: impl IntoIterator<Item = Stamp>) -> (Hlc, usize) {
        let created = Hlc::from_time(created);
        let ceiling = created.plus(self.max_drift);
        let mut hlc = self.hlc.next().max(created);
        let mut disbelieved = 0;
        for stamp in stamps {
            if stamp.version.hlc > ceiling {
                disbelieved += 1;
            } else {
                hlc = hlc.max(stamp.version.hlc.next());
            }
        }
        self.hlc = hlc;
        (hlc, disbelieved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn stamp(hlc: Hlc) -> Stamp {
        Stamp { version: Version::new(hlc, 1), mark: Mark::Put, digest: Digest::default() }
    }

    proptest! {
        #[test]
        fn stamps_survive_their_text(hlc: u64, member: u8, deleted: bool, digest: [u8; 16]) {
            let mark = if deleted { Mark::Deleted } else { Mark::Put };
            let stamp = Stamp { version: Version::new(Hlc(hlc), member), mark, digest: Digest::from(digest) };
            prop_assert_eq!(Stamp::parse(&stamp.to_string()), Some(stamp));
            prop_assert_eq!(stamp.version.to_string().parse::<Version>(), Ok(stamp.version));
        }

        #[test]
        fn text_orders_as_versions_do(a: (u64, u8), b: (u64, u8), digest: [u8; 16]) {
            let (a, b) = (Version::new(Hlc(a.0), a.1), Version::new(Hlc(b.0), b.1));
            let stamp = Stamp { version: a, mark: Mark::Deleted, digest: Digest::from(digest) };
            prop_assert_eq!(stamp.to_string() < b.to_string(), a < b);
        }

        #[test]
        fn any_text_parses_to_itself_or_not_at_all(text in "[0-9a-fpdA-F.]{0,60}") {
            if let Some(stamp) = Stamp::parse(&text) {
                prop_assert_eq!(stamp.to_string(), text);
            }
        }

        #[test]
        fn the_fold_rises_and_is_pure(records in prop::collection::vec((0u64..100, prop::option::of(0u64..200)), 1..50)) {
            let run = |from: usize, hlc: Hlc| {
                let mut fold = Fold::from(hlc, Duration::from_secs(60));
                records[from..].iter().map(|(second, seen)| {
                    fold.step(at(*second), seen.map(|s| stamp(Hlc::from_millis(s * 1000)))).0
                }).collect::<Vec<_>>()
            };
            let all = run(0, Hlc::ZERO);
            prop_assert!(all.windows(2).all(|w| w[0] < w[1]));
            let middle = records.len() / 2;
            if middle > 0 {
                prop_assert_eq!(&run(middle, all[middle - 1])[..], &all[middle..]);
            }
        }
    }

    #[test]
    fn a_stamp_beyond_the_drift_is_not_believed() {
        let mut fold = Fold::from(Hlc::ZERO, Duration::from_secs(60));
        let (hlc, disbelieved) = fold.step(at(100), [stamp(Hlc::from_millis(161_000))]);
        assert_eq!((hlc, disbelieved), (Hlc::from_millis(100_000), 1));
        let (hlc, disbelieved) = fold.step(at(100), [stamp(Hlc::from_millis(160_000))]);
        assert_eq!((hlc, disbelieved), (Hlc::from_millis(160_000).next(), 0));
    }

    #[test]
    fn a_clock_that_steps_back_does_not_lower_versions() {
        let mut fold = Fold::from(Hlc::ZERO, Duration::from_secs(60));
        let (first, _) = fold.step(at(100), []);
        let (second, _) = fold.step(at(50), []);
        assert_eq!(second, first.next());
    }
}
