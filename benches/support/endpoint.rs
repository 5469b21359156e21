//! A canned endpoint: an HTTP connector in this process that answers with prebuilt bytes.
//!
//! It owns no data: the stream's pages come from the benchmark. What is measured
//! against it is all that a worker does but the network: the SDK's serialisation, signing and deserialisation,
//! and the data path. Every answer comes one turn of the runtime later, because no answer of a network is there
//! in the same turn; without that, requests would never overlap. Every condition
//! holds; the state table gives every lease away and forgets what is written.

use super::settings::{STATE, name};
use anyhow::Context;
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use serde_json::{Value, json};
use shardwalker::aws::Base;
use shardwalker::clock::Clock;
use shardwalker::service::Options;
use std::fmt;
use std::sync::Arc;

/// What a benchmark decides about the endpoint.
pub(crate) struct Script {
    /// Open shards of the stream.
    pub(crate) shards: usize,
    /// Members that the route writes to.
    pub(crate) peers: usize,
    /// The body of a GetRecords answer, by shard and position in it; see [`page`].
    pub(crate) read: Box<dyn Fn(usize, usize) -> Bytes + Send + Sync>,
}

/// The endpoint. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Endpoint(Arc<Script>);

/// A page of records in JSON; the shard goes on at `next`.
pub(crate) fn page<'a>(shard: usize, records: impl IntoIterator<Item = &'a [u8]>, next: usize) -> Bytes {
    let mut body = b"{\"Records\":[".to_vec();
    for (index, record) in records.into_iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(record);
    }
    body.extend_from_slice(format!("],\"NextShardIterator\":\"{shard}:{next}\"}}").as_bytes());
    body.into()
}

/// The stream's label.
const LABEL: &str = "2026-01-01T00:00:00.000";

fn shard_id(shard: usize) -> String {
    format!("shardId-{:020}-{shard:08x}", 0)
}

impl Endpoint {
    /// An endpoint that follows a script.
    pub(crate) fn new(script: Script) -> Self {
        Self(Arc::new(script))
    }

    /// A service's options, with which it reaches this endpoint.
    pub(crate) fn options(&self) -> Options {
        let keys = Credentials::new("AKIAIOSFODNN7EXAMPLE", "secret", None, None, "benchmark");
        let base = Base {
            credentials: Some(SharedCredentialsProvider::new(keys)),
            http: Some(SharedHttpClient::new(self.clone())),
            request_timeout: None,
        };
        Options { base, create_state_table: false, clock: Clock::system(), seed: 1 }
    }

    fn answer(&self, request: &HttpRequest) -> anyhow::Result<SdkBody> {
        let target = request.headers().get("x-amz-target").context("a request without a target")?;
        let operation = target.rsplit('.').next().unwrap_or_default();
        let body = request.body().bytes().context("a request whose body is a stream")?;
        // The hot path parses nothing.
        match operation {
            "PutItem" | "DeleteItem" => return Ok(SdkBody::from("{}")),
            "BatchGetItem" => return Ok(SdkBody::from("{\"Responses\":{},\"UnprocessedKeys\":{}}")),
            _ => {}
        }
        let input: Value = serde_json::from_slice(body)?;
        let answer = match operation {
            "GetRecords" => {
                let iterator = input["ShardIterator"].as_str().context("no iterator")?;
                let (shard, position) = iterator.split_once(':').context("a foreign iterator")?;
                return Ok(SdkBody::from((self.0.read)(shard.parse()?, position.parse()?)));
            }
            "GetShardIterator" => {
                let id = input["ShardId"].as_str().context("no shard")?;
                let shard =
                    (0..self.0.shards).find(|shard| shard_id(*shard) == id).context("no such shard")?;
                json!({ "ShardIterator": format!("{shard}:0") })
            }
            "DescribeStream" => self.describe_stream(&input),
            "DescribeTable" => describe_table(input["TableName"].as_str().unwrap_or_default()),
            "Query" => {
                let pk = input["ExpressionAttributeValues"][":pk"]["S"].as_str().unwrap_or_default();
                let rows = match pk.split('#').next() {
                    Some("lease") => (0..self.0.shards).map(|shard| self.lease(shard)).collect(),
                    Some("route") => vec![begun()],
                    _ => Vec::new(),
                };
                json!({ "Count": rows.len(), "Items": rows })
            }
            // A lease is taken: whoever asks has it.
            "UpdateItem" if input["ReturnValues"] == "ALL_NEW" => {
                let id = input["Key"]["sk"]["S"].as_str().unwrap_or_default();
                let shard = (0..self.0.shards).find(|shard| shard_id(*shard) == id);
                // What is no shard's is the lister's.
                let mut row = shard.map_or_else(|| json!({}), |shard| self.lease(shard));
                row["owner"] = input["ExpressionAttributeValues"][":me"].clone();
                row["epoch"] = input["ExpressionAttributeValues"][":next"].clone();
                json!({ "Attributes": row })
            }
            "UpdateItem" | "GetItem" => json!({}),
            other => anyhow::bail!("{other} is not canned"),
        };
        Ok(SdkBody::from(answer.to_string()))
    }

