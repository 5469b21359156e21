//! Which shards this worker hands to which other: pure.
//!
//! Whoever holds shards knows what they weigh, so balancing pushes: a worker above the mean gives to one below it.
//! The heaviest worker gives to the lightest, the second heaviest to the second lightest, and so on: as long as
//! the workers see about the same figures, nobody is given shards by two at the same time. A shard moves only when
//! that brings the two nearer, and only when one of them is more than a tenth off the mean. Each move makes the sum
//! of the squares of all loads smaller, so there is an end to it.

use crate::lease::fleet::Fellow;

/// What a worker that may hand over shards looks at.
#[derive(Debug)]
pub struct Scales<'a> {
    /// This worker: its name, its shards of all routes, and what they weigh without those under way.
    pub me: Fellow,
    /// The other workers of the route that live; what is under way to them counts as theirs.
    pub fellows: &'a [Fellow],
    /// The shards of the route that may be handed over, each with its weight.
    pub shards: Vec<(&'a str, f64)>,
    /// How many shards of the route this worker walks.
    pub walking: usize,
    /// How many of them it is handing over already.
    pub under_way: usize,
}

/// A shard to hand over.
#[derive(Debug, Clone, PartialEq)]
pub struct HandOver {
    /// The shard.
    pub shard: String,
    /// The worker that shall have it.
    pub target: String,
    /// What it weighs.
    pub weight: f64,
}

/// Two loads are even when both are within this part of the mean.
const EVEN: f64 = 0.1;
/// A shard moves when it weighs at most this part of the difference. Half would even it out; the rest keeps a
/// record more or less from standing in the way, and still leaves a tenth of the difference at most.
const FITS: f64 = 0.55;
/// Shards under way at the same time: two, and for a worker with many one in fifty, so that a worker that joins a
/// large fleet has its share within minutes.
const UNDER_WAY: (usize, usize, usize) = (2, 50, 16);

/// Decides what to hand over now.
#[must_use]
pub fn balance(mut scales: Scales<'_>) -> Vec<HandOver> {
    let (least, part, most) = UNDER_WAY;
    let limit = (scales.walking / part).clamp(least, most).saturating_sub(scales.under_way);
    let mut moves = Vec::new();
    let mut all: Vec<Fellow> = scales.fellows.to_vec();
    all.push(scales.me.clone());
    // Heaviest first, and of the same weight the one that gives first.
    scales.shards.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    while moves.len() < limit {
        let Some((mine, target)) = pair(&all, &scales.me.name) else { break };
        let (mean, load) = (mean(&all), all[target].load);
        let difference = all[mine].load - load;
        let even = all[mine].load - mean <= EVEN * mean && mean - load <= EVEN * mean;
        let fits = |(_, weight): &(&str, f64)| *weight <= FITS * difference;
        let Some(next) = scales.shards.iter().position(fits).filter(|_| !even) else { break };
        let (shard, weight) = scales.shards.remove(next);
        all[mine].load -= weight;
        all[mine].shards = all[mine].shards.saturating_sub(1);
        all[target].load += weight;
        moves.push(HandOver { shard: shard.to_owned(), target: all[target].name.clone(), weight });
    }
    moves
}

/// The mean of the loads that can be evened out: a worker with one heavy shard cannot give half of it away.
fn mean(all: &[Fellow]) -> f64 {
    let mut left: Vec<&Fellow> = all.iter().collect();
    loop {
        let mean = left.iter().map(|fellow| fellow.load).sum::<f64>() / left.len().max(1) as f64;
        let before = left.len();
        left.retain(|fellow| fellow.shards > 1 || fellow.load <= mean);
        if left.len() == before {
            return mean;
        }
    }
}

