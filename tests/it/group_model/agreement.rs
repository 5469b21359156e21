//! The model against the code: what a record is taken for, and what each lane does about it. Along random walks of the
//! model every record is put into the words of the code, whose answers must be the model's.
//!
//! What is compared is what the code decides without asking anybody: [`classify`] and [`Place::step`]. Versions are the
//! model's; the fold that gives them out has tests of its own.

use super::group::Group;
use super::state::{Request, State, Step};
use super::walks;
use super::words::{Item, Kind, Record, Rules, Stamp};
use aws_sdk_dynamodb::types::AttributeValue;
use shardwalker::change::{Change, Event, Image, SequenceNumber};
use shardwalker::group::{self, Over, Place, classify};
use shardwalker::item::{self, Key};
use shardwalker::version::{self, Hlc, Mark};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, UNIX_EPOCH};

/// What the model's clock counts.
const UNIT: Duration = Duration::from_secs(1);

fn content(content: Option<u8>) -> item::Item {
    let id = ("id".to_owned(), AttributeValue::S("k".to_owned()));
    let value = content.map(|content| ("v".to_owned(), AttributeValue::N(content.to_string())));
    item::Item(HashMap::from_iter([id].into_iter().chain(value)))
}

const fn number(member: u8) -> u8 {
    member + 1
}

fn version(version: super::words::Version) -> version::Version {
    version::Version::new(Hlc::from_time(UNIX_EPOCH + UNIT * version.hlc.into()), number(version.member))
}

fn stamp(stamp: Stamp) -> version::Stamp {
    let mark = if stamp.marked { Mark::Deleted } else { Mark::Put };
    version::Stamp { mark, ..version::Stamp::of(&content(Some(stamp.digest)).into(), version(stamp.version)) }
}

fn change(old: Option<Item>, new: Option<Item>, created: u8) -> Change {
    let image =
        |item: Item| Image { content: content(Some(item.content)).into(), stamp: item.stamp.map(stamp) };
    Change {
        sequence: SequenceNumber::parse("1").unwrap(),
        created: UNIX_EPOCH + UNIT * created.into(),
        key: Key::new(content(None)),
        event: match (old, new) {
            (None, _) => Event::Insert,
            (_, None) => Event::Remove,
            _ => Event::Modify,
        },
        old: old.map(image),
        new: new.map(image),
        by_ttl: false,
        size: 0,
    }
}

/// What a record is, as far as both say it.
#[derive(Debug, PartialEq)]
enum Class {
    Write { creates: bool, stale: Option<version::Stamp> },
    Delete,
    Created(version::Version),
    Over(version::Version),
    Nothing,
}

impl Class {
    fn of_code(record: group::Record) -> Self {
        match record {
            group::Record::Write { creates, stale, .. } => Self::Write { creates, stale },
            group::Record::Delete => Self::Delete,
            group::Record::Echo { stamp, over: Over::Nothing } => Self::Created(stamp.version),
            group::Record::Echo { stamp, over: Over::Dirty } => Self::Over(stamp.version),
            group::Record::Echo { over: Over::Clean, .. } | group::Record::Removal => Self::Nothing,
        }
    }

    fn of_model(kind: Kind) -> Self {
        match kind {
            Kind::Written(_, stale) => Self::Write { creates: false, stale: stale.map(stamp) },
            Kind::Created(_, stale) => Self::Write { creates: true, stale: stale.map(stamp) },
            Kind::Deleted => Self::Delete,
            Kind::Echo => Self::Nothing,
            Kind::EchoOver(over) => Self::Over(version(over)),
            Kind::EchoCreated(created) => Self::Created(version(created)),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Write { creates: false, stale: None } => "write",
            Self::Write { creates: false, stale: Some(_) } => "write, stale stamp",
            Self::Write { creates: true, stale: None } => "creation",
            Self::Write { creates: true, stale: Some(_) } => "creation, stale stamp",
            Self::Delete => "delete",
            Self::Created(_) => "ours, a creation",
            Self::Over(_) => "ours, over an application's",
            Self::Nothing => "ours, nothing",
        }
    }
}

/// What a lane does, as far as both say it.
#[derive(Debug, PartialEq)]
enum Does {
    Put { creates: bool, stale: Option<version::Stamp> },
    Delete,
    Check(version::Version),
    Repair(version::Version),
    Nothing,
}

