//! What a DynamoDB request touches, and what of it policies can ask about.
//!
//! Owns the map from operations to actions and resources, the ARNs that stand where table names do, and the
//! context keys that come from the request's body. Pure but for the key schema, which it is given.

use crate::sandbox::arn::{Arn, Part};
use crate::sandbox::error::{ApiError, ApiResult};
use crate::sandbox::streams::api::ShardIterator;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// One permission that a request needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Such as `dynamodb:GetItem`.
    pub action: String,
    /// The resource, as policies name it.
    pub resource: String,
    /// Whose policy decides; `None` where resources have none.
    pub guarded_by: Option<Arn>,
    /// Whether a resource policy can grant it across accounts.
    pub shareable: bool,
}

/// A request whose names are resolved.
#[derive(Debug)]
pub struct Resolved {
    /// The operation.
    pub operation: String,
    /// The body, with plain table names.
    pub body: Value,
    /// The account and Region that it is about.
    pub account: String,
    /// The Region.
    pub region: String,
    /// The table, when it is about one.
    pub table: Option<String>,
    /// What it needs to be allowed.
    pub accesses: Vec<Access>,
    /// The names as the caller gave them, by plain name, where they differ.
    given: BTreeMap<String, String>,
    /// Whether the answer repeats table names.
    repeats_names: bool,
}

/// The operations that resource policies cover across accounts.
const SHAREABLE: [&str; 15] = [
    "BatchGetItem",
    "BatchWriteItem",
    "ConditionCheckItem",
    "DeleteItem",
    "DescribeStream",
    "DescribeTable",
    "GetItem",
    "GetRecords",
    "GetShardIterator",
    "PutItem",
    "Query",
    "Scan",
    "TransactGetItems",
    "TransactWriteItems",
    "UpdateItem",
];

struct Resolver<'a> {
    account: &'a str,
    region: &'a str,
    owner: Option<String>,
    accesses: Vec<Access>,
    given: BTreeMap<String, String>,
    table: Option<String>,
}

impl Resolver<'_> {
    /// The table that a name or ARN means, all of one request in one account.
    fn table(&mut self, name: &str) -> ApiResult<Arn> {
        let arn = if name.starts_with("arn:") {
            let arn = Arn::parse(name).filter(|arn| arn.part == Part::Table);
            arn.ok_or_else(|| ApiError::validation(format!("Invalid table ARN: {name}")))?
        } else {
            Arn::table(self.account, self.region, name)
        };
        self.belongs(&arn)?;
        if name != arn.table {
            self.given.insert(arn.table.clone(), name.into());
        }
        self.table.get_or_insert_with(|| arn.table.clone());
        Ok(arn)
    }

    fn belongs(&mut self, arn: &Arn) -> ApiResult<()> {
        if arn.region != self.region {
            return Err(ApiError::validation(format!(
                "1 validation error detected: Invalid AWS region in '{arn}'"
            )));
        }
        match &self.owner {
            Some(owner) if *owner != arn.account => Err(ApiError::validation(
                "The request names tables of different accounts: one request stays within one account",
            )),
            _ => {
                self.owner = Some(arn.account.clone());
                Ok(())
            }
        }
    }

    fn needs(&mut self, action: &str, on: &Arn) {
        let access = Access {
            action: format!("dynamodb:{action}"),
            resource: on.to_string(),
            guarded_by: Some(on.clone()),
            shareable: SHAREABLE.contains(&action),
        };
        if !self.accesses.contains(&access) {
            self.accesses.push(access);
        }
    }

    fn needs_of_account(&mut self, action: &str, resource: &str) {
        let owner = self.owner.as_deref().unwrap_or(self.account);
        let resource = format!("arn:aws:dynamodb:{}:{owner}:{resource}", self.region);
        let action = format!("dynamodb:{action}");
        self.accesses.push(Access { action, resource, guarded_by: None, shareable: false });
    }

    fn resource_arn(&mut self, body: &Value, member: &str) -> ApiResult<Arn> {
        let text = body.get(member).and_then(Value::as_str).unwrap_or_default();
        let arn = Arn::parse(text);
        let arn = arn.ok_or_else(|| ApiError::validation(format!("Invalid {member}: {text}")))?;
        self.belongs(&arn)?;
        self.table.get_or_insert_with(|| arn.table.clone());
        Ok(arn)
    }
}

