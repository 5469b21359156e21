//! Which backfill a process works on: one that is there, or one that it begins; and the end of those before it.

use super::begin::Parts;
use super::rows::{Job, Known, Rows, State};
use super::{BackfillError, Request};
use crate::config::Config;
use crate::failure::{Class, Failure};
use crate::item::Key;
use crate::lease::heart::Heart;
use crate::obeyed;
use crate::retry::{self, Jitter, Policy};
use crate::shape::accepted::{self, Identity};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Finds the backfill that is asked for, or begins it.
pub(super) struct Join<'a> {
    pub(super) request: &'a Request,
    pub(super) fresh: Job,
    pub(super) heart: &'a Heart,
    pub(super) rows: &'a Rows,
    pub(super) parts: &'a Parts,
}

impl Join<'_> {
    /// The backfill to work on; `None` when it is done.
    ///
    /// # Errors
    /// [`BackfillError`].
    pub(super) async fn find(&self, config: &Config, jitter: &Jitter) -> Result<Option<Job>, BackfillError> {
        let cancel = CancellationToken::new();
        let policy = Policy::for_at_most(config.access_patience);
        let load = || self.rows.load();
        let mut restart = self.request.restart;
        loop {
            let known = retry::run(policy, jitter, &cancel, |_, _| (), load).await?;
            let again = known
                .as_ref()
                .is_some_and(|known| known.job.shape == self.fresh.shape && known.job.state != State::Done);
            // That the items are given another shape is asked for in so many words.
            if let Some(pause) = self.parts.changed.values().next().filter(|_| !restart && !again) {
                return Err(BackfillError::Shape(pause.why.clone()));
            }
            let (job, before) = match known {
                None => (self.fresh.clone(), None),
                Some(known) if restart => {
                    let run = known.job.run + 1;
                    self.idle(run, &config.lease).await?;
                    let existing = self.request.existing.unwrap_or(known.job.existing);
                    (Job { run, existing, ..self.fresh.clone() }, Some(known.job.run))
                }
                Some(known) => {
                    let joined = self.join(known).await?;
                    if let Some(job) = &joined {
                        self.accept(config, jitter).await?;
                        // Whoever began it may have died before it came to that.
                        self.end_before(job.run, &config.lease).await?;
                    }
                    return Ok(joined);
                }
            };
            let begin = || self.rows.begin(&job, before);
            if !retry::run(policy, jitter, &cancel, |_, _| (), begin).await? {
                // Another process was faster, or an answer was lost: it is joined.
                restart = false;
                continue;
            }
            self.accept(config, jitter).await?;
            // Somebody may have joined the run before while this one began.
            self.end_before(job.run, &config.lease).await?;
            tracing::info!(
                route = self.request.route,
                segments = job.segments,
                run = job.run,
                "the backfill begins"
            );
            return Ok(Some(job));
        }
    }

    /// Accepts the shape in which the items are put from now on, once it is written down that they are.
    async fn accept(&self, config: &Config, jitter: &Jitter) -> Result<(), BackfillError> {
        let Parts { route, changed, state, clock, shape, .. } = self.parts;
        if changed.is_empty() {
            return Ok(());
        }
        let identity = shape.as_ref().map_or_else(Identity::none, |shape| shape.identity().clone());
        let cancel = CancellationToken::new();
        for peer in changed.keys().filter_map(|scope| scope.peer.as_deref()) {
            let accept = || accepted::accept(state, *clock, &route.name, peer, &identity, "a backfill");
            let policy = Policy::for_at_most(config.access_patience);
            retry::run(policy, jitter, &cancel, |_, _| (), accept).await?;
            tracing::info!(route = route.name, peer, "the new shape is accepted");
        }
        let within = config.lease.duration * 2;
        let others = obeyed::everywhere(state, &config.lease, within, jitter, &cancel).await?;
        if let Some(other) = others.into_iter().next() {
            return Err(BackfillError::Unheard(other));
        }
        // What workers with the old shape had begun before they saw it has ended by then.
        tokio::time::sleep(config.lease.renew_interval * 2 + config.write.request_timeout).await;
        Ok(())
    }

    async fn join(&self, known: Known) -> Result<Option<Job>, BackfillError> {
        let Known { job, .. } = known;
        if job.source != self.fresh.source {
            return Err(BackfillError::Other(format!("from {}", job.source)));
        }
        if !job.peers.keys().eq(self.fresh.peers.keys()) {
            let peers: Vec<&str> = job.peers.keys().map(String::as_str).collect();
            return Err(BackfillError::Other(format!("to {}", peers.join(", "))));
        }
        if job.peers != self.fresh.peers {
            return Err(BackfillError::Replaced("a peer's table was deleted and made again"));
        }
        if job.table != self.fresh.table {
            return Err(BackfillError::Replaced("the source's table was deleted and made again"));
        }
        if job.stream != self.fresh.stream {
            return Err(BackfillError::Replaced("the source's stream was turned off and on"));
        }
        if job.shape != self.fresh.shape {
            return Err(BackfillError::Replaced("the route's shape was changed"));
        }
        if job.state == State::Done {
            return Ok(None);
        }
        if self.request.segments.is_some_and(|segments| segments != job.segments) {
            return Err(BackfillError::Other(format!("in {} segments", job.segments)));
        }
        let existing = self.request.existing.unwrap_or(job.existing);
        if job.state == State::Running && existing == job.existing {
            return Ok(Some(job));
        }
        if job.state == State::Running {
            return Err(BackfillError::Other(format!("with --on-existing {}", job.existing.name())));
        }
        let now = self.parts.clock.now();
        let job = Job { existing, state: State::Running, since: now, ..job };
        if !self.rows.set(&job).await.map_err(BackfillError::Rows)? {
            return Err(BackfillError::Restarted);
        }
        Ok(Some(job))
    }

    /// Waits until it is sure that nobody works on the runs before one; gives the rows of their segments.
    async fn idle(&self, run: u64, lease: &crate::config::Lease) -> Result<Vec<String>, BackfillError> {
        let (begun, most) = (Instant::now(), lease.duration + lease.look_interval * 5);
        let mut read = begun;
        let mut rows = self.rows.earlier(run).await.map_err(BackfillError::Rows)?;
        loop {
            let owners: Vec<&str> = rows.iter().filter_map(|(_, owner)| owner.as_deref()).collect();
            let dead = self.heart.dead(owners.iter().copied());
            // By a look before the rows were read, one may be dead that lives again since.
            let looked = self.heart.looked().is_some_and(|looked| looked > read);
            match owners.iter().find(|owner| !looked || !dead.contains(**owner)) {
                None => return Ok(rows.into_iter().map(|(sort, _)| sort).collect()),
                Some(living) if begun.elapsed() > most => {
                    return Err(BackfillError::Busy((*living).to_owned()));
                }
                Some(_) => tokio::time::sleep(lease.look_interval.min(Duration::from_secs(1))).await,
            }
            if looked {
                read = Instant::now();
                rows = self.rows.earlier(run).await.map_err(BackfillError::Rows)?;
            }
        }
    }

    /// Ends the runs before one: what they were about to create and may not have looked up in the ledger is looked up
    /// once nobody works on them. Doing it again changes nothing.
    async fn end_before(&self, run: u64, lease: &crate::config::Lease) -> Result<(), BackfillError> {
        let segments = self.idle(run, lease).await?;
        for (sort, keys) in self.rows.earlier_keys(run).await.map_err(BackfillError::Rows)? {
            for key in &keys {
                self.settle(key).await.map_err(BackfillError::Rows)?;
            }
            if self.heart.fence().is_none() {
                let why = "this process's row in the state table was not renewed in time";
                return Err(BackfillError::Rows(Failure::new(Class::Transient, "NotAlive", why)));
            }
            self.rows.forget_keys(&sort).await.map_err(BackfillError::Rows)?;
        }
        for sort in &segments {
            self.rows.forget(sort).await.map_err(BackfillError::Rows)?;
        }
        Ok(())
    }

    async fn settle(&self, key: &Key) -> Result<(), Failure> {
        let mirror = self.parts.mirror();
        for peer in &self.parts.peers {
            let settled = match &mirror {
                Some(mirror) => mirror.settle(peer, key).await,
                None => peer.settle(key, crate::version::Version::default()).await.map(drop),
            };
            settled.map_err(|error| error.failure().clone())?;
        }
        Ok(())
    }
}
