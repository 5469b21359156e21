//! The state of a group: what the members, their streams and the lanes hold, and what a request does to it.

use super::words::{Item, Record, Rules, Stamp, Version};
use shardwalker::invariants::{self, Invariant, Verdict};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State<const N: usize> {
    pub(super) members: [Member; N],
    /// `[m][q]`: from m to q.
    pub(super) lanes: [[Lane; N]; N],
    pub(super) ledger: Option<Version>,
    /// Requests of dead workers that have not arrived.
    pub(super) late: Vec<Request>,
    pub(super) replays: u8,
    pub(super) settings: u8,
    /// What the workers' clocks say.
    pub(super) now: u8,
    /// A stamp of ours was not believed.
    pub(super) disbelieved: bool,
    /// The highest version that an application's write was given, and what it left.
    pub(super) last: Option<(Version, Option<u8>)>,
    /// The first invariant that a single step broke.
    pub(super) broken: Option<Invariant>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Member {
    pub(super) item: Option<Item>,
    /// The version of the application's write that left the item dirty.
    pub(super) dirty: Option<Version>,
    pub(super) stream: Vec<Record>,
    /// Records before the stream's first that nobody will read again, and the clock after them.
    pub(super) trimmed: (u8, u8),
    /// The clock after the last record.
    pub(super) hlc: u8,
    pub(super) clock: u8,
    pub(super) writes: u8,
    pub(super) reads: u8,
    /// What an application holds in its memory.
    pub(super) read: Option<Item>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lane {
    /// Records that are done, and the clock after them.
    pub(super) at: u8,
    pub(super) hlc: u8,
    /// What is to be done next for the record that follows.
    pub(super) step: Option<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// Nothing yet: the record's version is too far ahead of the worker's clock.
    Wait,
    /// Read the ledger for an application's creation.
    Ask,
    /// Read the ledger for a creation of ours.
    Check(Version),
    /// Read the peer's item, which comes back when it has this version or a higher one.
    Read {
        least: Version,
    },
    /// Read the item that is to be deleted.
    Look {
        at: u8,
        version: Version,
    },
    Send(Request),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Request {
    Raise(Version),
    Put { at: u8, content: u8, version: Version, ceiling: u8 },
    Mark { at: u8, seen: Option<Stamp>, stamp: Stamp },
    Delete { at: u8, stamp: Stamp },
    Restamp { at: u8, stale: Stamp, content: u8, version: Version },
}

impl Record {
    /// What a change of a member's item comes to in its stream. What is not believed is not seen.
    pub(super) fn of(
        rules: &Rules,
        member: &Member,
        old: Option<Item>,
        new: Option<Item>,
        ours: bool,
    ) -> Self {
        let created = member.clock;
        let believed = |stamp: &Stamp| stamp.version.hlc <= created.saturating_add(rules.drift);
        let seen = |item: Item| Item { stamp: item.stamp.filter(believed), ..item };
        let record = Self { old: old.map(seen), new: new.map(seen), created, ours, hlc: 0 };
        Self { hlc: record.fold(member.hlc), ..record }
    }
}

impl Member {
    pub(super) fn length(&self) -> u8 {
        self.trimmed.0 + self.stream.len() as u8
    }

    pub(super) fn record(&self, at: u8) -> Option<&Record> {
        self.stream.get(usize::from(at - self.trimmed.0))
    }

    /// The clock of a checkpoint.
    pub(super) fn hlc_at(&self, at: u8) -> u8 {
        if at == self.trimmed.0 {
            self.trimmed.1
        } else {
            self.stream[usize::from(at - self.trimmed.0) - 1].hlc
        }
    }
}

impl<const N: usize> State<N> {
    pub(super) fn expect(&mut self, verdict: Verdict) {
        if let Err(violation) = verdict {
            self.broken.get_or_insert(violation.invariant);
        }
    }

    /// What a write makes of a member's item. One that changes nothing leaves no record.
    pub(super) fn change(&mut self, rules: &Rules, at: u8, new: Option<Item>, ours: bool) {
        let member = &mut self.members[usize::from(at)];
        let old = std::mem::replace(&mut member.item, new);
        if old == new {
            return;
        }
        let record = Record::of(rules, member, old, new, ours);
        self.disbelieved |= (record.old, record.new) != (old, new);
        member.hlc = record.hlc;
        member.stream.push(record);
        if ours {
            let version = |item: Option<Item>| Some(item?.version()?.real());
            self.expect(invariants::versions_never_fall(version(old), version(new)));
        } else if !record.like_ours() {
            let version = Version { hlc: record.hlc, member: at };
            member.dirty = Some(version);
            self.last = self.last.max(Some((version, new.map(|item| item.content))));
        }
        let member = &mut self.members[usize::from(at)];
        member.dirty = member.dirty.filter(|_| member.item.is_some_and(|item| !item.clean()));
    }

    /// A request arrives; whether its condition held.
    pub(super) fn send(&mut self, rules: &Rules, request: Request) -> bool {
        let item = |at: u8| self.members[usize::from(at)].item;
        let (at, new) = match request {
            Request::Raise(version) => {
                if rules.ledger {
                    self.ledger = self.ledger.max(Some(version));
                }
                return true;
            }
            Request::Put { at, content, version, ceiling } => {
                let found = item(at).and_then(Item::version).filter(|found| found.hlc <= ceiling);
                if found >= Some(version) {
                    return false;
                }
                (at, Some(Item { content, stamp: Some(Stamp { version, marked: false, digest: content }) }))
            }
            Request::Mark { at, seen, stamp } => match item(at) {
                Some(found) if found.stamp == seen => (at, Some(Item { stamp: Some(stamp), ..found })),
                _ => return false,
            },
            Request::Restamp { at, stale, content, version } => match item(at) {
                Some(found) if found.stamp == Some(stale) => {
                    let stamp = Some(Stamp { version, marked: false, digest: content });
                    let content = if rules.whole { content } else { found.content };
                    (at, Some(Item { content, stamp }))
                }
                _ => return false,
            },
            Request::Delete { at, stamp } => match item(at) {
                Some(found) if found.stamp == Some(stamp) => (at, None),
                _ => return false,
            },
        };
        self.change(rules, at, new, true);
        true
    }

    /// Whether all lanes are at the end and nothing is under way.
    pub(super) fn quiet(&self) -> bool {
        self.late.is_empty() && self.lanes.iter().flatten().all(|lane| lane.step.is_none())
    }

    /// Puts that have not arrived, with what they may replace.
    fn ceilings(&self) -> impl Iterator<Item = u8> {
        let steps = self.lanes.iter().flatten().filter_map(|lane| lane.step);
        let sent = steps.filter_map(|step| if let Step::Send(request) = step { Some(request) } else { None });
        sent.chain(self.late.iter().copied()).filter_map(|request| match request {
            Request::Put { ceiling, .. } => Some(ceiling),
            _ => None,
        })
    }

    /// Whether the clocks may go on by so much before what is under way has arrived: until then nothing is written
    /// that it would take for a stamp from the future.
    pub(super) fn prompt(&self, rules: &Rules, tick: u8) -> bool {
        let written = self.now.saturating_add(tick).saturating_add(rules.drift / 2);
        self.ceilings().all(|ceiling| written <= ceiling)
    }

    pub(super) fn under_way(&self, which: impl Fn(u8, Step) -> bool) -> bool {
        (0..)
            .zip(&self.lanes)
            .any(|(from, lanes)| lanes.iter().filter_map(|lane| lane.step).any(|step| which(from, step)))
    }

    /// The version that a member's item has, dirty or not.
    pub(super) fn version(member: &Member) -> Option<Version> {
        let item = member.item?;
        if item.clean() { item.version() } else { member.dirty }
    }
}
