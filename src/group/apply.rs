//! Carrying out a step of a group, at the peer and at the member where the record comes from.

use super::breaker::Breaker;
use super::{Place, Record, Step};
use crate::change::{Change, Image};
use crate::conflicts::{Conflict, How, Journal, Side};
use crate::peer::{Outcome, Peer, Placed, StepError};
use crate::version::{Mark, Stamp, Version};
use std::sync::Arc;

/// What a route of a group has beside its peers.
#[derive(Debug)]
pub struct Membership {
    /// The number of the member that the records come from.
    pub number: u8,
    /// That member.
    pub home: Peer,
    /// The numbers of the route's peers, in the route's order.
    pub peers: Vec<u8>,
    /// Watches for loops.
    pub breaker: Breaker,
    /// What lost.
    pub journal: Journal,
}

/// One lane of a route of a group.
#[derive(Debug, Clone)]
pub struct GroupLane {
    /// What the route's lanes share.
    pub route: Arc<Membership>,
    /// Which of them it is.
    pub place: Place,
}

impl GroupLane {
    /// The lane to the peer at `index` of the route.
    #[must_use]
    pub fn new(route: &Arc<Membership>, index: usize) -> Option<Self> {
        let peer = *route.peers.get(index)?;
        Some(Self { route: Arc::clone(route), place: Place { peer, peers: route.peers.clone() } })
    }

    /// This lane's step for a record; the first lane of a route shows the record to the breaker.
    #[must_use]
    pub fn step(&self, record: Record) -> Step {
        if self.place.has_duty(self.route.number) {
            self.route.breaker.sees(record);
        }
        self.place.step(record)
    }

    /// Carries a step out. `created` says that a write that this one covers created the item. A tombstone that the step
    /// needs must have been raised. What is no write of an application has no outcome.
    ///
    /// # Errors
    /// Where it failed; the step can be repeated.
    pub async fn carry_out(
        &self,
        peer: &Peer,
        change: &Change,
        version: Version,
        step: Step,
        created: bool,
    ) -> Result<Option<Outcome>, StepError> {
        match (step, &change.new) {
            (Step::Put { creates, stale }, Some(image)) => {
                let write = Write { change, image, version };
                self.put(peer, write, creates || created, stale).await.map(Some)
            }
            (Step::Delete | Step::Put { .. }, _) => match peer.remove(&change.key, version).await? {
                Placed::Done => Ok(Some(Outcome::Applied)),
                Placed::Beaten(by) => {
                    self.beaten(peer, change, Side { version, item: None }, &by).await?;
                    Ok(Some(Outcome::Superseded))
                }
            },
            (Step::Check(stamp), _) => {
                self.check(peer, change, stamp.version, true).await?;
                Ok(None)
            }
            (Step::Repair(stamp), _) => {
                self.repair(peer, change, stamp, |found| found > stamp.version).await?;
                Ok(None)
            }
            (Step::Nothing, _) => Ok(None),
        }
    }

    async fn put(
        &self,
        peer: &Peer,
        write: Write<'_>,
        created: bool,
        stale: Option<Stamp>,
    ) -> Result<Outcome, StepError> {
        let Write { change, image, version } = write;
        if created && self.check(peer, change, version, false).await? {
            return Ok(Outcome::Superseded);
        }
        let outcome = match peer.place(&image.content, version).await? {
            Placed::Done => Outcome::Applied,
            Placed::Beaten(by) => {
                self.beaten(peer, change, Side { version, item: Some(&image.content) }, &by).await?;
                Outcome::Superseded
            }
        };
        if let Some(stale) = stale {
            let home = &self.route.home;
            let stamped = home.restamp(&image.content, stale, version).await.map_err(at_home)?;
            let now = if stamped { None } else { Some(home.look(&change.key).await.map_err(at_home)?) };
            match now {
                // An application has put something else there, whose own record follows.
                None | Some(Some(Image { stamp: None, .. })) => {}
                // A write of ours took the item for the copy that its stale stamp says it is, and its echo looks like one
                // over such: this very write may be what it replaced.
                Some(_) => {
                    let ours = Stamp { version, ..stale };
                    self.repair(peer, change, ours, |found| found >= version).await?;
                }
            }
        }
        Ok(outcome)
    }

