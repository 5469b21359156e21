//! What must hold before a route may run, found out by the calls that it will make.
//!
//! Tables exist and are active, key schemas agree, the stream is on with the images that the route needs, and
//! every permission is there. Nothing is changed ([`probe`](super::probe)). Policies take effect late, so a denial is
//! tried again for a bounded time; what stays is reported with the statement that is missing
//! ([`finding`](super::finding)). A start looks at the members only; `check` also at the state table, at features that
//! are not running yet, and at this host's clock.

use super::dated::Dated;
use super::finding::{Cell, Finding, Findings, STATE, Subject, Verdict, folded};
use super::needs::{Action, Feature, Needs};
use super::probe::{KeyAttribute, Probe, Tried};
use crate::aws::{Aws, Clients};
use crate::clock::Clock;
use crate::config::{Access, Config, Member, TableArn};
use crate::failure::{self, Class, Failure};
use crate::retry::{self, GaveUp, Jitter, Policy};
use crate::state::{EXPIRES, PK, SK};
use aws_sdk_dynamodb::types::{StreamViewType, TableDescription, TableStatus};
use futures::future::join_all;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What is known of a member table once it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The key attributes: partition key first.
    pub keys: Vec<KeyAttribute>,
    /// The current stream, when there is one.
    pub stream: Option<Stream>,
    /// The table's id: another one means that the table was deleted and made again.
    pub id: String,
}

/// A table's current stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Its ARN.
    pub arn: String,
    /// Its label: the time when it was turned on.
    pub label: String,
    /// Whether it takes records.
    pub enabled: bool,
    /// What its records hold.
    pub view: String,
}

/// What a check uses.
#[derive(Debug)]
pub struct Preflight<'a> {
    /// The config.
    pub config: &'a Config,
    /// Makes the clients.
    pub aws: &'a Aws,
    /// Seeded pauses.
    pub jitter: &'a Jitter,
    /// Ends the waiting.
    pub cancel: &'a CancellationToken,
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

