//! Conditional writes to one member table: the only place that writes to members.
//!
//! A put or a delete with version v takes effect only where nothing newer is: the item does not exist, has no
//! stamp (an application wrote it), has something that is not a stamp, has a lower version, or one beyond the
//! drift ceiling. A failed condition is a normal outcome. Every step can be repeated: after a lost answer, a
//! crash, or by two workers at once, the result is the same.
//!
//! Here is what a one-way route does, whose peer's stream nobody reads; `group` has what a group does, and `seed` what
//! a backfill does.

mod group;
mod seed;

pub use group::Placed;
pub use seed::{OnExisting, Seed, Seeded};

use crate::change::Image;
use crate::clock::Clock;
use crate::control::Pause;
use crate::failure::{Class, Failure};
use crate::guard::Guard;
use crate::item::{Item, Key};
use crate::lease::heart::Heart;
use crate::ledger::Ledger;
use crate::limit::Adaptive;
use crate::version::{Hlc, Stamp, Version};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::delete_item::builders::DeleteItemFluentBuilder;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::put_item::builders::PutItemFluentBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use prometheus::IntCounter;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Mutex, Notify, watch};

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

/// What a put expects to find, which tells a creation from an overwrite without reading first.
#[derive(Debug, Clone, PartialEq)]
enum Expect {
    Absent,
    Older,
    /// No item, or an older one.
    AbsentOrOlder,
    /// One with a stamp that is older.
    OlderStamp,
    /// One without a stamp.
    Unstamped,
    /// This very attribute in the stamp's place.
    Seen(String),
}

/// Holds for no item, with the partition key's name as `#pk`: a write with it changes nothing, and its answer says
/// whether it would be let in.
pub(crate) const NEVER: &str = "attribute_exists(#pk) AND attribute_not_exists(#pk)";

/// Longer than a signed request is accepted.
const ON_ITS_WAY: Duration = Duration::from_secs(15 * 60);

/// Absent and present may take turns under the writer; after this many the step is tried again later.
const ROUNDS: usize = 8;

