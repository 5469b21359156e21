//! One route of a worker, from one stream of its source to the next.
//!
//! A stream that was turned off and on is another stream, with a resource policy of its own, and what was written in
//! between is in neither. The old one is read to its end first, while it lasts; then the route stops, or keeps the gap
//! and goes on with the new one, as `on_gap` says.
//!
//! Of a route that has a way back, one of the two directions is walked at a time, from turn to turn of its cutover.

use super::ServiceError;
use crate::access::needs::READ_STREAM;
use crate::access::preflight::{Found, Stream};
use crate::access::statement::{Side, allow};
use crate::apply::Rules;
use crate::aws::Aws;
use crate::clock::Clock;
use crate::config::{self, Config, OnGap, Start};
use crate::connect::Connector;
use crate::control::{ControlRows, Gates};
use crate::cutover::standing::{self, Walk};
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
use crate::shape::Shape;
use crate::starts::{self, Begun};
use crate::state::{Row, StateTable};
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
    /// The shapes of routes that have one, by the routes' names.
    pub(super) shapes: BTreeMap<String, Arc<Shape>>,
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
    /// What it begins with; `None` when it is not its turn.
    begins: Option<Begins>,
}

/// A route in one turn of its cutover: the only one where there is no way back.
struct Begins {
    walk: Walk,
    /// The stream's label.
    stream: String,
    replicator: Replicator,
    /// Cancelled when the worker drains, or the turn is over.
    over: CancellationToken,
}

impl Followed {
    /// Runs until the worker drains. `first` is called once the route works, or when it is not its turn.
    pub(super) async fn run(self, first: impl FnOnce()) {
        let Self { builder, route, mut begins } = self;
        let mut first = Some(first);
        let mut begun = || {
            if let Some(first) = first.take() {
                first();
            }
        };
        if builder.config.routes[route].pair().is_none() {
            if let Some(begins) = begins {
                builder.follow(route, begins, begun).await;
            }
            return;
        }
        let (name, mut rows) = (&builder.config.routes[route].name, builder.heart.controls());
        while let Some(walk) = builder.turn(route, &mut rows, &mut begun).await {
            let begin = || builder.begin(route, walk);
            let ready = match begins.take().filter(|begins| begins.walk == walk) {
                Some(ready) => Ok(ready),
                None => retry::run(Policy::FOREVER, &builder.jitter, &builder.drain, |_, _| (), begin).await,
            };
            let Ok(ready) = ready else { return };
            builder.board.expects(name, builder.config.read.list_interval);
            let over = ready.over.clone();
            let ends = async {
                while builder.walk(route, &rows) == Some(walk) && rows.changed().await.is_ok() {}
                over.cancel();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = builder.follow(route, ready, &mut begun) => {}
                () = ends => {}
            }
            builder.board.forgets(name);
        }
    }
}

impl Builder {
    /// How a route is walked, by the controls that were seen last; `None` when it is not its turn.
    fn walk(&self, route: usize, rows: &ControlRows) -> Option<Walk> {
        let rows = rows.borrow();
        standing::walk(&self.config.routes[route], rows.as_deref()?)
    }

    /// Waits until it is the route's turn; `None` when the worker drains. `waits` is called when it is not yet.
    async fn turn(&self, route: usize, rows: &mut ControlRows, waits: &mut impl FnMut()) -> Option<Walk> {
        loop {
            if self.drain.is_cancelled() {
                return None;
            }
            let known = rows.borrow_and_update().is_some();
            if let Some(walk) = self.walk(route, rows) {
                return Some(walk);
            }
            if known {
                waits();
            }
            tokio::select! {
                biased;
                () = self.drain.cancelled() => return None,
                changed = rows.changed() => changed.ok()?,
            }
        }
    }

