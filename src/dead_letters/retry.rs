//! Applying dead letters again, in order, through the same conditional path as any change.
//!
//! A letter keeps its version, so whatever a running worker writes to the same key meanwhile, the higher version
//! stays. A letter goes once it is applied or superseded, and the key is free when its last letter is gone: a
//! worker that wants to keep one more change behind them finds that out in the same transaction, and applies it.

use crate::apply::{self, Rules, Step};
use crate::change::Change;
use crate::dead_letters::{DeadLetters, Letter, Reason};
use crate::failure::{Class, Failure};
use crate::group;
use crate::group::apply::GroupLane;
use crate::item::Digest;
use crate::peer::{Outcome, Peer, StepError};
use crate::retry::{self, GaveUp, Jitter, Policy};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Tries the letters of a peer again.
pub struct Retry<'a> {
    /// The letters.
    pub letters: &'a DeadLetters,
    /// The route's name.
    pub route: &'a str,
    /// The peer that they are for.
    pub peer: &'a Peer,
    /// What the route's config says about single changes.
    pub rules: Rules,
    /// The lane's part in its group, and how far ahead of a record's creation a stamp is believed there; `None` on a
    /// one-way route.
    pub group: Option<(GroupLane, Duration)>,
    /// Seeded pauses.
    pub jitter: &'a Jitter,
    /// Ends the pauses.
    pub cancel: &'a CancellationToken,
}

/// What became of a key's letters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retried {
    /// Letters that took effect.
    pub applied: usize,
    /// Letters that something newer, or a rule, made needless.
    pub superseded: usize,
    /// The letter at which it stopped, and what the peer said: it is refused again.
    pub refused: Option<(Letter, Failure)>,
}

/// For how long a call that fails is tried again.
const PATIENCE: Duration = Duration::from_secs(20);

impl Retry<'_> {
    /// Applies the letters of a key, in order, until none is left or one is refused again.
    ///
    /// # Errors
    /// A failure that did not pass, and what the peer says when it refuses every write of the key: then the table
    /// is at fault, and no letter counts as tried. What was done so far stays done.
    pub async fn key(&self, key: Digest) -> Result<Retried, Failure> {
        let (route, peer) = (self.route, self.peer.name());
        let mut retried = Retried::default();
        loop {
            for letter in self.patiently(|| self.letters.letters(route, peer, Some(key))).await? {
                let change = self.patiently(|| self.letters.record(route, peer, &letter)).await?;
                match self.patiently(|| self.step(&change, &letter)).await {
                    Ok(Outcome::Applied) => retried.applied += 1,
                    Ok(Outcome::Superseded) => retried.superseded += 1,
                    Err(why) if why.class == Class::Invalid => {
                        if Reason::of(&why) == Reason::Refused {
                            let key = self.rules.key(&change.key)?;
                            self.patiently(|| self.peer.accepts(&key)).await?;
                        }
                        self.patiently(|| self.letters.refused(route, peer, &letter, &why)).await?;
                        retried.refused = Some((letter, why));
                        return Ok(retried);
                    }
                    Err(failure) => return Err(failure),
                }
                self.patiently(|| self.letters.remove(route, peer, &letter)).await?;
            }
            // A worker may have kept one more meanwhile.
            if self.patiently(|| self.letters.release(route, peer, key)).await? {
                return Ok(retried);
            }
        }
    }

    async fn step(&self, change: &Change, letter: &Letter) -> Result<Outcome, Failure> {
        let plan = apply::plan(change, &self.rules)?;
        if let (Some((lane, max_drift)), false) = (&self.group, matches!(plan, Step::Skip(_))) {
            let step = lane.place.step(group::classify(change, *max_drift));
            if step == group::Step::Delete {
                self.peer.raise(&change.key, letter.version).await.map_err(of_letter)?;
            }
            let done = lane.carry_out(self.peer, change, letter.version, step, false).await;
            return done.map(|outcome| outcome.unwrap_or(Outcome::Applied)).map_err(of_letter);
        }
        let done = match (plan, &change.new) {
            (Step::Skip(_), _) => Ok(Outcome::Superseded),
            (Step::Put { creates }, Some(image)) => {
                let (key, content) = self.rules.item(&change.key, &image.content)?;
                self.peer.put(&content, &key, letter.version, creates).await
            }
            (Step::Delete | Step::Put { .. }, _) => {
                let key = self.rules.key(&change.key)?;
                match self.peer.raise(&key, letter.version).await {
                    Ok(()) => self.peer.delete(&key, letter.version).await,
                    Err(error) => Err(error),
                }
            }
        };
        done.map_err(of_letter)
    }

    async fn patiently<T, F>(&self, call: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let policy = Policy { slow: Duration::from_secs(4), ..Policy::for_at_most(PATIENCE) };
        match retry::run(policy, self.jitter, self.cancel, |_, _| (), call).await {
            Ok(done) => Ok(done),
            Err(GaveUp::Failed(failure)) => Err(failure),
            Err(GaveUp::Cancelled) => {
                Err(Failure::new(Class::Transient, "Cancelled", "stopped while waiting"))
            }
        }
    }
}

fn of_letter(error: StepError) -> Failure {
    match error {
        // The state table refuses no letter: what is invalid there is no matter of this item.
        StepError::State(failure) if failure.class == Class::Invalid => {
            Failure { class: Class::Unrecognised, ..failure }
        }
        StepError::State(failure) | StepError::Home(failure) | StepError::Peer(failure) => failure,
    }
}
