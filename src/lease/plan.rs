//! Which shards this worker walks, for which peers, and what it starts from: pure.
//!
//! A peer starts a shard when it is done with the shard's parent, whatever the other peers do: one that is down
//! holds back nobody else. A lease is taken when it is free, was handed to this worker, is its own from before, or
//! its owner died. Children of what this worker finished are taken at once. Of the rest it takes its fair share,
//! and what nobody else took for a lease's duration: so a worker that is wrong about the others delays, and
//! strands nothing.

use crate::lane::Position;
use crate::lease::fleet::Fellow;
use crate::lease::row::Lease;
use crate::stream::graph::{self, Ancestry};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, SystemTime};

/// What a planner looks at.
#[derive(Debug)]
pub struct View<'a> {
    /// The rows of the route's leases on the stream, by shard.
    pub leases: &'a BTreeMap<String, Lease>,
    /// For how long this worker has known each row; missing ones are new.
    pub known_for: &'a BTreeMap<&'a str, Duration>,
    /// For how long each lease that may be taken has been so, as this worker has watched it. A lease of a dead owner
    /// that is missing here may not: its owner may live again since.
    pub free_for: &'a BTreeMap<&'a str, Duration>,
    /// The peers for which the rows of gone shards are marked.
    pub listed_for: &'a BTreeSet<String>,
    /// The route's peers.
    pub peers: &'a [&'a str],
    /// This worker.
    pub me: &'a str,
    /// Owners that died.
    pub dead: &'a BTreeSet<String>,
    /// Shards that this worker walks, each with the peers that it walks it for.
    pub walking: &'a BTreeMap<&'a str, &'a BTreeSet<String>>,
    /// Shards that this worker finished, for some peer at least.
    pub finished: &'a BTreeSet<String>,
    /// The other workers of the route that live.
    pub fellows: &'a [Fellow],
    /// What this worker's shards of all routes weigh.
    pub load: f64,
    /// A lease that is free for longer is taken by anybody, and one that was handed over by others than its heir.
    pub patience: Duration,
    /// When the first worker of the route saw the stream first.
    pub begun: SystemTime,
    /// The time.
    pub now: SystemTime,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Take a lease and walk its shard.
    Take(Box<Take>),
    /// Let another peer begin in a shard that is walked.
    Join {
        /// The shard.
        shard: String,
        /// The peer.
        peer: String,
        /// Where it starts.
        start: Start,
    },
}

/// Where a peer starts in a shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Start {
    /// Behind this.
    pub position: Position,
    /// Records before what is left of the shard may have been trimmed without this peer having had them.
    pub suspect: bool,
}

/// A lease to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Take {
    /// The row as it was seen.
    pub seen: Lease,
    /// Where each peer starts that is not done, and is done with the parent.
    pub starts: BTreeMap<String, Start>,
}

impl Take {
    /// Takes over what the row says now: its last owner may have gone on since it was seen.
    pub fn refresh(&mut self, now: &Lease) {
        self.starts.retain(|peer, _| !now.peers.get(peer).is_some_and(|p| p.done));
        for (peer, start) in &mut self.starts {
            if let Some(current) = now.peers.get(peer).filter(|p| p.position.sequence.is_some()) {
                start.position.sequence.clone_from(&current.position.sequence);
                start.position.created = current.position.created;
                start.position.hlc = start.position.hlc.max(current.position.hlc);
                start.suspect = false;
            }
        }
        self.seen = now.clone();
    }
}

/// A record is gone after this.
pub const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// Decides: joins and takes in the order of the rows, but for leases that anybody may take; those come last.
#[must_use]
pub fn plan(view: &View<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    let (mut load, mut shared) = (view.load, Vec::new());
    for lease in view.leases.values() {
        if let Some(peers) = view.walking.get(lease.shard.as_str()) {
            let starts = starts(lease, view).filter(|(peer, _)| !peers.contains(peer));
            let join = |(peer, start)| Action::Join { shard: lease.shard.clone(), peer, start };
            actions.extend(starts.map(join));
            continue;
        }
        let claim = claim(lease, view);
        if claim == Claim::No {
            continue;
        }
        let starts: BTreeMap<_, _> = starts(lease, view).collect();
        if starts.is_empty() {
            continue;
        }
        let take = Box::new(Take { seen: lease.clone(), starts });
        if claim == Claim::Mine {
            load += 1.0;
            actions.push(Action::Take(take));
        } else {
            shared.push(take);
        }
    }
    // Each worker has an order of its own, so that they do not all reach for the same lease.
    shared.sort_by_cached_key(|take| (order(view.me, &take.seen.shard), take.seen.shard.clone()));
    let others: f64 = view.fellows.iter().map(|fellow| fellow.load).sum();
    let fair = (load + others + shared.len() as f64) / (view.fellows.len() + 1) as f64;
    for take in shared {
        // The last one may go over: else indivisible rests would be left to nobody.
        if load < fair {
            load += 1.0;
            actions.push(Action::Take(take));
        }
    }
    actions
}

