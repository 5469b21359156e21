//! The operator's controls: pausing a route, or one of its peers, and letting it go on.
//!
//! A pause is a row in the state table, so it reaches every worker and outlives all of them. Owns those rows, and
//! the [`Gates`] by which a running worker's lanes see whether they may start anything new. What is under way when
//! a gate closes is finished; what was read waits, and nothing is lost while the stream keeps the records.
//!
//! A gate also stays closed while the items of a peer have another shape than the route's ([`accepted`]).
//!
//! Rows: `fleet` / `control#<route>#<peer>`, with `*` for all peers of a route.

use crate::clock::Clock;
use crate::cutover::standing;
use crate::failure::Failure;
use crate::lease::fleet::{CONTROL, FLEET};
use crate::retry::{self, Jitter, Policy};
use crate::shape::accepted::{self, Expected};
use crate::state::{Row, SK, StateTable, get_text, key, text};
use aws_sdk_dynamodb::types::AttributeValue;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// In place of a peer: all of the route's.
const ALL: &str = "*";
/// The `by` of a pause that a route's guard made.
pub const GUARD: &str = "guard";

/// Why something is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pause {
    /// The reason, in the operator's words or the guard's.
    pub why: String,
    /// Who paused it: a user at a host, or [`GUARD`].
    pub by: String,
    /// Since when (RFC 3339).
    pub since: String,
}

impl Pause {
    /// What an operator does first, to follow the pause.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        if self.by == accepted::SHAPE { "see to that first" } else { "resume it first" }
    }
}

impl std::fmt::Display for Pause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "paused since {} by {}", self.since, self.by)?;
        if !self.why.is_empty() {
            write!(f, ": {}", self.why)?;
        }
        Ok(())
    }
}

/// What a control is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    /// The route.
    pub route: String,
    /// One of its peers; `None` for all.
    pub peer: Option<String>,
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "route {}", self.route)?;
        self.peer.as_ref().map_or(Ok(()), |peer| write!(f, ", peer {peer}"))
    }
}

impl Scope {
    fn sort(&self) -> String {
        format!("{CONTROL}{}#{}", self.route, self.peer.as_deref().unwrap_or(ALL))
    }
}

/// The controls of a state table. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Controls {
    state: StateTable,
    clock: Clock,
}

impl Controls {
    /// The controls in a state table.
    #[must_use]
    pub fn new(state: StateTable, clock: Clock) -> Self {
        Self { state, clock }
    }

    /// The rows of all pauses. Strongly consistent.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn rows(&self) -> Result<Vec<Row>, Failure> {
        self.state.rows(FLEET, CONTROL, &[]).await
    }

    /// Pauses; a pause that is there already gets the new reason.
    ///
    /// # Errors
    /// The failure of the call; pausing again is harmless.
    pub async fn pause(&self, scope: &Scope, why: &str, by: &str) -> Result<Pause, Failure> {
        let since = humantime::format_rfc3339_seconds(self.clock.now()).to_string();
        let pause = Pause { why: why.to_owned(), by: by.to_owned(), since };
        let mut row = key(FLEET, &scope.sort());
        row.extend(to_row(&pause));
        self.state.put(row).await?;
        Ok(pause)
    }

    /// Lets it go on. A pause that is not there stays away.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn resume(&self, scope: &Scope) -> Result<(), Failure> {
        self.state.delete(key(FLEET, &scope.sort())).await
    }
}

fn to_row(pause: &Pause) -> Row {
    Row::from([
        ("paused".to_owned(), AttributeValue::Bool(true)),
        ("why".to_owned(), text(&pause.why)),
        ("by".to_owned(), text(&pause.by)),
        ("since".to_owned(), text(&pause.since)),
    ])
}