    fn describe_stream(&self, input: &Value) -> Value {
        const AT_MOST: usize = 100;
        let after = input["ExclusiveStartShardId"].as_str();
        let first =
            after.map_or(0, |id| (0..self.0.shards).take_while(|s| shard_id(*s).as_str() <= id).count());
        let end = self.0.shards.min(first + AT_MOST);
        let shard =
            |s| json!({ "ShardId": shard_id(s), "SequenceNumberRange": { "StartingSequenceNumber": "1" } });
        let mut description = json!({
            "StreamStatus": "ENABLED",
            "Shards": (first..end).map(shard).collect::<Vec<_>>(),
        });
        if end < self.0.shards {
            description["LastEvaluatedShardId"] = shard_id(end - 1).into();
        }
        json!({ "StreamDescription": description })
    }

    /// The row of a lease that nobody holds and nothing was done for.
    fn lease(&self, shard: usize) -> Value {
        let position = json!({ "M": { "hlc": { "S": "0000000000000000" }, "done": { "BOOL": false } } });
        let peers: serde_json::Map<_, _> =
            (1..=self.0.peers).map(|peer| (name(peer), position.clone())).collect();
        json!({
            "shard": { "S": shard_id(shard) },
            "epoch": { "N": "0" },
            "initial": { "BOOL": true },
            "peers": { "M": peers },
        })
    }
}

/// The row of a route that has seen its stream before.
fn begun() -> Value {
    json!({ "sk": { "S": format!("stream#{LABEL}") }, "begun": { "N": "1767225600" } })
}

fn describe_table(table: &str) -> Value {
    let keys: &[(&str, &str)] =
        if table == STATE { &[("pk", "HASH"), ("sk", "RANGE")] } else { &[("id", "HASH")] };
    let schema: Vec<_> =
        keys.iter().map(|(name, kind)| json!({ "AttributeName": name, "KeyType": kind })).collect();
    let definitions: Vec<_> =
        keys.iter().map(|(name, _)| json!({ "AttributeName": name, "AttributeType": "S" })).collect();
    json!({ "Table": {
        "TableStatus": "ACTIVE",
        "KeySchema": schema,
        "AttributeDefinitions": definitions,
        "StreamSpecification": { "StreamEnabled": true, "StreamViewType": "NEW_AND_OLD_IMAGES" },
        "LatestStreamArn": format!("{table}/stream/{LABEL}"),
        "LatestStreamLabel": LABEL,
    } })
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Endpoint")
    }
}

impl HttpConnector for Endpoint {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let endpoint = self.clone();
        HttpConnectorFuture::new(async move {
            tokio::task::yield_now().await;
            let body = endpoint.answer(&request).map_err(|error| ConnectorError::user(error.into()))?;
            Ok(HttpResponse::new(http::StatusCode::OK.into(), body))
        })
    }
}

impl HttpClient for Endpoint {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
