//! Policy statements: how one that allows something looks, and on which side it stands.

use super::needs::Action;
use crate::config::{Access, TableArn};
use serde_json::{Value, json};

/// A side of a permission across accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The identity policy of the caller (the role that the replicator runs as, or assumes).
    Identity,
    /// The resource policy of the table.
    Table,
    /// The resource policy of the stream, which is a document of its own.
    Stream,
}

impl Side {
    /// Where the resource side of an action is written.
    #[must_use]
    pub fn of_resource(action: Action) -> Self {
        if action.on_stream() { Self::Stream } else { Self::Table }
    }

    /// Where the statement goes, for a person.
    #[must_use]
    pub fn place(self, table: &TableArn, access: &Access) -> String {
        let account = &table.account;
        match self {
            Self::Identity => identity(access),
            Self::Table => format!("the resource policy of the table, in account {account}"),
            Self::Stream => {
                format!("the resource policy of the table's current stream, in account {account}")
            }
        }
    }
}

/// The policy of whoever makes the calls of an access, for a person.
pub(super) fn identity(access: &Access) -> String {
    match &access.assume_role {
        None => "the identity policy of the role that makes the call".to_owned(),
        Some(role) => format!("the identity policy of {}", role.role_arn),
    }
}

/// The resource of actions on a table (or, with `stream`, on its stream) as a policy names it. A stream's own ARN
/// ends in a time that changes with every new stream: `current` when it is known and only it is meant.
#[must_use]
pub fn resource(table: &TableArn, on_stream: bool, current: Option<&str>) -> String {
    match (on_stream, current) {
        (false, _) => table.to_string(),
        (true, Some(stream)) => stream.to_owned(),
        (true, None) => format!("{table}/stream/*"),
    }
}

/// The statement that allows `actions` on a resource to `principal`; in an identity policy, without one.
#[must_use]
pub fn allow<'a>(
    actions: impl IntoIterator<Item = &'a Action>,
    resource: &str,
    principal: Option<&str>,
) -> Value {
    let actions: Vec<String> = actions.into_iter().map(|action| action.name()).collect();
    let mut statement = json!({ "Effect": "Allow", "Action": actions, "Resource": resource });
    if let Some(principal) = principal {
        statement["Principal"] = json!({ "AWS": principal });
    }
    statement
}

/// A whole document.
#[must_use]
pub fn document(statements: Vec<Value>) -> Value {
    json!({ "Version": "2012-10-17", "Statement": statements })
}
