//! What is going on in all workers together, as the state table alone shows it.
//!
//! [`progress`] is what each worker publishes of itself with every beat. [`Reader`] reads all that is known, [`look`],
//! and [`assemble()`] makes a [`Status`] of it, pure: who holds what, how far each peer is, and what needs an operator.
//!
//! Whether a worker lives is judged by the age of its last beat, as its own clock wrote it. Clocks of machines differ,
//! so one that looks dead is looked at again a beat later: if its counter has moved it lives. Leases go by counters
//! only; this is for people.
//!
//! [`look`]: Reader::look

pub mod progress;

mod assemble;
mod reader;
mod wait;

pub use assemble::assemble;
pub use reader::{LeaseRow, Look, Reader, RouteLook, WorkerRow};
pub use wait::moved;

use crate::backfill::Picture;
use crate::control::Pause;
use serde::Serialize;
use std::collections::BTreeMap;

/// Everything together. Serialises to what `status --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// The workers by name.
    pub workers: BTreeMap<String, Worker>,
    /// The routes of the config, by name.
    pub routes: BTreeMap<String, Route>,
    /// What needs an operator, with the remedy; empty when nothing does.
    pub problems: Vec<Problem>,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Worker {
    /// Whether it has beaten within a lease's duration.
    pub alive: bool,
    /// Seconds since its last beat, by its clock and this one's.
    pub beat_seconds_ago: u64,
    /// Shards that it holds, by route.
    pub shards: BTreeMap<String, usize>,
    /// Whether it is a process of a backfill, which walks no shards.
    pub backfill: bool,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Route {
    /// Whether it is not walked: writers are at the other side of its cutover, or it is finished.
    pub idle: bool,
    /// Shards that are not done at every peer.
    pub shards: Vec<Shard>,
    /// Shards that are done at every peer, and still remembered.
    pub done: usize,
    /// How far each peer is, by name.
    pub peers: BTreeMap<String, Peer>,
    /// Ranges of records that were lost unread.
    pub gaps: Vec<Gap>,
    /// How far its backfills are: the last one to all peers, and to each peer alone.
    pub backfills: Vec<Picture>,
}

/// A shard that is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shard {
    /// Its id.
    pub shard: String,
    /// Who holds it.
    pub owner: Option<String>,
    /// Why it waits for an operator, when it does.
    pub stopped: Option<String>,
    /// The checkpoint of each peer.
    pub peers: BTreeMap<String, Checkpoint>,
}

/// How far a peer of a shard is for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// The last record that is done.
    pub sequence: Option<String>,
    /// When it was created (RFC 3339).
    pub created: Option<String>,
    /// Whether the shard is done.
    pub done: bool,
}

/// How far a peer is, over all shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Whether all that the stream has is applied, as of the last beats.
    pub caught_up: bool,
    /// How old the oldest record is that may not be applied; 0 when caught up.
    pub lag_seconds: u64,
    /// Until that record leaves the stream.
    pub time_to_loss_seconds: u64,
    /// Changes that workers have read and not applied.
    pub pending: u64,
    /// Why it is paused.
    pub paused: Option<Pause>,
    /// Its dead letters.
    pub dead_letters: DeadLetters,
}

/// How many dead letters a peer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct DeadLetters {
    /// Keys that have any.
    pub keys: u64,
    /// Letters that the peer refused.
    pub refused: u64,
    /// Letters that wait behind those.
    pub behind: u64,
}

/// A gap, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The shard, or the stream that was replaced.
    pub shard: String,
    /// The last record that was read.
    pub after: String,
    /// When that one was created.
    pub from: String,
    /// When the first one that was left was created.
    pub to: String,
    /// The peers and feeds that lack the records, in order; none when it is all of the route.
    pub peers: Vec<String>,
    /// When the gap was found.
    pub found: String,
    /// When an operator settled it, and who.
    pub settled: Option<String>,
}

/// What needs an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Status {
    /// Whether every peer of every route that is walked has all that its stream has.
    #[must_use]
    pub fn caught_up(&self) -> bool {
        let walked = self.routes.values().filter(|route| !route.idle);
        walked.flat_map(|route| route.peers.values()).all(|peer| peer.caught_up)
    }

    /// Whether there is a backfill, and all of them are done.
    #[must_use]
    pub fn backfilled(&self) -> bool {
        let mut backfills = self.routes.values().flat_map(|route| &route.backfills).peekable();
        backfills.peek().is_some() && backfills.all(|backfill| backfill.state == "done")
    }
}
