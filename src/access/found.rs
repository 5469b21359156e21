//! What is known of a member's table once it was found: its keys and its stream.

use super::probe::KeyAttribute;
use aws_sdk_dynamodb::types::TableDescription;
use serde::{Deserialize, Serialize};

/// What is known of a member table once it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The key attributes: partition key first.
    pub keys: Vec<KeyAttribute>,
    /// The current stream, when there is one.
    pub stream: Option<Stream>,
    /// The table's id: another one means that the table was deleted and made again.
    pub id: String,
    /// How many items it has, as DynamoDB counts them every six hours or so.
    pub items: u64,
    /// How many bytes they take, likewise.
    pub bytes: u64,
    /// The ARN of the KMS key that it is encrypted with, where that is told; `None` for the key that AWS owns.
    pub key: Option<String>,
}

/// A table's current stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

impl Found {
    /// What DescribeTable says.
    pub(super) fn of(table: &TableDescription) -> Self {
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
        let size = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok()).unwrap_or_default();
        let (items, bytes) = (size(table.item_count()), size(table.table_size_bytes()));
        let key = table.sse_description().and_then(|sse| sse.kms_master_key_arn()).map(str::to_owned);
        Self { keys, stream, id: table.table_id().unwrap_or_default().to_owned(), items, bytes, key }
    }
}

fn label(stream: &str) -> &str {
    stream.rsplit('/').next().unwrap_or(stream)
}
