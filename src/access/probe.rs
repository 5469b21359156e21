//! How each action is tried without changing anything.
//!
//! AWS looks at permissions before it looks at anything else of a request. So a write whose condition cannot hold, or
//! a table that would be made a second time, says whether it would be let in, and changes nothing.

use super::needs::Action;
use crate::aws::Clients;
use crate::failure::{Class, Failure};
use crate::peer::NEVER;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, KeysAndAttributes,
    ScalarAttributeType, Select, TimeToLiveSpecification, TimeToLiveStatus,
};
use aws_sdk_dynamodbstreams::types::ShardIteratorType;
use std::collections::HashMap;

/// A key attribute's name and type (`S`, `N` or `B`).
pub type KeyAttribute = (String, String);

/// The value of the key that probes ask for.
const PROBE: &str = "shardwalker-probe";

/// Why CreateTable is not tried.
const ELSEWHERE: &str =
    "the table is in another account than the caller, who can make tables only in its own";
const UNSURE: &str = "whether the table is in the caller's account cannot be seen: trying could make one";

/// Why what makes a table is not tried.
const ABSENT: &str = "the table does not exist yet: trying would make it";

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// The call was let in.
    Allowed,
    /// It cannot be tried without changing something, or there is nothing to try it on: why.
    Untried(&'static str),
}

/// What probes of one table are made with.
#[derive(Debug)]
pub struct Probe<'a> {
    /// The clients of its access.
    pub clients: &'a Clients,
    /// Its name or ARN.
    pub table: &'a str,
    /// Its key attributes, partition key first.
    pub keys: &'a [KeyAttribute],
    /// The time-to-live attribute that the table should have.
    pub expires: &'a str,
    /// Whether it is known not to exist: that it is not found says then that a call was let in.
    pub absent: bool,
}