    /// An item was created with this version: a newer delete may have come before it, and wins. Gives whether it did.
    /// `alone` says that no other lane does this too.
    async fn check(
        &self,
        peer: &Peer,
        change: &Change,
        version: Version,
        alone: bool,
    ) -> Result<bool, StepError> {
        let Some(tombstone) = peer.tombstone(&change.key).await?.filter(|tombstone| *tombstone > version)
        else {
            return Ok(false);
        };
        if tombstone.member != version.member && (alone || self.place.has_duty(tombstone.member)) {
            let loser = Side { version, item: change.new.as_ref().map(|image| &image.content) };
            let winner = Side { version: tombstone, item: None };
            self.lost(change, loser, winner, How::Deleted, self.route.home.name()).await?;
        }
        self.route.home.remove(&change.key, tombstone).await.map_err(at_home)?;
        Ok(true)
    }

    /// A write of ours replaced an application's at home. Every peer that has acknowledged that one tells whether it
    /// was newer: then it comes back.
    async fn repair(
        &self,
        peer: &Peer,
        change: &Change,
        ours: Stamp,
        newer: impl Fn(Version) -> bool,
    ) -> Result<(), StepError> {
        let Some(Image { content, stamp: Some(stamp) }) = peer.look(&change.key).await? else {
            return Ok(());
        };
        let version = ours.version;
        if !newer(stamp.version) || stamp.mark != Mark::Put || stamp.digest != content.digest() {
            return Ok(());
        }
        let replaced = self.route.home.bring_back(&content, stamp.version).await.map_err(at_home)?;
        let home = self.route.number;
        // What was written elsewhere may have seen ours.
        if stamp.version.member != home {
            return Ok(());
        }
        let winner = Side { version: stamp.version, item: Some(&content) };
        if version.member != home {
            let wrote = change.new.as_ref().filter(|_| ours.mark == Mark::Put);
            let loser = Side { version, item: wrote.map(|image| &image.content) };
            self.lost(change, loser, winner, How::Repaired, self.route.home.name()).await?;
        }
        // Another member's write may have taken the place of that one since: it had not seen home's write either.
        let Some(Image { content: other, stamp: Some(was) }) = &replaced else { return Ok(()) };
        if was.version != version && was.version.member != home && was.digest == other.digest() {
            let loser = Side { version: was.version, item: Some(other).filter(|_| was.mark == Mark::Put) };
            self.lost(change, loser, winner, How::Repaired, self.route.home.name()).await?;
        }
        Ok(())
    }

    /// Something newer stood at the peer. It is a conflict when that was written there; what came from elsewhere is
    /// met by the lane to where it was written.
    async fn beaten(
        &self,
        peer: &Peer,
        change: &Change,
        loser: Side<'_>,
        by: &Image,
    ) -> Result<(), StepError> {
        match by.stamp {
            Some(stamp) if stamp.version.member == self.place.peer => {
                let winner = Side { version: stamp.version, item: Some(&by.content) };
                self.lost(change, loser, winner, How::Superseded, peer.name()).await
            }
            _ => Ok(()),
        }
    }

    async fn lost(
        &self,
        change: &Change,
        loser: Side<'_>,
        winner: Side<'_>,
        how: How,
        at: &str,
    ) -> Result<(), StepError> {
        let conflict = Conflict { key: &change.key, loser, winner, how, at };
        self.route.journal.write(conflict).await.map_err(StepError::State)
    }
}

struct Write<'a> {
    change: &'a Change,
    image: &'a Image,
    version: Version,
}

fn at_home(error: StepError) -> StepError {
    match error {
        StepError::Peer(failure) => StepError::Home(failure),
        error => error,
    }
}
