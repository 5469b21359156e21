//! One route of a worker, from one stream of its source to the next.
//!
//! A stream that was turned off and on is another stream, with a resource policy of its own, and what was written in
//! between is in neither. The old one is read to its end first, while it lasts; then the route stops, or keeps the gap
//! and goes on with the new one, as `on_gap` says.

use super::ServiceError;
use crate::access::needs::READ_STREAM;
use crate::access::preflight::{Found, Stream};
use crate::access::statement::{Side, allow};
use crate::apply::Rules;
use crate::aws::Aws;
use crate::clock::Clock;
use crate::config::{self, Config, OnGap, Start};
use crate::connect::Connector;
use crate::control::Gates;
use crate::dead_letters::DeadLetters;
use crate::failure::{Class, Failure};
use crate::gaps::{Gap, Gaps};
use crate::lease::heart::Heart;
use crate::lease::table::LeaseTable;
use crate::ledger::Ledger;
use crate::limit::Rate;
use crate::memory::Memory;
use crate::replicator::{Replicator, ReplicatorParts, RunEnd};
use crate::retry::{self, Jitter, Policy};
use crate::route::Route;
use crate::starts::{self, Begun};
use crate::state::StateTable;
use crate::stream::list::Lister;
use crate::telemetry::board::Board;
use crate::telemetry::metrics::Metrics;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What routes are made of.
pub(super) struct Builder {
    pub(super) config: Arc<Config>,
    pub(super) aws: Aws,
    pub(super) ledger: Ledger,
    pub(super) gates: Gates,
    pub(super) state: StateTable,
    pub(super) clock: Clock,
    pub(super) jitter: Jitter,
    /// What was found of the members, in their order.
    pub(super) found: Vec<Option<Found>>,
    /// DescribeStream calls, by source account.
    pub(super) budgets: BTreeMap<String, Arc<Rate>>,
    pub(super) heart: Arc<Heart>,
    pub(super) metrics: Metrics,
    pub(super) board: Board,
    pub(super) drain: CancellationToken,
}

/// A route with the stream that it reads first.
pub(super) struct Followed {
    builder: Arc<Builder>,
    route: usize,
    /// The stream's label.
    stream: String,
    replicator: Replicator,
}

impl Followed {
    /// Runs until the worker drains. `first` is called once the route works.
    pub(super) async fn run(self, first: impl FnOnce()) {
        let Self { builder, route, mut stream, mut replicator } = self;
        let mut first = Some(first);
        loop {
            let begun = || {
                if let Some(first) = first.take() {
                    first();
                }
            };
            match replicator.run(begun).await {
                RunEnd::Drained => return,
                RunEnd::StreamEnded => {}
            }
            let Some(next) = builder.next(route, &stream).await else { return };
            let policy = Policy::FOREVER;
            let build = || builder.replicator(route, &next);
            let built = retry::run(policy, &builder.jitter, &builder.drain, |_, _| (), build).await;
            let Ok(next_replicator) = built else { return };
            (stream, replicator) = (next, next_replicator);
        }
    }
}

impl Builder {
    /// A route, with the stream to begin with: the one that it read before, as long as that has something left.
    ///
    /// # Errors
    /// The state table's failures, and [`ServiceError::NewStream`].
    pub(super) async fn route(self: Arc<Self>, route: usize) -> Result<Followed, ServiceError> {
        let config = &self.config.routes[route];
        let latest = self.latest(config)?.label.clone();
        let begun = || starts::begun(&self.state, self.clock, &config.name, &latest);
        let begun = self.patiently(begun).await?;
        let mut stream = latest.clone();
        if let Some(old) = begun.after {
            if self.patiently(|| self.has_more(config, &old)).await? {
                tracing::warn!(
                    route = config.name,
                    old,
                    "the source's stream is a new one; the old one is read to its end first"
                );
                stream = old;
            } else {
                let passed = self.patiently(|| self.pass(config, &old, &latest)).await?;
                passed.ok_or_else(|| self.between(config, &old, &latest))?;
            }
        }
        let replicator = self.patiently(|| self.replicator(route, &stream)).await?;
        Ok(Followed { builder: self, route, stream, replicator })
    }

