//! What a seed decides: the tables, the workers, the load, and everything that goes wrong, with its time.
//!
//! Drawn at once, before anything runs, so that what happens in a run never moves what else is drawn.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use shardwalker::sandbox::faults::{Effect, Rule, Weather};
use std::time::Duration;

/// A lease's duration, and a request's time limit.
pub(super) const LEASE: Duration = Duration::from_secs(12);
pub(super) const REQUEST: Duration = Duration::from_secs(4);

/// What the seed is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum World {
    /// One-way routes, each with a source of its own.
    Routes,
    /// One active-active group of two to four members: each is a source, whose peers are the others. Nothing is lost
    /// to the retention here, and no item is too large: what becomes of that is the same as on one-way routes.
    Group,
}

/// One run.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) world: World,
    /// How many peers each route has.
    pub(super) routes: Vec<usize>,
    pub(super) workers: usize,
    pub(super) shards: u32,
    pub(super) stream_limits: bool,
    pub(super) in_flight: usize,
    pub(super) events: Vec<(Duration, Event)>,
    pub(super) faults: Vec<Rule>,
    pub(super) weather: Weather,
    pub(super) network: Delays,
    /// How wrong the clocks of the sources' streams are, in seconds.
    pub(super) stream_clocks: Vec<i64>,
    /// Shards stop at what was lost, until an operator lets them go on at the end.
    pub(super) stops: bool,
    /// Whether each route leads to a feed too. Only where nothing is lost: a feed has what it read.
    pub(super) feeds: bool,
    /// Whether such routes have a shape, which lets everything through: what it makes of items is tested elsewhere.
    pub(super) shaped: bool,
}

/// One thing that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Write {
        route: usize,
        key: usize,
        act: Act,
    },
    /// Splits an open shard, or lets it roll over into one child.
    Reshard {
        route: usize,
        pick: usize,
        split: bool,
    },
    /// All open shards have reached their age.
    RollOver {
        route: usize,
    },
    /// Drops the records of a shard that every peer has done.
    Trim {
        route: usize,
        pick: usize,
    },
    /// Drops the records of a shard of which every peer has had some: whoever lags has lost the others.
    TrimUnread {
        route: usize,
        pick: usize,
    },
    /// Starts a worker whose clock is wrong by so many seconds.
    Start {
        worker: usize,
        skew: i64,
    },
    /// The clock of a worker's machine is set, and is wrong by so many seconds then.
    Step {
        worker: usize,
        skew: i64,
    },
    /// As `kill -9` would.
    Crash {
        worker: usize,
    },
    /// As SIGTERM would.
    Stop {
        worker: usize,
    },
    Pause {
        worker: usize,
    },
    Resume {
        worker: usize,
    },
    /// All workers crash, and come back when all that was in the streams has aged out.
    Outage,
    /// A peer refuses all writes from now on, or no more.
    Deny {
        route: usize,
        peer: usize,
    },
    Allow {
        route: usize,
        peer: usize,
    },
    /// The workers' calls are refused from now on, or no more.
    Close(Closed),
    Open(Closed),
}

/// What is closed to the workers, by policy or by an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Closed {
    /// Reading a source's stream is denied.
    Stream(usize),
    /// Nothing of a source answers, its stream neither.
    Source(usize),
    /// Everything is denied in the state table.
    State,
}

/// What an application does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Put,
    /// An item so large that no peer takes it with a stamp: a dead letter.
    PutLarge,
    Update,
    Delete,
    /// Updates the item so that it has a content again that the key had before, at whatever member: so many before
    /// the last one. Our attribute stays. In groups only, as all that follow.
    Back(usize),
    /// Reads an item, our attribute with it, and keeps it.
    Read,
    /// Puts the item that was read last back, with our attribute and with new content.
    WriteBack,
    /// As `Put`, by BatchWriteItem.
    BatchPut,
    /// As `Put`, by TransactWriteItems.
    TransactPut,
}

/// How long requests and answers are on their way, in milliseconds at most, and how often much longer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delays {
    pub(super) usual_ms: u64,
    /// How often a request or an answer takes seconds.
    pub(super) slow: f64,
    /// How often a request takes longer than its sender waits.
    pub(super) held: f64,
}

