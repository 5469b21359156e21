//! The DynamoDB Streams operations over a Region's streams.
//!
//! Owns how requests and answers are spelled, iterators and their age, and the ways in which listings and pages
//! may be incomplete. Who may ask was settled before.

use super::shard::{Page, Shard};
use super::{RETENTION_MS, Stream};
use crate::sandbox::arn::{Arn, Part};
use crate::sandbox::error::{ApiError, ApiResult};
use crate::sandbox::tables::Region;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::{Value, json};

/// How long an iterator may be used, in milliseconds.
const ITERATOR_LIFE_MS: u64 = 15 * 60_000;
/// AWS's bounds of a page of records.
const PAGE_RECORDS: usize = 1000;
const PAGE_BYTES: usize = 1 << 20;
/// AWS's bound of a page of shards or streams.
const PAGE_SHARDS: usize = 100;

/// A position in a shard, as a client holds it between calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIterator {
    /// The stream.
    pub stream: Arn,
    /// The shard's id.
    pub shard: String,
    /// The first sequence number to be read.
    pub from: u128,
    /// When it was given out, in milliseconds since 1970.
    pub issued_ms: u64,
}

impl ShardIterator {
    /// As a token.
    #[must_use]
    pub fn encode(&self) -> String {
        let Self { stream, shard, from, issued_ms } = self;
        format!("{stream}|1|{}", URL_SAFE.encode(format!("{shard} {from} {issued_ms}")))
    }

    /// From a token; `None` when it is none of ours.
    #[must_use]
    pub fn decode(token: &str) -> Option<Self> {
        let mut parts = token.split('|');
        let (stream, version, position) = (parts.next()?, parts.next()?, parts.next()?);
        let stream =
            Arn::parse(stream).filter(|arn| matches!(arn.part, Part::Stream(_)) && version == "1")?;
        let position = String::from_utf8(URL_SAFE.decode(position).ok()?).ok()?;
        let mut fields = position.split(' ');
        let (shard, from, issued) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self { stream, shard: shard.into(), from: from.parse().ok()?, issued_ms: issued.parse().ok()? })
    }
}

fn text<'a>(body: &'a Value, name: &str) -> Option<&'a str> {
    body.get(name).and_then(Value::as_str)
}

fn required<'a>(body: &'a Value, name: &str) -> ApiResult<&'a str> {
    text(body, name).ok_or_else(|| {
        let member = format!("{}{}", name[..1].to_ascii_lowercase(), &name[1..]);
        ApiError::validation(format!(
            "1 validation error detected: Value null at '{member}' failed to satisfy constraint: \
             Member must not be null"
        ))
    })
}

fn limit(body: &Value, most: usize) -> ApiResult<usize> {
    let Some(value) = body.get("Limit") else { return Ok(most) };
    let given = value.as_u64().and_then(|n| usize::try_from(n).ok());
    match given {
        Some(n) if (1..=most).contains(&n) => Ok(n),
        _ => Err(ApiError::validation(format!(
            "1 validation error detected: Value '{value}' at 'limit' failed to satisfy constraint: \
             Member must have value between 1 and {most}"
        ))),
    }
}

fn shard_not_found(shard: &str, stream: &str) -> ApiError {
    ApiError::not_found(format!("Requested resource not found: Shard does not exist: {shard} in {stream}"))
}

fn trimmed() -> ApiError {
    let message = "The operation tried to access data beyond the trim horizon in a stream.";
    ApiError::new("TrimmedDataAccessException", message)
}

impl Region {
    fn stream(&mut self, arn: &str) -> ApiResult<&mut Stream> {
        let now = self.now_ms();
        let chance = self.chance().clone();
        let stream = self.streams_mut().get_mut(arn).filter(|stream| !stream.is_gone(now));
        let Some(stream) = stream else {
            return Err(ApiError::not_found(format!(
                "Requested resource not found: Stream: {arn} not found"
            )));
        };
        stream.tick(now, &chance);
        Ok(stream)
    }