/// All that keeps routes and peers from going on: the pauses, and peers whose items have another shape than their route's.
#[must_use]
pub fn closed(rows: &[Row], expected: &Expected) -> BTreeMap<Scope, Pause> {
    let mut closed = pauses(rows);
    for (scope, pause) in accepted::changed(rows, expected) {
        closed.entry(scope).or_insert(pause);
    }
    closed
}

/// The pauses that rows tell of, those that cutovers make included; a row that is none is left out.
#[must_use]
pub fn pauses(rows: &[Row]) -> BTreeMap<Scope, Pause> {
    let pause = |row: &Row| {
        row.get("paused")?.as_bool().ok().filter(|paused| **paused)?;
        let (route, peer) = get_text(row, SK)?.strip_prefix(CONTROL)?.rsplit_once('#')?;
        let peer = (peer != ALL).then(|| peer.to_owned());
        let field = |name| get_text(row, name).unwrap_or_default().to_owned();
        let pause = Pause { why: field("why"), by: field("by"), since: field("since") };
        Some((Scope { route: route.to_owned(), peer }, pause))
    };
    rows.iter().filter_map(pause).chain(standing::pauses(rows)).collect()
}

/// The gates of a worker's lanes: one for each route and peer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gates {
    gates: Arc<BTreeMap<(String, String), Gate>>,
    /// Routes that this worker paused by itself, until their rows are seen.
    tripped: Arc<Mutex<BTreeMap<String, Tripped>>>,
    /// The shapes that the config gives them.
    expected: Arc<Expected>,
    trips: mpsc::Sender<(String, String)>,
}

#[derive(Debug)]
struct Gate {
    pause: watch::Sender<Option<Pause>>,
    /// When it was opened last.
    opened: Mutex<Instant>,
}

#[derive(Debug)]
struct Tripped {
    pause: Pause,
    /// When the row was written: long after that, its absence is a resume that was never seen otherwise.
    written: Option<Instant>,
}

/// The rows of controls as a worker saw them last; `None` before its first look.
pub type ControlRows = watch::Receiver<Option<Arc<Vec<Row>>>>;

/// What was written this long ago has been seen, if it is still there.
const SEEN_WITHIN: Duration = Duration::from_secs(15);
/// Trips that wait to be written; a route that tripped trips no more, so there are never many.
const TRIPS: usize = 64;

/// Keeps a worker's gates as the rows say, and writes the pauses of its guards.
#[derive(Debug)]
pub struct Keeper {
    gates: Gates,
    controls: Controls,
    trips: mpsc::Receiver<(String, String)>,
}