impl Delays {
    pub(super) const CALM: Self = Self { usual_ms: 3, slow: 0.0, held: 0.0 };
}

impl Plan {
    pub(super) fn of(world: World, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let draw = &mut random;
        let routes: Vec<usize> = match world {
            World::Routes => {
                let routes = if draw.random_ratio(1, 5) { 2 } else { 1 };
                (0..routes).map(|_| draw.random_range(1..=3)).collect()
            }
            World::Group => {
                let members = *[2, 2, 3, 3, 4].choose(draw).unwrap();
                vec![members - 1; members]
            }
        };
        let workers = draw.random_range(2..=4);
        let length = draw.random_range(15_000..45_000_u64);
        let mut events = Vec::new();
        match world {
            World::Routes => writes(draw, &routes, length, &mut events),
            World::Group => conflicts(draw, routes.len(), length, &mut events),
        }
        streams(draw, routes.len(), length, &mut events);
        crews(draw, workers, length, &mut events);
        denials(draw, &routes, length, &mut events);
        steps(draw, workers, length, &mut events);
        if world == World::Routes && draw.random_ratio(1, 20) {
            events.push((at(draw, length), Event::Outage));
        }
        // Stable: what has the same time stays in the order in which it was drawn.
        events.sort_by_key(|(at, _)| *at);
        let mut plan = Self {
            seed,
            world,
            stream_clocks: vec![0; routes.len()],
            stops: false,
            feeds: false,
            shaped: false,
            routes,
            workers,
            shards: draw.random_range(1..=3),
            stream_limits: draw.random_ratio(1, 3),
            in_flight: *[1, 4, 64].choose(draw).unwrap(),
            events,
            faults: faults(draw),
            weather: weather(draw),
            network: Delays {
                usual_ms: *[0, 5, 50, 400].choose(draw).unwrap(),
                slow: *[0.0, 0.01, 0.05].choose(draw).unwrap(),
                held: *[0.0, 0.005, 0.02].choose(draw).unwrap(),
            },
        };
        if world == World::Group && draw.random_ratio(1, 4) {
            plan.set_wrong(draw);
        }
        closures(draw, plan.routes.len(), length, &mut plan.events);
        if world == World::Routes {
            losses(draw, plan.routes.len(), length, &mut plan.events);
            plan.stops = plan.loses() && draw.random();
            plan.feeds = draw.random_ratio(1, 4) && !plan.loses();
            plan.shaped = plan.feeds && draw.random();
        }
        plan
    }
}

impl Plan {
    /// A group of two with one worker, in which nothing happens but these events.
    pub(super) fn calm(seed: u64, events: Vec<(Duration, Event)>) -> Self {
        Self {
            seed,
            world: World::Group,
            routes: vec![1, 1],
            workers: 1,
            shards: 1,
            stream_limits: false,
            in_flight: 4,
            events,
            faults: Vec::new(),
            weather: Weather::default(),
            network: Delays { usual_ms: 50, slow: 0.0, held: 0.0 },
            stream_clocks: vec![0; 2],
            stops: false,
            feeds: false,
            shaped: false,
        }
    }

    /// Members' clocks are wrong: ahead by anything; behind, together with what workers' are ahead, by less than half
    /// the drift that is believed.
    fn set_wrong(&mut self, draw: &mut StdRng) {
        for clock in &mut self.stream_clocks {
            *clock = *[0, 0, -12, 20, 90, 240].choose(draw).unwrap();
        }
        for (_, event) in &mut self.events {
            if let Event::Start { skew, .. } | Event::Step { skew, .. } = event {
                *skew /= 4;
            }
        }
    }

    /// Whether records are lost unread.
    pub(super) fn loses(&self) -> bool {
        self.events.iter().any(|(_, event)| matches!(event, Event::Outage | Event::TrimUnread { .. }))
    }
}

fn at(draw: &mut StdRng, length: u64) -> Duration {
    Duration::from_millis(draw.random_range(0..length))
}

