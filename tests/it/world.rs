//! A world to replicate in: the sandbox with a source account, two peer accounts and the replicator's own, with
//! exactly the policies that a one-way route needs, and workers that run in it under paused time.

use crate::sandbox_support::{Client, s};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::Value;
use shardwalker::aws::Base;
use shardwalker::clock::Clock;
use shardwalker::config::Config;
use shardwalker::sandbox::iam::Credentials;
use shardwalker::sandbox::{Options, Sandbox};
use shardwalker::service::{self, Service, ServiceError};
use shardwalker::task::Tasks;
use shardwalker::telemetry::board::Board;
use shardwalker::telemetry::metrics::Metrics;
use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) const HOME: &str = "999999999999";
pub(crate) const SOURCE: &str = "111111111111";
pub(crate) const PEERS: [(&str, &str); 2] = [("222222222222", "eu-west-1"), ("333333333333", "us-east-1")];
pub(crate) const REGION: &str = "eu-west-1";
pub(crate) const STAMP: &str = "shardwalker";
/// The principal of the replicator in resource policies.
pub(crate) const PRINCIPAL: &str = "arn:aws:iam::999999999999:user/replicator";

pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    pub(crate) app: Client,
    pub(crate) source: String,
    pub(crate) peers: Vec<String>,
    pub(crate) keys: Credentials,
    seeds: std::cell::Cell<u64>,
}

pub(crate) struct Worker {
    pub(crate) drain: CancellationToken,
    pub(crate) board: Board,
    pub(crate) metrics: Metrics,
    name: String,
    task: Tasks<Result<(), ServiceError>>,
}

impl Worker {
    /// A service that runs.
    pub(crate) fn of(service: Service, drain: CancellationToken) -> Self {
        let (board, metrics) = (service.board().clone(), service.metrics().clone());
        let name = service.worker().to_owned();
        let mut task = Tasks::new();
        task.spawn(service.run());
        Self { drain, board, metrics, name, task }
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) async fn stop(mut self) -> Result<(), ServiceError> {
        self.drain.cancel();
        self.task.join_next().await.unwrap().unwrap()
    }

    /// As `kill -9` would.
    pub(crate) async fn kill(mut self) {
        self.task.abort_all().await;
    }

