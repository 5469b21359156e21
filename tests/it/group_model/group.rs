//! The group: what applications, lanes and dead workers may do next, and what must hold.

use super::state::{Lane, Member, Request, State, Step};
use super::words::{Item, Kind, Record, Rules, Stamp, Version};
use shardwalker::invariants::{self, Invariant};
use stateright::{Model, Property};

/// The bounds of a search, and the rules that hold in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group<const N: usize> {
    pub(super) rules: Rules,
    /// Applications' writes at each member.
    pub(super) writes: [u8; N],
    /// Whether there is an item at the beginning, the same everywhere.
    pub(super) item: bool,
    /// Items that applications read at each member, to put them back whole.
    pub(super) reads: u8,
    /// Lanes that start again from an earlier checkpoint.
    pub(super) replays: u8,
    /// Whether a request of theirs may still arrive then.
    pub(super) late: bool,
    /// What the members' clocks say in the beginning.
    pub(super) clocks: [u8; N],
    /// How often a clock may be set, forward or back, to a reading below this.
    pub(super) settings: u8,
    pub(super) readings: u8,
    /// What the workers' clocks say in the beginning.
    pub(super) now: u8,
    /// How often all clocks go on; where a lane waits for that, they always do.
    pub(super) ticks: u8,
    /// Whether requests arrive before the clocks have gone on by half of the drift.
    pub(super) prompt: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Write {
        member: u8,
        write: Write,
    },
    /// An application reads the item, to put it back later.
    Read(u8),
    Clock {
        member: u8,
        to: u8,
    },
    Lane {
        from: u8,
        to: u8,
    },
    /// The lane's worker dies; another goes on from an earlier checkpoint. What was under way may arrive later.
    Replay {
        from: u8,
        to: u8,
        at: u8,
        late: bool,
    },
    Arrives(u8),
    /// All clocks go on.
    Tick,
}

/// So much.
const TICK: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Write {
    /// A new content, without our attribute.
    Put,
    /// A new content; our attribute stays.
    Update,
    /// An old content; our attribute stays.
    TurnBack(u8),
    Delete,
    /// What was read, as it was.
    Return,
    /// What was read with a new content.
    ReturnChanged,
}

/// Records of one member's stream: more can only come of a loop.
const ENDLESS: u8 = 40;

impl<const N: usize> Group<N> {
    /// The one lane of a member that looks after an echo of this version.
    fn duty(from: u8, version: Version) -> u8 {
        if version.member == from { u8::from(from == 0) } else { version.member }
    }

    /// What a lane begins a record with.
    pub(super) fn begin(&self, now: u8, from: u8, to: u8, record: &Record) -> Option<Step> {
        let version = Version { hlc: record.hlc, member: from };
        let rules = &self.rules;
        match rules.kind(record) {
            // What gives out a new version; to hold the rest back would only be slower.
            Kind::Written(..) | Kind::Created(..) | Kind::Deleted if !rules.due(version, now) => {
                Some(Step::Wait)
            }
            Kind::Written(new, _) => Some(self.put(now, to, new.content, version)),
            Kind::Created(..) => Some(Step::Ask),
            Kind::Deleted => Some(Step::Send(Request::Raise(version))),
            Kind::Echo => None,
            Kind::EchoOver(version) => (rules.repair && Self::duty(from, version) == to)
                .then_some(Step::Read { least: version.next() }),
            Kind::EchoCreated(version) => {
                (rules.creation && Self::duty(from, version) == to).then_some(Step::Check(version))
            }
        }
    }

    /// The stamp that this lane replaces by the write's own, at the member where it was written.
    pub(super) fn stale(&self, from: u8, to: u8, record: &Record) -> Option<Stamp> {
        match self.rules.kind(record) {
            Kind::Written(_, stale) | Kind::Created(_, stale) => {
                stale.filter(|stale| self.rules.restamp && Self::duty(from, stale.version) == to)
            }
            _ => None,
        }
    }

    fn put(&self, now: u8, at: u8, content: u8, version: Version) -> Step {
        Step::Send(Request::Put { at, content, version, ceiling: self.rules.ceiling(version, now) })
    }