/// A few keys that change again and again, many that change once or twice; bursts and pauses.
fn writes(draw: &mut StdRng, routes: &[usize], length: u64, events: &mut Vec<(Duration, Event)>) {
    let hot = draw.random_range(1..=4);
    let cold = draw.random_range(4..=30);
    let deletes = *[0.1, 0.3, 0.5].choose(draw).unwrap();
    let count = draw.random_range(30..=120);
    let large = draw.random_ratio(1, 12).then(|| draw.random_range(0..count));
    let mut begun = Duration::ZERO;
    for write in 0..count {
        // Some before the first worker, then bursts.
        if write > count / 8 && draw.random_ratio(1, 4) {
            begun = at(draw, length);
        }
        begun += Duration::from_millis(*[0, 0, 1, 30, 400].choose(draw).unwrap());
        let key = if draw.random_ratio(2, 3) {
            draw.random_range(0..hot)
        } else {
            hot + draw.random_range(0..cold)
        };
        let act = match draw.random_bool(deletes) {
            _ if large == Some(write) => Act::PutLarge,
            true => Act::Delete,
            false if draw.random_ratio(1, 3) => Act::Update,
            false => Act::Put,
        };
        let route = draw.random_range(0..routes.len());
        events.push((begun, Event::Write { route, key, act }));
    }
}

/// Applications of all members at few keys, often at the same time.
fn conflicts(draw: &mut StdRng, members: usize, length: u64, events: &mut Vec<(Duration, Event)>) {
    let hot = draw.random_range(1..=3);
    let cold = draw.random_range(2..=12);
    let deletes = *[0.1, 0.2, 0.4].choose(draw).unwrap();
    let count = draw.random_range(20..=80);
    let mut begun = Duration::ZERO;
    for write in 0..count {
        if write > count / 8 && draw.random_ratio(1, 4) {
            begun = at(draw, length);
        }
        begun += Duration::from_millis(*[0, 0, 5, 100, 700].choose(draw).unwrap());
        let key = if draw.random_ratio(2, 3) {
            draw.random_range(0..hot)
        } else {
            hot + draw.random_range(0..cold)
        };
        let act = match draw.random_range(0..20) {
            _ if draw.random_bool(deletes) => Act::Delete,
            0..6 => Act::Put,
            6..12 => Act::Update,
            12..16 => Act::Back(draw.random_range(1..=3)),
            16..18 => Act::WriteBack,
            18 => Act::BatchPut,
            _ => Act::TransactPut,
        };
        let route = draw.random_range(0..members);
        if act == Act::WriteBack {
            events.push((begun, Event::Write { route, key, act: Act::Read }));
            begun += Duration::from_millis(*[0, 0, 50, 2_000].choose(draw).unwrap());
        }
        events.push((begun, Event::Write { route, key, act }));
    }
}

fn streams(draw: &mut StdRng, routes: usize, length: u64, events: &mut Vec<(Duration, Event)>) {
    for _ in 0..draw.random_range(0..=4) {
        let (route, pick) = (draw.random_range(0..routes), draw.random_range(0..100));
        let split = draw.random();
        events.push((at(draw, length), Event::Reshard { route, pick, split }));
    }
    if draw.random_ratio(1, 4) {
        let (route, age) = (draw.random_range(0..routes), draw.random_range(5_000..20_000));
        let times = (age..length).step_by(age as usize).map(Duration::from_millis);
        events.extend(times.map(|at| (at, Event::RollOver { route })));
    }
    for _ in 0..draw.random_range(0..=2) {
        let (route, pick) = (draw.random_range(0..routes), draw.random_range(0..100));
        events.push((at(draw, length), Event::Trim { route, pick }));
    }
}

/// The lives of the workers.
fn crews(draw: &mut StdRng, workers: usize, length: u64, events: &mut Vec<(Duration, Event)>) {
    for worker in 0..workers {
        let first = Duration::from_millis(*[500, 500, draw.random_range(500..length)].choose(draw).unwrap());
        events.push((first, Event::Start { worker, skew: skew(draw) }));
        let mut now = first;
        for _ in 0..draw.random_range(0..=2) {
            now += at(draw, length / 2);
            let away = Duration::from_millis(draw.random_range(200..25_000));
            let (gone, back) = match draw.random_range(0..5) {
                0 | 1 => (Event::Pause { worker }, Event::Resume { worker }),
                2 => (Event::Stop { worker }, Event::Start { worker, skew: skew(draw) }),
                _ => (Event::Crash { worker }, Event::Start { worker, skew: skew(draw) }),
            };
            events.push((now, gone));
            now += away;
            events.push((now, back));
        }
    }
}

