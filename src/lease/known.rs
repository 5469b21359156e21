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

    /// Watches which leases may be taken: without an owner, or of an owner for which `dead` holds.
    pub fn watch(&mut self, dead: impl Fn(&str) -> bool) {
        let now = Instant::now();
        let free = self.leases.values().filter(|lease| lease.owner.as_deref().is_none_or(&dead));
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
        known.watch(|owner| owner == "dead");
        tokio::time::advance(Duration::from_secs(5)).await;
        known.watch(|owner| owner == "dead");
        let five = Duration::from_secs(5);
        assert_eq!(known.free_for(), BTreeMap::from([("a", five), ("b", five)]));
        // It was taken and given back meanwhile.
        known.merge(&BTreeSet::from(["a".to_owned(), "c".to_owned()]), rows(vec![lease("a", None, 2)]));
        known.watch(|owner| owner == "dead");
        assert_eq!(known.free_for(), BTreeMap::from([("a", Duration::ZERO), ("b", five)]));
        assert!(!known.leases().contains_key("c"));
        known.watch(|_| false);
        assert_eq!(known.free_for().len(), 1);
    }
}
