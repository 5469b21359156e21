//! The file that a feed is about to write, remembered in the lease's row before it is written.
//!
//! A worker that takes the shard over ends its file at the same record, and so writes the same file under the same
//! name. Only the lease's holder may say so, and what it says never goes back, also when a request arrives late.
//!
//! Rows: the attribute `file:<feed>` of a lease's row.

use super::row::HLC;
use super::table::{HELD, Held, HeldError};
use crate::change::SequenceNumber;
use crate::failure::{Class, Failure};
use crate::lane::Position;
use crate::state::{Row, get_number, get_text, number, text};
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};

/// A file that is about to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The last record before the file; `None` at the beginning of the shard.
    pub after: Option<SequenceNumber>,
    /// How far the shard is with it.
    pub to: Position,
    /// The file's name within the feed.
    pub path: String,
    /// Whether it has no columns of attributes: none were known, and it holds deletes only. Whoever finishes it does not
    /// look at what is known by then.
    pub bare: bool,
}

const AFTER: &str = "after";
const TO: &str = "to";
const CREATED: &str = "created";
const PATH: &str = "path";
const BARE: &str = "bare";

fn attribute(feed: &str) -> String {
    format!("file:{feed}")
}

impl Held {
    /// The file that was last intended for a feed, by this holder or one before.
    ///
    /// # Errors
    /// The failure of the call, or of an attribute that is none of ours.
    pub async fn intent(&self, feed: &str) -> Result<Option<Intent>, Failure> {
        let name = attribute(feed);
        let row = self.row(&name).await?;
        let Some(value) = row.as_ref().and_then(|row| row.get(&name)) else { return Ok(None) };
        let intent = value.as_m().ok().and_then(from_row);
        let bad =
            || Failure::new(Class::Unrecognised, "BadIntent", format!("{name} of a lease makes no sense"));
        intent.map(Some).ok_or_else(bad)
    }

    /// Remembers the file that is written next to a feed.
    ///
    /// # Errors
    /// [`HeldError`].
    pub async fn intend(&self, feed: &str, intent: &Intent) -> Result<(), HeldError> {
        let request = self
            .mine()
            .update_expression("SET #file = :file")
            .condition_expression(format!("{HELD} AND (attribute_not_exists(#file) OR #file.#hlc <= :hlc)"))
            .expression_attribute_names("#file", attribute(feed))
            .expression_attribute_names("#hlc", HLC)
            .expression_attribute_values(":file", AttributeValue::M(to_row(intent)))
            .expression_attribute_values(":hlc", text(intent.to.hlc.to_string()));
        self.send(request).await
    }
}

fn to_row(intent: &Intent) -> Row {
    let mut row = HashMap::from([
        (HLC.to_owned(), text(intent.to.hlc.to_string())),
        (PATH.to_owned(), text(&intent.path)),
    ]);
    let mut put = |name: &str, sequence: &Option<SequenceNumber>| {
        sequence.iter().for_each(|sequence| drop(row.insert(name.to_owned(), text(sequence.as_str()))));
    };
    put(AFTER, &intent.after);
    put(TO, &intent.to.sequence);
    if intent.bare {
        row.insert(BARE.to_owned(), AttributeValue::Bool(true));
    }
    if let Some(created) = intent.to.created {
        let seconds = created.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        row.insert(CREATED.to_owned(), number(seconds));
    }
    row
}

fn from_row(row: &Row) -> Option<Intent> {
    let sequence = |name: &str| match get_text(row, name) {
        Some(text) => SequenceNumber::parse(text).map(Some),
        None => Some(None),
    };
    let created = get_number(row, CREATED).map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
    let to = Position { sequence: Some(sequence(TO)??), hlc: get_text(row, HLC)?.parse().ok()?, created };
    let bare = row.get(BARE).and_then(|bare| bare.as_bool().ok()).copied().unwrap_or_default();
    Some(Intent { after: sequence(AFTER)?, to, path: get_text(row, PATH)?.to_owned(), bare })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Hlc;

    #[test]
    fn intents_survive_the_table() {
        let to = Position {
            sequence: SequenceNumber::parse("0123456789012345678901"),
            hlc: Hlc::from_millis(1_700_000_000_123).next(),
            created: Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        };
        let first = Intent { after: None, to: to.clone(), path: "r/f".to_owned(), bare: false };
        assert_eq!(from_row(&to_row(&first)), Some(first.clone()));
        let next = Intent { after: SequenceNumber::parse("12"), bare: true, ..first };
        assert_eq!(from_row(&to_row(&next)), Some(next));
        assert_eq!(from_row(&Row::new()), None);
    }
}
