//! Where a cutover stands, which step follows which, and which of a route's two directions is walked: pure.
//!
//! A cutover counts turns. In even ones writers are at the route's source and the route is walked; in odd ones they are
//! at its peer and the way back is walked. One row in the state table says where it stands, among the controls that every
//! worker looks at; every change of it is conditional on the one before ([`Standings`](super::rows::Standings)).

use crate::config::Route;
use crate::control::{Pause, Scope};
use crate::item::Item;
use crate::lease::fleet::CONTROL;
use crate::state::{Row, SK, get_number, get_text, number, text};
use crate::version::Hlc;
use aws_sdk_dynamodb::types::AttributeValue;
use serde::Serialize;
use std::collections::BTreeSet;

/// The `by` of the pauses that a cutover makes.
pub const CUTOVER: &str = "cutover";
/// Why both directions of a finished cutover are paused.
pub const FOR_GOOD: &str = "there is no way back any more";
/// In place of a peer in the row's key; no member's name has a slash.
const PART: &str = "/cutover";

/// A step of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Writers write at this turn's side, and its direction is walked.
    Live,
    /// The checks have passed; writers are to be stopped.
    Stopping,
    /// Writers are stopped; what they wrote is on its way.
    Draining,
    /// Nothing is written to either side any more; they are compared.
    Sealed,
    /// They are the same; the other direction is made ready.
    Turning,
    /// There is no way back any more, and nothing is walked.
    Finished,
}

/// What moves a cutover on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// All checks passed.
    Checked,
    /// Writers are stopped: by a Deny that was attached, or by the operator's word.
    Stopped,
    /// The marker came and went, and after it the stream was quiet.
    Drained,
    /// The comparison found no difference, and nothing was written meanwhile.
    Matched,
    /// The other direction has its place in the stream.
    Pinned,
    /// Something was written after the stop, or differs.
    Unproven,
    /// The operator calls it off.
    Undone,
    /// The operator gives the way back up.
    Ended,
}

impl Step {
    /// The step that follows in the same turn, or with [`Event::Pinned`] in the next; `None` where the event has no meaning.
    #[must_use]
    pub const fn after(self, event: Event) -> Option<Self> {
        Some(match (self, event) {
            (Self::Live, Event::Checked) => Self::Stopping,
            (Self::Live, Event::Ended) => Self::Finished,
            (Self::Stopping, Event::Stopped) => Self::Draining,
            (Self::Draining, Event::Drained) => Self::Sealed,
            (Self::Sealed, Event::Matched) => Self::Turning,
            (Self::Turning, Event::Pinned) => Self::Live,
            (Self::Draining | Self::Sealed, Event::Unproven) => Self::Stopping,
            (Self::Stopping | Self::Draining | Self::Sealed | Self::Turning, Event::Undone) => Self::Live,
            _ => return None,
        })
    }

    /// As the row and people name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Stopping => "stopping",
            Self::Draining => "draining",
            Self::Sealed => "sealed",
            Self::Turning => "turning",
            Self::Finished => "finished",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Live, Self::Stopping, Self::Draining, Self::Sealed, Self::Turning, Self::Finished]
            .into_iter()
            .find(|step| step.name() == text)
    }
}

/// Where a route's cutover stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The route that has a way back.
    pub route: String,
    /// How often writers have moved.
    pub turn: u64,
    /// The step.
    pub step: Step,
    /// Since when (RFC 3339); empty before the first move.
    pub since: String,
    /// Versions of this turn are above this, and all of earlier turns are not.
    pub floor: Hlc,
    /// Members whose tables have a Deny that was attached here, and must go before writers come back.
    pub denies: BTreeSet<String>,
    /// The marker of this turn's drain, at the side where writers were, until it is away.
    pub marker: Option<String>,
    /// The marker's key, when it is not the reserved one.
    pub marker_key: Option<Item>,
    /// The process that wrote the row.
    pub writer: String,
    /// Moves with every change; 0 before there is a row.
    pub revision: u64,
}

