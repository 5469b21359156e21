//! Active-active groups: what a record of a member is, and which lane does what about it.
//!
//! [`classify`] tells an application's writes from our own, by the images alone: pure, so that a replay comes to the
//! same. [`apply`] carries a step out. A group has no other knowledge: who wrote what is on the items and in the
//! stream, and what was deleted is in the ledger.

pub mod apply;
pub mod breaker;
#[cfg(test)]
mod tests;

use crate::change::{Change, Event, Image};
use crate::version::{Hlc, Mark, Stamp};
use std::time::Duration;

/// What a record of a member of a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// An application put or updated the item.
    Write {
        /// There was no item before.
        creates: bool,
        /// The stamp that the item carries and must not keep. Its content is as that stamp says, for an old content came
        /// back: nobody could tell it from a copy. Or it has the mark of a delete, which an application read between the
        /// two steps and put back: its next delete would pass for ours.
        stale: Option<Stamp>,
        /// The stamp is newer than that of the item before and does not match the content. No application does that but
        /// one that copies items from member to member, with our attribute; digests that are not stable would.
        strange: bool,
    },
    /// An application deleted the item.
    Delete,
    /// Our own write of this stamp.
    Echo {
        /// The write's stamp.
        stamp: Stamp,
        /// What it replaced.
        over: Over,
    },
    /// The second step of our own delete.
    Removal,
}

/// What our own write replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// No item: a creation, which may have come after a delete.
    Nothing,
    /// An item that we had written: nothing is lost.
    Clean,
    /// What an application had written, which may have been newer.
    Dirty,
}

/// An image's stamp, when it is not too far ahead of the record's creation to be believed.
fn believed(image: &Image, ceiling: Hlc) -> Option<Stamp> {
    image.stamp.filter(|stamp| stamp.version.hlc <= ceiling)
}

/// Tells what a record is. `max_drift` is how far ahead of a record's creation a stamp is believed; one beyond that
/// counts as none.
#[must_use]
pub fn classify(change: &Change, max_drift: Duration) -> Record {
    let ceiling = Hlc::from_time(change.created).plus(max_drift);
    // An item without a believed stamp is an application's, whatever is in it.
    let is_clean =
        |image: &Image, stamp: Option<Stamp>| stamp.is_some_and(|s| s.digest == image.content.digest());
    let seen = |image| {
        let stamp = believed(image, ceiling);
        (image, stamp, is_clean(image, stamp))
    };
    let old = change.old.as_ref().map(seen);
    let Some((new, stamp, clean)) = change.new.as_ref().map(seen) else {
        return match old {
            Some((_, Some(stamp), true)) if stamp.mark == Mark::Deleted => Record::Removal,
            Some((_, Some(stamp), false)) if stamp.mark == Mark::Deleted => {
                Record::Echo { stamp, over: Over::Dirty }
            }
            _ => Record::Delete,
        };
    };
    let creates = change.event == Event::Insert;
    let Some(stamp) = stamp else {
        return Record::Write { creates, stale: None, strange: false };
    };
    // We never mark an item and change its content at once, nor create one with a mark.
    let put = clean && stamp.mark == Mark::Put;
    let (newer, over, ours) = match old {
        None => (true, Over::Nothing, put),
        Some((was, before, was_clean)) => {
            let newer = before.is_none_or(|before| before.version < stamp.version);
            let over = if was_clean && clean { Over::Clean } else { Over::Dirty };
            // Where nothing but the stamp has changed it is ours, even when it does not match: an application's write has
            // come between what we looked at and this.
            (newer, over, newer && (put || was.content.digest() == new.content.digest()))
        }
    };
    if ours {
        return Record::Echo { stamp, over };
    }
    let stale = Some(stamp).filter(|stamp| clean || stamp.mark == Mark::Deleted);
    // An application that puts back a whole item, with our attribute, over one that another wrote whole is nothing strange.
    let over_ours = old.is_some_and(|(_, before, _)| before.is_some());
    Record::Write { creates, stale, strange: newer && over_ours && !clean }
}

/// What the lane to one peer does about a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Puts the new content at the peer.
    Put {
        /// There was no item before: a newer delete wins.
        creates: bool,
        /// The stamp to replace by the write's own, at the member where it was written.
        stale: Option<Stamp>,
    },
    /// Deletes the item at the peer.
    Delete,
    /// Our write created an item: sees that no newer delete came before it.
    Check(Stamp),
    /// Our write replaced an application's: brings that back when it was newer.
    Repair(Stamp),
    /// Nothing.
    Nothing,
}

/// What a lane is within its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The number of the lane's peer.
    pub peer: u8,
    /// The numbers of all peers of the member that the records come from.
    pub peers: Vec<u8>,
}

impl Place {
    /// Whether what one lane of a member must do about a write of `origin` is this lane's: that of the lane to the
    /// member where it was written, or to the lowest number when it was written here.
    #[must_use]
    pub fn has_duty(&self, origin: u8) -> bool {
        let one = if self.peers.contains(&origin) { Some(origin) } else { self.peers.iter().min().copied() };
        one == Some(self.peer)
    }

    /// This lane's step for a record.
    #[must_use]
    pub fn step(&self, record: Record) -> Step {
        match record {
            Record::Write { creates, stale, .. } => {
                Step::Put { creates, stale: stale.filter(|stamp| self.has_duty(stamp.version.member)) }
            }
            Record::Delete => Step::Delete,
            Record::Echo { stamp, over } if self.has_duty(stamp.version.member) => match over {
                Over::Nothing => Step::Check(stamp),
                Over::Dirty => Step::Repair(stamp),
                Over::Clean => Step::Nothing,
            },
            Record::Echo { .. } | Record::Removal => Step::Nothing,
        }
    }
}