    /// Takes a lane's step; what follows it for the same record.
    fn step(&self, state: &mut State<N>, from: u8, to: u8, step: Step) -> Option<Step> {
        let item = |at: u8| state.members[usize::from(at)].item;
        let at = state.lanes[usize::from(from)][usize::from(to)].at;
        let record = *state.members[usize::from(from)].record(at)?;
        let version = Version { hlc: record.hlc, member: from };
        let now = state.now;
        match step {
            Step::Wait => Some(step),
            Step::Ask => Some(match (state.ledger, record.new) {
                (Some(tombstone), _) if tombstone > version => Step::Look { at: from, version: tombstone },
                (_, new) => self.put(now, to, new?.content, version),
            }),
            Step::Check(echo) => {
                let tombstone = state.ledger.filter(|tombstone| *tombstone > echo)?;
                Some(Step::Look { at: from, version: tombstone })
            }
            Step::Read { least } => {
                let found = item(to).filter(|item| item.clean() && !item.marked())?;
                let version = found.version().filter(|version| *version >= least)?;
                Some(self.put(now, from, found.content, version))
            }
            Step::Look { at, version } => {
                let found = item(at)?;
                let stamp = Stamp { version, marked: true, digest: found.content };
                let mark = |seen| Step::Send(Request::Mark { at, seen, stamp });
                match found.stamp {
                    Some(stamp) if stamp.version == version && stamp.marked => {
                        Some(Step::Send(Request::Delete { at, stamp }))
                    }
                    Some(stamp) if stamp.version >= version => {
                        (stamp.version.hlc > self.rules.ceiling(version, now)).then(|| mark(Some(stamp)))
                    }
                    seen => Some(mark(seen)),
                }
            }
            Step::Send(request) => {
                let done = state.send(&self.rules, request);
                match request {
                    Request::Raise(version) => Some(Step::Look { at: to, version }),
                    Request::Put { at, .. } if at == to => {
                        let (stale, content) = (self.stale(from, to, &record)?, record.new?.content);
                        Some(Step::Send(Request::Restamp { at: from, stale, content, version }))
                    }
                    Request::Put { .. } => None,
                    Request::Mark { at, stamp, .. } if done => {
                        Some(Step::Send(Request::Delete { at, stamp }))
                    }
                    Request::Mark { at, stamp, .. } => Some(Step::Look { at, version: stamp.version }),
                    Request::Restamp { version, .. } if !done => {
                        Some(Step::Read { least: if self.rules.itself { version } else { version.next() } })
                    }
                    Request::Restamp { .. } | Request::Delete { .. } => None,
                }
            }
        }
    }

    /// Lanes go past records that need nothing, which nobody can see, and records are forgotten that nobody will
    /// read again: fewer states for the same behaviour.
    fn settle(&self, state: &mut State<N>) {
        for from in 0..N {
            for to in (0..N).filter(|to| *to != from) {
                while state.lanes[from][to].step.is_none_or(|step| step == Step::Wait) {
                    let lane = &state.lanes[from][to];
                    let Some(record) = state.members[from].record(lane.at).copied() else { break };
                    let hlc = record.fold(lane.hlc);
                    let version = |hlc| Version { hlc, member: from as u8 }.real();
                    state.expect(invariants::one_version_per_record(version(record.hlc), version(hlc)));
                    let step = self.begin(state.now, from as u8, to as u8, &record);
                    let sent_on = matches!(
                        self.rules.kind(&record),
                        Kind::Written(..) | Kind::Created(..) | Kind::Deleted
                    );
                    state.expect(invariants::no_echo(u64::from(record.ours && sent_on)));
                    let lane = &mut state.lanes[from][to];
                    lane.step = step;
                    match step {
                        None => (lane.at, lane.hlc) = (lane.at + 1, hlc),
                        Some(_) => break,
                    }
                }
            }
            if state.replays == self.replays {
                let lanes = (0..N).filter(|to| *to != from).map(|to| state.lanes[from][to].at);
                let done = lanes.min().unwrap_or_default();
                let member = &mut state.members[from];
                while member.trimmed.0 < done {
                    member.trimmed = (member.trimmed.0 + 1, member.stream.remove(0).hlc);
                }
            }
        }
    }

    fn write(&self, state: &mut State<N>, at: u8, write: Write) -> Option<()> {
        let total: u8 = self.writes[usize::from(at)];
        let member = &mut state.members[usize::from(at)];
        let fresh = 1 + at * 8 + total - member.writes;
        let stays = member.item.and_then(|item| item.stamp);
        member.writes -= 1;
        let new = match write {
            Write::Put => Some(Item { content: fresh, stamp: None }),
            Write::Update => Some(Item { content: fresh, stamp: stays }),
            Write::TurnBack(content) => Some(Item { content, stamp: stays }),
            Write::Delete => None,
            Write::Return => Some(member.read?),
            Write::ReturnChanged => Some(Item { content: fresh, ..member.read? }),
        };
        if member.writes == 0 {
            // Nobody will put it back.
            (member.read, member.reads) = (None, self.reads);
        }
        (new != member.item).then(|| state.change(&self.rules, at, new, false))
    }

