//! Carrying out the changes of one key at the lane's peer.

use super::{Finished, LaneParts, Work, WorkItem};
use crate::apply::Step;
use crate::change::Event;
use crate::dead_letters::{self, Kept, Reason};
use crate::failure::{Action, Class, Failure};
use crate::group::Step as GroupStep;
use crate::item::Digest;
use crate::peer::{Outcome, StepError};
use crate::retry::{Pauses, Policy};
use crate::shape::Unshaped;
use crate::telemetry::metrics::Counted;
use crate::version::Version;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// A lane that is to come to rest waits no longer than this before it tries again.
const LEAVE: Duration = Duration::from_secs(1);

/// What became of one try.
enum Tried {
    /// With the outcome, when it was an application's write.
    Done(Option<Outcome>),
    Refused(Failure),
    Abandoned,
}

impl LaneParts {
    /// The keys that have dead letters; `None` when the fence fell.
    pub(super) async fn load_dead(self: &Arc<Self>) -> Option<HashSet<Digest>> {
        let mut pauses = Pauses::new(Policy::FOREVER, self.jitter.clone());
        loop {
            match self.dead_letters.keys(&self.route, self.peer.name()).await {
                Ok(keys) => {
                    self.peer.got_through();
                    return Some(keys);
                }
                Err(failure) => self.failed("state", &failure, &mut pauses).await.then_some(())?,
            }
        }
    }

    /// Applies the last change of `work`; when the peer refuses that for good, the one before it, and so on.
    /// What was refused is kept as dead letters, in order.
    pub(super) async fn carry_out(self: Arc<Self>, work: Work) -> Finished {
        let _counted = Counted::new(self.counters.in_flight.clone());
        let result = self.settle(&work).await;
        let slots = work.items.iter().map(|item| item.slot).collect();
        Finished { key: work.key, slots, dead: result == Some(true), abandoned: result.is_none() }
    }

    /// `None` when the fence fell, else whether the key has dead letters now.
    async fn settle(&self, work: &Work) -> Option<bool> {
        let mut pauses = Pauses::new(Policy::FOREVER, self.jitter.clone());
        let mut rest = self.put_behind(&work.items, work.dead, &mut pauses).await?;
        let mut dead = work.dead && rest.is_empty();
        while !rest.is_empty() {
            let (run, later) = rest.split_at(first_run(rest));
            dead = self.settle_run(run, &mut pauses).await?;
            rest = self.put_behind(later, dead, &mut pauses).await?;
        }
        self.status.moving();
        self.peer.got_through();
        Some(dead)
    }

    /// Applies the last of some changes that it covers; gives whether one was refused and is a dead letter.
    async fn settle_run(&self, items: &[WorkItem], pauses: &mut Pauses) -> Option<bool> {
        let raise = items.iter().filter(|item| item.deletes()).map(|item| item.version).max();
        let mut refused: Vec<Failure> = Vec::new();
        let mut tried = None;
        for (index, item) in items.iter().enumerate().rev() {
            let created = items[..index].iter().any(|item| item.change().event == Event::Insert);
            match self.try_one(item, raise, created, pauses).await {
                Tried::Done(outcome) => {
                    tried = Some(outcome);
                    break;
                }
                Tried::Refused(failure) => refused.push(failure),
                Tried::Abandoned => return None,
            }
        }
        let kept = items.len() - refused.len();
        // What cannot be shaped has not come to the peer.
        let by_peer = items.iter().rev().zip(&refused).find(|(_, why)| Reason::of(why) == Reason::Refused);
        if let Some((item, why)) = by_peer {
            self.confirm(item, why, pauses).await?;
        }
        for (item, why) in items[kept..].iter().zip(refused.iter().rev()) {
            self.keep(item, Reason::of(why), why, pauses).await?;
        }
        match tried {
            Some(Some(outcome)) => self.count_done(&items[..kept], outcome),
            // One of ours, which is never folded with others.
            Some(None) => self.counters.echoes.inc(),
            None => {}
        }
        Some(!refused.is_empty())
    }

