//! Table operations: the engine's, with the sandbox's ARNs, ids and streams in place of the engine's own.
//!
//! Promises that the engine never sees a stream, and that a stream which is turned off and on comes back with
//! another ARN and without a policy.

use super::engine::{read, write};
use super::{Region, Table};
use crate::sandbox::arn::{Arn, Part};
use crate::sandbox::error::{ApiError, ApiResult};
use crate::sandbox::streams::{Stream, ViewType};
use dynoxide::actions::describe_table::DescribeTableRequest;
use serde_json::{Value, json};

impl Region {
    /// A table operation by name, its table name already plain.
    pub(in crate::sandbox) fn table_operation(&mut self, operation: &str, body: Value) -> ApiResult<Vec<u8>> {
        match operation {
            "CreateTable" => self.create_table(body),
            "DeleteTable" => self.delete_table(body),
            "UpdateTable" => self.update_table(body),
            "DescribeTable" => self.described(&body).and_then(|table| write(&json!({ "Table": table }))),
            "ListTables" => self.pass(operation, body, |db, request| db.list_tables(request)),
            "UpdateTimeToLive" => self.pass(operation, body, |db, request| db.update_time_to_live(request)),
            "DescribeTimeToLive" => {
                self.pass(operation, body, |db, request| db.describe_time_to_live(request))
            }
            "TagResource" => self.pass(operation, body, |db, request| db.tag_resource(request)),
            "UntagResource" => self.pass(operation, body, |db, request| db.untag_resource(request)),
            "ListTagsOfResource" => {
                self.pass(operation, body, |db, request| db.list_tags_of_resource(request))
            }
            _ => Err(ApiError::new("UnknownOperationException", "")),
        }
    }

    fn create_table(&mut self, mut body: Value) -> ApiResult<Vec<u8>> {
        let view = stream_wanted(&mut body)?;
        let description = self.db.create_table(read("CreateTable", body)?)?.table_description;
        let name = description.table_name.clone();
        let description = to_json(&description)?;
        let table = Table {
            arn: Arn::table(&self.account, &self.name, &name),
            id: self.chance().uuid(),
            keys: key_names(&description["KeySchema"]),
            latest_stream: None,
            captures: false,
            clock_off_ms: 0,
            policy: None,
        };
        self.tables.insert(name.clone(), table);
        if let Some(Some(view)) = view {
            self.turn_stream_on(&name, view, description["KeySchema"].clone());
        }
        write(&json!({"TableDescription": self.with_ours(&name, description)}))
    }

    fn delete_table(&mut self, body: Value) -> ApiResult<Vec<u8>> {
        let description = self.db.delete_table(read("DeleteTable", body)?)?.table_description;
        let name = description.table_name.clone();
        let description = self.with_ours(&name, to_json(&description)?);
        self.turn_stream_off(&name);
        self.tables.remove(&name);
        write(&json!({ "TableDescription": description }))
    }

    fn update_table(&mut self, mut body: Value) -> ApiResult<Vec<u8>> {
        let view = stream_wanted(&mut body)?;
        let before = self.described(&body)?;
        let name = before["TableName"].as_str().unwrap_or_default().to_owned();
        let captures = self.table(&name).is_some_and(|table| table.captures);
        match view {
            Some(Some(_)) if captures => {
                let message = format!("Table already has an enabled stream: TableName: {name}");
                return Err(ApiError::validation(message));
            }
            Some(None) if !captures => {
                let message = format!("Table has no stream to disable: TableName: {name}");
                return Err(ApiError::validation(message));
            }
            _ => {}
        }
        // A change of the stream alone is nothing that the engine would know.
        let only_stream = view.is_some() && body.as_object().is_some_and(|members| members.len() == 1);
        let description = if only_stream {
            before
        } else {
            to_json(&self.db.update_table(read("UpdateTable", body)?)?.table_description)?
        };
        match view {
            Some(Some(view)) => self.turn_stream_on(&name, view, description["KeySchema"].clone()),
            Some(None) => self.turn_stream_off(&name),
            None => {}
        }
        write(&json!({"TableDescription": self.with_ours(&name, description)}))
    }

    fn described(&self, body: &Value) -> ApiResult<Value> {
        let table =
            self.db.describe_table(read("DescribeTable", json!({"TableName": body["TableName"]}))?)?;
        let name = table.table.table_name.clone();
        Ok(self.with_ours(&name, to_json(&table.table)?))
    }

