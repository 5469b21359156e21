//! Where the path and the bare loop run: on the canned endpoint, or in the embedded sandbox.

use super::endpoint::{self, Endpoint, Script};
use super::records::{self, Kind};
use super::settings;
use anyhow::Context;
use aws_sdk_dynamodb::types::{StreamSpecification, StreamViewType};
use bytes::Bytes;
use shardwalker::sandbox::{self, Sandbox};
use shardwalker::service::Options;

/// So many that the rate at which one shard may be read is no limit.
pub(crate) const SHARDS: usize = 4;
/// Records of a canned page: 1 MB of them, which is all that GetRecords gives.
const PAGE: usize = 500;

/// What is to be replicated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) kind: Kind,
    pub(crate) records: usize,
    pub(crate) peers: usize,
}

/// An endpoint, made anew for every run where runs leave traces.
pub(crate) enum World {
    /// Answers at once and forgets.
    Canned(Endpoint),
    /// Real tables, policies and streams in this process.
    Sandbox,
}

impl World {
    /// The canned endpoint with that work in its stream.
    pub(crate) fn canned(work: Work) -> Self {
        let pages: Vec<Vec<Bytes>> = (0..SHARDS).map(|shard| pages(work, shard)).collect();
        let read =
            move |shard: usize, number: usize| pages[shard][number.min(pages[shard].len() - 1)].clone();
        Self::Canned(Endpoint::new(Script { shards: SHARDS, peers: work.peers, read: Box::new(read) }))
    }

    /// What reaches the endpoint when all is as before the work; the stream holds it.
    pub(crate) async fn prepare(&self, work: Work) -> anyhow::Result<Options> {
        match self {
            Self::Canned(endpoint) => Ok(endpoint.options()),
            Self::Sandbox => sandboxed(work).await,
        }
    }
}

/// A shard's pages; the last one is empty and follows itself.
fn pages(work: Work, shard: usize) -> Vec<Bytes> {
    let indices = (shard..work.records).step_by(SHARDS);
    let records: Vec<Vec<u8>> = indices.map(|index| records::record(index, work.kind)).collect();
    let full = records
        .chunks(PAGE)
        .enumerate()
        .map(|(number, chunk)| endpoint::page(shard, chunk.iter().map(Vec::as_slice), number + 1));
    let mut pages: Vec<Bytes> = full.collect();
    pages.push(endpoint::page(shard, [], pages.len()));
    pages
}

const REPLICATOR: &str = "999999999999";
/// Any action on the resource by the replicator's account.
const POLICY: &str = r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"dynamodb:*",
    "Principal":{"AWS":"arn:aws:iam::999999999999:root"},"Resource":"RESOURCE"}}"#;

/// A sandbox with source and peers in accounts of their own, and the replicator in another.
async fn sandboxed(work: Work) -> anyhow::Result<Options> {
    let sandbox = Sandbox::new(sandbox::Options::default())?;
    for member in 0..=work.peers {
        let arn = settings::table(member);
        let created = sandbox.create_table(&arn.account, &arn.region, &arn.table, &["id"], None)?;
        sandbox.put_resource_policy(&created, &POLICY.replace("RESOURCE", &created))?;
        if work.kind == Kind::Modify {
            fill(&sandbox, member, work.records, 1).await?;
        }
    }
    let source = settings::table(0);
    let on = StreamSpecification::builder()
        .stream_enabled(true)
        .stream_view_type(StreamViewType::NewAndOldImages)
        .build()?;
    client(&sandbox, 0)?.update_table().table_name(&source.table).stream_specification(on).send().await?;
    let stream = sandbox.stream_arn(&source.to_string())?.context("the stream is off")?;
    sandbox.put_resource_policy(&stream, &POLICY.replace("RESOURCE", &stream))?;
    fill(&sandbox, 0, work.records, 2).await?;
    let keys = sandbox.admin(REPLICATOR, "replicator")?;
    let config = sandbox.sdk_config(&keys, settings::REGION);
    let base = shardwalker::aws::Base {
        credentials: config.credentials_provider(),
        http: Some(sandbox.http_client()),
        request_timeout: None,
    };
    let clock = shardwalker::clock::Clock::system();
    Ok(Options { base, create_state_table: true, clock, seed: 1 })
}

/// A client of the account that a member's table is in.
fn client(sandbox: &Sandbox, member: usize) -> anyhow::Result<aws_sdk_dynamodb::Client> {
    let keys = sandbox.admin(&settings::table(member).account, "owner")?;
    Ok(aws_sdk_dynamodb::Client::new(&sandbox.sdk_config(&keys, settings::REGION)))
}

async fn fill(sandbox: &Sandbox, member: usize, records: usize, revision: u32) -> anyhow::Result<()> {
    let (client, table) = (client(sandbox, member)?, settings::table(member).table);
    for index in 0..records {
        let item = records::item(index, revision).0;
        client.put_item().table_name(&table).set_item(Some(item)).send().await?;
    }
    Ok(())
}