    /// ListStreams.
    pub(in crate::sandbox) fn list_streams(&mut self, body: &Value) -> ApiResult<Value> {
        let limit = limit(body, PAGE_SHARDS)?;
        let after = text(body, "ExclusiveStartStreamArn");
        let table = text(body, "TableName");
        let now = self.now_ms();
        let mut found = self
            .streams_mut()
            .values()
            .filter(|stream| !stream.is_gone(now))
            .filter(|stream| table.is_none_or(|table| stream.table == table))
            .filter(|stream| after.is_none_or(|after| stream.arn.as_str() > after));
        let page: Vec<&Stream> = found.by_ref().take(limit).collect();
        let more = found.next().is_some();
        let entries: Vec<Value> = page
            .iter()
            .map(|s| json!({"StreamArn": s.arn, "TableName": s.table, "StreamLabel": s.label}))
            .collect();
        let mut answer = json!({ "Streams": entries });
        if let Some(last) = page.last().filter(|_| more) {
            answer["LastEvaluatedStreamArn"] = json!(last.arn);
        }
        Ok(answer)
    }

    /// DescribeStream.
    pub(in crate::sandbox) fn describe_stream(&mut self, body: &Value) -> ApiResult<Value> {
        let limit = limit(body, PAGE_SHARDS)?;
        let arn = required(body, "StreamArn")?;
        let (now, weather) = (self.now_ms(), self.faults().weather());
        if self.limits() && !self.describe_budget().admit(now) {
            return Err(ApiError::new("ThrottlingException", "Rate exceeded"));
        }
        let short = self.chance().happens(weather.short_listings);
        let cut = if short { usize::try_from(self.chance().below(limit as u64)).unwrap_or(0) } else { limit };
        let stream = self.stream(arn)?;

        let after = text(body, "ExclusiveStartShardId");
        let parent = match body.get("ShardFilter") {
            None => None,
            Some(filter) if text(filter, "Type") == Some("CHILD_SHARDS") => {
                Some(required(filter, "ShardId")?)
            }
            Some(_) => return Err(ApiError::validation("ShardFilter type must be CHILD_SHARDS")),
        };
        let listed = |shard: &&Shard| {
            shard.parent.is_none() || shard.created_ms + weather.children_listed_after_ms <= now
        };
        let mut found = stream
            .shards()
            .filter(listed)
            .filter(|shard| parent.is_none_or(|parent| shard.parent.as_deref() == Some(parent)))
            .filter(|shard| after.is_none_or(|after| shard.id.as_str() > after));
        // A page cut short of everything needs an earlier shard to go on from.
        let cut = if after.is_none() { cut.max(1) } else { cut };
        let page: Vec<&Shard> = found.by_ref().take(cut).collect();
        let more = found.next().is_some() || (short && !page.is_empty());
        let last = page.last().map(|shard| shard.id.clone()).or_else(|| after.map(String::from));

        let shards: Vec<Value> = page
            .iter()
            .map(|shard| {
                let mut range = json!({"StartingSequenceNumber": shard.starting.to_string()});
                if shard.closed_ms.is_some_and(|closed| closed + weather.closed_listed_after_ms <= now) {
                    range["EndingSequenceNumber"] = json!(shard.next.to_string());
                }
                let mut entry = json!({"ShardId": shard.id, "SequenceNumberRange": range});
                if let Some(parent) = &shard.parent {
                    entry["ParentShardId"] = json!(parent);
                }
                entry
            })
            .collect();
        let mut description = json!({
            "StreamArn": stream.arn,
            "StreamLabel": stream.label,
            "StreamStatus": if stream.is_enabled() { "ENABLED" } else { "DISABLED" },
            "StreamViewType": stream.view.name(),
            "CreationRequestDateTime": seconds(stream.created_ms),
            "TableName": stream.table,
            "KeySchema": stream.key_schema,
            "Shards": shards,
        });
        if more {
            description["LastEvaluatedShardId"] = json!(last);
        }
        Ok(json!({ "StreamDescription": description }))
    }

