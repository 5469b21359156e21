//! Random walks through bounds that are too wide to search: seeded, and shrunk when one fails.

use super::group::{Action, Group};
use super::state::State;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use stateright::{Expectation, Model, Property};

/// A walk that broke a property.
pub(super) struct Fault {
    pub(super) property: &'static str,
    /// As few actions as shrinking leaves.
    pub(super) actions: Vec<Action>,
}

/// How likely each kind of action is. Drawn for each walk: in one the lanes run far behind, in another they keep up.
struct Moods<const N: usize> {
    lanes: [[u32; N]; N],
    write: u32,
    replay: u32,
    arrives: u32,
}

const MOODS: [u32; 4] = [1, 3, 10, 30];

impl<const N: usize> Moods<N> {
    fn draw(rng: &mut StdRng) -> Self {
        let mut mood = || MOODS[rng.random_range(0..MOODS.len())];
        let lanes = std::array::from_fn(|_| std::array::from_fn(|_| mood()));
        Self { lanes, write: mood(), replay: mood(), arrives: mood() }
    }

    /// Kinds that offer more actions are not more likely for that.
    fn choose(&self, rng: &mut StdRng, actions: &[Action]) -> Action {
        let kind = |action: &Action| match *action {
            Action::Lane { from, to } => (0, from, to),
            Action::Write { member, .. } => (1, member, 0),
            Action::Read(member) => (2, member, 0),
            Action::Clock { member, .. } => (3, member, 0),
            Action::Replay { from, to, .. } => (4, from, to),
            Action::Arrives(_) => (5, 0, 0),
            Action::Tick => (6, 0, 0),
        };
        let weight = |kind: (u8, u8, u8)| match kind {
            (0, from, to) => 10 * self.lanes[usize::from(from)][usize::from(to)],
            (1..=3, ..) => 5 * self.write,
            (4, ..) => self.replay,
            _ => 5 * self.arrives,
        };
        let mut kinds: Vec<_> = actions.iter().map(kind).collect();
        kinds.dedup();
        let mut at = rng.random_range(0..kinds.iter().copied().map(weight).sum());
        let chosen = kinds.into_iter().find(|kind| {
            let found = at < weight(*kind);
            at = at.saturating_sub(weight(*kind));
            found
        });
        let of_kind: Vec<_> = actions.iter().filter(|action| Some(kind(action)) == chosen).collect();
        *of_kind[rng.random_range(0..of_kind.len())]
    }
}

fn broken<const N: usize>(model: &Group<N>, state: &State<N>) -> Option<&'static str> {
    let broken = |property: &Property<Group<N>>| {
        property.expectation == Expectation::Always && !(property.condition)(model, state)
    };
    model.properties().into_iter().find(broken).map(|property| property.name)
}

/// One walk, to the end of everything, or until `see` has seen enough of the states before and after an action. What
/// was taken.
pub(super) fn wander<const N: usize>(
    model: &Group<N>,
    seed: u64,
    mut see: impl FnMut(&State<N>, &State<N>) -> bool,
) -> Vec<Action> {
    let mut rng = StdRng::seed_from_u64(seed);
    let moods = Moods::<N>::draw(&mut rng);
    let mut state = model.init_states().remove(0);
    let mut taken = Vec::new();
    loop {
        let mut actions = Vec::new();
        model.actions(&state, &mut actions);
        let rests = state.quiet() && state.members.iter().all(|member| member.writes == 0);
        if actions.is_empty() || (rests && rng.random_bool(0.3)) || !model.within_boundary(&state) {
            return taken;
        }
        let action = moods.choose(&mut rng, &actions);
        if let Some(next) = model.next_state(&state, action) {
            taken.push(action);
            if see(&state, &next) {
                return taken;
            }
            state = next;
        }
    }
}

/// One walk in which the properties hold. Its length.
pub(super) fn walk<const N: usize>(model: &Group<N>, seed: u64) -> Result<usize, Fault> {
    let mut property = None;
    let taken = wander(model, seed, |_, after| {
        property = broken(model, after);
        property.is_some()
    });
    match property {
        Some(property) => Err(Fault { property, actions: shrink(model, taken) }),
        None => Ok(taken.len()),
    }
}

/// Leaves out what the fault does not need: in the end each action is one without which nothing breaks.
fn shrink<const N: usize>(model: &Group<N>, mut actions: Vec<Action>) -> Vec<Action> {
    let mut at = 0;
    while at < actions.len() {
        let without: Vec<_> = actions[..at].iter().chain(&actions[at + 1..]).copied().collect();
        match replay(model, &without) {
            Some(fewer) => (actions, at) = (fewer, 0),
            None => at += 1,
        }
    }
    actions
}

/// Takes these actions, as far as they are possible, then lets the lanes come to rest; what was taken, when a
/// property broke.
fn replay<const N: usize>(model: &Group<N>, actions: &[Action]) -> Option<Vec<Action>> {
    let mut state = model.init_states().remove(0);
    let mut taken = Vec::new();
    let mut given = actions.iter().copied();
    loop {
        let mut possible = Vec::new();
        model.actions(&state, &mut possible);
        let rest =
            |action: &Action| matches!(action, Action::Lane { .. } | Action::Arrives(_) | Action::Tick);
        let action = given.find(|action| possible.contains(action));
        let action = action.or_else(|| possible.iter().copied().find(rest))?;
        state = model.next_state(&state, action)?;
        taken.push(action);
        if broken(model, &state).is_some() {
            return (taken.len() <= actions.len()).then_some(taken);
        }
    }
}

/// What happened, a line an action.
pub(super) fn story<const N: usize>(model: &Group<N>, actions: &[Action]) -> String {
    let mut state = model.init_states().remove(0);
    let mut lines = Vec::new();
    for action in actions {
        let step = match *action {
            Action::Lane { from, to } => state.lanes[usize::from(from)][usize::from(to)].step,
            _ => None,
        };
        let Some(next) = model.next_state(&state, *action) else { break };
        state = next;
        let items: Vec<_> = state.members.iter().map(|member| member.item).collect();
        lines.push(format!("{action:?} {step:?}\n    -> {items:?} ledger {:?}", state.ledger));
    }
    lines.join("\n")
}
