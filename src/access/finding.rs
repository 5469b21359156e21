//! What a probe's answer means: allowed, denied on which side, or not to be known; and for a denial, the statement to
//! add and where.
//!
//! AWS says in a denial who asked for what, and which side does not allow it. Pure.

use super::needs::{Action, Needs};
use super::policy::{Identity, account_of};
use super::statement::{Side, allow, resource};
use crate::config::{Access, AssumeRole, TableArn};
use crate::failure::{Class, Failure};
use serde_json::{Value, json};
use std::fmt;

/// What is known of one permission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A call went through, or failed by nothing but its condition.
    Allowed,
    /// The caller's identity policies do not allow it. What the resource says is not known then.
    DeniedByIdentity,
    /// The resource's policy does not allow it.
    DeniedByResource,
    /// A Deny statement somewhere forbids it.
    Forbidden,
    /// Denied, and AWS does not say by which side.
    Denied,
    /// It could not be tried, or failed by something else: why.
    Unknown(String),
}

impl Verdict {
    /// In tables and JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Allowed => "ok",
            Self::DeniedByIdentity => "denied by identity",
            Self::DeniedByResource => "denied by resource",
            Self::Forbidden => "denied by a Deny",
            Self::Denied => "denied",
            Self::Unknown(_) => "cannot know",
        }
    }
}

/// One permission of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// The member's name, or `state table`.
    pub member: String,
    /// As policies name it, such as `dynamodb:GetItem`.
    pub action: String,
    /// What is known.
    pub verdict: Verdict,
}

/// A statement to add.
#[derive(Debug, Clone, PartialEq)]
pub struct Addition {
    /// Where it goes, for a person.
    pub place: String,
    /// The statement.
    pub statement: Value,
}

/// One thing that does not hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The member, or `state table`.
    pub member: String,
    /// The calls that showed it, where some did.
    pub call: Option<Box<str>>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
    /// What to add to policies, where that is the remedy.
    pub add: Vec<Addition>,
    /// Whether it can pass without any change of the config or of a table's definition: an outage, a denial.
    pub passing: bool,
}

impl Finding {
    /// One that no statement mends.
    #[must_use]
    pub fn new(
        member: &str,
        call: Option<Action>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let call = call.map(|action| action.call().into());
        let (member, what, remedy) = (member.to_owned(), what.into(), remedy.into());
        Self { member, call, what, remedy, add: Vec::new(), passing: false }
    }

    /// This one, as one that can pass.
    #[must_use]
    pub fn passing(self) -> Self {
        Self { passing: true, ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}: ", if self.member == STATE { "" } else { "member " }, self.member)?;
        if let Some(call) = &self.call {
            write!(f, "{call}: ")?;
        }
        write!(f, "{}\n  {}", self.what, self.remedy.replace('\n', "\n  "))
    }
}

