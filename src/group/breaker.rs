//! The breaker: a group whose own writes come back as an application's would copy them round for ever.
//!
//! Our write is known by its digest, which must not change on the way from a put to its record. Whether it does is
//! seen from the first records on: a stamp that is newer than the one before and does not match the content. An
//! application can cause that too, by copying an item with our attribute from member to member and changing it; so
//! some are let through, and many pause the route.

use super::Record;
use crate::clock::Clock;
use crate::control::Gates;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// So many of our writes are looked back at.
const WINDOW: usize = 20;
/// So many strange ones among them break the circuit.
const TOO_MANY: usize = 10;

/// Watches the echoes of one route.
#[derive(Debug)]
pub struct Breaker {
    route: String,
    gates: Option<Gates>,
    clock: Clock,
    /// Whether each of the last ones was strange.
    last: Mutex<VecDeque<bool>>,
}

impl Breaker {
    /// A breaker that has seen nothing; without gates there is nothing to pause.
    #[must_use]
    pub fn new(route: &str, gates: Option<Gates>, clock: Clock) -> Self {
        Self { route: route.to_owned(), gates, clock, last: Mutex::default() }
    }

    /// Looks at a record; pauses the route when too many are strange.
    pub fn sees(&self, record: Record) {
        let strange = match record {
            Record::Write { strange: true, .. } => true,
            Record::Echo { .. } => false,
            _ => return,
        };
        let broken = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.push_back(strange);
            if last.len() > WINDOW {
                last.pop_front();
            }
            let broken = last.iter().filter(|strange| **strange).count() >= TOO_MANY;
            if broken {
                last.clear();
            }
            broken
        };
        if !broken {
            return;
        }
        let why = format!(
            "{TOO_MANY} of the last {WINDOW} writes of shardwalker came back with another content than was written"
        );
        if self.gates.as_ref().is_some_and(|gates| gates.trip(&self.route, &why, self.clock)) {
            tracing::error!(
                route = self.route,
                why,
                "THIS WOULD BE A LOOP: the route paused itself; find what changes the items (an application that \
                 copies them with our attribute, or a defect of shardwalker), then: shardwalker resume {}",
                self.route
            );
        }
    }
}
