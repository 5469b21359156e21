//! What must hold before a route may run, found out by the calls that it will make.
//!
//! Tables exist and are active, key schemas agree, the stream is on with the images that the route needs, and
//! every permission is there. Nothing is changed ([`probe`](super::probe)). Policies take effect late, so a denial is
//! tried again for a bounded time; what stays is reported with the statement that is missing
//! ([`finding`](super::finding)). A start looks at the members only; `check` also at the state table, at features that
//! are not running yet, and at this host's clock.

use super::dated::Dated;
use super::finding::{Cell, Finding, Findings, STATE, Subject, Verdict, folded};
pub use super::found::{Found, Stream};
use super::keys;
use super::needs::{Action, Feature, Needs};
use super::probe::{Probe, Tried};
use crate::aws::{Aws, Clients};
use crate::clock::Clock;
use crate::config::{Access, Config, Images, Member, TableArn};
use crate::failure::{self, Class, Failure};
use crate::numbers::{self, NumberError};
use crate::retry::{self, GaveUp, Jitter, Policy};
use crate::shape::needs_old_images;
use crate::state::{EXPIRES, PK, SK, StateError, StateTable, misfit};
use crate::telemetry::metrics::Metrics;
use aws_sdk_dynamodb::types::{StreamViewType, TableDescription, TableStatus};
use futures::future::join_all;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a check uses.
#[derive(Debug, Clone, Copy)]
pub struct Preflight<'a> {
    config: &'a Config,
    aws: &'a Aws,
    jitter: &'a Jitter,
    cancel: &'a CancellationToken,
    /// How long a denial is tried again.
    patience: Duration,
}

/// How long a call that is throttled, or has no answer, is tried again even when nobody waits for policies.
const MOMENT: Duration = Duration::from_secs(5);

/// All that a check found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What was found of each member, in the order of the config; `None` for those that no route uses, and those
    /// that something is wrong with.
    pub found: Vec<Option<Found>>,
    /// Every permission that is needed, of the members in the order of the config and then of the state table.
    pub cells: Vec<Cell>,
    /// What does not hold.
    pub findings: Vec<Finding>,
    /// What is no mistake, and good to know.
    pub notes: Vec<String>,
}

/// What was looked at of one table.
#[derive(Debug, Default)]
struct Looked {
    found: Option<Found>,
    cells: Vec<Cell>,
    findings: Vec<Finding>,
    notes: Vec<String>,
}

impl Looked {
    fn take(&mut self, (cell, finding): (Cell, Option<Finding>)) {
        self.cells.push(cell);
        self.findings.extend(finding);
    }

    /// Those of `actions` that were not looked at cannot be known.
    fn unknown(&mut self, name: &str, actions: &BTreeSet<Action>, why: &str) {
        for action in actions {
            let (member, action) = (name.to_owned(), action.name());
            if !self.cells.iter().any(|cell| cell.action == action) {
                self.cells.push(Cell { member, action, verdict: Verdict::Unknown(why.to_owned()) });
            }
        }
    }
}

impl<'a> Preflight<'a> {
    /// One that waits for policies as long as the config says, with pauses from `jitter`, until `cancel`.
    #[must_use]
    pub fn new(config: &'a Config, aws: &'a Aws, jitter: &'a Jitter, cancel: &'a CancellationToken) -> Self {
        Self { config, aws, jitter, cancel, patience: config.access_patience }
    }

    /// What a start of the service looks at: all members of all routes. One that is down or closed, and that was found
    /// before as `known` says, does not keep the others waiting: it is said, and what is known is taken for it.
    ///
    /// # Errors
    /// Everything else that does not hold, in the order of the config.
    pub async fn start(&self, known: &[Option<Found>]) -> Result<Vec<Option<Found>>, Findings> {
        let of = |index: usize| known.get(index).and_then(Option::as_ref);
        let mut report = self.members(&BTreeSet::new(), |index| of(index).is_some()).await;
        let passes = |finding: &Finding| {
            let mut members = self.config.members.iter();
            let index = members.position(|member| member.name == finding.member);
            finding.passing && index.and_then(of).is_some()
        };
        let (passing, lasting): (Vec<_>, Vec<_>) = report.findings.into_iter().partition(passes);
        if !lasting.is_empty() {
            return Err(Findings(lasting));
        }
        for finding in passing {
            tracing::error!("{finding}\nthe others go on without it, and it is tried again and again");
        }
        for (index, found) in report.found.iter_mut().enumerate().filter(|(_, found)| found.is_none()) {
            *found = of(index).cloned();
        }
        Ok(report.found)
    }

