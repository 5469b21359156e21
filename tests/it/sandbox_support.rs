//! What the tests of the sandbox have in common: clients through the in-process door.

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_dynamodbstreams::types::{Record, ShardIteratorType};
use shardwalker::sandbox::gateway::Source;
use shardwalker::sandbox::iam::Credentials;
use shardwalker::sandbox::{Options, Sandbox};
use std::time::{Duration, UNIX_EPOCH};

pub(crate) const REGION: &str = "eu-west-1";
pub(crate) const A: &str = "111111111111";
pub(crate) const B: &str = "222222222222";
pub(crate) const C: &str = "333333333333";

/// The clients of one caller.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) db: aws_sdk_dynamodb::Client,
    pub(crate) streams: aws_sdk_dynamodbstreams::Client,
    pub(crate) sts: aws_sdk_sts::Client,
}

impl Client {
    pub(crate) fn new(sandbox: &Sandbox, keys: &Credentials) -> Self {
        Self::from(sandbox, keys, Source::default())
    }

    /// An administrator's, in any Region.
    pub(crate) fn admin_of(sandbox: &Sandbox, account: &str, region: &'static str) -> Self {
        let keys = sandbox.admin(account, "admin").unwrap();
        Self::made(&sandbox.sdk_config_from(&keys, region, Source::default()))
    }

    pub(crate) fn from(sandbox: &Sandbox, keys: &Credentials, source: Source) -> Self {
        Self::made(&sandbox.sdk_config_from(keys, REGION, source))
    }

    fn made(config: &aws_config::SdkConfig) -> Self {
        Self {
            db: aws_sdk_dynamodb::Client::new(config),
            streams: aws_sdk_dynamodbstreams::Client::new(config),
            sts: aws_sdk_sts::Client::new(config),
        }
    }

    pub(crate) fn admin(sandbox: &Sandbox, account: &str) -> Self {
        Self::new(sandbox, &sandbox.admin(account, "admin").unwrap())
    }

    /// Puts an item with this id and one more attribute.
    pub(crate) async fn put(&self, table: &str, id: &str, value: &str) {
        self.db.put_item().table_name(table).item("id", s(id)).item("value", s(value)).send().await.unwrap();
    }

    /// Deletes an item.
    pub(crate) async fn delete(&self, table: &str, id: &str) {
        self.db.delete_item().table_name(table).key("id", s(id)).send().await.unwrap();
    }

    /// A shard's iterator from its oldest record.
    pub(crate) async fn oldest(&self, stream: &str, shard: &str) -> String {
        let request = self.streams.get_shard_iterator().stream_arn(stream).shard_id(shard);
        let answer = request.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await.unwrap();
        answer.shard_iterator.unwrap()
    }

    /// All records of a shard, and whether it ended.
    pub(crate) async fn shard_records(&self, stream: &str, shard: &str) -> (Vec<Record>, bool) {
        let mut iterator = Some(self.oldest(stream, shard).await);
        let mut records = Vec::new();
        // An open shard never ends: two pages without a record are its end for now.
        let mut empty = 0;
        while let Some(at) = iterator.take().filter(|_| empty < 2) {
            let page = self.streams.get_records().shard_iterator(at).send().await.unwrap();
            let found = page.records.unwrap_or_default();
            empty = if found.is_empty() { empty + 1 } else { 0 };
            records.extend(found);
            iterator = page.next_shard_iterator;
        }
        (records, iterator.is_none() && empty < 2)
    }

    /// The records of all shards, by shard id.
    pub(crate) async fn all_records(&self, sandbox: &Sandbox, table_arn: &str) -> Vec<Record> {
        let stream = sandbox.stream_arn(table_arn).unwrap().unwrap();
        let mut records = Vec::new();
        for shard in sandbox.shards(table_arn).unwrap() {
            records.extend(self.shard_records(&stream, &shard.id).await.0);
        }
        records
    }
}

/// A sandbox with seed 0 whose clock starts at a fixed time.
pub(crate) fn sandbox() -> Sandbox {
    with(|_| {})
}

/// The same with other options.
pub(crate) fn with(change: impl FnOnce(&mut Options)) -> Sandbox {
    let start = Some(UNIX_EPOCH + Duration::from_secs(1_767_225_600));
    let mut options = Options { start, ..Options::default() };
    change(&mut options);
    Sandbox::new(options).unwrap()
}

/// A table `orders` of account A with a stream, and its ARN.
pub(crate) fn orders(sandbox: &Sandbox) -> String {
    sandbox.create_table(A, REGION, "orders", &["id"], Some("NEW_AND_OLD_IMAGES")).unwrap()
}

pub(crate) fn s(text: &str) -> AttributeValue {
    AttributeValue::S(text.into())
}

pub(crate) fn n(number: &str) -> AttributeValue {
    AttributeValue::N(number.into())
}

/// The code and message of a failed call.
pub(crate) fn failure<E, R>(error: aws_smithy_runtime_api::client::result::SdkError<E, R>) -> (String, String)
where
    E: aws_sdk_dynamodb::error::ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    match error.as_service_error() {
        Some(error) => {
            (error.code().unwrap_or_default().to_owned(), error.message().unwrap_or_default().to_owned())
        }
        None => ("no answer".to_owned(), format!("{error:?}")),
    }
}
