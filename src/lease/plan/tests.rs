//! Tests of the planner.

use super::*;
use crate::change::SequenceNumber;
use crate::lease::row::PeerPosition;
use crate::stream::graph::Shard;
use crate::version::Hlc;
use proptest::prelude::*;
use std::time::UNIX_EPOCH;

const NOW: u64 = 1_800_000_000;
const PATIENCE: Duration = Duration::from_secs(30);

fn id(age: u64, name: &str) -> String {
    format!("shardId-{:020}-{name}", (NOW - age) * 1000)
}

fn lease(id: &str, parent: Option<&str>, done: bool) -> Lease {
    let position = Position { hlc: Hlc::from_millis(5), ..Position::default() };
    let peers = BTreeMap::from([("b".to_owned(), PeerPosition { position, done })]);
    let row = Lease::new(&Shard { id: id.to_owned(), parent: parent.map(str::to_owned), closed: false });
    Lease { epoch: 1, initial: true, peers, ..row }
}

/// What one worker, `me`, looks at.
#[derive(Default)]
struct World {
    leases: BTreeMap<String, Lease>,
    dead: BTreeSet<String>,
    peers: Vec<&'static str>,
    listed_for: BTreeSet<String>,
    walking: BTreeMap<String, BTreeSet<String>>,
    finished: BTreeSet<String>,
    free_for: BTreeMap<String, Duration>,
    fellows: Vec<Fellow>,
    load: f64,
    begun: u64,
}

impl World {
    fn of(leases: impl IntoIterator<Item = Lease>) -> Self {
        let leases = leases.into_iter().map(|lease| (lease.shard.clone(), lease)).collect();
        let listed_for = ["b", "c"].map(str::to_owned).into();
        Self { leases, peers: vec!["b"], listed_for, begun: NOW - 40, ..Self::default() }
    }

    fn row(&mut self, shard: &str) -> &mut Lease {
        self.leases.get_mut(shard).unwrap()
    }

    fn plan(&self) -> Vec<Action> {
        plan(&View {
            leases: &self.leases,
            known_for: &BTreeMap::new(),
            free_for: &self.free_for.iter().map(|(shard, free)| (shard.as_str(), *free)).collect(),
            listed_for: &self.listed_for,
            peers: &self.peers,
            me: "me",
            dead: &self.dead,
            walking: &self.walking.iter().map(|(shard, peers)| (shard.as_str(), peers)).collect(),
            finished: &self.finished,
            fellows: &self.fellows,
            load: self.load,
            patience: PATIENCE,
            begun: UNIX_EPOCH + Duration::from_secs(self.begun),
            now: UNIX_EPOCH + Duration::from_secs(NOW),
        })
    }

    fn takes(&self) -> Vec<Take> {
        let take = |action| match action {
            Action::Take(take) => Some(*take),
            Action::Join { .. } => None,
        };
        self.plan().into_iter().filter_map(take).collect()
    }

    fn taken(&self) -> Vec<String> {
        self.takes().into_iter().map(|take| take.seen.shard).collect()
    }
}

fn fellow(name: &str, shards: u64) -> Fellow {
    Fellow { name: name.to_owned(), shards, load: shards as f64 }
}

#[test]
fn children_wait_for_their_parent_and_take_over_its_clock() {
    let (parent, child) = (id(100, "p"), id(50, "c"));
    let leases = |done| [lease(&parent, None, done), lease(&child, Some(&parent), false)];
    assert_eq!(World::of(leases(false)).taken(), std::slice::from_ref(&parent));
    let mut world = World::of(leases(true));
    world.row(&parent).peers.get_mut("b").unwrap().position.hlc = Hlc::from_millis(9);
    let takes = world.takes();
    assert_eq!(takes.len(), 1);
    assert_eq!((&takes[0].seen.shard, takes[0].starts["b"].position.hlc), (&child, Hlc::from_millis(9)));
}

#[test]
fn a_peer_that_is_behind_holds_back_no_other() {
    let (parent, child) = (id(100, "p"), id(50, "c"));
    let mut world = World::of([lease(&parent, None, true), lease(&child, Some(&parent), false)]);
    world.peers.push("c");
    let at = |millis| Position { hlc: Hlc::from_millis(millis), ..Position::default() };
    for shard in [&parent, &child] {
        world.row(shard).peers.insert("c".into(), PeerPosition { position: at(7), done: false });
    }
    world.row(&parent).owner = Some("other".into());
    let takes = world.takes();
    assert_eq!(takes.len(), 1);
    assert_eq!(takes[0].starts.keys().collect::<Vec<_>>(), ["b"]);
    // The other peer catches up later, and joins.
    world.walking.insert(child.clone(), BTreeSet::from(["b".to_owned()]));
    world.row(&child).owner = Some("me".into());
    assert_eq!(world.plan(), []);
    world.row(&parent).peers.insert("c".into(), PeerPosition { position: at(9), done: true });
    let join = Action::Join {
        shard: child.clone(),
        peer: "c".into(),
        start: Start { position: at(9), suspect: false },
    };
    assert_eq!(world.plan(), [join]);
    world.walking.get_mut(&child).unwrap().insert("c".to_owned());
    assert_eq!(world.plan(), []);
}

