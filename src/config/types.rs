//! The resolved configuration: plain data with every default filled in.
//!
//! Owns the meaning of each setting and its default. How the settings are written in a file, and what is
//! refused, is left to the rest of [`config`](crate::config).

use super::Feed;
use crate::shape::path::Path;
use crate::shape::template::Template;
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// A whole, validated configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where leases, checkpoints, tombstones and dead letters are kept.
    pub state: State,
    /// The member tables, in the order of the file; names are unique.
    pub members: Vec<Member>,
    /// The routes: the one-way ones, in the order of the file, and then one for each member of each group, from it to
    /// the group's other members. Names are unique.
    pub routes: Vec<Route>,
    /// The active-active groups, in the order of the file; names are unique.
    pub groups: Vec<Group>,
    /// The feeds, in the order of the file; names are unique among feeds and members.
    pub feeds: Vec<Feed>,
    /// Reading of streams.
    pub read: Read,
    /// Writing to peers.
    pub write: Write,
    /// Leases on shards.
    pub lease: Lease,
    /// What peers refuse for good.
    pub dead_letters: DeadLetters,
    /// Metrics, health and logs.
    pub admin: Admin,
    /// How long a stop may take to finish pages and checkpoint (default 25 s).
    pub grace: Duration,
    /// How long an `AccessDenied` right after the start is retried, because policies arrive late (default 30 s).
    pub access_patience: Duration,
}

/// A DynamoDB table's ARN, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableArn {
    /// `aws`, `aws-cn`, `aws-us-gov`, ...
    pub partition: String,
    /// For example `eu-west-1`.
    pub region: String,
    /// Twelve digits.
    pub account: String,
    /// The table's name.
    pub table: String,
}

/// How the calls for one table are made: which Region, endpoint and credentials.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Access {
    /// The Region of the endpoint and of the signatures.
    pub region: String,
    /// Another endpoint than AWS's own, for DynamoDB and its streams.
    pub endpoint: Option<String>,
    /// Another endpoint for the streams only. Always there for a route's source whose `endpoint` is one of
    /// AWS's, because AWS serves streams at another host than tables.
    pub streams_endpoint: Option<String>,
    /// A profile of the AWS config files for the base credentials; otherwise the default chain.
    pub profile: Option<String>,
    /// A role to assume with the base credentials.
    pub assume_role: Option<AssumeRole>,
}

/// A role in a member's account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AssumeRole {
    /// The role's ARN.
    pub role_arn: String,
    /// The external id that the role's trust policy asks for.
    pub external_id: Option<String>,
    /// The session's name (default `shardwalker`).
    pub session_name: String,
    /// How long a session lasts (900 s to 12 h; default 1 h).
    pub duration: Duration,
    /// STS's endpoint, filled in with the table's own when that is not one of AWS's; `None`: AWS's for the
    /// Region.
    pub sts_endpoint: Option<String>,
}

/// The state table.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// A table name in the caller's account, or a full ARN.
    pub table: String,
    /// How to reach it.
    pub access: Access,
    /// How long tombstones are kept (default 7 days, at least 25 hours).
    pub tombstone_retention: Duration,
}

/// A member table.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Unique; letters, digits, `-`, `_`, `.`; at most 64.
    pub name: String,
    /// The table.
    pub arn: TableArn,
    /// How to reach it.
    pub access: Access,
    /// The small fixed number in versions (default 0; must differ between sources that share a peer).
    pub number: u8,
}

