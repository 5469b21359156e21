//! The final marker: an item of ours that goes the way of the last writes, and comes off both sides by the same way.

use crate::access::preflight::Found;
use crate::failure::{Class, Failure};
use crate::item::Item;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::HashMap;

/// The attribute that holds a marker's id.
pub const ATTRIBUTE: &str = "shardwalker_cutover";
/// The key's value, of strings and bytes.
const RESERVED: &str = "shardwalker-cutover";
/// The key's value of numbers: more digits than anybody counts to.
const RESERVED_NUMBER: &str = "-9876543210987654321098765432109876543";

/// The key under which a table's marker stands unless the operator names another.
#[must_use]
pub fn reserved(found: &Found) -> Item {
    let value = |kind: &str| match kind {
        "N" => AttributeValue::N(RESERVED_NUMBER.to_owned()),
        "B" => AttributeValue::B(Blob::new(RESERVED)),
        _ => AttributeValue::S(RESERVED.to_owned()),
    };
    Item(found.keys.iter().map(|(name, kind)| (name.clone(), value(kind))).collect())
}

/// A marker.
#[derive(Debug)]
pub struct Marker {
    /// The key's attributes.
    pub key: HashMap<String, AttributeValue>,
    /// Its id, which no other marker has.
    pub id: String,
}

impl Marker {
    /// Puts it into a table; `false` when an item of somebody else is there.
    ///
    /// # Errors
    /// The failure of the call; trying again is harmless.
    pub async fn put(&self, client: &Client, table: &str) -> Result<bool, Failure> {
        let mut item = self.key.clone();
        item.insert(ATTRIBUTE.to_owned(), AttributeValue::S(self.id.clone()));
        let pk = self.key.keys().next().cloned().unwrap_or_default();
        let put = client.put_item().table_name(table).set_item(Some(item));
        let put = put
            .condition_expression("attribute_not_exists(#pk) OR attribute_exists(#marker)")
            .expression_attribute_names("#pk", pk)
            .expression_attribute_names("#marker", ATTRIBUTE);
        met(put.send().await.map(drop).map_err(Failure::from))
    }

    /// Takes it, or any marker under its key, out of a table.
    ///
    /// # Errors
    /// The failure of the call; trying again is harmless.
    pub async fn remove(&self, client: &Client, table: &str) -> Result<(), Failure> {
        let delete = client.delete_item().table_name(table).set_key(Some(self.key.clone()));
        let delete = delete
            .condition_expression("attribute_exists(#marker)")
            .expression_attribute_names("#marker", ATTRIBUTE);
        met(delete.send().await.map(drop).map_err(Failure::from)).map(drop)
    }

    /// Whether a table has it. Strongly consistent.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn seen(&self, client: &Client, table: &str) -> Result<bool, Failure> {
        let get = client.get_item().table_name(table).set_key(Some(self.key.clone())).consistent_read(true);
        let item = get.send().await?.item.unwrap_or_default();
        Ok(item.get(ATTRIBUTE).and_then(|id| id.as_s().ok()) == Some(&self.id))
    }
}

/// Whether a condition was met.
fn met(result: Result<(), Failure>) -> Result<bool, Failure> {
    match result {
        Err(failure) if failure.class == Class::Condition => Ok(false),
        result => result.map(|()| true),
    }
}
