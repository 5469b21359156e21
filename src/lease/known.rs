//! The rows of a route's leases as this worker knows them, and since when, by its own monotonic clock.
//!
//! Rows are read as a whole now and then, and one by one when somebody changed them. What is known may be behind;
//! every change of a row is conditional on what was seen.

use crate::lease::lister::ListerRow;
use crate::lease::row::Lease;
use crate::lease::table::Rows;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// What one worker knows of a route's rows.
#[derive(Debug, Default)]
pub struct Known {
    leases: BTreeMap<String, Lease>,
    lister: Option<ListerRow>,
    since: BTreeMap<String, Instant>,
    /// Each row's epoch, and when it was first seen with it.
    epochs: BTreeMap<String, (u64, Instant)>,
    /// Leases that may be taken, each with its epoch, and since when.
    free: BTreeMap<String, (u64, Instant)>,
}

impl Known {
    /// The rows, by shard.
    #[must_use]
    pub fn leases(&self) -> &BTreeMap<String, Lease> {
        &self.leases
    }

    /// The row of the one that lists.
    #[must_use]
    pub fn lister(&self) -> Option<&ListerRow> {
        self.lister.as_ref()
    }

    /// All rows were read.
    pub fn replace(&mut self, rows: Rows) {
        self.leases = rows.leases.into_iter().map(|lease| (lease.shard.clone(), lease)).collect();
        self.lister = rows.lister;
        let (leases, now) = (&self.leases, Instant::now());
        self.since.retain(|shard, _| leases.contains_key(shard));
        for shard in leases.keys() {
            if !self.since.contains_key(shard) {
                self.since.insert(shard.clone(), now);
            }
        }
    }

    /// Some rows were read; those of `asked` that were not found do not exist.
    pub fn merge(&mut self, asked: &BTreeSet<String>, rows: Rows) {
        self.lister = rows.lister.or(self.lister.take());
        for shard in asked {
            self.leases.remove(shard);
        }
        let now = Instant::now();
        for lease in rows.leases {
            self.since.entry(lease.shard.clone()).or_insert(now);
            self.leases.insert(lease.shard.clone(), lease);
        }
    }

    /// Watches which leases may be taken: without an owner, or of an owner for which `dead` holds by a look that was
    /// begun at `looked`. One that was seen with its owner only after that look is not: an owner that lives again
    /// may just have taken it.
    pub fn watch(&mut self, looked: Option<Instant>, dead: impl Fn(&str) -> bool) {
        let now = Instant::now();
        let before = std::mem::take(&mut self.epochs);
        let first = |lease: &Lease| before.get(&lease.shard).filter(|(epoch, _)| *epoch == lease.epoch);
        let first = |lease: &Lease| first(lease).map_or(now, |(_, first)| *first);
        self.epochs = self.leases.values().map(|l| (l.shard.clone(), (l.epoch, first(l)))).collect();
        let epochs = &self.epochs;
        let before_the_look = |lease: &Lease| {
            epochs.get(&lease.shard).zip(looked).is_some_and(|((_, first), looked)| *first <= looked)
        };
        let may = |lease: &&Lease| match lease.owner.as_deref() {
            None => true,
            Some(owner) => dead(owner) && before_the_look(lease),
        };
        let free = self.leases.values().filter(may);
        let before = std::mem::take(&mut self.free);
        let same = |lease: &Lease| before.get(&lease.shard).filter(|(epoch, _)| *epoch == lease.epoch);
        let since = |lease: &Lease| same(lease).map_or(now, |(_, since)| *since);
        self.free = free.map(|lease| (lease.shard.clone(), (lease.epoch, since(lease)))).collect();
    }

    /// For how long each lease that may be taken has been so.
    #[must_use]
    pub fn free_for(&self) -> BTreeMap<&str, Duration> {
        self.free.iter().map(|(shard, (_, since))| (shard.as_str(), since.elapsed())).collect()
    }

    /// For how long each row has been known.
    #[must_use]
    pub fn known_for(&self) -> BTreeMap<&str, Duration> {
        self.since.iter().map(|(shard, since)| (shard.as_str(), since.elapsed())).collect()
    }

    /// Whether some row names this shard as its parent.
    #[must_use]
    pub fn has_child(&self, shard: &str) -> bool {
        self.leases.values().any(|lease| lease.parent.as_deref() == Some(shard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::graph::Shard;

    fn lease(shard: &str, owner: Option<&str>, epoch: u64) -> Lease {
        let row = Lease::new(&Shard { id: shard.to_owned(), parent: None, closed: false });
        Lease { owner: owner.map(str::to_owned), epoch, ..row }
    }

    fn rows(leases: Vec<Lease>) -> Rows {
        Rows { leases, lister: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_free_for_as_long_as_nobody_took_it() {
        let mut known = Known::default();
        known.replace(rows(vec![lease("a", None, 1), lease("b", Some("dead"), 1), lease("c", Some("x"), 1)]));
        let looked = || Some(Instant::now());
        known.watch(None, |owner| owner == "dead");
        assert!(!known.free_for().contains_key("b"), "seen after the look that says so");
        known.watch(looked(), |owner| owner == "dead");
        tokio::time::advance(Duration::from_secs(5)).await;
        known.watch(looked(), |owner| owner == "dead");
        let five = Duration::from_secs(5);
        assert_eq!(known.free_for(), BTreeMap::from([("a", five), ("b", five)]));
        // It was taken and given back meanwhile.
        known.merge(&BTreeSet::from(["a".to_owned(), "c".to_owned()]), rows(vec![lease("a", None, 2)]));
        known.watch(looked(), |owner| owner == "dead");
        assert_eq!(known.free_for(), BTreeMap::from([("a", Duration::ZERO), ("b", five)]));
        assert!(!known.leases().contains_key("c"));
        known.watch(looked(), |_| false);
        assert_eq!(known.free_for().len(), 1);
    }
}