#[test]
fn only_free_leases_and_those_of_the_dead_are_taken() {
    let name = id(10, "a");
    let mut world = World::of([lease(&name, None, false)]);
    assert_eq!(world.taken(), std::slice::from_ref(&name));
    world.row(&name).owner = Some("other".into());
    assert!(world.taken().is_empty());
    world.dead.insert("other".into());
    assert!(world.taken().is_empty(), "it may live again since");
    world.free_for.insert(name.clone(), Duration::ZERO);
    assert_eq!(world.taken(), std::slice::from_ref(&name));
    world.free_for.clear();
    world.row(&name).owner = Some("me".into());
    world.dead.clear();
    world.fellows = vec![fellow("other", 0)];
    world.load = 9.0;
    assert_eq!(world.taken(), [name], "whatever its share");
}

#[test]
fn free_leases_are_shared_and_the_rest_is_taken_by_anybody_in_time() {
    let names: Vec<String> = (0..10).map(|n| id(10, &n.to_string())).collect();
    let mut world = World::of(names.iter().map(|name| lease(name, None, false)));
    world.fellows = vec![fellow("other", 0)];
    assert_eq!(world.taken().len(), 5);
    world.load = 3.0;
    assert_eq!(world.taken().len(), 4, "the last one may go over");
    world.fellows = vec![fellow("other", 20)];
    assert_eq!(world.taken().len(), 10);
    world.load = 40.0;
    assert!(world.taken().is_empty());
    world.free_for.insert(names[3].clone(), PATIENCE);
    assert_eq!(world.taken(), [names[3].clone()]);
    // What it finished has children, and they do not wait either.
    let child = lease(&id(5, "c"), Some(&names[0]), false);
    world.leases.insert(child.shard.clone(), Lease { epoch: 0, ..child.clone() });
    world.row(&names[0]).peers.get_mut("b").unwrap().done = true;
    world.free_for.clear();
    world.finished.insert(names[0].clone());
    assert_eq!(world.taken(), [child.shard]);
}

#[test]
fn what_was_handed_over_waits_for_its_heir() {
    let name = id(10, "a");
    let mut world = World::of([Lease { handoff: Some("heir".into()), ..lease(&name, None, false) }]);
    world.fellows = vec![fellow("heir", 9), fellow("third", 9)];
    assert!(world.taken().is_empty());
    world.free_for.insert(name.clone(), PATIENCE);
    assert_eq!(world.taken().len(), 1, "it did not come");
    world.free_for.clear();
    world.fellows.remove(0);
    assert_eq!(world.taken().len(), 1, "it died");
    world.row(&name).handoff = Some("me".into());
    world.load = 99.0;
    assert_eq!(world.taken().len(), 1, "for this worker, whatever its share");
}

#[test]
fn a_parent_that_may_still_be_listed_is_waited_for() {
    let (young, old, child) = (id(100, "p"), id(100_000, "p"), id(50, "c"));
    let with = |parent: &str| World::of([lease(&child, Some(parent), false)]);
    assert!(with(&young).taken().is_empty());
    assert_eq!(with(&old).taken(), std::slice::from_ref(&child));
}

/// Whether a peer of the first lease that is taken is suspected to have missed something.
fn suspicious(world: &World) -> bool {
    world.takes()[0].starts.values().any(|start| start.suspect)
}

#[test]
fn a_peer_is_suspected_for_itself_alone() {
    let (parent, child) = (id(100_000, "p"), id(90_000, "c"));
    let mut world = World::of([lease(&parent, None, true), lease(&child, Some(&parent), false)]);
    world.row(&child).initial = false;
    world.peers.push("c");
    for shard in [&parent, &child] {
        let done = *shard == parent;
        world.row(shard).peers.insert("c".into(), PeerPosition { position: Position::default(), done });
    }
    let read = SequenceNumber::parse("1");
    world.row(&child).peers.get_mut("b").unwrap().position.sequence = read;
    let mut takes = world.takes();
    let suspected = |take: &Take| take.starts.values().map(|start| start.suspect).collect::<Vec<_>>();
    assert_eq!(suspected(&takes[0]), [false, true]);
    let now = takes[0].seen.clone();
    takes[0].refresh(&now);
    assert_eq!(suspected(&takes[0]), [false, true], "what another peer has read tells nothing of this one");
    // The same of one that joins while the other is walked.
    world.walking.insert(child.clone(), BTreeSet::from(["b".to_owned()]));
    world.row(&child).owner = Some("me".into());
    let start = Start { position: Position::default(), suspect: true };
    assert_eq!(world.plan(), [Action::Join { shard: child, peer: "c".into(), start }]);
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
        suspicious(&World::of([row]))
    };
    assert!(suspect(&child, false, false), "its parent was never read");
    assert!(!suspect(&child, true, false), "nothing before it was expected");
    assert!(!suspect(&child, false, true), "its own position tells");
    let row = |id: &str| Lease { initial: false, ..lease(id, Some(&parent), false) };
    let world = World::of([lease(&parent, None, true), row(&aged)]);
    assert!(suspicious(&world), "its first records are older than the retention");
    assert!(!suspicious(&World::of([lease(&parent, None, true), row(&child)])));
}