impl Standing {
    /// Before anything was done.
    #[must_use]
    pub fn new(route: &str) -> Self {
        Self {
            route: route.to_owned(),
            turn: 0,
            step: Step::Live,
            since: String::new(),
            floor: Hlc::ZERO,
            denies: BTreeSet::new(),
            marker: None,
            marker_key: None,
            writer: String::new(),
            revision: 0,
        }
    }

    /// Whether writers are, or were last, at the route's peer.
    #[must_use]
    pub const fn reversed(&self) -> bool {
        self.turn % 2 == 1
    }

    /// Where it stands after an event; `None` where that has no meaning, as has the end of a way back while the route
    /// itself is walked.
    #[must_use]
    pub fn after(&self, event: Event) -> Option<Self> {
        let step = self.step.after(event)?;
        if event == Event::Ended && !self.reversed() {
            return None;
        }
        let turn = self.turn + u64::from(event == Event::Pinned);
        Some(Self { turn, step, ..self.clone() })
    }

    /// The routes that write nothing: the direction that is not walked, and both while the two sides are compared.
    #[must_use]
    pub fn closed(&self) -> Vec<String> {
        let (forth, back) = (self.route.clone(), way_back(&self.route));
        match self.step {
            Step::Live | Step::Stopping | Step::Draining if self.reversed() => vec![forth],
            Step::Live | Step::Stopping | Step::Draining => vec![back],
            Step::Sealed | Step::Turning | Step::Finished => vec![forth, back],
        }
    }

    /// The sort key of its row.
    #[must_use]
    pub fn sort(route: &str) -> String {
        format!("{CONTROL}{route}#{PART}")
    }

    /// The row's attributes but its key.
    #[must_use]
    pub fn to_row(&self) -> Row {
        let mut row = Row::from([
            ("turn".to_owned(), number(self.turn)),
            ("step".to_owned(), text(self.step.name())),
            ("since".to_owned(), text(&self.since)),
            ("floor".to_owned(), text(self.floor.to_string())),
            ("writer".to_owned(), text(&self.writer)),
            (REVISION.to_owned(), number(self.revision)),
        ]);
        if !self.denies.is_empty() {
            let denies = self.denies.iter().cloned().collect();
            row.insert("denies".to_owned(), AttributeValue::Ss(denies));
        }
        if let Some(marker) = &self.marker {
            row.insert("marker".to_owned(), text(marker));
        }
        if let Some(Item(key)) = &self.marker_key {
            row.insert("marker_key".to_owned(), AttributeValue::M(key.clone()));
        }
        row
    }

    /// What a row says; `None` for one that is no cutover's.
    #[must_use]
    pub fn from_row(row: &Row) -> Option<Self> {
        let (route, part) = get_text(row, SK)?.strip_prefix(CONTROL)?.rsplit_once('#')?;
        if part != PART {
            return None;
        }
        let denies = row.get("denies").and_then(|denies| denies.as_ss().ok());
        Some(Self {
            route: route.to_owned(),
            turn: get_number(row, "turn")?,
            step: Step::parse(get_text(row, "step")?)?,
            since: get_text(row, "since").unwrap_or_default().to_owned(),
            floor: get_text(row, "floor")?.parse().ok()?,
            denies: denies.into_iter().flatten().cloned().collect(),
            marker: get_text(row, "marker").map(str::to_owned),
            marker_key: row.get("marker_key").and_then(|key| key.as_m().ok()).cloned().map(Item),
            writer: get_text(row, "writer").unwrap_or_default().to_owned(),
            revision: get_number(row, REVISION)?,
        })
    }
}

/// The attribute that moves with every change of the row.
pub(super) const REVISION: &str = "revision";

/// The name of a route's way back.
#[must_use]
pub fn way_back(route: &str) -> String {
    format!("{route}/back")
}

/// How a route is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    /// The turn; 0 for a route that has no way back.
    pub turn: u64,
    /// Versions begin above this.
    pub floor: Hlc,
}