    /// Tries a step of the start for as long as a start is patient.
    async fn patiently<T, F>(&self, step: impl Fn() -> F) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let policy = Policy::for_at_most(self.config.access_patience);
        Ok(retry::run(policy, &self.jitter, &self.drain, |_, _| (), step).await?)
    }

    fn latest(&self, route: &config::Route) -> Result<&Stream, ServiceError> {
        let found = self.found.get(route.from).and_then(Option::as_ref);
        found.and_then(|found| found.stream.as_ref()).ok_or(ServiceError::Stopped)
    }

    fn arn(&self, route: &config::Route, label: &str) -> String {
        format!("{}/stream/{label}", self.config.members[route.from].arn)
    }

    fn leases(&self, route: &config::Route, label: &str) -> LeaseTable {
        LeaseTable::new(self.state.clone(), &route.name, label, Arc::clone(self.heart.worker()))
    }

    async fn lister(&self, route: &config::Route, label: &str) -> Lister {
        let source = &self.config.members[route.from];
        let streams = self.aws.clients(&source.access).await.streams;
        let rate = || Arc::new(Rate::new(f64::from(self.config.read.describe_rate)));
        let budget = self.budgets.get(&source.arn.account).map_or_else(rate, Arc::clone);
        Lister::new(streams, self.arn(route, label).into(), budget)
    }

    /// Whether there is something left to do in a stream that is off.
    async fn has_more(&self, route: &config::Route, label: &str) -> Result<bool, Failure> {
        match self.lister(route, label).await.all().await {
            // It lasts a day.
            Err(failure) if failure.class == Class::NotFound => return Ok(false),
            _ => {}
        }
        let leases = self.leases(route, label).load().await?.leases;
        let peers = || route.to.iter().map(|index| self.config.members[*index].name.as_str());
        Ok(!leases.iter().all(|lease| lease.done_for(peers())))
    }

    /// Waits for the stream that follows `old`, and for leave to go on with it; `None` when the worker drains.
    async fn next(&self, route: usize, old: &str) -> Option<String> {
        let route = &self.config.routes[route];
        let mut said = None;
        loop {
            match self.find_next(route, old).await {
                Ok(Some(next)) => return Some(next),
                Ok(None) => {}
                Err(why) => {
                    self.board.route_in_trouble(&route.name, &why);
                    if said.as_ref() != Some(&why) {
                        tracing::error!(route = route.name, "{why}");
                        said = Some(why);
                    }
                }
            }
            if !retry::pause(self.jitter.around(self.config.read.list_interval), &self.drain).await {
                return None;
            }
        }
    }

    /// The stream that follows `old`, when there is one that may be read and gone on with.
    async fn find_next(&self, route: &config::Route, old: &str) -> Result<Option<String>, String> {
        let source = &self.config.members[route.from];
        let table = source.arn.to_string();
        let client = self.aws.clients(&source.access).await.tables;
        let answer = client.describe_table().table_name(&table).send().await.map_err(Failure::from);
        let answer = answer.map_err(|failure| failure.to_string())?;
        let Some(new) = answer.table.and_then(|table| table.latest_stream_label) else { return Ok(None) };
        if new == old {
            return Ok(None);
        }
        if let Err(failure) = self.lister(route, &new).await.all().await {
            let arn = self.arn(route, &new);
            if failure.class != Class::Denied {
                return Err(format!("the source's new stream {arn} cannot be read: {failure}"));
            }
            let statement = allow(&READ_STREAM, &arn, Some("<this replicator>"));
            return Err(format!(
                "the source's stream was turned off and on, and the new one has no policy that allows to read it: \
                 {failure}; in {}, add {statement}",
                Side::Stream.place(&source.arn, &source.access)
            ));
        }
        let failed = |failure: Failure| format!("state table: {failure}");
        let Begun { after, .. } =
            starts::begun(&self.state, self.clock, &route.name, &new).await.map_err(failed)?;
        // Another worker may have passed over already.
        if after.is_none() || self.pass(route, old, &new).await.map_err(failed)?.is_some() {
            return Ok(Some(new));
        }
        Err(self.between(route, old, &new).to_string())
    }

    /// Passes over what was written between two streams, when the route goes on over gaps; `None` when it does not.
    async fn pass(&self, route: &config::Route, old: &str, new: &str) -> Result<Option<()>, Failure> {
        if route.on_gap == OnGap::Stop {
            return Ok(None);
        }
        let gap =
            Gap { shard: format!("stream {old}"), after: "its last shards".to_owned(), from: None, to: None };
        let why = self.between(route, old, new);
        tracing::error!(route = route.name, on_gap = ?route.on_gap, "DATA MAY BE MISSING at the peers: {why}");
        if Gaps::new(self.state.clone(), self.clock).keep(&route.name, &gap).await? {
            self.metrics.gaps.with_label_values(&[&route.name]).inc();
        }
        starts::confirm(&self.state, &route.name, new).await?;
        Ok(Some(()))
    }

    fn between(&self, route: &config::Route, old: &str, new: &str) -> ServiceError {
        ServiceError::NewStream {
            route: route.name.clone(),
            member: self.config.members[route.from].name.clone(),
            old: old.to_owned(),
            new: new.to_owned(),
        }
    }

    /// What reads one stream of a route's source.
    async fn replicator(&self, index: usize, label: &str) -> Result<Replicator, Failure> {
        let route = &self.config.routes[index];
        let source = &self.config.members[route.from];
        let connector = Connector {
            config: &self.config,
            aws: &self.aws,
            ledger: self.ledger.clone(),
            state: self.state.clone(),
            gates: Some(&self.gates),
            heart: Some(&self.heart),
            clock: self.clock,
            metrics: &self.metrics,
        };
        let mut peers = Vec::new();
        for &peer in &route.to {
            // Preflight has found every member, or the service was not built.
            if let Some(found) = self.found.get(peer).and_then(Option::as_ref) {
                peers.push(Arc::new(connector.peer(route, peer, found).await));
            }
        }
        let group = match self.found.get(route.from).and_then(Option::as_ref) {
            Some(found) => connector.membership(route, found).await.map(Arc::new),
            None => None,
        };
        // Every peer of every route gets an equal part, so that one that is down fills its own and nobody else's.
        let lanes: usize = self.config.routes.iter().map(|route| route.to.len()).sum();
        let part = (self.config.read.memory_mb as usize) * (1 << 20) / lanes.max(1);
        let memory = peers.iter().map(|_| Memory::new(part)).collect();
        let begun = starts::begun(&self.state, self.clock, &route.name, label).await?;
        let not_before = match route.start {
            Start::TrimHorizon => None,
            Start::Latest => Some(begun.at - starts::MARGIN),
            // Records have whole seconds.
            Start::At(time) => Some(starts::whole_seconds(time)),
        };
        let resolved = Route {
            name: route.name.as_str().into(),
            member: source.number,
            streams: self.aws.clients(&source.access).await.streams,
            stream: self.arn(route, label).into(),
            group,
            peers,
            memory,
            stamp: route.stamp.as_str().into(),
            rules: Rules { ttl_deletes: route.ttl_deletes, not_before },
            start: route.start,
            begun: begun.at,
            on_gap: route.on_gap,
            max_drift: route.max_clock_drift,
            read: self.config.read.clone(),
            write: self.config.write.clone(),
            dead_letters: DeadLetters::new(self.state.clone(), self.clock, self.config.dead_letters.per_key),
            gaps: Gaps::new(self.state.clone(), self.clock),
            clock: self.clock,
            metrics: self.metrics.clone(),
            board: self.board.clone(),
            jitter: self.jitter.clone(),
        };
        Ok(Replicator::new(ReplicatorParts {
            route: Arc::new(resolved),
            lister: self.lister(route, label).await,
            leases: self.leases(route, label),
            heart: Arc::clone(&self.heart),
            drain: self.drain.clone(),
        }))
    }
}