    fn writes(&self, member: &Member, number: u8) -> Vec<Write> {
        let mut writes = vec![Write::Put];
        if let Some(item) = member.item {
            writes.push(Write::Delete);
            if let Some(stamp) = item.stamp {
                writes.push(Write::Update);
                let own = 1 + number * 8..1 + number * 8 + self.writes[usize::from(number)] - member.writes;
                let old = own.chain(
                    (!(number * 8 + 1..number * 8 + 8).contains(&stamp.digest)).then_some(stamp.digest),
                );
                writes.extend(old.filter(|old| *old != item.content).map(Write::TurnBack));
            }
        }
        if member.read.is_some() {
            writes.extend([Write::Return, Write::ReturnChanged]);
        }
        writes
    }
}

impl<const N: usize> Model for Group<N> {
    type State = State<N>;
    type Action = Action;

    fn init_states(&self) -> Vec<State<N>> {
        let version = Version { hlc: 1, member: 0 };
        let stamp = Some(Stamp { version, marked: false, digest: 0 });
        let hlc = if self.item { 2 } else { 0 };
        let members = std::array::from_fn(|number| Member {
            item: self.item.then_some(Item { content: 0, stamp }),
            dirty: None,
            stream: Vec::new(),
            trimmed: (0, hlc),
            hlc,
            clock: self.clocks[number],
            writes: self.writes[number],
            reads: 0,
            read: None,
        });
        let lane = || Lane { at: 0, hlc, step: None };
        let lanes = std::array::from_fn(|_| std::array::from_fn(|_| lane()));
        let last = self.item.then_some((version, Some(0)));
        let (late, replays, settings) = (Vec::new(), 0, 0);
        let (now, disbelieved, ledger, broken) = (self.now, false, None, None);
        vec![State { members, lanes, ledger, late, replays, settings, now, disbelieved, last, broken }]
    }

    fn actions(&self, state: &State<N>, actions: &mut Vec<Action>) {
        for (number, member) in (0..).zip(&state.members) {
            if member.writes > 0 {
                let writes = self.writes(member, number);
                actions.extend(writes.into_iter().map(|write| Action::Write { member: number, write }));
                let stamped =
                    member.item.is_some_and(|item| item.stamp.is_some() && Some(item) != member.read);
                actions.extend((stamped && member.reads < self.reads).then_some(Action::Read(number)));
                if state.settings < self.settings {
                    let slowest = state.now.saturating_sub(self.rules.drift / 2);
                    let clocks = (slowest..self.readings).filter(|to| *to != member.clock);
                    actions.extend(clocks.map(|to| Action::Clock { member: number, to }));
                }
            }
            for (to, lane) in (0..).zip(&state.lanes[usize::from(number)]) {
                let under_way = matches!(lane.step, Some(Step::Send(_)));
                let goes_on = lane.step.is_some_and(|step| step != Step::Wait);
                actions.extend(goes_on.then_some(Action::Lane { from: number, to }));
                if to != number && state.replays < self.replays {
                    let replay = |at, late| Action::Replay { from: number, to, at, late };
                    actions.extend((member.trimmed.0..lane.at).map(|at| replay(at, false)));
                    if lane.step.is_some() {
                        actions.push(replay(lane.at, false));
                    }
                    if under_way && self.late {
                        actions.extend((member.trimmed.0..=lane.at).map(|at| replay(at, true)));
                    }
                }
            }
        }
        actions.extend((0..state.late.len()).map(|number| Action::Arrives(number as u8)));
        let ticks = (state.now - self.now) / TICK < self.ticks;
        let waits = state.under_way(|_, step| step == Step::Wait);
        if (ticks || waits) && (!self.prompt || state.prompt(&self.rules, TICK)) {
            actions.push(Action::Tick);
        }
    }

    fn next_state(&self, before: &State<N>, action: Action) -> Option<State<N>> {
        let mut state = before.clone();
        match action {
            Action::Write { member, write } => self.write(&mut state, member, write)?,
            Action::Read(member) => {
                let member = &mut state.members[usize::from(member)];
                (member.read, member.reads) = (member.item, member.reads + 1);
            }
            Action::Clock { member, to } => {
                state.members[usize::from(member)].clock = to;
                state.settings += 1;
            }
            Action::Lane { from, to } => {
                let step = before.lanes[usize::from(from)][usize::from(to)].step?;
                let step = self.step(&mut state, from, to, step);
                let lane = &mut state.lanes[usize::from(from)][usize::from(to)];
                lane.step = step;
                if step.is_none() {
                    let record = before.members[usize::from(from)].record(lane.at)?;
                    (lane.at, lane.hlc) = (lane.at + 1, record.fold(lane.hlc));
                }
            }
            Action::Replay { from, to, at, late } => {
                let member = &before.members[usize::from(from)];
                let lane = &mut state.lanes[usize::from(from)][usize::from(to)];
                if let Some(Step::Send(request)) = lane.step.filter(|_| late) {
                    state.late.push(request);
                }
                *lane = Lane { at, hlc: member.hlc_at(at), step: None };
                state.replays += 1;
            }
            Action::Arrives(number) => {
                let request = state.late.remove(usize::from(number));
                state.send(&self.rules, request);
            }
            Action::Tick => {
                state.now += TICK;
                state.members.iter_mut().for_each(|member| member.clock += TICK);
            }
        }
        self.settle(&mut state);
        Some(state)
    }