    /// Follows the route's source from one stream to the next, until its turn is over.
    async fn follow(&self, route: usize, begins: Begins, mut begun: impl FnMut()) {
        let Begins { walk, mut stream, mut replicator, over } = begins;
        loop {
            match replicator.run(&mut begun).await {
                RunEnd::Drained => return,
                RunEnd::StreamEnded => {}
            }
            let Some(next) = self.next(route, &stream, &over).await else { return };
            let build = || self.replicator(route, &next, walk, over.clone());
            let built = retry::run(Policy::FOREVER, &self.jitter, &over, |_, _| (), build).await;
            let Ok(next_replicator) = built else { return };
            (stream, replicator) = (next, next_replicator);
        }
    }

    /// A route at the beginning of a later turn, which was pinned to a stream.
    async fn begin(&self, route: usize, walk: Walk) -> Result<Begins, Failure> {
        let config = &self.config.routes[route];
        let latest = || self.latest(config).map(|stream| stream.label.clone()).unwrap_or_default();
        let stream = starts::newest(&self.state, &config.name).await?.unwrap_or_else(latest);
        let over = self.drain.child_token();
        let replicator = self.replicator(route, &stream, walk, over.clone()).await?;
        Ok(Begins { walk, stream, replicator, over })
    }

    /// A route, with the stream to begin with: the one that it read before, as long as that has something left.
    ///
    /// # Errors
    /// The state table's failures, and [`ServiceError::NewStream`].
    pub(super) async fn route(self: Arc<Self>, route: usize, rows: &[Row]) -> Result<Followed, ServiceError> {
        let config = &self.config.routes[route];
        let Some(walk) = standing::walk(config, rows) else {
            return Ok(Followed { builder: self, route, begins: None });
        };
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
        let over = self.drain.child_token();
        let replicator = self.patiently(|| self.replicator(route, &stream, walk, over.clone())).await?;
        let begins = Some(Begins { walk, stream, replicator, over });
        Ok(Followed { builder: self, route, begins })
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
        Ok(!leases.iter().all(|lease| lease.done_for(self.config.destinations(route))))
    }

    /// Waits for the stream that follows `old`, and for leave to go on with it; `None` when the turn is over.
    async fn next(&self, route: usize, old: &str, over: &CancellationToken) -> Option<String> {
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
            if !retry::pause(self.jitter.around(self.config.read.list_interval), over).await {
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
        let gap = Gap {
            shard: format!("stream {old}"),
            after: "its last shards".to_owned(),
            from: None,
            to: None,
            peers: Vec::new(),
        };
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
    async fn replicator(
        &self,
        index: usize,
        label: &str,
        walk: Walk,
        over: CancellationToken,
    ) -> Result<Replicator, Failure> {
        let route = &self.config.routes[index];
        // A turn begins with what is written from its pin on.
        let start = if walk.turn == 0 { route.start } else { Start::Latest };
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
        let lanes = self.config.lanes().count();
        let part = (self.config.read.memory_mb as usize) * (1 << 20) / lanes.max(1);
        let mut feeds = Vec::new();
        for index in &route.feeds {
            feeds.push(Arc::new(connector.feed(route, &self.config.feeds[*index]).await?));
        }
        let memory = (0..peers.len() + feeds.len()).map(|_| Memory::new(part)).collect();
        let begun = starts::begun(&self.state, self.clock, &route.name, label).await?;
        let not_before = match start {
            Start::TrimHorizon => None,
            Start::Latest => Some(begun.at - starts::MARGIN),
            // Records have whole seconds.
            Start::At(time) => Some(starts::whole_seconds(time)),
        };
        let shape = self.shapes.get(&route.name).map(Arc::clone);
        let resolved = Route {
            name: route.name.as_str().into(),
            member: source.number,
            streams: self.aws.clients(&source.access).await.streams,
            stream: self.arn(route, label).into(),
            group,
            peers,
            feeds,
            memory,
            stamp: route.stamp.as_str().into(),
            rules: Rules { ttl_deletes: route.ttl_deletes, not_before, shape },
            start,
            floor: walk.floor,
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
            drain: over,
        }))
    }
}
