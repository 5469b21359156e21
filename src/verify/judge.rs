//! What the members' items under one key mean, and what would make them agree.
//!
//! Pure. On a one-way route the source is right; in a group the highest version is. What an application wrote and
//! no stream told is of unknown version: it is never chosen or given up without being named.

use crate::item::Digest;
use crate::version::{Hlc, Mark, Stamp, Version};
use serde::Serialize;

/// What a member holds under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Of the item without its stamp.
    pub content: Digest,
    /// Its stamp, unless that is too far ahead to be believed.
    pub stamp: Option<Stamp>,
}

impl Held {
    /// The stamp of an item that was last written by a replicator.
    #[must_use]
    pub fn clean(&self) -> Option<Stamp> {
        self.stamp.filter(|stamp| stamp.digest == self.content)
    }
}

/// How members differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The item is not there.
    Missing,
    /// An item is there that should not be.
    Extra,
    /// Another item is there.
    Different,
    /// An application wrote to the peer of a one-way route, which nothing forwards.
    Foreign,
    /// In a group: which write came last is not known.
    Unversioned,
    /// The route's shape cannot be given to an item of the source.
    Unshaped,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Missing, Self::Extra, Self::Different, Self::Foreign, Self::Unversioned, Self::Unshaped];

    /// As the answer names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Different => "different",
            Self::Foreign => "foreign",
            Self::Unversioned => "unversioned",
            Self::Unshaped => "unshaped",
        }
    }

    /// Whether only an operator can say what is right.
    #[must_use]
    pub const fn asks(self) -> bool {
        matches!(self, Self::Foreign | Self::Unversioned | Self::Unshaped)
    }
}

/// A write that makes members agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mend {
    /// The member whose item it is; `None` for a delete.
    pub from: Option<usize>,
    /// The write's version.
    pub version: Version,
    /// Where it is written.
    pub at: Vec<usize>,
}

/// That members differ under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// How.
    pub kind: Kind,
    /// Who is wrong, or who may be.
    pub at: Vec<usize>,
    /// What would mend it; `None` when it is not known who is right.
    pub mend: Option<Mend>,
}

/// A peer of a one-way route against its source, the first of the members. `number` is the source's, `preferred` says
/// that what was written at the peer may be replaced. At a pristine peer nothing tells whose an item is: what differs there
/// is taken for ours.
#[must_use]
pub fn one_way(
    seen: &[Option<Held>],
    peer: usize,
    tombstone: Option<Version>,
    number: u8,
    preferred: bool,
    pristine: bool,
) -> Option<Difference> {
    let (source, there) = (seen.first().copied().flatten(), seen.get(peer).copied().flatten());
    let above =
        |known: Option<Version>, least: Version| known.map_or(least, |known| next(known, number).max(least));
    let lowest = Version::new(Hlc::ZERO, number);
    let difference = |kind: Kind, version: Version, from| {
        let mend = (!kind.asks() || preferred).then(|| Mend { from, version, at: vec![peer] });
        Some(Difference { kind, at: vec![peer], mend })
    };
    let ours = |there: &Held| pristine || there.clean().is_some();
    // Something just below every change that the stream still brings, and above what is there.
    let base = |source: &Held| source.clean().map_or(lowest, |stamp| stamp.version);
    match (source, there) {
        (None, None) => None,
        (Some(source), None) => difference(Kind::Missing, above(tombstone, base(&source)), Some(0)),
        (Some(source), Some(there)) if source.content == there.content && !leaves(&there) => None,
        (Some(source), Some(there)) => {
            let known = there.stamp.map(|stamp| stamp.version).max(tombstone);
            let kind = if ours(&there) { Kind::Different } else { Kind::Foreign };
            difference(kind, above(known, base(&source)), Some(0))
        }
        (None, Some(there)) => {
            let known = there.stamp.map(|stamp| stamp.version).max(tombstone);
            let kind = if ours(&there) { Kind::Extra } else { Kind::Foreign };
            difference(kind, above(known, lowest), None)
        }
    }
}

