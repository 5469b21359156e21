//! Who takes which shard, and what it starts from: pure.

use crate::lane::Position;
use crate::lease::row::{Lease, PeerPosition};
use crate::stream::graph::{self, Ancestry, Shard};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

/// What a planner looks at.
#[derive(Debug)]
pub struct View<'a> {
    /// The rows of the route's leases on the stream.
    pub leases: &'a [Lease],
    /// The shards that the stream lists now.
    pub listed: &'a [Shard],
    /// For how long this worker has known each listed shard; missing ones are new.
    pub seen: &'a BTreeMap<String, Duration>,
    /// The route's peers.
    pub peers: &'a [&'a str],
    /// This worker.
    pub me: &'a str,
    /// Owners that died.
    pub dead: &'a BTreeSet<String>,
    /// Shards that this worker walks.
    pub walking: &'a BTreeSet<String>,
    /// Whether the route starts with what is written from now on, not with what the stream still has.
    pub from_now: bool,
    /// When the first worker of the route saw the stream first.
    pub begun: SystemTime,
    /// The time.
    pub now: SystemTime,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Add the row of a shard.
    Add(Lease),
    /// Take a lease and walk its shard.
    Take(Box<Take>),
}

/// A lease to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Take {
    /// The row as it was seen.
    pub seen: Lease,
    /// Where each peer that is not done starts.
    pub starts: BTreeMap<String, Position>,
    /// Records between the parent and what is left of this shard may have been trimmed unread.
    pub suspect: bool,
}

impl Take {
    /// Takes over what the row says now: its last owner may have gone on since it was seen.
    pub fn refresh(&mut self, now: &Lease) {
        self.starts.retain(|peer, _| !now.peers.get(peer).is_some_and(|p| p.done));
        for (peer, start) in &mut self.starts {
            if let Some(current) = now.peers.get(peer).filter(|p| p.position.sequence.is_some()) {
                start.sequence.clone_from(&current.position.sequence);
                start.created = current.position.created;
                start.hlc = start.hlc.max(current.position.hlc);
                self.suspect = false;
            }
        }
        self.seen = now.clone();
    }
}

/// A record is gone after this.
pub const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// Decides. Rows are added parents first; takes are in the order of the rows.
#[must_use]
pub fn plan(view: &View<'_>) -> Vec<Action> {
    let rows: BTreeMap<&str, &Lease> = view.leases.iter().map(|l| (l.shard.as_str(), l)).collect();
    let listed: BTreeSet<&str> = view.listed.iter().map(|s| s.id.as_str()).collect();
    let mut actions: Vec<Action> = view
        .listed
        .iter()
        .filter(|shard| !rows.contains_key(shard.id.as_str()))
        .map(|shard| Action::Add(new_row(shard, view)))
        .collect();
    let known = |id: &str| rows.contains_key(id) || listed.contains(id);
    for lease in view.leases {
        let missing = |peer: &&&str| !is_done(lease, peer, listed.contains(lease.shard.as_str()));
        let peers: Vec<&str> = view.peers.iter().filter(missing).copied().collect();
        let free = match lease.owner.as_deref() {
            None => true,
            Some(owner) => owner == view.me || view.dead.contains(owner),
        };
        if peers.is_empty() || !free || view.walking.contains(&lease.shard) {
            continue;
        }
        let seen = view.seen.get(&lease.shard).copied().unwrap_or_default();
        let parent = match graph::ancestry(lease.parent.as_deref(), known, seen, view.now) {
            Ancestry::Root => None,
            Ancestry::Unlisted(_) => continue,
            Ancestry::Parent(id) => match rows.get(id) {
                Some(parent) if view.peers.iter().all(|p| is_done(parent, p, listed.contains(id))) => {
                    Some(*parent)
                }
                _ => continue,
            },
        };
        actions.push(Action::Take(Box::new(take(lease, parent, &peers, view))));
    }
    actions
}

fn age(since: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(since).unwrap_or_default()
}

/// A peer that came to the route after a shard was gone has nothing to do there.
fn is_done(lease: &Lease, peer: &str, listed: bool) -> bool {
    lease.peers.get(peer).map_or(!listed, |p| p.done)
}

