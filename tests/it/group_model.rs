//! model
mod group;
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
    for (name, path) in &d { eprintln!("{name}: {}", path.clone().into_actions().len()); }
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
    g.rules.window = get("WINDOW").is_some();
    if let Ok(v) = std::env::var("OFF") {
        match v.as_str() { "repair" => g.rules.repair = false, "ledger" => g.rules.ledger = false, "creation" => g.rules.creation = false,
          "restamp" => g.rules.restamp = false, "marks" => g.rules.marks = false, "replaces" => g.rules.replaces = false, "carried" => g.rules.carried = false, "unchanged" => g.rules.unchanged = false, _ => panic!() }
    }
    g
}

#[test]
fn explore() {
    search(vary(TWO));
}
