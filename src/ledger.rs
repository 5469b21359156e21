//! The ledger: tombstones in the state table.
//!
//! For a scope (on a one-way route: the peer) and a key, the highest version of a delete. It is raised before a
//! delete touches a peer and read, strongly consistent, after a creation there; whichever comes second sees the
//! other. A tombstone expires after the configured retention.
//!
//! Reads that arrive while others are under way are sent together, up to 100 in one BatchGetItem: creations
//! come in bursts, and one read each would double the requests of an initial load.

use crate::clock::Clock;
use crate::failure::{Class, Failure};
use crate::item::Digest;
use crate::state::{EXPIRES, PK, Row, SK, StateTable, get_text, number, text};
use crate::version::Version;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

const VERSION: &str = "version";
/// What BatchGetItem takes.
const BATCH: usize = 100;
/// Batches under way at once: few, so that reads gather; and at most, when enough have gathered to fill one more.
const FLIGHTS: usize = 2;
const MOST_FLIGHTS: usize = 4;

type Answer = Result<Option<Version>, Failure>;

/// What a reader that waits is told.
#[derive(Debug)]
enum Told {
    Answer(Answer),
    /// A flight has ended: the reader flies next, and takes others along.
    Fly(Flight),
}

#[derive(Debug, Default)]
struct Airport {
    flying: usize,
    waiting: VecDeque<(String, oneshot::Sender<Told>)>,
}

/// The right to have a batch under way. Whoever lets it go, even by being dropped, hands it to the next reader.
#[derive(Debug)]
struct Flight(Arc<Mutex<Airport>>);

impl Drop for Flight {
    fn drop(&mut self) {
        let next = {
            let mut airport = lock(&self.0);
            airport.waiting.retain(|(_, sender)| !sender.is_closed());
            let goes_on = airport.flying <= flights(airport.waiting.len());
            let next = if goes_on { airport.waiting.pop_front() } else { None };
            if next.is_none() {
                airport.flying -= 1;
            }
            next
        };
        if let Some((_, sender)) = next {
            // A reader that has just left gives the flight back by dropping it.
            let _ = sender.send(Told::Fly(Self(Arc::clone(&self.0))));
        }
    }
}

/// How many batches may be under way when so many reads wait.
const fn flights(waiting: usize) -> usize {
    if waiting < BATCH { FLIGHTS } else { MOST_FLIGHTS }
}

/// The tombstones of a state table. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    state: StateTable,
    clock: Clock,
    retention: Duration,
    airport: Arc<Mutex<Airport>>,
}

impl Ledger {
    /// The ledger in a state table; tombstones are kept for `retention`.
    #[must_use]
    pub fn new(state: StateTable, clock: Clock, retention: Duration) -> Self {
        Self { state, clock, retention, airport: Arc::default() }
    }

