//! Following a stream from outside: all of its shards, without leases and without a state table.
//!
//! Every change comes once for each run, in the order of its key: a shard is read to its end before its children. Nothing
//! is remembered; what was trimmed before it was read is said and passed over.

use crate::change::Change;
use crate::clock::Clock;
use crate::failure::{Action, Class, Failure};
use crate::retry::{self, Jitter, Pauses, Policy};
use crate::stream::graph::{self, Ancestry, Shard};
use crate::stream::list::Lister;
use crate::stream::reader::{Place, Read, ReadError, Reader};
use crate::task::Tasks;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Changes that wait to be taken, at most; each may have 800 KB.
const WAITING: usize = 100;
/// Children of a shard that ended are looked for so soon.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a tail is made of.
#[derive(Debug, Clone)]
pub struct TailParts {
    /// A client of the member's streams.
    pub streams: aws_sdk_dynamodbstreams::Client,
    /// The stream's ARN.
    pub stream: Arc<str>,
    /// The stamp attribute's name.
    pub stamp: Arc<str>,
    /// Lists its shards.
    pub lister: Lister,
    /// Changes from before this are left out; `None` for all that the stream has.
    pub from: Option<SystemTime>,
    /// The pauses between reads: after a page with records, and of an idle shard.
    pub read: crate::config::Read,
    /// The clock.
    pub clock: Clock,
    /// Seeded pauses.
    pub jitter: Jitter,
    /// Ends it.
    pub stop: CancellationToken,
}

/// What a tail gives.
#[derive(Debug)]
pub enum Seen {
    /// A change of a shard.
    Change(Arc<str>, Box<Change>),
    /// Something to tell a person.
    Note(String),
}

/// Why it ended early.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// A call failed for good.
    #[error("{0}; {remedy}", remedy = .0.class.remedy())]
    Call(Failure),
    /// A record that this version cannot read.
    #[error("{0}")]
    Undecodable(String),
}

/// Follows a stream until it is stopped, `take` gives false, or the stream is off and all of it was read. A stop does not
/// wait for `take`.
///
/// # Errors
/// [`TailError`].
pub async fn follow(parts: TailParts, mut take: impl AsyncFnMut(Seen) -> bool) -> Result<(), TailError> {
    let (sender, mut seen) = mpsc::channel(WAITING);
    let mut walk =
        Walk { known: BTreeMap::new(), begun: BTreeSet::new(), ended: BTreeSet::new(), tasks: Tasks::new() };
    let mut enabled = walk.list(&parts, &sender).await?;
    let mut list_at = Instant::now() + parts.read.list_interval;
    loop {
        tokio::select! {
            biased;
            () = parts.stop.cancelled() => return Ok(()),
            Some(seen) = seen.recv() => {
                let goes_on = tokio::select! {
                    biased;
                    () = parts.stop.cancelled() => false,
                    goes_on = take(seen) => goes_on,
                };
                if !goes_on {
                    return Ok(());
                }
            }
            Some(ended) = walk.tasks.join_next(), if !walk.tasks.is_empty() => {
                let broken = |e: tokio::task::JoinError| Failure::new(Class::Unknown, "Task", e.to_string());
                walk.ended.insert(ended.map_err(broken).map_err(TailError::Call)??);
                list_at = list_at.min(Instant::now() + LOOK_AGAIN);
                walk.begin(&parts, &sender);
            }
            () = tokio::time::sleep_until(list_at) => {
                enabled = walk.list(&parts, &sender).await?;
                list_at = Instant::now() + parts.read.list_interval;
            }
        }
        if !enabled && walk.tasks.is_empty() && seen.is_empty() {
            return Ok(());
        }
    }
}

/// The shards of a stream as they are walked.
struct Walk {
    /// Each with the time when it was first seen.
    known: BTreeMap<String, (Shard, Instant)>,
    begun: BTreeSet<String>,
    ended: BTreeSet<String>,
    tasks: Tasks<Result<String, TailError>>,
}

