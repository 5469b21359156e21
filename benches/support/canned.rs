//! Members that are made up: the pages of a scan as they are asked for, and puts that are always done.
//!
//! They hold nothing, whatever their size, so that neither what a table costs in memory nor what a server does for a
//! request counts. The ledger may be empty in the same way; everything else of the state table is somebody else's.

use super::records;
use super::tap::{operation, tapped};
use aws_smithy_runtime_api::client::http::{HttpConnector as _, HttpConnectorFuture, SharedHttpClient};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use serde_json::{Value, json};
use shardwalker::json::from_item;
use std::sync::Arc;

/// Digits of a key's number.
const DIGITS: usize = 12;

/// So many items, which differ in their keys alone.
#[derive(Debug)]
struct Table {
    items: usize,
    /// An item in JSON, up to its key's number and from there on.
    around: [Vec<u8>; 2],
}

/// `http`, with scans of members that hold so many items, puts to them, and if so asked reads of the ledger answered here.
pub(crate) fn canned(http: SharedHttpClient, items: usize, ledger: bool) -> SharedHttpClient {
    let table = Arc::new(Table::new(items));
    tapped(http, move |connector, request| {
        // Members are addressed by their ARN, the state table by its name.
        let member = request.body().bytes().filter(|body| body.starts_with(b"{\"TableName\":\"arn:"));
        let answer = match (operation(&request), member) {
            ("Scan", Some(body)) => table.page(body),
            ("PutItem", Some(_)) => Bytes::from_static(b"{}"),
            ("BatchGetItem", None) if ledger => {
                Bytes::from_static(b"{\"Responses\":{},\"UnprocessedKeys\":{}}")
            }
            _ => return connector.call(request),
        };
        HttpConnectorFuture::new(async move {
            // No answer of a network is there in the same turn.
            tokio::task::yield_now().await;
            let ok = http::Response::new(SdkBody::from(answer));
            HttpResponse::try_from(ok).map_err(|error| ConnectorError::user(error.into()))
        })
    })
}

impl Table {
    fn new(items: usize) -> Self {
        let text = from_item(&records::item(0, 1)).to_string();
        let number = text.find(&records::key(0)).unwrap_or_default() + records::key(0).len() - DIGITS;
        let around = [&text[..number], &text[number + DIGITS..]].map(|part| part.as_bytes().to_vec());
        Self { items, around }
    }

    /// A page of a segment: every so many-th item, after the one that the request names.
    fn page(&self, body: &[u8]) -> Bytes {
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        let number = |name: &str| asked[name].as_u64().unwrap_or(1) as usize;
        let (segment, segments, limit) = (number("Segment"), number("TotalSegments"), number("Limit"));
        let after = asked["ExclusiveStartKey"]["id"]["S"].as_str().map(|key| index(key) + segments);
        let begin = after.unwrap_or(if segments == 1 { 0 } else { segment });
        let mut answer = b"{\"Items\":[".to_vec();
        let mut last = None;
        for index in (begin..self.items).step_by(segments).take(limit) {
            if last.replace(index).is_some() {
                answer.push(b',');
            }
            answer.extend_from_slice(&self.around[0]);
            answer.extend_from_slice(format!("{index:0DIGITS$}").as_bytes());
            answer.extend_from_slice(&self.around[1]);
        }
        answer.extend_from_slice(b"],\"ConsumedCapacity\":{\"CapacityUnits\":128.0}");
        if let Some(last) = last.filter(|last| *last + segments < self.items) {
            let key = json!({ "id": { "S": records::key(last) } });
            answer.extend_from_slice(format!(",\"LastEvaluatedKey\":{key}").as_bytes());
        }
        answer.push(b'}');
        answer.into()
    }
}

fn index(key: &str) -> usize {
    key.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}
