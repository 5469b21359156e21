//! What a route does whose peers get no attribute of ours.
//!
//! Nothing at the peer says which version an item has, so nothing there can refuse an older one: what comes last stays.
//! A lane's order by key is all that a change has. Whoever writes beside the lanes, a backfill or a repair, looks at the
//! source after each of its writes, and goes on until what it wrote last is what the source holds
//! ([`crate::backfill`]): whatever it wrote over is older than that, and whatever is newer is still to come.

use super::{Outcome, Peer, StepError};
use crate::content::Content;
use crate::failure::Failure;
use crate::item::Key;
use crate::version::{Hlc, Version};
use crate::wire::with_item;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::ReturnValuesOnConditionCheckFailure;

/// What was there when an item was to be created.
#[derive(Debug, Clone, PartialEq)]
pub enum Created {
    /// Nothing.
    New,
    /// This, which stays.
    Found(Content),
}

impl Peer {
    /// Whether items get no attribute of ours here.
    #[must_use]
    pub const fn pristine(&self) -> bool {
        self.pristine
    }

    /// Puts `content` in the place of whatever is there.
    ///
    /// # Errors
    /// Any failure; the step can be repeated.
    pub async fn overwrite(&self, content: &Content) -> Result<(), StepError> {
        self.may_write().await?;
        let put = self.client.put_item().table_name(&self.table);
        self.plain(with_item(put, content, None).send().await.map(drop).map_err(Failure::from))
    }

    /// Deletes whatever is there.
    ///
    /// # Errors
    /// Any failure; the step can be repeated.
    pub async fn erase(&self, key: &Key) -> Result<(), StepError> {
        self.may_write().await?;
        let delete =
            self.client.delete_item().table_name(&self.table).set_key(Some(key.attributes().0.clone()));
        self.plain(delete.send().await.map(drop).map_err(Failure::from))
    }

    /// Puts `content` where no item is.
    ///
    /// # Errors
    /// Any failure but that of the condition; the step can be repeated, and finds then what it has put.
    pub async fn create(&self, content: &Content) -> Result<Created, StepError> {
        self.may_write().await?;
        let put = self
            .client
            .put_item()
            .table_name(&self.table)
            .condition_expression("attribute_not_exists(#pk)")
            .expression_attribute_names("#pk", &self.partition_key)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let error = match with_item(put, content, None).send().await {
            Ok(_) => {
                self.limit.succeeded();
                return Ok(Created::New);
            }
            Err(error) => error,
        };
        if let Some(PutItemError::ConditionalCheckFailedException(failed)) = error.as_service_error() {
            self.limit.succeeded();
            return Ok(Created::Found(self.content(failed.item())));
        }
        Err(self.failed(error.into()))
    }

    /// A change, in its lane's order. With the lowest version it is an item that a backfill could not put and an operator
    /// tries again: it is only created, and only if no delete came since.
    pub(super) async fn put_plain(
        &self,
        content: &Content,
        key: &Key,
        version: Version,
    ) -> Result<Outcome, StepError> {
        if version.hlc > Hlc::ZERO {
            return self.overwrite(content).await.map(|()| Outcome::Applied);
        }
        let before = self.tombstone(key).await?;
        if before.is_some() || self.create(content).await? != Created::New {
            return Ok(Outcome::Superseded);
        }
        if self.tombstone(key).await?.is_none() {
            return Ok(Outcome::Applied);
        }
        self.erase(key).await.map(|()| Outcome::Superseded)
    }

    fn plain(&self, answer: Result<(), Failure>) -> Result<(), StepError> {
        answer.map_err(|failure| self.failed(failure))?;
        self.limit.succeeded();
        Ok(())
    }
}