impl Resolved {
    /// Resolves a request of a caller's account to a Region.
    ///
    /// # Errors
    /// When an ARN is malformed, of another Region, or of a second account.
    pub fn new(operation: &str, mut body: Value, account: &str, region: &str) -> ApiResult<Self> {
        let mut r = Resolver {
            account,
            region,
            owner: None,
            accesses: Vec::new(),
            given: BTreeMap::new(),
            table: None,
        };
        match operation {
            "ListTables" => r.needs_of_account(operation, "table/*"),
            "ListStreams" => {
                if let Some(name) = body.get("TableName").and_then(Value::as_str).map(String::from) {
                    body["TableName"] = r.table(&name)?.table.into();
                }
                r.needs_of_account(operation, "table/*/stream/*");
            }
            "CreateTable" => {
                let mut name = body.get("TableName").and_then(Value::as_str).unwrap_or_default().to_owned();
                if name.starts_with("arn:") {
                    name = r.table(&name)?.table;
                    body["TableName"] = name.clone().into();
                }
                r.needs_of_account(operation, &format!("table/{name}"));
                r.table = Some(name);
            }
            "BatchGetItem" | "BatchWriteItem" => {
                if let Some(Value::Object(items)) = body.get_mut("RequestItems") {
                    let mut plain = Map::new();
                    for (name, request) in std::mem::take(items) {
                        let arn = r.table(&name)?;
                        r.needs(operation, &arn);
                        if plain.contains_key(&arn.table) {
                            return Err(ApiError::validation(format!("{} is named in two ways", arn.table)));
                        }
                        plain.insert(arn.table, request);
                    }
                    *items = plain;
                }
            }
            "TransactGetItems" | "TransactWriteItems" => {
                for action in
                    body.get_mut("TransactItems").and_then(Value::as_array_mut).into_iter().flatten()
                {
                    for (kind, request) in action.as_object_mut().into_iter().flatten() {
                        let Some(name) = request.get("TableName").and_then(Value::as_str).map(String::from)
                        else {
                            continue;
                        };
                        let arn = r.table(&name)?;
                        let permission = match kind.as_str() {
                            "Get" => "GetItem",
                            "Put" => "PutItem",
                            "Update" => "UpdateItem",
                            "Delete" => "DeleteItem",
                            _ => "ConditionCheckItem",
                        };
                        r.needs(permission, &arn);
                        request["TableName"] = arn.table.into();
                    }
                }
            }
            "DescribeStream" | "GetShardIterator" => {
                let arn = r.resource_arn(&body, "StreamArn")?;
                r.needs(operation, &arn);
            }
            "GetRecords" => {
                let token = body.get("ShardIterator").and_then(Value::as_str).unwrap_or_default();
                let iterator = ShardIterator::decode(token);
                let arn = iterator.ok_or_else(|| ApiError::validation("Invalid ShardIterator"))?.stream;
                r.belongs(&arn)?;
                r.table = Some(arn.table.clone());
                r.needs(operation, &arn);
            }
            "PutResourcePolicy"
            | "GetResourcePolicy"
            | "DeleteResourcePolicy"
            | "TagResource"
            | "UntagResource"
            | "ListTagsOfResource" => {
                let arn = r.resource_arn(&body, "ResourceArn")?;
                r.needs(operation, &arn);
            }
            _ => {
                if let Some(name) = body.get("TableName").and_then(Value::as_str).map(String::from) {
                    let arn = r.table(&name)?;
                    body["TableName"] = arn.table.clone().into();
                    match body.get("IndexName").and_then(Value::as_str) {
                        Some(index) => r.needs(operation, &arn.with(Part::Index(index.into()))),
                        None => r.needs(operation, &arn),
                    }
                } else {
                    r.needs_of_account(operation, "table/*");
                }
            }
        }
        let repeats_names = operation.starts_with("Batch") || body.get("ReturnConsumedCapacity").is_some();
        Ok(Self {
            operation: operation.into(),
            body,
            repeats_names,
            account: r.owner.unwrap_or_else(|| account.into()),
            region: region.into(),
            table: r.table,
            accesses: r.accesses,
            given: r.given,
        })
    }