impl Gates {
    /// Open gates for these routes and peers, and who keeps them.
    #[must_use]
    pub fn new<'a>(
        peers: impl IntoIterator<Item = (&'a str, &'a str)>,
        expected: Expected,
        controls: Controls,
    ) -> (Self, Keeper) {
        let now = Instant::now();
        let gate = || Gate { pause: watch::Sender::new(None), opened: Mutex::new(now) };
        let gates = peers.into_iter().map(|(route, peer)| ((route.to_owned(), peer.to_owned()), gate()));
        let (trips, tripped) = mpsc::channel(TRIPS);
        let (gates, expected) = (Arc::new(gates.collect()), Arc::new(expected));
        let gates = Self { gates, tripped: Arc::default(), expected, trips };
        (gates.clone(), Keeper { gates, controls, trips: tripped })
    }

    /// The gate of a route's peer: closed while it holds a pause. One that nobody knows stays open.
    #[must_use]
    pub fn gate(&self, route: &str, peer: &str) -> watch::Receiver<Option<Pause>> {
        match self.find(route, peer) {
            Some(gate) => gate.pause.subscribe(),
            None => watch::channel(None).1,
        }
    }

    /// Why a route's peer is paused, or when it was last opened.
    ///
    /// # Errors
    /// The pause, while there is one.
    pub fn open_since(&self, route: &str, peer: &str) -> Result<Option<Instant>, Pause> {
        let Some(gate) = self.find(route, peer) else { return Ok(None) };
        match &*gate.pause.borrow() {
            Some(pause) => Err(pause.clone()),
            None => Ok(Some(*lock(&gate.opened))),
        }
    }

    /// Every gate, by route and peer, with its pause while it is closed.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str, Option<Pause>)> {
        self.gates.iter().map(|((route, peer), gate)| (&**route, &**peer, gate.pause.borrow().clone()))
    }

    /// Closes the gates of a route at once, and has the pause written for all workers; `false` when a guard has done
    /// that already.
    pub fn trip(&self, route: &str, why: &str, clock: Clock) -> bool {
        let since = humantime::format_rfc3339_seconds(clock.now()).to_string();
        let pause = Pause { why: why.to_owned(), by: GUARD.to_owned(), since };
        let mut tripped = lock(&self.tripped);
        let of_route = || self.gates.iter().filter(|((name, _), _)| name == route).map(|(_, gate)| gate);
        let by_guard = |gate: &Gate| gate.pause.borrow().as_ref().is_some_and(|pause| pause.by == GUARD);
        if tripped.contains_key(route) || of_route().any(by_guard) {
            return false;
        }
        tripped.insert(route.to_owned(), Tripped { pause: pause.clone(), written: None });
        of_route().for_each(|gate| gate.set(Some(pause.clone())));
        // Full only when more routes trip at once than there can be; the gates here are closed in any case.
        let _ = self.trips.try_send((route.to_owned(), why.to_owned()));
        true
    }

    /// Sets the gates as these rows say.
    pub fn apply(&self, rows: &[Row]) {
        let pauses = closed(rows, &self.expected);
        let whole = |route: &str| pauses.get(&Scope { route: route.to_owned(), peer: None });
        let mut tripped = lock(&self.tripped);
        tripped.retain(|route, trip| {
            let over = trip.written.is_some_and(|written| written.elapsed() > SEEN_WITHIN);
            whole(route).is_none() && !over
        });
        for ((route, peer), gate) in &*self.gates {
            let own = pauses.get(&Scope { route: route.clone(), peer: Some(peer.clone()) });
            let pause = whole(route).or(own).or(tripped.get(route).map(|trip| &trip.pause));
            gate.set(pause.cloned());
        }
    }

    fn written(&self, route: &str) {
        if let Some(trip) = lock(&self.tripped).get_mut(route) {
            trip.written = Some(Instant::now());
        }
    }

    fn find(&self, route: &str, peer: &str) -> Option<&Gate> {
        self.gates.get(&(route.to_owned(), peer.to_owned()))
    }
}

impl Gate {
    fn set(&self, pause: Option<Pause>) {
        self.pause.send_if_modified(|now| {
            if *now == pause {
                return false;
            }
            if pause.is_none() {
                *lock(&self.opened) = Instant::now();
            }
            *now = pause;
            true
        });
    }
}