/// The turn in which a route may be written to beside the workers, by the rows of the controls; why it may not: it is not
/// its turn, or writers are being moved. What was read in one turn must not be written in another.
///
/// # Errors
/// Why not.
pub fn turn(route: &Route, rows: &[Row]) -> Result<u64, String> {
    let name = &route.name;
    let walk = walk(route, rows).ok_or_else(|| {
        format!("it is not the turn of {name}: writers are at the side that it would write to")
    })?;
    match pauses(rows).find(|(scope, _)| scope.route == *name) {
        Some((_, pause)) => Err(format!("{name} is {pause}")),
        None => Ok(walk.turn),
    }
}

/// How a route is walked, by the rows of the controls; `None` when it is not its turn.
#[must_use]
pub fn walk(route: &Route, rows: &[Row]) -> Option<Walk> {
    let Some(pair) = route.pair() else { return Some(Walk { turn: 0, floor: Hlc::ZERO }) };
    let sort = Standing::sort(pair);
    let standing = match rows.iter().find(|row| get_text(row, SK) == Some(&sort)) {
        None => Standing::new(pair),
        // One that cannot be read says at least that somebody has moved something.
        Some(row) => Standing::from_row(row)?,
    };
    let its_turn = standing.reversed() == route.back_of.is_some() && standing.step != Step::Finished;
    its_turn.then_some(Walk { turn: standing.turn, floor: standing.floor })
}