/// This worker and the one that it gives to, when it is above the mean and there is such a one.
fn pair(all: &[Fellow], me: &str) -> Option<(usize, usize)> {
    let mean = mean(all);
    let ordered = |above: bool| {
        let mut some: Vec<usize> = (0..all.len())
            .filter(|i| if above { all[*i].load > mean } else { all[*i].load < mean })
            .collect();
        some.retain(|i| !above || all[*i].shards > 1);
        some.sort_by(|a, b| all[*a].load.total_cmp(&all[*b].load).then(all[*b].name.cmp(&all[*a].name)));
        some
    };
    let givers = ordered(true);
    let mine = givers.iter().position(|i| all[*i].name == me)?;
    let target = *ordered(false).get(givers.len() - 1 - mine)?;
    Some((givers[mine], target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::fleet::{RATE_OF_A_SHARD, weight};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Held = BTreeMap<String, BTreeMap<String, f64>>;

    fn fellow(name: &str, shards: &BTreeMap<String, f64>) -> Fellow {
        Fellow { name: name.to_owned(), shards: shards.len() as u64, load: shards.values().sum() }
    }

    fn moves(held: &Held, me: &str) -> Vec<HandOver> {
        let fellows: Vec<_> = held.iter().filter(|(n, _)| *n != me).map(|(n, s)| fellow(n, s)).collect();
        let shards = held[me].iter().map(|(shard, weight)| (shard.as_str(), *weight)).collect();
        let me_now = fellow(me, &held[me]);
        balance(Scales { me: me_now, fellows: &fellows, shards, walking: held[me].len(), under_way: 0 })
    }

    /// All workers decide on the same figures, then all moves happen.
    fn round(held: &mut Held) -> usize {
        let names: Vec<String> = held.keys().cloned().collect();
        let all: Vec<_> =
            names.iter().flat_map(|me| moves(held, me).into_iter().map(move |m| (me, m))).collect();
        for (from, step) in &all {
            let weight = held.get_mut(*from).unwrap().remove(&step.shard).expect("it holds what it gives");
            held.get_mut(&step.target).unwrap().insert(step.shard.clone(), weight);
        }
        all.len()
    }

    fn fleet(sizes: &[usize], weight: impl Fn(usize) -> f64) -> Held {
        let mut next = 0..;
        let mut shards =
            |size: usize| next.by_ref().take(size).map(|n: usize| (format!("s{n:05}"), weight(n))).collect();
        sizes.iter().enumerate().map(|(w, size)| (format!("w{w:03}"), shards(*size))).collect()
    }

    fn sizes(held: &Held) -> Vec<usize> {
        held.values().map(BTreeMap::len).collect()
    }

    fn settle(held: &mut Held) -> usize {
        (1..10_000).find(|_| round(held) == 0).expect("it comes to rest")
    }

    #[test]
    fn who_comes_gets_a_share_and_nobody_gives_more_than_that() {
        for (before, after) in [
            (&[12, 0, 0][..], &[4, 4, 4][..]),
            (&[6, 6, 0], &[4, 4, 4]),
            (&[4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 0], &[4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3]),
            (&[2, 0], &[1, 1]),
            (&[1, 0], &[1, 0]),
            (&[21, 20, 19], &[21, 20, 19]),
        ] {
            let mut held = fleet(before, |_| 1.0);
            let mut moved = 0;
            loop {
                match round(&mut held) {
                    0 => break,
                    n => moved += n,
                }
            }
            let mut sizes = sizes(&held);
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            assert_eq!(sizes, after);
            let surplus: usize = before.iter().zip(after).map(|(b, a)| b.saturating_sub(*a)).sum();
            assert!(moved <= surplus + 1, "{moved} moves for {surplus}");
        }
    }

    #[test]
    fn a_hot_shard_weighs_more_than_its_idle_neighbours() {
        let hot = |n: usize| weight(if n == 0 { 5.0 * RATE_OF_A_SHARD } else { 0.0 });
        let mut held = fleet(&[7, 5], hot);
        settle(&mut held);
        let with_the_hot_one = held.values().find(|shards| shards.contains_key("s00000")).unwrap();
        assert!((3..=4).contains(&with_the_hot_one.len()), "{held:?}");
        // One that outweighs all others together stays alone, and the others are evened out without it.
        let mut held = fleet(&[1, 9, 0], |n| if n == 0 { 100.0 } else { 1.0 });
        settle(&mut held);
        let mut sizes = sizes(&held);
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 4, 5]);
    }

    #[test]
    fn few_move_at_a_time_and_what_is_under_way_counts() {
        let held = fleet(&[30, 0], |_| 1.0);
        assert_eq!(moves(&held, "w000").len(), 2);
        assert_eq!(moves(&held, "w001"), []);
        assert_eq!(moves(&fleet(&[1000, 0], |_| 1.0), "w000").len(), 16);
        let (me, fellows) = (fellow("w000", &held["w000"]), [fellow("w001", &held["w001"])]);
        let scales = Scales { me, fellows: &fellows, shards: vec![("s", 1.0)], walking: 30, under_way: 2 };
        assert_eq!(balance(scales), []);
    }

    proptest! {
        #[test]
        fn any_fleet_comes_to_rest_in_balance(
            sizes in prop::collection::vec(0_usize..40, 1..12),
            rates in prop::collection::vec(0.0..2.0 * RATE_OF_A_SHARD, 40),
        ) {
            let mut held = fleet(&sizes, |n| weight(rates[n % rates.len()]));
            let rounds = settle(&mut held);
            // Two at a time, at least one giver at a time, with a margin for moves that were decided on old figures.
            let total: usize = sizes.iter().sum();
            prop_assert!(rounds <= 2 * total + 2, "{} rounds for {} shards", rounds, total);
            prop_assert_eq!(round(&mut held), 0, "no move after rest");
            let loads: Vec<f64> = held.values().map(|shards| shards.values().sum()).collect();
            let mean = loads.iter().sum::<f64>() / loads.len() as f64;
            for (load, shards) in loads.iter().zip(held.values()) {
                // No shard weighs more than 3.
                prop_assert!(shards.len() <= 1 || load - mean <= 6.0 + 0.2 * mean, "{loads:?}");
            }
        }
    }
}
