//! What a listing of the stream means for the leases' rows: pure.

use crate::lease::plan::RETENTION;
use crate::lease::row::{Lease, PeerPosition};
use crate::starts::MARGIN;
use crate::stream::graph::{self, Shard};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

/// What was listed, and what is known.
#[derive(Debug)]
pub struct Listed<'a> {
    /// The rows, by shard.
    pub leases: &'a BTreeMap<String, Lease>,
    /// The shards that were found.
    pub shards: &'a [Shard],
    /// The route's peers.
    pub peers: &'a [&'a str],
    /// Whether the route starts with what is written from now on, not with what the stream still has.
    pub from_now: bool,
    /// When the first worker of the route saw the stream first.
    pub begun: SystemTime,
    /// The time.
    pub now: SystemTime,
}

/// A change of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Add the row of a shard.
    Add(Lease),
    /// Write what the listing says of a shard.
    Mark {
        /// The shard.
        shard: String,
        /// Whether it takes no more records.
        closed: bool,
        /// Whether it is listed no more.
        gone: bool,
    },
    /// Keep the row of a finished shard for longer, since 1970.
    Keep {
        /// The shard.
        shard: String,
        /// Until then.
        expires: Duration,
    },
}

/// A shard without a time in its id, and not read to its end, is gone when listings have left it out for so long:
/// they lag by seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// A finished row is kept for so long, and for longer while its children are not finished: their clocks go on from
/// its own.
pub const KEPT: Duration = Duration::from_secs(48 * 3600);

/// The rows of shards that have none, in the order of the listing, which has parents before their children.
pub fn added(listed: &Listed<'_>) -> impl Iterator<Item = Change> {
    let new = |shard: &&Shard| !listed.leases.contains_key(&shard.id);
    listed.shards.iter().filter(new).map(|shard| Change::Add(new_row(shard, listed)))
}

/// What a listing of the whole stream changes beside [`added`]. `unlisted_for` is for how long listings have left
/// each row's shard out.
#[must_use]
pub fn marked(listed: &Listed<'_>, unlisted_for: &BTreeMap<String, Duration>) -> Vec<Change> {
    let found: BTreeMap<&str, &Shard> = listed.shards.iter().map(|s| (s.id.as_str(), s)).collect();
    let waited_for: BTreeSet<&str> =
        listed.leases.values().filter(|l| l.expires.is_none()).filter_map(|l| l.parent.as_deref()).collect();
    let now = listed.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut changes = Vec::new();
    for lease in listed.leases.values() {
        let shard = lease.shard.clone();
        let (closed, gone) = match found.get(shard.as_str()) {
            Some(found) => (found.closed, false),
            None => {
                let born =
                    graph::born(&shard).map(|born| listed.now.duration_since(born).unwrap_or_default());
                let old = born.is_some_and(|age| age >= RETENTION);
                let away = unlisted_for.get(&shard).is_some_and(|away| *away >= PATIENCE);
                (lease.closed, lease.gone || lease.expires.is_some() || old || away)
            }
        };
        if (closed, gone) != (lease.closed, lease.gone) {
            changes.push(Change::Mark { shard: shard.clone(), closed, gone });
        }
        let short = |expires: u64| Duration::from_secs(expires) < now + KEPT / 2;
        let finished = match lease.expires {
            Some(expires) => short(expires) && waited_for.contains(shard.as_str()),
            // Its owner died before it could say so, or there was nothing to do.
            None => lease.done_for(listed.peers.iter().copied()),
        };
        if finished {
            changes.push(Change::Keep { shard, expires: now + KEPT });
        }
    }
    changes
}

fn new_row(shard: &Shard, listed: &Listed<'_>) -> Lease {
    // By what all workers see alike, so that they agree whoever adds the row, and whenever.
    let initial = match graph::born(&shard.id) {
        Some(born) => born <= listed.begun,
        None => listed.leases.is_empty(),
    };
    let done = initial && listed.from_now && shard.closed && closed_before(shard, listed);
    let peer = |name: &&str| ((*name).to_owned(), PeerPosition { done, ..PeerPosition::default() });
    Lease { initial, peers: listed.peers.iter().map(peer).collect(), ..Lease::new(shard) }
}