/// What is known of a group beside its items.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// The members' numbers.
    pub numbers: &'a [u8],
    /// Which members' streams have lost records.
    pub gaps: &'a [bool],
    /// The key's tombstone.
    pub tombstone: Option<Version>,
    /// The member that is right where versions are not known.
    pub preferred: Option<usize>,
}

/// All members of a group against each other.
#[must_use]
pub fn group(seen: &[Option<Held>], known: Group<'_>) -> Option<Difference> {
    let state = |held: &Option<Held>| held.map(|held| (held.content, leaves(&held)));
    let first = seen.first().map(state)?;
    if seen.iter().all(|held| state(held) == first) && !first.is_some_and(|(_, leaves)| leaves) {
        return None;
    }
    let clean = |held: &Option<Held>| held.and_then(|held| held.clean());
    let put = |held: &Option<Held>| clean(held).filter(|stamp| stamp.mark == Mark::Put);
    // An application's write has the version that it was given elsewhere.
    let version_of = |content: Digest| {
        let same = seen.iter().filter_map(put).filter(|stamp| stamp.digest == content);
        same.map(|stamp| stamp.version).max()
    };
    let marks = seen.iter().filter_map(clean).filter(|stamp| stamp.mark == Mark::Deleted);
    let deleted = marks.map(|stamp| stamp.version).max().max(known.tombstone);
    let puts = seen.iter().enumerate().filter_map(|(index, held)| {
        let held = held.filter(|held| !leaves(held))?;
        Some((version_of(held.content), index, held.content))
    });
    let puts: Vec<(Option<Version>, usize, Digest)> = puts.collect();
    let highest =
        puts.iter().filter_map(|(version, index, _)| version.map(|version| (version, *index))).max();
    let all = highest.map(|(version, _)| version).max(deleted);
    let stamps = seen.iter().flatten().filter_map(|held| held.stamp).map(|stamp| stamp.version).max();
    let gone =
        |index: usize| seen.get(index).is_some_and(Option::is_none) && known.gaps.get(index) == Some(&true);
    let present = |index: usize| seen.get(index).is_some_and(Option::is_some);

    // Never copied, for all that is known: as a backfill copies it.
    let unknown = puts.iter().any(|(version, ..)| version.is_none());
    let lone = puts.first().filter(|(_, _, content)| {
        all.is_none()
            && puts.iter().all(|(_, _, other)| other == content)
            && !(0..seen.len()).any(gone)
            && seen.iter().flatten().all(|held| held.stamp.is_none())
    });
    let winner = if let Some((_, index, _)) = lone {
        let number = known.numbers.get(*index).copied().unwrap_or_default();
        Some((Some(*index), Version::new(Hlc::ZERO, number)))
    } else if unknown {
        None
    } else {
        match (highest, deleted) {
            (Some((version, index)), deleted) if deleted < Some(version) => {
                // A delete at a member whose stream lost records may have been the last.
                (!(0..seen.len()).any(gone)).then_some((Some(index), version))
            }
            (_, Some(version)) => Some((None, version)),
            _ => None,
        }
    };
    let differing = |from: Option<usize>| -> Vec<usize> {
        let right = from.and_then(|from| seen.get(from)).and_then(state);
        (0..seen.len()).filter(|index| seen.get(*index).and_then(state) != right).collect()
    };
    match winner {
        Some((from, version)) => {
            let at = differing(from);
            let kind = match from {
                None => Kind::Extra,
                Some(_) if at.iter().all(|index| !present(*index)) => Kind::Missing,
                Some(_) => Kind::Different,
            };
            Some(Difference { kind, at: at.clone(), mend: Some(Mend { from, version, at }) })
        }
        None => {
            let mend = known.preferred.map(|preferred| {
                let number = known.numbers.get(preferred).copied().unwrap_or_default();
                let version =
                    all.max(stamps).map_or(Version::new(Hlc::ZERO, number), |all| next(all, number));
                let from = present(preferred).then_some(preferred);
                // Everywhere: a member that has the same content with a lower version would take another one for newer.
                let at = (0..seen.len()).filter(|index| from.is_some() || present(*index)).collect();
                Mend { from, version, at }
            });
            Some(Difference { kind: Kind::Unversioned, at: (0..seen.len()).collect(), mend })
        }
    }
}

