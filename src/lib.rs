//! Shardwalker replicates DynamoDB tables across AWS accounts by walking the shards of their streams.

pub mod apply;
pub mod aws;
pub mod change;
pub mod clock;
pub mod config;
pub mod dead_letters;
pub mod failure;
pub mod item;
pub mod json;
pub mod ledger;
pub mod limit;
pub mod peer;
pub mod retry;
pub mod state;
pub mod task;
pub mod telemetry;
pub mod version;
