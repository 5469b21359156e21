//! The sequence: from step to step, each of which says what it did, refuses with what to do, or fails and can be repeated.
//!
//! `proof` has the steps that find out what holds, `writers` those that keep writers out and let them in again.

mod proof;
mod writers;

use super::rows::{MOVED, Standings};
use super::standing::{Event, Standing, Step, way_back};
use super::{CutoverError, Goal, Refusal, Report, Request};
use crate::aws::{Aws, Base};
use crate::config::{Config, Member, Route};
use crate::failure::Failure;
use crate::retry::{self, Jitter, Policy};
use crate::service::Options;
use crate::state::StateTable;
use crate::status::{Reader, Status};
use crate::telemetry::metrics::Metrics;
use aws_sdk_dynamodb::Client;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// For how long a call that fails is tried again.
const PATIENCE: Duration = Duration::from_secs(120);

/// A step's outcome: what it did, or why it does not go on.
type Outcome = Result<Result<String, Refusal>, CutoverError>;

struct Guide<'t> {
    /// With the route and its way back alone.
    config: Config,
    request: Request,
    options: Options,
    aws: Aws,
    jitter: Jitter,
    state: StateTable,
    standings: Standings,
    cancel: CancellationToken,
    standing: Standing,
    done: Vec<String>,
    tell: &'t mut (dyn FnMut(&str) + Send),
}

