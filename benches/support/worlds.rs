//! Where the path and the bare loop run: on the canned endpoint, or in the embedded sandbox.

use super::endpoint::{self, Endpoint, Script};
use super::records::{self, Kind};
use super::settings;
use super::stage::Stage;
use bytes::Bytes;
use shardwalker::sandbox;
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
        let pages: Vec<Vec<Bytes>> = (0..SHARDS).map(|shard| pages(work, shard, SHARDS)).collect();
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

/// The pages of one of so many shards; the last one is empty and follows itself.
pub(crate) fn pages(work: Work, shard: usize, shards: usize) -> Vec<Bytes> {
    let indices = (shard..work.records).step_by(shards);
    let records: Vec<Vec<u8>> = indices.map(|index| records::record(index, work.kind)).collect();
    let full = records
        .chunks(PAGE)
        .enumerate()
        .map(|(number, chunk)| endpoint::page(shard, chunk.iter().map(Vec::as_slice), number + 1));
    let mut pages: Vec<Bytes> = full.collect();
    pages.push(endpoint::page(shard, [], pages.len()));
    pages
}

/// A sandbox whose stream holds the work.
async fn sandboxed(work: Work) -> anyhow::Result<Options> {
    let stage = Stage::new(sandbox::Options::default(), work.peers)?;
    if work.kind == Kind::Modify {
        for member in 0..=work.peers {
            fill(&stage, member, work.records, 1).await?;
        }
    }
    stage.stream().await?;
    fill(&stage, 0, work.records, 2).await?;
    Ok(stage.options(1))
}

async fn fill(stage: &Stage, member: usize, records: usize, revision: u32) -> anyhow::Result<()> {
    records::fill(&stage.client(member)?, &settings::table(member).table, records, revision).await
}