    /// The parts of the body that are about a table (and, in a transaction, about an action).
    fn entries(&self, access: &Access) -> Vec<&Value> {
        let table = access.guarded_by.as_ref().map(|arn| arn.table.as_str()).unwrap_or_default();
        match self.operation.as_str() {
            "BatchGetItem" => self.body["RequestItems"].get(table).into_iter().collect(),
            "BatchWriteItem" => {
                let writes = self.body["RequestItems"].get(table).and_then(Value::as_array);
                let request = |write: &'_ Value| write.get("PutRequest").is_some();
                let inner = |write| -> Option<&Value> {
                    if request(write) { write.get("PutRequest") } else { write.get("DeleteRequest") }
                };
                writes.into_iter().flatten().filter_map(inner).collect()
            }
            "TransactGetItems" | "TransactWriteItems" => {
                let actions = self.body["TransactItems"].as_array();
                let kind = match access.action.as_str() {
                    "dynamodb:GetItem" => "Get",
                    "dynamodb:PutItem" => "Put",
                    "dynamodb:UpdateItem" => "Update",
                    "dynamodb:DeleteItem" => "Delete",
                    _ => "ConditionCheck",
                };
                let inner = actions.into_iter().flatten().filter_map(|action| action.get(kind));
                inner.filter(|request| request["TableName"] == table).collect()
            }
            _ => vec![&self.body],
        }
    }

    /// The value of a context key that comes from the body; `None` when the request has no such key.
    pub fn context(&self, access: &Access, key: &str, partition_key: &str) -> Option<Vec<String>> {
        let entries = self.entries(access);
        let member = |name: &str| {
            let value = self.body.get(name).and_then(Value::as_str)?;
            Some(vec![value.to_owned()])
        };
        match key {
            "dynamodb:leadingkeys" => {
                let keys: Vec<String> =
                    entries.iter().flat_map(|entry| leading_keys(entry, partition_key)).collect();
                (!keys.is_empty()).then_some(keys)
            }
            "dynamodb:attributes" => {
                let mut names: Vec<String> = entries.iter().flat_map(|entry| attributes(entry)).collect();
                names.sort_unstable();
                names.dedup();
                (!names.is_empty()).then_some(names)
            }
            "dynamodb:select" => member("Select").or_else(|| {
                let reads = matches!(self.operation.as_str(), "GetItem" | "Query" | "Scan" | "BatchGetItem");
                let specific = |entry: &&Value| {
                    entry.get("ProjectionExpression").is_some() || entry.get("AttributesToGet").is_some()
                };
                let implied =
                    if entries.iter().all(specific) { "SPECIFIC_ATTRIBUTES" } else { "ALL_ATTRIBUTES" };
                reads.then(|| vec![implied.to_owned()])
            }),
            "dynamodb:returnvalues" => member("ReturnValues"),
            "dynamodb:returnconsumedcapacity" => member("ReturnConsumedCapacity"),
            "dynamodb:enclosingoperation" => {
                self.operation.starts_with("Transact").then(|| vec![self.operation.clone()])
            }
            _ => None,
        }
    }

