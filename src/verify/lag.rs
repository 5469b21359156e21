//! What may still be on its way: how far the workers say that they are.

use crate::clock::Clock;
use crate::config::Config;
use crate::failure::Failure;
use crate::state::StateTable;
use crate::status::{Peer, Reader, Status, assemble};
use std::time::{Duration, SystemTime};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Records' times have whole seconds.
const RESOLUTION: Duration = Duration::from_secs(1);

/// How far the compared routes are, looked up when somebody asks, and not more often than workers say it.
#[derive(Debug)]
pub(super) struct Lag {
    /// With the compared routes alone.
    config: Config,
    state: StateTable,
    clock: Clock,
    /// Workers that have not come further for so long are not waited for.
    patience: Duration,
    seen: Mutex<Option<Seen>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    looked: Instant,
    /// How far the peer is that is furthest behind; `None` when there is nobody to wait for.
    last: Option<Place>,
    /// Where and when one was last seen to have come further.
    mark: Option<(Place, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// All that was created before this is applied.
    frontier: SystemTime,
    /// Changes that were read and are not applied: many may be of the same second.
    pending: u64,
}

impl Place {
    /// Whether something was applied since `before`. A frontier is known to the second only, and what is written meanwhile
    /// adds to what is pending.
    fn is_further_than(&self, before: &Self) -> bool {
        self.frontier > before.frontier + RESOLUTION || self.pending < before.pending
    }
}

impl Lag {
    /// Of a config that has the compared routes alone; workers that have not come further for `patience`, and four beats at
    /// least, are not waited for.
    pub(super) fn new(config: Config, state: StateTable, clock: Clock, patience: Duration) -> Self {
        let patience = patience.max(4 * config.lease.renew_interval);
        Self { config, state, clock, patience, seen: Mutex::default() }
    }

    /// How often workers say how far they are.
    pub(super) fn interval(&self) -> Duration {
        self.config.lease.renew_interval
    }

    /// Whether a record of a time may be on its way to a member: some living worker, or a lease that nobody holds, is not
    /// that far. A peer that is paused, and workers that do not come further, are not waited for.
    ///
    /// # Errors
    /// The failure of a look.
    pub(super) async fn may_bring(&self, written: SystemTime) -> Result<bool, Failure> {
        let mut seen = self.seen.lock().await;
        let fresh = seen.filter(|seen| seen.looked.elapsed() < self.interval() / 2);
        let now = match fresh {
            Some(fresh) => fresh,
            None => self.look(*seen).await?,
        };
        *seen = Some(now);
        let behind = now.last.is_some_and(|last| last.frontier <= written + RESOLUTION);
        Ok(behind && !self.stands(&now, Instant::now()))
    }

    async fn look(&self, before: Option<Seen>) -> Result<Seen, Failure> {
        let looked = Instant::now();
        let reader = Reader { config: &self.config, state: self.state.clone(), clock: self.clock };
        let look = reader.look().await?;
        let last = last(&assemble(&look, &[], self.config.lease.duration), look.now);
        let before_mark = before.and_then(|before| before.mark);
        let kept = |last: &Place| before_mark.filter(|(mark, _)| !last.is_further_than(mark));
        let mark = last.map(|last| kept(&last).unwrap_or((last, looked)));
        let seen = Seen { looked, last, mark };
        if let Some(last) = last.filter(|_| before_mark.is_none()) {
            let seconds = look.now.duration_since(last.frontier).unwrap_or_default().as_secs();
            tracing::info!(
                seconds,
                "the workers are behind: differences wait for what was written before them"
            );
        }
        if self.stands(&seen, looked) && !before.is_some_and(|before| self.stands(&before, before.looked)) {
            tracing::warn!(
                seconds = self.patience.as_secs(),
                "the workers do not come further: what is on its way counts as a difference; see shardwalker status"
            );
        }
        Ok(seen)
    }

    /// Whether the workers have not come further for too long.
    fn stands(&self, seen: &Seen, at: Instant) -> bool {
        seen.mark.is_some_and(|(_, since)| at.duration_since(since) >= self.patience)
    }
}

/// The peer that is furthest behind, of those that somebody works for.
fn last(status: &Status, now: SystemTime) -> Option<Place> {
    if !status.workers.values().any(|worker| worker.alive && !worker.backfill) {
        return None;
    }
    let routes = status.routes.values().filter(|route| !route.idle);
    let behind = |peer: &&Peer| !peer.caught_up && peer.paused.is_none();
    let last =
        routes.flat_map(|route| route.peers.values()).filter(behind).max_by_key(|peer| peer.lag_seconds)?;
    let frontier = now.checked_sub(Duration::from_secs(last.lag_seconds))?;
    Some(Place { frontier, pending: last.pending })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn workers_come_further_by_what_they_apply_alone() {
        let at = |millis, pending| Place { frontier: UNIX_EPOCH + Duration::from_millis(millis), pending };
        let before = at(7_000, 50);
        for (now, further) in [
            // The lag is told in whole seconds, and the time of a look has a fraction.
            (at(7_999, 50), false),
            (at(9_000, 50), true),
            // Others are written, and some of the same second applied.
            (at(7_000, 51), false),
            (at(7_000, 49), true),
        ] {
            assert_eq!(now.is_further_than(&before), further, "{now:?}");
        }
    }
}
