//! The other workers, as their rows show them: who lives, how loaded each is, and what it changed.
//!
//! Pure but for the observer's own monotonic clock, whose times are passed in. Wall clocks are never compared: a
//! worker lives as long as its counter moves.
//!
//! Rows: `fleet` / `worker#<worker>`, and beside them `control#...`, which others write and read.

use crate::item::Item;
use crate::state::{Row, SK, get_number, get_text, number, text};
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// The partition of the workers' rows and of the operator's controls.
pub const FLEET: &str = "fleet";
/// What the sort keys of controls begin with.
pub const CONTROL: &str = "control#";
const WORKER: &str = "worker#";
const COUNTER: &str = "counter";
const ROUTES: &str = "routes";
const SHARDS: &str = "shards";
const RATE: &str = "rate";
const CHANGED: &str = "changed";
const CHANGES: &str = "changes";
const LEAVING: &str = "leaving";

/// A shard with so many records a second weighs as much as two idle ones. An idle shard costs a read a second and
/// its memory; each record costs a write at every peer. At this rate the writes are clearly what it costs, and
/// below it counts decide, which do not waver.
pub const RATE_OF_A_SHARD: f64 = 50.0;
/// The last changes that a row names. Whoever has missed more reads all leases.
const NAMED: usize = 20;

/// What a shard weighs that has so many records a second.
#[must_use]
pub fn weight(rate: f64) -> f64 {
    1.0 + rate / RATE_OF_A_SHARD
}

/// What a worker says of its part in one route.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures {
    /// Shards that it walks.
    pub shards: u64,
    /// Records a second that it reads from all of them.
    pub rate: f64,
    /// Rises with every lease whose row others should look at: released, added, or done for a peer.
    pub changed: u64,
    /// The shards of the last changes, oldest first.
    pub changes: Vec<String>,
    /// It gives its leases back and takes none.
    pub leaving: bool,
}

impl Figures {
    /// What all its shards weigh.
    #[must_use]
    pub fn load(&self) -> f64 {
        self.shards as f64 + self.rate / RATE_OF_A_SHARD
    }

    /// Others should look at a shard's lease.
    pub fn change(&mut self, shard: &str) {
        self.changed += 1;
        self.changes.push(shard.to_owned());
        if self.changes.len() > NAMED {
            self.changes.remove(0);
        }
    }

    /// What changed since `before`; `None` when more did than is named.
    fn since(&self, before: u64) -> Option<&[String]> {
        let missed = usize::try_from(self.changed.checked_sub(before)?).ok()?;
        self.changes.get(self.changes.len().checked_sub(missed)?..)
    }

    fn to_value(&self) -> AttributeValue {
        let changes = self.changes.iter().map(text).collect();
        AttributeValue::M(Row::from([
            (SHARDS.to_owned(), number(self.shards)),
            (RATE.to_owned(), number(format!("{:.1}", self.rate))),
            (CHANGED.to_owned(), number(self.changed)),
            (CHANGES.to_owned(), AttributeValue::L(changes)),
            (LEAVING.to_owned(), AttributeValue::Bool(self.leaving)),
        ]))
    }

    fn from_value(value: &AttributeValue) -> Option<Self> {
        let row = value.as_m().ok()?;
        let changes = row.get(CHANGES).and_then(|v| v.as_l().ok()).map(Vec::as_slice).unwrap_or_default();
        Some(Self {
            shards: get_number(row, SHARDS)?,
            rate: get_number(row, RATE)?,
            changed: get_number(row, CHANGED)?,
            changes: changes.iter().filter_map(|v| v.as_s().ok().cloned()).collect(),
            leaving: row.get(LEAVING).and_then(|v| v.as_bool().ok()).copied().unwrap_or_default(),
        })
    }
}

/// What a worker says of the controls that it obeys.
const CONTROLS: &str = "controls";

/// The rows of what operators ask for, among all of the fleet's.
#[must_use]
pub fn controls(rows: &[Row]) -> Vec<Row> {
    let control = |row: &&Row| get_text(row, SK).is_some_and(|sort| sort.starts_with(CONTROL));
    rows.iter().filter(control).cloned().collect()
}

/// Stands for all controls as they are: the same for the same rows, in whatever order.
#[must_use]
pub fn controls_digest(controls: &[Row]) -> String {
    let mut digests: Vec<_> = controls.iter().map(|row| Item(row.clone()).digest(None)).collect();
    digests.sort_unstable();
    let all = digests.iter().map(|digest| AttributeValue::S(digest.to_string())).collect();
    Item(Row::from([(CONTROLS.to_owned(), AttributeValue::L(all))])).digest(None).to_string()
}

/// Workers as their rows show them: the name, the counter, and what they say of the controls that they obey.
pub(crate) fn obeying(rows: &[Row]) -> impl Iterator<Item = (&str, u64, &str)> {
    rows.iter().filter_map(|row| {
        let name = get_text(row, SK)?.strip_prefix(WORKER)?;
        Some((name, get_number(row, COUNTER)?, get_text(row, CONTROLS).unwrap_or_default()))
    })
}