/// Goes on with a route's cutover as far as it can; `tell` hears of each step when it is done.
///
/// # Errors
/// [`CutoverError`]; that a check does not hold is no error, but [`Report::refused`].
pub async fn cutover(
    mut config: Config,
    request: Request,
    options: Options,
    cancel: CancellationToken,
    tell: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, CutoverError> {
    let route = config.route(&request.route);
    if !route.is_some_and(|route| route.reversible) {
        let why = match route {
            None => format!("there is no route {:?}", request.route),
            Some(_) => format!("route {} has no way back: set reversible = true", request.route),
        };
        return Err(CutoverError::Request(why));
    }
    config.routes.retain(|route| route.pair() == Some(&request.route));
    let metrics = Metrics::new()?;
    let base = Base { request_timeout: Some(config.write.request_timeout), ..options.base.clone() };
    let (aws, jitter) = (Aws::new(base), Jitter::seeded(options.seed));
    let state = StateTable::new(&config.state, &aws.clients(&config.state.access).await, metrics);
    Box::pin(state.open(false, config.access_patience)).await?;
    let standings = Standings::new(state.clone(), options.clock);
    let patient = Policy::for_at_most(PATIENCE);
    let load = || standings.load(&request.route);
    let standing = retry::run(patient, &jitter, &cancel, |_, _| (), load).await?;
    let mut guide = Guide {
        config,
        request,
        options,
        aws,
        jitter,
        state,
        standings,
        cancel,
        standing,
        done: Vec::new(),
        tell,
    };
    let outcome = Box::pin(guide.go()).await?;
    let writers_at = guide.live().name.clone();
    let Standing { route, turn, step, since, .. } = guide.standing;
    Ok(Report { route, turn, step, since, writers_at, done: guide.done, refused: outcome.err() })
}

fn refuse<T>(what: impl Into<String>, remedy: impl Into<String>) -> Result<Result<T, Refusal>, CutoverError> {
    Ok(Err(Refusal { what: what.into(), remedy: remedy.into() }))
}

impl Guide<'_> {
    async fn go(&mut self) -> Result<Result<(), Refusal>, CutoverError> {
        let wanted = match self.request.goal {
            Goal::Show => return Ok(Ok(())),
            Goal::Finish => return self.finish().await,
            Goal::Peer => true,
            Goal::Source => false,
        };
        loop {
            let outcome = match self.standing.step {
                Step::Finished => {
                    return refuse(
                        "the cutover is finished",
                        "writers stay where they are; take the route out of the config",
                    );
                }
                Step::Live if self.standing.reversed() == wanted => {
                    self.tidy().await?;
                    self.say(format!("writers write to {} ({})", self.live().name, self.live().arn));
                    return Ok(Ok(()));
                }
                _ if self.standing.reversed() == wanted => {
                    self.step(Event::Undone, |_| ()).await?;
                    Ok(format!("called off; writers stay at {}", self.live().name))
                }
                Step::Live => self.checks().await?,
                Step::Stopping => self.stop().await?,
                Step::Draining => self.drain().await?,
                Step::Sealed => self.compare().await?,
                Step::Turning => self.turn().await?,
            };
            match outcome {
                Ok(told) => self.say(told),
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
    }

    fn say(&mut self, told: String) {
        (self.tell)(&told);
        self.done.push(told);
    }

    /// The route that is walked in this turn.
    fn walked(&self) -> &Route {
        let reversed = self.standing.reversed();
        let walked = self.config.routes.iter().find(|route| route.back_of.is_some() == reversed);
        // The config has both, or the request was refused.
        walked.unwrap_or(&self.config.routes[0])
    }

    /// The member where writers are in this turn.
    fn live(&self) -> &Member {
        &self.config.members[self.walked().from]
    }

    /// The other one.
    fn other(&self) -> &Member {
        let walked = self.walked();
        &self.config.members[walked.to.first().copied().unwrap_or(walked.from)]
    }

    async fn client(&self, member: &Member) -> Client {
        self.aws.clients(&member.access).await.tables
    }

    async fn patiently<T, F>(&self, call: impl Fn() -> F) -> Result<T, CutoverError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        match retry::run(Policy::for_at_most(PATIENCE), &self.jitter, &self.cancel, |_, _| (), call).await {
            Err(retry::GaveUp::Failed(failure)) if failure.code == MOVED => Err(CutoverError::Another),
            done => Ok(done?),
        }
    }

    /// Moves on.
    async fn step(&mut self, event: Event, change: impl FnOnce(&mut Standing)) -> Result<(), CutoverError> {
        let mut to = self.standing.after(event).ok_or(CutoverError::Another)?;
        change(&mut to);
        self.write(to).await
    }

    async fn write(&mut self, to: Standing) -> Result<(), CutoverError> {
        let change = || self.standings.change(&self.standing, to.clone());
        self.standing = self.patiently(change).await?.ok_or(CutoverError::Another)?;
        Ok(())
    }

    fn reader(&self) -> Reader<'_> {
        Reader { config: &self.config, state: self.state.clone(), clock: self.options.clock }
    }

    /// Waits until everything is applied; `None` when it takes too long.
    async fn caught_up(&self, within: Duration) -> Result<(Status, bool), CutoverError> {
        let reader = self.reader();
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(CutoverError::Stopped),
            status = reader.caught_up(within) => Ok(status?),
        }
    }

    async fn pause(&self, pause: Duration) -> Result<(), CutoverError> {
        if retry::pause(pause, &self.cancel).await { Ok(()) } else { Err(CutoverError::Stopped) }
    }

    /// Makes the other direction ready, and turns.
    async fn turn(&mut self) -> Outcome {
        let (live, other) = (self.live().clone(), self.other().clone());
        let found = self.found(&other).await?;
        let fit = |view: &str| matches!(view, "NEW_AND_OLD_IMAGES" | "NEW_IMAGE");
        let Some(stream) = found.stream.filter(|stream| stream.enabled && fit(&stream.view)) else {
            return refuse(
                format!("the stream of {} was turned off, or has no new images", other.arn),
                "turn it on (NEW_AND_OLD_IMAGES) and allow it; then start the same command again",
            );
        };
        if let Some(refusal) = self.unheard().await? {
            return Ok(Err(refusal));
        }
        let walked = self.walked().name.clone();
        let next = if self.standing.reversed() {
            self.standing.route.clone()
        } else {
            way_back(&self.standing.route)
        };
        let (_, highest) = self.patiently(|| self.standings.positions(&walked)).await?;
        let floor = highest.max(self.standing.floor).plus(Duration::from_millis(1));
        self.patiently(|| self.standings.forget(&self.standing, &next)).await?;
        self.patiently(|| self.standings.pin(&next, &stream.label)).await?;
        self.step(Event::Pinned, |to| to.floor = floor).await?;
        Ok(Ok(format!(
            "writers may move from {} to {}; what they write there comes back",
            live.name, other.name
        )))
    }

    /// Gives the way back up.
    async fn finish(&mut self) -> Result<Result<(), Refusal>, CutoverError> {
        match (self.standing.step, self.standing.reversed()) {
            (Step::Finished, _) => {}
            (Step::Live, true) => {
                self.tidy().await?;
                self.step(Event::Ended, |_| ()).await?;
            }
            (step, _) => {
                return refuse(
                    format!("writers are not at the peer for good: {}", step.name()),
                    "finish is for a route that is cut over: shardwalker cutover first",
                );
            }
        }
        if let Some(refusal) = self.unheard().await? {
            return Ok(Err(refusal));
        }
        for route in [self.standing.route.clone(), way_back(&self.standing.route)] {
            self.patiently(|| self.standings.forget(&self.standing, &route)).await?;
        }
        self.say("there is no way back any more; take the route out of the config".to_owned());
        Ok(Ok(()))
    }
}