impl Peer {
    /// Puts a peer together. Sends nothing.
    #[must_use]
    pub fn new(parts: PeerParts) -> Self {
        let PeerParts { name, scope, client, table, partition_key, stamp, max_drift, .. } = parts;
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

    /// Waits after a failure that only time or an operator mends. One waiter at a time, the probe, waits for
    /// `pause`; the others wait until something got through, and then for `spread`: a peer that is down is asked by
    /// one and not by all, and a key that alone is refused does not retry at the pace of the others.
    pub async fn slowly(&self, pause: Duration, spread: Duration) {
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
        content: &Item,
        key: &Key,
        version: Version,
        creates: bool,
    ) -> Result<Outcome, StepError> {
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

    /// Whether writes of this key are accepted at all: a delete whose condition cannot hold, which changes nothing.
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

    async fn send_put(
        &self,
        content: &Item,
        stamp: &str,
        version: Version,
        expect: &Expect,
    ) -> Result<Answer, StepError> {
        let mut item = HashMap::with_capacity(content.0.len() + 1);
        item.extend(content.0.iter().map(|(name, value)| (name.clone(), value.clone())));
        item.insert(self.stamp.clone(), AttributeValue::S(stamp.to_owned()));
        self.may_write().await?;
        let request = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(item))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let request = match expect {
            Expect::Absent => request
                .condition_expression("attribute_not_exists(#pk)")
                .expression_attribute_names("#pk", &self.partition_key),
            Expect::Older => {
                let condition = format!("attribute_exists(#pk) AND ({OVERWRITABLE})");
                let request = request
                    .condition_expression(condition)
                    .expression_attribute_names("#pk", &self.partition_key);
                self.with_older(request, version)
            }
            Expect::AbsentOrOlder => self.with_older(request.condition_expression(OVERWRITABLE), version),
            Expect::OlderStamp => self.with_older(request.condition_expression(OLDER_STAMP), version),
            Expect::Unstamped => request
                .condition_expression(UNSTAMPED)
                .expression_attribute_names("#pk", &self.partition_key)
                .expression_attribute_names("#stamp", &self.stamp)
                .expression_attribute_values(":string", AttributeValue::S("S".to_owned())),
            Expect::Seen(text) => self.with_seen(request.condition_expression(SEEN), text),
        };
        let answer = request.send().await;
        self.answer(answer, version, |error| match error {
            PutItemError::ConditionalCheckFailedException(failed) => Some(failed.item()),
            _ => None,
        })
    }

    async fn send_delete(&self, key: &Key, version: Version, expect: &Expect) -> Result<Answer, StepError> {
        self.may_write().await?;
        let request = self
            .client
            .delete_item()
            .table_name(&self.table)
            .set_key(Some(key.attributes().0.clone()))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let request = match expect {
            Expect::Seen(text) => self.with_seen(request.condition_expression(SEEN), text),
            Expect::OlderStamp => self.with_older(request.condition_expression(OLDER_STAMP), version),
            Expect::Absent | Expect::Older | Expect::AbsentOrOlder | Expect::Unstamped => {
                self.with_older(request.condition_expression(OVERWRITABLE), version)
            }
        };
        let answer = request.send().await;
        self.answer(answer, version, |error| match error {
            DeleteItemError::ConditionalCheckFailedException(failed) => Some(failed.item()),
            _ => None,
        })
    }

    /// Sorts an answer; `refused` gives the old item of a failed condition.
    fn answer<T, E>(
        &self,
        answer: Result<T, SdkError<E, HttpResponse>>,
        version: Version,
        refused: impl Fn(&E) -> Option<Option<&HashMap<String, AttributeValue>>>,
    ) -> Result<Answer, StepError>
    where
        Failure: From<SdkError<E, HttpResponse>>,
    {
        let error = match answer {
            Ok(_) => {
                self.limit.succeeded();
                return Ok(Answer::Done);
            }
            Err(error) => error,
        };
        if let Some(item) = error.as_service_error().and_then(refused) {
            self.limit.succeeded();
            return Ok(Answer::Found(self.found(item, version)));
        }
        Err(self.failed(error.into()))
    }

    fn failed(&self, failure: Failure) -> StepError {
        if failure.class == Class::Throttled {
            self.limit.throttled();
        }
        StepError::Peer(failure)
    }

    /// What stands where a put's condition failed.
    fn found(&self, item: Option<&HashMap<String, AttributeValue>>, version: Version) -> Found {
        let Some(item) = item.filter(|item| !item.is_empty()) else { return Found::Nothing };
        let Some(AttributeValue::S(text)) = item.get(&self.stamp) else {
            return Found::Unstamped(self.content(item));
        };
        match Stamp::parse(text) {
            None => Found::NotAStamp(text.clone()),
            Some(stamp) if stamp.version == version => Found::Same(stamp),
            Some(stamp) if stamp.version < version || stamp.version.hlc > self.ceiling(version) => {
                Found::Older
            }
            Some(stamp) => Found::Newer(Image { content: self.content(item), stamp: Some(stamp) }),
        }
    }

    fn content(&self, item: &HashMap<String, AttributeValue>) -> Item {
        let content = item.iter().filter(|(name, _)| **name != self.stamp);
        Item(content.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// Beyond this a stamp is not believed. It follows this worker's clock, and never falls behind the versions
    /// that it writes: a replay of old records must not take today's stamps for ones from the future. Nor must a request
    /// that was on its way for long: what was written meanwhile is not beyond it.
    fn ceiling(&self, version: Version) -> Hlc {
        Hlc::from_millis(self.clock.millis()).max(version.hlc).plus(self.max_drift + ON_ITS_WAY)
    }

    fn with_seen<R: Expressions>(&self, request: R, seen: &str) -> R {
        request.alias("#stamp", &self.stamp).value(":seen", AttributeValue::S(seen.to_owned()))
    }

    fn with_older<R: Expressions>(&self, request: R, version: Version) -> R {
        request
            .alias("#stamp", &self.stamp)
            .value(":string", AttributeValue::S("S".to_owned()))
            .value(":version", AttributeValue::S(version.to_string()))
            .value(
                ":ceiling",
                AttributeValue::S(Version::new(self.ceiling(version), u8::MAX).to_string() + "~"),
            )
    }
}

fn contended() -> StepError {
    StepError::Peer(Failure::new(Class::Transient, "Contended", "the item came and went under this write"))
}

/// True where nothing newer is, also where there is no item.
const OVERWRITABLE: &str = "attribute_not_exists(#stamp) OR NOT attribute_type(#stamp, :string) \
     OR #stamp < :version OR #stamp > :ceiling";

/// True where an older stamp is, and not where an application wrote.
const OLDER_STAMP: &str = "attribute_type(#stamp, :string) AND (#stamp < :version OR #stamp > :ceiling)";

/// True where an item is and no stamp.
const UNSTAMPED: &str =
    "attribute_exists(#pk) AND (attribute_not_exists(#stamp) OR NOT attribute_type(#stamp, :string))";

/// True where the attribute in the stamp's place still is what was seen.
const SEEN: &str = "#stamp = :seen";

enum Answer {
    Done,
    Found(Found),
}

enum Found {
    Nothing,
    Older,
    /// An application's.
    Unstamped(Item),
    /// An application's: the attribute holds this, which sorts like a newer stamp but is none.
    NotAStamp(String),
    /// One of this very version.
    Same(Stamp),
    Newer(Image),
}

/// Names and values of an expression, the same for puts and deletes.
trait Expressions {
    fn alias(self, alias: &str, name: &str) -> Self;
    fn value(self, name: &str, value: AttributeValue) -> Self;
}

macro_rules! expressions {
    ($request:ty) => {
        impl Expressions for $request {
            fn alias(self, alias: &str, name: &str) -> Self {
                self.expression_attribute_names(alias, name)
            }
            fn value(self, name: &str, value: AttributeValue) -> Self {
                self.expression_attribute_values(name, value)
            }
        }
    };
}
use expressions;

expressions!(PutItemFluentBuilder);
expressions!(DeleteItemFluentBuilder);
