//! A request as the judges and the network read it.

use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use serde_json::Value;

/// A request of a worker.
#[derive(Debug, Clone)]
pub(in super::super) struct Request {
    pub(in super::super) operation: String,
    pub(in super::super) body: Value,
}

impl Request {
    pub(in super::super) fn of(request: &HttpRequest) -> Self {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let body = request.body().bytes().and_then(|bytes| serde_json::from_slice(bytes).ok());
        Self {
            operation: target.rsplit('.').next().unwrap_or_default().to_owned(),
            body: body.unwrap_or_default(),
        }
    }

    pub(in super::super) fn table(&self) -> &str {
        self.body["TableName"].as_str().unwrap_or_default()
    }

    pub(super) fn key(&self) -> &Value {
        if self.operation == "PutItem" { &self.body["Item"] } else { &self.body["Key"] }
    }

    /// Members are named by ARNs, the state table by its name.
    pub(in super::super) fn is_member_write(&self) -> bool {
        matches!(self.operation.as_str(), "PutItem" | "UpdateItem" | "DeleteItem")
            && self.table().starts_with("arn:")
    }

    /// A question whether a write would be taken, which never takes effect.
    pub(in super::super) fn is_question(&self) -> bool {
        self.body["ConditionExpression"] == shardwalker::peer::NEVER
    }

    /// A put of a one-way route that takes effect only where there is no item.
    pub(in super::super) fn is_creation(&self) -> bool {
        self.is_member_write() && self.body["ConditionExpression"] == "attribute_not_exists(#pk)"
    }

    /// A change of a lease that must be its holder's.
    pub(in super::super) fn is_lease_change(&self) -> bool {
        self.operation == "UpdateItem" && self.partition().starts_with("lease#")
    }

    fn partition(&self) -> &str {
        self.key()["pk"]["S"].as_str().unwrap_or_default()
    }

    pub(super) fn about(&self) -> String {
        let key = self.key();
        let names = [&key["id"]["S"], &key["pk"]["S"], &key["sk"]["S"]];
        let names: Vec<&str> = names.into_iter().filter_map(Value::as_str).collect();
        let table = self.table().rsplit('/').next().unwrap_or_default();
        format!("{table} {} {}", names.join("/"), self.body.to_string().len())
    }
}
