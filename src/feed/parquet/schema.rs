//! Which columns a feed has: the config's, or those of the first file that holds more than deletes, frozen in the state
//! table.
//!
//! Rows: `feed#<feed>` / `schema#<route>`, written once. Whoever comes second takes what is there.

use super::cell;
use crate::config::{Column, ColumnType};
use crate::failure::{Class, Failure};
use crate::feed::Record;
use crate::state::{PK, SK, StateTable, text};
use crate::view::{Fields, View};
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::{BTreeMap, HashMap};

/// The attributes that have columns, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// The columns.
    pub columns: Vec<Column>,
    /// Whether nobody chose them: they take only what they keep exactly.
    pub inferred: bool,
}

/// Columns that are inferred at most; more attributes stay in `_rest`.
const MOST: usize = 500;
/// Digits that every 64-bit binary fraction keeps.
const DOUBLE_DIGITS: usize = 15;

/// Where the columns of one route's feed are kept. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Schemas {
    state: StateTable,
    partition: String,
    sort: String,
}

const COLUMNS: &str = "columns";

impl Schemas {
    /// Those of a route's feed.
    #[must_use]
    pub fn new(state: StateTable, route: &str, feed: &str) -> Self {
        Self { state, partition: format!("feed#{feed}"), sort: format!("schema#{route}") }
    }

    /// The columns that are kept; `proposed` become that when there are none.
    ///
    /// # Errors
    /// The failure of a call, or of a row that is none of ours.
    pub async fn settle(&self, proposed: Vec<Column>) -> Result<Vec<Column>, Failure> {
        let value = |column: &Column| (column.name.clone(), text(column.kind.to_string()));
        let put = self
            .state
            .call("PutItem")
            .put_item()
            .table_name(self.state.name())
            .item(PK, text(&self.partition))
            .item(SK, text(&self.sort))
            .item(COLUMNS, AttributeValue::M(proposed.iter().map(value).collect()))
            .condition_expression("attribute_not_exists(#pk)")
            .expression_attribute_names("#pk", PK);
        match put.send().await.map_err(Failure::from) {
            Ok(_) => return Ok(proposed),
            Err(failure) if failure.class == Class::Condition => {}
            Err(failure) => return Err(failure),
        }
        self.kept().await?.ok_or_else(bad)
    }

    /// The columns that are kept, if there are any.
    ///
    /// # Errors
    /// The failure of the call, or of a row that is none of ours.
    pub async fn kept(&self) -> Result<Option<Vec<Column>>, Failure> {
        let Some(row) = self.state.get(&self.partition, &self.sort).await? else { return Ok(None) };
        let columns = row.get(COLUMNS).and_then(|value| value.as_m().ok()).and_then(from_map);
        columns.ok_or_else(bad).map(Some)
    }
}

fn bad() -> Failure {
    Failure::new(Class::Unrecognised, "BadSchema", "a feed's columns make no sense")
}

fn from_map(columns: &HashMap<String, AttributeValue>) -> Option<Vec<Column>> {
    let column = |(name, kind): (&String, &AttributeValue)| {
        Some(Column { name: name.clone(), kind: ColumnType::parse(kind.as_s().ok()?)? })
    };
    let mut columns: Vec<Column> = columns.iter().map(column).collect::<Option<_>>()?;
    columns.sort_by(|a, b| a.name.cmp(&b.name));
    Some(columns)
}

/// The columns that these records suggest: for each attribute of the new images the narrowest type that holds all of
/// its values exactly; plain JSON where they are of several kinds.
#[must_use]
pub fn infer(records: &[Record<'_>]) -> Vec<Column> {
    let mut found: BTreeMap<String, ColumnType> = BTreeMap::new();
    for record in records {
        let key = || Fields::of(&record.change.key.attributes().0);
        let item = record.change.new.as_ref().map_or_else(key, |image| image.content.fields());
        for (name, value) in item.iter().filter(|(name, _)| !name.starts_with('_')) {
            let Some(kind) = suggests(value) else { continue };
            match found.get_mut(name) {
                Some(before) => *before = both(*before, kind),
                None => drop(found.insert(name.to_owned(), kind)),
            }
        }
    }
    let column = |(name, kind)| Column { name, kind };
    found.into_iter().take(MOST).map(column).collect()
}

/// `None` for a null, which fits everywhere, and for an empty list, which may be one of texts.
fn suggests(value: &View<'_>) -> Option<ColumnType> {
    Some(match value {
        View::Null(_) => return None,
        View::L(values) if values.is_empty() => return None,
        View::S(_) => ColumnType::String,
        View::N(digits) if cell::whole(digits).is_some() => ColumnType::Int64,
        View::N(digits) if digits.bytes().filter(u8::is_ascii_digit).count() <= DOUBLE_DIGITS => {
            ColumnType::Double
        }
        View::N(_) => ColumnType::String,
        View::B(_) => ColumnType::Binary,
        View::Bool(_) => ColumnType::Boolean,
        View::Ss(_) | View::Ns(_) => ColumnType::List,
        _ => ColumnType::Json,
    })
}

/// The narrowest type that holds the values of both.
fn both(one: ColumnType, other: ColumnType) -> ColumnType {
    use ColumnType::{Double, Int64, Json, String};
    match (one, other) {
        (one, other) if one == other => one,
        // Text holds the digits of any number, and a double not those of a large whole one.
        (Int64 | Double | String, Int64 | Double | String) => String,
        _ => Json,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Change, Event, Image, SequenceNumber};
    use crate::item::Key;
    use crate::version::Version;
    use serde_json::json;
    use std::time::UNIX_EPOCH;

    #[test]
    fn columns_hold_all_that_was_seen() {
        let items = [
            json!({ "id": { "S": "a" }, "n": { "N": "1" }, "d": { "N": "1.5" }, "mixed": { "N": "1" }, "none": { "NULL": true } }),
            json!({ "id": { "S": "b" }, "n": { "N": "2" }, "d": { "N": "2.25" }, "mixed": { "BOOL": true }, "_own": { "S": "x" } }),
            json!({ "id": { "S": "c" }, "long": { "N": "0.1234567890123456789" }, "both": { "N": "1" }, "tags": { "NS": ["1"] } }),
            json!({ "id": { "S": "d" }, "both": { "N": "1.5" }, "tags": { "L": [] } }),
        ];
        let changes: Vec<Change> = items
            .iter()
            .map(|item| Change {
                sequence: SequenceNumber::parse("1").unwrap(),
                created: UNIX_EPOCH,
                key: Key::new(crate::json::to_item(&json!({})).unwrap()),
                event: Event::Insert,
                old: None,
                new: Some(Image { content: crate::json::to_item(item).unwrap().into(), stamp: None }),
                by_ttl: false,
                size: 0,
            })
            .collect();
        let record = |change| Record {
            change,
            event: "INSERT",
            version: Some(Version::default()),
            member: "m",
            shard: "s",
        };
        let records: Vec<Record<'_>> = changes.iter().map(record).collect();
        let columns: Vec<String> =
            infer(&records).iter().map(|column| format!("{} {}", column.name, column.kind)).collect();
        assert_eq!(
            columns,
            ["both string", "d double", "id string", "long string", "mixed json", "n int64", "tags list"]
        );
    }
}
