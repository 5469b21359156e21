//! Lease rows in the state table: every change is one conditional write.
//!
//! Rows: `lease#<route>#<stream>` / `<shard id>`.

use crate::failure::{Class, Failure};
use crate::lease::row::{self, EPOCH, HLC, Lease, OWNER, PEERS, PeerPosition};
use crate::state::{EXPIRES, PK, Row, SK, StateTable, number, text};
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// The leases of one route on one stream. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LeaseTable {
    state: StateTable,
    partition: Arc<str>,
    worker: Arc<str>,
}

/// A lease that this worker holds, or held: every use says whether it still does.
#[derive(Debug, Clone)]
pub struct Held {
    table: LeaseTable,
    shard: String,
    epoch: u64,
}

/// Why a change of a held lease did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeldError {
    /// Another worker holds it now.
    #[error("the lease was lost to another worker")]
    Lost,
    /// The call failed; trying again is harmless.
    #[error("state table: {0}")]
    Call(Failure),
}

impl LeaseTable {
    /// The leases of a route on a stream (named by its label), as `worker` sees and takes them.
    #[must_use]
    pub fn new(state: StateTable, route: &str, stream: &str, worker: Arc<str>) -> Self {
        Self { state, partition: format!("lease#{route}#{stream}").into(), worker }
    }

    /// All rows, strongly consistent, in the order of their shard ids.
    ///
    /// # Errors
    /// The failure of the call, or of a row that is not a lease.
    pub async fn load(&self) -> Result<Vec<Lease>, Failure> {
        let rows = self.state.rows(&self.partition, "", &[]).await?;
        rows.iter().map(row::from_row).collect()
    }

    /// Adds a row; one that is there already stays as it is. Whether it was added.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn add(&self, lease: &Lease) -> Result<bool, Failure> {
        let mut item: Row = row::to_row(lease);
        item.extend(self.key(&lease.shard));
        let answer = self
            .state
            .call("PutItem")
            .put_item()
            .table_name(self.state.name())
            .set_item(Some(item))
            .condition_expression("attribute_not_exists(#pk)")
            .expression_attribute_names("#pk", PK)
            .send()
            .await
            .map_err(Failure::from);
        match answer {
            Ok(_) => Ok(true),
            Err(failure) if failure.class == Class::Condition => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Takes a lease as it was seen: free, this worker's own from before, or an owner's that died. `None` when it
    /// changed since. A take whose answer was lost is recognised when it is tried again with the same `seen`.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn take(&self, seen: &Lease) -> Result<Option<(Held, Lease)>, Failure> {
        let epoch = seen.epoch + 1;
        let owned = match &seen.owner {
            Some(_) => "#owner = :seen",
            None => "attribute_not_exists(#owner)",
        };
        let mut request = self
            .update(&seen.shard)
            .update_expression("SET #owner = :me, #epoch = :next")
            .condition_expression(format!("#epoch = :epoch AND {owned}"))
            .expression_attribute_values(":me", text(&*self.worker))
            .expression_attribute_values(":next", number(epoch))
            .expression_attribute_values(":epoch", number(seen.epoch))
            .return_values(ReturnValue::AllNew);
        if let Some(owner) = &seen.owner {
            request = request.expression_attribute_values(":seen", text(owner));
        }
        let lease = match request.send().await {
            Ok(answer) => answer.attributes,
            Err(error) => match refused(&error) {
                Some(item) => item.cloned(),
                None => return Err(error.into()),
            },
        };
        let lease = lease.as_ref().map(row::from_row).transpose()?;
        let mine = |l: &Lease| l.owner.as_deref() == Some(&*self.worker) && l.epoch == epoch;
        Ok(lease
            .filter(mine)
            .map(|lease| (Held { table: self.clone(), shard: lease.shard.clone(), epoch }, lease)))
    }

    fn key(&self, shard: &str) -> HashMap<String, AttributeValue> {
        HashMap::from([(PK.to_owned(), text(&*self.partition)), (SK.to_owned(), text(shard))])
    }

    fn update(&self, shard: &str) -> UpdateItemFluentBuilder {
        self.state
            .call("UpdateItem")
            .update_item()
            .table_name(self.state.name())
            .set_key(Some(self.key(shard)))
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#epoch", EPOCH)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
    }
}

impl Held {
    /// The fencing token.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Writes the peers' positions. They never go back: a position below the one in the row is refused as a loss.
    ///
    /// # Errors
    /// [`HeldError`].
    pub async fn checkpoint(&self, peers: &BTreeMap<String, PeerPosition>) -> Result<(), HeldError> {
        if peers.is_empty() {
            return Ok(());
        }
        let mut request = self.mine().expression_attribute_names("#peers", PEERS);
        let (mut sets, mut conditions) = (Vec::new(), vec![HELD.to_owned()]);
        for (index, (name, peer)) in peers.iter().enumerate() {
            sets.push(format!("#peers.#p{index} = :p{index}"));
            conditions.push(format!(
                "(attribute_not_exists(#peers.#p{index}) OR #peers.#p{index}.#hlc <= :h{index})"
            ));
            request = request
                .expression_attribute_names(format!("#p{index}"), name)
                .expression_attribute_values(format!(":p{index}"), row::peer_value(peer))
                .expression_attribute_values(format!(":h{index}"), text(peer.position.hlc.to_string()));
        }
        let request = request
            .expression_attribute_names("#hlc", HLC)
            .update_expression(format!("SET {}", sets.join(", ")))
            .condition_expression(conditions.join(" AND "));
        self.send(request).await
    }

    /// Gives the lease back, so that another worker may take it at once.
    ///
    /// # Errors
    /// [`HeldError`].
    pub async fn release(&self) -> Result<(), HeldError> {
        self.send(self.mine().update_expression("REMOVE #owner").condition_expression(HELD)).await
    }

    /// Gives the lease of a shard back that is done; its row expires at `expires` since 1970.
    ///
    /// # Errors
    /// [`HeldError`].
    pub async fn finish(&self, expires: Duration) -> Result<(), HeldError> {
        let request = self
            .mine()
            .update_expression("REMOVE #owner SET #expires = :expires")
            .condition_expression(HELD)
            .expression_attribute_names("#expires", EXPIRES)
            .expression_attribute_values(":expires", number(expires.as_secs()));
        self.send(request).await
    }

    fn mine(&self) -> UpdateItemFluentBuilder {
        self.table
            .update(&self.shard)
            .expression_attribute_values(":me", text(&*self.table.worker))
            .expression_attribute_values(":mine", number(self.epoch))
    }

    async fn send(&self, request: UpdateItemFluentBuilder) -> Result<(), HeldError> {
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) if refused(&error).is_some() => Err(HeldError::Lost),
            Err(error) => Err(HeldError::Call(error.into())),
        }
    }
}

/// True while the lease is this worker's.
const HELD: &str = "#owner = :me AND #epoch = :mine";

type UpdateError = aws_smithy_runtime_api::client::result::SdkError<
    UpdateItemError,
    aws_smithy_runtime_api::client::orchestrator::HttpResponse,
>;

/// The row that refused a conditional write, when that was what failed.
fn refused(error: &UpdateError) -> Option<Option<&Row>> {
    match error.as_service_error() {
        Some(UpdateItemError::ConditionalCheckFailedException(e)) => Some(e.item()),
        _ => None,
    }
}
