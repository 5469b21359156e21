//! A model of leases and checkpoints, searched exhaustively within bounds.
//!
//! One shard, a row, and workers that beat, look at each other, take, apply, checkpoint, hand over, crash and
//! pause for longer than a lease. Requests are lost, their answers are lost, and they arrive late. Who takes what
//! is decided by the planner itself. Every worker has a clock of its own: one tick at a time for all, so that the
//! differences of monotonic clocks are taken for small against the margin, as the service takes them.
//!
//! Left out: the lister (its row is taken like a lease, and listing twice is harmless), other shards (their rows
//! are independent), and what checkpoints mean for the peers (that is the protocol's model).

use shardwalker::change::SequenceNumber;
use shardwalker::lane::Position;
use shardwalker::lease::fleet::Fellow;
use shardwalker::lease::plan::{self, Action as Planned, Take, View};
use shardwalker::lease::row::{Lease, PeerPosition};
use shardwalker::stream::graph::Shard;
use shardwalker::version::Hlc;
use stateright::{Checker, Model, Property};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

/// A lease's duration, in ticks.
const DURATION: u8 = 3;
/// A request's time limit. A worker's right to write ends so much before its lease may be taken.
const TIMEOUT: u8 = 1;
const MARGIN: u8 = DURATION - TIMEOUT;
/// Records of the shard, of different keys: two may be under way at a time, and done in either order.
const RECORDS: u8 = 2;
const WORKERS: usize = 2;
const NAMES: [&str; WORKERS] = ["a", "b"];