/// The pauses that cutovers make.
pub(crate) fn pauses(rows: &[Row]) -> impl Iterator<Item = (Scope, Pause)> {
    let unreadable = rows.iter().filter_map(|row| {
        let (route, part) = get_text(row, SK)?.strip_prefix(CONTROL)?.rsplit_once('#')?;
        (part == PART && Standing::from_row(row).is_none()).then_some(route)
    });
    let unreadable = unreadable.flat_map(|route| {
        let why = "the row of its cutover cannot be read by this version".to_owned();
        let pause = Pause { why, by: CUTOVER.to_owned(), since: String::new() };
        [route.to_owned(), way_back(route)].map(|route| (Scope { route, peer: None }, pause.clone()))
    });
    let known = rows.iter().filter_map(Standing::from_row).flat_map(|standing| {
        let why = match standing.step {
            Step::Finished => FOR_GOOD.to_owned(),
            Step::Sealed | Step::Turning => "writers are being moved".to_owned(),
            Step::Live | Step::Stopping | Step::Draining => "writers are at the other side".to_owned(),
        };
        let pause = Pause { why, by: CUTOVER.to_owned(), since: standing.since.clone() };
        let scope = |route| (Scope { route, peer: None }, pause.clone());
        standing.closed().into_iter().map(scope).collect::<Vec<_>>()
    });
    known.chain(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: [Step; 6] =
        [Step::Live, Step::Stopping, Step::Draining, Step::Sealed, Step::Turning, Step::Finished];
    const EVENTS: [Event; 8] = [
        Event::Checked,
        Event::Stopped,
        Event::Drained,
        Event::Matched,
        Event::Pinned,
        Event::Unproven,
        Event::Undone,
        Event::Ended,
    ];

    fn at(turn: u64, step: Step) -> Standing {
        Standing { turn, step, revision: 7, floor: Hlc::from_millis(5), ..Standing::new("copy") }
    }

    /// The table of docs/migration.md.
    #[test]
    fn the_documented_moves_are_all_there_are() {
        let guide = include_str!("../../docs/migration.md");
        let mut moves = Vec::new();
        for (from, event) in STEPS.iter().flat_map(|from| EVENTS.map(|event| (*from, event))) {
            if let Some(to) = from.after(event) {
                let event = format!("{event:?}").to_lowercase();
                moves.push(format!("| `{}` | {event} | `{}` |", from.name(), to.name()));
            }
        }
        for known in &moves {
            assert!(guide.contains(known.as_str()), "{known}");
        }
        let (_, table) = guide.split_once("| from | event | to |").unwrap();
        let rows = table.trim_start().lines().skip(1).take_while(|line| line.starts_with('|'));
        assert_eq!(rows.count(), moves.len());
    }

    #[test]
    fn only_a_pin_begins_another_turn_and_only_a_way_back_ends() {
        for event in EVENTS {
            for step in STEPS {
                let turn = at(3, step).after(event).map(|after| after.turn);
                assert!(turn.is_none_or(|turn| turn == 3 + u64::from(event == Event::Pinned)));
            }
        }
        assert_eq!(at(2, Step::Live).after(Event::Ended), None);
        assert_eq!(at(3, Step::Live).after(Event::Ended).map(|after| after.step), Some(Step::Finished));
    }

    #[test]
    fn a_row_that_cannot_be_read_walks_nothing() {
        let config = "[state]\ntable = \"state\"\nregion = \"eu-west-1\"\n\
            [[member]]\nname = \"a\"\ntable = \"arn:aws:dynamodb:eu-west-1:111111111111:table/orders\"\n\
            [[member]]\nname = \"b\"\ntable = \"arn:aws:dynamodb:eu-west-1:222222222222:table/orders\"\n\
            [[route]]\nname = \"copy\"\nfrom = \"a\"\nto = [\"b\"]\nreversible = true\n\
            max_writes_per_second = 7\n";
        let config = crate::config::Config::parse(config, "f", &|_| None).unwrap();
        assert_eq!([&config.routes[0].max_writes[&1], &config.routes[1].max_writes[&0]], [&7, &7]);
        let mut row = at(2, Step::Live).to_row();
        row.insert(SK.to_owned(), text(Standing::sort("copy")));
        assert_eq!(turn(&config.routes[0], &[row.clone()]), Ok(2));
        assert!(turn(&config.routes[1], &[row.clone()]).is_err());
        row.insert("step".to_owned(), text("of a later version"));
        for route in &config.routes {
            assert_eq!((walk(route, &[row.clone()]), turn(route, &[row.clone()]).is_err()), (None, true));
        }
        assert_eq!(pauses(&[row]).count(), 2);
    }

    #[test]
    fn it_survives_the_table_and_closes_what_is_not_walked() {
        let config = "[state]\ntable = \"state\"\nregion = \"eu-west-1\"\n\
            [[member]]\nname = \"a\"\ntable = \"arn:aws:dynamodb:eu-west-1:111111111111:table/orders\"\n\
            [[member]]\nname = \"b\"\ntable = \"arn:aws:dynamodb:eu-west-1:222222222222:table/orders\"\n\
            [[route]]\nname = \"copy\"\nfrom = \"a\"\nto = [\"b\"]\nreversible = true\n";
        let config = crate::config::Config::parse(config, "f", &|_| None).unwrap();
        let [forth, back] = config.routes.as_slice() else { panic!("{:?}", config.routes) };
        assert_eq!((forth.name.as_str(), back.name.as_str()), ("copy", "copy/back"));
        assert_eq!((walk(forth, &[]).map(|walk| walk.turn), walk(back, &[])), (Some(0), None));
        for (turn, step) in (0..4).flat_map(|turn| STEPS.map(|step| (turn, step))) {
            let standing = Standing {
                denies: BTreeSet::from(["a".to_owned()]),
                marker: Some("m".to_owned()),
                marker_key: Some(Item([("id".to_owned(), text("x"))].into())),
                ..at(turn, step)
            };
            let mut row = standing.to_row();
            row.insert(SK.to_owned(), text(Standing::sort("copy")));
            assert_eq!(Standing::from_row(&row).as_ref(), Some(&standing));
            let rows = [row];
            let walked: Vec<bool> = [forth, back].iter().map(|route| walk(route, &rows).is_some()).collect();
            let live = step != Step::Finished;
            assert_eq!(walked, [live && turn % 2 == 0, live && turn % 2 == 1], "{standing:?}");
            let open = matches!(step, Step::Live | Step::Stopping | Step::Draining);
            let closed: Vec<_> = pauses(&rows).map(|(scope, _)| scope.route).collect();
            for (route, walked) in [forth, back].iter().zip(walked) {
                assert_eq!(closed.contains(&route.name), !(walked && open), "{standing:?} {}", route.name);
            }
        }
    }
}
