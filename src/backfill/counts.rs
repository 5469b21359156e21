//! What became of items, counted: for each peer, and over all of them.

use crate::peer::Seeded;
use crate::state::{Row, get_number, number};
use aws_sdk_dynamodb::types::AttributeValue;
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// What became of an item at a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fate {
    /// As the peer said.
    Seeded(Seeded),
    /// The peer refuses it for good: it is a dead letter.
    Refused,
    /// The route's filter does not let it through.
    Filtered,
    /// It is being deleted at the source: what comes of that is in the stream.
    Leaving,
}

impl Fate {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 12] = [
        Self::Seeded(Seeded::Created),
        Self::Seeded(Seeded::Updated),
        Self::Seeded(Seeded::Unchanged),
        Self::Seeded(Seeded::Newer),
        Self::Seeded(Seeded::Deleted),
        Self::Seeded(Seeded::Equal),
        Self::Seeded(Seeded::Kept),
        Self::Seeded(Seeded::Overwritten),
        Self::Seeded(Seeded::Conflict),
        Self::Refused,
        Self::Filtered,
        Self::Leaving,
    ];

    /// The name in rows, metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seeded(Seeded::Created) => "created",
            Self::Seeded(Seeded::Updated) => "updated",
            Self::Seeded(Seeded::Unchanged) => "unchanged",
            Self::Seeded(Seeded::Newer | Seeded::Stale(_)) => "newer",
            Self::Seeded(Seeded::Deleted) => "deleted",
            Self::Seeded(Seeded::Equal) => "existing_equal",
            Self::Seeded(Seeded::Kept) => "existing_kept",
            Self::Seeded(Seeded::Overwritten) => "existing_overwritten",
            Self::Seeded(Seeded::Conflict) => "existing_conflicting",
            Self::Refused => "refused",
            Self::Filtered => "filtered",
            Self::Leaving => "leaving",
        }
    }
}

/// How many items had which fate. Serialises to an object of those that are not 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fates(BTreeMap<Fate, u64>);

impl Fates {
    /// One more.
    pub fn add(&mut self, fate: Fate) {
        *self.0.entry(fate).or_default() += 1;
    }

    /// So many of a fate.
    #[must_use]
    pub fn get(&self, fate: Fate) -> u64 {
        self.0.get(&fate).copied().unwrap_or_default()
    }

    /// Those that are not 0, in the order of [`Fate::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Fate, u64)> + '_ {
        Fate::ALL.into_iter().map(|fate| (fate, self.get(fate))).filter(|(_, count)| *count > 0)
    }

    fn merge(&mut self, other: &Self) {
        for (fate, count) in &other.0 {
            *self.0.entry(*fate).or_default() += count;
        }
    }
}

impl Serialize for Fates {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        for (fate, count) in self.iter() {
            map.serialize_entry(fate.name(), &count)?;
        }
        map.end()
    }
}

/// What was read, and what became of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Totals {
    /// Items that were read and are done at every peer.
    pub items: u64,
    /// Their bytes, as DynamoDB counts them, near enough.
    pub bytes: u64,
    /// Read units that the source counted.
    pub read_units: f64,
    /// By the peer's name.
    pub peers: BTreeMap<String, Fates>,
}

impl Totals {
    /// Both together.
    pub fn merge(&mut self, other: &Self) {
        self.items += other.items;
        self.bytes += other.bytes;
        self.read_units += other.read_units;
        for (peer, fates) in &other.peers {
            self.peers.entry(peer.clone()).or_default().merge(fates);
        }
    }

    /// As the attribute of a row.
    pub(super) fn to_value(&self) -> AttributeValue {
        let fates = |(peer, fates): (&String, &Fates)| {
            let fates = fates.iter().map(|(fate, count)| (fate.name().to_owned(), number(count)));
            (peer.clone(), AttributeValue::M(fates.collect()))
        };
        AttributeValue::M(Row::from([
            ("items".to_owned(), number(self.items)),
            ("bytes".to_owned(), number(self.bytes)),
            ("read_units".to_owned(), number(format!("{:.1}", self.read_units))),
            ("peers".to_owned(), AttributeValue::M(self.peers.iter().map(fates).collect())),
        ]))
    }

    /// From the attribute of a row; what is missing or makes no sense counts as 0.
    pub(super) fn from_value(value: &AttributeValue) -> Self {
        let Ok(row) = value.as_m() else { return Self::default() };
        let fates = |row: &Row| {
            let known = |fate: Fate| Some((fate, get_number(row, fate.name())?));
            Fates(Fate::ALL.into_iter().filter_map(known).collect())
        };
        let peers = row.get("peers").and_then(|peers| peers.as_m().ok());
        let peer =
            |(name, value): (&String, &AttributeValue)| Some((name.clone(), fates(value.as_m().ok()?)));
        Self {
            items: get_number(row, "items").unwrap_or_default(),
            bytes: get_number(row, "bytes").unwrap_or_default(),
            read_units: get_number(row, "read_units").unwrap_or_default(),
            peers: peers.into_iter().flatten().filter_map(peer).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_survive_the_table_and_add_up() {
        let mut fates = Fates::default();
        Fate::ALL.into_iter().for_each(|fate| fates.add(fate));
        fates.add(Fate::Refused);
        let peers = BTreeMap::from([("b".to_owned(), fates)]);
        let totals = Totals { items: 12, bytes: 999, read_units: 1.5, peers };
        assert_eq!(Totals::from_value(&totals.to_value()), totals);
        let mut twice = totals.clone();
        twice.merge(&totals);
        assert_eq!((twice.items, twice.bytes, twice.read_units), (24, 1998, 3.0));
        assert_eq!(twice.peers["b"].get(Fate::Refused), 4);
        let shown = serde_json::to_value(&twice.peers["b"]).unwrap();
        assert_eq!(shown.as_object().unwrap().len(), Fate::ALL.len());
        assert_eq!(shown["existing_kept"], 2);
        assert_eq!(Totals::from_value(&number(3)), Totals::default());
    }
}
