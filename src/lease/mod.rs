//! Leases: which worker walks which shard, and how far each peer of it is.
//!
//! A row per route, stream and shard in the state table ([`row`], [`table`]) holds owner, epoch and positions.
//! Every change of a row is conditional on owner and epoch, so that a worker that lost a lease without knowing
//! it changes nothing. Workers show that they live by counters, judged by the observer's own clock ([`heart`],
//! [`fleet`]). What a feed is about to write is remembered in the row too ([`intent`]). What a worker does next is decided by pure functions: which shards it walks and from where
//! ([`plan`]), which it hands over ([`balance`]), and, for the one worker that lists a stream ([`lister`]), what
//! a listing means for the rows ([`listing`]). They look at the rows as this worker knows them ([`known`]).

pub mod balance;
pub mod fleet;
pub mod heart;
pub mod intent;
pub mod known;
pub mod lister;
pub mod listing;
pub mod plan;
pub mod row;
pub mod table;
