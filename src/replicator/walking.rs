//! A shard that this worker walks, as its replicator holds it: who is in it, how busy it is, and how it leaves.

use crate::lease::listing::KEPT;
use crate::lease::plan::{Start, Take};
use crate::lease::table::{Held, HeldError};
use crate::retry::{self, Policy};
use crate::route::Route;
use crate::walker::{End, Join, Walker, WalkerParts};
use futures::FutureExt;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A shard that was handed to this worker is not handed on before this.
const SETTLED: Duration = Duration::from_secs(60);

/// What a walk begins with.
pub(super) struct Begin<'a> {
    pub(super) route: Arc<Route>,
    pub(super) held: Held,
    pub(super) take: Take,
    /// Cancelled when the worker should finish what it has and stop.
    pub(super) drain: &'a CancellationToken,
    /// Cancelled when the worker may not write any more.
    pub(super) fence: &'a CancellationToken,
    /// Whether another worker handed the shard over.
    pub(super) came: bool,
    /// Told the shard's id whenever a peer finished it.
    pub(super) finished: mpsc::UnboundedSender<String>,
}

/// A shard that is walked.
pub(super) struct Walking {
    held: Held,
    peers: BTreeSet<String>,
    joins: mpsc::Sender<Box<Join>>,
    drain: CancellationToken,
    fence: CancellationToken,
    came: Option<Instant>,
    leaves: Option<Instant>,
    meter: Meter,
}

/// Records a second, evened out over about a minute.
struct Meter {
    at: Instant,
    counted: u64,
    rate: f64,
}

/// Begins a walk: what the replicator keeps of it, and what it runs. The walk ends with `None` when it broke down.
pub(super) fn begin(begin: Begin<'_>) -> (Walking, impl Future<Output = Option<End>> + Send + use<>) {
    let Begin { route, held, take, drain, fence, came, finished } = begin;
    let (joins, joining) = mpsc::channel(route.peer_names().len().max(1));
    let walking = Walking {
        held: held.clone(),
        peers: take.starts.keys().cloned().collect(),
        joins,
        drain: drain.child_token(),
        fence: fence.child_token(),
        came: came.then(Instant::now),
        leaves: None,
        meter: Meter { at: Instant::now(), counted: 0, rate: 0.0 },
    };
    let (drain, fence, given_up) = (walking.drain.clone(), fence.clone(), walking.fence.clone());
    let walk = async move {
        if take.starts.is_empty() {
            // Its last owner did all of it, and died before it could say so.
            let done = Box::pin(held.finish(route.clock.since_epoch() + KEPT)).await;
            return Some(if done.is_ok() { End::Finished } else { End::Lost });
        }
        let shard = take.seen.shard.clone();
        let progress = Arc::new(Notify::new());
        let parts = WalkerParts {
            route: Arc::clone(&route),
            held: held.clone(),
            take,
            drain,
            fence: given_up.clone(),
            progress: Arc::clone(&progress),
        };
        let tell = || {
            let _nobody_asks_any_more = finished.send(shard.clone());
        };
        let mut walker = Box::pin(AssertUnwindSafe(Walker::new(parts).run(joining)).catch_unwind());
        let end = loop {
            tokio::select! {
                biased;
                () = progress.notified() => tell(),
                end = &mut walker => break end,
            }
        };
        if progress.notified().now_or_never().is_some() {
            tell();
        }
        let end = end.ok();
        if !matches!(end, Some(End::Finished | End::Drained)) {
            if given_up.is_cancelled() && !fence.is_cancelled() {
                tracing::warn!(
                    route = &*route.name,
                    shard,
                    "a shard did not come to rest in time: it is handed over as it is"
                );
            }
            // What was sent may still take effect, and its check against the ledger was abandoned: whoever is next, this
            // worker too, must come after it.
            tokio::time::sleep(route.write.request_timeout).await;
            if !fence.is_cancelled() {
                Box::pin(release(&held, &route, &fence)).await;
            }
        }
        end
    };
    (walking, walk)
}

/// Gives a lease back, if it still is this worker's, whose walk did not come to its end: the last checkpoint stands.
async fn release(held: &Held, route: &Route, fence: &CancellationToken) {
    let once = || async {
        match held.release().await {
            Ok(()) | Err(HeldError::Lost) => Ok(()),
            Err(HeldError::Call(failure)) => Err(failure),
        }
    };
    let _fallen = retry::run(Policy::FOREVER, &route.jitter, fence, |_, _| (), once).await;
}

impl Walking {
    /// The peers that it is walked for.
    pub(super) fn peers(&self) -> &BTreeSet<String> {
        &self.peers
    }

    /// Lets another peer begin. A walk that ends meanwhile leaves it to whoever takes the shard next.
    pub(super) fn join(&mut self, peer: String, start: Start) {
        if self.joins.try_send(Box::new(Join { peer: peer.clone(), start })).is_ok() {
            self.peers.insert(peer);
        }
    }

    /// Whether it may be handed to another worker now.
    pub(super) fn may_leave(&self) -> bool {
        self.leaves.is_none() && self.came.is_none_or(|came| came.elapsed() >= SETTLED)
    }

    /// Asks it to come to rest, and its lease goes to `target`; at `deadline` it is to be given up.
    pub(super) fn hand_to(&mut self, target: &str, deadline: Instant) {
        self.leaves = Some(deadline);
        self.held.hand_to(target);
        self.drain.cancel();
    }

    /// When it is given up, if it is being handed over and was not given up yet.
    pub(super) fn leaves(&self) -> Option<Instant> {
        self.leaves.filter(|_| !self.fence.is_cancelled())
    }

    /// It did not come to rest: nothing more is written, and the last checkpoint stands.
    pub(super) fn give_up(&self) {
        self.fence.cancel();
    }

    /// Records a second, when last measured.
    pub(super) fn rate(&self) -> f64 {
        self.meter.rate
    }

    /// Records a second, measured now.
    pub(super) fn measure(&mut self) -> f64 {
        self.meter.read(self.held.counted())
    }
}

impl Meter {
    fn read(&mut self, counted: u64) -> f64 {
        const EVENED_OVER: f64 = 60.0;
        let seconds = self.at.elapsed().as_secs_f64();
        // Shorter times say more of single pages than of the shard.
        if seconds >= 1.0 {
            let now = (counted - self.counted) as f64 / seconds;
            self.rate += (now - self.rate) * (1.0 - (-seconds / EVENED_OVER).exp());
            (self.at, self.counted) = (Instant::now(), counted);
        }
        self.rate
    }
}