    /// Takes what is held back out of some changes of a key, and says so: in a group, everything from the first one on
    /// that would write with a version too far ahead of this worker's clock. A member whose own clock is right would not
    /// believe it. Half the drift that is believed is left for members whose clocks are behind, and a second for creation times,
    /// which are rounded down.
    pub(super) fn hold_back(&self, work: &mut Work) -> Option<Work> {
        self.group.as_ref()?;
        let now = self.clock.since_epoch();
        let most = self.max_drift.saturating_sub(Duration::from_secs(1)) / 2;
        let ahead = |item: &WorkItem| {
            let gives = matches!(item.group, Some(GroupStep::Put { .. } | GroupStep::Delete));
            let ahead = Duration::from_millis(item.version.hlc.millis()).saturating_sub(now);
            (gives && ahead > most).then_some(ahead)
        };
        let (first, by) = work.items.iter().enumerate().find_map(|(at, item)| Some((at, ahead(item)?)))?;
        self.status.held_back(by);
        Some(Work { key: work.key, items: work.items.split_off(first), dead: work.dead })
    }

    /// Sees that the peer refuses this item and not every item: a table that was made again with other keys refuses
    /// all, and nothing of that is a dead letter. Waits until a write that changes nothing is accepted.
    async fn confirm(&self, item: &WorkItem, why: &Failure, pauses: &mut Pauses) -> Option<()> {
        // The peer has refused it under this key.
        let Ok(key) = self.rules.key(&item.change().key) else { return Some(()) };
        while let Err(all) = self.peer.accepts_others(&key, why).await {
            self.failed(self.peer.name(), &all, pauses).await.then_some(())?;
        }
        Some(())
    }

