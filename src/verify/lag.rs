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
    /// When it was first seen there.
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// All that was created before this is applied.
    frontier: SystemTime,
    /// Changes that were read and are not applied: many may be of the same second.
    pending: u64,
}

impl Lag {
    /// Of a config that has the compared routes alone.
    pub(super) fn new(config: Config, state: StateTable, clock: Clock, settle: Duration) -> Self {
        let patience = (5 * settle).max(4 * config.lease.renew_interval);
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
        Ok(behind && now.since.elapsed() < self.patience)
    }

    async fn look(&self, before: Option<Seen>) -> Result<Seen, Failure> {
        let looked = Instant::now();
        let reader = Reader { config: &self.config, state: self.state.clone(), clock: self.clock };
        let look = reader.look().await?;
        let last = last(&assemble(&look, &[], self.config.lease.duration), look.now);
        let same = before.filter(|before| before.last == last);
        let since = same.map_or(looked, |before| before.since);
        let stands = |at: Instant| last.is_some() && at.duration_since(since) >= self.patience;
        if stands(looked) && !same.is_some_and(|before| stands(before.looked)) {
            tracing::warn!(
                seconds = looked.duration_since(since).as_secs(),
                "the workers do not come further: what is on its way counts as a difference; see shardwalker status"
            );
        }
        Ok(Seen { looked, last, since })
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