    /// Whether the request is about an item with this partition key, in DynamoDB JSON.
    pub fn touches_key(&self, partition_key: &str, value: &Value) -> bool {
        let wanted = scalar(value);
        self.accesses.iter().flat_map(|access| self.entries(access)).any(|entry| {
            wanted.as_ref().is_some_and(|wanted| leading_keys(entry, partition_key).contains(wanted))
        })
    }

    /// The body, for who performs the request; afterwards nothing can be asked about it.
    pub fn take_body(&mut self) -> Value {
        std::mem::take(&mut self.body)
    }

    /// Puts the names that the caller used into an answer that repeats them.
    ///
    /// # Errors
    /// When the answer is not JSON.
    pub fn restore_names(&self, answer: Vec<u8>) -> ApiResult<Vec<u8>> {
        if self.given.is_empty() || !self.repeats_names {
            return Ok(answer);
        }
        let broken = |error: serde_json::Error| ApiError::internal(error.to_string());
        let mut answer: Value = serde_json::from_slice(&answer).map_err(broken)?;
        for member in ["Responses", "UnprocessedKeys", "UnprocessedItems", "ItemCollectionMetrics"] {
            if let Some(Value::Object(tables)) = answer.get_mut(member) {
                let entries = std::mem::take(tables).into_iter();
                *tables = entries
                    .map(|(name, value)| (self.given.get(&name).cloned().unwrap_or(name), value))
                    .collect();
            }
        }
        let capacities = match answer.get_mut("ConsumedCapacity") {
            Some(Value::Array(list)) => list.iter_mut().collect(),
            Some(one) => vec![one],
            None => Vec::new(),
        };
        for capacity in capacities {
            if let Some(given) = capacity["TableName"].as_str().and_then(|name| self.given.get(name)) {
                capacity["TableName"] = given.clone().into();
            }
        }
        serde_json::to_vec(&answer).map_err(broken)
    }
}

/// A key value as policies see it.
fn scalar(value: &Value) -> Option<String> {
    value.as_object()?.values().next()?.as_str().map(String::from)
}

fn leading_keys(entry: &Value, name: &str) -> Vec<String> {
    let direct = [&entry["Key"], &entry["Item"]].into_iter();
    let listed = entry["Keys"].as_array().into_iter().flatten();
    let mut keys: Vec<String> = direct.chain(listed).filter_map(|item| scalar(item.get(name)?)).collect();
    if let Some(expression) = entry["KeyConditionExpression"].as_str() {
        keys.extend(key_of_condition(entry, expression, name));
    }
    if let Some(list) = entry["KeyConditions"][name]["AttributeValueList"].as_array() {
        keys.extend(list.iter().filter_map(scalar));
    }
    keys
}

/// The value in `name = :value`, either way round.
fn key_of_condition(entry: &Value, expression: &str, name: &str) -> Option<String> {
    let spaced = expression.replace('=', " = ").replace(['(', ')'], " ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let resolve = |word: &str| match word.starts_with('#') {
        true => entry["ExpressionAttributeNames"][word].as_str().map(String::from),
        false => Some(word.to_owned()),
    };
    words.windows(3).find_map(|window| {
        let [left, "=", right] = window else { return None };
        let value = match (resolve(left).as_deref() == Some(name), resolve(right).as_deref() == Some(name)) {
            (true, _) => right,
            (_, true) => left,
            _ => return None,
        };
        scalar(entry["ExpressionAttributeValues"].get(*value)?)
    })
}