    /// Checks all members of all routes, for replication and for `features`; gives what was found of each, in the order
    /// of the config (`None` for members that no route uses).
    ///
    /// # Errors
    /// Everything that does not hold, in the order of the config.
    pub async fn run(&self, features: &BTreeSet<Feature>) -> Result<Vec<Option<Found>>, Findings> {
        let report = self.members(features, |_| false).await;
        if report.findings.is_empty() { Ok(report.found) } else { Err(Findings(report.findings)) }
    }

    /// Checks everything: members, also for features that are not in the config, the state table, and the clock of
    /// this host.
    pub async fn report(&self, features: &BTreeSet<Feature>, clock: Clock) -> Report {
        let mut report = Box::pin(self.members(features, |_| false)).await;
        Box::pin(self.state(features, &mut report)).await;
        self.numbers(&mut report).await;
        self.compare_clocks(clock, &mut report).await;
        report
    }

    /// Looks at all members side by side. Those that are known `before` were let in once: nobody waits for policies
    /// that take effect late.
    async fn members(&self, features: &BTreeSet<Feature>, before: impl Fn(usize) -> bool) -> Report {
        let config = self.config;
        let members = config.members.iter().enumerate().map(|(index, member)| {
            let patience = if before(index) { Duration::ZERO } else { self.patience };
            let preflight = Self { patience, ..*self };
            async move {
                let needs = Needs::of_member(config, index, features);
                if needs.actions.is_empty() {
                    Looked::default()
                } else {
                    preflight.member(index, member, &needs).await
                }
            }
        });
        let mut report = Report::default();
        let mut described = Vec::new();
        for looked in join_all(members).await {
            described.push(looked.found.clone());
            report.found.push(looked.found.filter(|_| looked.findings.is_empty()));
            report.cells.extend(looked.cells);
            report.findings.extend(folded(looked.findings));
            report.notes.extend(looked.notes);
        }
        report.findings.extend(keys::compare(self.config, &described));
        report
    }

