//! A segment that this process holds: what it writes down, saves and gives back, as long as it is its own.

use super::{
    CURSOR, Cursor, DONE, EPOCH, OWNER, Rows, Segment, TOTALS, encode, held, keys_partition, partition,
};
use crate::backfill::counts::Totals;
use crate::failure::{Class, Failure};
use crate::item::Key;
use crate::state::{EXPIRES, get_number, key, number, text};
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use std::time::Duration;

/// Why a change of a held segment did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeldError {
    /// Another process holds it now.
    #[error("the segment was lost to another process")]
    Lost,
    /// The call failed; trying again is harmless.
    #[error("state table: {0}")]
    Call(Failure),
}

/// A segment that this worker holds, or held: every use says whether it still does.
#[derive(Debug)]
pub struct Held {
    pub(super) rows: Rows,
    pub(super) run: u64,
    pub(super) sort: String,
    pub(super) segment: Segment,
}

impl Held {
    /// The segment, as it was taken or saved last.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Writes down what is about to be created, in place of what was written down before; forgotten after `keep`.
    ///
    /// # Errors
    /// The failure of the call; trying again is harmless.
    pub async fn write_down(&self, keys: &[&Key], keep: Duration, now: Duration) -> Result<(), Failure> {
        let data = encode(keys)?;
        let mut row = key(&keys_partition(&self.rows.route), &self.keys_sort());
        row.insert("data".to_owned(), AttributeValue::B(Blob::new(data)));
        row.insert(EXPIRES.to_owned(), number((now + keep).as_secs()));
        self.rows.state.put(row).await
    }

    /// What was about to be created by those who held the segment before: the keys, and what [`Rows::forget_keys`] takes.
    ///
    /// # Errors
    /// The failure of the call, or of a row that makes no sense.
    pub async fn earlier_keys(&self) -> Result<Vec<(String, Vec<Key>)>, Failure> {
        let prefix = format!("{}#{:06}#{:05}#", self.rows.scope, self.run, self.segment.number);
        self.rows.keys(&prefix, &self.keys_sort()).await
    }

    /// The sort key of what this holder writes down.
    #[must_use]
    pub fn keys_sort(&self) -> String {
        let Segment { number, epoch, .. } = self.segment;
        format!("{}#{:06}#{number:05}#{epoch:010}", self.rows.scope, self.run)
    }

    /// Saves how far the segment is; a segment that is done is given back. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`HeldError`].
    pub async fn save(
        &mut self,
        cursor: Option<Cursor>,
        totals: Totals,
        done: bool,
    ) -> Result<(), HeldError> {
        let mut expression = "SET #totals = :totals".to_owned();
        if cursor.is_some() {
            expression += ", #cursor = :cursor";
        }
        if done {
            expression += ", #done = :done REMOVE #owner";
        }
        let mut update = self.update(&expression).expression_attribute_values(":totals", totals.to_value());
        update = update.expression_attribute_names("#totals", TOTALS);
        if let Some(cursor) = &cursor {
            update = update.expression_attribute_names("#cursor", CURSOR);
            update = update.expression_attribute_values(":cursor", cursor.clone());
        }
        if done {
            update = update.expression_attribute_names("#done", DONE);
            update = update.expression_attribute_values(":done", AttributeValue::Bool(true));
        }
        match update.send().await.map_err(Failure::from) {
            Ok(_) => {}
            // An answer was lost: a segment that is done has no owner.
            Err(failure) if failure.class == Class::Condition && done && self.saved_as_done().await? => {}
            Err(failure) if failure.class == Class::Condition => return Err(HeldError::Lost),
            Err(failure) => return Err(HeldError::Call(failure)),
        }
        self.segment.cursor = cursor.or(self.segment.cursor.take());
        (self.segment.totals, self.segment.done) = (totals, done);
        Ok(())
    }

    /// Gives the segment back as it was saved last.
    ///
    /// # Errors
    /// The failure of the call. A segment that was lost already is given back.
    pub async fn give_back(&self) -> Result<(), Failure> {
        held(self.update("REMOVE #owner").send().await.map_err(Failure::from)).map(drop)
    }

    async fn saved_as_done(&self) -> Result<bool, HeldError> {
        let row = self.rows.state.get(&partition(&self.rows.route), &self.sort).await;
        let row = row.map_err(HeldError::Call)?;
        let row = row.filter(|row| get_number(row, EPOCH) == Some(self.segment.epoch));
        Ok(row.is_some_and(|row| row.contains_key(DONE)))
    }

    fn update(&self, expression: &str) -> UpdateItemFluentBuilder {
        self.rows
            .update(&self.sort)
            .update_expression(expression)
            .condition_expression("#owner = :me AND #epoch = :epoch")
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#epoch", EPOCH)
            .expression_attribute_values(":me", text(&*self.rows.worker))
            .expression_attribute_values(":epoch", number(self.segment.epoch))
    }
}