/// Changes of one member applied to its peers.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Unique; same alphabet as a member's name.
    pub name: String,
    /// Index into [`Config::members`].
    pub from: usize,
    /// Indices into [`Config::members`]; all different, never `from`; at least one where there are no feeds.
    pub to: Vec<usize>,
    /// Indices into [`Config::feeds`]; all different. None in a group.
    pub feeds: Vec<usize>,
    /// Whether deletes by the time-to-live service are forwarded (default true).
    pub ttl_deletes: bool,
    /// The name of our attribute on items that we wrote (default `shardwalker`).
    pub stamp: String,
    /// Where a stream that was never read starts (default trim horizon).
    pub start: Start,
    /// What a shard does when records were trimmed before they were read (default stop).
    pub on_gap: OnGap,
    /// A stamp further ahead of its record's creation time is not believed (default 60 s).
    pub max_clock_drift: Duration,
    /// Writes a second of one worker to a peer at most, by index into [`Config::members`]; no limit for a peer that
    /// is not here (default).
    pub max_writes: BTreeMap<usize, u32>,
    /// What makes the route pause itself; `None` nothing (default).
    pub guard: Option<Guard>,
    /// What peers get of the source's items; `None` all of them, as they are (default).
    pub shape: Option<Shape>,
    /// The group that it is a part of, by index into [`Config::groups`]; `None` on a one-way route.
    pub group: Option<usize>,
    /// Whether there is a way back, a route of its own named `ROUTE/back`; one of the two is walked at a time, as the
    /// route's cutover says (default false).
    pub reversible: bool,
    /// The route of which this is the way back; `None` on any other.
    pub back_of: Option<String>,
    /// Whether the peers' items get no attribute of ours (default false).
    pub pristine: bool,
}

impl Route {
    /// The route that has a way back, when this is it or its way back.
    #[must_use]
    pub fn pair(&self) -> Option<&str> {
        self.back_of.as_deref().or(self.reversible.then_some(self.name.as_str()))
    }
}

/// Members that are each written by applications of their own, and converge to the last writer's values.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Unique among groups and routes; same alphabet as a member's name.
    pub name: String,
    /// Indices into [`Config::members`]; at least two, all different, with different numbers.
    pub members: Vec<usize>,
    /// Which writes that lost are kept (default sampled).
    pub conflicts: Conflicts,
    /// The file of each worker that they are appended to, as JSON lines; in the state table without one.
    pub conflicts_file: Option<PathBuf>,
}

/// Which writes that lost to another member's are kept in the conflict journal. All are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflicts {
    /// None (`"off"`).
    Off,
    /// Ten a second of one worker at most (`"sampled"`).
    Sampled,
    /// All (`"full"`).
    Full,
}

/// Pauses a route when too much is deleted at its source. At least one of the two limits is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Guard {
    /// How far back it looks, by the records' times of creation (default 1 min).
    pub window: Duration,
    /// More deletes than this in a window are too many.
    pub max_deletes: Option<u32>,
    /// A larger share of deletes among the changes of a window is too large (above 0, at most 1).
    pub max_delete_share: Option<f64>,
    /// A share of fewer changes than this says nothing (default 100).
    pub min_changes: u32,
}

/// Which items of a one-way route's source go to its peers, and what of them. Everything is off by default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shape {
    /// A CEL expression over `item`, which compiles: only items for which it is true.
    pub filter: Option<String>,
    /// Only items whose key attributes of these names begin so.
    pub key_prefix: BTreeMap<String, String>,
    /// Only items whose attributes have these values.
    pub attribute_equals: BTreeMap<String, AttributeValue>,
    /// Nothing but this, and the key; empty for everything.
    pub include: Vec<Path>,
    /// Everything but this.
    pub exclude: Vec<Path>,
    /// What stands in the place of values.
    pub mask: BTreeMap<Path, Mask>,
    /// Where the key of [`Mask::Hash`] is; there when one is used.
    pub mask_key: Option<MaskKey>,
    /// Names of attributes at the source, each with its name at the peers.
    pub rename: BTreeMap<String, String>,
    /// Attributes that every item has at the peers.
    pub constants: BTreeMap<String, AttributeValue>,
    /// The key attributes at the peers, when they are made of the source's; empty for those of the source.
    pub keys: BTreeMap<String, Template>,
}

/// What stands in the place of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mask {
    /// Nothing: as if it was excluded (`"drop"`).
    Drop,
    /// This text (`{ text = "..." }`).
    Text(String),
    /// HMAC-SHA256 of the value, in hex (`"hash"`).
    Hash,
}

/// Where the key of hashes is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MaskKey {
    /// A variable of the environment.
    Env(String),
    /// A file.
    File(PathBuf),
}