    fn within_boundary(&self, state: &State<N>) -> bool {
        state.members.iter().all(|member| member.length() <= ENDLESS)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(EQUAL, |_, state: &State<N>| {
                let content = |member: &Member| member.item.map(|item| item.content);
                let first = content(&state.members[0]);
                !state.quiet() || state.members.iter().all(|member| content(member) == first)
            }),
            Property::always(LAST_WRITER, |_, state: &State<N>| {
                let last = state.last.filter(|(_, content)| content.is_some());
                let version = last.map(|(version, _)| version.real());
                !state.quiet()
                    || state.members.iter().all(|member| {
                        let found = State::<N>::version(member).map(Version::real);
                        let content = member.item.map(|item| item.content);
                        invariants::no_lost_update(version, found).is_ok()
                            && content == last.and_then(|(_, content)| content)
                    })
            }),
            Property::always(HALF, |_, state: &State<N>| {
                !state.quiet() || state.members.iter().all(|member| !member.item.is_some_and(Item::marked))
            }),
            Property::always(NO_RESURRECTION, |_, state: &State<N>| {
                let tombstone = state.ledger.map(Version::real);
                !state.quiet()
                    || state.members.iter().all(|member| {
                        let item = State::<N>::version(member).map(Version::real);
                        invariants::no_resurrection(item, tombstone).is_ok()
                    })
            }),
            Property::always(VERSIONS, |_, state: &State<N>| {
                state.broken != Some(Invariant::VersionsNeverFall)
            }),
            Property::always(NO_ECHO, |_, state: &State<N>| state.broken != Some(Invariant::NoEcho)),
            Property::always(ONE_VERSION, |_, state: &State<N>| {
                state.broken != Some(Invariant::OneVersionPerRecord)
            }),
            Property::always(ENDS, |_, state: &State<N>| {
                state.members.iter().all(|member| member.length() < ENDLESS)
            }),
            Property::always(BELIEVED, |_, state: &State<N>| !state.disbelieved),
            Property::sometimes(REPAIRED, |_, state: &State<N>| {
                state
                    .under_way(|from, step| matches!(step, Step::Send(Request::Put { at, .. }) if at == from))
            }),
            Property::sometimes(OUTLIVED, |_, state: &State<N>| {
                state.under_way(|from, step| matches!(step, Step::Look { at, .. } if at == from))
            }),
            Property::sometimes(RESTAMPED, |_, state: &State<N>| {
                state.under_way(|_, step| matches!(step, Step::Send(Request::Restamp { .. })))
            }),
            Property::sometimes(HELD, |_, state: &State<N>| state.under_way(|_, step| step == Step::Wait)),
            Property::sometimes(LATE, |_, state: &State<N>| {
                state.late.iter().any(|request| state.clone().send(&Rules::ALL, *request))
            }),
        ]
    }
}

pub(super) const EQUAL: &str = "a quiet group's members are equal";
pub(super) const LAST_WRITER: &str = "a quiet group holds what the last writer left";
pub(super) const HALF: &str = "a quiet group has no item that is half deleted";
pub(super) const NO_RESURRECTION: &str = Invariant::NoResurrection.name();
pub(super) const VERSIONS: &str = Invariant::VersionsNeverFall.name();
pub(super) const NO_ECHO: &str = Invariant::NoEcho.name();
pub(super) const ONE_VERSION: &str = Invariant::OneVersionPerRecord.name();
pub(super) const ENDS: &str = "every group comes to rest";
pub(super) const BELIEVED: &str = "every stamp of ours is believed";
pub(super) const HELD: &str = "a version from the future is held back";
pub(super) const REPAIRED: &str = "a peer's item comes back";
pub(super) const OUTLIVED: &str = "a delete wins over a creation";
pub(super) const RESTAMPED: &str = "an application's write gets a new stamp";
pub(super) const LATE: &str = "a dead worker's request may still take effect";
