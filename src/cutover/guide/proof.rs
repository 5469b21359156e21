//! What must hold before writers are stopped, that everything has arrived, and that both sides are the same.

use super::{Guide, Outcome, refuse};
use crate::access::needs::Feature;
use crate::access::preflight::{Found, Preflight};
use crate::config::Member;
use crate::cutover::marker::{Marker, reserved};
use crate::cutover::standing::{CUTOVER, Event, Standing};
use crate::cutover::{CutoverError, Refusal};
use crate::failure::Class;
use crate::item::Item;
use crate::obeyed;
use crate::status::Status;
use crate::verify::record::Record;
use crate::verify::{self, Verify};
use aws_sdk_dynamodb::types::TimeToLiveStatus;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks for the marker.
const LOOK: Duration = Duration::from_millis(250);
/// So often the stream may turn out not to be quiet before writers are taken not to have stopped.
const ROUNDS: usize = 3;
/// Writers are not stopped while what they wrote takes longer than this.
const NEAR: Duration = Duration::from_secs(30);
/// While writers write, what differs is looked up for so long.
const SETTLE: Duration = Duration::from_secs(30);
/// Once nobody writes, what differs stays.
const SETTLE_SEALED: Duration = Duration::from_secs(2);
/// Segments that are compared at a time.
const PARALLEL: usize = 4;

