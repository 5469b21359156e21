//! Leases: which worker walks which shard, and how far each peer of it is.
//!
//! A row per route, stream and shard in the state table ([`row`], [`table`]) holds owner, epoch and positions.
//! Every change of a row is conditional on owner and epoch, so that a worker that lost a lease without knowing
//! it changes nothing. Workers show that they live by counters, judged by the observer's own clock
//! ([`heart`]); who takes what is decided by a pure function ([`plan`]).

pub mod heart;
pub mod plan;
pub mod row;
pub mod table;
