//! What a backfill does at a peer: it puts an item as it was found at the source, with a version that every streamed
//! change beats.
//!
//! Unlike a change, such an item may meet what an application wrote at the peer itself; what becomes of that is the
//! operator's choice ([`OnExisting`]). A write of ours that is there with the same version and another content is from an
//! earlier backfill, and no change has come since: on a one-way route it is brought up to date, so that a backfill can be
//! repeated. In a group it stays, because the member's own walker would take a write that does not raise the version for
//! an application's; the stream brings the change.

use super::{Answer, Expect, Found, Peer, ROUNDS, StepError, contended};
use crate::change::Image;
use crate::content::Content;
use crate::item::Key;
use crate::version::{Mark, Stamp, Version};

/// What becomes of an item of the peer that this replicator did not write and that differs from the source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExisting {
    /// It stays.
    Keep,
    /// The source's takes its place.
    Overwrite,
    /// It stays, and the backfill stops.
    Fail,
}

impl OnExisting {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Keep, Self::Overwrite, Self::Fail];

    /// As it is written on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Overwrite => "overwrite",
            Self::Fail => "fail",
        }
    }
}

/// An item of the source, to be put at a peer.
#[derive(Debug, Clone, Copy)]
pub struct Seed<'a> {
    /// The item without a stamp.
    pub content: &'a Content,
    /// Its key.
    pub key: &'a Key,
    /// Its own stamp's version when it is clean, else the lowest of the source.
    pub version: Version,
    /// Whether the peer is a member of the source's group. There what a put created is seen by the member's own walker,
    /// which reads the ledger.
    pub group: bool,
    /// Whether an item of ours that a change has put there may have another shape: [`Seeded::Stale`] tells of it.
    pub shaped: bool,
}

/// What became of a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Seeded {
    /// There was no item.
    Created,
    /// There was an older one of ours.
    Updated,
    /// It was there, of this very version; in a group also with older content, which the stream brings up to date.
    Unchanged,
    /// Something newer of ours is there.
    Newer,
    /// Something newer of ours is there, with this stamp and other content: it may have an earlier shape. Never an item's
    /// fate in the end.
    Stale(Stamp),
    /// It was deleted at the source meanwhile.
    Deleted,
    /// An item that we did not write is there, with the same content. It is left alone: the next change takes its place.
    Equal,
    /// An item that we did not write is there, and stays.
    Kept,
    /// An item that we did not write was there.
    Overwritten,
    /// An item that we did not write is there, and the backfill is to stop.
    Conflict,
}

impl Peer {
    /// Puts an item of the source, unless something newer is there or `existing` lets an application's item stay. Two
    /// requests at most where nobody else writes, one where there was no item; on a one-way route the ledger is read after
    /// a creation, in a group before it. `placed` is called when the peer is done with it, before the ledger is read.
    ///
    /// # Errors
    /// Any failure but that of the condition; the step can be repeated.
    pub async fn seed(
        &self,
        seed: Seed<'_>,
        existing: OnExisting,
        placed: impl Fn(),
    ) -> Result<Seeded, StepError> {
        let Seed { content, key, version, group, shaped } = seed;
        if group && self.tombstone(key).await?.is_some_and(|tombstone| tombstone > version) {
            return Ok(Seeded::Deleted);
        }
        let stamp = Stamp::of(content, version);
        let text = stamp.to_string();
        let (mut expect, mut done) = (Expect::Absent, Seeded::Created);
        for _ in 0..ROUNDS {
            let found = match self.send_put(content, &text, version, &expect).await? {
                Answer::Done => {
                    placed();
                    return self.unless_deleted(seed, done).await;
                }
                Answer::Found(found) => found,
            };
            (expect, done) = match found {
                Found::Nothing => (Expect::Absent, Seeded::Created),
                Found::Older => (Expect::OlderStamp, Seeded::Updated),
                Found::Newer(Image { stamp: Some(there), .. })
                    if shaped
                        && there.version.member == version.member
                        && there.mark == Mark::Put
                        && there.digest != stamp.digest =>
                {
                    return Ok(Seeded::Stale(there));
                }
                Found::Newer(_) => return Ok(Seeded::Newer),
                Found::Same(_) if group => return Ok(Seeded::Unchanged),
                // Perhaps of a worker that died before it read the ledger.
                Found::Same(there) if there.digest == stamp.digest || there.mark == Mark::Deleted => {
                    placed();
                    return self.unless_deleted(seed, Seeded::Unchanged).await;
                }
                Found::Same(there) => (Expect::Seen(there.to_string()), Seeded::Updated),
                Found::Unstamped(there) if there.digest() == stamp.digest => return Ok(Seeded::Equal),
                Found::Unstamped(_) | Found::NotAStamp(_) if existing == OnExisting::Keep => {
                    return Ok(Seeded::Kept);
                }
                Found::Unstamped(_) | Found::NotAStamp(_) if existing == OnExisting::Fail => {
                    return Ok(Seeded::Conflict);
                }
                Found::Unstamped(_) => (Expect::Unstamped, Seeded::Overwritten),
                Found::NotAStamp(text) => (Expect::Seen(text), Seeded::Overwritten),
            };
        }
        Err(contended())
    }

    /// Puts an item in the place of one of ours that may have an earlier shape, under the stamp's version, if it still is
    /// what was `seen`. The content must have been read at the source, strongly, after that was: so the change that the
    /// version stands for is in it, and any later one still comes.
    ///
    /// # Errors
    /// Any failure but that of the condition; the step can be repeated.
    pub async fn reshape(&self, content: &Content, seen: Stamp) -> Result<Seeded, StepError> {
        let (text, expect) = (Stamp::of(content, seen.version).to_string(), Expect::Seen(seen.to_string()));
        match self.send_put(content, &text, seen.version, &expect).await? {
            Answer::Done => Ok(Seeded::Updated),
            Answer::Found(_) => Ok(Seeded::Newer),
        }
    }

    /// Reads the tombstone of a key whose item a seed may have brought back, and deletes it again when that is newer;
    /// whether it was. What an application put there since stays.
    ///
    /// # Errors
    /// Any failure but that of a condition; the step can be repeated.
    pub async fn settle(&self, key: &Key, version: Version) -> Result<bool, StepError> {
        let Some(tombstone) = self.tombstone(key).await?.filter(|tombstone| *tombstone > version) else {
            return Ok(false);
        };
        for _ in 0..ROUNDS {
            match self.send_delete(key, tombstone, &Expect::OlderStamp).await? {
                // It became so since the condition was looked at.
                Answer::Found(Found::Older) => {}
                Answer::Done | Answer::Found(_) => return Ok(true),
            }
        }
        Err(contended())
    }

    async fn unless_deleted(&self, seed: Seed<'_>, done: Seeded) -> Result<Seeded, StepError> {
        let unchecked = !seed.group && matches!(done, Seeded::Created | Seeded::Updated | Seeded::Unchanged);
        let deleted = unchecked && self.settle(seed.key, seed.version).await?;
        Ok(if deleted { Seeded::Deleted } else { done })
    }
}