impl Walk {
    /// Lists the shards and begins those that may begin; gives whether the stream is on.
    async fn list(&mut self, parts: &TailParts, sender: &mpsc::Sender<Seen>) -> Result<bool, TailError> {
        let policy = Policy::for_at_most(Duration::from_secs(30));
        let listed = retry::run(policy, &parts.jitter, &parts.stop, |_, _| (), || parts.lister.all()).await;
        let listing = match listed {
            Ok(listing) => listing,
            Err(retry::GaveUp::Failed(failure)) => return Err(TailError::Call(failure)),
            Err(retry::GaveUp::Cancelled) => return Ok(true),
        };
        for shard in listing.shards {
            let seen = self.known.get(&shard.id).map_or_else(Instant::now, |(_, seen)| *seen);
            self.known.insert(shard.id.clone(), (shard, seen));
        }
        self.begin(parts, sender);
        Ok(listing.enabled)
    }

    fn begin(&mut self, parts: &TailParts, sender: &mpsc::Sender<Seen>) {
        let now = parts.clock.now();
        for (shard, seen) in self.known.values() {
            let known = |id: &str| self.known.contains_key(id);
            let may = match graph::ancestry(shard.parent.as_deref(), known, seen.elapsed(), now) {
                Ancestry::Root => true,
                Ancestry::Parent(parent) => self.ended.contains(parent),
                Ancestry::Unlisted(_) => false,
            };
            if may && self.begun.insert(shard.id.clone()) {
                self.tasks.spawn(read(parts.clone(), shard.id.as_str().into(), sender.clone()));
            }
        }
    }
}

/// Reads one shard to its end; gives its id.
async fn read(parts: TailParts, shard: Arc<str>, sender: mpsc::Sender<Seen>) -> Result<String, TailError> {
    let place = parts.from.map_or(Place::TrimHorizon, Place::At);
    let mut reader = Reader::new(
        parts.streams.clone(),
        Arc::clone(&parts.stream),
        Arc::clone(&shard),
        Arc::clone(&parts.stamp),
        place,
    );
    let mut pauses = Pauses::new(Policy::for_at_most(Duration::from_secs(60)), parts.jitter.clone());
    let mut wait = parts.read.min_interval;
    loop {
        let begun = Instant::now();
        match reader.read().await {
            Ok(Read { changes, end }) => {
                pauses.reset();
                wait = if changes.is_empty() {
                    (wait * 2).min(parts.read.idle_interval)
                } else {
                    parts.read.min_interval
                };
                for change in changes {
                    if parts.from.is_none_or(|from| change.created >= from) {
                        // Nobody takes it any more: the tail ends.
                        let _ended = sender.send(Seen::Change(Arc::clone(&shard), Box::new(change))).await;
                    }
                }
                if end {
                    return Ok(shard.to_string());
                }
                tokio::time::sleep(wait.saturating_sub(begun.elapsed())).await;
            }
            Err(ReadError::Trimmed { after }) => {
                if let Some(after) = after {
                    let note = format!("records of {shard} after {after} were trimmed before they were read");
                    let _ended = sender.send(Seen::Note(note)).await;
                }
                reader.seek(Place::TrimHorizon);
            }
            Err(ReadError::Gone) => return Ok(shard.to_string()),
            Err(ReadError::Undecodable(error)) => return Err(TailError::Undecodable(error.to_string())),
            Err(ReadError::Unreadable(error)) => return Err(TailError::Undecodable(error.to_string())),
            Err(ReadError::Call(failure)) => {
                let action = match failure.class {
                    Class::IteratorExpired => Action::RetrySoon,
                    class => class.action(),
                };
                let pause = pauses.next(action).ok_or(TailError::Call(failure))?;
                tokio::time::sleep(pause).await;
            }
        }
    }
}
