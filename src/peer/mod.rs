//! Conditional writes to one member table: the only place that writes to members.
//!
//! A put or a delete with version v takes effect only where nothing newer is: the item does not exist, has no
//! stamp (an application wrote it), has something that is not a stamp, has a lower version, or one beyond the
//! drift ceiling. A failed condition is a normal outcome. Every step can be repeated: after a lost answer, a
//! crash, or by two workers at once, the result is the same.
//!
//! Here is what a one-way route does, whose peer's stream nobody reads; `group` has what a group does, `seed` what a
//! backfill does, `strip` what is done in the end, and `pristine` what is done where no stamp may be.

mod group;
pub mod pristine;
mod request;
mod seed;
mod strip;

pub use group::Placed;
use request::{Answer, Expect, Expressions, Found};
pub use seed::{OnExisting, Seed, Seeded};

use crate::clock::Clock;
use crate::content::Content;
use crate::control::Pause;
use crate::failure::{Action, Class, Failure};
use crate::guard::Guard;
use crate::item::Key;
use crate::lease::heart::Heart;
use crate::ledger::Ledger;
use crate::limit::Adaptive;
use crate::retry::{Jitter, Pauses, Policy};
use crate::version::{Stamp, Version};
use aws_sdk_dynamodb::Client;
use prometheus::IntCounter;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Mutex, Notify, watch};
use tokio_util::sync::CancellationToken;

/// What became of a step at a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect, or had taken effect before.
    Applied,
    /// Something newer is there.
    Superseded,
}

/// Where a step failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// A call to the peer.
    #[error("{0}")]
    Peer(Failure),
    /// A call to the member that the change comes from, which a group writes to as well.
    #[error("{0}")]
    Home(Failure),
    /// A call to the state table.
    #[error("state table: {0}")]
    State(Failure),
}

impl StepError {
    /// The failure, wherever it was.
    #[must_use]
    pub const fn failure(&self) -> &Failure {
        match self {
            Self::Peer(failure) | Self::Home(failure) | Self::State(failure) => failure,
        }
    }
}

/// A peer table as one route writes to it.
#[derive(Debug)]
pub struct Peer {
    /// The member's name.
    name: String,
    /// Whose tombstones count.
    scope: String,
    client: Client,
    table: String,
    /// The partition key's attribute name: an item exists when it has one.
    partition_key: String,
    /// The stamp attribute's name.
    stamp: String,
    /// Whether items get no stamp.
    pristine: bool,
    max_drift: Duration,
    clock: Clock,
    ledger: Ledger,
    heart: Option<Arc<Heart>>,
    limit: Adaptive,
    gate: watch::Receiver<Option<Pause>>,
    guard: Option<Guard>,
    /// Whoever holds it tries for everybody, while the peer cannot be written to.
    probe: Mutex<()>,
    recovered: Notify,
    requests: IntCounter,
}

/// What a [`Peer`] is made of.
pub struct PeerParts {
    /// The member's name.
    pub name: String,
    /// Whose tombstones count: the member's own on a one-way route, its group's in a group.
    pub scope: String,
    /// A client of the member's access.
    pub client: Client,
    /// The table's full ARN.
    pub table: String,
    /// The partition key's attribute name.
    pub partition_key: String,
    /// The stamp attribute's name.
    pub stamp: String,
    /// Whether items get no stamp, nor any other attribute of ours.
    pub pristine: bool,
    /// How far ahead of the clock a stamp is believed.
    pub max_drift: Duration,
    /// Writes a second at most.
    pub max_writes: Option<u32>,
    /// Holds a pause while nothing new may start; `None` is never closed.
    pub gate: Option<watch::Receiver<Option<Pause>>>,
    /// Watches what is taken.
    pub guard: Option<Guard>,
    /// The worker's clock.
    pub clock: Clock,
    /// The tombstones.
    pub ledger: Ledger,
    /// The worker's: nothing is written while it has no right to. `None` where no lease gives that right.
    pub heart: Option<Arc<Heart>>,
    /// Counts requests.
    pub requests: IntCounter,
}

/// Holds for no item, with the partition key's name as `#pk`: a write with it changes nothing, and its answer says
/// whether it would be let in.
pub const NEVER: &str = "attribute_exists(#pk) AND attribute_not_exists(#pk)";