    /// What is found of the member at `index`, without any check of what it is used for.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn table(&self, index: usize) -> Result<Found, Finding> {
        let member = &self.config.members[index];
        let clients = self.aws.clients(&member.access).await;
        let needs = Needs { actions: BTreeSet::from([Action::DescribeTable]), ..Needs::default() };
        self.describe(&subject(member, &needs), &clients, &member.arn.to_string()).await.1
    }

    async fn member(&self, index: usize, member: &Member, needs: &Needs) -> Looked {
        let clients = self.aws.clients(&member.access).await;
        let (mut subject, table) = (subject(member, needs), member.arn.to_string());
        let mut looked = Looked::default();
        let (cell, found) = self.describe(&subject, &clients, &table).await;
        looked.cells.extend(self.assumed(&subject, &cell));
        looked.cells.push(cell);
        let found = match found {
            Ok(found) => found,
            Err(finding) => {
                looked.findings.push(finding);
                looked.unknown(&member.name, &needs.actions, "the table could not be described");
                return looked;
            }
        };
        looked.notes.extend(found.key.as_ref().map(|key| {
            format!(
                "member {0}: encrypted with the KMS key {key}; where it is a customer key, policies need --kms-key \
                 {0}={key}; the AWS managed one (aws/dynamodb) cannot be shared across accounts",
                member.name
            )
        }));
        let reads = !needs.on(true).is_empty();
        let unfit = self.unfit(index, member, &found).filter(|_| reads);
        let stream = found.stream.as_ref().filter(|_| unfit.is_none()).map(|stream| stream.arn.clone());
        looked.findings.extend(unfit);
        subject.stream = stream;
        let probe =
            Probe { clients: &clients, table: &table, keys: &found.keys, expires: EXPIRES, absent: false };
        Box::pin(self.try_all(&subject, &probe, &mut looked)).await;
        looked.found = Some(found);
        looked
    }

    /// Tries every action but DescribeTable: those on the table side by side, those on the stream one after the other.
    async fn try_all(&self, subject: &Subject<'_>, probe: &Probe<'_>, looked: &mut Looked) {
        let left = subject.needs.on(false).into_iter().filter(|action| *action != Action::DescribeTable);
        let tries = left.map(|action| async move { (action, self.patiently(|| probe.table(action)).await) });
        for (action, tried) in join_all(tries).await {
            match tried {
                Ok(Tried::Untried(why)) => looked.unknown(subject.name, &BTreeSet::from([action]), why),
                Ok(Tried::Allowed) => looked.take(subject.judge(action, &Ok(()))),
                Err(failure) => looked.take(subject.judge(action, &Err(failure))),
            }
        }
        let on_stream: BTreeSet<Action> = subject.needs.on(true).into_iter().collect();
        if let Some(stream) = subject.stream.as_deref().filter(|_| !on_stream.is_empty()) {
            self.try_stream(subject, stream, probe, looked).await;
        }
        looked.unknown(subject.name, &on_stream, "no position in the stream is known");
    }

    /// The three calls that reading takes, as far as they get.
    async fn try_stream(&self, subject: &Subject<'_>, stream: &str, probe: &Probe<'_>, looked: &mut Looked) {
        let mut judge = |action, outcome: Result<(), Failure>| looked.take(subject.judge(action, &outcome));
        let shard = match self.patiently(|| probe.shard(stream)).await {
            Ok(shard) => shard,
            Err(failure) => return judge(Action::DescribeStream, Err(failure)),
        };
        judge(Action::DescribeStream, Ok(()));
        let Some(shard) = shard else { return };
        let iterator = match self.patiently(|| probe.open(stream, &shard)).await {
            Ok(iterator) => iterator,
            Err(failure) => return judge(Action::GetShardIterator, Err(failure)),
        };
        judge(Action::GetShardIterator, Ok(()));
        let Some(iterator) = iterator else { return };
        let read = self.patiently(|| probe.read(&iterator)).await;
        judge(Action::GetRecords, read.map(|_| ()));
    }

    /// Whether the role of a subject could be assumed, as its first call shows.
    fn assumed(&self, subject: &Subject<'_>, first: &Cell) -> Option<Cell> {
        subject.access.assume_role.as_ref()?;
        let verdict = match &first.verdict {
            Verdict::Unknown(why) if why.contains("sts:AssumeRole") => Verdict::Denied,
            Verdict::Unknown(why) => Verdict::Unknown(why.clone()),
            _ => Verdict::Allowed,
        };
        Some(Cell { member: subject.name.to_owned(), action: "sts:AssumeRole".to_owned(), verdict })
    }

    async fn describe(
        &self,
        subject: &Subject<'_>,
        clients: &Clients,
        table: &str,
    ) -> (Cell, Result<Found, Finding>) {
        let call = Action::DescribeTable;
        let answer = self.patiently(|| clients.tables.describe_table().table_name(table).send()).await;
        let (answer, outcome) = match answer {
            Ok(answer) => (answer.table, Ok(())),
            Err(failure) => (None, Err(failure)),
        };
        let (cell, finding) = subject.judge(call, &outcome);
        if let Some(finding) = finding {
            return (cell, Err(finding));
        }
        let bad = |what: String, remedy: &str| Err(Finding::new(subject.name, Some(call), what, remedy));
        let found = match answer {
            None => bad("the answer holds no table".to_owned(), Class::Unrecognised.remedy()),
            Some(table) => match (table.table_status(), elsewhere(&table, &subject.table)) {
                (_, Some(what)) => bad(what, "give the endpoint of the table's own Region, or the right ARN"),
                (Some(TableStatus::Active | TableStatus::Updating) | None, None) => Ok(Found::of(&table)),
                (Some(status), None) => {
                    bad(format!("the table is {status}"), "wait until it is ACTIVE, then start again")
                        .map_err(Finding::passing)
                }
            },
        };
        (cell, found)
    }

    /// What a source's stream lacks for the routes that read it.
    fn unfit(&self, index: usize, member: &Member, found: &Found) -> Option<Finding> {
        let mut leaving = self.config.routes.iter().filter(|route| route.from == index);
        let judging = leaving.clone().find_map(|route| {
            let shape = route.shape.as_ref().filter(|shape| needs_old_images(shape, &found.keys));
            shape.map(|_| format!("the filter of route {} is judged on both", route.name))
        });
        let feeds = leaving.clone().flat_map(|route| &route.feeds).map(|index| &self.config.feeds[*index]);
        let both = feeds
            .filter(|feed| feed.images == Images::Both)
            .map(|feed| format!("feed {} has images = \"both\": turn them on, or take that away", feed.name));
        let group = leaving.find_map(|route| Some(self.config.groups[route.group?].name.as_str()));
        let group = group.map(|group| format!("group {group} needs both"));
        let wanted = group.or(judging).or(both.into_iter().next());
        let table = &member.arn;
        let turn_on = format!(
            "turn it on: aws dynamodb update-table --table-name {} \
             --stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES\n\
             (in account {}; a new stream needs its own resource policy)",
            table.table, table.account
        );
        let finding =
            |what: &str, remedy| Some(Finding::new(&member.name, Some(Action::DescribeTable), what, remedy));
        let Some(stream) = found.stream.as_ref().filter(|stream| stream.enabled) else {
            return finding("the table's stream is off", turn_on).map(Finding::passing);
        };
        let lacks = match (StreamViewType::from(stream.view.as_str()), wanted) {
            (StreamViewType::NewAndOldImages, _) | (StreamViewType::NewImage, None) => return None,
            (StreamViewType::NewImage, Some(why)) => format!("no old images; {why}"),
            (..) => "no new images".to_owned(),
        };
        let off = format!(
            "turn the stream off (aws dynamodb update-table --table-name {} \
             --stream-specification StreamEnabled=false) and on again with NEW_AND_OLD_IMAGES; \
             what changes in between is not in the new stream\n",
            table.table
        );
        finding(&format!("the stream's view type is {}, which has {lacks}", stream.view), off + &turn_on)
    }

    /// The permissions on the state table. One that does not exist yet is no mistake before the first start.
    async fn state(&self, features: &BTreeSet<Feature>, report: &mut Report) {
        let (state, needs) = (&self.config.state, Needs::of_state(features));
        let clients = self.aws.clients(&state.access).await;
        let named = state.table.parse::<TableArn>();
        let table = named.unwrap_or_else(|_| TableArn {
            partition: "aws".to_owned(),
            region: state.access.region.clone(),
            account: String::new(),
            table: state.table.clone(),
        });
        let subject = Subject { name: STATE, table, access: &state.access, needs: &needs, stream: None };
        let mut looked = Looked::default();
        let answer = self.patiently(|| clients.tables.describe_table().table_name(&state.table).send()).await;
        let mut absent = false;
        let (outcome, unfit) = match answer {
            Ok(answer) => (Ok(()), answer.table.as_ref().and_then(misfit)),
            Err(failure) if failure.class == Class::NotFound => {
                absent = true;
                report.notes.push(format!(
                    "the state table {} does not exist; shardwalker run --create-state-table makes it",
                    state.table
                ));
                (Ok(()), None)
            }
            Err(failure) => (Err(failure), None),
        };
        let (cell, finding) = subject.judge(Action::DescribeTable, &outcome);
        looked.cells.extend(self.assumed(&subject, &cell));
        looked.take((cell, finding));
        if let Some(why) = unfit {
            let error = StateError::Unfit { table: state.table.clone(), why };
            let remedy = "name another table in [state], or delete this one and have it made anew";
            looked.findings.push(Finding::new(STATE, None, error.to_string(), remedy));
            looked.unknown(STATE, &needs.actions, "it cannot be a state table");
        } else if outcome.is_ok() {
            let keys = [PK, SK].map(|name| (name.to_owned(), "S".to_owned()));
            let probe =
                Probe { clients: &clients, table: &state.table, keys: &keys, expires: EXPIRES, absent };
            Box::pin(self.try_all(&subject, &probe, &mut looked)).await;
        }
        looked.unknown(STATE, &needs.actions, "the table could not be described");
        report.cells.extend(looked.cells);
        report.findings.extend(folded(looked.findings));
    }

    /// What the state table says of the numbers of groups' members. Where it cannot be read, that was said already.
    async fn numbers(&self, report: &mut Report) {
        if self.config.groups.is_empty() {
            return;
        }
        let Ok(metrics) = Metrics::new() else { return };
        let clients = self.aws.clients(&self.config.state.access).await;
        let state = StateTable::new(&self.config.state, &clients, metrics);
        for group in &self.config.groups {
            if let Ok(Err(refused)) = numbers::look(&state, self.config, group).await {
                let (NumberError::Taken { member, .. } | NumberError::Renumbered { member, .. }) = &refused;
                let remedy = "numbers are in the versions of all items: none is ever another table's";
                report.findings.push(Finding::new(member, None, refused.to_string(), remedy));
            }
        }
    }

    /// Compares this host's clock with the date of an answer. Versions, leases' beats and the drift ceiling tolerate
    /// a clock that is wrong by less than the smallest `max_clock_drift`; half of that leaves the other half to the
    /// others.
    async fn compare_clocks(&self, clock: Clock, report: &mut Report) {
        let Some(bound) = self.config.routes.iter().map(|route| route.max_clock_drift / 2).min() else {
            return;
        };
        let dated = Dated::default();
        let clients = self.aws.clients(&self.config.state.access).await;
        let call = clients.tables.describe_table().table_name(&self.config.state.table);
        // A refusal is dated too.
        drop(call.customize().interceptor(dated.clone()).send().await);
        let Some(theirs) = dated.get() else { return };
        let ours = clock.now();
        let off = ours.duration_since(theirs).unwrap_or_else(|behind| behind.duration());
        // Dates have whole seconds.
        if off > bound + Duration::from_secs(1) {
            let way = if ours > theirs { "ahead of" } else { "behind" };
            let what = format!("this host's clock is {} s {way} AWS's", off.as_secs());
            let remedy = format!(
                "set it, by NTP for instance: it decides which stamps are believed (max_clock_drift), and AWS \
                 refuses signatures that are five minutes off; at most {} s are tolerated",
                bound.as_secs()
            );
            report.findings.push(Finding::new(STATE, None, what, remedy));
        }
    }

    /// Tries a call for as long as policies may take to arrive; what is only busy or broken for a moment, a little
    /// longer.
    async fn patiently<T, E, F>(&self, call: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, E>>,
        Failure: From<E>,
    {
        let patience = self.patience;
        let policy = Policy { slow: Duration::from_secs(4), ..Policy::for_at_most(patience.max(MOMENT)) };
        let notice = |failure: &Failure, tries| {
            if tries == 1 {
                tracing::info!(why = %failure, "not allowed yet, or not reachable; policies take effect late, so it is tried again");
            }
        };
        let once = || async {
            match call().await.map_err(Failure::from) {
                // A table that is not there will not come by waiting.
                Err(failure) if failure.class == Class::NotFound => Ok(Err(failure)),
                Err(failure)
                    if patience.is_zero() && failure.class.action() != failure::Action::RetrySoon =>
                {
                    Ok(Err(failure))
                }
                Err(failure) => Err(failure),
                Ok(answer) => Ok(Ok(answer)),
            }
        };
        match retry::run(policy, self.jitter, self.cancel, notice, once).await {
            Ok(result) => result,
            Err(GaveUp::Failed(failure)) => Err(failure),
            Err(GaveUp::Cancelled) => {
                Err(Failure::new(Class::Transient, "Cancelled", "stopped while waiting"))
            }
        }
    }
}

