//! From what was read to what it means: pure.

use super::{Checkpoint, Look, Peer, Problem, Route, RouteLook, Shard, Status, Worker};
use crate::control::{GUARD, Scope};
use crate::loss;
use crate::stream::graph;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// What a look means. `moved` are the workers whose counters were seen to move, which live whatever their age;
/// the others live when they beat within `lease`.
#[must_use]
pub fn assemble(look: &Look, moved: &[&str], lease: Duration) -> Status {
    let mut workers: BTreeMap<String, Worker> = BTreeMap::new();
    for (name, row) in &look.workers {
        let age = look.now.duration_since(row.beat).unwrap_or_default();
        let alive = age < lease || moved.contains(&name.as_str());
        let shards = BTreeMap::new();
        workers.insert(name.clone(), Worker { alive, beat_seconds_ago: age.as_secs(), shards });
    }
    let mut problems = Vec::new();
    let mut routes = BTreeMap::new();
    for (name, route) in &look.routes {
        for owner in route.leases.iter().filter_map(|lease| lease.owner.as_ref()) {
            if let Some(worker) = workers.get_mut(owner) {
                *worker.shards.entry(name.clone()).or_default() += 1;
            }
        }
        let view = View { look, name, route, workers: &workers };
        let assembled = view.assemble();
        problems.extend(view.problems(&assembled));
        routes.insert(name.clone(), assembled);
    }
    Status { workers, routes, problems }
}

struct View<'a> {
    look: &'a Look,
    name: &'a str,
    route: &'a RouteLook,
    workers: &'a BTreeMap<String, Worker>,
}

impl View<'_> {
    fn assemble(&self) -> Route {
        let done = |lease: &&super::LeaseRow| {
            self.route.peers.iter().all(|peer| lease.peers.get(peer).is_some_and(|p| p.done))
        };
        let shards: Vec<Shard> =
            self.route.leases.iter().filter(|lease| !done(lease)).map(|l| self.shard(l)).collect();
        let peers = self.route.peers.iter().map(|peer| (peer.clone(), self.peer(peer))).collect();
        Route { done: self.route.leases.len() - shards.len(), shards, peers, gaps: self.route.gaps.clone() }
    }

    fn lives(&self, worker: &str) -> bool {
        self.workers.get(worker).is_some_and(|worker| worker.alive)
    }

    fn shard(&self, lease: &super::LeaseRow) -> Shard {
        let owner = lease.owner.as_ref().and_then(|owner| self.look.workers.get(owner));
        let stopped = owner.and_then(|row| row.progress.get(self.name)?.stopped.get(&lease.shard)).cloned();
        let checkpoint = |position: &crate::lease::row::PeerPosition| Checkpoint {
            sequence: position.position.sequence.as_ref().map(ToString::to_string),
            created: position.position.created.map(time),
            done: position.done,
        };
        let peers = lease.peers.iter().map(|(peer, position)| (peer.clone(), checkpoint(position))).collect();
        Shard { shard: lease.shard.clone(), owner: lease.owner.clone(), stopped, peers }
    }

    /// A peer is as far as the furthest behind: of what living workers say, and of the checkpoints of shards that
    /// nobody walks.
    fn peer(&self, peer: &str) -> Peer {
        let mut oldest: Option<SystemTime> = None;
        let mut older = |than: SystemTime| oldest = Some(oldest.map_or(than, |oldest| oldest.min(than)));
        let (mut pending, mut lanes) = (0, 0);
        for (name, row) in &self.look.workers {
            let progress = row.progress.get(self.name).and_then(|route| route.peers.get(peer));
            if let Some(progress) = progress.filter(|_| self.lives(name)) {
                progress.oldest.into_iter().for_each(&mut older);
                pending += progress.pending;
                lanes += progress.lanes;
            }
        }
        let mut held = 0;
        for lease in &self.route.leases {
            let position = lease.peers.get(peer);
            // A peer that has no part in a shard came to the route after it.
            if position.is_none_or(|position| position.done) {
                continue;
            }
            if lease.owner.as_ref().is_some_and(|owner| self.lives(owner)) {
                held += 1;
                continue;
            }
            let created = position.and_then(|position| position.position.created);
            older(created.or_else(|| graph::born(&lease.shard)).unwrap_or(self.look.now));
        }
        // Before the first beat after a shard was taken nothing is known of it.
        let caught_up = oldest.is_none() && lanes >= held && !self.route.leases.is_empty();
        let age = oldest.map(|oldest| self.look.now.duration_since(oldest).unwrap_or_default());
        Peer {
            caught_up,
            lag_seconds: age.unwrap_or_default().as_secs(),
            time_to_loss_seconds: loss::left(oldest, self.look.now).as_secs(),
            pending,
            paused: self.paused(peer),
            dead_letters: self.route.dead_letters.get(peer).copied().unwrap_or_default(),
        }
    }

    fn paused(&self, peer: &str) -> Option<crate::control::Pause> {
        let scope = |peer| Scope { route: self.name.to_owned(), peer };
        let pauses = &self.look.pauses;
        pauses.get(&scope(None)).or_else(|| pauses.get(&scope(Some(peer.to_owned())))).cloned()
    }

    fn problems(&self, route: &Route) -> Vec<Problem> {
        let name = self.name;
        let mut problems = Vec::new();
        let mut problem = |what: String, remedy: String| problems.push(Problem { what, remedy });
        for gap in route.gaps.iter().filter(|gap| gap.settled.is_none()) {
            problem(
                format!(
                    "route {name}: records of {} after {}, created between {} and {}, were lost unread",
                    gap.shard, gap.after, gap.from, gap.to
                ),
                format!(
                    "compare the members and copy what differs; to read on where the shard stopped, set on_gap = \
                     \"continue\" and restart; then: shardwalker status --settle-gaps {name}"
                ),
            );
        }
        for shard in &route.shards {
            if let Some(why) = &shard.stopped {
                let what = format!("route {name}: shard {} stopped: {why}", shard.shard);
                problem(
                    what,
                    "mend the cause and restart the worker that holds it (docs/operations.md)".to_owned(),
                );
            }
        }
        let unheld =
            route.shards.iter().filter(|shard| !shard.owner.as_ref().is_some_and(|owner| self.lives(owner)));
        if self.workers.values().all(|worker| !worker.alive) {
            problem(
                format!("route {name}: no worker lives; {} shards are not read", unheld.count()),
                "start one: shardwalker run".to_owned(),
            );
        }
        for (peer, status) in &route.peers {
            let letters = status.dead_letters;
            if letters.keys > 0 {
                problem(
                    format!(
                        "route {name}, peer {peer}: {} dead letters of {} keys",
                        letters.refused + letters.behind,
                        letters.keys
                    ),
                    format!(
                        "shardwalker dead-letters list --route {name} --peer {peer}; then retry or discard"
                    ),
                );
            }
            if let Some(pause) = status.paused.as_ref().filter(|pause| pause.by == GUARD) {
                let what = format!("route {name}, peer {peer}: {pause}");
                problem(what, format!("look at the source; then: shardwalker resume {name}"));
            }
        }
        problems
    }
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