struct Leases {
    /// Whether changes of a row are conditional on its epoch.
    epochs: bool,
    /// Whether a frontier waits for the records before one that is done.
    contiguous: bool,
    ticks: u8,
    takes: u8,
    pauses: u8,
    crashes: u8,
    /// Requests or answers that are lost.
    losses: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    row: Row,
    /// The records that the peer has, a bit each.
    applied: u8,
    workers: [Worker; WORKERS],
    ticks: u8,
    pauses: u8,
    crashes: u8,
    losses: u8,
    /// A write under an epoch that was over changed the row.
    stale_write: bool,
    /// A lease was taken from a worker that ran and had not stopped by itself.
    torn_away: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Row {
    owner: Option<usize>,
    epoch: u8,
    checkpoint: u8,
    heir: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Worker {
    run: Run,
    /// Ticks since the last beat was begun that is known to have succeeded, up to the margin.
    beaten: u8,
    walk: Option<Walk>,
    /// A checkpoint or a release under way; it may arrive at any time.
    sent: Option<Sent>,
    /// For how long it has seen the other's counter stand still.
    still: u8,
    /// The other's counter has moved since this one looked. Only whether it moved counts, never its value.
    moved: bool,
    /// What it made of that when it last looked: the epoch up to which leases of the other may be taken.
    dead: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Run {
    #[default]
    Running,
    Paused,
    /// It runs again, and has not looked at its clock yet.
    Woken,
    Crashed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Walk {
    epoch: u8,
    /// How many records are done without a hole, from the checkpoint that it began with.
    frontier: u8,
    /// Whether the record after the next is done, and the next is not.
    ahead: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sent {
    epoch: u8,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum What {
    Checkpoint(u8),
    Release(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Tick,
    /// It was begun just now, or so long ago that its answer is just in time; an answer may be lost.
    Beat {
        me: usize,
        begun: u8,
        answered: bool,
    },
    Look(usize),
    Take {
        me: usize,
        answered: bool,
    },
    /// A record is done: the next one, or the one after it.
    Apply {
        me: usize,
        ahead: bool,
    },
    Checkpoint(usize),
    Release(usize, usize),
    Arrives {
        me: usize,
        answered: bool,
    },
    IsLost(usize),
    Pause(usize),
    Wake(usize),
    Crash(usize),
}

impl Worker {
    fn runs(&self) -> bool {
        matches!(self.run, Run::Running | Run::Woken)
    }
}

/// The row as the service reads it.
fn lease(row: Row) -> Lease {
    let position = Position {
        sequence: (row.checkpoint > 0).then(|| SequenceNumber::parse(&row.checkpoint.to_string())).flatten(),
        hlc: Hlc::from_millis(u64::from(row.checkpoint)),
        created: None,
    };
    let peers = BTreeMap::from([("peer".to_owned(), PeerPosition { position, done: false })]);
    let name = |worker: usize| NAMES[worker].to_owned();
    Lease {
        owner: row.owner.map(name),
        epoch: u64::from(row.epoch),
        handoff: row.heir.map(name),
        peers,
        ..Lease::new(&Shard { id: "shardId-1".to_owned(), parent: None, closed: false })
    }
}

/// What the planner makes of the row. A row that was read earlier is left out: its epoch is over, and the take's
/// condition fails.
fn take(me: usize, worker: &Worker, row: Row) -> Option<Take> {
    let other = NAMES[1 - me];
    let before_the_look = row.owner.is_none() || worker.dead.is_some_and(|epoch| row.epoch <= epoch);
    let row = lease(row);
    let leases = BTreeMap::from([(row.shard.clone(), row)]);
    let ticks = |ticks: u8| Duration::from_secs(u64::from(ticks));
    let fellows = [Fellow { name: other.to_owned(), shards: 1, load: 1.0 }];
    let actions = plan::plan(&View {
        leases: &leases,
        known_for: &BTreeMap::new(),
        // That others wait for an heir is a courtesy: nothing may depend on it.
        free_for: &before_the_look.then_some(("shardId-1", ticks(DURATION))).into_iter().collect(),
        listed_for: &BTreeSet::from(["peer".to_owned()]),
        peers: &["peer"],
        me: NAMES[me],
        dead: &worker.dead.map(|_| other.to_owned()).into_iter().collect(),
        walking: &BTreeMap::new(),
        finished: &BTreeSet::new(),
        fellows: &fellows[usize::from(worker.dead.is_some())..],
        load: 0.0,
        patience: ticks(DURATION),
        begun: UNIX_EPOCH,
        now: UNIX_EPOCH,
    });
    actions.into_iter().find_map(|action| match action {
        Planned::Take(take) => Some(*take),
        Planned::Join { .. } => None,
    })
}

impl Leases {
    /// Whether the row takes a write of this owner and epoch.
    fn accepts(&self, row: Row, me: usize, epoch: u8) -> bool {
        !self.epochs || (row.owner == Some(me) && row.epoch == epoch)
    }

    fn tick(state: &mut State) {
        state.ticks += 1;
        for worker in &mut state.workers {
            worker.beaten = (worker.beaten + 1).min(MARGIN);
            worker.still = (worker.still + 1).min(DURATION);
            if worker.run == Run::Crashed {
                // Nobody asks what it would know.
                (worker.beaten, worker.still) = (0, 0);
            }
            if worker.runs() {
                worker.run = Run::Running;
                // The fence.
                if worker.beaten >= MARGIN {
                    worker.walk = None;
                }
            }
        }
    }

    fn take(state: &mut State, me: usize, answered: bool) -> Option<()> {
        let mut take = take(me, &state.workers[me], state.row)?;
        if let Some(owner) = state.row.owner.filter(|owner| *owner != me) {
            let worker = &state.workers[owner];
            state.torn_away |= worker.run == Run::Running && worker.walk.is_some();
        }
        state.row = Row { owner: Some(me), epoch: state.row.epoch + 1, heir: None, ..state.row };
        if answered {
            take.refresh(&lease(state.row));
            let start = take.starts["peer"].position.sequence.as_ref();
            let frontier = start.map_or(0, |sequence| sequence.as_str().parse().unwrap());
            state.workers[me].walk = Some(Walk { epoch: state.row.epoch, frontier, ahead: false });
        }
        state.losses += u8::from(!answered);
        Some(())
    }

    fn arrives(&self, state: &mut State, me: usize, answered: bool) -> Option<()> {
        let sent = state.workers[me].sent.take()?;
        state.losses += u8::from(!answered);
        let before = state.row;
        let accepted = self.accepts(before, me, sent.epoch);
        match sent.what {
            // Positions never go back, whoever writes.
            What::Checkpoint(at) if accepted && at >= before.checkpoint => state.row.checkpoint = at,
            What::Release(heir) if accepted => (state.row.owner, state.row.heir) = (None, Some(heir)),
            What::Checkpoint(_) | What::Release(_) => {
                let worker = &mut state.workers[me];
                if answered && worker.runs() && worker.walk.is_some_and(|walk| walk.epoch == sent.epoch) {
                    worker.walk = None;
                }
            }
        }
        state.stale_write |= state.row != before && before.epoch > sent.epoch;
        Some(())
    }
}

impl Model for Leases {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let worker = Worker { beaten: MARGIN, ..Worker::default() };
        vec![State {
            row: Row::default(),
            applied: 0,
            workers: [worker; WORKERS],
            ticks: 0,
            pauses: 0,
            crashes: 0,
            losses: 0,
            stale_write: false,
            torn_away: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.ticks < self.ticks {
            actions.push(Action::Tick);
        }
        let lossy = state.losses < self.losses;
        for (me, worker) in state.workers.iter().enumerate() {
            if worker.sent.is_some() {
                actions.push(Action::Arrives { me, answered: true });
                if lossy {
                    actions.extend([Action::Arrives { me, answered: false }, Action::IsLost(me)]);
                }
            }
            if worker.run == Run::Paused {
                actions.push(Action::Wake(me));
            }
            if !worker.runs() {
                continue;
            }
            actions.push(Action::Beat { me, begun: 0, answered: true });
            actions.extend((worker.beaten > TIMEOUT).then_some(Action::Beat {
                me,
                begun: TIMEOUT,
                answered: true,
            }));
            actions.extend(lossy.then_some(Action::Beat { me, begun: 0, answered: false }));
            actions.push(Action::Look(me));
            if let Some(walk) = worker.walk {
                actions.extend((walk.frontier < RECORDS).then_some(Action::Apply { me, ahead: false }));
                let second = !walk.ahead && walk.frontier + 1 < RECORDS;
                actions.extend(second.then_some(Action::Apply { me, ahead: true }));
                if worker.sent.is_none() {
                    actions.extend((walk.frontier > 0).then_some(Action::Checkpoint(me)));
                    actions.push(Action::Release(me, 1 - me));
                }
            } else if worker.beaten < MARGIN && state.row.epoch < self.takes {
                actions.push(Action::Take { me, answered: true });
                actions.extend(lossy.then_some(Action::Take { me, answered: false }));
            }
            // Both begin alike: it is enough that one of them fails.
            if me == 0 {
                actions.extend((state.pauses < self.pauses).then_some(Action::Pause(me)));
                actions.extend((state.crashes < self.crashes).then_some(Action::Crash(me)));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Tick => Self::tick(&mut state),
            Action::Beat { me, begun, answered } => {
                let worker = &mut state.workers[me];
                // A right that has lapsed is given up before a new one begins.
                if worker.beaten >= MARGIN {
                    worker.walk = None;
                }
                if answered {
                    worker.beaten = begun;
                }
                state.losses += u8::from(!answered);
                state.workers[1 - me].moved = true;
            }
            Action::Look(me) => {
                let epoch = state.row.epoch;
                let worker = &mut state.workers[me];
                if std::mem::take(&mut worker.moved) {
                    worker.still = 0;
                }
                worker.dead = (worker.still >= DURATION).then_some(epoch);
            }
            Action::Take { me, answered } => Self::take(&mut state, me, answered)?,
            Action::Apply { me, ahead } => {
                let walk = state.workers[me].walk.as_mut()?;
                state.applied |= 1 << (walk.frontier + u8::from(ahead));
                if ahead && self.contiguous {
                    walk.ahead = true;
                } else {
                    walk.frontier += 1 + u8::from(ahead || walk.ahead);
                    walk.ahead = false;
                }
            }
            Action::Checkpoint(me) => {
                let walk = state.workers[me].walk?;
                let what = What::Checkpoint(walk.frontier);
                state.workers[me].sent = Some(Sent { epoch: walk.epoch, what });
            }
            Action::Release(me, heir) => {
                let walk = state.workers[me].walk.take()?;
                state.workers[me].sent = Some(Sent { epoch: walk.epoch, what: What::Release(heir) });
            }
            Action::Arrives { me, answered } => self.arrives(&mut state, me, answered)?,
            Action::IsLost(me) => {
                state.losses += 1;
                state.workers[me].sent = None;
            }
            Action::Pause(me) => {
                state.pauses += 1;
                state.workers[me].run = Run::Paused;
            }
            Action::Wake(me) => state.workers[me].run = Run::Woken,
            Action::Crash(me) => {
                state.crashes += 1;
                // What it has sent may still arrive.
                let Worker { sent, .. } = state.workers[me];
                state.workers[me] = Worker { run: Run::Crashed, sent, ..Worker::default() };
            }
        }
        // What the other sends arrives at once: it is the same as the first, and one that is late is enough.
        if state.workers[1].sent.is_some() {
            self.arrives(&mut state, 1, true)?;
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one effective holder", |model: &Leases, state: &State| {
                let effective = |(me, worker): &(usize, &Worker)| {
                    worker.walk.is_some_and(|walk| model.accepts(state.row, *me, walk.epoch))
                };
                state.workers.iter().enumerate().filter(effective).count() <= 1
            }),
            Property::always("a stale write changes nothing", |_, state: &State| !state.stale_write),
            Property::always("no checkpoint beyond unapplied work", |_, state: &State| {
                let before = (1 << state.row.checkpoint) - 1;
                state.applied & before == before
            }),
            Property::always("a holder stops before its lease is taken", |_, state: &State| !state.torn_away),
            Property::sometimes("all is done after a change of hands", |_, state: &State| {
                state.row.checkpoint == RECORDS && state.row.epoch > 1
            }),
            Property::sometimes("two workers walk, one of them in vain", |_, state: &State| {
                state.workers.iter().all(|worker| worker.walk.is_some())
            }),
            Property::sometimes("a shard is handed over", |_, state: &State| {
                state.row.heir.is_some_and(|heir| state.row.epoch > 1 && state.workers[heir].runs())
            }),
        ]
    }
}

fn search(bounds: Leases) -> impl Checker<Leases> {
    let checker = bounds.checker().threads(2).spawn_bfs().join();
    eprintln!("{} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker
}

const PAUSE: Leases =
    Leases { epochs: true, contiguous: true, ticks: 3, takes: 2, pauses: 1, crashes: 0, losses: 0 };

#[test]
fn leases_hold_when_a_worker_pauses_for_longer_than_its_lease() {
    search(PAUSE).assert_properties();
}

#[test]
fn leases_hold_when_a_worker_crashes_and_a_request_or_its_answer_is_lost() {
    let checker = search(Leases { pauses: 0, crashes: 1, losses: 1, ticks: 3, ..PAUSE });
    for property in PAUSE.properties().iter().filter(|p| p.expectation == stateright::Expectation::Always) {
        checker.assert_no_discovery(property.name);
    }
    checker.assert_any_discovery("all is done after a change of hands");
}

#[test]
fn a_frontier_with_holes_is_found_by_the_model() {
    let checker = search(Leases { contiguous: false, ticks: 1, takes: 1, pauses: 0, ..PAUSE });
    checker.assert_any_discovery("no checkpoint beyond unapplied work");
}

#[test]
fn without_the_epoch_in_the_conditions_the_model_finds_the_fault() {
    let checker = search(Leases { epochs: false, ..PAUSE });
    for name in ["at most one effective holder", "a stale write changes nothing"] {
        checker.assert_any_discovery(name);
    }
}
