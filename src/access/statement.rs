//! Policy statements: which actions are needed where, and the statement that allows them.

use crate::config::TableArn;
use serde_json::{Value, json};

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Finding a table, its keys and its stream.
    DescribeTable,
    /// Reading the source's stream.
    ReadStream,
    /// Writing to a peer on a one-way route.
    WritePeer,
    /// Writing to a member of a group: deletes are marked first, and an item is read before it is repaired.
    WriteMember,
}

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

impl Need {
    /// The actions that belong together.
    #[must_use]
    pub const fn actions(self) -> &'static [&'static str] {
        match self {
            Self::DescribeTable => &["dynamodb:DescribeTable"],
            Self::ReadStream => {
                &["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"]
            }
            Self::WritePeer => &["dynamodb:PutItem", "dynamodb:DeleteItem"],
            Self::WriteMember => {
                &["dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem", "dynamodb:GetItem"]
            }
        }
    }

    /// Where the resource side of it is written.
    #[must_use]
    pub const fn resource_side(self) -> Side {
        match self {
            Self::DescribeTable | Self::WritePeer | Self::WriteMember => Side::Table,
            Self::ReadStream => Side::Stream,
        }
    }
}

impl Side {
    /// Where the statement goes, for a person.
    #[must_use]
    pub fn place(self, table: &TableArn) -> String {
        let account = &table.account;
        match self {
            Self::Identity => "the identity policy of the role that makes the call".to_owned(),
            Self::Table => format!("the resource policy of the table, in account {account}"),
            Self::Stream => {
                format!("the resource policy of the table's current stream, in account {account}")
            }
        }
    }
}

/// The statement that allows `need` on `table` for `principal`, for one side. A stream's own ARN ends in a time
/// that changes with every new stream, so the identity side names all streams of the table.
#[must_use]
pub fn statement(need: Need, side: Side, table: &TableArn, stream: Option<&str>, principal: &str) -> Value {
    let resource = match (need, side) {
        (Need::ReadStream, Side::Identity) => format!("{table}/stream/*"),
        (Need::ReadStream, _) => stream.map_or_else(|| format!("{table}/stream/*"), str::to_owned),
        (Need::DescribeTable | Need::WritePeer | Need::WriteMember, _) => table.to_string(),
    };
    let mut statement = json!({ "Effect": "Allow", "Action": need.actions(), "Resource": resource });
    if side != Side::Identity {
        statement["Principal"] = json!({ "AWS": principal });
    }
    statement
}
