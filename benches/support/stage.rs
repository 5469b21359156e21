//! A sandbox with the source and its peers in accounts of their own, and the replicator in another.

use super::settings::{self, REGION};
use anyhow::Context;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_dynamodb::types::{StreamSpecification, StreamViewType};
use shardwalker::aws::Base;
use shardwalker::clock::Clock;
use shardwalker::sandbox::iam::Credentials;
use shardwalker::sandbox::{self, Sandbox};
use shardwalker::service::Options;
use std::time::{Duration, UNIX_EPOCH};

/// The replicator's account, which has the state table.
pub(crate) const REPLICATOR: &str = "999999999999";
/// Any action on the resource by the replicator's account.
const POLICY: &str = r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"dynamodb:*",
    "Principal":{"AWS":"arn:aws:iam::999999999999:root"},"Resource":"RESOURCE"}}"#;

/// The stage.
pub(crate) struct Stage {
    pub(crate) sandbox: Sandbox,
    keys: Credentials,
}

/// A sandbox in virtual time: within a runtime whose time is paused.
pub(crate) fn virtual_time(shards: u32) -> sandbox::Options {
    sandbox::Options {
        seed: 1,
        start: Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
        initial_shards: shards,
        shard_lifetime: None,
        stream_limits: true,
        verify_signatures: false,
    }
}

impl Stage {
    /// Empty tables; the source has no stream yet.
    pub(crate) fn new(options: sandbox::Options, peers: usize) -> anyhow::Result<Self> {
        let sandbox = Sandbox::new(options)?;
        for member in 0..=peers {
            let arn = settings::table(member);
            let created = sandbox.create_table(&arn.account, &arn.region, &arn.table, &["id"], None)?;
            allow(&sandbox, &created)?;
        }
        let keys = sandbox.admin(REPLICATOR, "replicator")?;
        Ok(Self { sandbox, keys })
    }

    /// Turns the source's stream on.
    pub(crate) async fn stream(&self) -> anyhow::Result<()> {
        self.stream_of(0).await
    }

    /// Turns a member's stream on.
    pub(crate) async fn stream_of(&self, member: usize) -> anyhow::Result<()> {
        let source = settings::table(member);
        let on = StreamSpecification::builder()
            .stream_enabled(true)
            .stream_view_type(StreamViewType::NewAndOldImages)
            .build()?;
        let client = self.client(member)?;
        client.update_table().table_name(&source.table).stream_specification(on).send().await?;
        let stream = self.sandbox.stream_arn(&source.to_string())?.context("the stream is off")?;
        allow(&self.sandbox, &stream)
    }

    /// A client of the account that a member's table is in.
    pub(crate) fn client(&self, member: usize) -> anyhow::Result<aws_sdk_dynamodb::Client> {
        let keys = self.sandbox.admin(&settings::table(member).account, "owner")?;
        Ok(aws_sdk_dynamodb::Client::new(&self.sandbox.sdk_config(&keys, REGION)))
    }

    /// The options of a worker; the seed must be its own.
    pub(crate) fn options(&self, seed: u64) -> Options {
        let keys = aws_credential_types::Credentials::from(self.keys.clone());
        let base = Base {
            credentials: Some(SharedCredentialsProvider::new(keys)),
            http: Some(self.sandbox.http_client()),
            request_timeout: None,
        };
        Options {
            base,
            create_state_table: true,
            clock: Clock::starting_at(self.sandbox.clock().now()),
            seed,
        }
    }
}

fn allow(sandbox: &Sandbox, arn: &str) -> anyhow::Result<()> {
    Ok(sandbox.put_resource_policy(arn, &POLICY.replace("RESOURCE", arn))?)
}