/// Everything that does not hold.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub struct Findings(pub Vec<Finding>);

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().enumerate() {
            write!(f, "{}{finding}", if index > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

/// How the state table is called among the members.
pub const STATE: &str = "state table";

/// The table that a probe was about.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The member's name, or [`STATE`].
    pub name: &'a str,
    /// The table; of a state table that is named without its account, the account is empty.
    pub table: TableArn,
    /// How it is reached.
    pub access: &'a Access,
    /// What is needed of it.
    pub needs: &'a Needs,
    /// Its current stream, once it is known.
    pub stream: Option<String>,
}

impl Subject<'_> {
    /// What the outcome of a probe says of a permission.
    #[must_use]
    pub fn judge(&self, action: Action, outcome: &Result<(), Failure>) -> (Cell, Option<Finding>) {
        let cell = |verdict| Cell { member: self.name.to_owned(), action: action.name(), verdict };
        let failure = match outcome {
            Ok(()) => return (cell(Verdict::Allowed), None),
            Err(failure) => failure,
        };
        if of_a_key(&failure.message) {
            let finding = Finding::new(self.name, Some(action), failure.to_string(), KEY);
            return (cell(Verdict::Denied), Some(finding.passing()));
        }
        let finding = match failure.class {
            Class::Denied => self.denied(action, failure),
            Class::Credentials => self.no_credentials(action, failure),
            Class::NotFound if action == Action::DescribeTable => {
                let what =
                    format!("{failure} (looked for {} in Region {})", self.table.table, self.access.region);
                Finding::new(self.name, Some(action), what, failure.class.remedy())
            }
            _ => Finding::new(self.name, Some(action), failure.to_string(), failure.class.remedy()),
        };
        let verdict = match failure.class {
            Class::Denied => verdict_of(&failure.message),
            _ => Verdict::Unknown(failure.to_string()),
        };
        (cell(verdict), Some(finding.passing()))
    }

    fn denied(&self, action: Action, failure: &Failure) -> Finding {
        let message = &failure.message;
        let verdict = verdict_of(message);
        let resource_side = Side::of_resource(action);
        let other = other_policy(message);
        let sides: &[Side] = match verdict {
            Verdict::Forbidden => &[],
            Verdict::Denied if other.is_some() => &[],
            Verdict::DeniedByIdentity => &[Side::Identity],
            Verdict::DeniedByResource => &[resource_side],
            _ => &[Side::Identity, resource_side],
        };
        let caller = caller(message);
        // A session does not tell the path of its role; the config does, of one that is assumed.
        let assumed = self.access.assume_role.as_ref().map(|role| &role.role_arn);
        let caller = assumed.filter(|role| same_role(role, &caller)).cloned().unwrap_or(caller);
        // A table that is named without its account is in the caller's own.
        let mut table = self.table.clone();
        if table.account.is_empty() {
            account_of(&caller).clone_into(&mut table.account);
        }
        let addition = |side: &Side| {
            let current = self.stream.as_deref().filter(|_| *side != Side::Identity);
            let resource = resource(&table, action.on_stream(), current);
            let principal = (*side != Side::Identity).then_some(caller.as_str());
            Addition {
                place: side.place(&table, self.access),
                statement: allow(&self.needs.on(action.on_stream()), &resource, principal),
            }
        };
        let add: Vec<Addition> = sides.iter().map(addition).collect();
        let remedy = match (other, add.is_empty()) {
            (Some(policy), true) if verdict == Verdict::Denied => {
                format!(
                    "a {policy} bounds the caller, and must allow it; no statement anywhere else can help"
                )
            }
            (Some(policy), true) => format!("a Deny statement in a {policy} forbids it: remove or narrow it"),
            (None, true) => {
                "a Deny statement forbids it; no Allow can override that: remove or narrow it".to_owned()
            }
            (_, false) => format!("{}\n{CONDITIONS}", spell(&add)),
        };
        Finding { add, ..Finding::new(self.name, Some(action), failure.to_string(), remedy) }
    }

    /// No credentials, most often because a role could not be assumed.
    fn no_credentials(&self, action: Action, failure: &Failure) -> Finding {
        let text = failure.to_string();
        let role = self.access.assume_role.as_ref().filter(|_| text.contains("sts:AssumeRole"));
        let Some(role) = role else {
            let remedy = match () {
                () if text.contains("Signature expired") || text.contains("Signature not yet current") => {
                    "this host's clock is wrong: AWS refuses signatures that are five minutes off; set it"
                }
                () if text.contains("scoped to a valid region") => {
                    "the endpoint serves another Region than the table's: requests are signed for the table's"
                }
                () => failure.class.remedy(),
            };
            return Finding::new(self.name, Some(action), text, remedy);
        };
        not_assumed(self.name, role, &text)
    }
}

/// A role that cannot be assumed, with what both sides must say.
pub(super) fn not_assumed(name: &str, role: &AssumeRole, text: &str) -> Finding {
    let caller = caller(text);
    let mut trust = json!({
        "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": { "AWS": caller },
    });
    if let Some(id) = &role.external_id {
        trust["Condition"] = json!({ "StringEquals": { "sts:ExternalId": id } });
    }
    let own = json!({ "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": role.role_arn });
    let add = vec![
        Addition { place: format!("the identity policy of {caller}"), statement: own },
        Addition { place: format!("the trust policy of {}", role.role_arn), statement: trust },
    ];
    let what = format!("the role {} cannot be assumed: {text}", role.role_arn);
    let remedy = format!("{}\n(AWS does not say which of the two is missing)", spell(&add));
    Finding { add, ..Finding::new(name, None, what, remedy) }
}

/// Beside every statement to add.
const CONDITIONS: &str = "(where a statement allows it already, one of its conditions does not hold: organization, VPC endpoint, network)";

/// Of a table that is encrypted with a KMS key.
const KEY: &str = "the table is encrypted with a key that the caller may not use. If it is the AWS managed key \
    (aws/dynamodb), no policy can share the table across accounts: that is impossible; encrypt it with the AWS owned key \
    or a customer key, or reach it by a role in its account. If it is a customer key, its policy and the caller's must \
    allow it: shardwalker policy --kms-key MEMBER=ARN writes both";

/// Whether a message is about a KMS key, and not about a table that is called so: names have no colon.
fn of_a_key(message: &str) -> bool {
    ["kms:", "KMS key ", "KMS validation error"].iter().any(|words| message.contains(words))
}

