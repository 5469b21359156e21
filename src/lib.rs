//! Shardwalker replicates DynamoDB tables across AWS accounts by walking the shards of their streams.

pub mod clock;
pub mod config;
pub mod task;

#[cfg(feature = "sandbox")]
pub mod sandbox;
