//! The front of the sandbox: takes an HTTP request, finds out who asks for what, decides, and answers as AWS does.
//!
//! Owns the order of things: signature, caller, fault, permission, effect, answer. Both doors
//! ([`client`] in the process, [`server`] over TCP) call [`Sandbox::handle`] and nothing else.

pub mod admin;
pub mod authorize;
pub mod client;
mod query;
pub mod server;
pub mod sigv4;

use super::Sandbox;
use super::error::{ApiError, ApiResult};
use super::faults::{Effect, Target};
use super::iam::Caller;
use super::streams::api::{ShardIterator, expired_iterator};
use super::tables::Region;
use super::tables::request::Resolved;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use serde_json::{Value, json};
use sigv4::Authorization;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Where a request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The caller's address.
    pub ip: IpAddr,
    /// The VPC endpoint that it came through; it then has no `aws:SourceIp`.
    pub vpce: Option<String>,
}

impl Default for Source {
    fn default() -> Self {
        Self { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), vpce: None }
    }
}

impl Source {
    /// The source that a request's own headers claim, over the one that it is known by.
    fn with_headers(self, headers: &HeaderMap) -> Self {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Self {
            ip: header("x-sandbox-source-ip").and_then(|ip| ip.parse().ok()).unwrap_or(self.ip),
            vpce: header("x-sandbox-vpce").map(String::from).or(self.vpce),
        }
    }
}

/// A request that gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// It never arrived.
    #[error("connection reset by the sandbox before the request took effect")]
    Request,
    /// It took effect, but its answer was lost.
    #[error("connection lost by the sandbox after the request took effect")]
    Answer,
}

/// What the two protocols need to write an answer.
enum Protocol {
    Json,
    Xml(&'static str),
}

/// The operations of DynamoDB that are served.
const DYNAMODB: [&str; 23] = [
    "BatchGetItem",
    "BatchWriteItem",
    "CreateTable",
    "DeleteItem",
    "DeleteResourcePolicy",
    "DeleteTable",
    "DescribeTable",
    "DescribeTimeToLive",
    "GetItem",
    "GetResourcePolicy",
    "ListTables",
    "ListTagsOfResource",
    "PutItem",
    "PutResourcePolicy",
    "Query",
    "Scan",
    "TagResource",
    "TransactGetItems",
    "TransactWriteItems",
    "UntagResource",
    "UpdateItem",
    "UpdateTable",
    "UpdateTimeToLive",
];

/// The operations of DynamoDB Streams.
const STREAMS: [&str; 4] = ["DescribeStream", "GetRecords", "GetShardIterator", "ListStreams"];

impl Sandbox {
    /// Answers one request.
    ///
    /// # Errors
    /// When a fault drops the request or its answer.
    pub async fn handle(&self, request: Request<Bytes>, source: Source) -> Result<Response<Bytes>, Dropped> {
        let (parts, body) = request.into_parts();
        let source = source.with_headers(&parts.headers);
        let id = self.next_request_id();
        let protocol = match protocol_namespace(&parts) {
            Some(namespace) => Protocol::Xml(namespace),
            None => Protocol::Json,
        };
        let answered = match self.authenticate(&parts, &body) {
            Err(error) => Err(error),
            Ok((auth, caller)) => match protocol {
                Protocol::Xml(_) => self.query_protocol(&auth, &caller, &source, &body, &id).await?,
                Protocol::Json => self.json_protocol(&auth, &caller, &source, &parts, &body).await?,
            },
        };
        Ok(respond(answered, &protocol, &id))
    }

    fn authenticate(&self, parts: &Parts, body: &[u8]) -> ApiResult<(Authorization, Caller)> {
        let auth = Authorization::read(&parts.headers)?;
        let token = parts.headers.get("x-amz-security-token").and_then(|value| value.to_str().ok());
        let directory = self.directory();
        let caller = directory.caller(&auth.access_key_id, token, self.clock().now_ms())?;
        if self.options().verify_signatures {
            let secret = directory.secret(&auth.access_key_id).unwrap_or_default();
            self.verifier().verify(&auth, secret, parts, body)?;
        }
        Ok((auth, caller))
    }

    async fn json_protocol(
        &self,
        auth: &Authorization,
        caller: &Caller,
        source: &Source,
        parts: &Parts,
        body: &[u8],
    ) -> Result<ApiResult<Vec<u8>>, Dropped> {
        let target = parts.headers.get("x-amz-target").and_then(|value| value.to_str().ok());
        let Some(operation) = target.and_then(known_operation) else {
            return Ok(Err(ApiError::new("UnknownOperationException", "")));
        };
        let Ok(body) = serde_json::from_slice(body) else {
            return Ok(Err(ApiError::new("SerializationException", "")));
        };
        let account = &caller.principal.account;
        let resolved = match Resolved::new(operation, body, account, &auth.region) {
            Ok(resolved) => resolved,
            Err(error) => return Ok(Err(error)),
        };
        let effect = self.strike(caller, &resolved);
        let (operation, account) = (resolved.operation.clone(), resolved.account.clone());
        let about = resolved.accesses.first().map(|access| access.resource.clone()).unwrap_or_default();
        let what = What { operation: &operation, account: &account, resource: &about };
        self.under(effect, auth, &what, || self.dynamodb(caller, source, resolved, effect)).await
    }

