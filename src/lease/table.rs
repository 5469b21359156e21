//! Lease rows in the state table: every change is one conditional write.
//!
//! Rows: `lease#<route>#<stream>` / `<shard id>`; beside them one of the [`crate::lease::lister`].

use crate::failure::{Class, Failure};
use crate::lease::lister::{self, LISTER, ListerRow};
use crate::lease::row::{self, CLOSED, DONE, EPOCH, GONE, HANDOFF, HLC, Lease, OWNER, PEERS, PeerPosition};
use crate::state::{EXPIRES, PK, Row, SK, StateTable, get_text, number, text};
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{
    AttributeValue, KeysAndAttributes, ReturnValue, ReturnValuesOnConditionCheckFailure,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
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
    shard: Arc<str>,
    epoch: u64,
    /// Who shall have the lease next, once that is decided.
    heir: Arc<OnceLock<String>>,
    records: Arc<AtomicU64>,
}

/// The rows of one route on one stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// The leases, in the order of their shard ids.
    pub leases: Vec<Lease>,
    /// The row of the one that lists the stream; `None` before the first.
    pub lister: Option<ListerRow>,
}

impl Rows {
    fn add(&mut self, row: &Row) -> Result<(), Failure> {
        if get_text(row, SK) == Some(LISTER) {
            self.lister = Some(lister::from_row(row));
        } else {
            self.leases.push(row::from_row(row)?);
        }
        Ok(())
    }
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

    /// All rows, strongly consistent.
    ///
    /// # Errors
    /// The failure of the call, or of a row that is not a lease.
    pub async fn load(&self) -> Result<Rows, Failure> {
        let mut rows = Rows::default();
        self.state.each_row(&self.partition, "", &[], |row| rows.add(&row)).await?;
        Ok(rows)
    }

    /// Some shards' rows, in no order, and the lister's; strongly consistent. Those that do not exist are missing.
    ///
    /// # Errors
    /// The failure of the call, or of a row that is not a lease.
    pub async fn get(&self, shards: &BTreeSet<String>) -> Result<Rows, Failure> {
        let mut rows = Rows::default();
        let ids: Vec<&str> = std::iter::once(LISTER).chain(shards.iter().map(String::as_str)).collect();
        for ids in ids.chunks(BATCH) {
            let keys = ids.iter().map(|id| self.key(id)).collect();
            let keys = KeysAndAttributes::builder().set_keys(Some(keys)).consistent_read(true).build();
            let keys = keys.map_err(|e| Failure::new(Class::Invalid, "Request", e.to_string()))?;
            let answer = self
                .state
                .call("BatchGetItem")
                .batch_get_item()
                .request_items(self.state.name(), keys)
                .send()
                .await?;
            if answer.unprocessed_keys.is_some_and(|left| !left.is_empty()) {
                return Err(Failure::new(Class::Throttled, "UnprocessedKeys", "not all rows were read"));
            }
            for row in answer.responses.into_iter().flatten().flat_map(|(_, rows)| rows) {
                rows.add(&row)?;
            }
        }
        Ok(rows)
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
            .update_expression("SET #owner = :me, #epoch = :next REMOVE #handoff, #expires")
            .condition_expression(format!("#epoch = :epoch AND {owned}"))
            .expression_attribute_values(":me", text(&*self.worker))
            .expression_attribute_values(":next", number(epoch))
            .expression_attribute_values(":epoch", number(seen.epoch))
            .expression_attribute_names("#handoff", HANDOFF)
            .expression_attribute_names("#expires", EXPIRES)
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
        Ok(lease.filter(mine).map(|lease| {
            let held = Held {
                table: self.clone(),
                shard: lease.shard.as_str().into(),
                epoch,
                heir: Arc::default(),
                records: Arc::default(),
            };
            (held, lease)
        }))
    }

