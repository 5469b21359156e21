//! A route's peer, made from the config and what was found of its table: the same for the service and for commands
//! that write without one.

use crate::access::preflight::Found;
use crate::aws::Aws;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::control::Gates;
use crate::guard::Guard;
use crate::lease::heart::Heart;
use crate::ledger::Ledger;
use crate::peer::{Peer, PeerParts};
use crate::telemetry::metrics::Metrics;
use std::sync::Arc;

/// Makes peers.
pub struct Connector<'a> {
    /// The config.
    pub config: &'a Config,
    /// Makes the clients.
    pub aws: &'a Aws,
    /// The tombstones.
    pub ledger: Ledger,
    /// Who may start anything new; `None` where nobody pauses.
    pub gates: Option<&'a Gates>,
    /// The worker's right to write; `None` where no lease gives it.
    pub heart: Option<&'a Arc<Heart>>,
    /// The clock.
    pub clock: Clock,
    /// The metrics.
    pub metrics: &'a Metrics,
}

impl Connector<'_> {
    /// The peer at `index` of the config's members, as `route` writes to it. Sends nothing.
    pub async fn peer(&self, route: &config::Route, index: usize, found: &Found) -> Peer {
        let member = &self.config.members[index];
        let guard = route.guard.clone().zip(self.gates).map(|(limits, gates)| {
            Guard::new(&route.name, &member.name, limits, gates.clone(), self.clock, self.metrics.clone())
        });
        Peer::new(PeerParts {
            name: member.name.clone(),
            client: self.aws.clients(&member.access).await.tables,
            table: member.arn.to_string(),
            partition_key: found.keys.first().map(|(name, _)| name.clone()).unwrap_or_default(),
            stamp: route.stamp.clone(),
            max_drift: route.max_clock_drift,
            max_writes: route.max_writes.get(&index).copied(),
            gate: self.gates.map(|gates| gates.gate(&route.name, &member.name)),
            guard,
            heart: self.heart.map(Arc::clone),
            clock: self.clock,
            ledger: self.ledger.clone(),
            requests: self.metrics.peer_requests.with_label_values(&[&route.name, &member.name]),
        })
    }
}
