//! Reading a stream: its shards ([`graph`], [`list`]) and their records ([`reader`]).

pub mod graph;
pub mod list;
pub mod reader;