fn subject<'a>(member: &'a Member, needs: &'a Needs) -> Subject<'a> {
    let access: &Access = &member.access;
    Subject { name: &member.name, table: member.arn.clone(), access, needs, stream: None }
}

/// Where an answer says that its table is, when that is not where the config says. Emulators that know nothing of
/// Regions or accounts are left alone.
fn elsewhere(table: &TableDescription, wanted: &TableArn) -> Option<String> {
    let found: TableArn = table.table_arn()?.parse().ok()?;
    let emulated = found.region == "ddblocal" || found.account == "000000000000";
    let same =
        found.region == wanted.region && (wanted.account.is_empty() || found.account == wanted.account);
    (!emulated && !same).then(|| {
        format!("the endpoint answered with {found}: Region {}, account {}", found.region, found.account)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_another_region_or_account_is_noticed() {
        let wanted = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders".parse().unwrap();
        for (found, other) in [
            ("arn:aws:dynamodb:eu-west-1:111111111111:table/orders", false),
            ("arn:aws:dynamodb:us-east-1:111111111111:table/orders", true),
            ("arn:aws:dynamodb:eu-west-1:222222222222:table/orders", true),
            ("arn:aws:dynamodb:ddblocal:000000000000:table/orders", false),
            ("orders", false),
        ] {
            let table = TableDescription::builder().table_arn(found).build();
            assert_eq!(elsewhere(&table, &wanted).is_some(), other, "{found}");
        }
    }
}