    /// The partition key of a table or of one of its indexes.
    pub(in crate::sandbox) fn partition_key(&self, table: &str, index: Option<&str>) -> Option<String> {
        let Some(index) = index else { return self.table(table)?.keys.first().cloned() };
        let request = DescribeTableRequest { table_name: table.into() };
        let description = to_json(&self.db.describe_table(request).ok()?.table).ok()?;
        let indexes = ["GlobalSecondaryIndexes", "LocalSecondaryIndexes"];
        let found = indexes
            .iter()
            .filter_map(|kind| description[kind].as_array())
            .flatten()
            .find(|entry| entry["IndexName"] == index)?;
        key_names(&found["KeySchema"]).into_iter().next()
    }

    /// A description with what is ours in place of what is the engine's.
    fn with_ours(&self, name: &str, mut description: Value) -> Value {
        let Some(table) = self.table(name) else { return description };
        description["TableArn"] = json!(table.arn.to_string());
        description["TableId"] = json!(table.id);
        for kind in ["GlobalSecondaryIndexes", "LocalSecondaryIndexes"] {
            for index in description.get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten() {
                let name = index["IndexName"].as_str().unwrap_or_default();
                index["IndexArn"] = json!(table.arn.with(Part::Index(name.into())).to_string());
            }
        }
        if let Some(stream) = table.latest_stream.as_ref().and_then(|arn| self.streams.get(arn)) {
            description["LatestStreamArn"] = json!(stream.arn);
            description["LatestStreamLabel"] = json!(stream.label);
            if table.captures {
                description["StreamSpecification"] =
                    json!({"StreamEnabled": true, "StreamViewType": stream.view.name()});
            }
        }
        description
    }

    fn turn_stream_on(&mut self, table: &str, view: ViewType, key_schema: Value) {
        self.forget_old_streams();
        let now = self.now_ms();
        let Some(arn) = self.table(table).map(|table| table.arn.clone()) else { return };
        let taken =
            |label: &str| self.streams.contains_key(&arn.with(Part::Stream(label.into())).to_string());
        let label = (now..).map(label).find(|label| !taken(label)).unwrap_or_default();
        let stream_arn = arn.with(Part::Stream(label.clone())).to_string();
        let stream = Stream::open(
            stream_arn.clone(),
            label,
            table.into(),
            key_schema,
            view,
            self.env.initial_shards,
            self.env.shard_lifetime,
            now,
            &self.env.chance,
        );
        self.streams.insert(stream_arn.clone(), stream);
        if let Some(table) = self.tables.get_mut(table) {
            table.latest_stream = Some(stream_arn);
            table.captures = true;
        }
    }

    fn turn_stream_off(&mut self, table: &str) {
        let now = self.now_ms();
        let Some(table) = self.tables.get_mut(table) else { return };
        table.captures = false;
        if let Some(stream) = table.latest_stream.as_ref().and_then(|arn| self.streams.get_mut(arn)) {
            stream.disable(now);
        }
    }
}

/// Takes the stream's specification out of a request: absent, off, or on with a view.
#[expect(clippy::option_option, reason = "a request says nothing, off or on")]
fn stream_wanted(body: &mut Value) -> ApiResult<Option<Option<ViewType>>> {
    let Some(wanted) = body.as_object_mut().and_then(|members| members.remove("StreamSpecification")) else {
        return Ok(None);
    };
    if wanted.is_null() {
        return Ok(None);
    }
    let view = &wanted["StreamViewType"];
    if wanted["StreamEnabled"].as_bool() != Some(true) {
        return match view {
            Value::Null => Ok(Some(None)),
            _ => Err(ApiError::validation(
                "One or more parameter values were invalid: StreamViewType must not be set when the stream \
                 is disabled",
            )),
        };
    }
    let parsed = serde_json::from_value(view.clone()).map_err(|_| {
        ApiError::validation(format!(
            "1 validation error detected: Value {view} at 'streamSpecification.streamViewType' failed to \
             satisfy constraint: Member must satisfy enum value set: \
             [OLD_IMAGE, NEW_AND_OLD_IMAGES, KEYS_ONLY, NEW_IMAGE]"
        ))
    });
    parsed.map(|view| Some(Some(view)))
}

fn to_json(description: &dynoxide::actions::TableDescription) -> ApiResult<Value> {
    serde_json::to_value(description).map_err(|error| ApiError::internal(error.to_string()))
}

/// The names of a key schema, the partition key first.
fn key_names(schema: &Value) -> Vec<String> {
    let mut keys: Vec<&Value> = schema.as_array().into_iter().flatten().collect();
    keys.sort_by_key(|key| key["KeyType"] != "HASH");
    keys.iter().filter_map(|key| key["AttributeName"].as_str().map(String::from)).collect()
}

/// A stream's label: the time, to the millisecond.
fn label(ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    humantime::format_rfc3339_millis(time).to_string().trim_end_matches('Z').into()
}
