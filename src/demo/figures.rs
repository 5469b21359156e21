//! What the demo shows: a picture while it runs, and the figures at its end.

use super::compare::Difference;
use super::load::Tally;
use super::observer::Lag;
use serde::Serialize;
use std::time::Duration;

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The replicator starts, and copies what was written before.
    CatchingUp,
    /// The application writes.
    Load,
    /// The application has stopped; the rest is copied.
    Settling,
}

/// A picture of the running demo.
#[derive(Debug, Clone)]
pub struct Progress {
    /// What is going on.
    pub phase: Phase,
    /// Since the load began.
    pub elapsed: Duration,
    /// Writes so far.
    pub writes: u64,
    /// Shards of the stream.
    pub shards: Shards,
    /// The peers, in the route's order.
    pub peers: Vec<PeerProgress>,
}

/// How far a peer is.
#[derive(Debug, Clone)]
pub struct PeerProgress {
    /// Its name.
    pub name: String,
    /// What became of the changes.
    pub changes: Changes,
    /// Of the most recent writes.
    pub lag: Lag,
}

/// Shards of the source's stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Shards {
    /// Those that take records.
    pub open: usize,
    /// Those that were closed by the split.
    pub closed: usize,
}

/// What became of the changes at a peer, in numbers of stream records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Written there.
    pub applied: u64,
    /// Something newer was there.
    pub superseded: u64,
    /// Covered by a later change of the same item, which was written.
    pub folded: u64,
    /// Left out: done before.
    pub skipped: u64,
    /// Kept as dead letters.
    pub dead: u64,
}

impl Changes {
    /// Those that are done.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.applied + self.superseded + self.folded + self.skipped + self.dead
    }
}

/// The figures at the end. Their names are those of `--json`.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// The seed that the writes, the sandbox and the service's pauses came from.
    pub seed: u64,
    /// Whether every member holds the same items.
    pub agree: bool,
    /// Whether all changes were done before the comparison.
    pub caught_up: bool,
    /// Whether a signal ended the load early.
    pub interrupted: bool,
    /// How long the load took, in seconds.
    pub load_seconds: f64,
    /// From the load's end until all changes were done, in seconds.
    pub settle_seconds: f64,
    /// Writes before the service started: the backlog.
    pub backlog: u64,
    /// All writes, the backlog's too.
    pub writes: Tally,
    /// Stream records read.
    pub records_read: u64,
    /// The stream's shards in the end.
    pub shards: Shards,
    /// Shards that were split, and when, in seconds since the load began; none when it was too short.
    pub split: Option<Split>,
    /// At how many members the replicator was denied before the policies were attached.
    pub denied_before_policies: usize,
    /// The role that the replicator ran as.
    pub role: String,
    /// The source.
    pub source: Place,
    /// The peers, in the route's order.
    pub peers: Vec<Peer>,
}

/// The split in the middle.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Split {
    /// Open shards before.
    pub from: usize,
    /// Open shards after.
    pub to: usize,
    /// Seconds since the load began.
    pub at_seconds: f64,
}

/// Where a member is, and how much it holds.
#[derive(Debug, Clone, Serialize)]
pub struct Place {
    /// The member's name.
    pub name: String,
    /// Its account.
    pub account: String,
    /// Its Region.
    pub region: String,
    /// Its table's name.
    pub table: String,
    /// Items in the end.
    pub items: usize,
}

/// What became of a peer.
#[derive(Debug, Clone, Serialize)]
pub struct Peer {
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
    /// What became of the changes.
    pub changes: Changes,
    /// Requests sent to it.
    pub requests: u64,
    /// From a write's acknowledgement at the source until a reader saw it here; the backlog is not measured.
    pub lag: Lag,
    /// How it differs from the source.
    pub difference: Difference,
}