    /// Raises the tombstone of a key to `version`; one that is higher already stays.
    ///
    /// # Errors
    /// The failure of the call; raising again is harmless.
    pub async fn raise(&self, scope: &str, key: Digest, version: Version) -> Result<(), Failure> {
        let expires = (self.clock.since_epoch() + self.retention).as_secs();
        let answer = self
            .state
            .call("UpdateItem")
            .update_item()
            .table_name(self.state.name())
            .key(PK, text(partition(scope, key)))
            .key(SK, text(SORT))
            .update_expression("SET #version = :version, #expires = :expires")
            .condition_expression("attribute_not_exists(#version) OR #version < :version")
            .expression_attribute_names("#version", VERSION)
            .expression_attribute_names("#expires", EXPIRES)
            .expression_attribute_values(":version", text(version.to_string()))
            .expression_attribute_values(":expires", number(expires))
            .send()
            .await
            .map_err(Failure::from);
        match answer {
            Ok(_) => Ok(()),
            Err(failure) if failure.class == Class::Condition => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// The tombstone of a key: the highest version of a delete, or `None`. Strongly consistent.
    ///
    /// # Errors
    /// The failure of the call that carried this read.
    pub async fn read(&self, scope: &str, key: Digest) -> Answer {
        let id = partition(scope, key);
        loop {
            let flight = match self.check_in(&id) {
                Ok(flight) => flight,
                Err(told) => match told.await {
                    Ok(Told::Answer(answer)) => return answer,
                    Ok(Told::Fly(flight)) => flight,
                    // The task that took this read along was dropped on the way. Ask again.
                    Err(_) => continue,
                },
            };
            return self.fly(flight, id).await;
        }
    }

    /// A flight when one is free, else a place among those who wait.
    fn check_in(&self, id: &str) -> Result<Flight, oneshot::Receiver<Told>> {
        let mut airport = lock(&self.airport);
        if airport.flying < flights(airport.waiting.len() + 1) {
            airport.flying += 1;
            return Ok(Flight(Arc::clone(&self.airport)));
        }
        let (sender, told) = oneshot::channel();
        airport.waiting.push_back((id.to_owned(), sender));
        Err(told)
    }

    /// Reads `id` and what others wait for.
    async fn fly(&self, flight: Flight, id: String) -> Answer {
        // Those that are just about to come are taken along.
        tokio::task::yield_now().await;
        let mut passengers: BTreeMap<String, Vec<oneshot::Sender<Told>>> = BTreeMap::new();
        {
            let mut airport = lock(&flight.0);
            let count = airport.waiting.len().min(BATCH - 1);
            for (id, sender) in airport.waiting.drain(..count) {
                passengers.entry(id).or_default().push(sender);
            }
        }
        passengers.entry(id.clone()).or_default();
        let found = self.fetch(passengers.keys().cloned().collect()).await;
        drop(flight);
        let answer = |id: &str| match &found {
            Ok(found) => version_of(found.get(id)),
            Err(failure) => Err(failure.clone()),
        };
        for (id, senders) in passengers {
            for sender in senders {
                // A reader that is gone needs no answer.
                let _ = sender.send(Told::Answer(answer(&id)));
            }
        }
        answer(&id)
    }

    async fn fetch(&self, ids: Vec<String>) -> Result<HashMap<String, Row>, Failure> {
        let row_key = |id: String| HashMap::from([(PK.into(), text(id)), (SK.into(), text(SORT))]);
        let mut keys: Vec<HashMap<String, AttributeValue>> = ids.into_iter().map(row_key).collect();
        let mut found = HashMap::new();
        while !keys.is_empty() {
            let asked = keys.len();
            let request = KeysAndAttributes::builder()
                .set_keys(Some(keys))
                .consistent_read(true)
                .build()
                .map_err(|e| Failure::new(Class::Invalid, "Request", e.to_string()))?;
            let answer = self
                .state
                .call("BatchGetItem")
                .batch_get_item()
                .request_items(self.state.name(), request)
                .send()
                .await?;
            for row in answer.responses.unwrap_or_default().into_values().flatten() {
                if let Some(id) = get_text(&row, PK) {
                    found.insert(id.to_owned(), row);
                }
            }
            keys = answer.unprocessed_keys.unwrap_or_default().into_values().flat_map(|k| k.keys).collect();
            if keys.len() == asked {
                return Err(Failure::new(Class::Throttled, "UnprocessedKeys", "the state table took none"));
            }
        }
        Ok(found)
    }
}

/// Every tombstone is a partition of its own, so that they spread.
fn partition(scope: &str, key: Digest) -> String {
    format!("ledger#{scope}#{key}")
}

const SORT: &str = "tombstone";

fn version_of(row: Option<&Row>) -> Answer {
    let Some(row) = row else { return Ok(None) };
    get_text(row, VERSION).and_then(|v| v.parse().ok()).map(Some).ok_or_else(|| {
        Failure::new(Class::Unrecognised, "BadTombstone", "a tombstone in the state table has no version")
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