/// The sort key of a worker's row.
pub(super) fn sort(worker: &str) -> String {
    format!("{WORKER}{worker}")
}

/// A worker's row but its keys and its expiry.
pub(super) fn to_row(counter: u64, figures: &BTreeMap<String, Figures>, controls: &str) -> Row {
    let routes = figures.iter().map(|(route, figures)| (route.clone(), figures.to_value())).collect();
    Row::from([
        (COUNTER.to_owned(), number(counter)),
        (ROUTES.to_owned(), AttributeValue::M(routes)),
        (CONTROLS.to_owned(), text(controls)),
    ])
}

/// Another worker that lives and has a part in a route.
#[derive(Debug, Clone, PartialEq)]
pub struct Fellow {
    /// Its name.
    pub name: String,
    /// How many shards it walks, of all routes.
    pub shards: u64,
    /// What they weigh.
    pub load: f64,
}

/// What others changed in a route since it was last asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct News {
    /// Any lease may have changed.
    pub all: bool,
    /// The leases that changed.
    pub shards: BTreeSet<String>,
}

/// The other workers as this one has seen them.
#[derive(Debug, Default)]
pub struct Fleet {
    others: BTreeMap<String, Seen>,
    /// Owners that had no row, since they were first looked for.
    missing: BTreeMap<String, Instant>,
    /// When the others' rows were last read.
    looked: Option<Instant>,
    /// By route.
    news: BTreeMap<String, News>,
}

#[derive(Debug)]
struct Seen {
    counter: u64,
    /// When the counter was first seen with this value.
    since: Instant,
    dead: bool,
    figures: BTreeMap<String, Figures>,
}

impl Fleet {
    /// Takes in the rows of the partition as they were read at `now`; gives the routes that have news.
    pub fn look(&mut self, rows: &[Row], me: &str, now: Instant, duration: Duration) -> BTreeSet<String> {
        let mut told = BTreeSet::new();
        let mut before = std::mem::take(&mut self.others);
        for row in rows {
            let name =
                get_text(row, SK).and_then(|sort| sort.strip_prefix(WORKER)).filter(|name| *name != me);
            let Some((name, counter)) = name.zip(get_number::<u64>(row, COUNTER)) else { continue };
            let figures = figures(row);
            let old = before.remove(name);
            let same = old.as_ref().filter(|seen| seen.counter == counter);
            let since = same.map_or(now, |seen| seen.since);
            let seen =
                Seen { counter, since, dead: now.saturating_duration_since(since) >= duration, figures };
            self.compare(old.as_ref(), &seen, &mut told);
            self.others.insert(name.to_owned(), seen);
        }
        // Whoever left has given back what it had.
        for route in before.into_values().flat_map(|seen| seen.figures.into_keys()) {
            self.tell(route, &mut told).all = true;
        }
        let others = &self.others;
        self.missing.retain(|owner, _| !others.contains_key(owner));
        self.looked = Some(now);
        told
    }

    fn compare(&mut self, old: Option<&Seen>, new: &Seen, told: &mut BTreeSet<String>) {
        let died = new.dead && old.is_some_and(|old| !old.dead);
        for (route, now) in &new.figures {
            let before = old.and_then(|old| old.figures.get(route));
            // Who came may need shards; who died, or changed more than it names, leaves all of them in doubt.
            let changes = before.map(|before| now.since(before.changed));
            let left = before.is_some_and(|before| now.leaving && !before.leaving);
            match changes {
                Some(Some([])) if !died && !left => {}
                None | Some(Some(_)) if !died => {
                    let changes = changes.flatten().unwrap_or_default();
                    self.tell(route.clone(), told).shards.extend(changes.iter().cloned());
                }
                _ => self.tell(route.clone(), told).all = true,
            }
        }
    }

    fn tell(&mut self, route: String, told: &mut BTreeSet<String>) -> &mut News {
        told.insert(route.clone());
        self.news.entry(route).or_default()
    }

    /// What changed in a route since this was last asked for.
    pub fn news(&mut self, route: &str) -> News {
        self.news.remove(route).unwrap_or_default()
    }

    /// Those of `owners` whose leases may be taken: their counter has stood still for a lease's duration, or they
    /// have had no row for that long, as far as this worker has looked: time in which it did not look proves
    /// nothing.
    pub fn dead<'a>(
        &mut self,
        owners: impl IntoIterator<Item = &'a str>,
        now: Instant,
        duration: Duration,
    ) -> BTreeSet<String> {
        let Some(looked) = self.looked else { return BTreeSet::new() };
        let mut dead = BTreeSet::new();
        for owner in owners {
            let since = match self.others.get(owner) {
                Some(seen) => seen.since,
                None => *self.missing.entry(owner.to_owned()).or_insert(now),
            };
            if looked.saturating_duration_since(since) >= duration {
                dead.insert(owner.to_owned());
            }
        }
        dead
    }

    /// The others that live and have a part in the route; in the order of their names.
    #[must_use]
    pub fn living(&self, route: &str) -> Vec<Fellow> {
        let part = |seen: &Seen| seen.figures.get(route).is_some_and(|figures| !figures.leaving);
        let living = self.others.iter().filter(|(_, seen)| !seen.dead && part(seen));
        let fellow = |(name, seen): (&String, &Seen)| Fellow {
            name: name.clone(),
            shards: seen.figures.values().map(|figures| figures.shards).sum(),
            load: seen.figures.values().map(Figures::load).sum(),
        };
        living.map(fellow).collect()
    }
}