/// Statements to add, for a person.
pub(super) fn spell(add: &[Addition]) -> String {
    let part = |addition: &Addition| format!("add to {}:\n{}", addition.place, addition.statement);
    add.iter().map(part).collect::<Vec<_>>().join("\n")
}

/// AWS says which side denied.
pub(super) fn verdict_of(message: &str) -> Verdict {
    if message.contains("explicit deny") {
        Verdict::Forbidden
    } else if message.contains("no identity-based policy") {
        Verdict::DeniedByIdentity
    } else if message.contains("no resource-based policy") {
        Verdict::DeniedByResource
    } else {
        Verdict::Denied
    }
}

/// A policy that is neither the caller's nor the resource's, where AWS names one.
fn other_policy(message: &str) -> Option<&'static str> {
    let kinds = [
        "session policy",
        "permissions boundary",
        "service control policy",
        "resource control policy",
        "VPC endpoint policy",
    ];
    kinds.into_iter().find(|kind| message.contains(kind))
}

/// Whether two ARNs name one role but for its path.
fn same_role(one: &str, other: &str) -> bool {
    let name = |arn: &str| Identity::of(arn).name.to_owned();
    account_of(one) == account_of(other) && name(one) == name(other)
}

/// The ARNs in a message; the first is the caller's.
fn arns(message: &str) -> impl Iterator<Item = &str> {
    message.split_whitespace().filter(|word| word.starts_with("arn:aws"))
}

