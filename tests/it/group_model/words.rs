//! The words of the model: versions, stamps, items, records; and what a record is taken for.

use shardwalker::version::{self, Hlc};

/// A clock's reading and the member where an application wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Version {
    pub(super) hlc: u8,
    pub(super) member: u8,
}

impl Version {
    pub(super) fn next(self) -> Self {
        Self { member: self.member + 1, ..self }
    }

    /// As the invariants take it.
    pub(super) fn real(self) -> version::Version {
        version::Version::new(Hlc::from_millis(u64::from(self.hlc)), self.member)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    pub(super) version: Version,
    /// `d`: being deleted.
    pub(super) marked: bool,
    /// The content that it was made for.
    pub(super) digest: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Item {
    pub(super) content: u8,
    pub(super) stamp: Option<Stamp>,
}

impl Item {
    pub(super) fn version(self) -> Option<Version> {
        self.stamp.map(|stamp| stamp.version)
    }

    pub(super) fn clean(self) -> bool {
        self.stamp.is_some_and(|stamp| stamp.digest == self.content)
    }

    pub(super) fn marked(self) -> bool {
        self.stamp.is_some_and(|stamp| stamp.marked)
    }
}

/// A change of a member's item, as its stream tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub(super) old: Option<Item>,
    pub(super) new: Option<Item>,
    /// What the member's clock said.
    pub(super) created: u8,
    /// Not in a real record: who wrote, and the clock's reading that the record must always be given.
    pub(super) ours: bool,
    pub(super) hlc: u8,
}

impl Record {
    /// The clock after this record.
    pub(super) fn fold(&self, hlc: u8) -> u8 {
        let stamps = [self.old, self.new].into_iter().flatten().filter_map(Item::version);
        stamps.map(|version| version.hlc + 1).fold(self.created.max(hlc + 1), u8::max)
    }

    /// Whether our own write could have left the same record: no rule can tell such an application's write from
    /// ours. It puts back to the letter what a replicator once wrote, where that is newer than what is there; it
    /// writes back nothing but our attribute; or it removes an item between the two steps of our delete.
    pub(super) fn like_ours(&self) -> bool {
        match (self.old, self.new) {
            (old, Some(new)) => {
                let same = old.is_some_and(|old| old.content == new.content);
                old.and_then(Item::version) < new.version() && (same || (new.clean() && !new.marked()))
            }
            (Some(old), None) => old.marked(),
            (None, None) => false,
        }
    }
}

/// The rules, each of which can be switched off.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Our write that replaced an application's is looked after.
    pub(super) repair: bool,
    /// Deletes are remembered.
    pub(super) ledger: bool,
    /// Our write that created an item is checked against the ledger.
    pub(super) creation: bool,
    /// An item that an application turned back to the content of its stamp gets a new stamp.
    pub(super) restamp: bool,
    /// The removal of a marked item is ours.
    pub(super) marks: bool,
    /// A new stamp on an unchanged content is ours, also when it does not match the content.
    pub(super) unchanged: bool,
    /// A mark that comes with a content is an application's, which read the item between the steps of a delete.
    pub(super) carried: bool,
    /// The new stamp of an item that an application wrote comes with the content that it was made for.
    pub(super) whole: bool,
    /// Where that new stamp fails, the write itself may have to come back, and not only what is newer: what replaced
    /// it looked like an echo over a clean item, and nobody else looks after that.
    pub(super) itself: bool,
    /// Our own writes are known from applications'.
    pub(super) echoes: bool,
    /// How far ahead of a record's creation a stamp is believed.
    pub(super) drift: u8,
    /// What is further ahead of the worker's clock than half of that is held back.
    pub(super) held: bool,
    /// What is not believed may be replaced.
    pub(super) ceiling: bool,
}

impl Rules {
    pub(super) const ALL: Self = Self {
        repair: true,
        ledger: true,
        creation: true,
        restamp: true,
        marks: true,
        unchanged: true,
        carried: true,
        whole: true,
        itself: true,
        echoes: true,
        drift: u8::MAX,
        held: true,
        ceiling: true,
    };

    /// A worker whose clock shows this may write this version.
    pub(super) fn due(&self, version: Version, now: u8) -> bool {
        !self.held || version.hlc <= now.saturating_add(self.drift / 2)
    }

    /// What an item has above this may be replaced by this version.
    pub(super) fn ceiling(&self, version: Version, now: u8) -> u8 {
        if self.ceiling { version.hlc.max(now).saturating_add(self.drift) } else { u8::MAX }
    }
}

/// What a record is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An application's put or update over an item, and the stale stamp that must not stay.
    Written(Item, Option<Stamp>),
    /// An application's write where no item was, and the stale stamp that must not stay.
    Created(Item, Option<Stamp>),
    /// An application's delete.
    Deleted,
    /// Our own write, of no consequence.
    Echo,
    /// Our own write with this version over something that an application had written.
    EchoOver(Version),
    /// Our own write with this version where no item was.
    EchoCreated(Version),
}

impl Rules {
    pub(super) fn kind(&self, record: &Record) -> Kind {
        // Our mark changes nothing but the stamp.
        let carried = |new: Item| self.carried && new.marked();
        match (record.old, record.new) {
            (None, Some(new)) if !self.echoes => Kind::Created(new, None),
            (Some(_), Some(new)) if !self.echoes => Kind::Written(new, None),
            (None, Some(new)) => match new.stamp {
                Some(stamp) if new.clean() && !carried(new) => Kind::EchoCreated(stamp.version),
                _ => Kind::Created(new, self.stale(new)),
            },
            (Some(old), Some(new)) => {
                let ours = match old.content == new.content {
                    true => new.clean() || self.unchanged,
                    false => new.clean() && !carried(new),
                };
                match new.stamp.filter(|stamp| ours && old.version() < Some(stamp.version)) {
                    Some(_) if old.clean() && new.clean() => Kind::Echo,
                    Some(stamp) => Kind::EchoOver(stamp.version),
                    None => Kind::Written(new, self.stale(new)),
                }
            }
            (Some(old), None) => match old.stamp {
                Some(stamp) if self.marks && stamp.marked && old.clean() => Kind::Echo,
                Some(stamp) if self.marks && stamp.marked => Kind::EchoOver(stamp.version),
                _ => Kind::Deleted,
            },
            (None, None) => unreachable!("a write that changes nothing leaves no record"),
        }
    }

    /// The stamp on what an application wrote, when it would be taken for what it is not.
    fn stale(&self, new: Item) -> Option<Stamp> {
        new.stamp.filter(|_| new.clean() || (self.carried && new.marked()))
    }
}
