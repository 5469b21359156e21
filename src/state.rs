//! The state table: one DynamoDB table in the replicator's account, with partition key `pk` and sort key `sk`.
//!
//! This room owns the table itself: finding it, creating it, and the small helpers for its rows. What the rows
//! mean belongs to [`crate::ledger`], [`crate::lease`] and [`crate::dead_letters`].

use crate::aws::Clients;
use crate::config;
use crate::failure::{Action, Class, Failure};
use crate::telemetry::metrics::Metrics;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
    TableDescription, TableStatus, TimeToLiveSpecification, TimeToLiveStatus,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The partition key's attribute.
pub const PK: &str = "pk";
/// The sort key's attribute.
pub const SK: &str = "sk";
/// The time-to-live attribute: seconds since 1970.
pub const EXPIRES: &str = "expires";

/// A row's attributes.
pub type Row = HashMap<String, AttributeValue>;

/// The state table. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StateTable {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    table: String,
    metrics: Metrics,
}

/// Why the state table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is no such table.
    #[error(
        "the state table {0} does not exist; `shardwalker run --create-state-table` makes it \
         (on-demand, with time-to-live), or create it with partition key pk (S) and sort key sk (S)"
    )]
    Absent(String),
    /// It is not a state table.
    #[error(
        "the table {table} cannot be the state table: {why}; \
         it needs partition key pk (S) and sort key sk (S)"
    )]
    Unfit {
        /// Its name.
        table: String,
        /// What does not fit.
        why: String,
    },
    /// It did not become active in time.
    #[error("the state table {0} is not ACTIVE after a minute")]
    NotActive(String),
    /// A call failed.
    #[error("{call} on the state table {table}: {source}; {}", source.class.remedy())]
    Call {
        /// The API call.
        call: &'static str,
        /// The table's name.
        table: String,
        /// What failed.
        source: Failure,
    },
}

impl StateError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Call { source, .. } => source.class.action() != Action::GiveBack,
            Self::Absent(_) | Self::Unfit { .. } | Self::NotActive(_) => false,
        }
    }
}

impl StateTable {
    /// The state table of a config. Sends nothing.
    #[must_use]
    pub fn new(config: &config::State, clients: &Clients, metrics: Metrics) -> Self {
        let shared = Shared { client: clients.tables.clone(), table: config.table.clone(), metrics };
        Self { shared: Arc::new(shared) }
    }

    /// The client, counted under `operation`.
    pub(crate) fn call(&self, operation: &'static str) -> &Client {
        self.shared.metrics.state_requests.with_label_values(&[operation]).inc();
        &self.shared.client
    }

