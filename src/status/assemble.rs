//! From what was read to what it means: pure.

use super::{Checkpoint, Look, Peer, Problem, Route, RouteLook, Shard, Status, Worker};
use crate::control::{GUARD, Scope};
use crate::loss;
use crate::shape::accepted::SHAPE;
use crate::stream::graph;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

/// What a look means. `moved` are the workers whose counters were seen to move, which live whatever their age;
/// the others live when they beat within `lease`.
#[must_use]
pub fn assemble(look: &Look, moved: &[&str], lease: Duration) -> Status {
    let mut workers: BTreeMap<String, Worker> = BTreeMap::new();
    for (name, row) in &look.workers {
        let age = look.now.duration_since(row.beat).unwrap_or_default();
        let alive = age < lease || moved.contains(&name.as_str());
        let (shards, backfill) = (BTreeMap::new(), row.backfill);
        workers.insert(name.clone(), Worker { alive, beat_seconds_ago: age.as_secs(), shards, backfill });
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
        let (gaps, backfills) = (self.route.gaps.clone(), self.route.backfills.clone());
        Route {
            idle: self.route.idle,
            done: self.route.leases.len() - shards.len(),
            shards,
            peers,
            gaps,
            backfills,
        }
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
        if route.idle {
            return problems;
        }
        let mut problem = |what: String, remedy: String| problems.push(Problem { what, remedy });
        for gap in route.gaps.iter().filter(|gap| gap.settled.is_none()) {
            let whose =
                if gap.peers.is_empty() { String::new() } else { format!(" for {}", gap.peers.join(", ")) };
            problem(
                format!(
                    "route {name}: records of {} after {}, created between {} and {}, were lost unread{whose}",
                    gap.shard, gap.after, gap.from, gap.to
                ),
                format!(
                    "to read on where the shard stopped, set on_gap = \"continue\" and restart; then mend what was \
                     lost: shardwalker verify, --repair; then: shardwalker status --settle-gaps {name}"
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
        let troubles: BTreeSet<(&String, &String)> = (self.look.workers.iter())
            .filter(|(worker, _)| self.lives(worker))
            .filter_map(|(worker, row)| Some((row.progress.get(name)?.trouble.as_ref()?, worker)))
            .collect();
        for (trouble, worker) in troubles {
            let remedy = "mend the cause; nothing more comes until then (docs/operations.md)".to_owned();
            problem(format!("route {name}: {trouble}, says worker {worker}"), remedy);
        }
        let unheld =
            route.shards.iter().filter(|shard| !shard.owner.as_ref().is_some_and(|owner| self.lives(owner)));
        if self.workers.values().all(|worker| !worker.alive || worker.backfill) {
            problem(
                format!("route {name}: no worker lives; {} shards are not read", unheld.count()),
                "start one: shardwalker run".to_owned(),
            );
        }
        for backfill in &route.backfills {
            let flag = backfill.peer.as_ref().map(|peer| format!(" --peer {peer}")).unwrap_or_default();
            if let Some(why) = &backfill.why {
                problem(format!("route {name}: a backfill stopped"), why.clone());
            } else if backfill.state == "running" && !backfill.owners.iter().any(|owner| self.lives(owner)) {
                let done =
                    format!("{} of {} segments are done", backfill.segments.done, backfill.segments.all);
                problem(
                    format!("route {name}: nobody works on the backfill that was begun; {done}"),
                    format!("go on with: shardwalker backfill {name}{flag}"),
                );
            }
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
            if let Some(pause) = status.paused.as_ref().filter(|pause| pause.by == SHAPE) {
                let what = format!("route {name}, peer {peer}: nothing is written: {}", pause.why);
                problem(
                    what,
                    format!("shardwalker backfill {name} --restart, or: shardwalker shape accept {name}"),
                );
            }
        }
        problems
    }
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backfill::Picture;
    use crate::backfill::counts::Totals;
    use crate::backfill::rows::{Job, Known, Segment, State};
    use crate::control::Pause;
    use crate::lane::Position;
    use crate::lease::row::PeerPosition;
    use crate::peer::OnExisting;
    use crate::status::progress::{PeerProgress, RouteProgress};
    use crate::status::{DeadLetters, Gap, LeaseRow, WorkerRow};
    use std::time::UNIX_EPOCH;

    const LEASE: Duration = Duration::from_secs(30);

    fn at(seconds_ago: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 - seconds_ago)
    }

    fn lease(shard: &str, owner: Option<&str>, created: Option<u64>, done: bool) -> LeaseRow {
        let position = Position { created: created.map(at), ..Position::default() };
        let peers = BTreeMap::from([("b".to_owned(), PeerPosition { position, done })]);
        LeaseRow { shard: shard.to_owned(), owner: owner.map(str::to_owned), peers }
    }

    fn worker(beat: u64, oldest: Option<u64>, lanes: u64) -> WorkerRow {
        let peer = PeerProgress { oldest: oldest.map(at), pending: 3, lanes };
        let peers = BTreeMap::from([("b".to_owned(), peer)]);
        let route = RouteProgress { peers, ..RouteProgress::default() };
        let progress = BTreeMap::from([("copy".to_owned(), route)]);
        WorkerRow { counter: 1, beat: at(beat), progress, backfill: false }
    }

    /// One worker that holds one shard and has all of it, and one shard that is done.
    fn fine() -> Look {
        let leases = vec![lease("s0", None, Some(500), true), lease("s1", Some("w"), Some(9), false)];
        let route = RouteLook { peers: vec!["b".to_owned()], leases, ..RouteLook::default() };
        Look {
            now: at(0),
            workers: BTreeMap::from([("w".to_owned(), worker(5, None, 1))]),
            pauses: BTreeMap::new(),
            routes: BTreeMap::from([("copy".to_owned(), route)]),
        }
    }

    fn peer(look: &Look) -> Peer {
        assemble(look, &[], LEASE).routes["copy"].peers["b"].clone()
    }

    fn problems(look: &Look) -> Vec<String> {
        assemble(look, &[], LEASE).problems.into_iter().map(|problem| problem.what).collect()
    }

    #[test]
    fn what_stands_against_a_route_needs_an_operator_while_its_worker_lives() {
        let mut look = fine();
        let told = look.workers.get_mut("w").unwrap().progress.get_mut("copy").unwrap();
        told.trouble = Some("the stream is off".to_owned());
        assert_eq!(problems(&look), ["route copy: the stream is off, says worker w"]);
        look.workers.get_mut("w").unwrap().beat = at(5000);
        assert!(!problems(&look).iter().any(|problem| problem.contains("the stream is off")));
    }

    #[test]
    fn when_all_is_well_nothing_needs_an_operator() {
        let status = assemble(&fine(), &[], LEASE);
        assert!(status.caught_up() && status.problems.is_empty(), "{status:?}");
        let worker = &status.workers["w"];
        assert_eq!((worker.alive, worker.beat_seconds_ago, worker.shards["copy"]), (true, 5, 1));
        let route = &status.routes["copy"];
        assert_eq!((route.shards.len(), route.done), (1, 1));
        let peer = &route.peers["b"];
        assert_eq!((peer.lag_seconds, peer.time_to_loss_seconds, peer.pending), (0, 86_400, 3));
    }

    #[test]
    fn the_furthest_behind_decides() {
        let mut look = fine();
        look.workers.insert("v".to_owned(), worker(1, Some(7200), 0));
        let state = peer(&look);
        assert_eq!((state.caught_up, state.lag_seconds, state.time_to_loss_seconds), (false, 7200, 79_200));
        // A shard that nobody walks is as far as its checkpoint.
        let mut look = fine();
        look.routes.get_mut("copy").unwrap().leases.push(lease("s2", None, Some(60), false));
        assert_eq!((peer(&look).caught_up, peer(&look).lag_seconds), (false, 60));
        // Nothing is known yet of a shard that was just taken.
        let mut look = fine();
        look.routes.get_mut("copy").unwrap().leases.push(lease("s2", Some("w"), None, false));
        assert!(!peer(&look).caught_up);
    }

    #[test]
    fn a_worker_that_seems_dead_says_nothing_unless_its_counter_moved() {
        let mut look = fine();
        look.workers.insert("w".to_owned(), worker(40, None, 1));
        let state = peer(&look);
        assert_eq!((state.caught_up, state.lag_seconds), (false, 9), "its shard's checkpoint counts");
        assert_eq!(problems(&look), ["route copy: no worker lives; 1 shards are not read"]);
        assert!(assemble(&look, &["w"], LEASE).caught_up(), "clocks differ");
    }

    #[test]
    fn a_backfill_that_stands_still_is_named_and_is_no_worker() {
        let job = |state| Job {
            run: 1,
            source: "scan".to_owned(),
            table: "id".to_owned(),
            peers: std::collections::BTreeMap::new(),
            stream: "label".to_owned(),
            shape: String::new(),
            segments: 2,
            existing: OnExisting::Fail,
            items: 10,
            bytes: 100,
            begun: at(60),
            state,
            since: at(60),
        };
        let segment = |owner: Option<&str>| Segment {
            number: 0,
            owner: owner.map(str::to_owned),
            epoch: 1,
            cursor: None,
            done: false,
            totals: Totals::default(),
        };
        let mut look = fine();
        let mut with = |state, owner, worker: WorkerRow| {
            let known = Known { peer: None, job: job(state), segments: vec![segment(owner)] };
            let route = look.routes.get_mut("copy").unwrap();
            route.backfills = vec![Picture::of("copy", &known, at(0))];
            look.workers.insert("backfill-w".to_owned(), worker);
            (problems(&look), assemble(&look, &[], LEASE).backfilled())
        };
        let process = |beat| WorkerRow { backfill: true, ..worker(beat, None, 0) };
        assert_eq!(with(State::Running, Some("backfill-w"), process(1)), (vec![], false));
        let still =
            "route copy: nobody works on the backfill that was begun; 0 of 2 segments are done".to_owned();
        assert_eq!(with(State::Running, Some("backfill-w"), process(500)).0, std::slice::from_ref(&still));
        assert_eq!(with(State::Running, None, process(1)).0, [still]);
        let stopped = with(State::Stopped("decide".to_owned()), None, process(1));
        assert_eq!(stopped, (vec!["route copy: a backfill stopped".to_owned()], false));
        assert_eq!(with(State::Done, None, process(1)), (vec![], true));
        look.workers.remove("w");
        assert!(problems(&look)[0].contains("no worker lives"), "a backfill applies no changes");
    }

    #[test]
    fn what_needs_an_operator_is_named() {
        let mut look = fine();
        let route = look.routes.get_mut("copy").unwrap();
        let gap = |settled: Option<&str>| {
            let text = |text: &str| text.to_owned();
            let settled = settled.map(str::to_owned);
            let (shard, after, found) = (text("s1"), text("5"), text("now"));
            Gap {
                shard,
                after,
                from: text("then"),
                to: text("now"),
                peers: vec![text("b"), text("c")],
                found,
                settled,
            }
        };
        route.gaps = vec![gap(None), gap(Some("by me"))];
        route.dead_letters.insert("b".to_owned(), DeadLetters { keys: 2, refused: 2, behind: 5 });
        let pause = |by: &str| Pause { why: "x".to_owned(), by: by.to_owned(), since: "s".to_owned() };
        look.pauses.insert(Scope { route: "copy".to_owned(), peer: None }, pause(GUARD));
        let progress = look.workers.get_mut("w").unwrap().progress.get_mut("copy").unwrap();
        progress.stopped.insert("s1".to_owned(), "a record that cannot be decoded".to_owned());
        assert_eq!(
            problems(&look),
            [
                "route copy: records of s1 after 5, created between then and now, were lost unread for b, c",
                "route copy: shard s1 stopped: a record that cannot be decoded",
                "route copy, peer b: 7 dead letters of 2 keys",
                "route copy, peer b: paused since s by guard: x",
            ]
        );
        // An operator's own pause is no problem, and is shown.
        look.pauses.insert(Scope { route: "copy".to_owned(), peer: None }, pause("me"));
        assert_eq!(problems(&look).len(), 3);
        assert_eq!(peer(&look).paused.map(|pause| pause.by).as_deref(), Some("me"));
    }
}