impl Guide<'_> {
    /// What must hold before writers are stopped.
    pub(super) async fn checks(&mut self) -> Outcome {
        let features = BTreeSet::from([Feature::Verify, Feature::Cutover]);
        let (config, aws, jitter, cancel) = (&self.config, &self.aws, &self.jitter, &self.cancel);
        Box::pin(Preflight::new(config, aws, jitter, cancel).run(&features)).await?;
        for member in [self.live().clone(), self.other().clone()] {
            let (client, table) = (self.client(&member).await, member.arn.to_string());
            let answer = client.describe_time_to_live().table_name(&table).send().await;
            // No resource policy allows to look at it; what cannot be looked at is found when it is not quiet.
            let status = answer.ok().and_then(|answer| answer.time_to_live_description?.time_to_live_status);
            if matches!(status, Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling)) {
                return refuse(
                    format!(
                        "the items of {} ({table}) expire by themselves, so it would never be quiet",
                        member.name
                    ),
                    "turn time to live off at both sides, and on again at the new side in the end",
                );
            }
        }
        let reader = self.reader();
        let near = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(CutoverError::Stopped),
            near = reader.near(NEAR, self.request.within) => near,
        };
        let (status, in_time) = near?;
        if let Some(refusal) = self.unfit(&status) {
            return Ok(Err(refusal));
        }
        if !in_time {
            return refuse(
                format!("{} is more than {NEAR:?} behind", self.walked().name),
                "look with shardwalker status; then start the same command again",
            );
        }
        let tally = self.verify(None, SETTLE, false).await?;
        if tally.remaining() > 0 {
            let name = &self.walked().name;
            return refuse(
                format!("{} of {} items differ", tally.remaining(), tally.compared),
                format!(
                    "shardwalker verify {name} lists them; --repair mends them, and with --prefer {} also what an \
                     application wrote at {}; or run a backfill first",
                    self.live().name,
                    self.other().name
                ),
            );
        }
        self.step(Event::Checked, |_| ()).await?;
        Ok(Ok(format!("{} items are the same, and the last writes are on their way", tally.compared)))
    }

    /// Why a route as a status shows it is not to be turned.
    pub(super) fn unfit(&self, status: &Status) -> Option<Refusal> {
        let name = &self.walked().name;
        let route = status.routes.get(name)?;
        let refusal = |what: String, remedy: String| Some(Refusal { what, remedy });
        for (peer, state) in &route.peers {
            if let Some(pause) = state.paused.as_ref().filter(|pause| pause.by != CUTOVER) {
                return refusal(format!("{name} is {pause}"), format!("shardwalker resume {name}"));
            }
            let letters = state.dead_letters;
            if letters.keys > 0 {
                return refusal(
                    format!("{peer} has dead letters of {} keys", letters.keys),
                    format!("shardwalker dead-letters list --route {name}; then retry or discard"),
                );
            }
        }
        if route.backfills.iter().any(|backfill| backfill.state == "running") {
            return refusal(
                format!("a backfill of {name} is not done"),
                format!("let it come to its end: shardwalker backfill {name}"),
            );
        }
        let problem = status.problems.first()?;
        refusal(problem.what.clone(), problem.remedy.clone())
    }

    pub(super) async fn verify(
        &self,
        sample: Option<f64>,
        settle: Duration,
        consistent: bool,
    ) -> Result<verify::record::Tally, CutoverError> {
        let request = verify::Request {
            of: self.walked().name.clone(),
            peer: None,
            sample,
            segments: None,
            parallel: PARALLEL,
            read_units: self.request.read_units,
            consistent,
            settle,
            repair: false,
            prefer: None,
            stop_after: None,
            max_deletes: 0,
        };
        let (config, options, cancel) = (self.config.clone(), self.options.clone(), self.cancel.clone());
        let verify = Box::pin(Verify::build(config, request, options, Record::nowhere(), cancel)).await?;
        Ok(Box::pin(verify.run()).await?)
    }

    pub(super) async fn found(&self, member: &Member) -> Result<Found, CutoverError> {
        let index =
            self.config.members.iter().position(|known| known.name == member.name).unwrap_or_default();
        let (config, aws, jitter, cancel) = (&self.config, &self.aws, &self.jitter, &self.cancel);
        let found = Box::pin(Preflight::new(config, aws, jitter, cancel).table(index)).await;
        found.map_err(|finding| CutoverError::Access(crate::access::finding::Findings(vec![finding])))
    }

    pub(super) async fn marker(&self, id: String) -> Result<Marker, CutoverError> {
        let Item(key) = match &self.standing.marker_key {
            Some(key) => key.clone(),
            None => reserved(&self.found(self.live()).await?),
        };
        Ok(Marker { key, id })
    }

    /// Sees that everything that was written has arrived.
    pub(super) async fn drain(&mut self) -> Outcome {
        let (live, other) = (self.live().clone(), self.other().clone());
        if let Some(refusal) = self.lifted(&live).await? {
            return self.unproven(refusal).await;
        }
        let id = self.standing.marker.clone().unwrap_or_default();
        let (client, table) = (self.client(&live).await, live.arn.to_string());
        if self.request.marker_key.is_some() && self.request.marker_key != self.standing.marker_key {
            let earlier = self.marker(id.clone()).await?;
            self.patiently(|| earlier.remove(&client, &table)).await?;
            let marker_key = self.request.marker_key.clone();
            self.write(Standing { marker_key, ..self.standing.clone() }).await?;
        }
        let marker = self.marker(id).await?;
        let (here, there) = (self.client(&live).await, self.client(&other).await);
        let (from, to) = (live.arn.to_string(), other.arn.to_string());
        let put = match self.patiently(|| marker.put(&here, &from)).await {
            Err(CutoverError::Call(failure))
                if failure.class == Class::Denied && self.standing.denies.contains(&live.name) =>
            {
                let remedy = "the statement that was attached denies it to whoever runs this command, or the policies do: \
                              --undo, and name all who still write: --principal WORKERS --principal OPERATOR";
                return refuse(format!("the marker may not be written: {failure}"), remedy);
            }
            put => put?,
        };
        if !put {
            let remedy = "name a key that no item has: --marker-key '{\"id\":{\"S\":\"...\"}}'";
            return refuse("an item of yours has the key of the marker", remedy);
        }
        for seen in [true, false] {
            if !seen {
                self.patiently(|| marker.remove(&here, &from)).await?;
            }
            let limit = Instant::now() + self.request.within;
            while self.patiently(|| marker.seen(&there, &to)).await? != seen {
                if Instant::now() > limit {
                    return refuse(
                        format!("the marker is not {} {} yet", if seen { "at" } else { "off" }, other.name),
                        "look with shardwalker status; then start the same command again",
                    );
                }
                self.pause(LOOK).await?;
            }
        }
        let mut behind = None;
        for _ in 0..ROUNDS {
            // What is done is in the checkpoints by then.
            self.pause(self.config.write.checkpoint_interval * 2 + Duration::from_secs(1)).await?;
            let before = self.positions().await?;
            let (status, in_time) = self.caught_up(self.soon()).await?;
            if let Some(refusal) = self.unfit(&status) {
                return self.unproven(refusal).await;
            }
            let moved = self.positions().await? != before;
            behind = (!in_time && !moved).then(|| self.behind());
            if in_time && !moved {
                self.step(Event::Drained, |to| (to.marker, to.marker_key) = (None, None)).await?;
                return Ok(Ok(format!(
                    "the marker came to {} and went, and nothing came after it",
                    other.name
                )));
            }
        }
        self.unproven(behind.unwrap_or_else(|| self.still_written(&live))).await
    }

    pub(super) fn behind(&self) -> Refusal {
        Refusal {
            what: format!("{} does not catch up, although nothing new comes", self.walked().name),
            remedy: "look with shardwalker status; then start the same command again".to_owned(),
        }
    }

    pub(super) fn still_written(&self, live: &Member) -> Refusal {
        Refusal {
            what: format!("{} ({}) is still written to", live.name, live.arn),
            remedy: "find the writers that did not stop, items that expire (time to live) among them; then start the same \
                     command again"
                .to_owned(),
        }
    }

    /// How far each shard of the walked route is.
    pub(super) async fn positions(&self) -> Result<Vec<(String, String)>, CutoverError> {
        let name = &self.walked().name;
        Ok(self.patiently(|| self.standings.positions(name)).await?.0)
    }

    /// Back to where writers are to be stopped: what they wrote since goes on to the other side.
    pub(super) async fn unproven(&mut self, refusal: Refusal) -> Outcome {
        self.step(Event::Unproven, |_| ()).await?;
        Ok(Err(refusal))
    }

    /// Why it is not sure that every worker knows where the cutover stands.
    pub(super) async fn unheard(&self) -> Result<Option<Refusal>, CutoverError> {
        let (lease, within) = (&self.config.lease, self.soon().max(self.config.lease.duration * 2));
        let others = obeyed::everywhere(&self.state, lease, within, &self.jitter, &self.cancel).await?;
        Ok((!others.is_empty()).then(|| Refusal {
            what: format!("these workers beat and do not see where the cutover stands: {}", others.join(", ")),
            remedy: "look at their logs, whether they can read the state table; mend or stop them, then start the same \
                     command again"
                .to_owned(),
        }))
    }

    /// Sees that nothing waits although nothing is applied any more, and that the two sides are the same.
    pub(super) async fn compare(&mut self) -> Outcome {
        let live = self.live().clone();
        if let Some(refusal) = self.unheard().await? {
            return Ok(Err(refusal));
        }
        let begun = Instant::now();
        if !self.quiet().await? {
            return self.unproven(self.still_written(&live)).await;
        }
        // What a worker had begun before it saw that the gates are closed has ended by then.
        let ends = self.config.lease.renew_interval * 2 + self.config.write.request_timeout;
        self.pause(ends.saturating_sub(begun.elapsed())).await?;
        let tally = self.verify(self.request.sample, SETTLE_SEALED, true).await?;
        let odd = tally.remaining() + tally.changing;
        if odd > 0 {
            let remedy = "if writers did not stop, stop them; else shardwalker verify, --repair; then start the same command again";
            let what = format!("{odd} of {} items differ although nothing waits", tally.compared);
            return self.unproven(Refusal { what, remedy: remedy.to_owned() }).await;
        }
        if let Some(refusal) = self.lifted(&live).await? {
            return self.unproven(refusal).await;
        }
        if !self.quiet().await? {
            return self.unproven(self.still_written(&live)).await;
        }
        self.step(Event::Matched, |_| ()).await?;
        Ok(Ok(format!("{} items are the same, and nobody writes", tally.compared)))
    }

    /// Within this a route that is not written to has caught up, also when a worker dies meanwhile.
    pub(super) fn soon(&self) -> Duration {
        let lease = &self.config.lease;
        (lease.duration * 2 + lease.renew_interval * 4).min(self.request.within)
    }

    /// Whether nothing waits: what is written now would.
    pub(super) async fn quiet(&self) -> Result<bool, CutoverError> {
        let (status, in_time) = self.caught_up(self.soon()).await?;
        let waits =
            status.routes.values().flat_map(|route| route.peers.values()).any(|peer| peer.pending > 0);
        Ok(in_time && !waits)
    }
}