fn figures(row: &Row) -> BTreeMap<String, Figures> {
    let routes = row.get(ROUTES).and_then(|v| v.as_m().ok());
    let figures =
        |(route, value): (&String, &AttributeValue)| Some((route.clone(), Figures::from_value(value)?));
    routes.into_iter().flatten().filter_map(figures).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn row(name: &str, counter: u64, figures: &Figures) -> Row {
        let mut row = to_row(counter, &BTreeMap::from([("r".to_owned(), figures.clone())]), "");
        row.insert(SK.to_owned(), text(sort(name)));
        row
    }

    fn names(fleet: &Fleet) -> Vec<String> {
        fleet.living("r").into_iter().map(|fellow| fellow.name).collect()
    }

    #[test]
    fn a_worker_lives_while_its_counter_moves_by_the_observers_clock() {
        let (start, figures) = (Instant::now(), Figures::default());
        let mut fleet = Fleet::default();
        assert!(fleet.dead(["a"], start, LEASE).is_empty(), "nobody looked yet");
        let at = |seconds| start + Duration::from_secs(seconds);
        fleet.look(&[row("a", 7, &figures), row("me", 1, &figures)], "me", at(0), LEASE);
        fleet.look(&[row("a", 7, &figures)], "me", at(29), LEASE);
        assert_eq!(names(&fleet), ["a"]);
        assert!(fleet.dead(["a"], at(40), LEASE).is_empty(), "not looked since");
        assert_eq!(fleet.look(&[row("a", 7, &figures)], "me", at(30), LEASE), ["r".to_owned()].into());
        assert!(fleet.news("r").all, "its leases are to be had");
        assert!(names(&fleet).is_empty());
        assert_eq!(fleet.dead(["a"], at(30), LEASE), ["a".to_owned()].into());
        assert!(fleet.look(&[row("a", 7, &figures)], "me", at(31), LEASE).is_empty(), "said once");
        fleet.look(&[row("a", 3, &figures)], "me", at(32), LEASE);
        assert_eq!(names(&fleet), ["a"], "any other value is a beat");
        assert!(fleet.dead(["a", "b"], at(32), LEASE).is_empty());
        fleet.look(&[row("a", 4, &figures)], "me", at(62), LEASE);
        assert_eq!(fleet.dead(["a", "b"], at(62), LEASE), ["b".to_owned()].into(), "no row for that long");
    }

    #[test]
    fn what_a_worker_changed_is_named_and_more_than_that_is_everything() {
        let (now, mut figures) = (Instant::now(), Figures::default());
        let mut fleet = Fleet::default();
        assert_eq!(fleet.look(&[row("a", 1, &figures)], "me", now, LEASE).len(), 1, "it came");
        assert_eq!(fleet.news("r"), News::default());
        figures.change("s1");
        figures.change("s2");
        fleet.look(&[row("a", 1, &figures)], "me", now, LEASE);
        figures.change("s3");
        fleet.look(&[row("a", 2, &figures)], "me", now, LEASE);
        let shards = ["s1", "s2", "s3"].map(str::to_owned).into();
        assert_eq!(fleet.news("r"), News { all: false, shards });
        assert!(fleet.look(&[row("a", 3, &figures)], "me", now, LEASE).is_empty());
        (0..=NAMED).for_each(|n| figures.change(&format!("t{n}")));
        fleet.look(&[row("a", 4, &figures)], "me", now, LEASE);
        assert!(fleet.news("r").all);
        assert_eq!(fleet.look(&[], "me", now, LEASE).len(), 1, "it left");
        assert!(fleet.news("r").all);
    }

    #[test]
    fn who_leaves_or_has_no_part_in_a_route_is_no_fellow() {
        let now = Instant::now();
        let mut fleet = Fleet::default();
        let busy = Figures { shards: 3, rate: 2.0 * RATE_OF_A_SHARD, ..Figures::default() };
        let leaving = Figures { leaving: true, ..busy.clone() };
        fleet.look(&[row("a", 1, &busy), row("b", 1, &leaving)], "me", now, LEASE);
        assert_eq!(fleet.living("r"), [Fellow { name: "a".into(), shards: 3, load: 5.0 }]);
        assert!(fleet.living("other").is_empty());
        assert!(fleet.dead(["b"], now, LEASE).is_empty(), "who leaves still holds what it has");
    }
}
