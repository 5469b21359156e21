//! A reader at one peer, who measures the lag without the replicator's help.
//!
//! It is told of every write when the source has acknowledged it, reads the items that are due with strongly
//! consistent reads of its own every 20 ms, and takes the time at which each write shows. A lag is therefore
//! what an application at the peer would see, and at most one such interval too long. Writes that a later one
//! of the same item overtook show together with it; an item that came and went unseen is not measured.

use super::DemoError;
use super::load::{Kind, REVISION, Write};
use super::stage::KEY;
use crate::failure::{Class, Failure};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// The pause between two looks (20 ms): a tenth of the replicator's own pause between two reads of a shard.
const EVERY: Duration = Duration::from_millis(20);
/// What BatchGetItem takes.
const BATCH: usize = 100;
/// Writes that live figures look back on.
const RECENT: usize = 1000;
/// Writes that wait for the observer before the application does.
pub const QUEUE: usize = 1024;

/// Quantiles of lags, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Lag {
    /// Writes that were measured.
    pub writes: usize,
    /// Half of them showed within this.
    pub p50_ms: f64,
    /// 99 of 100 showed within this.
    pub p99_ms: f64,
    /// All of them showed within this.
    pub max_ms: f64,
}

impl Lag {
    /// By nearest rank; all zero when there are none.
    fn of(lags: &[Duration], writes: usize) -> Self {
        let mut sorted = lags.to_vec();
        sorted.sort_unstable();
        let rank = |hundredths: usize| {
            let rank = (sorted.len() * hundredths).div_ceil(100).max(1) - 1;
            let lag = sorted.get(rank).copied().unwrap_or_default();
            (lag.as_secs_f64() * 10_000.0).round() / 10.0
        };
        Self { writes, p50_ms: rank(50), p99_ms: rank(99), max_ms: rank(100) }
    }
}

/// Reads one peer.
pub struct Observer {
    client: Client,
    table: String,
    due: BTreeMap<Arc<str>, VecDeque<Write>>,
    lags: Vec<Duration>,
    recent: watch::Sender<Lag>,
}

impl Observer {
    /// An observer that has seen nothing, and what it shows of the most recent lags.
    #[must_use]
    pub fn new(client: Client, table: &str) -> (Self, watch::Receiver<Lag>) {
        let (recent, shown) = watch::channel(Lag::default());
        let observer =
            Self { client, table: table.to_owned(), due: BTreeMap::new(), lags: Vec::new(), recent };
        (observer, shown)
    }