impl Does {
    fn of_code(step: group::Step) -> Self {
        match step {
            group::Step::Put { creates, stale } => Self::Put { creates, stale },
            group::Step::Delete => Self::Delete,
            group::Step::Check(stamp) => Self::Check(stamp.version),
            group::Step::Repair(stamp) => Self::Repair(stamp.version),
            group::Step::Nothing => Self::Nothing,
        }
    }

    fn of_model<const N: usize>(model: &Group<N>, from: u8, to: u8, record: &Record) -> Self {
        let stale = model.stale(from, to, record).map(stamp);
        match model.begin(u8::MAX, from, to, record) {
            Some(Step::Send(Request::Put { at, .. })) if at == to => Self::Put { creates: false, stale },
            Some(Step::Ask) => Self::Put { creates: true, stale },
            Some(Step::Send(Request::Raise(_))) => Self::Delete,
            Some(Step::Check(created)) => Self::Check(version(created)),
            // From the next one on.
            Some(Step::Read { least }) => {
                Self::Repair(version(super::words::Version { member: least.member - 1, ..least }))
            }
            None => Self::Nothing,
            Some(step) => panic!("a lane begins with {step:?}"),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Put { stale: Some(_), .. } => "puts, stamps anew",
            Self::Put { creates: true, .. } => "asks, puts",
            Self::Put { .. } => "puts",
            Self::Delete => "deletes",
            Self::Check(_) => "checks",
            Self::Repair(_) => "repairs",
            Self::Nothing => "does nothing",
        }
    }
}

/// How often each answer was given.
pub(super) type Answers = BTreeMap<&'static str, u64>;

/// So many there are.
pub(super) const ANSWERS: usize = 15;

/// Walks, and compares every record that comes of it. The code believes stamps up to `drift`.
pub(super) fn agree<const N: usize>(
    model: &Group<N>,
    drift: u8,
    seed: u64,
    answers: &mut Answers,
) -> Result<(), String> {
    let mut differs = None;
    let taken = walks::wander(model, seed, |before, after| {
        let changed = (0..N).find(|member| before.members[*member].hlc != after.members[*member].hlc);
        differs = changed.and_then(|member| compare(model, drift, member, before, after, answers).err());
        differs.is_some()
    });
    let story = || walks::story(model, &taken);
    differs.map_or(Ok(()), |differs| Err(format!("{}\n{differs}", story())))
}

fn compare<const N: usize>(
    model: &Group<N>,
    drift: u8,
    member: usize,
    before: &State<N>,
    after: &State<N>,
    answers: &mut Answers,
) -> Result<(), String> {
    let (at, old, new) = (&before.members[member], before.members[member].item, after.members[member].item);
    // Who wrote it is what neither of them knows.
    let record = Record::of(&model.rules, at, old, new, false);
    let seen = classify(&change(old, new, at.clock), UNIT * drift.into());
    let mut same = |code: (&'static str, String), model: String| match code {
        (name, code) if code == model => {
            *answers.entry(name).or_default() += 1;
            Ok(())
        }
        (_, code) => Err(format!("member {member}, {record:?}\ncode:  {code}\nmodel: {model}")),
    };
    let class = Class::of_code(seen);
    same((class.name(), format!("{class:?}")), format!("{:?}", Class::of_model(model.rules.kind(&record))))?;
    let peers: Vec<u8> = (0..N).filter(|to| *to != member).map(|to| to as u8).collect();
    for to in &peers {
        let place = Place { peer: number(*to), peers: peers.iter().copied().map(number).collect() };
        let does = Does::of_code(place.step(seen));
        let expected = Does::of_model(model, member as u8, *to, &record);
        same((does.name(), format!("{does:?}")), format!("{expected:?}"))?;
    }
    Ok(())
}

/// The rules that decide what a record is and what is done about it, each switched off.
pub(super) fn without(all: Rules) -> [(&'static str, Rules); 8] {
    [
        ("repair", Rules { repair: false, ..all }),
        ("check on creation", Rules { creation: false, ..all }),
        ("re-stamp", Rules { restamp: false, ..all }),
        ("marks", Rules { marks: false, ..all }),
        ("unchanged contents", Rules { unchanged: false, ..all }),
        ("carried marks", Rules { carried: false, ..all }),
        ("echoes", Rules { echoes: false, ..all }),
        ("drift", Rules { drift: u8::MAX, ..all }),
    ]
}
