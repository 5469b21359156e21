//! Waiting until every peer has all that was written before.

use super::{Look, Peer, Reader, Status, assemble};
use crate::failure::{Action, Failure};
use std::time::Duration;
use tokio::time::Instant;

impl Reader<'_> {
    /// Looks until every peer of every route that is walked has all that was written before this was called, as all
    /// living workers say in beats that they began later; gives the last status, and whether it came to that in time.
    ///
    /// # Errors
    /// The failure of a look, when it does not pass by itself.
    pub async fn caught_up(&self, timeout: Duration) -> Result<(Status, bool), Failure> {
        self.until(timeout, Status::caught_up).await
    }

    /// Looks until no peer of a route that is walked is further behind than `lag`, as all living workers say: while
    /// applications write all the while, none has everything.
    ///
    /// # Errors
    /// The failure of a look, when it does not pass by itself.
    pub async fn near(&self, lag: Duration, timeout: Duration) -> Result<(Status, bool), Failure> {
        let known = |peer: &Peer| peer.lag_seconds > 0 || peer.pending > 0;
        let near = |peer: &Peer| peer.caught_up || known(peer) && peer.lag_seconds <= lag.as_secs();
        let walked = |status: &Status| {
            status
                .routes
                .values()
                .filter(|route| !route.idle)
                .flat_map(|route| route.peers.values())
                .all(near)
        };
        self.until(timeout, walked).await
    }

    async fn until(
        &self,
        timeout: Duration,
        enough: impl Fn(&Status) -> bool,
    ) -> Result<(Status, bool), Failure> {
        let (begun, beat) = (Instant::now(), self.config.lease.renew_interval);
        let (mut first, mut mark) = (None, None);
        loop {
            let now = match self.look().await {
                Ok(now) => now,
                Err(failure) if failure.class.action() == Action::RetrySoon && begun.elapsed() < timeout => {
                    tokio::time::sleep(beat / 2).await;
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let status = assemble(
                &now,
                &moved(first.get_or_insert_with(|| now.clone()), &now),
                self.config.lease.duration,
            );
            // What a worker says is about the last one and a half beats (`Heart`). So it is about what was written
            // before this was called when it was said in a beat that began later than that: one may have been under
            // way, the one after it was not.
            let marked: &Look = match &mark {
                Some(mark) => mark,
                None if begun.elapsed() < beat * 3 / 2 => &now,
                None => mark.insert(now.clone()),
            };
            let count = |look: &Look, name: &str| look.workers.get(name).map_or(0, |row| row.counter);
            let fresh = |name: &str| count(&now, name) >= count(marked, name) + 2;
            let mut alive = status.workers.iter().filter(|(_, worker)| worker.alive).peekable();
            let all_fresh = alive.peek().is_some() && alive.all(|(name, _)| fresh(name));
            if enough(&status) && all_fresh {
                return Ok((status, true));
            }
            if begun.elapsed() >= timeout {
                return Ok((status, false));
            }
            tokio::time::sleep((beat / 2).max(Duration::from_millis(100))).await;
        }
    }
}

/// The workers whose counters moved between two looks.
#[must_use]
pub fn moved<'a>(first: &Look, second: &'a Look) -> Vec<&'a str> {
    let moved = |(name, row): &(&String, &super::WorkerRow)| {
        first.workers.get(*name).is_none_or(|before| before.counter != row.counter)
    };
    second.workers.iter().filter(moved).map(|(name, _)| name.as_str()).collect()
}