    /// Its name, as it stands in the state table.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        self.board.picture(Duration::from_secs(120)).problems
    }

    /// The sum of a metric's values over all series whose line holds every one of `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics.text();
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Options { initial_shards: 2, ..Options::default() }, Some("NEW_AND_OLD_IMAGES"))
    }

    /// One whose clock shows the machine's time, for processes.
    pub(crate) fn now() -> Self {
        Self::made(
            Sandbox::new(Options { initial_shards: 2, ..Options::default() }).unwrap(),
            Some("NEW_AND_OLD_IMAGES"),
        )
    }

    pub(crate) fn with(options: Options, view: Option<&str>) -> Self {
        let start = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Self::made(Sandbox::new(Options { start: Some(start), ..options }).unwrap(), view)
    }

    fn made(sandbox: Sandbox, view: Option<&str>) -> Self {
        let source = sandbox.create_table(SOURCE, REGION, "orders", &["id"], view).unwrap();
        let mut peers = Vec::new();
        for (account, region) in PEERS {
            peers.push(sandbox.create_table(account, region, "orders-copy", &["id"], None).unwrap());
        }
        let app = Client::admin(&sandbox, SOURCE);
        let keys = sandbox.user(HOME, "replicator", &identity_policy()).unwrap();
        let world = Self { sandbox, app, source, peers, keys, seeds: std::cell::Cell::new(1) };
        world.allow_source();
        for peer in &world.peers {
            let actions = ["DescribeTable", "PutItem", "DeleteItem"];
            world.sandbox.put_resource_policy(peer, &resource_policy(peer, &actions)).unwrap();
        }
        world
    }

    pub(crate) fn allow_source(&self) {
        let policy = resource_policy(&self.source, &["DescribeTable"]);
        self.sandbox.put_resource_policy(&self.source, &policy).unwrap();
        if let Some(stream) = self.sandbox.stream_arn(&self.source).unwrap() {
            let actions = ["DescribeStream", "GetRecords", "GetShardIterator"];
            self.sandbox.put_resource_policy(&stream, &resource_policy(&stream, &actions)).unwrap();
        }
    }

    /// The config of a route `copy` from `source` to both peers, with more lines for the route and the file.
    pub(crate) fn config(&self, route: &str, rest: &str) -> Config {
        let text = self.config_text(route, rest);
        Config::parse(&text, "test.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"))
    }

    pub(crate) fn config_text(&self, route: &str, rest: &str) -> String {
        format!(
            r#"
{rest}
[state]
table = "shardwalker-state"
region = "{REGION}"
[admin]
listen = "off"
[lease]
duration = "12s"
[write]
request_timeout = "4s"
[[member]]
name = "source"
table = "{}"
[[member]]
name = "b"
table = "{}"
[[member]]
name = "c"
table = "{}"
[[route]]
name = "copy"
from = "source"
to = ["b", "c"]
{route}
"#,
            self.source, self.peers[0], self.peers[1]
        )
    }

    pub(crate) async fn build(&self, config: Config) -> Result<(Service, CancellationToken), ServiceError> {
        let drain = CancellationToken::new();
        Ok((Service::build(config, self.options(true), drain.clone()).await?, drain))
    }

    pub(crate) async fn build_without_state(&self, config: Config) -> Result<Service, ServiceError> {
        Service::build(config, self.options(false), CancellationToken::new()).await
    }

    pub(crate) fn options(&self, create_state_table: bool) -> service::Options {
        service::Options {
            base: self.base(),
            create_state_table,
            clock: Clock::starting_at(self.sandbox.clock().now()),
            seed: self.seeds.replace(self.seeds.get() + 1),
        }
    }

    /// The replicator's credentials and the door into the sandbox.
    pub(crate) fn base(&self) -> Base {
        let keys = aws_credential_types::Credentials::from(self.keys.clone());
        Base {
            credentials: Some(SharedCredentialsProvider::new(keys)),
            http: Some(self.sandbox.http_client()),
            request_timeout: None,
        }
    }

    pub(crate) async fn start(&self, config: Config) -> Worker {
        let options = self.options(true);
        self.start_with(config, options).await
    }

    pub(crate) async fn start_with(&self, config: Config, options: service::Options) -> Worker {
        let drain = CancellationToken::new();
        Worker::of(Service::build(config, options, drain.clone()).await.unwrap(), drain)
    }

    pub(crate) async fn worker(&self) -> Worker {
        self.start(self.config("", "")).await
    }

    /// A table's items by key, without the stamps; the stamps must be there, and well-formed.
    pub(crate) fn items(&self, table: &str) -> HashMap<String, Value> {
        let items = self.sandbox.items(table).unwrap();
        items
            .into_iter()
            .map(|mut item| {
                let stamp = item.as_object_mut().unwrap().remove(STAMP);
                if table != self.source {
                    let stamp = stamp.unwrap()["S"].as_str().unwrap().to_owned();
                    assert!(shardwalker::version::Stamp::parse(&stamp).is_some(), "{stamp}");
                }
                (item["id"].to_string(), item)
            })
            .collect()
    }

    pub(crate) fn all_equal(&self) -> bool {
        let source = self.items(&self.source);
        self.peers.iter().all(|peer| self.items(peer) == source)
    }

    pub(crate) async fn until_equal(&self) {
        eventually("members are equal", || self.all_equal()).await;
    }

    pub(crate) async fn put(&self, id: &str, value: &str) {
        self.app.put("orders", id, value).await;
    }

    pub(crate) async fn delete(&self, id: &str) {
        self.app.delete("orders", id).await;
    }

    /// Deterministic application writes to `keys` keys: puts, rewrites and deletes.
    pub(crate) async fn load(&self, keys: usize, writes: usize, seed: u64) {
        use rand::rngs::StdRng;
        use rand::{Rng, SeedableRng};
        let mut random = StdRng::seed_from_u64(seed);
        for write in 0..writes {
            let id = format!("k{}", random.random_range(0..keys));
            if random.random_ratio(1, 5) {
                self.delete(&id).await;
            } else {
                self.put(&id, &format!("v{write}")).await;
            }
        }
    }

    /// The rows of a partition of the state table.
    pub(crate) fn rows(&self, pk: &str) -> Vec<Value> {
        let table = format!("arn:aws:dynamodb:{REGION}:{HOME}:table/shardwalker-state");
        let mut rows = self.sandbox.items(&table).unwrap();
        rows.retain(|row| row["pk"]["S"].as_str().unwrap().starts_with(pk));
        rows.sort_by_key(|row| row["sk"]["S"].to_string());
        rows
    }

    pub(crate) fn requests(&self, operation: &str, account: &str) -> u64 {
        let counts = self.sandbox.counters().snapshot();
        counts.get(operation).and_then(|c| c.get(account)).map_or(0, |count| count.requests)
    }
}

/// Waits for a state, at most ten minutes of virtual time.
pub(crate) async fn eventually(what: &str, state: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(600);
    while !state() {
        assert!(Instant::now() < limit, "{what}: not within ten minutes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Enough for one-way routes, and no more.
fn identity_policy() -> String {
    serde_json::json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Resource": "arn:aws:dynamodb:*:111111111111:table/orders", "Action": "dynamodb:DescribeTable" },
        { "Effect": "Allow", "Resource": "arn:aws:dynamodb:*:111111111111:table/orders/stream/*",
          "Action": ["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"] },
        { "Effect": "Allow", "Resource": "arn:aws:dynamodb:*:*:table/orders-copy",
          "Action": ["dynamodb:DescribeTable", "dynamodb:PutItem", "dynamodb:DeleteItem"] },
        { "Effect": "Allow", "Resource": "arn:aws:dynamodb:*:999999999999:table/shardwalker-state",
          "Action": ["dynamodb:CreateTable", "dynamodb:UpdateTimeToLive", "dynamodb:DescribeTimeToLive",
                     "dynamodb:DescribeTable", "dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem",
                     "dynamodb:DeleteItem", "dynamodb:Query", "dynamodb:BatchGetItem"] },
    ]})
    .to_string()
}

pub(crate) fn resource_policy(arn: &str, actions: &[&str]) -> String {
    let actions: Vec<String> = actions.iter().map(|action| format!("dynamodb:{action}")).collect();
    serde_json::json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Principal": { "AWS": PRINCIPAL }, "Resource": arn, "Action": actions },
    ]})
    .to_string()
}

/// An item's attributes with more than one.
pub(crate) fn with(id: &str, more: &[(&str, AttributeValue)]) -> HashMap<String, AttributeValue> {
    let mut item = HashMap::from([("id".to_owned(), s(id))]);
    item.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    item
}
