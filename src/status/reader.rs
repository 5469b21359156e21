//! Reading what the state table knows. Nothing here is decided.

use crate::backfill::{Picture, rows};
use crate::clock::Clock;
use crate::config::Config;
use crate::control::{self, Pause, Scope};
use crate::cutover::standing::walk;
use crate::dead_letters::{self, DeadLetters};
use crate::failure::Failure;
use crate::gaps::Gaps;
use crate::lease::fleet::FLEET;
use crate::lease::heart::BACKFILL;
use crate::lease::row::{self, PeerPosition};
use crate::shape::accepted::expected;
use crate::starts;
use crate::state::{EXPIRES, Row, SK, StateTable, get_number, get_text};
use crate::status::progress::{self, RouteProgress};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a worker's sort key begins with.
const WORKER: &str = "worker#";

/// A worker's row.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerRow {
    /// Moves with every beat.
    pub counter: u64,
    /// When it beat last, by its own clock.
    pub beat: SystemTime,
    /// How far it is, by route.
    pub progress: BTreeMap<String, RouteProgress>,
    /// Whether it is a process of a backfill, which walks no shards.
    pub backfill: bool,
}

/// A lease, as far as a status needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// The shard's id.
    pub shard: String,
    /// Who holds it.
    pub owner: Option<String>,
    /// How far each peer is.
    pub peers: BTreeMap<String, PeerPosition>,
}

/// What is known of one route.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RouteLook {
    /// Whether it is not walked now.
    pub idle: bool,
    /// Its peers, in the order of the config.
    pub peers: Vec<String>,
    /// The leases on its stream.
    pub leases: Vec<LeaseRow>,
    /// Its gaps.
    pub gaps: Vec<super::Gap>,
    /// The dead letters of each peer.
    pub dead_letters: BTreeMap<String, super::DeadLetters>,
    /// Its backfills.
    pub backfills: Vec<Picture>,
}

/// Everything that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// The time of the look.
    pub now: SystemTime,
    /// The workers by name.
    pub workers: BTreeMap<String, WorkerRow>,
    /// What is paused.
    pub pauses: BTreeMap<Scope, Pause>,
    /// The routes of the config.
    pub routes: BTreeMap<String, RouteLook>,
}

/// Reads the state table for a status.
pub struct Reader<'a> {
    /// The config.
    pub config: &'a Config,
    /// The state table.
    pub state: StateTable,
    /// The clock.
    pub clock: Clock,
}

impl Reader<'_> {
    /// Reads everything, strongly consistent row by row, though not all at one instant.
    ///
    /// # Errors
    /// The failure of a call.
    pub async fn look(&self) -> Result<Look, Failure> {
        let rows = self.state.rows(FLEET, "", &[]).await?;
        let worker = |row: &Row| {
            let name = get_text(row, SK)?.strip_prefix(WORKER)?.to_owned();
            let expires = Duration::from_secs(get_number(row, EXPIRES)?);
            let beat = UNIX_EPOCH + expires.saturating_sub(crate::lease::heart::FORGET);
            let counter = get_number(row, "counter").unwrap_or_default();
            let backfill = row.get(BACKFILL).and_then(|flag| flag.as_bool().ok()) == Some(&true);
            Some((name, WorkerRow { counter, beat, progress: progress::from_row(row), backfill }))
        };
        let mut routes = BTreeMap::new();
        for route in &self.config.routes {
            let peers = self.config.destinations(route).map(str::to_owned).collect();
            let look = match walk(route, &rows) {
                Some(_) => self.route(&route.name, peers).await?,
                None => RouteLook { idle: true, peers, ..RouteLook::default() },
            };
            routes.insert(route.name.clone(), look);
        }
        Ok(Look {
            now: self.clock.now(),
            workers: rows.iter().filter_map(worker).collect(),
            pauses: control::closed(&rows, &expected(self.config, |_| None)),
            routes,
        })
    }

    async fn route(&self, name: &str, peers: Vec<String>) -> Result<RouteLook, Failure> {
        let mut leases = Vec::new();
        if let Some(stream) = starts::newest(&self.state, name).await? {
            // What stands beside the leases in their partition is not a shard's.
            for row in self.state.rows(&format!("lease#{name}#{stream}"), "", &[]).await? {
                if let Ok(lease) = row::from_row(&row) {
                    leases.push(LeaseRow { shard: lease.shard, owner: lease.owner, peers: lease.peers });
                }
            }
        }
        let letters = DeadLetters::new(self.state.clone(), self.clock, self.config.dead_letters.per_key);
        let mut dead_letters = BTreeMap::new();
        for peer in &peers {
            let counts = letters.counts(name, peer).await?;
            let sum = |of: fn(&dead_letters::Count) -> u64| counts.iter().map(|(_, count)| of(count)).sum();
            let (all, refused): (u64, u64) = (sum(|count| count.letters), sum(|count| count.refused));
            let keys = counts.len() as u64;
            let behind = all.saturating_sub(refused);
            dead_letters.insert(peer.clone(), super::DeadLetters { keys, refused, behind });
        }
        let gaps = Gaps::new(self.state.clone(), self.clock).list(name).await?;
        let now = self.clock.now();
        let backfills = rows::list(&self.state, name).await?;
        let backfills = backfills.iter().map(|known| Picture::of(name, known, now)).collect();
        Ok(RouteLook { idle: false, peers, leases, gaps, dead_letters, backfills })
    }
}