    /// Keeps the changes of a key that has dead letters behind these; gives the rest when an operator has taken the
    /// letters away, all of it for a key that has none.
    async fn put_behind<'w>(
        &self,
        items: &'w [WorkItem],
        dead: bool,
        pauses: &mut Pauses,
    ) -> Option<&'w [WorkItem]> {
        let why = Failure::new(Class::Invalid, "Behind", "an earlier change of this key is a dead letter");
        let mut rest = items;
        while let Some((item, later)) = rest.split_first().filter(|_| dead) {
            match self.keep(item, Reason::Behind, &why, pauses).await? {
                Kept::Kept => rest = later,
                Kept::Free => break,
            }
        }
        Some(rest)
    }

    /// Tries one change until it is done or refused for good.
    async fn try_one(
        &self,
        item: &WorkItem,
        raise: Option<Version>,
        created: bool,
        pauses: &mut Pauses,
    ) -> Tried {
        let mut raise = raise;
        loop {
            if self.fence.is_cancelled() {
                return Tried::Abandoned;
            }
            let result = match raise {
                Some(version) => match self.raise(item, version).await {
                    Ok(()) => {
                        raise = None;
                        continue;
                    }
                    Err(error) => Err(error),
                },
                None => self.step(item, created).await,
            };
            match result {
                Ok(outcome) => return Tried::Done(outcome),
                Err(StepError::Peer(failure) | StepError::Home(failure))
                    if failure.class == Class::Invalid =>
                {
                    return Tried::Refused(failure);
                }
                Err(error) => {
                    let at = match error {
                        StepError::Peer(_) => self.peer.name(),
                        StepError::Home(_) => {
                            self.group.as_ref().map_or("home", |lane| lane.route.home.name())
                        }
                        StepError::State(_) => "state",
                    };
                    if !self.failed(at, error.failure(), pauses).await {
                        return Tried::Abandoned;
                    }
                }
            }
        }
    }

    async fn step(&self, item: &WorkItem, created: bool) -> Result<Option<Outcome>, StepError> {
        let change = item.change();
        if let (Some(lane), Some(step)) = (&self.group, item.group) {
            return lane.carry_out(&self.peer, change, item.version, step, created).await;
        }
        let outcome = match (item.plan.clone().map_err(unshaped)?, &change.new) {
            (Step::Put { creates }, Some(image)) => {
                let (key, content) = self.rules.item(&change.key, &image.content).map_err(unshaped)?;
                self.peer.put(&content, &key, item.version, creates).await
            }
            (Step::Delete | Step::Put { .. }, _) => {
                let key = self.rules.key(&change.key).map_err(unshaped)?;
                self.peer.delete(&key, item.version).await
            }
            // Skipped changes never become work.
            (Step::Skip(_), _) => Ok(Outcome::Superseded),
        };
        outcome.map(Some)
    }

    async fn raise(&self, item: &WorkItem, version: Version) -> Result<(), StepError> {
        let key = self.rules.key(&item.change().key).map_err(unshaped)?;
        self.peer.raise(&key, version).await
    }

    async fn keep(
        &self,
        item: &WorkItem,
        reason: Reason,
        why: &Failure,
        pauses: &mut Pauses,
    ) -> Option<Kept> {
        let lane = dead_letters::Lane { route: &self.route, peer: self.peer.name(), shard: &self.shard };
        loop {
            match self.dead_letters.keep(lane, item.change(), item.version, reason, why).await {
                Ok(Kept::Kept) => break,
                Ok(Kept::Free) => return Some(Kept::Free),
                Err(failure) => self.failed("state", &failure, pauses).await.then_some(())?,
            }
        }
        let labels = [&*self.route, self.peer.name(), reason.name()];
        self.metrics.dead_letters.with_label_values(&labels).inc();
        self.counters.dead.inc();
        tracing::error!(
            peer = self.peer.name(),
            key = %item.change().key.digest(),
            sequence = %item.change().sequence,
            reason = reason.name(),
            code = why.code,
            "a change cannot be applied; it is kept as a dead letter, and later changes of its key wait"
        );
        Some(Kept::Kept)
    }

    /// Notes a failure and waits; `false` when the fence fell, or when a stop was asked for a while ago: what a peer
    /// does not take is left to whoever has the shard next.
    async fn failed(&self, at: &str, failure: &Failure, pauses: &mut Pauses) -> bool {
        self.metrics.retried(&self.route, at, failure.class);
        if failure.class.action() != Action::RetrySoon {
            self.status.stalled(failure);
        }
        let leave = async {
            self.drain.cancelled().await;
            tokio::time::sleep(LEAVE).await;
        };
        tokio::select! {
            biased;
            goes_on = self.peer.wait_after(failure, pauses, &self.jitter, &self.fence) => goes_on,
            () = leave => false,
        }
    }

    fn count_done(&self, items: &[WorkItem], outcome: Outcome) {
        let (Some((_, covered)), now) = (items.split_last(), self.clock.now()) else { return };
        match outcome {
            Outcome::Applied => self.counters.applied.inc(),
            Outcome::Superseded => self.counters.superseded.inc(),
        }
        self.counters.folded.inc_by(covered.len() as u64);
        for item in items {
            let lag = now.duration_since(item.change().created).unwrap_or_default();
            self.counters.lag.observe(lag.as_secs_f64());
        }
    }
}

/// As if the peer had refused it.
fn unshaped(why: Unshaped) -> StepError {
    StepError::Peer(why.into())
}

/// How many changes from the first on one request carries out: all of a one-way route, for the last covers the others.
/// In a group applications' writes up to the next one of ours, or that one alone.
fn first_run(items: &[WorkItem]) -> usize {
    let ours = |item: &WorkItem| {
        matches!(item.group, Some(GroupStep::Check(_) | GroupStep::Repair(_) | GroupStep::Nothing))
    };
    items.iter().position(ours).map_or(items.len(), |index| index.max(1))
}