/// What this worker may say of a lease that it does not walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// It is another's.
    No,
    /// It falls to this worker.
    Mine,
    /// Anybody may take it.
    Shared,
}

fn claim(lease: &Lease, view: &View<'_>) -> Claim {
    let free = view.free_for.get(lease.shard.as_str());
    match lease.owner.as_deref() {
        Some(owner) if owner == view.me => return Claim::Mine,
        Some(owner) if !view.dead.contains(owner) || free.is_none() => return Claim::No,
        _ => {}
    }
    let waited = free.is_some_and(|free| *free >= view.patience);
    let child = lease.epoch == 0 && lease.parent.as_ref().is_some_and(|p| view.finished.contains(p));
    match lease.handoff.as_deref().filter(|_| lease.owner.is_none()) {
        Some(heir) if heir == view.me => Claim::Mine,
        // An heir that died or left does not come.
        Some(heir) if !waited && view.fellows.iter().any(|fellow| fellow.name == heir) => Claim::No,
        _ if waited || child => Claim::Mine,
        _ => Claim::Shared,
    }
}

fn order(me: &str, shard: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (me, shard).hash(&mut hasher);
    hasher.finish()
}

/// Whether a peer is done with a shard. One that came to the route after the shard was gone has nothing to do there.
fn is_done(lease: &Lease, peer: &str) -> bool {
    lease.peers.get(peer).map_or(lease.gone, |p| p.done)
}

/// The row of the shard's parent, when there is something to wait for; `None` when the shard must wait for a parent
/// that has no row yet.
fn parent<'a>(lease: &Lease, view: &View<'a>) -> Option<Option<&'a Lease>> {
    let known_for = view.known_for.get(lease.shard.as_str()).copied().unwrap_or_default();
    let known = |id: &str| view.leases.contains_key(id);
    match graph::ancestry(lease.parent.as_deref(), known, known_for, view.now) {
        Ancestry::Root => Some(None),
        Ancestry::Unlisted(_) => None,
        Ancestry::Parent(id) => Some(view.leases.get(id)),
    }
}

/// The peers that may begin, and where.
fn starts<'a>(lease: &'a Lease, view: &View<'a>) -> impl Iterator<Item = (String, Start)> + 'a {
    let parent = parent(lease, view);
    let (peers, listed_for) = (view.peers, view.listed_for);
    let expected = expects_more(lease, view);
    parent.into_iter().flat_map(move |parent| {
        peers.iter().filter_map(move |peer| {
            // Whether a shard is gone is known only once it was listed for that peer.
            let unknown = |lease: &Lease| !lease.peers.contains_key(*peer) && !listed_for.contains(*peer);
            let waits = |parent: &Lease| unknown(parent) || !is_done(parent, peer);
            if is_done(lease, peer) || unknown(lease) || parent.is_some_and(waits) {
                return None;
            }
            let known = lease.peers.get(*peer);
            let mut position = known.map(|p| p.position.clone()).unwrap_or_default();
            if let Some(before) = parent.and_then(|parent| parent.peers.get(*peer)) {
                position.hlc = position.hlc.max(before.position.hlc);
            }
            // One that came later than the listing expects nothing that was before.
            let suspect = expected && known.is_some() && position.sequence.is_none();
            Some(((*peer).to_owned(), Start { position, suspect }))
        })
    })
}

/// Whether a shard may have had records that are trimmed by now and that a peer without a position should have had.
fn expects_more(lease: &Lease, view: &View<'_>) -> bool {
    let age = |since: SystemTime| view.now.duration_since(since).unwrap_or_default();
    let old = graph::born(&lease.shard).is_some_and(|born| age(born) >= RETENTION);
    let orphan = lease.parent.is_some() && parent(lease, view).flatten().is_none();
    // What was there at the start counts as expected from then on.
    if lease.initial { old && age(view.begun) >= RETENTION } else { old || orphan }
}

#[cfg(test)]
mod tests;
