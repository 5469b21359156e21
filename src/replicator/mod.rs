//! One route of one worker: knows the stream's shards, takes and gives leases, and owns the walkers.
//!
//! Event in (a walker that ended, another worker's change, a tick), decision by the pure functions of
//! [`crate::lease`], actions out. Rounds come at `list_interval` and whenever something happened. A round reads
//! the rows that changed; all rows are read when it is not known which, and now and then, the more rarely the more
//! there are. Children of a shard that was read to its end are looked for at once, again and again until they are
//! listed; whole listings are made by one worker of the route.

mod listing;
mod walking;

use crate::failure::{Action as Remedy, Class, Failure};
use crate::lease::balance::{self, Scales};
use crate::lease::fleet::{News, weight};
use crate::lease::heart::Heart;
use crate::lease::known::Known;
use crate::lease::lister::Duty;
use crate::lease::plan::{self, Action, Take, View};
use crate::lease::row::Lease;
use crate::lease::table::{Held, LeaseTable};
use crate::replicator::walking::{Begin, Walking};
use crate::retry::{Pauses, Policy};
use crate::route::Route;
use crate::stream::list::Lister;
use crate::task::Tasks;
use crate::walker::End;
use futures::{Stream, StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Rows changed, or leases taken, at the same time.
const AT_ONCE: usize = 16;
/// The first pause before looking again for the children of a finished shard; it doubles.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The pause before a shard that was lost is looked at again.
const TAKE_AGAIN: Duration = Duration::from_secs(1);
/// What happens within this is dealt with in one round.
const TOGETHER: Duration = Duration::from_millis(20);
/// All rows are read each list interval when there are few, and that more rarely when there are many: what changes
/// is named by whoever changes it, so that this only finds what nobody could name.
const ROWS_AT_LEISURE: u32 = 1000;

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

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// It was asked to stop.
    Drained,
    /// The stream was turned off, and all of it is done.
    StreamEnded,
}

/// Runs one route.
pub struct Replicator {
    parts: ReplicatorParts,
    walkers: Tasks<(String, Option<End>)>,
    walking: BTreeMap<String, Walking>,
    known: Known,
    dead: BTreeSet<String>,
    /// What is to be read in the next round.
    wanted: News,
    /// When all rows are read again.
    all_at: Instant,
    duty: Duty,
    /// Writes what the feeds have everything of, one at a time.
    watermarks: Tasks<()>,
    watermarks_at: Instant,
    /// How often the stream had been listed when that was last looked at.
    listings: u64,
    /// Shards that this worker finished, for some peer at least.
    finished: BTreeSet<String>,
    /// Those whose children are not listed yet, since when.
    childless: BTreeMap<String, Instant>,
    look_again: Duration,
    nudge: Arc<Notify>,
    /// Shards that some peer finished.
    progress: (mpsc::UnboundedSender<String>, mpsc::UnboundedReceiver<String>),
    pauses: Pauses,
    listing_pauses: Pauses,
}

impl Replicator {
    /// A replicator that has not begun.
    #[must_use]
    pub fn new(parts: ReplicatorParts) -> Self {
        let pauses = || Pauses::new(Policy::FOREVER, parts.route.jitter.clone());
        Self {
            walkers: Tasks::new(),
            walking: BTreeMap::new(),
            known: Known::default(),
            dead: BTreeSet::new(),
            wanted: News { all: true, ..News::default() },
            all_at: Instant::now(),
            duty: Duty::default(),
            watermarks: Tasks::new(),
            watermarks_at: Instant::now(),
            listings: 0,
            finished: BTreeSet::new(),
            childless: BTreeMap::new(),
            look_again: LOOK_AGAIN,
            nudge: parts.heart.nudge(&parts.route.name),
            progress: finished_shards(),
            pauses: pauses(),
            listing_pauses: pauses(),
            parts,
        }
    }

    /// Runs until asked to drain, and until the walkers have drained. `first` is called after the first round
    /// that went well, once somebody has listed the stream.
    pub async fn run(mut self, first: impl FnOnce()) -> RunEnd {
        self.parts.heart.joins(&self.parts.route.name);
        let mut first = Some(first);
        let mut end = RunEnd::Drained;
        while !self.parts.drain.is_cancelled() {
            let next = match self.round().await {
                Ok(()) if self.ended_for_good() => {
                    end = RunEnd::StreamEnded;
                    break;
                }
                Ok(()) => {
                    self.pauses.reset();
                    if self.listings > 0
                        && let Some(first) = first.take()
                    {
                        first();
                    }
                    self.next()
                }
                Err(failure) => Instant::now() + self.failed(&failure),
            };
            self.wait(next).await;
        }
        self.leave().await;
        end
    }

    /// Whether the stream is off and all of it is done at every peer.
    fn ended_for_good(&self) -> bool {
        let peers = self.parts.route.peer_names();
        let done = |lease: &Lease| lease.gone || lease.done_for(peers.iter().copied());
        let off = self.listings > 0 && self.known.lister().is_some_and(|row| row.disabled);
        off && self.walking.is_empty() && self.known.leases().values().all(done)
    }

