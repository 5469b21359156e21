//! What must hold before a route may run, found out by the calls that it will make.
//!
//! Tables exist and are active, key schemas agree, the stream is on with the images that the route needs, and
//! every permission is there. Nothing is changed: the writes that are tried carry a condition that cannot hold.
//! Policies take effect late, so a denial is tried again for a bounded time; what stays is reported with the
//! statement that is missing.

use crate::access::statement::{Need, Side, statement};
use crate::aws::{Aws, Clients};
use crate::config::{Config, Member, TableArn};
use crate::failure::{Class, Failure};
use crate::peer::NEVER;
use crate::retry::{self, GaveUp, Jitter, Policy};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, ScalarAttributeType, StreamViewType, TableStatus};
use aws_sdk_dynamodbstreams::types::ShardIteratorType;
use futures::future::join_all;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A key attribute's name and type (`S`, `N` or `B`).
pub type KeyAttribute = (String, String);

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

/// One thing that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The member.
    pub member: String,
    /// The call that showed it, where one did.
    pub call: Option<&'static str>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "member {}: ", self.member)?;
        if let Some(call) = self.call {
            write!(f, "{call}: ")?;
        }
        write!(f, "{}\n  {}", self.what, self.remedy.replace('\n', "\n  "))
    }
}

/// Everything that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Findings(pub Vec<Finding>);

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().enumerate() {
            write!(f, "{}{finding}", if index > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
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

impl Preflight<'_> {
    /// Checks all members of all routes; gives what was found of each, in the order of the config (`None` for
    /// members that no route uses).
    ///
    /// # Errors
    /// Everything that does not hold, in the order of the config.
    pub async fn run(&self) -> Result<Vec<Option<Found>>, Findings> {
        let config = self.config;
        let used = |index: usize| config.routes.iter().any(|r| r.from == index || r.to.contains(&index));
        let members = config.members.iter().enumerate().map(|(index, member)| async move {
            if used(index) { Some(self.member(index, member).await) } else { None }
        });
        let results = join_all(members).await;
        let mut findings = Vec::new();
        let mut found = Vec::new();
        for result in results {
            match result {
                None => found.push(None),
                Some(Ok(table)) => found.push(Some(table)),
                Some(Err(problems)) => {
                    findings.extend(problems);
                    found.push(None);
                }
            }
        }
        self.compare_keys(&found, &mut findings);
        if findings.is_empty() { Ok(found) } else { Err(Findings(findings)) }
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
                findings.push(Finding {
                    member: config.members[to].name.clone(),
                    call: None,
                    what: format!("its primary key is {}, but that of {first} is {keys}", spell(&peer.keys)),
                    remedy: format!(
                        "the tables of {tables} must have the same key attributes, by name and type"
                    ),
                });
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
        self.describe(member, &clients).await
    }

    async fn member(&self, index: usize, member: &Member) -> Result<Found, Vec<Finding>> {
        let clients = self.aws.clients(&member.access).await;
        let found = self.describe(member, &clients).await.map_err(|finding| vec![finding])?;
        let mut findings = Vec::new();
        let mut leaving = self.config.routes.iter().filter(|route| route.from == index);
        let group = leaving.find_map(|route| Some((&self.config.groups[route.group?], route)));
        if self.config.routes.iter().any(|route| route.from == index) {
            let group = group.map(|(group, _)| group.name.as_str());
            findings.extend(self.source(member, &clients, &found, group).await);
        }
        if self.config.routes.iter().any(|route| route.to.contains(&index)) {
            let stamp = group.map(|(_, route)| route.stamp.as_str());
            findings.extend(Box::pin(self.peer(member, &clients, &found, stamp)).await);
        }
        if findings.is_empty() { Ok(found) } else { Err(findings) }
    }

    async fn describe(&self, member: &Member, clients: &Clients) -> Result<Found, Finding> {
        let name = member.arn.to_string();
        let call = "DescribeTable";
        let answer = self.patiently(|| clients.tables.describe_table().table_name(&name).send()).await;
        let answer = answer.map_err(|f| finding(member, call, &f, Need::DescribeTable, None))?;
        let bad = |what: String, remedy: &str| Finding {
            member: member.name.clone(),
            call: Some(call),
            what,
            remedy: remedy.to_owned(),
        };
        let Some(table) = answer.table else {
            return Err(bad("the answer holds no table".to_owned(), Class::Unrecognised.remedy()));
        };
        match table.table_status() {
            Some(TableStatus::Active | TableStatus::Updating) | None => {}
            Some(status) => {
                let what = format!("the table is {status}");
                return Err(bad(what, "wait until it is ACTIVE, then start again"));
            }
        }
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
        Ok(Found { keys, stream, id: table.table_id().unwrap_or_default().to_owned() })
    }

    /// `group` is the name of the group that the member is in.
    async fn source(
        &self,
        member: &Member,
        clients: &Clients,
        found: &Found,
        group: Option<&str>,
    ) -> Vec<Finding> {
        let table = &member.arn;
        let turn_on = format!(
            "turn it on: aws dynamodb update-table --table-name {} \
             --stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES\n\
             (in account {}; a new stream needs its own resource policy)",
            table.table, table.account
        );
        let finding_of = |what: &str, remedy: String| Finding {
            member: member.name.clone(),
            call: Some("DescribeTable"),
            what: what.to_owned(),
            remedy,
        };
        let Some(stream) = found.stream.as_ref().filter(|stream| stream.enabled) else {
            return vec![finding_of("the table's stream is off", turn_on)];
        };
        let lacks = match (StreamViewType::from(stream.view.as_str()), group) {
            (StreamViewType::NewAndOldImages, _) | (StreamViewType::NewImage, None) => None,
            (StreamViewType::NewImage, Some(group)) => {
                Some(format!("no old images; group {group} needs both"))
            }
            (_, _) => Some("no new images".to_owned()),
        };
        if let Some(lacks) = lacks {
            let what = format!("the stream's view type is {}, which has {lacks}", stream.view);
            let off = format!(
                "turn the stream off (aws dynamodb update-table --table-name {} \
                 --stream-specification StreamEnabled=false) and on again with NEW_AND_OLD_IMAGES; \
                 what changes in between is not in the new stream\n",
                table.table
            );
            return vec![finding_of(&what, off + &turn_on)];
        }
        match self.read_stream(clients, &stream.arn).await {
            Ok(()) => Vec::new(),
            Err((call, failure)) => {
                vec![finding(member, call, &failure, Need::ReadStream, Some(&stream.arn))]
            }
        }
    }

    /// The three calls that reading takes.
    async fn read_stream(&self, clients: &Clients, stream: &str) -> Result<(), (&'static str, Failure)> {
        let streams = &clients.streams;
        let describe = || streams.describe_stream().stream_arn(stream).limit(1).send();
        let answer = self.patiently(describe).await.map_err(|f| ("DescribeStream", f))?;
        let shards = answer.stream_description.and_then(|d| d.shards).unwrap_or_default();
        let Some(shard) = shards.into_iter().next().and_then(|shard| shard.shard_id) else { return Ok(()) };
        let open = || {
            streams
                .get_shard_iterator()
                .stream_arn(stream)
                .shard_id(&shard)
                .shard_iterator_type(ShardIteratorType::TrimHorizon)
                .send()
        };
        let iterator = match self.patiently(open).await {
            Ok(answer) => answer.shard_iterator,
            // The oldest shard may go between two calls.
            Err(failure) if failure.class == Class::NotFound => return Ok(()),
            Err(failure) => return Err(("GetShardIterator", failure)),
        };
        let Some(iterator) = iterator else { return Ok(()) };
        match self.patiently(|| streams.get_records().shard_iterator(&iterator).limit(1).send()).await {
            Err(failure) if !matches!(failure.class, Class::Trimmed | Class::NotFound) => {
                Err(("GetRecords", failure))
            }
            _ => Ok(()),
        }
    }

    /// Writes whose condition cannot hold: allowed ones fail by the condition. In a group, whose stamp attribute is
    /// `stamp`, there are updates too, and reads.
    async fn peer(
        &self,
        member: &Member,
        clients: &Clients,
        found: &Found,
        stamp: Option<&str>,
    ) -> Vec<Finding> {
        let (table, tables) = (member.arn.to_string(), &clients.tables);
        let value = |kind: &str| match ScalarAttributeType::from(kind) {
            ScalarAttributeType::N => AttributeValue::N("0".to_owned()),
            ScalarAttributeType::B => AttributeValue::B(Blob::new("shardwalker-probe")),
            _ => AttributeValue::S("shardwalker-probe".to_owned()),
        };
        let key: HashMap<_, _> = found.keys.iter().map(|(name, kind)| (name.clone(), value(kind))).collect();
        let Some((pk, _)) = found.keys.first() else { return Vec::new() };
        let key = || Some(key.clone());
        let put = || {
            let put = tables.put_item().table_name(&table).set_item(key());
            put.condition_expression(NEVER).expression_attribute_names("#pk", pk).send()
        };
        let delete = || {
            let delete = tables.delete_item().table_name(&table).set_key(key());
            delete.condition_expression(NEVER).expression_attribute_names("#pk", pk).send()
        };
        let update = |stamp: &str| {
            let update = tables.update_item().table_name(&table).set_key(key());
            let update =
                update.update_expression("REMOVE #stamp").expression_attribute_names("#stamp", stamp);
            update.condition_expression(NEVER).expression_attribute_names("#pk", pk).send()
        };
        let get = || tables.get_item().table_name(&table).set_key(key()).consistent_read(true).send();
        let updated = async {
            match stamp {
                Some(stamp) => self.patiently(|| update(stamp)).await.map(|_| ()),
                None => Ok(()),
            }
        };
        let got = async { if stamp.is_some() { self.patiently(get).await.map(|_| ()) } else { Ok(()) } };
        let (put, delete, updated, got) =
            futures::join!(self.patiently(put), self.patiently(delete), updated, got);
        let results = [
            ("PutItem", put.map(|_| ())),
            ("UpdateItem", updated),
            ("DeleteItem", delete.map(|_| ())),
            ("GetItem", got),
        ];
        let need = if stamp.is_some() { Need::WriteMember } else { Need::WritePeer };
        let failed = |(call, result): (&'static str, Result<(), Failure>)| match result {
            Err(failure) if failure.class != Class::Condition => {
                Some(finding(member, call, &failure, need, None))
            }
            _ => None,
        };
        results.into_iter().filter_map(failed).collect()
    }

    /// Tries a call for as long as policies may take to arrive.
    async fn patiently<T, E, F>(&self, call: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, E>>,
        Failure: From<E>,
    {
        let policy =
            Policy { slow: Duration::from_secs(4), ..Policy::for_at_most(self.config.access_patience) };
        let notice = |failure: &Failure, tries| {
            if tries == 1 {
                tracing::info!(why = %failure, "not allowed yet, or not reachable; policies take effect late, so it is tried again");
            }
        };
        let once = || async {
            match call().await.map_err(Failure::from) {
                // A table that is not there will not come by waiting.
                Err(failure) if failure.class == Class::NotFound => Ok(Err(failure)),
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

fn finding(
    member: &Member,
    call: &'static str,
    failure: &Failure,
    need: Need,
    stream: Option<&str>,
) -> Finding {
    let remedy = if failure.class == Class::Denied {
        denied(&member.arn, failure, need, stream)
    } else {
        failure.class.remedy().to_owned()
    };
    Finding { member: member.name.clone(), call: Some(call), what: failure.to_string(), remedy }
}

/// AWS says which side denied, and who asked.
fn denied(table: &TableArn, failure: &Failure, need: Need, stream: Option<&str>) -> String {
    let message = &failure.message;
    let principal = message.split_whitespace().find(|word| word.starts_with("arn:aws"));
    let principal = principal.map_or("<the ARN of the replicator's role>".to_owned(), role_of);
    if message.contains("explicit deny") {
        return "a Deny statement forbids it; no Allow can override that: remove or narrow it".to_owned();
    }
    let resource = need.resource_side();
    let sides: &[Side] = if message.contains("no identity-based policy") {
        &[Side::Identity]
    } else if message.contains("no resource-based policy") {
        &[resource]
    } else {
        &[Side::Identity, resource]
    };
    let part = |side: &Side| {
        let statement = statement(need, *side, table, stream, &principal);
        format!("add to {}:\n{statement}", side.place(table))
    };
    sides.iter().map(part).collect::<Vec<_>>().join("\n")
}

/// The role behind an assumed role's session: what a policy should name.
fn role_of(caller: &str) -> String {
    let fields: Vec<&str> = caller.splitn(6, ':').collect();
    match (fields.as_slice(), caller.split('/').collect::<Vec<_>>().as_slice()) {
        ([arn, partition, "sts", _, account, rest], [_, role, ..]) if rest.starts_with("assumed-role/") => {
            format!("{arn}:{partition}:iam::{account}:role/{role}")
        }
        _ => caller.to_owned(),
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

    fn table() -> TableArn {
        "arn:aws:dynamodb:eu-west-1:111111111111:table/orders".parse().unwrap()
    }

    fn denial(why: &str) -> Failure {
        let message = format!(
            "User: arn:aws:sts::999999999999:assumed-role/replicator/i-1 is not authorized to perform: \
             dynamodb:GetRecords on resource: x because {why}"
        );
        Failure::new(Class::Denied, "AccessDeniedException", message)
    }

    #[test]
    fn a_denial_names_the_side_and_the_statement() {
        let stream = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders/stream/2026";
        let say = |why: &str| denied(&table(), &denial(why), Need::ReadStream, Some(stream));
        let resource = say("no resource-based policy allows the dynamodb:GetRecords action");
        assert_eq!(
            resource,
            format!(
                "add to the resource policy of the table's current stream, in account 111111111111:\n{}",
                r#"{"Action":["dynamodb:DescribeStream","dynamodb:GetRecords","dynamodb:GetShardIterator"],"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::999999999999:role/replicator"},"Resource":"arn:aws:dynamodb:eu-west-1:111111111111:table/orders/stream/2026"}"#
            )
        );
        let identity = say("no identity-based policy allows the dynamodb:GetRecords action");
        assert!(
            identity.starts_with("add to the identity policy") && identity.contains("stream/*"),
            "{identity}"
        );
        assert!(!identity.contains("Principal"));
        assert!(say("of an explicit deny in a resource-based policy").contains("Deny"));
        let unknown = say("reasons");
        assert!(unknown.contains("identity policy") && unknown.contains("resource policy"), "{unknown}");
    }

    #[test]
    fn a_session_is_named_by_its_role() {
        assert_eq!(role_of("arn:aws:sts::1:assumed-role/r/s"), "arn:aws:iam::1:role/r");
        assert_eq!(role_of("arn:aws:iam::1:user/u"), "arn:aws:iam::1:user/u");
    }
}
