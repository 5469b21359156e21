//! The segments that a process holds: which it takes, and what their ends mean for the whole.

use super::picture::Picture;
use super::rows::{Job, Known, Rows, Segment, State};
use super::segment::{End, Shared};
use super::{BackfillError, Ended, copy};
use crate::item::Digest;
use crate::lease::heart::Heart;
use crate::task::Tasks;
use crate::telemetry::metrics::Metrics;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// All rows are read at each look: so many more of them, and there is one look interval more between two.
const ROWS_A_LOOK: u32 = 100;
/// How often it is said that nobody applies what changes.
const REMIND: Duration = Duration::from_secs(60);

/// The segments that this process holds, and the decision about more.
pub(super) struct Crew {
    pub(super) parallel: usize,
    pub(super) grace: Duration,
    pub(super) peer: Option<String>,
    pub(super) request_timeout: Duration,
    pub(super) look_interval: Duration,
    pub(super) job: Job,
    pub(super) shared: Arc<Shared>,
    pub(super) heart: Arc<Heart>,
    pub(super) rows: Rows,
    pub(super) metrics: Metrics,
    pub(super) drain: CancellationToken,
    /// The turn of the route's cutover is over.
    pub(super) moved: CancellationToken,
    pub(super) pictures: watch::Sender<Option<Picture>>,
}

/// What this process knows of segments beside their rows.
#[derive(Default)]
struct Watched {
    /// Those that it works on.
    holding: BTreeSet<u32>,
    /// The epoch of each, and when it was first read with it.
    seen: BTreeMap<u32, (u64, Instant)>,
    /// When it was last said that nobody applies what changes.
    reminded: Option<Instant>,
}

impl Crew {
    /// Works until every segment is done, or something must be decided.
    pub(super) async fn work(&self) -> Result<Ended, BackfillError> {
        let mut tasks = Tasks::new();
        let mut watched = Watched::default();
        let ended = loop {
            match self.step(&mut tasks, &mut watched).await {
                Ok(None) => {}
                Ok(Some(ended)) => break Ok(ended),
                Err(error) => break Err(error),
            }
            let pause = self.look_interval * (2 + self.job.segments / ROWS_A_LOOK);
            tokio::select! {
                biased;
                Some(joined) = tasks.join_next() => match joined {
                    Ok((number, end)) => {
                        watched.holding.remove(&number);
                        match self.ended(end).await {
                            Ok(None) => {}
                            Ok(Some(ended)) => break Ok(ended),
                            Err(error) => break Err(error),
                        }
                    }
                    Err(error) => break Err(error.into()),
                },
                () = self.moved.cancelled() => break Err(BackfillError::Moved(self.shared.route.clone())),
                () = self.drain.cancelled() => break Ok(Ended::Drained),
                () = tokio::time::sleep(pause) => {}
            }
        };
        self.shared.drain.cancel();
        let rest = async { while tasks.join_next().await.is_some() {} };
        // What does not come to rest in time is taken by others once this process's lease has run out.
        if tokio::time::timeout(self.grace, rest).await.is_err() {
            tasks.abort_all().await;
        }
        ended
    }

    /// Looks at the rows, and takes what may be taken.
    async fn step(
        &self,
        tasks: &mut Tasks<(u32, End)>,
        watched: &mut Watched,
    ) -> Result<Option<Ended>, BackfillError> {
        let known = match self.rows.load().await {
            Ok(Some(known)) => known,
            Ok(None) => return Err(BackfillError::Restarted),
            // What is held goes on as long as it may.
            Err(failure) => {
                tracing::warn!(why = %failure, "the rows of the backfill were not read");
                return Ok(None);
            }
        };
        if known.job.run != self.job.run {
            return Err(BackfillError::Restarted);
        }
        let now = self.shared.clock.now();
        let route = &self.shared.route;
        self.metrics
            .backfill_segments
            .with_label_values(&[route])
            .set(i64::from(self.job.segments) - known.segments.iter().filter(|s| s.done).count() as i64);
        self.pictures.send_replace(Some(Picture::of(route, &known, now)));
        match &known.job.state {
            State::Done => return Ok(Some(Ended::Done)),
            State::Stopped(why) => return Ok(Some(Ended::Stopped(why.clone()))),
            State::Running => {}
        }
        if known.is_done() {
            let done = Job { state: State::Done, since: now, ..self.job.clone() };
            if self.rows.set(&done).await.is_ok() {
                let known = Known { job: done, ..known };
                self.pictures.send_replace(Some(Picture::of(route, &known, now)));
                return Ok(Some(Ended::Done));
            }
            return Ok(None);
        }
        self.remind(watched);
        if self.moved.is_cancelled() {
            return Ok(None);
        }
        let Some(fence) = self.heart.fence() else { return Ok(None) };
        for (number, seen) in self.free(&known, watched) {
            if watched.holding.len() >= self.parallel {
                break;
            }
            match self.rows.take(self.job.run, number, seen.as_ref()).await {
                Ok(Some(held)) => {
                    watched.holding.insert(number);
                    let (shared, fence) = (Arc::clone(&self.shared), fence.child_token());
                    let moved = self.moved.clone();
                    tasks.spawn(async move {
                        let mut work = Box::pin(shared.work(held, fence.clone()));
                        let end = tokio::select! {
                            biased;
                            end = &mut work => end,
                            () = moved.cancelled() => {
                                // What is under way is finished, and nothing is begun.
                                fence.cancel();
                                work.await
                            }
                        };
                        (number, end)
                    });
                }
                Ok(None) => {}
                Err(failure) => tracing::warn!(why = %failure, "a segment was not taken"),
            }
        }
        Ok(None)
    }