    /// Observes until `stop`, looks once more, and gives the lags of the whole run.
    ///
    /// # Errors
    /// The failure of a read.
    pub async fn run(
        mut self,
        mut writes: mpsc::Receiver<Write>,
        stop: CancellationToken,
    ) -> Result<Lag, DemoError> {
        let mut looks = tokio::time::interval(EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        loop {
            tokio::select! {
                // A look first, for its time counts; then what was written.
                biased;
                () = stop.cancelled() => break,
                _ = looks.tick() => self.look().await?,
                write = writes.recv(), if open => match write {
                    Some(write) => expect(self.due.entry(Arc::clone(&write.key)).or_default(), write),
                    None => open = false,
                },
            }
        }
        self.look().await?;
        Ok(Lag::of(&self.lags, self.lags.len()))
    }

    async fn look(&mut self) -> Result<(), DemoError> {
        let before = self.lags.len();
        let keys: Vec<Arc<str>> = self.due.keys().cloned().collect();
        for keys in keys.chunks(BATCH) {
            let found = self.read(keys).await?;
            let now = Instant::now();
            for key in keys {
                let Some(due) = self.due.get_mut(key) else { continue };
                for _ in 0..shown(due, found.get(&**key).copied()) {
                    self.lags.extend(due.pop_front().map(|write| now - write.at));
                }
            }
        }
        self.due.retain(|_, due| !due.is_empty());
        if self.lags.len() > before {
            let recent = &self.lags[self.lags.len().saturating_sub(RECENT)..];
            self.recent.send_replace(Lag::of(recent, self.lags.len()));
        }
        Ok(())
    }

    /// The revisions of the items that are there.
    async fn read(&self, keys: &[Arc<str>]) -> Result<HashMap<String, u64>, DemoError> {
        let failed = |failure| DemoError::Call { who: "a reader", failure };
        let key = |key: &Arc<str>| HashMap::from([(KEY.to_owned(), AttributeValue::S(key.to_string()))]);
        let mut left: Vec<_> = keys.iter().map(key).collect();
        let mut found = HashMap::new();
        while !left.is_empty() {
            let wanted = KeysAndAttributes::builder()
                .set_keys(Some(left))
                .consistent_read(true)
                .projection_expression("#key, #revision")
                .expression_attribute_names("#key", KEY)
                .expression_attribute_names("#revision", REVISION)
                .build()
                .map_err(|error| failed(Failure::new(Class::Invalid, "Request", error.to_string())))?;
            let request = self.client.batch_get_item().request_items(&self.table, wanted);
            let answer = request.send().await.map_err(|error| failed(error.into()))?;
            for item in answer.responses.unwrap_or_default().into_values().flatten() {
                let text = |name: &str| item.get(name).and_then(|value| value.as_s().or(value.as_n()).ok());
                let revision = text(REVISION).and_then(|number| number.parse().ok());
                found.extend(text(KEY).cloned().zip(revision));
            }
            left = answer.unprocessed_keys.unwrap_or_default().into_values().flat_map(|k| k.keys).collect();
        }
        Ok(found)
    }
}

/// Adds a write to those of its item that are due. When it deletes what was inserted and never shown, there is
/// nothing left to see of both.
fn expect(due: &mut VecDeque<Write>, write: Write) {
    match due.iter().position(|write| write.kind == Kind::Insert) {
        Some(insert) if write.kind == Kind::Delete => due.truncate(insert),
        _ => due.push_back(write),
    }
}

/// How many of the writes that are due show when the item has this revision, or is not there.
fn shown(due: &VecDeque<Write>, revision: Option<u64>) -> usize {
    match revision {
        Some(revision) => due.iter().take_while(|write| write.number <= revision).count(),
        None => due.iter().position(|write| write.kind == Kind::Delete).map_or(0, |at| at + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(kinds: &[Kind]) -> VecDeque<Write> {
        let mut due = VecDeque::new();
        for (number, &kind) in (1..).zip(kinds) {
            expect(&mut due, Write { number, key: "ATL".into(), kind, at: Instant::now() });
        }
        due
    }

    #[test]
    fn a_revision_shows_itself_and_what_it_covers() {
        use Kind::{Delete, Insert, Update};
        let writes = due(&[Update, Delete, Insert, Update]);
        assert_eq!(shown(&writes, Some(0)), 0);
        assert_eq!(shown(&writes, Some(1)), 1);
        assert_eq!(shown(&writes, Some(3)), 3);
        assert_eq!(shown(&writes, Some(9)), 4);
    }

    #[test]
    fn absence_shows_a_delete_only_of_what_was_there() {
        use Kind::{Delete, Insert, Update};
        assert_eq!(shown(&due(&[Update, Delete, Insert]), None), 2);
        assert_eq!(shown(&due(&[Delete]), None), 1);
        assert_eq!(shown(&due(&[Update]), None), 0, "the update has not come, and nothing was deleted");
        assert_eq!(shown(&due(&[Insert]), None), 0, "it was not there before either");
    }

    #[test]
    fn what_came_and_went_unseen_is_not_measured() {
        use Kind::{Delete, Insert, Update};
        assert!(due(&[Insert, Update, Delete]).is_empty());
        let rest: Vec<u64> =
            due(&[Delete, Insert, Delete, Insert]).iter().map(|write| write.number).collect();
        assert_eq!(rest, [1, 4]);
    }

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let lags: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        let expected = Lag { writes: 200, p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 };
        assert_eq!(Lag::of(&lags, lags.len()), expected);
        assert_eq!(Lag::of(&[], 0), Lag::default());
    }
}