    /// Does something under a fault, and counts it.
    pub(super) async fn under<T>(
        &self,
        effect: Option<Effect>,
        auth: &Authorization,
        what: &What<'_>,
        act: impl FnOnce() -> ApiResult<T>,
    ) -> Result<ApiResult<T>, Dropped> {
        match effect {
            Some(Effect::DropRequest) => return Err(Dropped::Request),
            Some(Effect::DelayMs(ms)) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Some(Effect::ExpireCredentials) => {
                self.directory_mut().expire(&auth.access_key_id, self.clock().now_ms());
            }
            _ => {}
        }
        let outcome = match effect.and_then(|effect| refusal(effect, what)) {
            Some(error) => Err(error),
            None => act(),
        };
        self.count(what.operation, what.account, outcome.is_err());
        match effect {
            Some(Effect::DropAnswer) => Err(Dropped::Answer),
            Some(Effect::InternalErrorAfter) => Ok(Err(ApiError::internal("Internal server error"))),
            Some(Effect::DelayAnswerMs(ms)) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(outcome)
            }
            _ => Ok(outcome),
        }
    }

    fn strike(&self, caller: &Caller, resolved: &Resolved) -> Option<Effect> {
        let target = Target {
            operation: &resolved.operation,
            account: &resolved.account,
            table: resolved.table.as_deref(),
            caller: &caller.principal.arn,
            caller_account: &caller.principal.account,
        };
        // The Region is asked before the faults are locked: within a Region, faults are asked.
        let partition_key = self.faults().mind_keys().then(|| {
            let region = self.region(&resolved.account, &resolved.region)?;
            let region = region.lock().unwrap_or_else(PoisonError::into_inner);
            region.table(resolved.table.as_deref()?)?.keys.first().cloned()
        });
        let partition_key = partition_key.flatten().unwrap_or_default();
        self.faults().strike(&target, |key| resolved.touches_key(&partition_key, key))
    }

    fn dynamodb(
        &self,
        caller: &Caller,
        source: &Source,
        mut resolved: Resolved,
        effect: Option<Effect>,
    ) -> ApiResult<Vec<u8>> {
        let Some(region) = self.region(&resolved.account, &resolved.region) else {
            return Err(authorize::no_such_account(caller, &resolved));
        };
        let mut region = region.lock().unwrap_or_else(PoisonError::into_inner);
        authorize::authorize(caller, source, &resolved, &region)?;
        if let (Some(Effect::TrimShard), Some(token)) = (effect, resolved.body["ShardIterator"].as_str())
            && let Some(iterator) = ShardIterator::decode(token)
        {
            region.trim_at(&iterator);
        }
        let answer = perform(&mut region, &mut resolved)?;
        resolved.restore_names(answer)
    }

    /// Performs an operation as the account's root user, without a request: for tests and for the configuration.
    ///
    /// # Errors
    /// What AWS would answer.
    pub fn call(&self, account: &str, region: &str, operation: &str, body: Value) -> ApiResult<Value> {
        if !DYNAMODB.contains(&operation) && !STREAMS.contains(&operation) {
            return Err(ApiError::new("UnknownOperationException", operation));
        }
        let mut resolved = Resolved::new(operation, body, account, region)?;
        if resolved.account != account {
            return Err(ApiError::validation(format!("{account} does not own the resource")));
        }
        let region = self
            .region(account, region)
            .ok_or_else(|| ApiError::validation(format!("there is no account {account}")))?;
        let mut region = region.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = perform(&mut region, &mut resolved)?;
        let answer = resolved.restore_names(answer)?;
        serde_json::from_slice(&answer).map_err(|error| ApiError::internal(error.to_string()))
    }
}

fn perform(region: &mut Region, resolved: &mut Resolved) -> ApiResult<Vec<u8>> {
    let body = resolved.take_body();
    let operation = resolved.operation.as_str();
    let json = |answer: ApiResult<Value>| answer.map(|value| value.to_string().into_bytes());
    let guarded = resolved.accesses.first().and_then(|access| access.guarded_by.as_ref());
    match (operation, guarded) {
        ("ListStreams", _) => json(region.list_streams(&body)),
        ("DescribeStream", _) => json(region.describe_stream(&body)),
        ("GetShardIterator", _) => json(region.get_shard_iterator(&body)),
        ("GetRecords", _) => region.get_records(&body),
        ("PutResourcePolicy", Some(arn)) => json(region.put_resource_policy(arn, &body)),
        ("GetResourcePolicy", Some(arn)) => json(region.get_resource_policy(arn)),
        ("DeleteResourcePolicy", Some(arn)) => json(region.delete_resource_policy(arn, &body)),
        _ if Region::is_item_operation(operation) => region.item_operation(operation, body),
        _ => region.table_operation(operation, body),
    }
}