    /// The segments that this process may take, in an order of its own.
    fn free(&self, known: &Known, watched: &mut Watched) -> Vec<(u32, Option<Segment>)> {
        let now = Instant::now();
        for segment in &known.segments {
            let seen = watched.seen.entry(segment.number).or_insert((segment.epoch, now));
            if seen.0 != segment.epoch {
                *seen = (segment.epoch, now);
            }
        }
        let owners = known.segments.iter().filter_map(|segment| segment.owner.as_deref());
        let dead = self.heart.dead(owners);
        let looked = self.heart.looked();
        let mut rows: BTreeMap<u32, &Segment> = known.segments.iter().map(|s| (s.number, s)).collect();
        let mut hasher = DefaultHasher::new();
        self.heart.worker().hash(&mut hasher);
        let first = (hasher.finish() % u64::from(self.job.segments.max(1))) as u32;
        let numbers = (first..self.job.segments).chain(0..first);
        let free = numbers.filter(|number| !watched.holding.contains(number)).filter_map(|number| {
            let Some(segment) = rows.remove(&number) else { return Some((number, None)) };
            let may = match segment.owner.as_deref() {
                _ if segment.done => false,
                None => true,
                Some(owner) if owner == &**self.heart.worker() => true,
                // It may live again since the look that shows it dead, and hold this only since then.
                Some(owner) => {
                    let since = watched.seen.get(&number).map(|(_, since)| *since);
                    dead.contains(owner) && since.zip(looked).is_some_and(|(since, looked)| since < looked)
                }
            };
            may.then(|| (number, Some(segment.clone())))
        });
        free.collect()
    }

    /// What an end means for the whole.
    async fn ended(&self, end: End) -> Result<Option<Ended>, BackfillError> {
        match end {
            End::Done | End::Rested => Ok(None),
            End::Lost => {
                // Requests that were under way have ended one way or the other before anything is taken again.
                tokio::time::sleep(self.request_timeout).await;
                Ok(None)
            }
            End::Conflicts(counts, some) => {
                let why = conflict(&self.shared.route, self.peer.as_deref(), &counts, &some);
                let stopped = Job {
                    state: State::Stopped(why.clone()),
                    since: self.shared.clock.now(),
                    ..self.job.clone()
                };
                self.rows.set(&stopped).await.map_err(BackfillError::Rows)?;
                if let Some(known) = self.rows.load().await.map_err(BackfillError::Rows)? {
                    let picture = Picture::of(&self.shared.route, &known, self.shared.clock.now());
                    self.pictures.send_replace(Some(picture));
                }
                Ok(Some(Ended::Stopped(why)))
            }
            End::Failed(error) => Err(error.into()),
        }
    }

    fn remind(&self, watched: &mut Watched) {
        let route = &self.shared.route;
        let walked = !self.heart.living(route).is_empty();
        if walked || watched.reminded.is_some_and(|before| before.elapsed() < REMIND) {
            return;
        }
        watched.reminded = Some(Instant::now());
        tracing::warn!(
            route,
            "no worker of the service walks this route: what changes meanwhile is not applied, and leaves the stream \
             after 24 hours; start one: shardwalker run"
        );
    }
}

fn conflict(
    route: &str,
    peer: Option<&str>,
    counts: &BTreeMap<String, u64>,
    some: &[(String, Digest)],
) -> String {
    let counts: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(peer, count)| format!("{count} at {peer}"))
        .collect();
    let some: Vec<String> = some.iter().take(copy::NAMED).map(|(_, key)| key.to_string()).collect();
    let peer = peer.map(|peer| format!(" --peer {peer}")).unwrap_or_default();
    format!(
        "there are items that this replicator did not write and that differ from the source's: {} on one page, with keys \
         of these digests: {}. Decide, and go on with: shardwalker backfill {route}{peer} --on-existing keep|overwrite",
        counts.join(", "),
        some.join(", ")
    )
}
