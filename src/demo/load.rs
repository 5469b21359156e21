//! The application of the demo: writes airports into the source table, at a rate, from a seed.
//!
//! It knows nothing of any replication. Every write changes its item, so every write makes one stream record.
//! The order and content of the writes follow from the seed; how many there are follows from time.

use super::DemoError;
use super::stage::KEY;
use crate::failure::Failure;
use crate::item::Item;
use crate::json;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Three hundred airports of the United States, in DynamoDB JSON (public domain).
const AIRPORTS: &str = include_str!("airports.jsonl");
/// The attribute that tells one write of an item from another.
pub const REVISION: &str = "revision";

/// What a write was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A put of an airport that was not there.
    Insert,
    /// A put over one that was, or an update of some of its attributes.
    Update,
    /// A delete of one that was there.
    Delete,
}

/// One write, as the source acknowledged it.
#[derive(Debug, Clone)]
pub struct Write {
    /// Its number: the revision of the item after it.
    pub number: u64,
    /// The airport.
    pub key: Arc<str>,
    /// What it was.
    pub kind: Kind,
    /// When the source's answer came.
    pub at: Instant,
}

/// How many writes of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Inserts.
    pub inserts: u64,
    /// Updates.
    pub updates: u64,
    /// Deletes.
    pub deletes: u64,
}

impl Tally {
    /// All of them.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.inserts + self.updates + self.deletes
    }

    fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Insert => self.inserts += 1,
            Kind::Update => self.updates += 1,
            Kind::Delete => self.deletes += 1,
        }
    }
}

struct Airport {
    key: Arc<str>,
    item: Item,
}

/// The application.
pub struct Load {
    client: Client,
    table: String,
    chance: StdRng,
    airports: Vec<Airport>,
    /// Indices of the airports that are in the table, and of those that are not.
    present: Vec<usize>,
    absent: Vec<usize>,
    tally: watch::Sender<Tally>,
}

impl Load {
    /// An application that has written nothing yet, and the counter of its writes.
    ///
    /// # Errors
    /// When the embedded airports cannot be read, which a test excludes.
    pub fn new(client: Client, table: &str, seed: u64) -> Result<(Self, watch::Receiver<Tally>), DemoError> {
        let airports = airports()?;
        let absent = (0..airports.len()).collect();
        let (tally, shown) = watch::channel(Tally::default());
        let load = Self {
            client,
            table: table.to_owned(),
            chance: StdRng::seed_from_u64(seed),
            airports,
            present: Vec::new(),
            absent,
            tally,
        };
        Ok((load, shown))
    }

    /// Inserts half of the airports, as fast as the source takes them.
    ///
    /// # Errors
    /// The failure of a write.
    pub async fn fill(&mut self) -> Result<(), DemoError> {
        for _ in 0..self.airports.len() / 2 {
            self.write(Kind::Insert).await?;
        }
        Ok(())
    }

    /// Writes at most `rate` times a second until `stop`; every write is told to `observers`.
    ///
    /// # Errors
    /// The failure of a write.
    pub async fn run(
        mut self,
        rate: u32,
        observers: Vec<mpsc::Sender<Write>>,
        stop: CancellationToken,
    ) -> Result<(), DemoError> {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
        // What a slow moment held up is made up for, so that the rate holds over the whole run.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            let kind = self.choose();
            let write = self.write(kind).await?;
            for observer in &observers {
                // An observer that is gone has failed; whoever owns it says so.
                let _ = observer.send(write.clone()).await;
            }
        }
    }

    /// A fifth inserts, a fifth deletes, the rest updates.
    fn choose(&mut self) -> Kind {
        match self.chance.random_range(0..5) {
            0 if !self.absent.is_empty() => Kind::Insert,
            1 if !self.present.is_empty() => Kind::Delete,
            _ if self.present.is_empty() => Kind::Insert,
            _ => Kind::Update,
        }
    }

    async fn write(&mut self, kind: Kind) -> Result<Write, DemoError> {
        let number = self.tally.borrow().total() + 1;
        let index = match kind {
            Kind::Insert => {
                let at = self.chance.random_range(0..self.absent.len());
                let index = self.absent.swap_remove(at);
                self.present.push(index);
                index
            }
            Kind::Delete => {
                let at = self.chance.random_range(0..self.present.len());
                let index = self.present.swap_remove(at);
                self.absent.push(index);
                index
            }
            Kind::Update => {
                // Some are written far more often than others.
                let draw: f64 = self.chance.random();
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    clippy::cast_precision_loss,
                    reason = "an index below the length"
                )]
                let at = (draw * draw * draw * self.present.len() as f64) as usize;
                self.present[at.min(self.present.len() - 1)]
            }
        };
        let partial = kind == Kind::Update && self.chance.random();
        let airport = &self.airports[index];
        let revision = AttributeValue::N(number.to_string());
        let result = match kind {
            Kind::Delete => {
                let request = self.client.delete_item().table_name(&self.table);
                let key = AttributeValue::S(airport.key.to_string());
                request.key(KEY, key).send().await.map(drop).map_err(Failure::from)
            }
            Kind::Update if partial => {
                let request = self.client.update_item().table_name(&self.table);
                let request = request
                    .key(KEY, AttributeValue::S(airport.key.to_string()))
                    .update_expression("SET #revision = :revision")
                    .expression_attribute_names("#revision", REVISION)
                    .expression_attribute_values(":revision", revision);
                request.send().await.map(drop).map_err(Failure::from)
            }
            Kind::Insert | Kind::Update => {
                let mut item = airport.item.0.clone();
                item.insert(REVISION.to_owned(), revision);
                let request = self.client.put_item().table_name(&self.table);
                let item = item.into_iter().collect();
                request.set_item(Some(item)).send().await.map(drop).map_err(Failure::from)
            }
        };
        result.map_err(|failure| DemoError::Call { who: "the application", failure })?;
        self.tally.send_modify(|tally| tally.count(kind));
        Ok(Write { number, key: Arc::clone(&airport.key), kind, at: Instant::now() })
    }
}

fn airports() -> Result<Vec<Airport>, DemoError> {
    let read = |line: &str| {
        let item = serde_json::from_str(line).ok().and_then(|value| json::to_item(&value).ok())?;
        let key = item.0.get(KEY)?.as_s().ok()?.as_str().into();
        Some(Airport { key, item })
    };
    AIRPORTS.lines().map(|line| read(line).ok_or(DemoError::Airports)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_embedded_airports_are_whole_and_different() {
        let airports = airports().unwrap();
        let keys: BTreeSet<_> = airports.iter().map(|airport| &airport.key).collect();
        assert_eq!((airports.len(), keys.len()), (300, 300));
        assert!(airports.iter().all(|airport| airport.item.0.contains_key("location")));
    }
}
