//! A model of the protocol of active-active groups, searched exhaustively within bounds and walked at random
//! beyond them. It is written apart from the code that carries the protocol out: what it shares is the invariants.
//!
//! One key: keys do not touch each other. A stream per member, a lane for each ordered pair of members with cursor
//! and clock. Every read and every conditional write is a step of its own, between two of which anything may
//! happen. Applications put (without our attribute), update (keeping it), turn an item back to an old content,
//! delete, and put back whole items that they read earlier, our attribute in it, as they were or changed. A lane's
//! worker dies at any step; another goes on from any earlier checkpoint, and the request that was under way lands
//! at any later time, or never.
//!
//! What no rule can tell from our own writes is not given a version (`Record::like_ours`): an application that puts
//! back to the letter what a replicator wrote, and one that deletes an item between the two steps of our delete.
//! Such a write may be lost, also when the item was updated between the steps just before; the group converges.
//!
//! Where the clock of a member is ahead of the others' by more than `max_clock_drift`, what it wrote is held back; then
//! every stamp is believed. That asks for members that are not behind the workers by more than half of the drift, and
//! for requests that arrive before the clocks have gone on by that much: the model's conditions have the ceiling of the
//! moment when they were sent, and no more. The code's ceiling is higher by longer than a request may be on its way.
//!
//! Left out: deletes by the time-to-live service, the end of a tombstone's life, backfills, and the folding of several
//! records of a key into one.

mod agreement;
mod group;
mod state;
mod walks;
mod words;

use group::{
    BELIEVED, ENDS, EQUAL, Group, HALF, HELD, LAST_WRITER, LATE, NO_ECHO, OUTLIVED, REPAIRED, RESTAMPED,
    VERSIONS,
};
use stateright::{Checker, Expectation, HasDiscoveries, Model};
use words::Rules;

/// Two members with two writes each, over an item that is the same at both.
const TWO: Group<2> = Group {
    rules: Rules::ALL,
    writes: [2, 2],
    item: true,
    reads: 0,
    replays: 0,
    late: false,
    clocks: [0; 2],
    settings: 0,
    readings: 0,
    now: 0,
    ticks: 0,
    prompt: true,
};

/// A lane starts again from any earlier checkpoint, and its last request arrives late.
const REPLAY: Group<2> = Group { replays: 1, late: true, ..TWO };

/// Too wide to search: all that may happen, several times over.
const THREE: Group<3> = Group {
    rules: Rules::ALL,
    writes: [3; 3],
    item: true,
    reads: 1,
    replays: 3,
    late: true,
    clocks: [0; 3],
    settings: 2,
    readings: 12,
    now: 0,
    ticks: 0,
    prompt: true,
};

/// The workers' clocks are right, and stamps believed when they are not more than this ahead. One member's clock is as
/// far behind as it may be, or right; the other's is ahead, by more than is believed.
const DRIFT: u8 = 4;
const AHEAD: Group<2> =
    Group { rules: Rules { drift: DRIFT, ..Rules::ALL }, writes: [1, 1], now: 4, clocks: [2, 12], ..TWO };

/// The same with a third member, whose applications do not write.
const AHEAD_OF_TWO: Group<3> = Group {
    rules: AHEAD.rules,
    writes: [1, 1, 0],
    item: true,
    reads: 0,
    replays: 0,
    late: false,
    clocks: [4, 12, 4],
    settings: 0,
    readings: 0,
    now: 4,
    ticks: 0,
    prompt: true,
};

/// Requests are on their way for as long as they like.
const LATE_PUTS: Group<3> = Group { prompt: false, ..AHEAD_OF_TWO };

/// All that may happen, with clocks that are set while it does: as far behind as they may be, and any way ahead.
const SKEWED: Group<3> = Group {
    rules: Rules { drift: 8, ..Rules::ALL },
    readings: 40,
    now: 6,
    clocks: [6; 3],
    ticks: 4,
    ..THREE
};

