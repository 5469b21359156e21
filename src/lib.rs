//! Shardwalker replicates DynamoDB tables across AWS accounts by walking the shards of their streams.

pub mod change;
pub mod clock;
pub mod config;
pub mod failure;
pub mod item;
pub mod limit;
pub mod retry;
pub mod task;
pub mod version;