    /// When the next round is due if nothing happens.
    fn next(&self) -> Instant {
        let now = Instant::now();
        let route = &self.parts.route;
        let tick = now + route.jitter.around(route.read.list_interval);
        let look = (!self.childless.is_empty()).then(|| now + self.look_again);
        let force = self.walking.values().filter_map(Walking::leaves).min();
        [self.duty.due(), look, force].into_iter().flatten().fold(tick, Instant::min)
    }

    /// Waits until `next`, or until something happened and what else happens at about the same time.
    async fn wait(&mut self, mut next: Instant) {
        loop {
            let soon = Instant::now() + TOGETHER;
            tokio::select! {
                // A stop first; then what happened.
                biased;
                () = self.parts.drain.cancelled() => return,
                Some(ended) = self.walkers.join_next(), if !self.walkers.is_empty() => {
                    let Ok((shard, end)) = ended else { continue };
                    // A shard that was lost is left alone for a while: whatever made it so may happen again at once.
                    let soon = match end {
                        Some(End::Finished | End::Drained) => soon,
                        Some(End::Lost) | None => Instant::now() + TAKE_AGAIN,
                    };
                    self.ended(shard, end);
                    next = next.min(soon);
                }
                Some(shard) = self.progress.1.recv() => {
                    self.done_with(shard);
                    next = next.min(soon);
                }
                () = self.nudge.notified() => next = next.min(soon),
                () = tokio::time::sleep_until(next) => return,
            }
        }
    }

    /// Gives everything back.
    async fn leave(&mut self) {
        self.parts.heart.leaves(&self.parts.route.name);
        while let Some(ended) = self.walkers.join_next().await {
            if let Ok((shard, end)) = ended {
                self.ended(shard, end);
            }
        }
        if let Some(held) = self.duty.held()
            && let Err(error) = self.parts.leases.leave_lister(held).await
        {
            tracing::debug!(%error, "the right to list was not given back; others take it when this worker is gone");
        }
    }

    /// Reads what changed, lists, takes and hands over.
    async fn round(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        for walking in self.walking.values().filter(|walking| walking.leaves().is_some_and(|at| at <= now)) {
            walking.give_up();
        }
        self.read().await?;
        self.list().await?;
        self.look_for_children().await?;
        let Some(fence) = self.parts.heart.fence() else {
            let why = "this worker's row in the state table could not be renewed; it takes no leases";
            return Err(Failure::new(Class::Transient, "NotAlive", why));
        };
        let taken = self.act(self.plan(), &fence).await;
        self.report();
        self.hand_over();
        taken
    }

    async fn read(&mut self) -> Result<(), Failure> {
        let (route, heart, leases) = (&self.parts.route, &self.parts.heart, &self.parts.leases);
        let news = heart.news(&route.name);
        self.wanted.all |= news.all;
        self.wanted.shards.extend(news.shards);
        let now = Instant::now();
        if self.wanted.all || now >= self.all_at {
            self.known.replace(leases.load().await?);
            let many = u32::try_from(self.known.leases().len()).unwrap_or(u32::MAX) / ROWS_AT_LEISURE;
            self.all_at = now + route.jitter.around(route.read.list_interval * many.saturating_add(1));
        } else {
            let rows = leases.get(&self.wanted.shards).await?;
            self.known.merge(&self.wanted.shards, rows);
        }
        self.wanted = News::default();
        let owners = self.known.leases().values().filter_map(|lease| lease.owner.as_deref());
        let lister = self.known.lister().and_then(|row| row.owner.as_deref());
        self.dead = heart.dead(owners.chain(lister));
        let dead = &self.dead;
        self.known.watch(self.parts.heart.looked(), |owner| dead.contains(owner));
        let listed = self.known.lister().filter(|row| row.listings != self.listings);
        if let Some((listings, disabled)) = listed.map(|row| (row.listings, row.disabled)) {
            self.listed(listings, !disabled);
        }
        Ok(())
    }

    fn plan(&self) -> Vec<Action> {
        let (route, heart) = (&self.parts.route, &self.parts.heart);
        let nobody = BTreeSet::new();
        let listed_for = self.duty.held().or(self.known.lister()).map_or(&nobody, |row| &row.listed_for);
        plan::plan(&View {
            leases: self.known.leases(),
            known_for: &self.known.known_for(),
            free_for: &self.known.free_for(),
            listed_for,
            peers: &route.peer_names(),
            me: heart.worker(),
            dead: &self.dead,
            walking: &self.walking.iter().map(|(shard, walking)| (shard.as_str(), walking.peers())).collect(),
            finished: &self.finished,
            fellows: &heart.living(&route.name),
            load: heart.me().load,
            patience: heart.config().duration,
            begun: route.begun,
            now: route.clock.now(),
        })
    }

