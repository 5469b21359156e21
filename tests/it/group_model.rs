//! model
mod group;
mod walks;
mod words;

use group::{Group, State};
use stateright::{Checker, Model};
use words::Rules;

const TWO: Group<2> = Group {
    rules: Rules::ALL,
    writes: [2, 2],
    item: false,
    reads: 0,
    replays: 0,
    late: false,
    clocks: [0; 2],
    settings: 0,
    readings: 0,
};

fn search<const N: usize>(bounds: Group<N>) -> impl Checker<Group<N>> {
    let begun = std::time::Instant::now();
    let checker = bounds.checker().threads(2).spawn_bfs().join();
    let off = format!("{:?}", bounds.rules).split(", ").filter(|r| r.contains("false")).collect::<Vec<_>>().join(" ");
    eprintln!("off [{off}] {:?} item {} reads {} replays {} late {} clocks {:?}: {} states, depth {} {:?}", bounds.writes, bounds.item, bounds.reads, bounds.replays, bounds.late, bounds.clocks, checker.unique_state_count(), checker.max_depth(), begun.elapsed());
    let mut d: Vec<_> = checker.discoveries().into_iter().collect();
    d.sort_by_key(|d| d.1.clone().into_actions().len());
    for (name, path) in d.iter().filter(|_| std::env::var("NAMES").is_ok()) { eprintln!("{name}: {}", path.clone().into_actions().len()); }
    for (_, path) in d.into_iter().take(1) {
        show(path);
    }
    checker
}

fn show<const N: usize>(path: stateright::Path<State<N>, group::Action>) {
    for (state, action) in path.into_vec() {
        for (n, m) in state.members.iter().enumerate() {
            eprint!("   {n}: {:?} given {:?};", m.item.map(|i| (i.content, i.stamp.map(|s| (s.version.hlc, s.version.member, if s.marked {'d'} else {'p'}, s.digest)))), m.dirty.map(|v| (v.hlc, v.member)));
        }
        eprintln!(" ledger {:?} last {:?} late {:?}", state.ledger.map(|v| (v.hlc, v.member)), state.last.map(|(v, c)| (v.hlc, v.member, c)), state.late);
        for (m, l) in state.lanes.iter().enumerate() { for (q, l) in l.iter().enumerate() { if l.step.is_some() { eprintln!("      {m}->{q}: {:?}", l.step); } } }
        if let Some(action) = action { eprintln!("-> {action:?}"); }
    }
}

fn vary(mut g: Group<2>) -> Group<2> {
    let get = |n: &str| std::env::var(n).ok().map(|v| v.parse::<u8>().unwrap());
    if let Some(v) = get("W0") { g.writes[0] = v }
    if let Some(v) = get("W1") { g.writes[1] = v }
    if let Some(v) = get("ITEM") { g.item = v > 0 }
    if let Some(v) = get("READS") { g.reads = v }
    if let Some(v) = get("REPLAYS") { g.replays = v }
    if let Some(v) = get("LATE") { g.late = v > 0 }
    if let Some(v) = get("CLOCK1") { g.clocks[1] = v }
    if let Ok(v) = std::env::var("OFF") {
        match v.as_str() { "repair" => g.rules.repair = false, "ledger" => g.rules.ledger = false, "creation" => g.rules.creation = false,
          "restamp" => g.rules.restamp = false, "marks" => g.rules.marks = false, "whole" => g.rules.whole = false, "carried" => g.rules.carried = false, "unchanged" => g.rules.unchanged = false, _ => panic!() }
    }
    g
}

#[test]
fn explore() {
    search(vary(TWO));
}

#[test]
fn walk3() {
    let get = |n: &str, d: u64| std::env::var(n).ok().map_or(d, |v| v.parse::<u64>().unwrap());
    let mut g: Group<3> = Group { rules: vary(TWO).rules, writes: [3; 3], item: false, reads: get("READS", 1) as u8, replays: get("REPLAYS", 3) as u8, late: true, clocks: [0; 3], settings: get("SETTINGS",2) as u8, readings: get("READINGS", 12) as u8 };
    let begun = std::time::Instant::now();
    let (mut failed, mut steps) = (0, 0);
    let first = get("FIRST", 0);
    let mut best: Option<(u64, walks::Fault)> = None;
    for seed in first..first + get("N", 10000) {
        g.item = seed % 2 == 0;
        match walks::walk(&g, seed) { Ok(n) => steps += n, Err(f) => { failed += 1;
          if best.as_ref().is_none_or(|b| b.1.actions.len() > f.actions.len()) { best = Some((seed, f)); } if failed > get("STOP", 1000000) { break } } }
    }
    eprintln!("{failed} failed; {steps} steps; {:?}", begun.elapsed());
    if let Some((seed, f)) = best { g.item = seed % 2 == 0; eprintln!("{seed} {}\n{}", f.property, walks::story(&g, &f.actions)); }
}
