//! The breaker: a group whose own writes come back as an application's would copy them round for ever.
//!
//! Our write is known by its digest, which must not change on the way from a put to its record. Whether it does is
//! seen from the first records on: a stamp that is newer than that of the item before and does not match the content. An
//! application can cause that too, by copying an item with our attribute from member to member and changing it; so
//! some are let through, and many pause the route.

use super::Record;
use crate::clock::Clock;
use crate::control::Gates;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// So many of our writes are looked back at, for so long: a loop is a matter of seconds.
const WINDOW: usize = 20;
const LOOK_BACK: Duration = Duration::from_secs(600);
/// So many strange ones among them break the circuit.
const TOO_MANY: usize = 10;

/// Watches the echoes of one route.
#[derive(Debug)]
pub struct Breaker {
    route: String,
    gates: Option<Gates>,
    clock: Clock,
    /// When each of the last ones came, and whether it was strange.
    last: Mutex<VecDeque<(Instant, bool)>>,
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
        if !self.too_many(strange) {
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

    /// Takes one more into the window; whether too many of it are strange, which empties it.
    fn too_many(&self, strange: bool) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.push_back((Instant::now(), strange));
        let old = |(at, _): &(Instant, bool)| at.elapsed() > LOOK_BACK;
        while last.len() > WINDOW || last.front().is_some_and(old) {
            last.pop_front();
        }
        let too_many = last.iter().filter(|(_, strange)| *strange).count() >= TOO_MANY;
        if too_many {
            last.clear();
        }
        too_many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many records it breaks, of a kind each and so far apart.
    async fn breaks(pause: Duration, strange: impl Fn(usize) -> bool) -> Option<usize> {
        let breaker = Breaker::new("orders/a", None, Clock::system());
        for record in 0..200 {
            if breaker.too_many(strange(record)) {
                return Some(record + 1);
            }
            tokio::time::sleep(pause).await;
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn it_breaks_when_half_of_the_last_writes_are_strange_and_close_together() {
        let soon = Duration::from_secs(1);
        assert_eq!(breaks(soon, |_| true).await, Some(10));
        assert_eq!(breaks(soon, |record| record % 2 == 0).await, Some(19));
        assert_eq!(breaks(soon, |record| record % 3 == 0).await, None);
        assert_eq!(breaks(Duration::from_secs(120), |_| true).await, None, "races that are far apart");
    }
}