    /// Writes what a listing said of a shard that has a row. A row that is gone meanwhile stays gone.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn mark(&self, shard: &str, closed: bool, gone: bool) -> Result<(), Failure> {
        let request = self
            .row_update(shard)
            .update_expression("SET #closed = :closed, #gone = :gone")
            .expression_attribute_names("#closed", CLOSED)
            .expression_attribute_names("#gone", GONE)
            .expression_attribute_values(":closed", AttributeValue::Bool(closed))
            .expression_attribute_values(":gone", AttributeValue::Bool(gone));
        self.if_there(request).await
    }

    /// Keeps the row of a finished shard until `expires` since 1970.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn keep(&self, shard: &str, expires: Duration) -> Result<(), Failure> {
        let request = self
            .row_update(shard)
            .update_expression("SET #expires = :expires")
            .expression_attribute_names("#expires", EXPIRES)
            .expression_attribute_values(":expires", number(expires.as_secs()));
        self.if_there(request).await
    }

    async fn if_there(&self, request: UpdateItemFluentBuilder) -> Result<(), Failure> {
        let request =
            request.condition_expression("attribute_exists(#pk)").expression_attribute_names("#pk", PK);
        match request.send().await {
            Err(error) if refused(&error).is_none() => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn key(&self, shard: &str) -> HashMap<String, AttributeValue> {
        HashMap::from([(PK.to_owned(), text(&*self.partition)), (SK.to_owned(), text(shard))])
    }

    fn row_update(&self, shard: &str) -> UpdateItemFluentBuilder {
        self.state
            .call("UpdateItem")
            .update_item()
            .table_name(self.state.name())
            .set_key(Some(self.key(shard)))
    }

    pub(super) fn update(&self, shard: &str) -> UpdateItemFluentBuilder {
        self.row_update(shard)
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#epoch", EPOCH)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
    }

    /// The table that the rows are in.
    #[must_use]
    pub fn state(&self) -> &StateTable {
        &self.state
    }

    /// This worker's name.
    pub(super) fn worker(&self) -> &str {
        &self.worker
    }
}

impl Held {
    /// The fencing token.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Writes the peers' positions. They never go back, also when a request arrives late: a position below the one in the
    /// row, or one that is not done any more, is refused as a loss.
    ///
    /// # Errors
    /// [`HeldError`].
    pub async fn checkpoint(&self, peers: &BTreeMap<String, PeerPosition>) -> Result<(), HeldError> {
        // An expression has 4 KB at most.
        let peers: Vec<_> = peers.iter().collect();
        for some in peers.chunks(PEERS_AT_ONCE) {
            self.checkpoint_some(some).await?;
        }
        Ok(())
    }

    async fn checkpoint_some(&self, peers: &[(&String, &PeerPosition)]) -> Result<(), HeldError> {
        let mut request = self.mine().expression_attribute_names("#peers", PEERS);
        let (mut sets, mut conditions) = (Vec::new(), vec![HELD.to_owned()]);
        for (index, (name, peer)) in peers.iter().copied().enumerate() {
            sets.push(format!("#peers.#p{index} = :p{index}"));
            conditions.push(format!(
                "(attribute_not_exists(#peers.#p{index}) OR #peers.#p{index}.#hlc < :h{index} \
                 OR (#peers.#p{index}.#hlc = :h{index} AND #peers.#p{index}.#done IN (:open, :d{index})))"
            ));
            request = request
                .expression_attribute_names(format!("#p{index}"), name)
                .expression_attribute_values(format!(":p{index}"), row::peer_value(peer))
                .expression_attribute_values(format!(":h{index}"), text(peer.position.hlc.to_string()))
                .expression_attribute_values(format!(":d{index}"), AttributeValue::Bool(peer.done));
        }
        let request = request
            .expression_attribute_names("#hlc", HLC)
            .expression_attribute_names("#done", DONE)
            .expression_attribute_values(":open", AttributeValue::Bool(false))
            .update_expression(format!("SET {}", sets.join(", ")))
            .condition_expression(conditions.join(" AND "));
        self.send(request).await
    }

    /// Decides who shall have the lease when it is given back. Only the first decision counts.
    pub fn hand_to(&self, heir: &str) {
        let _decided_before = self.heir.set(heir.to_owned());
    }

    /// Records of the shard were read: what it weighs depends on how many.
    pub fn count(&self, records: u64) {
        self.records.fetch_add(records, Ordering::Relaxed);
    }

    /// How many records of the shard were read under this lease.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Gives the lease back, so that another worker may take it at once: the heir, when there is one.
    ///
    /// # Errors
    /// [`HeldError`].
    pub async fn release(&self) -> Result<(), HeldError> {
        let request = self.mine().condition_expression(HELD);
        let request = match self.heir.get() {
            None => request.update_expression("REMOVE #owner"),
            Some(heir) => request
                .update_expression("REMOVE #owner SET #handoff = :heir")
                .expression_attribute_names("#handoff", HANDOFF)
                .expression_attribute_values(":heir", text(heir)),
        };
        self.send(request).await
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

    /// One attribute of the row as it is now, whoever holds it.
    pub(super) async fn row(&self, attribute: &str) -> Result<Option<Row>, Failure> {
        let table = &self.table;
        let request = table.state.call("GetItem").get_item().table_name(table.state.name());
        let request = request.set_key(Some(table.key(&self.shard))).consistent_read(true);
        let request = request.projection_expression("#a").expression_attribute_names("#a", attribute);
        Ok(request.send().await?.item)
    }

    pub(super) fn mine(&self) -> UpdateItemFluentBuilder {
        self.table
            .update(&self.shard)
            .expression_attribute_values(":me", text(&*self.table.worker))
            .expression_attribute_values(":mine", number(self.epoch))
    }

    pub(super) async fn send(&self, request: UpdateItemFluentBuilder) -> Result<(), HeldError> {
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) if refused(&error).is_some() => Err(HeldError::Lost),
            Err(error) => Err(HeldError::Call(error.into())),
        }
    }
}

/// True while the lease is this worker's.
pub(super) const HELD: &str = "#owner = :me AND #epoch = :mine";

/// Peers of one checkpoint's request.
const PEERS_AT_ONCE: usize = 16;

/// Keys that one BatchGetItem may name.
const BATCH: usize = 100;

type UpdateError = aws_smithy_runtime_api::client::result::SdkError<
    UpdateItemError,
    aws_smithy_runtime_api::client::orchestrator::HttpResponse,
>;

/// The row that refused a conditional write, when that was what failed.
pub(super) fn refused(error: &UpdateError) -> Option<Option<&Row>> {
    match error.as_service_error() {
        Some(UpdateItemError::ConditionalCheckFailedException(e)) => Some(e.item()),
        _ => None,
    }
}