/// Where a stream that was never read starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The oldest record that the stream still has (`"trim-horizon"`).
    TrimHorizon,
    /// What is written from now on (`"latest"`).
    Latest,
    /// The first record at or after a time (RFC 3339; records have whole seconds).
    At(SystemTime),
}

/// What a shard does when records were trimmed before they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnGap {
    /// Stop the route for that shard until an operator decides (`"stop"`).
    Stop,
    /// Record the gap and go on with the oldest record that is left (`"continue"`).
    Continue,
}

/// Reading of streams.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The pause between two reads of an idle shard, reached step by step (default 1 s).
    pub idle_interval: Duration,
    /// The least time between two reads of a shard, the per-shard rate (default 200 ms).
    pub min_interval: Duration,
    /// How often a stream's shards are listed anew (default 10 s).
    pub list_interval: Duration,
    /// DescribeStream calls a second for a source account (default 5, AWS's limit is 10).
    pub describe_rate: u32,
    /// What changes that were read and are not done may take, in MB, in all of the process (default 256).
    pub memory_mb: u32,
}

/// Writing to peers.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// Requests under way for one shard and peer (default 64).
    pub in_flight: usize,
    /// A request's time limit (default 5 s; well below the lease's duration, at most a third).
    pub request_timeout: Duration,
    /// The pause between two checkpoints of a shard that makes progress (default 1 s).
    pub checkpoint_interval: Duration,
}

/// Leases on shards.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    /// After this long without a renewal another worker may take a lease (default 30 s).
    pub duration: Duration,
    /// Pause between renewals (default a sixth of `duration`).
    pub renew_interval: Duration,
    /// Pause between two looks at the other workers (default 1 s).
    pub look_interval: Duration,
    /// How long a shard that is handed to another worker may take to come to rest; then it is given up as it is,
    /// and what was not checkpointed is read again (default 30 s).
    pub handoff_timeout: Duration,
    /// This worker's name (default: host name and a random suffix); must be unique among workers.
    pub worker: Option<String>,
}

/// What peers refuse for good.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetters {
    /// Letters of one key at one peer at most; beyond it the shard waits (default 1000).
    pub per_key: u32,
}

/// Metrics, health and logs.
#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// Address of `/metrics`, `/healthz`, `/readyz`; `None` with `listen = "off"` (default 127.0.0.1:9464).
    pub listen: Option<SocketAddr>,
    /// Without any progress for this long, `/healthz` fails (default 2 min).
    pub stall_after: Duration,
}

impl Config {
    /// The member of this name.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }

    /// Every route and peer or feed, by their names.
    pub fn lanes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.routes
            .iter()
            .flat_map(move |route| self.destinations(route).map(move |peer| (route.name.as_str(), peer)))
    }

    /// The names of a route's peers, and then of its feeds.
    pub fn destinations<'a>(&'a self, route: &'a Route) -> impl Iterator<Item = &'a str> {
        let peers = route.to.iter().map(|index| self.members[*index].name.as_str());
        peers.chain(route.feeds.iter().map(|index| self.feeds[*index].name.as_str()))
    }

    /// The route of this name.
    #[must_use]
    pub fn route(&self, name: &str) -> Option<&Route> {
        self.routes.iter().find(|route| route.name == name)
    }
}

impl Default for Read {
    fn default() -> Self {
        Self {
            idle_interval: Duration::from_secs(1),
            min_interval: Duration::from_millis(200),
            list_interval: Duration::from_secs(10),
            describe_rate: 5,
            memory_mb: 256,
        }
    }
}

impl Default for Write {
    fn default() -> Self {
        Self {
            in_flight: 64,
            request_timeout: Duration::from_secs(5),
            checkpoint_interval: Duration::from_secs(1),
        }
    }
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(30),
            renew_interval: Duration::from_secs(5),
            look_interval: Duration::from_secs(1),
            handoff_timeout: Duration::from_secs(30),
            worker: None,
        }
    }
}

impl Default for DeadLetters {
    fn default() -> Self {
        Self { per_key: 1000 }
    }
}

impl Default for Admin {
    fn default() -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 9464));
        Self { listen: Some(loopback), stall_after: Duration::from_secs(120) }
    }
}