    async fn act(&mut self, actions: Vec<Action>, fence: &CancellationToken) -> Result<(), Failure> {
        let mut takes = Vec::new();
        for action in actions {
            match action {
                Action::Join { shard, peer, start } => {
                    if let Some(walking) = self.walking.get_mut(&shard) {
                        walking.join(peer, start);
                    }
                }
                Action::Take(take) => {
                    self.wanted.shards.insert(take.seen.shard.clone());
                    takes.push(take);
                }
            }
        }
        let leases = &self.parts.leases.clone();
        let calls = takes.into_iter().map(|take| async move {
            leases.take(&take.seen).await.map(|held| held.map(|held| (*take, held)))
        });
        let mut taken = pin!(some_at_once(calls));
        let mut failed = None;
        while let Some(result) = taken.next().await {
            match result {
                Ok(Some((mut take, (held, lease)))) => {
                    let came = take.seen.handoff.as_deref() == Some(&**self.parts.heart.worker());
                    take.refresh(&lease);
                    self.walk(take, held, fence, came);
                }
                Ok(None) => {}
                // What else was taken meanwhile is walked all the same.
                Err(failure) => failed = Some(failure),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn walk(&mut self, take: Take, held: Held, fence: &CancellationToken, came: bool) {
        let shard = take.seen.shard.clone();
        let (walking, walk) = walking::begin(Begin {
            route: Arc::clone(&self.parts.route),
            held,
            take,
            drain: &self.parts.drain,
            fence,
            came,
            finished: self.progress.0.clone(),
        });
        self.walking.insert(shard.clone(), walking);
        self.walkers.spawn(async move { (shard, walk.await) });
    }

    /// Shows what this worker has of the route.
    fn report(&mut self) {
        let rate = self.walking.values_mut().map(Walking::measure).sum();
        self.parts.heart.report(&self.parts.route.name, self.walking.len(), rate);
    }

    /// Begins to hand over what another worker should have.
    fn hand_over(&mut self) {
        let (heart, name) = (&self.parts.heart, &*self.parts.route.name);
        let movable = self.walking.iter().filter(|(_, walking)| walking.may_leave());
        let shards = movable.map(|(shard, walking)| (shard.as_str(), weight(walking.rate())));
        let moves = balance::balance(Scales {
            me: heart.me(),
            fellows: &heart.living(name),
            shards: shards.collect(),
            walking: self.walking.len(),
            under_way: heart.handing_over(name),
        });
        for step in moves {
            let Some(walking) = self.walking.get_mut(&step.shard) else { continue };
            tracing::info!(route = name, shard = step.shard, to = step.target, "handing a shard over");
            heart.hands_over(name, &step.shard, &step.target, step.weight);
            walking.hand_to(&step.target, Instant::now() + heart.config().handoff_timeout);
        }
    }

    fn ended(&mut self, shard: String, end: Option<End>) {
        self.walking.remove(&shard);
        self.wanted.shards.insert(shard.clone());
        self.report();
        let route = &self.parts.route;
        self.parts.heart.gave_up(&route.name, &shard);
        match end {
            Some(End::Finished) => {
                tracing::debug!(shard, "finished");
                self.done_with(shard);
            }
            Some(End::Drained | End::Lost) => {}
            None => {
                tracing::error!(route = &*route.name, shard, "a walker broke down; its shard is taken again");
                route.board.leaves(&route.name, &shard);
            }
        }
    }

    /// A shard was read to its end, and some peer is done with it: that peer may begin in the children.
    fn done_with(&mut self, shard: String) {
        self.parts.heart.changed(&self.parts.route.name, [shard.as_str()]);
        self.wanted.shards.insert(shard.clone());
        let leases = self.known.leases();
        self.finished.retain(|shard| leases.contains_key(shard));
        if self.finished.insert(shard.clone()) {
            self.childless.insert(shard, Instant::now());
        }
    }

    fn failed(&mut self, failure: &Failure) -> Duration {
        let action = self.say(failure);
        self.pauses.next(action).unwrap_or(Policy::FOREVER.slow)
    }

    fn say(&self, failure: &Failure) -> Remedy {
        let route = &self.parts.route;
        route.metrics.retried(&route.name, "stream", failure.class);
        route.board.route_in_trouble(&route.name, &failure.to_string());
        tracing::warn!(
            route = &*route.name,
            why = %failure,
            remedy = failure.class.remedy(),
            "shards or leases could not be listed; trying again"
        );
        match failure.class {
            Class::Condition | Class::Invalid | Class::IteratorExpired | Class::Trimmed => {
                Remedy::RetrySlowly
            }
            class => class.action(),
        }
    }
}

/// Makes the calls, a few at the same time, each of them only when its turn comes: calls are large. The results are in the
/// order of the calls.
fn some_at_once<F: Future>(calls: impl IntoIterator<Item = F>) -> impl Stream<Item = F::Output> {
    stream::iter(calls).buffered(AT_ONCE)
}

#[expect(
    clippy::disallowed_methods,
    reason = "bounded by what is sent: one message for each peer of a shard that is walked"
)]
fn finished_shards() -> (mpsc::UnboundedSender<String>, mpsc::UnboundedReceiver<String>) {
    mpsc::unbounded_channel()
}
