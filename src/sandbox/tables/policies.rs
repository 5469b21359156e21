//! Resource policies of tables and streams: putting, getting and deleting them.
//!
//! Owns revisions, the size limit and the refusal of public policies. Promises that a policy belongs to the one
//! table or stream that it was put on: a successor starts without.

use super::Region;
use crate::iam::policy::{Effect, Policy};
use crate::sandbox::arn::{Arn, Part};
use crate::sandbox::error::{ApiError, ApiResult};
use crate::sandbox::iam::Document;
use crate::sandbox::time::Propagating;
use serde_json::{Value, json};

/// AWS's bound of a policy, white space included.
const MOST_BYTES: usize = 20 * 1024;

/// What may narrow a statement for everybody, by AWS's list for blocking public access.
const NARROWING: [&str; 11] = [
    "aws:principalaccount",
    "aws:principalarn",
    "aws:principalorgid",
    "aws:principalorgpaths",
    "aws:sourceaccount",
    "aws:sourcearn",
    "aws:sourceorgid",
    "aws:sourcevpc",
    "aws:sourcevpce",
    "aws:userid",
    "aws:ec2instancesourcevpc",
];

/// The policy of a table or stream, with its revision.
#[derive(Debug, Clone)]
pub struct ResourcePolicy {
    revision: String,
    /// With the revision of each.
    document: Propagating<Option<(Document, String)>>,
}

impl ResourcePolicy {
    /// What decides at a time, in milliseconds since 1970.
    #[must_use]
    pub fn effective(&self, now_ms: u64) -> Option<&Document> {
        self.document.effective(now_ms).as_ref().map(|(document, _)| document)
    }

    fn latest(&self) -> Option<&(Document, String)> {
        self.document.latest().as_ref()
    }
}

impl Region {
    fn policy_slot(&mut self, arn: &Arn) -> ApiResult<&mut Option<ResourcePolicy>> {
        let missing = || ApiError::not_found(format!("Requested resource not found: {arn}"));
        let now = self.now_ms();
        match &arn.part {
            Part::Table => self.table_mut(&arn.table).map(|table| &mut table.policy).ok_or_else(missing),
            Part::Stream(_) => {
                let stream = self.streams_mut().get_mut(&arn.to_string()).filter(|s| !s.is_gone(now));
                stream.map(|stream| &mut stream.policy).ok_or_else(missing)
            }
            Part::Index(_) => Err(ApiError::validation("A policy is attached to a table or a stream")),
        }
    }

    /// PutResourcePolicy.
    pub(in crate::sandbox) fn put_resource_policy(&mut self, arn: &Arn, body: &Value) -> ApiResult<Value> {
        let text = body.get("Policy").and_then(Value::as_str).unwrap_or_default();
        if text.len() > MOST_BYTES {
            return Err(ApiError::validation("Resource policy size exceeds the limit of 20480 bytes"));
        }
        let invalid = |problem: String| ApiError::validation(format!("Invalid policy document: {problem}"));
        let document = Document::read(text).map_err(|error| invalid(error.message))?;
        for (index, statement) in document.policy.statements.iter().enumerate() {
            if statement.principals.is_none() {
                return Err(invalid(format!("Statement {index} has no Principal")));
            }
            let Some(resources) = &statement.resources else {
                return Err(invalid(format!("Statement {index} has no Resource")));
            };
            let owned = |pattern: &String| pattern == "*" || pattern.starts_with("arn:aws:dynamodb:");
            if let Some(foreign) = resources.any_of.iter().find(|pattern| !owned(pattern)) {
                return Err(invalid(format!("Statement {index} names {foreign}, which is not DynamoDB's")));
            }
        }
        if let Some(index) = public_statement(&document.policy) {
            return Err(ApiError::validation(format!(
                "Resource-based policy grants public access through statement {index}, which Block Public \
                 Access prevents"
            )));
        }
        let now = self.now_ms();
        let effective = now + self.faults().weather().policy_delay_ms;
        let revision = format!("{now}{:03}", self.chance().below(1000));
        let slot = self.policy_slot(arn)?;
        let current = slot.as_ref().filter(|policy| policy.latest().is_some());
        check_revision(body, current, arn)?;
        let policy = slot.get_or_insert_with(|| ResourcePolicy {
            revision: String::new(),
            document: Propagating::settled(None),
        });
        policy.document.set(Some((document, revision.clone())), now, effective);
        policy.revision.clone_from(&revision);
        Ok(json!({ "RevisionId": revision }))
    }

    /// GetResourcePolicy: what is in effect. AWS says of it that it may show an earlier policy, or none, for a while.
    pub(in crate::sandbox) fn get_resource_policy(&mut self, arn: &Arn) -> ApiResult<Value> {
        let now = self.now_ms();
        let slot = self.policy_slot(arn)?;
        let found = slot.as_ref().and_then(|policy| policy.document.effective(now).as_ref());
        let (document, revision) = found.ok_or_else(|| no_policy(arn))?;
        Ok(json!({"Policy": document.text, "RevisionId": revision}))
    }

    /// DeleteResourcePolicy. Deleting what is not there is fine, as at AWS.
    pub(in crate::sandbox) fn delete_resource_policy(&mut self, arn: &Arn, body: &Value) -> ApiResult<Value> {
        let now = self.now_ms();
        let effective = now + self.faults().weather().policy_delay_ms;
        let slot = self.policy_slot(arn)?;
        let current = slot.as_ref().filter(|policy| policy.latest().is_some());
        check_revision(body, current, arn)?;
        match slot {
            Some(policy) if policy.latest().is_some() => {
                policy.document.set(None, now, effective);
                Ok(json!({ "RevisionId": policy.revision }))
            }
            _ => Ok(json!({})),
        }
    }
}

fn no_policy(arn: &Arn) -> ApiError {
    ApiError::new(
        "PolicyNotFoundException",
        format!("Resource-based policy not found for the provided ResourceArn: {arn}"),
    )
}

fn check_revision(body: &Value, current: Option<&ResourcePolicy>, arn: &Arn) -> ApiResult<()> {
    match (body.get("ExpectedRevisionId").and_then(Value::as_str), current) {
        (None, _) | (Some("NO_POLICY"), None) => Ok(()),
        (Some(expected), Some(policy)) if expected == policy.revision => Ok(()),
        _ => Err(no_policy(arn)),
    }
}

/// The first statement that allows everybody without a condition that narrows it.
fn public_statement(policy: &Policy) -> Option<usize> {
    policy.statements.iter().position(|statement| {
        let everybody = statement.principals.as_ref().is_some_and(|p| p.aws.iter().any(|name| name == "*"));
        let narrowed = statement
            .conditions
            .iter()
            .any(|condition| NARROWING.contains(&condition.key.as_str()) && condition.pins_its_key());
        statement.effect == Effect::Allow && everybody && !narrowed
    })
}
