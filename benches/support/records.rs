//! The items and stream records of the benchmarks: orders of about 500 bytes, with distinct keys.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::json;
use shardwalker::item::Item;
use shardwalker::json::from_item;
use std::collections::HashMap;

/// What a stream says happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Every record creates its item.
    Insert,
    /// Every record changes an item that is there.
    Modify,
}

/// The partition key of an item.
pub(crate) fn key(index: usize) -> String {
    format!("order-{index:012}")
}

/// The index of the item that a PutItem's body holds; `None` for an item that is not ours.
pub(crate) fn index(put: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(put).ok()?;
    let (_, rest) = text.split_once("\"order-")?;
    rest.get(..12)?.parse().ok()
}

/// An item, as it is after its `revision`th change.
pub(crate) fn item(index: usize, revision: u32) -> Item {
    let text = |value: &str| AttributeValue::S(value.to_owned());
    let number = |value: u64| AttributeValue::N(value.to_string());
    let line = |sku: usize| {
        AttributeValue::M(HashMap::from([
            ("sku".to_owned(), text(&format!("SKU-{sku:06}"))),
            ("quantity".to_owned(), number(1 + sku as u64 % 3)),
            ("price".to_owned(), AttributeValue::N(format!("{}.{:02}", 5 + sku % 90, sku % 100))),
        ]))
    };
    let attributes = [
        ("id", text(&key(index))),
        ("customer", text(&format!("customer-{:08}", index % 5_000))),
        ("status", text(["placed", "paid", "packed", "shipped"][revision as usize % 4])),
        ("revision", number(u64::from(revision))),
        ("placed_at", text("2026-01-01T08:30:00.000Z")),
        ("total", AttributeValue::N(format!("{}.95", 10 + index % 990))),
        ("gift", AttributeValue::Bool(index.is_multiple_of(7))),
        ("tags", AttributeValue::Ss(vec!["priority".to_owned(), "web".to_owned()])),
        ("lines", AttributeValue::L(vec![line(index), line(index + 1)])),
        ("note", text(&"please leave the parcel with the neighbours on the left; ".repeat(4))),
    ];
    Item(attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Puts so many items into a table, each as it is after that change.
pub(crate) async fn fill(client: &Client, table: &str, records: usize, revision: u32) -> anyhow::Result<()> {
    for index in 0..records {
        client.put_item().table_name(table).set_item(Some(item(index, revision).0)).send().await?;
    }
    Ok(())
}

/// A stream record of that item's change, in JSON.
pub(crate) fn record(index: usize, kind: Kind) -> Vec<u8> {
    let (old, new) = (from_item(&item(index, 1)), from_item(&item(index, 2)));
    let mut body = json!({
        "ApproximateCreationDateTime": 1_767_225_600,
        "Keys": { "id": { "S": key(index) } },
        "NewImage": new,
        "SequenceNumber": format!("{:027}", 400_000_000_000_000_u64 + index as u64),
        "SizeBytes": 1000,
        "StreamViewType": "NEW_AND_OLD_IMAGES",
    });
    if kind == Kind::Modify {
        body["OldImage"] = old;
    }
    let record = json!({
        "eventID": format!("{index:032x}"),
        "eventName": match kind { Kind::Insert => "INSERT", Kind::Modify => "MODIFY" },
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "eu-west-1",
        "dynamodb": body,
    });
    record.to_string().into_bytes()
}