/// Who a denial says was denied: of a session, its role.
pub(super) fn caller(message: &str) -> String {
    arns(message).next().map_or("<the ARN of the replicator's role>".to_owned(), role_of)
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

/// Findings of one table with the same remedy as one, which names all their calls.
#[must_use]
pub fn folded(findings: Vec<Finding>) -> Vec<Finding> {
    let mut folded: Vec<Finding> = Vec::new();
    for finding in findings {
        let same = |other: &&mut Finding| {
            !finding.add.is_empty() && other.member == finding.member && other.remedy == finding.remedy
        };
        match (folded.iter_mut().find(same), finding.call.as_ref()) {
            (Some(other), Some(call)) => {
                if let Some(calls) = &mut other.call {
                    *calls = format!("{calls}, {call}").into();
                }
            }
            (Some(_), None) => {}
            (None, _) => folded.push(finding),
        }
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const STREAM: &str = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders/stream/2026";

    fn access() -> Access {
        Access {
            region: "eu-west-1".into(),
            endpoint: None,
            streams_endpoint: None,
            profile: None,
            assume_role: None,
        }
    }

    fn needs() -> Needs {
        let actions =
            [Action::DescribeTable, Action::DescribeStream, Action::GetRecords, Action::GetShardIterator];
        Needs { actions: actions.into(), ..Needs::default() }
    }

    fn judge(access: &Access, class: Class, message: &str) -> (Verdict, Finding) {
        let table = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders".parse().unwrap();
        let needs = needs();
        let subject = Subject { name: "a", table, access, needs: &needs, stream: Some(STREAM.to_owned()) };
        let failure = Failure::new(class, "AccessDeniedException", message);
        let (cell, finding) = subject.judge(Action::GetRecords, &Err(failure));
        (cell.verdict, finding.unwrap())
    }

    fn denial(why: &str) -> (Verdict, Finding) {
        let message = format!(
            "User: arn:aws:sts::999999999999:assumed-role/replicator/i-1 is not authorized to perform: \
             dynamodb:GetRecords on resource: x because {why}"
        );
        judge(&access(), Class::Denied, &message)
    }

    #[test]
    fn a_denial_names_the_side_and_the_statement() {
        let (verdict, finding) = denial("no resource-based policy allows the dynamodb:GetRecords action");
        assert_eq!(verdict, Verdict::DeniedByResource);
        assert_eq!(
            finding.remedy,
            format!(
                "add to the resource policy of the table's current stream, in account 111111111111:\n{}\n{CONDITIONS}",
                r#"{"Action":["dynamodb:DescribeStream","dynamodb:GetRecords","dynamodb:GetShardIterator"],"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::999999999999:role/replicator"},"Resource":"arn:aws:dynamodb:eu-west-1:111111111111:table/orders/stream/2026"}"#
            )
        );
        let (verdict, finding) = denial("no identity-based policy allows the dynamodb:GetRecords action");
        assert_eq!(verdict, Verdict::DeniedByIdentity);
        let remedy = finding.remedy;
        assert!(remedy.starts_with("add to the identity policy") && remedy.contains("stream/*"), "{remedy}");
        assert!(!remedy.contains("Principal"));
        let (verdict, finding) = denial("of an explicit deny in a resource-based policy");
        assert!(verdict == Verdict::Forbidden && finding.add.is_empty() && finding.remedy.contains("Deny"));
        for policy in
            ["session policy", "permissions boundary", "service control policy", "VPC endpoint policy"]
        {
            let (verdict, finding) = denial(&format!("no {policy} allows the dynamodb:GetRecords action"));
            assert!(verdict == Verdict::Denied && finding.add.is_empty(), "{policy}: {finding}");
            assert!(finding.remedy.contains(policy), "{policy}: {finding}");
        }
        let (_, finding) = denial("of an explicit deny in a service control policy");
        assert!(finding.add.is_empty() && finding.remedy.contains("service control policy"), "{finding}");
        let (verdict, finding) = denial("reasons");
        assert_eq!((verdict, finding.add.len()), (Verdict::Denied, 2), "either side");
    }

    #[test]
    fn a_role_that_cannot_be_assumed_is_said_with_both_sides() {
        let role = AssumeRole {
            role_arn: "arn:aws:iam::111111111111:role/in".into(),
            external_id: Some("id".into()),
            session_name: "shardwalker".into(),
            duration: Duration::from_hours(1),
            sts_endpoint: None,
        };
        let access = Access { assume_role: Some(role), ..access() };
        let message = "User: arn:aws:iam::999999999999:user/u is not authorized to perform: sts:AssumeRole on \
                       resource: arn:aws:iam::111111111111:role/in";
        let (verdict, finding) = judge(&access, Class::Credentials, message);
        assert!(matches!(verdict, Verdict::Unknown(_)));
        assert!(finding.what.contains("role/in cannot be assumed"), "{finding}");
        assert_eq!(finding.add[0].statement["Resource"], "arn:aws:iam::111111111111:role/in");
        assert_eq!(finding.add[1].statement["Condition"]["StringEquals"]["sts:ExternalId"], "id");
    }

    #[test]
    fn keys_clocks_and_regions_are_named() {
        let key = "KMS key access denied error: User: arn:aws:iam::9:role/r is not authorized to perform: kms:Decrypt";
        let (verdict, finding) = judge(&access(), Class::Denied, key);
        assert!(verdict == Verdict::Denied && finding.remedy.contains("that is impossible"), "{finding}");
        let clock = "Signature expired: 20260101T000000Z is now earlier than 20260101T010000Z";
        let (_, finding) = judge(&access(), Class::Credentials, clock);
        assert!(finding.remedy.contains("this host's clock is wrong"), "{finding}");
        let region = "Credential should be scoped to a valid region, not 'us-east-1'.";
        let (_, finding) = judge(&access(), Class::Credentials, region);
        assert!(finding.remedy.contains("another Region"), "{finding}");
    }

    #[test]
    fn an_assumed_role_is_named_with_its_path() {
        let role = AssumeRole {
            role_arn: "arn:aws:iam::111111111111:role/team-a/in".into(),
            external_id: None,
            session_name: "shardwalker".into(),
            duration: Duration::from_hours(1),
            sts_endpoint: None,
        };
        let access = Access { assume_role: Some(role), ..access() };
        let message = "User: arn:aws:sts::111111111111:assumed-role/in/s is not authorized to perform: \
                       dynamodb:GetRecords on resource: x because no resource-based policy allows it";
        let (_, finding) = judge(&access, Class::Denied, message);
        assert_eq!(finding.add[0].statement["Principal"]["AWS"], "arn:aws:iam::111111111111:role/team-a/in");
    }

    #[test]
    fn a_table_whose_name_speaks_of_keys_is_a_table() {
        let message = "User: arn:aws:iam::9:role/r is not authorized to perform: dynamodb:GetRecords on resource: \
                       arn:aws:dynamodb:eu-west-1:111111111111:table/kms-orders because no resource-based policy \
                       allows the dynamodb:GetRecords action";
        let (verdict, finding) = judge(&access(), Class::Denied, message);
        assert_eq!(verdict, Verdict::DeniedByResource);
        assert_eq!(finding.add.len(), 1, "{finding}");
    }

    #[test]
    fn a_session_is_named_by_its_role() {
        assert_eq!(role_of("arn:aws:sts::1:assumed-role/r/s"), "arn:aws:iam::1:role/r");
        assert_eq!(role_of("arn:aws:iam::1:user/u"), "arn:aws:iam::1:user/u");
    }

    #[test]
    fn what_one_statement_mends_is_one_finding() {
        let (_, one) = denial("no resource-based policy allows the dynamodb:GetRecords action");
        let mut two = one.clone();
        two.call = Some("DescribeStream".into());
        let folded = folded(vec![one, two]);
        assert_eq!((folded.len(), folded[0].call.as_deref()), (1, Some("GetRecords, DescribeStream")));
    }
}