impl Preflight<'_> {
    /// Checks all members of all routes; gives what was found of each, in the order of the config (`None` for
    /// members that no route uses).
    ///
    /// # Errors
    /// Everything that does not hold, in the order of the config.
    pub async fn run(&self) -> Result<Vec<Option<Found>>, Findings> {
        let report = self.members(&BTreeSet::new()).await;
        if report.findings.is_empty() { Ok(report.found) } else { Err(Findings(report.findings)) }
    }

    /// Checks everything: members, also for features that are not in the config, the state table, and the clock of
    /// this host.
    pub async fn report(&self, features: &BTreeSet<Feature>, clock: Clock) -> Report {
        let mut report = Box::pin(self.members(features)).await;
        Box::pin(self.state(features, &mut report)).await;
        self.compare_clocks(clock, &mut report).await;
        report
    }

    async fn members(&self, features: &BTreeSet<Feature>) -> Report {
        let config = self.config;
        let members = config.members.iter().enumerate().map(|(index, member)| async move {
            let needs = Needs::of_member(config, index, features);
            if needs.actions.is_empty() {
                Looked::default()
            } else {
                self.member(index, member, &needs).await
            }
        });
        let mut report = Report::default();
        for looked in join_all(members).await {
            report.found.push(looked.found.filter(|_| looked.findings.is_empty()));
            report.cells.extend(looked.cells);
            report.findings.extend(folded(looked.findings));
        }
        self.compare_keys(&report.found, &mut report.findings);
        report
    }

    fn compare_keys(&self, found: &[Option<Found>], findings: &mut Vec<Finding>) {
        let config = self.config;
        let of = |index: usize| found.get(index).and_then(Option::as_ref);
        for route in &config.routes {
            let tables = match route.group.and_then(|group| config.groups.get(group)) {
                None => format!("route {}", route.name),
                // All are compared with the first one.
                Some(group) if group.members.first() == Some(&route.from) => format!("group {}", group.name),
                Some(_) => continue,
            };
            let Some(source) = of(route.from) else { continue };
            for &to in &route.to {
                let Some(peer) = of(to).filter(|peer| peer.keys != source.keys) else { continue };
                let (first, keys) = (&config.members[route.from].name, spell(&source.keys));
                let what = format!("its primary key is {}, but that of {first} is {keys}", spell(&peer.keys));
                let remedy =
                    format!("the tables of {tables} must have the same key attributes, by name and type");
                findings.push(Finding::new(&config.members[to].name, None, what, remedy));
            }
        }
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
        let reads = !needs.on(true).is_empty();
        let unfit = self.unfit(index, member, &found).filter(|_| reads);
        let stream = found.stream.as_ref().filter(|_| unfit.is_none()).map(|stream| stream.arn.clone());
        looked.findings.extend(unfit);
        subject.stream = stream;
        let probe = Probe { clients: &clients, table: &table, keys: &found.keys, expires: EXPIRES };
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
                }
            },
        };
        (cell, found)
    }

    /// What a source's stream lacks for the routes that read it.
    fn unfit(&self, index: usize, member: &Member, found: &Found) -> Option<Finding> {
        let mut leaving = self.config.routes.iter().filter(|route| route.from == index);
        let group = leaving.find_map(|route| Some(self.config.groups[route.group?].name.as_str()));
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
            return finding("the table's stream is off", turn_on);
        };
        let lacks = match (StreamViewType::from(stream.view.as_str()), group) {
            (StreamViewType::NewAndOldImages, _) | (StreamViewType::NewImage, None) => return None,
            (StreamViewType::NewImage, Some(group)) => format!("no old images; group {group} needs both"),
            (_, _) => "no new images".to_owned(),
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
        let outcome = match answer {
            Ok(_) => Ok(()),
            Err(failure) if failure.class == Class::NotFound => {
                report.notes.push(format!(
                    "the state table {} does not exist; run with --create-state-table makes it",
                    state.table
                ));
                looked.unknown(STATE, &needs.actions, "the table does not exist yet");
                report.cells.extend(looked.cells);
                return;
            }
            Err(failure) => Err(failure),
        };
        let (cell, finding) = subject.judge(Action::DescribeTable, &outcome);
        looked.cells.extend(self.assumed(&subject, &cell));
        looked.take((cell, finding));
        if outcome.is_ok() {
            let keys = [PK, SK].map(|name| (name.to_owned(), "S".to_owned()));
            let probe = Probe { clients: &clients, table: &state.table, keys: &keys, expires: EXPIRES };
            Box::pin(self.try_all(&subject, &probe, &mut looked)).await;
        }
        looked.unknown(STATE, &needs.actions, "the table could not be described");
        report.cells.extend(looked.cells);
        report.findings.extend(folded(looked.findings));
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
        let patience = self.config.access_patience;
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

impl Found {
    fn of(table: &TableDescription) -> Self {
        let kind = |name: &str| {
            let definition = table.attribute_definitions().iter().find(|a| a.attribute_name() == name);
            definition.map_or("?", |a| a.attribute_type().as_str()).to_owned()
        };
        let keys = table.key_schema().iter();
        let keys = keys.map(|k| (k.attribute_name().to_owned(), kind(k.attribute_name()))).collect();
        let specification = table.stream_specification();
        let stream = table.latest_stream_arn().map(|arn| Stream {
            arn: arn.to_owned(),
            label: table.latest_stream_label().unwrap_or_else(|| label(arn)).to_owned(),
            enabled: specification.is_some_and(|s| s.stream_enabled()),
            view: specification.and_then(|s| s.stream_view_type()).map_or("", |v| v.as_str()).to_owned(),
        });
        Self { keys, stream, id: table.table_id().unwrap_or_default().to_owned() }
    }
}

fn label(stream: &str) -> &str {
    stream.rsplit('/').next().unwrap_or(stream)
}

fn spell(keys: &[KeyAttribute]) -> String {
    let key = |(name, kind): &KeyAttribute| format!("{name} ({kind})");
    keys.iter().map(key).collect::<Vec<_>>().join(", ")
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