fn new_row(shard: &Shard, view: &View<'_>) -> Lease {
    // By what all workers see alike, so that they agree whoever adds the row, and whenever.
    let initial = match graph::born(&shard.id) {
        Some(born) => born <= view.begun,
        None => view.leases.is_empty(),
    };
    let done = initial && view.from_now && shard.closed;
    let peer = |name: &&str| ((*name).to_owned(), PeerPosition { done, ..PeerPosition::default() });
    Lease {
        shard: shard.id.clone(),
        parent: shard.parent.clone(),
        owner: None,
        epoch: 0,
        initial,
        peers: view.peers.iter().map(peer).collect(),
    }
}

fn take(lease: &Lease, parent: Option<&Lease>, peers: &[&str], view: &View<'_>) -> Take {
    let start = |peer: &&str| {
        let mut position = lease.peers.get(*peer).map(|p| p.position.clone()).unwrap_or_default();
        if let Some(parent) = parent.and_then(|parent| parent.peers.get(*peer)) {
            position.hlc = position.hlc.max(parent.position.hlc);
        }
        ((*peer).to_owned(), position)
    };
    let unread = |peer: &&str| lease.peers.get(*peer).is_some_and(|p| p.position.sequence.is_none());
    let old = graph::born(&lease.shard).is_some_and(|born| age(born, view.now) >= RETENTION);
    let orphan = parent.is_none() && lease.parent.is_some();
    // What was there at the start counts as expected from then on.
    let expected = if lease.initial { old && age(view.begun, view.now) >= RETENTION } else { old || orphan };
    Take {
        seen: lease.clone(),
        starts: peers.iter().map(start).collect(),
        suspect: expected && peers.iter().any(unread),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::SequenceNumber;
    use crate::version::Hlc;
    use std::time::UNIX_EPOCH;

    const NOW: u64 = 1_800_000_000;

    fn id(age: u64, name: &str) -> String {
        format!("shardId-{:020}-{name}", (NOW - age) * 1000)
    }

    fn shard(id: &str, parent: Option<&str>, closed: bool) -> Shard {
        Shard { id: id.to_owned(), parent: parent.map(str::to_owned), closed }
    }

    fn lease(id: &str, parent: Option<&str>, done: bool) -> Lease {
        let position = Position { hlc: Hlc::from_millis(5), ..Position::default() };
        let peers = BTreeMap::from([("b".to_owned(), PeerPosition { position, done })]);
        Lease {
            shard: id.to_owned(),
            parent: parent.map(str::to_owned),
            owner: None,
            epoch: 1,
            initial: true,
            peers,
        }
    }

    struct World {
        leases: Vec<Lease>,
        listed: Vec<Shard>,
        dead: BTreeSet<String>,
        from_now: bool,
        peers: Vec<&'static str>,
        begun: u64,
    }

    impl World {
        fn of(leases: Vec<Lease>, listed: Vec<Shard>) -> Self {
            Self { leases, listed, dead: BTreeSet::new(), from_now: false, peers: vec!["b"], begun: NOW - 40 }
        }

        fn plan(&self) -> Vec<Action> {
            plan(&View {
                leases: &self.leases,
                listed: &self.listed,
                seen: &BTreeMap::new(),
                peers: &self.peers,
                me: "me",
                dead: &self.dead,
                walking: &BTreeSet::new(),
                from_now: self.from_now,
                begun: UNIX_EPOCH + Duration::from_secs(self.begun),
                now: UNIX_EPOCH + Duration::from_secs(NOW),
            })
        }

        fn takes(&self) -> Vec<Take> {
            let take = |action| match action {
                Action::Take(take) => Some(*take),
                Action::Add(_) => None,
            };
            self.plan().into_iter().filter_map(take).collect()
        }

        fn taken(&self) -> Vec<String> {
            self.takes().into_iter().map(|take| take.seen.shard).collect()
        }
    }

    #[test]
    fn a_first_listing_adds_every_shard_as_initial() {
        let (parent, child) = (id(100, "p"), id(50, "c"));
        let mut world =
            World::of(vec![], vec![shard(&parent, None, true), shard(&child, Some(&parent), false)]);
        let done = |world: &World| -> Vec<(bool, bool)> {
            let row = |action| match action {
                Action::Add(row) => Some((row.initial, row.done_for(["b"]))),
                Action::Take(_) => None,
            };
            world.plan().into_iter().filter_map(row).collect()
        };
        assert_eq!(done(&world), [(true, false), (true, false)]);
        world.from_now = true;
        assert_eq!(done(&world), [(true, true), (true, false)], "what is closed lies before now");
    }

    #[test]
    fn children_wait_for_their_parent_and_take_over_its_clock() {
        let (parent, child) = (id(100, "p"), id(50, "c"));
        let listed = vec![shard(&parent, None, true), shard(&child, Some(&parent), false)];
        let leases = |done| vec![lease(&parent, None, done), lease(&child, Some(&parent), false)];
        assert_eq!(World::of(leases(false), listed.clone()).taken(), std::slice::from_ref(&parent));
        let mut world = World::of(leases(true), listed);
        world.leases[0].peers.get_mut("b").unwrap().position.hlc = Hlc::from_millis(9);
        let takes = world.takes();
        assert_eq!(takes.len(), 1);
        assert_eq!((&takes[0].seen.shard, takes[0].starts["b"].hlc), (&child, Hlc::from_millis(9)));
    }

    #[test]
    fn only_free_leases_and_those_of_the_dead_are_taken() {
        let name = id(10, "a");
        let mut world = World::of(vec![lease(&name, None, false)], vec![shard(&name, None, false)]);
        assert_eq!(world.taken(), std::slice::from_ref(&name));
        world.leases[0].owner = Some("other".into());
        assert!(world.taken().is_empty());
        world.dead.insert("other".into());
        assert_eq!(world.taken(), std::slice::from_ref(&name));
        world.leases[0].owner = Some("me".into());
        world.dead.clear();
        assert_eq!(world.taken(), [name]);
    }

    #[test]
    fn a_parent_that_may_still_be_listed_is_waited_for() {
        let (young, old, child) = (id(100, "p"), id(100_000, "p"), id(50, "c"));
        let with = |parent: &str| {
            World::of(vec![lease(&child, Some(parent), false)], vec![shard(&child, Some(parent), false)])
        };
        assert!(with(&young).taken().is_empty());
        assert_eq!(with(&old).taken(), std::slice::from_ref(&child));
    }

    #[test]
    fn what_may_have_been_trimmed_unread_is_suspect() {
        let (parent, child, aged) = (id(100_000, "p"), id(50, "c"), id(90_000, "c"));
        let suspect = |child: &str, initial: bool, read: bool| {
            let mut row = lease(child, Some(&parent), false);
            row.initial = initial;
            if read {
                row.peers.get_mut("b").unwrap().position.sequence = SequenceNumber::parse("1");
            }
            World::of(vec![row], vec![shard(child, Some(&parent), false)]).takes()[0].suspect
        };
        assert!(suspect(&child, false, false), "its parent was never read");
        assert!(!suspect(&child, true, false), "nothing before it was expected");
        assert!(!suspect(&child, false, true), "its own position tells");
        let mut row = lease(&aged, Some(&parent), false);
        row.initial = false;
        let mut world =
            World::of(vec![lease(&parent, None, true), row], vec![shard(&aged, Some(&parent), true)]);
        assert!(world.takes()[0].suspect, "its first records are older than the retention");
        world.leases[1].shard = child.clone();
        world.listed[0].id = child;
        assert!(!world.takes()[0].suspect);
    }

    #[test]
    fn what_was_there_at_the_start_is_initial_whoever_adds_it() {
        let (old, new) = (id(100, "o"), id(10, "n"));
        let other = lease(&id(99, "x"), None, false);
        let world = World::of(vec![other], vec![shard(&old, None, false), shard(&new, None, false)]);
        let initial = |action| match action {
            Action::Add(row) => Some(row.initial),
            Action::Take(_) => None,
        };
        assert_eq!(world.plan().into_iter().filter_map(initial).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn an_initial_shard_is_suspect_once_the_route_is_older_than_its_records() {
        let name = id(100_000, "a");
        let mut world = World::of(vec![lease(&name, None, false)], vec![shard(&name, None, true)]);
        assert!(!world.takes()[0].suspect);
        world.begun = NOW - 90_000;
        assert!(world.takes()[0].suspect);
    }

    #[test]
    fn a_peer_that_came_later_reads_what_is_listed_and_skips_what_is_gone() {
        let (gone, listed) = (id(200_000, "g"), id(1000, "l"));
        let mut world = World::of(
            vec![lease(&gone, None, true), lease(&listed, Some(&gone), true)],
            vec![shard(&listed, Some(&gone), true)],
        );
        assert!(world.taken().is_empty());
        world.peers.push("c");
        let takes = world.takes();
        assert_eq!(takes.len(), 1);
        assert_eq!(takes[0].seen.shard, listed);
        assert_eq!(takes[0].starts.keys().collect::<Vec<_>>(), ["c"]);
        assert!(!takes[0].suspect);
    }
}