/// Once a peer that was down takes writes again, those that wait come back within about this.
const SPREAD: Duration = Duration::from_secs(1);

/// Absent and present may take turns under the writer; after this many the step is tried again later.
const ROUNDS: usize = 8;

impl Peer {
    /// Puts a peer together. Sends nothing.
    #[must_use]
    pub fn new(parts: PeerParts) -> Self {
        let PeerParts { name, scope, client, table, partition_key, stamp, pristine, max_drift, .. } = parts;
        let PeerParts { max_writes, gate, guard, clock, ledger, heart, requests, .. } = parts;
        let limit = Adaptive::new(max_writes.map(f64::from));
        let gate = gate.unwrap_or_else(|| watch::channel(None).1);
        let (probe, recovered) = (Mutex::new(()), Notify::new());
        Self {
            name,
            scope,
            client,
            table,
            partition_key,
            stamp,
            pristine,
            max_drift,
            clock,
            ledger,
            heart,
            limit,
            gate,
            guard,
            probe,
            recovered,
            requests,
        }
    }

    /// The member's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Holds a pause while nothing new may be started.
    #[must_use]
    pub fn gate(&self) -> watch::Receiver<Option<Pause>> {
        self.gate.clone()
    }

    /// Whether nothing new may be started.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.gate.borrow().is_some()
    }

    /// A lane takes a change that it will apply here: the route's guard, if there is one, counts it.
    pub fn takes(&self, created: SystemTime, delete: bool) {
        if let Some(guard) = &self.guard {
            guard.takes(created, delete);
        }
    }

    /// The limit on writes: the configured one, and below it what follows the peer's throttling.
    #[must_use]
    pub fn limit(&self) -> &Adaptive {
        &self.limit
    }

    /// Waits until a step that failed here may be tried again; `false` when `fence` falls before.
    pub async fn wait_after(
        &self,
        failure: &Failure,
        pauses: &mut Pauses,
        jitter: &Jitter,
        fence: &CancellationToken,
    ) -> bool {
        let action = failure.class.insist();
        let pause = pauses.next(action).unwrap_or(Policy::FOREVER.slow);
        let spread = jitter.around(SPREAD);
        tokio::select! {
            biased;
            () = fence.cancelled() => false,
            () = tokio::time::sleep(pause), if action == Action::RetrySoon => true,
            () = self.slowly(pause, spread), if action == Action::RetrySlowly => true,
        }
    }

    /// Waits after a failure that only time or an operator mends. One waiter at a time, the probe, waits for
    /// `pause`; the others wait until something got through, and then for `spread`: a peer that is down is asked by
    /// one and not by all, and a key that alone is refused does not retry at the pace of the others.
    async fn slowly(&self, pause: Duration, spread: Duration) {
        let probe = async {
            let _probe = self.probe.lock().await;
            tokio::time::sleep(pause).await;
        };
        tokio::select! {
            // What got through goes before the pause.
            biased;
            () = self.recovered.notified() => tokio::time::sleep(spread).await,
            () = probe => {}
        }
    }

    /// A step got through: whoever waits may try again.
    pub fn got_through(&self) {
        self.recovered.notify_waiters();
    }

    /// Raises the tombstone of a key, which must happen before its item is deleted here.
    ///
    /// # Errors
    /// The state table's failure.
    pub async fn raise(&self, key: &Key, version: Version) -> Result<(), StepError> {
        self.ledger.raise(&self.scope, key.digest(), version).await.map_err(StepError::State)
    }

    /// The tombstone of a key, strongly consistent.
    ///
    /// # Errors
    /// The state table's failure.
    pub async fn tombstone(&self, key: &Key) -> Result<Option<Version>, StepError> {
        self.ledger.read(&self.scope, key.digest()).await.map_err(StepError::State)
    }

    /// Puts `content`, stamped with `version`. `creates` is the guess whether the item is absent here: a right
    /// guess costs one request, a wrong one two. After a creation the ledger is read, and a newer delete wins.
    ///
    /// # Errors
    /// Any failure but that of the condition; the step can be repeated.
    pub async fn put(
        &self,
        content: &Content,
        key: &Key,
        version: Version,
        creates: bool,
    ) -> Result<Outcome, StepError> {
        if self.pristine {
            return self.put_plain(content, key, version).await;
        }
        let stamp = Stamp::of(content, version).to_string();
        let mut expect = if creates { Expect::Absent } else { Expect::Older };
        for _ in 0..ROUNDS {
            let answer = self.send_put(content, &stamp, version, &expect).await?;
            let found = match answer {
                Answer::Done if expect == Expect::Absent => return self.after_creation(key, version).await,
                Answer::Done => return Ok(Outcome::Applied),
                Answer::Found(found) => found,
            };
            expect = match found {
                Found::Nothing => Expect::Absent,
                Found::Older | Found::Unstamped(_) => Expect::Older,
                Found::NotAStamp(text) => Expect::Seen(text),
                // Ours, from before a lost answer or a crash; its creation may not have been checked.
                Found::Same(_) => return self.after_creation(key, version).await,
                Found::Newer(_) => return Ok(Outcome::Superseded),
            };
        }
        Err(contended())
    }

    /// Deletes the item unless something newer than `version` is there. The tombstone must have been raised.
    ///
    /// # Errors
    /// Any failure but that of the condition; the step can be repeated.
    pub async fn delete(&self, key: &Key, version: Version) -> Result<Outcome, StepError> {
        if self.pristine {
            return self.erase(key).await.map(|()| Outcome::Applied);
        }
        let mut expect = Expect::Older;
        for _ in 0..ROUNDS {
            expect = match self.send_delete(key, version, &expect).await? {
                Answer::Done => return Ok(Outcome::Applied),
                Answer::Found(Found::Newer(_) | Found::Same(_)) => return Ok(Outcome::Superseded),
                Answer::Found(Found::Nothing | Found::Older | Found::Unstamped(_)) => Expect::Older,
                Answer::Found(Found::NotAStamp(text)) => Expect::Seen(text),
            };
        }
        Err(contended())
    }

    /// Whether this peer takes a write of this key at all: a delete whose condition cannot hold, which changes nothing.
    ///
    /// # Errors
    /// Any failure but that of the condition.
    pub async fn accepts(&self, key: &Key) -> Result<(), Failure> {
        self.limit.turn().await;
        self.requests.inc();
        let answer = self
            .client
            .delete_item()
            .table_name(&self.table)
            .set_key(Some(key.attributes().0.clone()))
            .condition_expression(NEVER)
            .expression_attribute_names("#pk", &self.partition_key)
            .send()
            .await
            .map_err(Failure::from);
        match answer {
            Err(failure) if failure.class != Class::Condition => Err(failure),
            _ => Ok(()),
        }
    }

    /// Whether this peer, which `refused` a write of this key for good, accepts any: a table that was made again with
    /// other keys refuses everything.
    ///
    /// # Errors
    /// That every write is refused, to be tried again until an operator mends it.
    pub async fn accepts_others(&self, key: &Key, refused: &Failure) -> Result<(), Failure> {
        self.accepts(key).await.map_err(|failure| {
            let what = format!("{refused}; and so is a write that changes nothing: {failure}");
            Failure::new(Class::Unrecognised, "EveryWriteRefused", what)
        })
    }

    /// A creation has happened: a delete that is newer may have come before it.
    async fn after_creation(&self, key: &Key, version: Version) -> Result<Outcome, StepError> {
        match self.tombstone(key).await? {
            Some(tombstone) if tombstone > version => {
                self.delete(key, tombstone).await?;
                Ok(Outcome::Superseded)
            }
            _ => Ok(Outcome::Applied),
        }
    }

    /// Waits for a turn; then it sees that the worker still has the right to write. A worker that stood still has
    /// lost it before anything could tell it so, and what it creates now may be what others have deleted: so this
    /// is asked before each request, by time.
    async fn may_write(&self) -> Result<(), StepError> {
        self.limit.turn().await;
        if self.heart.as_ref().is_some_and(|heart| heart.fence().is_none()) {
            let why = "this worker's row in the state table was not renewed in time; it writes nothing";
            return Err(StepError::Peer(Failure::new(Class::Transient, "NotAlive", why)));
        }
        self.requests.inc();
        Ok(())
    }
}

fn contended() -> StepError {
    StepError::Peer(Failure::new(Class::Transient, "Contended", "the item came and went under this write"))
}