impl Keeper {
    /// Writes the pauses of guards, until `stop`. The gates are set by the heart's looks.
    pub async fn run(mut self, jitter: Jitter, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some((route, why)) = self.trips.recv() => self.write(&route, &why, &jitter, &stop).await,
            }
        }
    }

    async fn write(&self, route: &str, why: &str, jitter: &Jitter, stop: &CancellationToken) {
        let scope = Scope { route: route.to_owned(), peer: None };
        let notice = |failure: &Failure, tries| {
            if tries % 10 == 1 {
                tracing::warn!(route, why = %failure, "the guard's pause is not written yet; this worker is paused all the same");
            }
        };
        let put = || self.controls.pause(&scope, why, GUARD);
        match retry::run(Policy::FOREVER, jitter, stop, notice, put).await {
            Ok(_) => self.gates.written(route),
            Err(error) => tracing::error!(route, %error, "the guard's pause could not be written"),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(sort: &str, why: &str) -> Row {
        let pause =
            Pause { why: why.to_owned(), by: "me".to_owned(), since: "2026-01-01T00:00:00Z".to_owned() };
        let mut row = to_row(&pause);
        row.insert(SK.to_owned(), text(sort));
        row
    }

    fn gates() -> (Gates, mpsc::Receiver<(String, String)>) {
        let (trips, tripped) = mpsc::channel(TRIPS);
        let gate = || Gate { pause: watch::Sender::new(None), opened: Mutex::new(Instant::now()) };
        let names = [("r", "b"), ("r", "c"), ("s", "b")];
        let gates = names.map(|(route, peer)| ((route.to_owned(), peer.to_owned()), gate()));
        let (gates, expected) = (Arc::new(gates.into()), Arc::default());
        (Gates { gates, tripped: Arc::default(), expected, trips }, tripped)
    }

    fn closed(gates: &Gates) -> Vec<String> {
        let closed =
            gates.all().filter_map(|(route, peer, pause)| pause.map(|p| format!("{route} {peer} {}", p.why)));
        closed.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn gates_follow_the_rows() {
        let (gates, _trips) = gates();
        let mut gate = gates.gate("r", "c");
        gates.apply(&[row("control#r#b", "one"), row("control#s#*", "all")]);
        assert_eq!(closed(&gates), ["r b one", "s b all"]);
        assert!(!gate.has_changed().unwrap());
        gates.apply(&[row("control#r#*", "route"), row("control#r#b", "one")]);
        assert_eq!(closed(&gates), ["r b route", "r c route"]);
        assert_eq!(gate.borrow_and_update().as_ref().map(|p| p.why.as_str()), Some("route"));
        let begun = Instant::now();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(gates.open_since("r", "b").is_err());
        gates.apply(&[]);
        assert_eq!(gates.open_since("r", "b"), Ok(Some(begun + Duration::from_secs(5))));
        assert!(gate.borrow_and_update().is_none());
        // Nobody's gate is open.
        assert!(gates.gate("x", "y").borrow().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_trip_holds_until_its_row_is_seen_or_was_taken_away() {
        let (gates, mut trips) = gates();
        let clock = Clock::system();
        assert!(gates.trip("r", "too much", clock));
        assert!(!gates.trip("r", "too much", clock), "once");
        assert_eq!(trips.recv().await, Some(("r".to_owned(), "too much".to_owned())));
        // Rows that were read before it was written say nothing.
        gates.apply(&[]);
        assert_eq!(closed(&gates).len(), 2);
        gates.written("r");
        let mut seen = row("control#r#*", "too much");
        seen.insert("by".to_owned(), text(GUARD));
        gates.apply(&[seen]);
        assert!(!gates.trip("r", "too much", clock), "another worker's guard sees it too");
        gates.apply(&[]);
        assert_eq!(closed(&gates), [""; 0]);
        // Resumed before anybody saw it.
        assert!(gates.trip("r", "again", clock));
        gates.written("r");
        gates.apply(&[]);
        assert_eq!(closed(&gates).len(), 2);
        tokio::time::advance(SEEN_WITHIN + Duration::from_secs(1)).await;
        gates.apply(&[]);
        assert_eq!(closed(&gates), [""; 0]);
    }

    #[test]
    fn rows_that_are_no_pauses_are_left_out() {
        let mut open = row("control#r#*", "");
        open.insert("paused".to_owned(), AttributeValue::Bool(false));
        assert_eq!(pauses(&[open, row("control#r", ""), row("worker#w", ""), Row::new()]), BTreeMap::new());
        let found = pauses(&[row("control#a.b-c#*", "w")]);
        let scope = found.keys().next().unwrap();
        assert_eq!(scope, &Scope { route: "a.b-c".to_owned(), peer: None });
        assert_eq!(scope.sort(), "control#a.b-c#*");
        assert_eq!(found[scope].to_string(), "paused since 2026-01-01T00:00:00Z by me: w");
    }
}
