//! The admin paths, by which a test in another process turns the sandbox: time, shards, faults, figures.
//!
//! JSON in and out. Only the TCP door serves them, and only to the machine itself.

use crate::sandbox::Sandbox;
use crate::sandbox::error::{ApiError, ApiResult};
use crate::sandbox::faults::{Rule, Weather};
use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OnTable {
    /// The table's ARN.
    table: String,
    /// A shard's id; all of them if absent.
    shard: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    seconds: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamClock {
    table: String,
    off_ms: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewUser {
    account: String,
    name: String,
    policy: Value,
}

/// Answers an admin request; `path` is what follows `/_sandbox/`.
pub fn answer(sandbox: &Sandbox, method: &Method, path: &str, body: &[u8]) -> Response<Bytes> {
    let (status, body) = match perform(sandbox, method.as_str(), path, body) {
        Ok(answer) => (200, answer),
        Err(error) => (error.status, json!({"error": error.code, "message": error.message})),
    };
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

fn perform(sandbox: &Sandbox, method: &str, path: &str, body: &[u8]) -> ApiResult<Value> {
    let faults = sandbox.faults();
    let done = json!({});
    match (method, path) {
        ("GET", "health") => Ok(json!({"status": "ok", "now_ms": sandbox.clock().now_ms()})),
        ("GET", "stats") => Ok(json!(sandbox.counters().snapshot())),
        ("DELETE", "stats") => {
            sandbox.counters().reset();
            Ok(done)
        }
        ("GET", "accounts") => Ok(accounts(sandbox)),
        ("POST", "users") => {
            let NewUser { account, name, policy } = read(body)?;
            let keys = sandbox.user(&account, &name, &policy.to_string())?;
            Ok(json!({"access_key_id": keys.access_key_id, "secret_access_key": keys.secret_access_key}))
        }
        ("GET", "faults") => {
            let entry = |(rule, hits)| json!({"rule": rule, "hits": hits});
            Ok(faults.rules().into_iter().map(entry).collect())
        }
        ("POST", "faults") => {
            faults.add(read::<Rule>(body)?);
            Ok(done)
        }
        ("DELETE", "faults") => {
            faults.clear();
            Ok(done)
        }
        ("GET", "weather") => Ok(json!(faults.weather())),
        ("PUT", "weather") => {
            faults.set_weather(read::<Weather>(body)?);
            Ok(done)
        }
        ("POST", "advance") => {
            let Advance { seconds } = read(body)?;
            let by = Duration::try_from_secs_f64(seconds)
                .map_err(|error| ApiError::validation(format!("seconds: {error}")))?;
            sandbox.advance(by);
            Ok(json!({"now_ms": sandbox.clock().now_ms()}))
        }
        ("POST", "stream-clock") => {
            let StreamClock { table, off_ms } = read(body)?;
            sandbox.set_stream_clock(&table, off_ms)?;
            Ok(done)
        }
        ("POST", "sweep-ttl") => Ok(json!({"deleted": sandbox.sweep_ttl()?})),
        ("POST", "shards") => Ok(json!(sandbox.shards(&read::<OnTable>(body)?.table)?)),
        ("POST", "items") => Ok(json!(sandbox.items(&read::<OnTable>(body)?.table)?)),
        ("POST", "split" | "rollover" | "trim") => {
            let OnTable { table, shard } = read(body)?;
            match path {
                "split" => sandbox.split(&table, shard.as_deref())?,
                "rollover" => sandbox.roll_over(&table, shard.as_deref())?,
                _ => sandbox.trim(&table, shard.as_deref())?,
            }
            Ok(json!(sandbox.shards(&table)?))
        }
        _ => Err(ApiError::new("NotFound", format!("no admin path {method} {path}")).with_status(404)),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    serde_json::from_slice(body).map_err(|error| ApiError::validation(error.to_string()))
}

fn accounts(sandbox: &Sandbox) -> Value {
    let directory = sandbox.directory();
    let account = |(id, account): (&String, &crate::sandbox::iam::Account)| {
        json!({
            "id": id,
            "organization": account.organization,
            "users": account.users.keys().collect::<Vec<_>>(),
            "roles": account.roles.keys().collect::<Vec<_>>(),
        })
    };
    let accounts: Vec<Value> = directory.accounts().iter().map(account).collect();
    json!({"accounts": accounts, "tables": sandbox.tables()})
}
