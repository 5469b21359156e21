//! A route's peer, made from the config and what was found of its table: the same for the service and for commands
//! that write without one.

use crate::access::preflight::Found;
use crate::aws::Aws;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::conflicts::Journal;
use crate::control::{Gates, Pause};
use crate::failure::Failure;
use crate::feed::Feed;
use crate::feed::parquet::Schemas;
use crate::feed::store::Store;
use crate::group::apply::Membership;
use crate::group::breaker::Breaker;
use crate::guard::Guard;
use crate::lease::heart::Heart;
use crate::ledger::Ledger;
use crate::peer::{Peer, PeerParts};
use crate::state::StateTable;
use crate::telemetry::metrics::Metrics;
use std::sync::Arc;
use tokio::sync::{OnceCell, Semaphore, watch};

/// Makes peers.
pub struct Connector<'a> {
    /// The config.
    pub config: &'a Config,
    /// Makes the clients.
    pub aws: &'a Aws,
    /// The tombstones.
    pub ledger: Ledger,
    /// The state table.
    pub state: StateTable,
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
        let gate = self.gates.map(|gates| gates.gate(&route.name, &member.name));
        let guard = route.guard.clone().zip(self.gates).map(|(limits, gates)| {
            Guard::new(&route.name, &member.name, limits, gates.clone(), self.clock, self.metrics.clone())
        });
        self.writer(route, index, found, gate, guard).await
    }

    /// A feed as `route` writes to it. Sends nothing.
    ///
    /// # Errors
    /// Why its place cannot be used.
    pub async fn feed(&self, route: &config::Route, settings: &config::Feed) -> Result<Feed, Failure> {
        let gate = self.gates.map(|gates| gates.gate(&route.name, &settings.name));
        Ok(Feed {
            member: self.config.members[route.from].name.clone(),
            store: Store::open(settings, self.aws).await?,
            gate: gate.unwrap_or_else(|| watch::channel(None).1),
            schema: OnceCell::new(),
            schemas: Schemas::new(self.state.clone(), &route.name, &settings.name),
            held: Arc::default(),
            encoding: Arc::new(Semaphore::new(1)),
            settings: settings.clone(),
        })
    }

    /// What a route of a group has beside its peers; `None` on a one-way route.
    pub async fn membership(&self, route: &config::Route, found: &Found) -> Option<Membership> {
        route.group?;
        let number = |index: &usize| self.config.members[*index].number;
        Some(Membership {
            number: number(&route.from),
            home: self.member(route, route.from, found).await,
            peers: route.to.iter().map(number).collect(),
            journal: self.journal(self.config.groups.get(route.group?)?),
            breaker: Breaker::new(&route.name, self.gates.cloned(), self.clock),
        })
    }

    fn journal(&self, group: &config::Group) -> Journal {
        let members = group.members.iter().map(|index| &self.config.members[*index]);
        let members = members.map(|member| (member.number, member.name.clone())).collect();
        let (state, metrics) = (self.state.clone(), self.metrics.clone());
        Journal::new(group, members, state, self.clock, metrics)
    }

    /// The member at `index`, for commands that read it and now and then write. Sends nothing.
    pub async fn member(&self, route: &config::Route, index: usize, found: &Found) -> Peer {
        self.writer(route, index, found, None, None).await
    }

    /// A member, as `route` writes to it.
    async fn writer(
        &self,
        route: &config::Route,
        index: usize,
        found: &Found,
        gate: Option<watch::Receiver<Option<Pause>>>,
        guard: Option<Guard>,
    ) -> Peer {
        let member = &self.config.members[index];
        let group = route.group.and_then(|group| self.config.groups.get(group));
        Peer::new(PeerParts {
            name: member.name.clone(),
            // No member's name has a slash.
            scope: group.map_or_else(|| member.name.clone(), |group| format!("group/{}", group.name)),
            client: self.aws.clients(&member.access).await.tables,
            table: member.arn.to_string(),
            partition_key: found.keys.first().map(|(name, _)| name.clone()).unwrap_or_default(),
            stamp: route.stamp.clone(),
            // What is written to the source, by a way back or a group, is told by its stamps.
            pristine: route.pristine && index != route.from,
            max_drift: route.max_clock_drift,
            max_writes: route.max_writes.get(&index).copied(),
            gate,
            guard,
            heart: self.heart.map(Arc::clone),
            clock: self.clock,
            ledger: self.ledger.clone(),
            requests: self.metrics.peer_requests.with_label_values(&[&route.name, &member.name]),
        })
    }
}