/// Whether a closed shard certainly holds nothing that the route starts with: a child is made when its parent closes.
/// One that is not certain is read, and what is older is left out.
fn closed_before(shard: &Shard, listed: &Listed<'_>) -> bool {
    let mut children = listed.shards.iter().filter(|s| s.parent.as_ref() == Some(&shard.id)).peekable();
    let before = |born: SystemTime| born + MARGIN <= listed.begun;
    children.peek().is_some() && children.all(|child| graph::born(&child.id).is_some_and(before))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    const NOW: u64 = 1_800_000_000;

    fn id(age: u64, name: &str) -> String {
        format!("shardId-{:020}-{name}", (NOW - age) * 1000)
    }

    fn shard(id: &str, parent: Option<&str>, closed: bool) -> Shard {
        Shard { id: id.to_owned(), parent: parent.map(str::to_owned), closed }
    }

    fn rows(leases: Vec<Lease>) -> BTreeMap<String, Lease> {
        leases.into_iter().map(|lease| (lease.shard.clone(), lease)).collect()
    }

    fn listed<'a>(leases: &'a BTreeMap<String, Lease>, shards: &'a [Shard], from_now: bool) -> Listed<'a> {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        Listed { leases, shards, peers: &["b"], from_now, begun: at(NOW - 40), now: at(NOW) }
    }

    fn add(leases: &BTreeMap<String, Lease>, shards: &[Shard], from_now: bool) -> Vec<(bool, bool)> {
        let row = |change| match change {
            Change::Add(row) => Some((row.initial, row.done_for(["b"]))),
            _ => None,
        };
        added(&listed(leases, shards, from_now)).filter_map(row).collect()
    }

    #[test]
    fn a_first_listing_adds_every_shard_as_initial() {
        let (parent, child) = (id(100, "p"), id(50, "c"));
        let shards = [shard(&parent, None, true), shard(&child, Some(&parent), false)];
        assert_eq!(add(&rows(vec![]), &shards, false), [(true, false), (true, false)]);
        assert_eq!(add(&rows(vec![]), &shards, true), [(true, false), (true, false)]);
    }

    #[test]
    fn from_now_on_leaves_out_what_was_closed_before_and_nothing_else() {
        // The route saw the stream 40 seconds ago, and takes what is 300 seconds older for new.
        let done = |parent: u64, children: &[u64]| {
            let parent = id(parent, "p");
            let children = children.iter().map(|age| shard(&id(*age, "c"), Some(&parent), true));
            let shards: Vec<Shard> = [shard(&parent, None, true)].into_iter().chain(children).collect();
            add(&rows(vec![]), &shards, true).first().copied()
        };
        assert_eq!(done(900, &[340, 341]), Some((true, true)));
        assert_eq!(done(900, &[339, 341]), Some((true, false)), "it took records shortly before");
        assert_eq!(done(900, &[20]), Some((true, false)), "it took records since");
        assert_eq!(done(900, &[]), Some((true, false)), "nobody knows when it was closed");
        let unnamed = [shard("shardId-7", None, true), shard("shardId-8", Some("shardId-7"), false)];
        assert_eq!(add(&rows(vec![]), &unnamed, true), [(true, false), (true, false)]);
    }

    #[test]
    fn what_was_there_at_the_start_is_initial_whoever_adds_it() {
        let known = rows(vec![Lease::new(&shard(&id(99, "x"), None, false))]);
        let shards = [shard(&id(100, "o"), None, false), shard(&id(10, "n"), None, false)];
        assert_eq!(add(&known, &shards, false), [(true, false), (false, false)]);
        let unnamed = [shard("shardId-7", None, false)];
        assert_eq!(add(&known, &unnamed, false), [(false, false)]);
        assert_eq!(add(&rows(vec![]), &unnamed, false), [(true, false)]);
    }

    #[test]
    fn rows_follow_the_listing_and_gone_means_gone() {
        let (young, old) = (id(100, "y"), id(90_000, "o"));
        let mut read = Lease::new(&shard(&id(99, "r"), None, true));
        read.expires = Some(NOW + 172_000);
        let leases = rows(vec![
            Lease::new(&shard(&young, None, false)),
            Lease::new(&shard(&old, None, true)),
            read.clone(),
        ]);
        let mark = |shard: &str, closed, gone| Change::Mark { shard: shard.to_owned(), closed, gone };
        let gone = [mark(&old, true, true), mark(&read.shard, true, true)];
        assert_eq!(marked(&listed(&leases, &[], false), &BTreeMap::new()), gone);
        let away = BTreeMap::from([(young.clone(), PATIENCE)]);
        assert_eq!(marked(&listed(&leases, &[], false), &away).len(), 3);
        let all = [shard(&young, None, true), shard(&old, None, true), shard(&read.shard, None, true)];
        assert_eq!(marked(&listed(&leases, &all, false), &BTreeMap::new()), [mark(&young, true, false)]);
    }

    #[test]
    fn a_finished_row_stays_until_its_children_are_finished() {
        let (parent, child) = (id(100, "p"), id(50, "c"));
        let shards = [shard(&parent, None, true), shard(&child, Some(&parent), false)];
        let mut leases = rows(shards.iter().map(Lease::new).collect());
        leases.get_mut(&parent).unwrap().expires = Some(NOW + 80_000);
        let keep = Change::Keep { shard: parent.clone(), expires: Duration::from_secs(NOW) + KEPT };
        assert_eq!(marked(&listed(&leases, &shards, false), &BTreeMap::new()), [keep]);
        let row = leases.get_mut(&child).unwrap();
        row.expires = Some(NOW + 172_000);
        assert_eq!(marked(&listed(&leases, &shards, false), &BTreeMap::new()), []);
        let row = leases.get_mut(&child).unwrap();
        row.expires = None;
        row.peers.insert("b".to_owned(), PeerPosition { done: true, ..PeerPosition::default() });
        let changes = marked(&listed(&leases, &shards, false), &BTreeMap::new());
        assert!(changes.contains(&Change::Keep { shard: child, expires: Duration::from_secs(NOW) + KEPT }));
    }
}