/// Clocks are wrong by less than the drift that is believed, which the protocol asks for.
fn skew(draw: &mut StdRng) -> i64 {
    *[0, 0, -50, 50, draw.random_range(-50..=50)].choose(draw).unwrap()
}

fn steps(draw: &mut StdRng, workers: usize, length: u64, events: &mut Vec<(Duration, Event)>) {
    for _ in 0..draw.random_range(0..=3) {
        let (worker, skew) = (draw.random_range(0..workers), skew(draw));
        events.push((at(draw, length), Event::Step { worker, skew }));
    }
}

fn denials(draw: &mut StdRng, routes: &[usize], length: u64, events: &mut Vec<(Duration, Event)>) {
    for _ in 0..draw.random_range(0..=1) {
        let route = draw.random_range(0..routes.len());
        let peer = draw.random_range(0..routes[route]);
        let begun = at(draw, length);
        let ended = begun + Duration::from_millis(draw.random_range(500..15_000));
        events.push((begun, Event::Deny { route, peer }));
        events.push((ended, Event::Allow { route, peer }));
    }
}

/// Drawn last, and so are all that are added: what a seed decided before stays.
fn closures(draw: &mut StdRng, routes: usize, length: u64, events: &mut Vec<(Duration, Event)>) {
    if !draw.random_ratio(1, 3) {
        return;
    }
    let route = draw.random_range(0..routes);
    let closed = *[Closed::Stream(route), Closed::Source(route), Closed::State].choose(draw).unwrap();
    let begun = at(draw, length);
    let ended = begun + Duration::from_millis(draw.random_range(500..15_000));
    events.extend([(begun, Event::Close(closed)), (ended, Event::Open(closed))]);
    events.sort_by_key(|(at, _)| *at);
}

/// Records that are gone before they were read, most often while a peer refuses everything.
fn losses(draw: &mut StdRng, routes: usize, length: u64, events: &mut Vec<(Duration, Event)>) {
    if !draw.random_ratio(1, 8) {
        return;
    }
    for _ in 0..draw.random_range(1..=3) {
        let denied = events.iter().find_map(|(at, event)| match event {
            Event::Deny { route, .. } => Some((*at, *route)),
            _ => None,
        });
        let (route, begun) = match denied {
            Some((begun, route)) if draw.random_ratio(3, 4) => {
                (route, begun + Duration::from_millis(draw.random_range(0..15_000)))
            }
            _ => (draw.random_range(0..routes), at(draw, length)),
        };
        events.push((begun, Event::TrimUnread { route, pick: draw.random_range(0..100) }));
    }
    events.sort_by_key(|(at, _)| *at);
}

/// Each kind of fault in half of the runs, rare or frequent.
fn faults(draw: &mut StdRng) -> Vec<Rule> {
    let kinds = [
        Effect::DropRequest,
        Effect::DropAnswer,
        Effect::Throttle,
        Effect::ProvisionedThroughputExceeded,
        Effect::InternalError,
        Effect::InternalErrorAfter,
        Effect::Unavailable,
        Effect::TransactionConflict,
    ];
    let mut rules = Vec::new();
    for effect in kinds {
        let often = *[0.0, 0.0, 0.01, 0.05].choose(draw).unwrap();
        if often > 0.0 {
            rules.push(Rule::new(effect).probability(often));
        }
    }
    if draw.random() {
        rules.push(Rule::new(Effect::ExpireIterator).operation("GetRecords").probability(0.1));
    }
    rules
}

fn weather(draw: &mut StdRng) -> Weather {
    let late = |draw: &mut StdRng| if draw.random() { draw.random_range(0..5_000) } else { 0 };
    Weather {
        empty_pages: *[0.0, 0.2].choose(draw).unwrap(),
        short_listings: *[0.0, 0.3].choose(draw).unwrap(),
        children_listed_after_ms: late(draw),
        closed_listed_after_ms: late(draw),
        policy_delay_ms: 0,
    }
}