    /// GetShardIterator.
    pub(in crate::sandbox) fn get_shard_iterator(&mut self, body: &Value) -> ApiResult<Value> {
        let (arn, id) = (required(body, "StreamArn")?, required(body, "ShardId")?);
        let kind = required(body, "ShardIteratorType")?;
        let stream_arn = Arn::parse(arn).ok_or_else(|| ApiError::validation("Invalid StreamArn"))?;
        let issued_ms = self.now_ms();
        let shard = self.stream(arn)?.shard_mut(id).ok_or_else(|| shard_not_found(id, arn))?;
        let from = match kind {
            "TRIM_HORIZON" => shard.horizon(),
            "LATEST" => shard.next,
            "AT_SEQUENCE_NUMBER" | "AFTER_SEQUENCE_NUMBER" => {
                let given = required(body, "SequenceNumber")?;
                let number: u128 = given.parse().map_err(|_| {
                    ApiError::validation(format!("Invalid SequenceNumber: {given} is not a number"))
                })?;
                if number < shard.starting || number > shard.next {
                    return Err(ApiError::validation(format!(
                        "Invalid SequenceNumber: {given} is not in the range of shard {id}"
                    )));
                }
                number + u128::from(kind == "AFTER_SEQUENCE_NUMBER")
            }
            "AT_TIMESTAMP" => {
                let at = body.get("Timestamp").and_then(Value::as_f64).filter(|at| *at >= 0.0);
                let at = at.ok_or_else(|| ApiError::validation("AT_TIMESTAMP requires a Timestamp"))?;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
                let at_ms = (at * 1000.0) as u64;
                shard.position_at(at_ms)
            }
            other => {
                return Err(ApiError::validation(format!(
                    "1 validation error detected: Value '{other}' at 'shardIteratorType' failed to satisfy \
                     constraint: Member must satisfy enum value set: \
                     [AFTER_SEQUENCE_NUMBER, LATEST, AT_SEQUENCE_NUMBER, TRIM_HORIZON, AT_TIMESTAMP]"
                )));
            }
        };
        if shard.page(from, 1, 0) == Page::Trimmed {
            return Err(trimmed());
        }
        let iterator = ShardIterator { stream: stream_arn, shard: id.into(), from, issued_ms };
        Ok(json!({ "ShardIterator": iterator.encode() }))
    }

    /// GetRecords. The answer is JSON text: its records were rendered when they were captured.
    pub(in crate::sandbox) fn get_records(&mut self, body: &Value) -> ApiResult<Vec<u8>> {
        let limit = limit(body, PAGE_RECORDS)?;
        let iterator = ShardIterator::decode(required(body, "ShardIterator")?)
            .ok_or_else(|| ApiError::validation("Invalid ShardIterator"))?;
        let (now, limits) = (self.now_ms(), self.limits());
        if iterator.issued_ms + ITERATOR_LIFE_MS < now {
            return Err(expired_iterator());
        }
        let empty = self.chance().happens(self.faults().weather().empty_pages);
        let arn = iterator.stream.to_string();
        let shard = self
            .stream(&arn)?
            .shard_mut(&iterator.shard)
            .ok_or_else(|| shard_not_found(&iterator.shard, &arn))?;
        if limits && !shard.admit_read(now) {
            let message = "Rate exceeded for the shard: at most 5 reads and 2 MB a second";
            return Err(ApiError::new("LimitExceededException", message));
        }
        let mut answer = b"{\"Records\":[".to_vec();
        let (next, end, bytes) = match shard.page(iterator.from, limit, PAGE_BYTES) {
            Page::Trimmed => return Err(trimmed()),
            Page::Records { records, .. } if empty && !records.is_empty() => (iterator.from, false, 0),
            Page::Records { records, next, end } => {
                for (index, record) in records.iter().enumerate() {
                    if index > 0 {
                        answer.push(b',');
                    }
                    answer.extend_from_slice(&record.json);
                }
                (next, end, records.iter().map(|record| record.size as u64).sum())
            }
        };
        if limits {
            shard.count_read(now, bytes);
        }
        answer.push(b']');
        if !end {
            let next = ShardIterator { from: next, issued_ms: now, ..iterator };
            answer.extend_from_slice(format!(",\"NextShardIterator\":\"{}\"", next.encode()).as_bytes());
        }
        answer.push(b'}');
        Ok(answer)
    }

    /// Drops all records of the shard that an iterator points to.
    pub(in crate::sandbox) fn trim_at(&mut self, iterator: &ShardIterator) {
        if let Ok(stream) = self.stream(&iterator.stream.to_string())
            && let Some(shard) = stream.shard_mut(&iterator.shard)
        {
            shard.trim_all();
        }
    }

    /// Forgets streams that were turned off longer ago than the retention.
    pub(in crate::sandbox) fn forget_old_streams(&mut self) {
        let now = self.now_ms();
        self.streams_mut().retain(|_, stream| !stream.is_gone(now));
    }
}

/// AWS's answer to an iterator that is too old.
pub(in crate::sandbox) fn expired_iterator() -> ApiError {
    let message = "The shard iterator has expired. Shard iterators are only valid for 15 minutes";
    ApiError::new("ExpiredIteratorException", message)
}

/// A time as AWS writes it in JSON: seconds since 1970, with milliseconds.
pub(in crate::sandbox) fn seconds(ms: u64) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of wall time are far below 2^52")]
    let ms = ms as f64;
    json!(ms / 1000.0)
}

const _: () = assert!(ITERATOR_LIFE_MS < RETENTION_MS);
