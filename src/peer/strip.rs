//! Taking our attribute off an item, once nothing is copied to it any more.

use super::{Expressions as _, Peer, StepError};
use crate::failure::Failure;
use crate::item::Key;
use aws_sdk_dynamodb::types::AttributeValue;

impl Peer {
    /// Removes the stamp attribute from an item that still has what was `seen` there; `false` when it has not, or is gone.
    /// The rest of the item stays as it is.
    ///
    /// # Errors
    /// Any failure but that of the condition; the step can be repeated.
    pub async fn strip(&self, key: &Key, seen: &AttributeValue) -> Result<bool, StepError> {
        self.may_write().await?;
        let update = self
            .client
            .update_item()
            .table_name(&self.table)
            .set_key(Some(key.attributes().0.clone()))
            .update_expression("REMOVE #stamp")
            .condition_expression("#stamp = :seen")
            .alias("#stamp", &self.stamp)
            .value(":seen", seen.clone());
        self.took_effect(update.send().await.map(drop).map_err(Failure::from))
    }
}
