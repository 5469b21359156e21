//! The shards of a stream and their lineage: pure.
//!
//! A parent is read to its end before its children. What a listing says may be behind or contradict itself: an
//! open parent may have children already, a closed leaf may get its children later, and a parent that is not
//! listed is either trimmed or not listed yet. The age in its id decides which.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A shard of a stream as DescribeStream gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Its id.
    pub id: String,
    /// The shard that it came from, which may be gone.
    pub parent: Option<String>,
    /// Whether it takes no more records.
    pub closed: bool,
}

/// What is known of a shard's parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ancestry<'a> {
    /// It has none, or it was trimmed with all its records: nothing to wait for.
    Root,
    /// It must be read to its end first.
    Parent(&'a str),
    /// It will be listed later; the child waits.
    Unlisted(&'a str),
}

/// Records live this long; a shard is listed at least until its last record is gone.
const RETENTION: Duration = Duration::from_secs(24 * 3600);
/// A parent without a time in its id is taken for trimmed when its child was known this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a shard has to wait for. `known` says whether a shard id is listed or has a row; `seen` is for how long
/// this shard has been known.
#[must_use]
pub fn ancestry<'a>(
    parent: Option<&'a str>,
    known: impl Fn(&str) -> bool,
    seen: Duration,
    now: SystemTime,
) -> Ancestry<'a> {
    let Some(parent) = parent else { return Ancestry::Root };
    if known(parent) {
        return Ancestry::Parent(parent);
    }
    let trimmed = match born(parent) {
        Some(born) => now.duration_since(born).unwrap_or_default() >= RETENTION,
        None => seen >= PATIENCE,
    };
    // Listings lag by seconds, never by hours: a parent that stays away is gone whatever its id says.
    if trimmed || seen >= 10 * PATIENCE { Ancestry::Root } else { Ancestry::Unlisted(parent) }
}

/// When a shard was made, from its id: `shardId-<20 digits of milliseconds>-<hash>`.
#[must_use]
pub fn born(id: &str) -> Option<SystemTime> {
    let millis = id.strip_prefix("shardId-")?.split('-').next().filter(|digits| digits.len() == 20)?;
    let millis: u64 = millis.parse().ok()?;
    // Emulators count their shards where AWS writes a time: nothing was made before the service was.
    const SERVICE: u64 = 1_400_000_000_000;
    (millis >= SERVICE).then(|| UNIX_EPOCH + Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn id(age: u64) -> String {
        format!("shardId-{:020}-abcd1234", (NOW - age) * 1000)
    }

    fn of(parent: Option<&str>, known: bool, seen: u64) -> Ancestry<'_> {
        ancestry(parent, |_| known, Duration::from_secs(seen), UNIX_EPOCH + Duration::from_secs(NOW))
    }

    #[test]
    fn a_known_parent_comes_first_however_old() {
        let (young, old) = (id(60), id(90_000));
        assert_eq!(of(Some(&young), true, 0), Ancestry::Parent(&young));
        assert_eq!(of(Some(&old), true, 0), Ancestry::Parent(&old));
        assert_eq!(of(None, true, 0), Ancestry::Root);
    }

    #[test]
    fn an_absent_parent_is_trimmed_when_old_and_unlisted_when_young() {
        let (young, old) = (id(4 * 3600), id(24 * 3600));
        assert_eq!(of(Some(&old), false, 0), Ancestry::Root);
        assert_eq!(of(Some(&young), false, 0), Ancestry::Unlisted(&young));
        assert_eq!(of(Some(&young), false, 599), Ancestry::Unlisted(&young));
        assert_eq!(of(Some(&young), false, 600), Ancestry::Root);
    }

    #[test]
    fn without_a_time_in_the_id_patience_decides() {
        for name in ["shardId-000000000000", "shardId-00000000000000000001-x", "other"] {
            assert_eq!(born(name), None, "{name}");
            assert_eq!(of(Some(name), false, 59), Ancestry::Unlisted(name));
            assert_eq!(of(Some(name), false, 60), Ancestry::Root);
        }
    }
}
