//! Shardwalker replicates DynamoDB tables across AWS accounts by walking the shards of their streams.

pub mod access;
pub mod apply;
pub mod aws;
pub mod change;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dead_letters;
pub mod failure;
pub mod gaps;
pub mod item;
pub mod json;
pub mod lane;
pub mod lease;
pub mod ledger;
pub mod limit;
pub mod peer;
pub mod replicator;
pub mod retry;
pub mod route;
#[cfg(feature = "sandbox")]
pub mod sandbox;
pub mod service;
pub mod shutdown;
pub mod starts;
pub mod state;
pub mod stream;
pub mod task;
pub mod telemetry;
pub mod version;
pub mod walker;

#[cfg(feature = "sandbox")]
pub mod demo;
