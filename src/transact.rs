//! Two rows of the state table that change together, or not at all.
//!
//! A thin form of TransactWriteItems: what is asked for, each action with its condition, and which conditions
//! did not hold. Conflicts and throttling are failures of the whole, sorted by class as those of other calls.

use crate::failure::{Class, Failure};
use crate::state::{Row, StateTable};
use aws_sdk_dynamodb::error::BuildError;
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{AttributeValue, CancellationReason, Delete, Put, TransactWriteItem, Update};
use std::collections::HashMap;

/// One action of a transaction on the state table.
#[derive(Debug, Clone)]
pub(crate) struct Action {
    kind: Kind,
    condition: Option<&'static str>,
    names: HashMap<String, String>,
    values: HashMap<String, AttributeValue>,
}

#[derive(Debug, Clone)]
enum Kind {
    Put(Row),
    Update(Row, &'static str),
    Delete(Row),
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of it happened.
    Done,
    /// Nothing happened: for each action, whether its condition did not hold.
    Refused(Vec<bool>),
}

impl Action {
    /// Puts a row.
    pub(crate) fn put(row: Row) -> Self {
        Self::new(Kind::Put(row))
    }

    /// Updates the row of a key.
    pub(crate) fn update(key: Row, expression: &'static str) -> Self {
        Self::new(Kind::Update(key, expression))
    }

    /// Deletes the row of a key.
    pub(crate) fn delete(key: Row) -> Self {
        Self::new(Kind::Delete(key))
    }

    fn new(kind: Kind) -> Self {
        Self { kind, condition: None, names: HashMap::new(), values: HashMap::new() }
    }

    /// Only when this holds.
    pub(crate) fn condition(self, condition: &'static str) -> Self {
        Self { condition: Some(condition), ..self }
    }

    /// An alias for an attribute's name.
    pub(crate) fn name(mut self, alias: &str, name: &str) -> Self {
        self.names.insert(alias.to_owned(), name.to_owned());
        self
    }

    /// A value.
    pub(crate) fn value(mut self, name: &str, value: AttributeValue) -> Self {
        self.values.insert(name.to_owned(), value);
        self
    }

    fn build(self, table: &str) -> Result<TransactWriteItem, BuildError> {
        let condition = self.condition.map(str::to_owned);
        let names = Some(self.names).filter(|names| !names.is_empty());
        let values = Some(self.values).filter(|values| !values.is_empty());
        let item = TransactWriteItem::builder();
        Ok(match self.kind {
            Kind::Put(row) => {
                let put =
                    Put::builder().table_name(table).set_item(Some(row)).set_condition_expression(condition);
                item.put(
                    put.set_expression_attribute_names(names)
                        .set_expression_attribute_values(values)
                        .build()?,
                )
            }
            Kind::Update(key, expression) => {
                let update =
                    Update::builder().table_name(table).set_key(Some(key)).update_expression(expression);
                let update = update.set_condition_expression(condition).set_expression_attribute_names(names);
                item.update(update.set_expression_attribute_values(values).build()?)
            }
            Kind::Delete(key) => {
                let delete = Delete::builder().table_name(table).set_key(Some(key));
                let delete = delete.set_condition_expression(condition).set_expression_attribute_names(names);
                item.delete(delete.set_expression_attribute_values(values).build()?)
            }
        }
        .build())
    }
}

impl StateTable {
    /// Carries all actions out, or none.
    ///
    /// # Errors
    /// The failure of the call; whether it happened is unknown where the class says so.
    pub(crate) async fn transact<const N: usize>(&self, actions: [Action; N]) -> Result<Outcome, Failure> {
        let items = actions.into_iter().map(|action| action.build(self.name())).collect::<Result<_, _>>();
        let items = items.map_err(|error| Failure::new(Class::Invalid, "Request", error.to_string()))?;
        let call = self.call("TransactWriteItems").transact_write_items().set_transact_items(Some(items));
        let Err(error) = call.send().await else { return Ok(Outcome::Done) };
        match error.as_service_error() {
            Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) => {
                sort(cancelled.cancellation_reasons())
            }
            _ => Err(error.into()),
        }
    }
}

/// A conflict, or no capacity, says nothing about the conditions.
fn sort(reasons: &[CancellationReason]) -> Result<Outcome, Failure> {
    let class = |reason: &CancellationReason| match reason.code() {
        None | Some("None" | "ConditionalCheckFailed") => None,
        Some("TransactionConflict") => Some(Class::Transient),
        Some("ThrottlingError" | "ProvisionedThroughputExceeded" | "RequestLimitExceeded") => {
            Some(Class::Throttled)
        }
        Some("ValidationError" | "ItemCollectionSizeLimitExceeded") => Some(Class::Invalid),
        Some("AccessDenied") => Some(Class::Denied),
        Some(_) => Some(Class::Unrecognised),
    };
    if let Some((reason, class)) = reasons.iter().find_map(|reason| Some((reason, class(reason)?))) {
        let (code, message) = (reason.code().unwrap_or_default(), reason.message().unwrap_or_default());
        return Err(Failure::new(class, code, message));
    }
    let refused = |reason: &CancellationReason| reason.code() == Some("ConditionalCheckFailed");
    Ok(Outcome::Refused(reasons.iter().map(refused).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(code: &str) -> CancellationReason {
        CancellationReason::builder().code(code).build()
    }

    #[test]
    fn conditions_are_told_from_failures() {
        let sorted = sort(&[reason("None"), reason("ConditionalCheckFailed")]);
        assert_eq!(sorted, Ok(Outcome::Refused(vec![false, true])));
        for (code, class) in [
            ("TransactionConflict", Class::Transient),
            ("ThrottlingError", Class::Throttled),
            ("ValidationError", Class::Invalid),
            ("News", Class::Unrecognised),
        ] {
            let sorted = sort(&[reason("ConditionalCheckFailed"), reason(code)]);
            assert_eq!(sorted.unwrap_err().class, class, "{code}");
        }
    }
}