/// Whether an item is in the first step of its delete.
fn leaves(held: &Held) -> bool {
    held.clean().is_some_and(|stamp| stamp.mark == Mark::Deleted)
}

/// Just above a version.
fn next(version: Version, number: u8) -> Version {
    Version::new(version.hlc.next(), number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(content: u8) -> Digest {
        Digest::from([content; 16])
    }

    fn version(millis: u64) -> Version {
        Version::new(Hlc::from_millis(millis), 1)
    }

    fn written(content: u8) -> Option<Held> {
        Some(Held { content: digest(content), stamp: None })
    }

    fn stamped(content: u8, millis: u64, mark: Mark) -> Option<Held> {
        let stamp = Stamp { version: version(millis), mark, digest: digest(content) };
        Some(Held { content: digest(content), stamp: Some(stamp) })
    }

    fn clean(content: u8, millis: u64) -> Option<Held> {
        stamped(content, millis, Mark::Put)
    }

    /// An application's update, which keeps a stale stamp.
    fn dirty(content: u8, millis: u64) -> Option<Held> {
        let stamp = clean(0, millis).unwrap().stamp;
        Some(Held { content: digest(content), stamp })
    }

    fn one_way_mend(seen: &[Option<Held>], tombstone: Option<Version>) -> (Kind, Option<Mend>) {
        let found = one_way(seen, 1, tombstone, 0, false, false).unwrap();
        assert_eq!(found.at, [1]);
        (found.kind, found.mend)
    }

    #[test]
    fn the_source_of_a_one_way_route_is_right() {
        assert_eq!(one_way(&[None, None], 1, None, 0, false, false), None);
        assert_eq!(one_way(&[written(1), clean(1, 5)], 1, None, 0, false, false), None);
        assert_eq!(one_way(&[written(1), written(1)], 1, None, 0, false, false), None);
        let put = |version| Some(Mend { from: Some(0), version, at: vec![1] });
        let lowest = Version::new(Hlc::ZERO, 0);
        let above = |millis| Version::new(Hlc::from_millis(millis).next(), 0);
        assert_eq!(one_way_mend(&[written(1), None], None), (Kind::Missing, put(lowest)));
        assert_eq!(one_way_mend(&[clean(1, 7), None], None), (Kind::Missing, put(version(7))));
        assert_eq!(one_way_mend(&[written(1), None], Some(version(9))), (Kind::Missing, put(above(9))));
        assert_eq!(one_way_mend(&[written(1), clean(2, 5)], None), (Kind::Different, put(above(5))));
        let delete = Some(Mend { from: None, version: above(5), at: vec![1] });
        assert_eq!(one_way_mend(&[None, clean(2, 5)], None), (Kind::Extra, delete));
    }

    #[test]
    fn what_an_application_wrote_at_a_peer_stays_unless_the_source_is_preferred() {
        for seen in [[written(1), written(2)], [written(1), dirty(2, 5)], [None, written(2)]] {
            assert_eq!(one_way_mend(&seen, None), (Kind::Foreign, None));
            let found = one_way(&seen, 1, None, 0, true, false).unwrap();
            assert_eq!(found.mend.unwrap().from, seen[0].map(|_| 0));
        }
    }

    #[test]
    fn at_a_pristine_peer_the_source_is_right_about_everything() {
        let found = |seen: &[Option<Held>]| {
            one_way(seen, 1, None, 0, false, true).map(|found| (found.kind, found.mend))
        };
        for (seen, kind) in [([written(1), written(2)], Kind::Different), ([None, written(2)], Kind::Extra)] {
            let (told, mend) = found(&seen).unwrap();
            assert_eq!((told, mend.unwrap().from), (kind, seen[0].map(|_| 0)));
        }
        assert_eq!(found(&[written(1), written(1)]), None);
    }

    fn of(
        seen: &[Option<Held>],
        gaps: [bool; 3],
        tombstone: Option<u64>,
        prefer: Option<usize>,
    ) -> Option<Difference> {
        let tombstone = tombstone.map(version);
        group(seen, Group { numbers: &[1, 2, 3], gaps: &gaps, tombstone, preferred: prefer })
    }

    #[test]
    fn in_a_group_the_highest_version_is_right() {
        let none = [false; 3];
        assert_eq!(of(&[written(1), clean(1, 5), clean(1, 5)], none, None, None), None);
        assert_eq!(of(&[None, None, None], none, Some(3), None), None);
        let found = of(&[clean(1, 5), clean(2, 7), clean(1, 5)], none, None, None).unwrap();
        let mend = Mend { from: Some(1), version: version(7), at: vec![0, 2] };
        assert_eq!((found.kind, found.mend), (Kind::Different, Some(mend)));
        // An application's write has the version that another member has it with.
        let found = of(&[written(2), clean(2, 7), None], none, None, None).unwrap();
        assert_eq!((found.kind, found.at), (Kind::Missing, vec![2]));
        let found = of(&[clean(1, 5), None, clean(1, 5)], none, Some(9), None).unwrap();
        let mend = Mend { from: None, version: version(9), at: vec![0, 2] };
        assert_eq!((found.kind, found.mend), (Kind::Extra, Some(mend)));
        // A delete that stopped after its first step.
        let found = of(&[None, stamped(1, 8, Mark::Deleted), None], none, None, None).unwrap();
        assert_eq!(found.mend, Some(Mend { from: None, version: version(8), at: vec![1] }));
        let marked = stamped(1, 8, Mark::Deleted);
        assert_eq!(of(&[marked; 3], none, None, None).unwrap().kind, Kind::Extra);
    }

    #[test]
    fn what_was_never_copied_is_copied_as_a_backfill_does() {
        let found = of(&[None, written(1), None], [false; 3], None, None).unwrap();
        let version = Version::new(Hlc::ZERO, 2);
        assert_eq!(found.mend, Some(Mend { from: Some(1), version, at: vec![0, 2] }));
    }

    #[test]
    fn a_write_of_unknown_version_is_settled_by_the_operator_alone() {
        let none = [false; 3];
        let unknown = [
            ([written(1), clean(2, 7), clean(2, 7)], none, None),
            ([dirty(1, 5), clean(2, 7), clean(2, 7)], none, None),
            ([written(1), written(2), None], none, None),
            // Its creation may have come before or after the delete.
            ([written(1), None, None], none, Some(9)),
            // Its delete at the first member may be among the lost records.
            ([None, clean(2, 7), clean(2, 7)], [true, false, false], None),
        ];
        for (seen, gaps, tombstone) in unknown {
            let found = of(&seen, gaps, tombstone, None).unwrap();
            assert_eq!((found.kind, found.mend), (Kind::Unversioned, None), "{seen:?}");
            for preferred in 0..3 {
                let mend = of(&seen, gaps, tombstone, Some(preferred)).unwrap().mend.unwrap();
                assert_eq!(mend.from, seen[preferred].map(|_| preferred));
                let stamps = seen.iter().flatten().filter_map(|held| held.stamp);
                let highest = stamps.map(|stamp| stamp.version).max().max(tombstone.map(version));
                assert!(highest.is_none_or(|highest| mend.version > highest), "{seen:?}");
            }
        }
        // A delete that is known to be later than all is none of them.
        let found = of(&[None, clean(2, 7), clean(2, 7)], [true, false, false], Some(9), None).unwrap();
        assert_eq!(found.kind, Kind::Extra);
    }
}
