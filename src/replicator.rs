//! One route of one worker: finds its stream's shards, takes leases, and owns the walkers.
//!
//! Event in (a listing, a walker that ended, a tick), decision by [`crate::lease::plan`], actions out. Children
//! of a shard that was read to its end are looked for at once, again and again until they are listed.

use crate::config::Start;
use crate::failure::{Class, Failure};
use crate::lease::heart::Heart;
use crate::lease::plan::{self, Action, Take, View};
use crate::lease::row::Lease;
use crate::lease::table::LeaseTable;
use crate::retry::{Pauses, Policy};
use crate::route::Route;
use crate::stream::graph::Shard;
use crate::stream::list::Lister;
use crate::task::Tasks;
use crate::walker::{End, Walker, WalkerParts};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Rows added, or leases taken, at the same time.
const AT_ONCE: usize = 16;
/// The first pause before looking again for the children of a finished shard; it doubles.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The pause before a shard that was lost is looked at again.
const TAKE_AGAIN: Duration = Duration::from_secs(1);
/// After this long without children a finished shard is left to the ordinary listings.
const LOOK_FOR: Duration = Duration::from_secs(30);

/// What a replicator is made of.
pub struct ReplicatorParts {
    /// The route.
    pub route: Arc<Route>,
    /// Lists the stream's shards.
    pub lister: Lister,
    /// The route's leases on the stream.
    pub leases: LeaseTable,
    /// This worker's heart.
    pub heart: Arc<Heart>,
    /// Cancelled when the worker should finish what it has and stop.
    pub drain: CancellationToken,
}

/// Runs one route.
pub struct Replicator {
    parts: ReplicatorParts,
    walkers: Tasks<(String, Option<End>)>,
    walking: BTreeSet<String>,
    /// Walkers say here that a peer is done with a shard.
    progress: Arc<Notify>,
    /// The shards of the last listing, and those that were found as children since.
    listed: Vec<Shard>,
    /// When each shard was listed first.
    seen: BTreeMap<String, Instant>,
    /// Finished shards whose children are not listed yet, since when.
    childless: BTreeMap<String, Instant>,
    pauses: Pauses,
}

impl Replicator {
    /// A replicator that has not begun.
    #[must_use]
    pub fn new(parts: ReplicatorParts) -> Self {
        let pauses = Pauses::new(Policy::FOREVER, parts.route.jitter.clone());
        Self {
            parts,
            walkers: Tasks::new(),
            walking: BTreeSet::new(),
            progress: Arc::default(),
            listed: Vec::new(),
            seen: BTreeMap::new(),
            childless: BTreeMap::new(),
            pauses,
        }
    }

    /// Runs until asked to drain, and until the walkers have drained. `first` is called after the first round
    /// that went well.
    pub async fn run(mut self, first: impl FnOnce()) {
        let route = Arc::clone(&self.parts.route);
        let drain = self.parts.drain.clone();
        let mut first = Some(first);
        let mut list_at = Instant::now();
        let mut look_again = LOOK_AGAIN;
        while !drain.is_cancelled() {
            let whole = Instant::now() >= list_at;
            let next = match self.round(whole).await {
                Ok(()) => {
                    self.pauses.reset();
                    if let Some(first) = first.take() {
                        first();
                    }
                    if whole {
                        route.board.listed(&route.name);
                        list_at = Instant::now() + route.jitter.around(route.read.list_interval);
                    }
                    if self.childless.is_empty() {
                        look_again = LOOK_AGAIN;
                        list_at
                    } else {
                        look_again = (look_again * 2).min(route.read.list_interval);
                        list_at.min(Instant::now() + look_again)
                    }
                }
                Err(failure) => Instant::now() + self.failed(&failure),
            };
            self.wait(next).await;
        }
        while self.walkers.join_next().await.is_some() {}
    }

    /// Waits until `next`, a stop, or a shard that was finished, whose children may be taken at once. A shard that
    /// was lost is not: whatever made it so may happen again at once.
    async fn wait(&mut self, mut next: Instant) {
        loop {
            tokio::select! {
                // A stop first; then walkers that ended.
                biased;
                () = self.parts.drain.cancelled() => return,
                Some(ended) = self.walkers.join_next(), if !self.walkers.is_empty() => {
                    let Ok((shard, end)) = ended else { continue };
                    let finished = end == Some(End::Finished);
                    self.ended(shard, end);
                    if finished {
                        return;
                    }
                    next = next.min(Instant::now() + TAKE_AGAIN);
                }
                () = self.progress.notified() => return,
                () = tokio::time::sleep_until(next) => return,
            }
        }
    }