    /// The table's name or ARN.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.table
    }

    /// Sees that the table is there, active and of the right shape; with `create`, makes it when it is not. What
    /// may pass, such as a policy that is not applied yet, is tried again for `patience`.
    ///
    /// # Errors
    /// [`StateError`].
    pub async fn open(&self, create: bool, patience: Duration) -> Result<(), StateError> {
        let (deadline, patient) = (Instant::now() + Duration::from_secs(60), Instant::now() + patience);
        let mut made = false;
        loop {
            match self.describe().await {
                Ok(Some(true)) => break,
                Ok(Some(false)) => {}
                Ok(None) if made => {}
                Ok(None) if create => match self.create().await {
                    Err(error) if error.may_pass() && Instant::now() < patient => {}
                    created => {
                        created?;
                        made = true;
                    }
                },
                Ok(None) => return Err(StateError::Absent(self.name().to_owned())),
                Err(error) if error.may_pass() && Instant::now() < patient => {}
                Err(error) => return Err(error),
            }
            if Instant::now() > deadline {
                return Err(StateError::NotActive(self.name().to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        if !made {
            return Ok(());
        }
        loop {
            match self.enable_ttl().await {
                Err(error) if error.may_pass() && Instant::now() < patient => {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                enabled => return enabled,
            }
        }
    }

    /// `None` when absent, else whether it is active.
    async fn describe(&self) -> Result<Option<bool>, StateError> {
        let answer = self.call("DescribeTable").describe_table().table_name(self.name()).send().await;
        let table = match answer.map_err(Failure::from) {
            Ok(answer) => answer.table,
            Err(failure) if failure.class == Class::NotFound => return Ok(None),
            Err(failure) => return Err(self.failed("DescribeTable", failure)),
        };
        let Some(table) = table else { return Ok(Some(false)) };
        if let Some(why) = misfit(&table) {
            return Err(StateError::Unfit { table: self.name().to_owned(), why });
        }
        Ok(Some(table.table_status() == Some(&TableStatus::Active)))
    }

    async fn create(&self) -> Result<(), StateError> {
        let mut request = self
            .call("CreateTable")
            .create_table()
            .table_name(self.name())
            .billing_mode(BillingMode::PayPerRequest);
        for (name, kind) in [(PK, KeyType::Hash), (SK, KeyType::Range)] {
            let definition = AttributeDefinition::builder()
                .attribute_name(name)
                .attribute_type(ScalarAttributeType::S)
                .build()
                .map_err(|e| self.failed("CreateTable", invalid(&e)))?;
            let key = KeySchemaElement::builder()
                .attribute_name(name)
                .key_type(kind)
                .build()
                .map_err(|e| self.failed("CreateTable", invalid(&e)))?;
            request = request.attribute_definitions(definition).key_schema(key);
        }
        match request.send().await.map_err(Failure::from) {
            Ok(_) => tracing::info!(table = self.name(), "state table is being created"),
            // Another worker was faster.
            Err(failure) if failure.code == "ResourceInUseException" => {}
            Err(failure) => return Err(self.failed("CreateTable", failure)),
        }
        Ok(())
    }

    async fn enable_ttl(&self) -> Result<(), StateError> {
        let answer =
            self.call("DescribeTimeToLive").describe_time_to_live().table_name(self.name()).send().await;
        let on = answer.ok().and_then(|a| a.time_to_live_description).and_then(|d| d.time_to_live_status);
        if matches!(on, Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling)) {
            return Ok(());
        }
        let specification = TimeToLiveSpecification::builder()
            .attribute_name(EXPIRES)
            .enabled(true)
            .build()
            .map_err(|e| self.failed("UpdateTimeToLive", invalid(&e)))?;
        self.call("UpdateTimeToLive")
            .update_time_to_live()
            .table_name(self.name())
            .time_to_live_specification(specification)
            .send()
            .await
            .map_err(|e| self.failed("UpdateTimeToLive", e.into()))?;
        Ok(())
    }

    fn failed(&self, call: &'static str, source: Failure) -> StateError {
        StateError::Call { call, table: self.name().to_owned(), source }
    }

    /// One row, strongly consistent.
    ///
    /// # Errors
    /// The failure of the call.
    pub(crate) async fn get(&self, pk: &str, sk: &str) -> Result<Option<Row>, Failure> {
        let request = self.call("GetItem").get_item().table_name(self.name()).consistent_read(true);
        Ok(request.set_key(Some(key(pk, sk))).send().await?.item)
    }

    /// Puts a row, whatever is there.
    ///
    /// # Errors
    /// The failure of the call.
    pub(crate) async fn put(&self, row: Row) -> Result<(), Failure> {
        self.call("PutItem").put_item().table_name(self.name()).set_item(Some(row)).send().await?;
        Ok(())
    }

    /// Deletes the row of a key, if there is one.
    ///
    /// # Errors
    /// The failure of the call.
    pub(crate) async fn delete(&self, key: Row) -> Result<(), Failure> {
        self.call("DeleteItem").delete_item().table_name(self.name()).set_key(Some(key)).send().await?;
        Ok(())
    }

    /// All rows of a partition whose sort key begins with `prefix`, strongly consistent, in the sort key's
    /// order; only the attributes named in `only` when it is not empty.
    ///
    /// # Errors
    /// The failure of the page that failed.
    pub(crate) async fn rows(&self, pk: &str, prefix: &str, only: &[&str]) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        let keep = |row| {
            rows.push(row);
            Ok(())
        };
        self.each_row(pk, prefix, only, keep).await?;
        Ok(rows)
    }

    /// Gives what [`rows`](Self::rows) gives, row by row: no more than a page of them is held, whose attributes take many
    /// times what they are on the way.
    ///
    /// # Errors
    /// The failure of the page that failed, or the first of `take`.
    pub(crate) async fn each_row(
        &self,
        pk: &str,
        prefix: &str,
        only: &[&str],
        mut take: impl FnMut(Row) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut start = None;
        loop {
            let mut query = self.query(pk, only).set_exclusive_start_key(start);
            if !prefix.is_empty() {
                query = query
                    .key_condition_expression("#pk = :pk AND begins_with(#sk, :prefix)")
                    .expression_attribute_names("#sk", SK)
                    .expression_attribute_values(":prefix", text(prefix));
            }
            let page = query.send().await?;
            page.items.unwrap_or_default().into_iter().try_for_each(&mut take)?;
            start = page.last_evaluated_key.filter(|key| !key.is_empty());
            if start.is_none() {
                return Ok(());
            }
        }
    }

    /// The last rows of a partition that are `wanted`, `most` of them, from the last on; only the attributes named in
    /// `only` when it is not empty. Reads no further than it must.
    ///
    /// # Errors
    /// The failure of the page that failed.
    pub(crate) async fn newest(
        &self,
        pk: &str,
        only: &[&str],
        most: usize,
        wanted: impl Fn(&Row) -> bool,
    ) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        let mut start = None;
        loop {
            let query = self.query(pk, only).scan_index_forward(false).set_exclusive_start_key(start);
            let page = query.send().await?;
            rows.extend(page.items.unwrap_or_default().into_iter().filter(&wanted));
            start = page.last_evaluated_key.filter(|key| !key.is_empty());
            if start.is_none() || rows.len() >= most {
                rows.truncate(most);
                return Ok(rows);
            }
        }
    }

    /// A partition's rows, strongly consistent; only the attributes named in `only` when it is not empty.
    fn query(&self, pk: &str, only: &[&str]) -> QueryFluentBuilder {
        let query = self
            .call("Query")
            .query()
            .table_name(self.name())
            .consistent_read(true)
            .key_condition_expression("#pk = :pk")
            .expression_attribute_names("#pk", PK)
            .expression_attribute_values(":pk", text(pk));
        if only.is_empty() {
            return query;
        }
        let aliases: Vec<_> = (0..only.len()).map(|i| format!("#only{i}")).collect();
        let named = aliases.iter().zip(only);
        let query = named.fold(query, |query, (alias, name)| query.expression_attribute_names(alias, *name));
        query.projection_expression(aliases.join(", "))
    }
}

/// Why a table cannot be a state table, if it cannot.
pub(crate) fn misfit(table: &TableDescription) -> Option<String> {
    let keys: Vec<(&str, &str)> =
        table.key_schema().iter().map(|k| (k.attribute_name(), k.key_type().as_str())).collect();
    if keys != [(PK, "HASH"), (SK, "RANGE")] {
        return Some(format!("its key schema is {keys:?}"));
    }
    let strings = |a: &&AttributeDefinition| {
        [PK, SK].contains(&a.attribute_name()) && *a.attribute_type() == ScalarAttributeType::S
    };
    let both = table.attribute_definitions().iter().filter(strings).count() == 2;
    (!both).then(|| "its keys are not strings".to_owned())
}

fn invalid(error: &dyn std::error::Error) -> Failure {
    Failure::new(Class::Invalid, "Request", error.to_string())
}

/// The key of a row.
pub(crate) fn key(pk: &str, sk: &str) -> Row {
    HashMap::from([(PK.to_owned(), text(pk)), (SK.to_owned(), text(sk))])
}

/// A string value.
pub(crate) fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

/// A number value.
pub(crate) fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// A row's string attribute.
pub(crate) fn get_text<'a>(row: &'a Row, name: &str) -> Option<&'a str> {
    row.get(name)?.as_s().ok().map(String::as_str)
}

/// A row's number attribute.
pub(crate) fn get_number<T: std::str::FromStr>(row: &Row, name: &str) -> Option<T> {
    row.get(name)?.as_n().ok()?.parse().ok()
}
