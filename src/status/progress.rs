//! How far a worker is, as it publishes it at each beat: the attribute `progress` of its row in the fleet.
//!
//! Owns the form of that attribute, both ways. Reading is lenient: a worker of another version may leave
//! something out or say more, and what it says is for people, never for correctness.

use crate::state::{Row, get_number, get_text, number, text};
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The attribute of a worker's row that holds its progress.
pub const PROGRESS: &str = "progress";
/// Of the shards that stopped, so many are named: the row stays small, and one is enough to begin with.
pub const STOPPED_NAMED: usize = 10;

/// How far a worker is with one route.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteProgress {
    /// How far each peer is, by the peer's name.
    pub peers: BTreeMap<String, PeerProgress>,
    /// Shards that wait for an operator, and why; at most [`STOPPED_NAMED`], the first by their ids.
    pub stopped: BTreeMap<String, String>,
    /// What stands against all of it.
    pub trouble: Option<String>,
}

/// How far one peer is, over all shards of this worker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerProgress {
    /// No record that was created before this is left to apply; `None` when all that the stream has is applied.
    /// In whole seconds, as records are.
    pub oldest: Option<SystemTime>,
    /// Changes taken and not done.
    pub pending: u64,
    /// Shards that are walked for this peer.
    pub lanes: u64,
}

impl PeerProgress {
    /// Both together: the older of the two, and the sums.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let oldest = match (self.oldest, other.oldest) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        Self { oldest, pending: self.pending + other.pending, lanes: self.lanes + other.lanes }
    }
}

/// The attribute [`PROGRESS`], from the progress of each route by its name.
#[must_use]
pub fn to_attribute(routes: &BTreeMap<String, RouteProgress>) -> AttributeValue {
    let route = |(name, progress): (&String, &RouteProgress)| (name.clone(), route_value(progress));
    AttributeValue::M(routes.iter().map(route).collect())
}

/// The progress of a worker's row by route; what is missing or makes no sense is left out.
#[must_use]
pub fn from_row(row: &Row) -> BTreeMap<String, RouteProgress> {
    let routes = map(row, PROGRESS);
    routes.into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), route(value)?))).collect()
}

fn route_value(progress: &RouteProgress) -> AttributeValue {
    let peers = progress.peers.iter().map(|(name, peer)| (name.clone(), peer_value(peer))).collect();
    let stopped = progress.stopped.iter().take(STOPPED_NAMED);
    let stopped = stopped.map(|(shard, why)| (shard.clone(), text(why))).collect();
    let mut fields = HashMap::from([
        ("peers".to_owned(), AttributeValue::M(peers)),
        ("stopped".to_owned(), AttributeValue::M(stopped)),
    ]);
    if let Some(trouble) = &progress.trouble {
        fields.insert("trouble".to_owned(), text(trouble));
    }
    AttributeValue::M(fields)
}

fn peer_value(peer: &PeerProgress) -> AttributeValue {
    let mut fields = HashMap::from([
        ("pending".to_owned(), number(peer.pending)),
        ("lanes".to_owned(), number(peer.lanes)),
    ]);
    if let Some(oldest) = peer.oldest {
        let seconds = oldest.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        fields.insert("oldest".to_owned(), number(seconds));
    }
    AttributeValue::M(fields)
}

fn route(value: &AttributeValue) -> Option<RouteProgress> {
    let fields = value.as_m().ok()?;
    let peers = map(fields, "peers").into_iter().flatten();
    let stopped = map(fields, "stopped").into_iter().flatten();
    Some(RouteProgress {
        peers: peers.filter_map(|(name, value)| Some((name.clone(), peer(value)?))).collect(),
        stopped: stopped.filter_map(|(shard, why)| Some((shard.clone(), why.as_s().ok()?.clone()))).collect(),
        trouble: get_text(fields, "trouble").map(str::to_owned),
    })
}

fn peer(value: &AttributeValue) -> Option<PeerProgress> {
    let fields = value.as_m().ok()?;
    Some(PeerProgress {
        oldest: get_number(fields, "oldest").map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds)),
        pending: get_number(fields, "pending").unwrap_or_default(),
        lanes: get_number(fields, "lanes").unwrap_or_default(),
    })
}

fn map<'a>(row: &'a Row, name: &str) -> Option<&'a HashMap<String, AttributeValue>> {
    row.get(name)?.as_m().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> BTreeMap<String, RouteProgress> {
        let behind = PeerProgress {
            oldest: Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
            pending: 7,
            lanes: 3,
        };
        let caught_up = PeerProgress { lanes: 3, ..PeerProgress::default() };
        let copy = RouteProgress {
            peers: BTreeMap::from([("b".to_owned(), behind), ("c".to_owned(), caught_up)]),
            stopped: BTreeMap::from([("shardId-1".to_owned(), "a gap".to_owned())]),
            trouble: Some("the stream is off".to_owned()),
        };
        BTreeMap::from([("copy".to_owned(), copy), ("idle".to_owned(), RouteProgress::default())])
    }

    #[test]
    fn figures_survive_the_table() {
        let row = Row::from([(PROGRESS.to_owned(), to_attribute(&progress()))]);
        assert_eq!(from_row(&row), progress());
    }

    #[test]
    fn what_another_version_leaves_out_or_adds_is_no_trouble() {
        assert_eq!(from_row(&Row::new()), BTreeMap::new());
        let odd = Row::from([("news".to_owned(), text("x")), ("peers".to_owned(), number(3))]);
        let routes =
            HashMap::from([("copy".to_owned(), AttributeValue::M(odd)), ("bad".to_owned(), text(""))]);
        let row = Row::from([(PROGRESS.to_owned(), AttributeValue::M(routes))]);
        assert_eq!(from_row(&row), BTreeMap::from([("copy".to_owned(), RouteProgress::default())]));
    }

    #[test]
    fn the_row_stays_small() {
        let stopped = (0..50).map(|n| (format!("shard-{n:02}"), "why".to_owned())).collect();
        let progress = RouteProgress { stopped, ..RouteProgress::default() };
        let row = Row::from([(
            PROGRESS.to_owned(),
            to_attribute(&BTreeMap::from([("copy".to_owned(), progress)])),
        )]);
        let read = &from_row(&row)["copy"];
        assert_eq!(read.stopped.len(), STOPPED_NAMED);
    }

    #[test]
    fn the_older_of_two_counts() {
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        let progress = |oldest, pending| PeerProgress { oldest, pending, lanes: 1 };
        let both = progress(at(5), 1).and(&progress(at(3), 2));
        assert_eq!(both, PeerProgress { oldest: at(3), pending: 3, lanes: 2 });
        assert_eq!(progress(None, 0).and(&progress(at(3), 0)).oldest, at(3));
        assert_eq!(progress(None, 0).and(&progress(None, 0)).oldest, None);
    }
}