impl Probe<'_> {
    /// Tries one action on the table, once.
    ///
    /// # Errors
    /// The failure of the call, where it says anything but that it was let in.
    pub async fn table(&self, action: Action) -> Result<Tried, Failure> {
        match Box::pin(self.call(action)).await {
            Err(failure) if self.absent && failure.class == Class::NotFound => Ok(Tried::Allowed),
            tried => tried.or_else(after_all),
        }
    }

    fn key(&self) -> HashMap<String, AttributeValue> {
        let value = |kind: &str| match ScalarAttributeType::from(kind) {
            ScalarAttributeType::N => AttributeValue::N("0".to_owned()),
            ScalarAttributeType::B => AttributeValue::B(Blob::new(PROBE)),
            _ => AttributeValue::S(PROBE.to_owned()),
        };
        self.keys.iter().map(|(name, kind)| (name.clone(), value(kind))).collect()
    }

    async fn call(&self, action: Action) -> Result<Tried, Failure> {
        let (client, table, key) = (&self.clients.tables, self.table, self.key());
        let Some((pk, _)) = self.keys.first() else { return Ok(Tried::Untried("its keys are not known")) };
        match action {
            Action::CreateTable | Action::UpdateTimeToLive if self.absent => {
                return Ok(Tried::Untried(ABSENT));
            }
            Action::DescribeTable => drop(client.describe_table().table_name(table).send().await?),
            Action::GetItem => {
                let get = client.get_item().table_name(table).set_key(Some(key)).consistent_read(true);
                drop(get.send().await?);
            }
            Action::BatchGetItem => {
                let keys = KeysAndAttributes::builder().keys(key).build().map_err(|e| invalid(&e))?;
                drop(client.batch_get_item().request_items(table, keys).send().await?);
            }
            Action::Query => {
                let query = client.query().table_name(table).limit(1).select(Select::Count);
                let query = query.key_condition_expression("#pk = :pk").expression_attribute_names("#pk", pk);
                drop(query.set_expression_attribute_values(Some(self.partition())).send().await?);
            }
            Action::Scan => {
                drop(client.scan().table_name(table).limit(1).select(Select::Count).send().await?);
            }
            Action::PutItem => {
                let put = client.put_item().table_name(table).set_item(Some(key));
                drop(put.condition_expression(NEVER).expression_attribute_names("#pk", pk).send().await?);
            }
            Action::UpdateItem => {
                let update = client.update_item().table_name(table).set_key(Some(key));
                let update =
                    update.update_expression("REMOVE #probe").expression_attribute_names("#probe", PROBE);
                drop(update.condition_expression(NEVER).expression_attribute_names("#pk", pk).send().await?);
            }
            Action::DeleteItem => {
                let delete = client.delete_item().table_name(table).set_key(Some(key));
                drop(delete.condition_expression(NEVER).expression_attribute_names("#pk", pk).send().await?);
            }
            Action::CreateTable => return self.create().await,
            Action::DescribeTimeToLive => {
                drop(client.describe_time_to_live().table_name(table).send().await?)
            }
            Action::UpdateTimeToLive => return self.expire().await,
            Action::DescribeStream | Action::GetRecords | Action::GetShardIterator => {}
        }
        Ok(Tried::Allowed)
    }

    fn partition(&self) -> HashMap<String, AttributeValue> {
        let value = self.keys.first().and_then(|(pk, _)| self.key().remove(pk));
        value.map(|value| HashMap::from([(":pk".to_owned(), value)])).unwrap_or_default()
    }

    /// Makes the table a second time, which is refused for that it exists. By its bare name it would be made in the
    /// caller's account: so only where that name means the very table.
    async fn create(&self) -> Result<Tried, Failure> {
        let name = self.table.rsplit('/').next().unwrap_or(self.table);
        let meant = self.described(self.table).await?;
        match self.described(name).await {
            Ok(found) if found.is_some() && found == meant => {}
            Ok(_) => return Ok(Tried::Untried(ELSEWHERE)),
            Err(failure) if failure.class == Class::NotFound => return Ok(Tried::Untried(ELSEWHERE)),
            Err(failure) if failure.class == Class::Denied => return Ok(Tried::Untried(UNSURE)),
            Err(failure) => return Err(failure),
        }
        let mut request =
            self.clients.tables.create_table().table_name(name).billing_mode(BillingMode::PayPerRequest);
        for ((name, kind), role) in self.keys.iter().zip([KeyType::Hash, KeyType::Range]) {
            let definition = AttributeDefinition::builder().attribute_name(name);
            let definition =
                definition.attribute_type(kind.as_str().into()).build().map_err(|e| invalid(&e))?;
            let key = KeySchemaElement::builder().attribute_name(name).key_type(role);
            let key = key.build().map_err(|e| invalid(&e))?;
            request = request.attribute_definitions(definition).key_schema(key);
        }
        drop(request.send().await?);
        Ok(Tried::Allowed)
    }

    /// The ARN of the table that a name or ARN means to the caller.
    async fn described(&self, table: &str) -> Result<Option<String>, Failure> {
        let answer = self.clients.tables.describe_table().table_name(table).send().await?;
        Ok(answer.table.and_then(|table| table.table_arn))
    }

    /// Turns time to live on where it is on, which is refused for that or changes nothing.
    async fn expire(&self) -> Result<Tried, Failure> {
        let client = &self.clients.tables;
        let found = client.describe_time_to_live().table_name(self.table).send().await;
        let found = found.ok().and_then(|answer| answer.time_to_live_description);
        let on = found.as_ref().is_some_and(|ttl| {
            ttl.time_to_live_status() == Some(&TimeToLiveStatus::Enabled)
                && ttl.attribute_name() == Some(self.expires)
        });
        if !on {
            return Ok(Tried::Untried(
                "time to live is off, or on another attribute: trying would change it",
            ));
        }
        let same = TimeToLiveSpecification::builder().attribute_name(self.expires).enabled(true);
        let same = same.build().map_err(|e| invalid(&e))?;
        let update = client.update_time_to_live().table_name(self.table).time_to_live_specification(same);
        drop(update.send().await?);
        Ok(Tried::Allowed)
    }

    /// Lists the stream's shards: one of them, when it has any.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn shard(&self, stream: &str) -> Result<Option<String>, Failure> {
        let answer = self.clients.streams.describe_stream().stream_arn(stream).limit(1).send().await?;
        let shards = answer.stream_description.and_then(|description| description.shards).unwrap_or_default();
        Ok(shards.into_iter().next().and_then(|shard| shard.shard_id))
    }

    /// Opens a shard; `None` when it is gone, which may happen to the oldest between two calls.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn open(&self, stream: &str, shard: &str) -> Result<Option<String>, Failure> {
        let open = self.clients.streams.get_shard_iterator().stream_arn(stream).shard_id(shard);
        match open.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await.map_err(Failure::from) {
            Ok(answer) => Ok(answer.shard_iterator),
            Err(failure) if failure.class == Class::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Reads at a position.
    ///
    /// # Errors
    /// The failure of the call, where it says anything but that it was let in.
    pub async fn read(&self, iterator: &str) -> Result<Tried, Failure> {
        let read = self.clients.streams.get_records().shard_iterator(iterator).limit(1).send().await;
        match read.map_err(Failure::from) {
            Err(failure) if failure.class != Class::NotFound => after_all(failure),
            _ => Ok(Tried::Allowed),
        }
    }
}

/// A failure that comes after the question of permission says that it was let in: the condition that cannot hold, the
/// table that exists, the time to live that is on, records that were trimmed since the shard was listed.
fn after_all(failure: Failure) -> Result<Tried, Failure> {
    let let_in = match failure.class {
        Class::Condition | Class::Trimmed | Class::IteratorExpired => true,
        _ => {
            failure.code == "ResourceInUseException"
                || failure.code == "ValidationException" && failure.message.contains("TimeToLive is already")
        }
    };
    if let_in { Ok(Tried::Allowed) } else { Err(failure) }
}

fn invalid(error: &dyn std::error::Error) -> Failure {
    Failure::new(Class::Invalid, "Request", error.to_string())
}