/// Searches all of it: the properties hold, and what the search is about does happen.
fn holds(bounds: Group<2>, happens: &[&'static str]) {
    let checker = bounds.checker().threads(2).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    let Group { writes, item, reads, replays, late, clocks, .. } = bounds;
    eprintln!(
        "{states} states, depth {depth}: writes {writes:?}, item {item}, reads {reads}, replays {replays}, \
         late {late}, clocks {clocks:?}"
    );
    for property in bounds.properties().iter().filter(|p| p.expectation == Expectation::Always) {
        checker.assert_no_discovery(property.name);
    }
    for name in happens {
        checker.assert_any_discovery(name);
    }
}

#[test]
fn two_members_with_two_writes_each_converge() {
    holds(TWO, &[REPAIRED, OUTLIVED, RESTAMPED]);
    holds(Group { item: false, ..TWO }, &[REPAIRED, OUTLIVED, RESTAMPED]);
}

#[test]
fn they_converge_when_the_clock_of_one_is_ahead() {
    holds(Group { clocks: [0, 3], ..TWO }, &[REPAIRED, OUTLIVED, RESTAMPED]);
}

#[test]
fn they_converge_when_the_clock_of_one_is_further_ahead_than_is_believed() {
    for item in [true, false] {
        holds(Group { item, ticks: 2, ..AHEAD }, &[HELD]);
        holds(Group { item, ticks: 2, clocks: [12, 2], ..AHEAD }, &[HELD]);
    }
}

/// What is asked of the network, also where all clocks are right: a put that arrives later than that takes what is newer
/// for a stamp from the future.
#[test]
fn a_put_that_is_on_its_way_for_longer_than_the_drift_may_replace_what_is_newer() {
    let until = HasDiscoveries::AllOf([LAST_WRITER, VERSIONS].into());
    let checker = LATE_PUTS.checker().threads(2).finish_when(until).spawn_bfs().join();
    for name in [LAST_WRITER, VERSIONS] {
        checker.assert_any_discovery(name);
    }
}

#[test]
fn they_converge_when_a_worker_dies_and_its_last_write_arrives_late() {
    holds(Group { writes: [2, 1], reads: 1, ..REPLAY }, &[REPAIRED, OUTLIVED, RESTAMPED, LATE]);
    holds(Group { writes: [1, 2], reads: 1, ..REPLAY }, &[REPAIRED, OUTLIVED, RESTAMPED, LATE]);
    holds(Group { item: false, ..REPLAY }, &[REPAIRED, OUTLIVED, RESTAMPED, LATE]);
}

#[test]
fn they_converge_when_applications_put_back_what_they_read() {
    holds(Group { item: false, reads: 1, ..TWO }, &[REPAIRED, OUTLIVED, RESTAMPED]);
}

#[test]
#[ignore = "the long profile: 5 million states, minutes in a release build"]
fn wider_bounds_converge() {
    holds(Group { reads: 1, ..TWO }, &[REPAIRED, OUTLIVED, RESTAMPED]);
    holds(Group { writes: [3, 2], ..TWO }, &[REPAIRED, OUTLIVED, RESTAMPED]);
    holds(REPLAY, &[REPAIRED, OUTLIVED, RESTAMPED, LATE]);
}

#[test]
#[ignore = "the long profile: 4 million states, minutes in a release build"]
fn wider_bounds_with_a_clock_that_is_ahead_converge() {
    for clocks in [[2, 12], [12, 2]] {
        holds(Group { writes: [2, 2], clocks, ..AHEAD }, &[REPAIRED, OUTLIVED, RESTAMPED, HELD]);
        holds(Group { clocks, replays: 1, late: true, reads: 1, ticks: 2, ..AHEAD }, &[HELD]);
    }
}

#[test]
#[ignore = "the widest search: 16 million states, 10 GB of memory, minutes in a release build"]
fn the_widest_bounds_converge() {
    holds(Group { reads: 1, ..REPLAY }, &[REPAIRED, OUTLIVED, RESTAMPED, LATE]);
}

#[test]
fn without_any_one_of_the_rules_the_model_finds_a_fault() {
    let [small, empty] = [true, false].map(|item| Group { item, writes: [1, 2], ..TWO });
    let all = Rules::ALL;
    let faults: [(&str, Rules, Group<2>, &[&'static str]); 10] = [
        ("repair", Rules { repair: false, ..all }, small, &[EQUAL, LAST_WRITER]),
        ("ledger", Rules { ledger: false, ..all }, small, &[EQUAL, LAST_WRITER]),
        ("check on creation", Rules { creation: false, ..all }, small, &[EQUAL, LAST_WRITER]),
        ("re-stamp", Rules { restamp: false, ..all }, small, &[EQUAL, LAST_WRITER]),
        ("marks", Rules { marks: false, ..all }, empty, &[LAST_WRITER, NO_ECHO]),
        ("unchanged contents", Rules { unchanged: false, ..all }, empty, &[LAST_WRITER, NO_ECHO]),
        ("holding back", Rules { held: false, ..AHEAD.rules }, AHEAD, &[EQUAL, LAST_WRITER, BELIEVED]),
        ("carried marks", Rules { carried: false, ..all }, Group { reads: 1, ..small }, &[EQUAL, HALF]),
        ("repair after a new stamp that failed", Rules { itself: false, ..all }, small, &[EQUAL]),
        (
            "a new stamp by a put",
            Rules { whole: false, ..all },
            Group { item: false, reads: 1, ..TWO },
            &[EQUAL],
        ),
    ];
    for (rule, rules, bounds, expected) in faults {
        let until = HasDiscoveries::AllOf(expected.iter().copied().collect());
        let bounds = Group { rules, ..bounds };
        let checker = bounds.checker().threads(2).finish_when(until).spawn_bfs().join();
        for name in expected {
            let path =
                checker.discovery(name).unwrap_or_else(|| panic!("without {rule}: no fault in {name:?}"));
            let actions = path.into_actions();
            eprintln!("without {rule}, {name:?} fails:\n{}", walks::story(&bounds, &actions));
        }
    }
}

#[test]
fn a_group_that_does_not_know_its_own_writes_never_rests() {
    let rules = Rules { echoes: false, ..Rules::ALL };
    let until = HasDiscoveries::AllOf([ENDS].into());
    let bounds = Group { rules, writes: [1, 0], ..TWO };
    bounds.checker().finish_when(until).spawn_bfs().join().assert_any_discovery(ENDS);
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

/// Walks these seeds, half of them with an item to begin with; the first that breaks a property ends it, shrunk.
fn walk<const N: usize>(seeds: u64, bounds: impl Fn(bool) -> Group<N>) {
    let (first, seeds) = (setting("GROUP_FIRST", 1), setting("GROUP_SEEDS", seeds));
    let mut steps = 0;
    for seed in first..first + seeds {
        let bounds = bounds(seed.is_multiple_of(2));
        match walks::walk(&bounds, seed) {
            Ok(length) => steps += length,
            Err(fault) => panic!(
                "{:?} fails:\n{}\nGROUP_FIRST={seed} GROUP_SEEDS=1 cargo test --test it group_model::any_walk",
                fault.property,
                walks::story(&bounds, &fault.actions),
            ),
        }
    }
    eprintln!("{seeds} walks from seed {first} on, {steps} steps");
}

#[test]
fn any_walk_of_three_members_converges() {
    walk(3_000, |item| Group { item, ..THREE });
}

#[test]
fn any_walk_of_three_members_with_wrong_clocks_converges() {
    walk(1_000, |item| Group { item, ..SKEWED });
}

/// No version of ours is from the future any more, so a put need not replace one; then it may be late.
#[test]
fn any_walk_with_late_puts_that_replace_nothing_from_the_future_converges() {
    let rules = Rules { ceiling: false, ..LATE_PUTS.rules };
    walk(500, |item| Group { rules, item, ..LATE_PUTS });
}

#[test]
#[ignore = "the long profile: a million walks, minutes in a release build"]
fn a_million_walks_converge() {
    walk(1_000_000, |item| Group { item, ..THREE });
}

#[test]
#[ignore = "the long profile: a million walks, minutes in a release build"]
fn a_million_walks_with_wrong_clocks_converge() {
    walk(1_000_000, |item| Group { item, ..SKEWED });
}

/// Members whose clocks are wrong and nothing is held back, so that stamps are there that are not believed.
const UNBELIEVED: Group<3> = Group { rules: Rules { held: false, ..SKEWED.rules }, ..SKEWED };

fn agree(bounds: Group<3>, drift: u8, seed: u64, answers: &mut agreement::Answers) -> Result<(), String> {
    let bounds = Group { item: seed.is_multiple_of(2), ..bounds };
    let told =
        |why| format!("{why}\nGROUP_FIRST={seed} GROUP_SEEDS=1 cargo test --test it group_model::the_code_");
    agreement::agree(&bounds, drift, seed, answers).map_err(told)
}

#[test]
fn the_code_takes_every_record_for_what_the_model_does_and_plans_the_same() {
    let (first, seeds) = (setting("GROUP_FIRST", 1), setting("GROUP_SEEDS", 150));
    let mut answers = agreement::Answers::new();
    for seed in first..first + seeds {
        for bounds in [THREE, SKEWED, UNBELIEVED] {
            agree(bounds, bounds.rules.drift, seed, &mut answers).unwrap_or_else(|why| panic!("{why}"));
        }
    }
    eprintln!("{answers:?}");
    assert!(seeds < 150 || answers.len() == agreement::ANSWERS, "not every answer was given: {answers:?}");
}

/// The comparison can fail: a rule that only one of the two has shows within this many seeds.
#[test]
fn the_code_and_a_model_without_one_of_its_rules_disagree() {
    for (rule, rules) in agreement::without(UNBELIEVED.rules) {
        let disagree = |seed| {
            let bounds = Group { rules, ..UNBELIEVED };
            agree(bounds, UNBELIEVED.rules.drift, seed, &mut agreement::Answers::new()).err()
        };
        let why = (1..200).find_map(disagree);
        let why = why.unwrap_or_else(|| panic!("without {rule}: 200 walks in which the code says the same"));
        let last: Vec<_> = why.lines().rev().take(4).collect();
        eprintln!("without {rule}: {last:?}");
    }
}

/// A rule that is off shows in walks of three members too, within this many seeds.
#[test]
fn walks_find_what_is_missing() {
    let all = Rules::ALL;
    for rules in [
        Rules { repair: false, ..all },
        Rules { ledger: false, ..all },
        Rules { creation: false, ..all },
        Rules { restamp: false, ..all },
        Rules { marks: false, ..all },
        Rules { unchanged: false, ..all },
    ] {
        let fault = (1..2_000).find_map(|seed| walks::walk(&Group { rules, ..THREE }, seed).err());
        let fault = fault.unwrap_or_else(|| panic!("no walk of 2,000 needs what is off in {rules:?}"));
        eprintln!("{:?} fails after {} actions: {rules:?}", fault.property, fault.actions.len());
    }
}
