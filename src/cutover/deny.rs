//! The statement that keeps writers from a table, and putting it into the table's resource policy and out again.
//!
//! Whatever else the policy says stays as it is: only the statement with this route's id is added, replaced or taken away,
//! and each change is conditional on the policy's revision. Looks at a policy are not consistent: a change counts once all of
//! them show it for a while. A resource policy does not reach PartiQL; writers that use it
//! are denied `dynamodb:PartiQLInsert`, `PartiQLUpdate` and `PartiQLDelete` by their identity policies.

use crate::access::statement::document;
use crate::failure::{Class, Failure};
use aws_sdk_dynamodb::Client;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// What writers do. Transactions are authorized by the actions that they are made of.
const WRITES: [&str; 4] =
    ["dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem", "dynamodb:BatchWriteItem"];
/// What GetResourcePolicy shows, and what is enforced, may be some seconds old: what all looks show for so long is so.
const SETTLED: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// The policy may change under the hands of others; after so long it is theirs.
const PATIENCE: Duration = Duration::from_secs(60);
/// No policy, or another revision than the one that was expected.
const ABSENT: &str = "PolicyNotFoundException";

/// The id of a route's statement: letters and digits only, and another one for every route.
#[must_use]
pub fn sid(route: &str) -> String {
    let letter =
        |c: char| if c.is_ascii_alphanumeric() { c.to_string() } else { format!("x{:02x}", u32::from(c)) };
    format!("ShardwalkerCutover{}", route.chars().map(letter).collect::<String>())
}

/// The statement that denies all writes of a table to everybody but `principals`.
#[must_use]
pub fn statement(route: &str, table: &str, principals: &[String]) -> Value {
    let principal = match principals {
        [one] => json!(one),
        several => json!(several),
    };
    json!({
        "Sid": sid(route),
        "Effect": "Deny",
        "Principal": "*",
        "Action": WRITES,
        "Resource": table,
        "Condition": { "ArnNotEquals": { "aws:PrincipalArn": principal } },
    })
}

/// A table's resource policy.
#[derive(Debug)]
pub struct ResourcePolicy<'a> {
    /// A client of the table's account.
    pub client: &'a Client,
    /// The table's ARN.
    pub table: &'a str,
}

impl ResourcePolicy<'_> {
    /// Adds a statement, in place of one with the same id, and sees that it stays. `still` is asked before each change.
    ///
    /// # Errors
    /// The failure of a call, or of `still`; trying again is harmless.
    pub async fn attach<F>(&self, statement: &Value, still: impl Fn() -> F) -> Result<(), Failure>
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let there = |statements: &[Value]| statements.contains(statement);
        let with = |mut statements: Vec<Value>| {
            statements.retain(|other| other["Sid"] != statement["Sid"]);
            statements.push(statement.clone());
            statements
        };
        self.settle(there, with, still).await
    }

    /// Takes the statement with an id away, the policy with it when there is no other, and sees that it stays away.
    ///
    /// # Errors
    /// The failure of a call; trying again is harmless.
    pub async fn detach(&self, sid: &str) -> Result<(), Failure> {
        let gone = |statements: &[Value]| statements.iter().all(|one| one["Sid"] != sid);
        let without = |mut statements: Vec<Value>| {
            statements.retain(|one| one["Sid"] != sid);
            statements
        };
        self.settle(gone, without, || async { Ok(()) }).await
    }

    /// Whether a statement with this id is gone: whether no look for a while shows it.
    ///
    /// # Errors
    /// The failure of a call.
    pub async fn lacks(&self, sid: &str) -> Result<bool, Failure> {
        let begun = Instant::now();
        loop {
            if self.holds(sid).await? {
                return Ok(false);
            }
            if begun.elapsed() >= SETTLED {
                return Ok(true);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether one look shows a statement with this id.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn holds(&self, sid: &str) -> Result<bool, Failure> {
        let found = self.get().await?;
        Ok(found.is_some_and(|(policy, _)| statements(&policy).iter().any(|one| one["Sid"] == sid)))
    }

    /// Changes the statements until all looks for a while show them as they should be.
    async fn settle<F>(
        &self,
        right: impl Fn(&[Value]) -> bool,
        change: impl Fn(Vec<Value>) -> Vec<Value>,
        still: impl Fn() -> F,
    ) -> Result<(), Failure>
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let (begun, mut since) = (Instant::now(), None);
        loop {
            let found = self.get().await?;
            let now = found.as_ref().map(|(policy, _)| statements(policy)).unwrap_or_default();
            if right(&now) {
                if since.get_or_insert_with(Instant::now).elapsed() >= SETTLED {
                    return Ok(());
                }
            } else if begun.elapsed() > PATIENCE {
                let why = "the resource policy does not stay as it is put";
                return Err(Failure::new(Class::Transient, "Contended", why));
            } else {
                since = None;
                still().await?;
                // Of another revision than the one that was seen nothing is changed.
                self.set(found.as_ref(), change(now)).await?;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn set(&self, found: Option<&(Value, String)>, statements: Vec<Value>) -> Result<(), Failure> {
        let revision = found.map_or("NO_POLICY", |(_, revision)| revision);
        let done = if statements.is_empty() {
            let delete = self.client.delete_resource_policy().resource_arn(self.table);
            delete.expected_revision_id(revision).send().await.map(drop).map_err(Failure::from)
        } else {
            let mut policy = found.map_or_else(|| document(Vec::new()), |(policy, _)| policy.clone());
            policy["Statement"] = Value::Array(statements);
            let put = self.client.put_resource_policy().resource_arn(self.table).policy(policy.to_string());
            put.expected_revision_id(revision).send().await.map(drop).map_err(Failure::from)
        };
        match done {
            Err(failure) if failure.code == ABSENT => Ok(()),
            done => done,
        }
    }

    async fn get(&self) -> Result<Option<(Value, String)>, Failure> {
        let answer = self.client.get_resource_policy().resource_arn(self.table).send().await;
        let answer = match answer.map_err(Failure::from) {
            Err(failure) if failure.code == ABSENT => return Ok(None),
            answer => answer?,
        };
        let (Some(policy), Some(revision)) = (answer.policy, answer.revision_id) else { return Ok(None) };
        let policy = serde_json::from_str(&policy)
            .map_err(|error| Failure::new(Class::Invalid, "BadPolicy", error.to_string()))?;
        Ok(Some((policy, revision)))
    }
}

/// A policy may hold one statement without a list.
fn statements(policy: &Value) -> Vec<Value> {
    match &policy["Statement"] {
        Value::Array(statements) => statements.clone(),
        Value::Null => Vec::new(),
        one => vec![one.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_letters_and_digits_and_of_one_route() {
        assert_eq!(sid("orders-2.b_c"), "ShardwalkerCutoverordersx2d2x2ebx5fc");
        assert_ne!(sid("a-b"), sid("ab"));
    }

    #[test]
    fn one_statement_is_a_list_of_one() {
        assert_eq!(statements(&json!({ "Statement": { "Sid": "a" } })), [json!({ "Sid": "a" })]);
        assert_eq!(statements(&json!({})), [Value::Null; 0]);
    }
}