/// What a request is about, for faults and figures.
pub(super) struct What<'a> {
    pub(super) operation: &'a str,
    pub(super) account: &'a str,
    pub(super) resource: &'a str,
}

/// The error that a fault puts in place of an operation.
fn refusal(effect: Effect, what: &What<'_>) -> Option<ApiError> {
    let because = |reason: &str| json!([{"reason": reason, "resource": what.resource}]);
    Some(match effect {
        Effect::ProvisionedThroughputExceeded => ApiError::new(
            "ProvisionedThroughputExceededException",
            "The level of configured provisioned throughput for the table was exceeded. Consider increasing \
             your provisioning level with the UpdateTable API.",
        )
        .with("ThrottlingReasons", because("TableWriteProvisionedThroughputExceeded")),
        Effect::Throttle => {
            ApiError::new("ThrottlingException", "Throughput exceeds the current capacity of your table.")
                .with("ThrottlingReasons", because("TableWriteKeyRangeThroughputExceeded"))
        }
        Effect::RequestLimitExceeded => ApiError::new(
            "RequestLimitExceeded",
            "Throughput exceeds the current throughput limit for your account.",
        )
        .with("ThrottlingReasons", because("TableWriteAccountLimitExceeded")),
        Effect::InternalError => ApiError::internal("Internal server error"),
        Effect::Unavailable => {
            ApiError::new("ServiceUnavailable", "The service is currently unavailable.").with_status(503)
        }
        Effect::Deny => ApiError::new(
            "AccessDeniedException",
            format!(
                "The caller is not authorized to perform: {} on resource: {} with an explicit deny in a service \
                 control policy",
                what.operation, what.resource
            ),
        ),
        Effect::TransactionConflict => {
            ApiError::new("TransactionConflictException", "Transaction is ongoing for the item")
        }
        Effect::ExpireCredentials => {
            ApiError::new("ExpiredTokenException", "The security token included in the request is expired")
        }
        Effect::ExpireIterator => expired_iterator(),
        Effect::DropRequest
        | Effect::DropAnswer
        | Effect::DelayMs(_)
        | Effect::DelayAnswerMs(_)
        | Effect::InternalErrorAfter
        | Effect::TrimShard => return None,
    })
}

fn known_operation(target: &str) -> Option<&str> {
    let (service, operation) = target.split_once('.')?;
    let known: &[&str] = match service {
        "DynamoDB_20120810" => &DYNAMODB,
        "DynamoDBStreams_20120810" => &STREAMS,
        _ => return None,
    };
    known.contains(&operation).then_some(operation)
}

/// The XML namespace of a request to IAM or STS; `None` for DynamoDB's JSON.
fn protocol_namespace(parts: &Parts) -> Option<&'static str> {
    if parts.headers.contains_key("x-amz-target") {
        return None;
    }
    let service = Authorization::read(&parts.headers).ok().map(|auth| auth.service);
    match service.as_deref() {
        Some("iam") => Some("https://iam.amazonaws.com/doc/2010-05-08/"),
        Some("sts") => Some("https://sts.amazonaws.com/doc/2011-06-15/"),
        _ => None,
    }
}

fn respond(answered: ApiResult<Vec<u8>>, protocol: &Protocol, id: &str) -> Response<Bytes> {
    let (status, body) = match (answered, protocol) {
        (Ok(body), _) => (200, body),
        (Err(error), Protocol::Json) => (error.status, error.to_json()),
        (Err(error), Protocol::Xml(namespace)) => {
            // Denials are 403 in the Query protocol.
            let denied = error.code == "AccessDeniedException" || error.code.ends_with("TokenException");
            (if denied { 403 } else { error.status }, error.to_xml(namespace, id))
        }
    };
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content = match protocol {
        Protocol::Json => "application/x-amz-json-1.0",
        Protocol::Xml(_) => "text/xml",
    };
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content));
    headers.insert("x-amz-crc32", HeaderValue::from(crc32fast::hash(&body)));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert("x-amzn-requestid", id);
    }
    *response.body_mut() = Bytes::from(body);
    response
}

/// How often an operation was asked for in an account, and how often it was refused or failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    /// All requests that arrived.
    pub requests: u64,
    /// Those that were answered with an error.
    pub errors: u64,
}

/// Requests by operation and by the account that owns what was asked for.
#[derive(Debug, Default)]
pub struct Counters(Mutex<std::collections::BTreeMap<String, std::collections::BTreeMap<String, Count>>>);

impl Counters {
    pub(super) fn add(&self, operation: &str, account: &str, failed: bool) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let by_account = match counts.get_mut(operation) {
            Some(found) => found,
            None => counts.entry(operation.into()).or_default(),
        };
        let count = match by_account.get_mut(account) {
            Some(found) => found,
            None => by_account.entry(account.into()).or_default(),
        };
        count.requests += 1;
        count.errors += u64::from(failed);
    }

    /// A copy, by operation, then account.
    #[must_use]
    pub fn snapshot(&self) -> std::collections::BTreeMap<String, std::collections::BTreeMap<String, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts again from zero.
    pub fn reset(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
