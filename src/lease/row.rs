//! A lease's row: its meaning, and its form in the state table.

use crate::change::SequenceNumber;
use crate::failure::{Class, Failure};
use crate::lane::Position;
use crate::state::{EXPIRES, Row, get_number, get_text, number, text};
use crate::stream::graph::Shard;
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The lease on one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The shard's id.
    pub shard: String,
    /// The shard that it came from.
    pub parent: Option<String>,
    /// The worker that holds it.
    pub owner: Option<String>,
    /// Rises with every change of owner: the fencing token.
    pub epoch: u64,
    /// Whether the stream had this shard when the route began: then nothing before it was ever expected.
    pub initial: bool,
    /// Whether the shard takes no more records, as the last listing said.
    pub closed: bool,
    /// Whether the stream lists the shard no more: its records have aged out.
    pub gone: bool,
    /// The worker that the last owner handed a free lease to; others leave it alone for a while.
    pub handoff: Option<String>,
    /// When the row may be deleted, in seconds since 1970: there once the shard was read to its end.
    pub expires: Option<u64>,
    /// How far each peer is, by the peer's name.
    pub peers: BTreeMap<String, PeerPosition>,
}

/// How far one peer of a shard is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerPosition {
    /// The contiguous frontier.
    pub position: Position,
    /// Whether the shard was read to its end and all of it is done.
    pub done: bool,
}

impl Lease {
    /// A row that nobody has taken yet, with nothing done.
    #[must_use]
    pub fn new(shard: &Shard) -> Self {
        Self {
            shard: shard.id.clone(),
            parent: shard.parent.clone(),
            owner: None,
            epoch: 0,
            initial: false,
            closed: shard.closed,
            gone: false,
            handoff: None,
            expires: None,
            peers: BTreeMap::new(),
        }
    }

    /// Whether all of these peers have done the whole shard.
    pub fn done_for<'a>(&self, peers: impl IntoIterator<Item = &'a str>) -> bool {
        peers.into_iter().all(|peer| self.peers.get(peer).is_some_and(|p| p.done))
    }
}

pub(super) const OWNER: &str = "owner";
pub(super) const EPOCH: &str = "epoch";
pub(super) const PEERS: &str = "peers";
const SHARD: &str = "shard";
const PARENT: &str = "parent";
const INITIAL: &str = "initial";
pub(super) const CLOSED: &str = "closed";
pub(super) const GONE: &str = "gone";
pub(super) const HANDOFF: &str = "handoff";
const SEQUENCE: &str = "sequence";
/// The clock after the frontier's record, within a peer's map.
pub(super) const HLC: &str = "hlc";
const CREATED: &str = "created";
/// Whether all of the shard is done, within a peer's map.
pub(super) const DONE: &str = "done";

/// A row's attributes but its keys.
pub(super) fn to_row(lease: &Lease) -> Row {
    let peers = lease.peers.iter().map(|(name, peer)| (name.clone(), peer_value(peer))).collect();
    let mut row = HashMap::from([
        (SHARD.to_owned(), text(&lease.shard)),
        (EPOCH.to_owned(), number(lease.epoch)),
        (INITIAL.to_owned(), AttributeValue::Bool(lease.initial)),
        (CLOSED.to_owned(), AttributeValue::Bool(lease.closed)),
        (GONE.to_owned(), AttributeValue::Bool(lease.gone)),
        (PEERS.to_owned(), AttributeValue::M(peers)),
    ]);
    if let Some(parent) = &lease.parent {
        row.insert(PARENT.to_owned(), text(parent));
    }
    if let Some(owner) = &lease.owner {
        row.insert(OWNER.to_owned(), text(owner));
    }
    if let Some(target) = &lease.handoff {
        row.insert(HANDOFF.to_owned(), text(target));
    }
    if let Some(expires) = lease.expires {
        row.insert(EXPIRES.to_owned(), number(expires));
    }
    row
}

/// Reads a row.
///
/// # Errors
/// When it is not one that [`to_row`] made.
pub(crate) fn from_row(row: &Row) -> Result<Lease, Failure> {
    let bad = |what: &str| {
        Failure::new(Class::Unrecognised, "BadLease", format!("a lease in the state table has no {what}"))
    };
    let shard = get_text(row, SHARD).ok_or_else(|| bad(SHARD))?.to_owned();
    let peers = row.get(PEERS).and_then(|v| v.as_m().ok()).ok_or_else(|| bad(PEERS))?;
    let peer = |(name, value): (&String, &AttributeValue)| {
        let fields = value.as_m().map_err(|_| bad(name))?;
        Ok((name.clone(), peer_position(fields).ok_or_else(|| bad(name))?))
    };
    let flag = |name: &str| row.get(name).and_then(|v| v.as_bool().ok()).copied().unwrap_or_default();
    Ok(Lease {
        shard,
        parent: get_text(row, PARENT).map(str::to_owned),
        owner: get_text(row, OWNER).map(str::to_owned),
        epoch: get_number(row, EPOCH).ok_or_else(|| bad(EPOCH))?,
        initial: flag(INITIAL),
        closed: flag(CLOSED),
        gone: flag(GONE),
        handoff: get_text(row, HANDOFF).map(str::to_owned),
        expires: get_number(row, EXPIRES),
        peers: peers.iter().map(peer).collect::<Result<_, Failure>>()?,
    })
}

pub(super) fn peer_value(peer: &PeerPosition) -> AttributeValue {
    let mut fields = HashMap::from([
        (HLC.to_owned(), text(peer.position.hlc.to_string())),
        (DONE.to_owned(), AttributeValue::Bool(peer.done)),
    ]);
    if let Some(sequence) = &peer.position.sequence {
        fields.insert(SEQUENCE.to_owned(), text(sequence.as_str()));
    }
    if let Some(created) = peer.position.created {
        let seconds = created.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        fields.insert(CREATED.to_owned(), number(seconds));
    }
    AttributeValue::M(fields)
}

fn peer_position(fields: &Row) -> Option<PeerPosition> {
    let sequence = match get_text(fields, SEQUENCE) {
        Some(text) => Some(SequenceNumber::parse(text)?),
        None => None,
    };
    let created: Option<SystemTime> =
        get_number(fields, CREATED).map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
    let hlc = get_text(fields, HLC)?.parse().ok()?;
    let done = fields.get(DONE).and_then(|v| v.as_bool().ok()).copied()?;
    Some(PeerPosition { position: Position { sequence, hlc, created }, done })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Hlc;

    #[test]
    fn rows_survive_the_table() {
        let position = Position {
            sequence: SequenceNumber::parse("0123456789012345678901"),
            hlc: Hlc::from_millis(1_700_000_000_123).next(),
            created: Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        };
        let lease = Lease {
            shard: "shardId-1".into(),
            parent: Some("shardId-0".into()),
            owner: Some("me".into()),
            epoch: 7,
            initial: true,
            closed: true,
            gone: true,
            handoff: Some("other".into()),
            expires: Some(1_800_000_000),
            peers: BTreeMap::from([
                ("b".to_owned(), PeerPosition { position, done: false }),
                ("c".to_owned(), PeerPosition { done: true, ..PeerPosition::default() }),
            ]),
        };
        assert_eq!(from_row(&to_row(&lease)), Ok(lease.clone()));
        let bare = Lease::new(&Shard { id: "shardId-2".into(), parent: None, closed: false });
        assert_eq!(from_row(&to_row(&bare)), Ok(bare));
    }

    #[test]
    fn a_foreign_row_is_refused() {
        assert_eq!(from_row(&Row::new()).unwrap_err().code, "BadLease");
    }
}
