//! A route as the running service knows it: resolved, with its clients, shared by its walkers.

use crate::apply::Rules;
use crate::clock::Clock;
use crate::config::{OnGap, Read, Start, Write};
use crate::dead_letters::DeadLetters;
use crate::feed::Feed;
use crate::gaps::Gaps;
use crate::group::apply::Membership;
use crate::memory::Memory;
use crate::peer::Peer;
use crate::retry::Jitter;
use crate::telemetry::board::Board;
use crate::telemetry::metrics::Metrics;
use crate::version::Hlc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// One route: a source's stream, and the peers that its changes go to.
#[derive(Debug)]
pub struct Route {
    /// Its name.
    pub name: Arc<str>,
    /// The number of the source member in versions.
    pub member: u8,
    /// A client of the source's streams.
    pub streams: aws_sdk_dynamodbstreams::Client,
    /// The stream's ARN.
    pub stream: Arc<str>,
    /// What it has beside its peers in a group; `None` on a one-way route.
    pub group: Option<Arc<Membership>>,
    /// The peers, in the order of the config.
    pub peers: Vec<Arc<Peer>>,
    /// The feeds, in the order of the config.
    pub feeds: Vec<Arc<Feed>>,
    /// The bound on what is held for each of the peers and then of the feeds, in the same order.
    pub memory: Vec<Memory>,
    /// The stamp attribute's name.
    pub stamp: Arc<str>,
    /// What applies to single changes.
    pub rules: Rules,
    /// Where shards that the stream had when the route began are read from.
    pub start: Start,
    /// Versions begin above this.
    pub floor: Hlc,
    /// When the first worker of the route saw the stream first.
    pub begun: SystemTime,
    /// What happens when records were trimmed before they were read.
    pub on_gap: OnGap,
    /// How far ahead of a record's creation a stamp is believed.
    pub max_drift: Duration,
    /// Reading.
    pub read: Read,
    /// Writing.
    pub write: Write,
    /// Where to keep what peers refuse.
    pub dead_letters: DeadLetters,
    /// Where to keep what was trimmed.
    pub gaps: Gaps,
    /// The worker's clock.
    pub clock: Clock,
    /// The worker's metrics.
    pub metrics: Metrics,
    /// What the worker shows of its work.
    pub board: Board,
    /// Seeded pauses.
    pub jitter: Jitter,
}

impl Route {
    /// The names of the peers and then of the feeds, in order: of all that have a lane on each shard.
    #[must_use]
    pub fn peer_names(&self) -> Vec<&str> {
        self.peers.iter().map(|peer| peer.name()).chain(self.feeds.iter().map(|feed| feed.name())).collect()
    }
}