/// The attributes that a part of a request names, at the top level.
fn attributes(entry: &Value) -> Vec<String> {
    const WORDS: [&str; 10] =
        ["SET", "REMOVE", "ADD", "DELETE", "AND", "OR", "NOT", "BETWEEN", "IN", "IF_NOT_EXISTS"];
    const EXPRESSIONS: [&str; 5] = [
        "ProjectionExpression",
        "ConditionExpression",
        "FilterExpression",
        "KeyConditionExpression",
        "UpdateExpression",
    ];
    let mut names = Vec::new();
    for member in ["Key", "Item", "AttributeUpdates", "Expected"] {
        names.extend(entry[member].as_object().into_iter().flatten().map(|(name, _)| name.clone()));
    }
    for key in entry["Keys"].as_array().into_iter().flatten() {
        names.extend(key.as_object().into_iter().flatten().map(|(name, _)| name.clone()));
    }
    let listed = entry["AttributesToGet"].as_array().into_iter().flatten();
    names.extend(listed.filter_map(|name| name.as_str().map(String::from)));
    for expression in EXPRESSIONS.iter().filter_map(|member| entry[member].as_str()) {
        let separators = |c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '#' | ':' | '.'));
        let mut rest = expression;
        while !rest.is_empty() {
            let end = rest.find(separators).unwrap_or(rest.len());
            let word = &rest[..end];
            rest = &rest[end..];
            let called = rest.starts_with('(');
            rest = rest.strip_prefix(separators).unwrap_or(rest);
            let top = word.split('.').next().unwrap_or_default();
            let is_word = WORDS.contains(&top.to_ascii_uppercase().as_str());
            if top.is_empty() || top.starts_with([':', '-']) || called || is_word {
                continue;
            }
            if top.bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            match top.starts_with('#') {
                true => names.extend(entry["ExpressionAttributeNames"][top].as_str().map(String::from)),
                false => names.push(top.into()),
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ME: &str = "111111111111";
    const ARN: &str = "arn:aws:dynamodb:eu-west-1:222222222222:table/orders";

    #[test]
    fn a_full_arn_names_another_accounts_table() {
        let body = json!({"TableName": ARN, "Key": {"id": {"S": "1"}}});
        let resolved = Resolved::new("GetItem", body, ME, "eu-west-1").unwrap();
        assert_eq!(
            (resolved.account.as_str(), &resolved.body["TableName"]),
            ("222222222222", &json!("orders"))
        );
        assert_eq!(resolved.accesses[0].resource, ARN);
        let error = Resolved::new("GetItem", json!({"TableName": ARN}), ME, "us-east-1").unwrap_err();
        assert_eq!(error.message, format!("1 validation error detected: Invalid AWS region in '{ARN}'"));
    }

    #[test]
    fn a_transaction_stays_within_one_account() {
        let put = |table: &str| json!({"Put": {"TableName": table, "Item": {}}});
        let body = json!({"TransactItems": [put("mine"), put(ARN)]});
        let error = Resolved::new("TransactWriteItems", body, ME, "eu-west-1").unwrap_err();
        assert_eq!(error.code, "ValidationException");
    }

    #[test]
    fn leading_keys_and_attributes_of_a_query() {
        let body = json!({
            "TableName": "t", "KeyConditionExpression": "#u = :u AND begins_with(at, :at)",
            "ProjectionExpression": "total, lines[0].price, #n",
            "ExpressionAttributeNames": {"#u": "user", "#n": "note"},
            "ExpressionAttributeValues": {":u": {"S": "alice"}, ":at": {"S": "2026"}},
        });
        let resolved = Resolved::new("Query", body, ME, "eu-west-1").unwrap();
        let of = |key: &str| resolved.context(&resolved.accesses[0], key, "user").unwrap();
        assert_eq!(of("dynamodb:leadingkeys"), ["alice"]);
        assert_eq!(of("dynamodb:attributes"), ["at", "lines", "note", "total", "user"]);
        assert_eq!(of("dynamodb:select"), ["SPECIFIC_ATTRIBUTES"]);
    }

    #[test]
    fn answers_repeat_the_names_that_were_given() {
        let body = json!({"RequestItems": {ARN: {"Keys": []}}});
        let resolved = Resolved::new("BatchGetItem", body, ME, "eu-west-1").unwrap();
        let answer = resolved.restore_names(br#"{"Responses":{"orders":[]}}"#.to_vec()).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&answer).unwrap(), json!({"Responses": {ARN: []}}));
    }
}