    /// Lists, plans and acts. `whole` lists the whole stream, else only the children that are looked for.
    async fn round(&mut self, whole: bool) -> Result<(), Failure> {
        if whole {
            let listing = self.parts.lister.all().await?;
            self.listed = listing.shards;
            let route = &self.parts.route;
            route.board.stream_is(&route.name, listing.enabled);
            if !listing.enabled {
                // Nothing comes after the last shards of a stream that is off.
                self.childless.clear();
            }
        } else {
            for parent in self.childless.keys().cloned().collect::<Vec<_>>() {
                let known: BTreeSet<String> = self.listed.iter().map(|s| s.id.clone()).collect();
                let found = self.parts.lister.children(&parent).await?.shards;
                self.listed.extend(found.into_iter().filter(|shard| !known.contains(&shard.id)));
            }
        }
        let (now, listed) = (Instant::now(), &self.listed);
        self.seen.retain(|id, _| listed.iter().any(|shard| shard.id == *id));
        for shard in listed {
            self.seen.entry(shard.id.clone()).or_insert(now);
        }
        let has_child = |id: &str| listed.iter().any(|shard| shard.parent.as_deref() == Some(id));
        self.childless.retain(|id, since| !has_child(id) && since.elapsed() < LOOK_FOR);
        let mut leases = self.parts.leases.load().await?;
        let added = self.plan(&leases);
        if self.add(&added).await? {
            leases = self.parts.leases.load().await?;
        }
        let takes = self.plan(&leases);
        self.take(takes).await
    }

    fn plan(&self, leases: &[Lease]) -> Vec<Action> {
        let route = &self.parts.route;
        let dead = self.parts.heart.dead(leases.iter().filter_map(|lease| lease.owner.as_deref()));
        let seen = self.seen.iter().map(|(id, at)| (id.clone(), at.elapsed())).collect();
        plan::plan(&View {
            leases,
            listed: &self.listed,
            seen: &seen,
            peers: &route.peer_names(),
            me: self.parts.heart.worker(),
            dead: &dead,
            walking: &self.walking,
            from_now: matches!(route.start, Start::Latest),
            begun: route.begun,
            now: route.clock.now(),
        })
    }

    /// Adds the rows of new shards; whether there were any.
    async fn add(&mut self, actions: &[Action]) -> Result<bool, Failure> {
        let mut calls: Vec<BoxFuture<'static, Result<bool, Failure>>> = Vec::new();
        for action in actions {
            if let Action::Add(row) = action {
                let (leases, row) = (self.parts.leases.clone(), row.clone());
                calls.push(Box::pin(async move { leases.add(&row).await }));
            }
        }
        let any = !calls.is_empty();
        for result in some_at_once(calls).await {
            result?;
        }
        Ok(any)
    }

    async fn take(&mut self, actions: Vec<Action>) -> Result<(), Failure> {
        let Some(fence) = self.parts.heart.fence() else {
            let why = "this worker's row in the state table could not be renewed; it takes no leases";
            return Err(Failure::new(Class::Transient, "NotAlive", why));
        };
        let mut calls: Vec<BoxFuture<'static, Result<_, Failure>>> = Vec::new();
        for action in actions {
            if let Action::Take(take) = action {
                let leases = self.parts.leases.clone();
                calls.push(Box::pin(async move {
                    leases.take(&take.seen).await.map(|held| held.map(|held| (*take, held)))
                }));
            }
        }
        let mut failed = None;
        for result in some_at_once(calls).await {
            match result {
                Ok(Some((mut take, (held, lease)))) => {
                    take.refresh(&lease);
                    self.walk(take, held, &fence);
                }
                Ok(None) => {}
                // What else was taken meanwhile is walked all the same.
                Err(failure) => failed = Some(failure),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn walk(&mut self, take: Take, held: crate::lease::table::Held, fence: &CancellationToken) {
        let shard = take.seen.shard.clone();
        let walker = Walker::new(WalkerParts {
            route: Arc::clone(&self.parts.route),
            held,
            take,
            drain: self.parts.drain.clone(),
            fence: fence.clone(),
            joins: mpsc::channel(1).1,
            progress: Arc::clone(&self.progress),
        });
        self.walking.insert(shard.clone());
        self.walkers.spawn(async move {
            let end = AssertUnwindSafe(Box::pin(walker.run())).catch_unwind().await;
            (shard, end.ok())
        });
    }

    fn ended(&mut self, shard: String, end: Option<End>) {
        self.walking.remove(&shard);
        match end {
            Some(End::Finished) => {
                tracing::debug!(shard, "finished");
                self.childless.insert(shard, Instant::now());
            }
            Some(End::Drained | End::Lost) => {}
            None => {
                let route = &self.parts.route;
                tracing::error!(route = &*route.name, shard, "a walker broke down; its shard is taken again");
                route.board.leaves(&route.name, &shard);
            }
        }
    }

    fn failed(&mut self, failure: &Failure) -> Duration {
        let route = &self.parts.route;
        route.metrics.retried(&route.name, "stream", failure.class);
        route.board.route_in_trouble(&route.name, &failure.to_string());
        tracing::warn!(
            route = &*route.name,
            why = %failure,
            remedy = failure.class.remedy(),
            "shards or leases could not be listed; trying again"
        );
        self.pauses.next(failure.class.insist()).unwrap_or(Policy::FOREVER.slow)
    }
}

/// Makes the calls, a few at the same time; the results are in the order of the calls.
async fn some_at_once<T>(calls: Vec<BoxFuture<'static, T>>) -> Vec<T> {
    stream::iter(calls).buffered(AT_ONCE).collect().await
}