#[test]
fn an_initial_shard_is_suspect_once_the_route_is_older_than_its_records() {
    let name = id(100_000, "a");
    let mut world = World::of([lease(&name, None, false)]);
    assert!(!suspicious(&world));
    world.begun = NOW - 90_000;
    assert!(suspicious(&world));
}

#[test]
fn a_peer_that_came_later_reads_what_is_listed_and_skips_what_is_gone() {
    let (gone, listed) = (id(200_000, "g"), id(1000, "l"));
    let mut world = World::of([lease(&gone, None, true), lease(&listed, Some(&gone), true)]);
    world.row(&gone).gone = true;
    assert!(world.taken().is_empty());
    world.peers.push("c");
    world.listed_for.remove("c");
    assert!(world.taken().is_empty(), "whether it is gone is not known for this peer yet");
    world.listed_for.insert("c".into());
    let takes = world.takes();
    assert_eq!(takes.len(), 1);
    assert_eq!(takes[0].seen.shard, listed);
    assert_eq!(takes[0].starts.keys().collect::<Vec<_>>(), ["c"]);
    assert!(!suspicious(&world));
}

proptest! {
    /// Any rows at all: who lives keeps what it holds, and nobody starts before its parent's end.
    #[test]
    fn nobody_takes_what_a_living_worker_holds(
        rows in prop::collection::vec((0..5_usize, 0..4_usize, any::<bool>(), any::<bool>(), 0..40_u64), 1..30),
        load in 0.0..20.0,
    ) {
        let name = |n: usize| id(100 - n as u64, "x");
        let owners = [None, Some("me"), Some("living"), Some("dead"), Some("heir")];
        let mut world = World::of([]);
        world.dead.insert("dead".into());
        world.fellows = vec![fellow("living", 3), fellow("heir", 0)];
        world.load = load;
        for (n, (owner, parent, done, handed, free)) in rows.into_iter().enumerate() {
            let parent = n.checked_sub(parent + 1).map(name);
            let mut row = lease(&name(n), parent.as_deref(), done);
            row.owner = owners[owner].map(str::to_owned);
            row.handoff = handed.then(|| "heir".to_owned());
            world.free_for.insert(row.shard.clone(), Duration::from_secs(free));
            world.leases.insert(row.shard.clone(), row);
        }
        for take in world.takes() {
            let owner = take.seen.owner.as_deref();
            prop_assert!(matches!(owner, None | Some("me" | "dead")), "{take:?}");
            let waits = world.free_for[&take.seen.shard] < PATIENCE;
            prop_assert!(!(owner.is_none() && take.seen.handoff.is_some() && waits), "{take:?}");
            prop_assert!(!take.seen.peers["b"].done);
            let parent = take.seen.parent.as_ref().map(|parent| &world.leases[parent]);
            prop_assert!(parent.is_none_or(|parent| parent.peers["b"].done), "{take:?}");
        }
    }

    /// Workers that see the same rows, and figures that are behind, leave none free and take no more than a share.
    #[test]
    fn free_leases_are_all_taken_and_nobody_takes_too_many(workers in 1..9_usize, shards in 0..60_usize) {
        let mut world = World::of((0..shards).map(|n| lease(&id(10, &format!("{n:03}")), None, false)));
        let mut held = vec![0_u64; workers];
        // Each takes in turn; the figures that it sees of the others are those of the start.
        for (me, mine) in held.iter_mut().enumerate() {
            world.fellows = (1..workers).map(|n| fellow(&format!("w{n}"), 0)).collect();
            // What others took before is seen as taken, and not yet as theirs.
            let free = world.leases.values().filter(|lease| lease.owner.is_none()).count();
            let taken = world.taken();
            *mine = taken.len() as u64;
            prop_assert!(taken.len() <= free.div_ceil(workers));
            for shard in taken {
                world.row(&shard).owner = Some(format!("w{me}"));
            }
        }
        // And once they see each other's, nothing is left.
        for me in 0..workers {
            world.load = held[me] as f64;
            let others = (0..workers).filter(|n| *n != me).map(|n| fellow(&format!("w{n}"), held[n]));
            world.fellows = others.collect();
            for shard in world.taken() {
                held[me] += 1;
                world.row(&shard).owner = Some(format!("w{me}"));
            }
        }
        prop_assert!(held.iter().all(|held| *held <= (shards / workers + 1) as u64), "{held:?}");
        prop_assert_eq!(held.iter().sum::<u64>(), shards as u64);
    }
}
