//! Dead letters: records that a peer refuses for good, kept whole in the state table.
//!
//! A letter holds the record with both images, compressed, and split over rows where one cannot hold it, with
//! its version and the reason. Later changes of the same key become letters behind it, in order, so that a
//! [`retry`] applies them as they happened. Letters never expire; they go when a retry has applied them or an
//! operator discards them.
//!
//! Rows: `dead#<route>#<peer>` / `<key digest>#<sequence number>#<part>`, where part 0 makes the letter exist;
//! and `dead-keys#<route>#<peer>` / `<key digest>`, how many letters a key has. A letter and its key's count
//! change in one transaction, so that a worker that keeps a change behind a letter and an operator who takes the
//! letter away at the same time agree on which came first.

pub mod record;
pub mod retry;

use crate::change::{Change, SequenceNumber};
use crate::clock::Clock;
use crate::failure::{Class, Failure};
use crate::item::Digest;
use crate::shape::UNSHAPED;
use crate::state::{PK, Row, SK, StateTable, get_number, get_text, key, number, text};
use crate::transact::{Action, Outcome};
use crate::version::Version;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::HashSet;

/// What one row holds of a letter: below the 400 KB of an item, with room for its other attributes.
const PART: usize = 350 * 1024;

/// Why a record became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The peer refused it for good.
    Refused,
    /// The route's shape cannot be given to it: its filter fails, or its key at the peer would not be one-to-one.
    Unshaped,
    /// An earlier change of the same key is a dead letter.
    Behind,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Refused, Self::Unshaped, Self::Behind];

    /// Why a change that failed so is kept.
    #[must_use]
    pub fn of(failure: &Failure) -> Self {
        if failure.code == UNSHAPED { Self::Unshaped } else { Self::Refused }
    }

    /// The label in metrics and rows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unshaped => "unshaped",
            Self::Behind => "behind",
        }
    }
}

/// Where a letter belongs.
#[derive(Debug, Clone, Copy)]
pub struct Lane<'a> {
    /// The route's name.
    pub route: &'a str,
    /// The peer's name.
    pub peer: &'a str,
    /// The shard's id.
    pub shard: &'a str,
}

/// What became of a change that was to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is a letter now, or was one already.
    Kept,
    /// It was to wait behind letters that are gone meanwhile: nothing was kept, and it may be applied.
    Free,
}

/// A letter without its record: nothing of it is an item's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The digest of the item's key.
    pub key: Digest,
    /// The record's place in its shard.
    pub sequence: SequenceNumber,
    /// The shard.
    pub shard: String,
    /// The version with which it is applied.
    pub version: Version,
    /// Why it was kept.
    pub reason: Reason,
    /// The error code of the last try.
    pub code: String,
    /// What the peer said at the last try.
    pub message: String,
    /// When it was kept (RFC 3339).
    pub kept_at: String,
    /// How often it was tried.
    pub attempts: u64,
    /// When it was tried last (RFC 3339); `None` never.
    pub tried_at: Option<String>,
    /// The rows that hold it.
    parts: usize,
}

/// How many letters a key has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// All of them.
    pub letters: u64,
    /// Those that do not merely wait behind another one: refused by the peer, or not to be shaped.
    pub refused: u64,
}

/// The dead letters of a state table. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    state: StateTable,
    clock: Clock,
    per_key: u32,
}

impl DeadLetters {
    /// The dead letters in a state table, at most `per_key` of a key.
    #[must_use]
    pub fn new(state: StateTable, clock: Clock, per_key: u32) -> Self {
        Self { state, clock, per_key }
    }

    /// The keys of a lane that have letters, in any shard. Strongly consistent.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn keys(&self, route: &str, peer: &str) -> Result<HashSet<Digest>, Failure> {
        let counts = self.counts(route, peer).await?;
        Ok(counts.into_iter().filter(|(_, count)| count.letters > 0).map(|(key, _)| key).collect())
    }

    /// The keys of a lane that have letters, and how many, in the digests' order. Strongly consistent.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn counts(&self, route: &str, peer: &str) -> Result<Vec<(Digest, Count)>, Failure> {
        let rows = self.state.rows(&keys_partition(route, peer), "", &[]).await?;
        Ok(rows.iter().filter_map(|row| Some((Digest::parse(get_text(row, SK)?)?, count(row)))).collect())
    }

    /// Keeps a record. Keeping it again changes nothing: the first reason stays. A change that should wait behind
    /// letters is [`Kept::Free`] when they are gone.
    ///
    /// # Errors
    /// The failure of a call; the next try completes what was written so far. `TooManyDeadLetters` when the key
    /// has as many as it may: the next try succeeds once an operator took some away.
    pub async fn keep(
        &self,
        lane: Lane<'_>,
        change: &Change,
        version: Version,
        reason: Reason,
        failure: &Failure,
    ) -> Result<Kept, Failure> {
        let digest = change.key.digest();
        let (pk, keys) = (letters_partition(lane.route, lane.peer), keys_partition(lane.route, lane.peer));
        let head = sort(digest, &change.sequence, 0);
        let known = self.count(&keys, digest).await?;
        if known.letters == 0 && reason == Reason::Behind {
            return Ok(Kept::Free);
        }
        if known.letters >= u64::from(self.per_key) {
            let there = self.state.get(&pk, &head).await?.is_some();
            return if there { Ok(Kept::Kept) } else { Err(self.too_many(lane, digest)) };
        }
        let body = record::encode(change)?;
        let parts: Vec<&[u8]> = body.chunks(PART).collect();
        for (part, bytes) in parts.iter().enumerate().skip(1) {
            let mut row = key(&pk, &sort(digest, &change.sequence, part));
            row.insert("data".into(), AttributeValue::B(Blob::new(*bytes)));
            self.state.put(row).await?;
        }
        let now = self.now();
        let mut row = key(&pk, &head);
        row.extend([
            ("data".into(), AttributeValue::B(Blob::new(*parts.first().unwrap_or(&&[][..])))),
            ("parts".into(), number(parts.len())),
            ("shard".into(), text(lane.shard)),
            ("sequence".into(), text(change.sequence.as_str())),
            ("version".into(), text(version.to_string())),
            ("reason".into(), text(reason.name())),
            ("code".into(), text(&failure.code)),
            ("message".into(), text(&failure.message)),
            ("kept_at".into(), text(&now)),
            ("attempts".into(), number(u8::from(reason != Reason::Behind))),
        ]);
        if reason != Reason::Behind {
            row.insert("tried_at".into(), text(now));
        }
        let room = match reason {
            Reason::Refused | Reason::Unshaped => "attribute_not_exists(#letters) OR #letters < :bound",
            Reason::Behind => "#letters > :none AND #letters < :bound",
        };
        let refused = i64::from(reason != Reason::Behind);
        let mut counted = self.counting(&keys, digest, 1, refused).condition(room);
        counted = counted.value(":bound", number(self.per_key));
        if reason == Reason::Behind {
            counted = counted.value(":none", number(0));
        }
        let put = Action::put(row).condition("attribute_not_exists(#pk)").name("#pk", PK);
        match self.state.transact([put, counted]).await? {
            Outcome::Done => Ok(Kept::Kept),
            Outcome::Refused(refused) if refused.first() == Some(&true) => Ok(Kept::Kept),
            // The count changed since it was looked at; no letter came of it.
            Outcome::Refused(_) => {
                self.remove_parts(&pk, digest, &change.sequence, parts.len()).await?;
                match (self.count(&keys, digest).await?.letters, reason) {
                    (0, Reason::Behind) => Ok(Kept::Free),
                    _ => Err(self.too_many(lane, digest)),
                }
            }
        }
    }

    /// The letters of a key, or of all keys, in the order in which they are to be applied; without their records.
    /// Strongly consistent.
    ///
    /// # Errors
    /// The failure of the call, or of a row that is not a letter.
    pub async fn letters(&self, route: &str, peer: &str, of: Option<Digest>) -> Result<Vec<Letter>, Failure> {
        let prefix = of.map(|key| format!("{key}#")).unwrap_or_default();
        let rows = self.state.rows(&letters_partition(route, peer), &prefix, &SHOWN).await?;
        // Only part 0 has a reason.
        rows.iter().filter(|row| row.contains_key("reason")).map(letter).collect()
    }

    /// The record of a letter.
    ///
    /// # Errors
    /// The failure of the call, or of bytes that are no record.
    pub async fn record(&self, route: &str, peer: &str, letter: &Letter) -> Result<Change, Failure> {
        let prefix = format!("{}#{}#", letter.key, padded(&letter.sequence));
        let rows = self.state.rows(&letters_partition(route, peer), &prefix, &["data"]).await?;
        let parts = rows.iter().take(letter.parts).filter_map(|row| row.get("data")?.as_b().ok());
        record::decode(&parts.flat_map(|part| part.as_ref().iter().copied()).collect::<Vec<u8>>())
    }

    /// Takes a letter away. Doing it again changes nothing.
    ///
    /// # Errors
    /// The failure of a call.
    pub async fn remove(&self, route: &str, peer: &str, letter: &Letter) -> Result<(), Failure> {
        let (pk, keys) = (letters_partition(route, peer), keys_partition(route, peer));
        let head = sort(letter.key, &letter.sequence, 0);
        let delete = Action::delete(key(&pk, &head))
            .condition("#reason = :reason")
            .name("#reason", "reason")
            .value(":reason", text(letter.reason.name()));
        let less = i64::from(letter.reason != Reason::Behind);
        let counted = self.counting(&keys, letter.key, -1, -less);
        let removed = self.state.transact([delete, counted]).await?;
        if removed != Outcome::Done && self.state.get(&pk, &head).await?.is_some() {
            // Another retry has just tried it: it is not what it was.
            return Ok(());
        }
        self.remove_parts(&pk, letter.key, &letter.sequence, letter.parts).await
    }

    /// Notes that a letter was tried and refused once more.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn refused(
        &self,
        route: &str,
        peer: &str,
        letter: &Letter,
        why: &Failure,
    ) -> Result<(), Failure> {
        let (pk, keys) = (letters_partition(route, peer), keys_partition(route, peer));
        let set =
            "SET #reason = :refused, #code = :code, #message = :message, #tried = :now ADD #attempts :one";
        let note = Action::update(key(&pk, &sort(letter.key, &letter.sequence, 0)), set)
            .condition("#reason = :reason")
            .name("#reason", "reason")
            .name("#code", "code")
            .name("#message", "message")
            .name("#tried", "tried_at")
            .name("#attempts", "attempts")
            .value(":refused", text(Reason::of(why).name()))
            .value(":reason", text(letter.reason.name()))
            .value(":code", text(&why.code))
            .value(":message", text(&why.message))
            .value(":now", text(self.now()))
            .value(":one", number(1));
        let more = i64::from(letter.reason == Reason::Behind);
        self.state.transact([note, self.counting(&keys, letter.key, 0, more)]).await?;
        Ok(())
    }

    /// Forgets that a key has letters, when it has none; whether it has none now.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn release(&self, route: &str, peer: &str, digest: Digest) -> Result<bool, Failure> {
        let answer = self
            .state
            .call("DeleteItem")
            .delete_item()
            .table_name(self.state.name())
            .set_key(Some(key(&keys_partition(route, peer), &digest.to_string())))
            .condition_expression("attribute_not_exists(#letters) OR #letters <= :zero")
            .expression_attribute_names("#letters", LETTERS)
            .expression_attribute_values(":zero", number(0))
            .send()
            .await
            .map_err(Failure::from);
        match answer {
            Ok(_) => Ok(true),
            Err(failure) if failure.class == Class::Condition => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    async fn count(&self, keys: &str, digest: Digest) -> Result<Count, Failure> {
        Ok(self.state.get(keys, &digest.to_string()).await?.as_ref().map(count).unwrap_or_default())
    }

    fn counting(&self, keys: &str, digest: Digest, letters: i64, refused: i64) -> Action {
        Action::update(key(keys, &digest.to_string()), "ADD #letters :letters, #refused :more")
            .name("#letters", LETTERS)
            .name("#refused", REFUSED)
            .value(":letters", number(letters))
            .value(":more", number(refused))
    }

    async fn remove_parts(
        &self,
        pk: &str,
        digest: Digest,
        sequence: &SequenceNumber,
        parts: usize,
    ) -> Result<(), Failure> {
        for part in 1..parts {
            self.state.delete(key(pk, &sort(digest, sequence, part))).await?;
        }
        Ok(())
    }

    fn too_many(&self, lane: Lane<'_>, digest: Digest) -> Failure {
        let what = format!(
            "key {digest} has {} dead letters at {}, as many as dead_letters.per_key allows; its shard waits. Mend the \
             cause and run: shardwalker dead-letters retry --route {} --peer {} --key {digest} (or discard)",
            self.per_key, lane.peer, lane.route, lane.peer
        );
        // Of a class that is tried again slowly: only an operator makes room.
        Failure::new(Class::Unrecognised, "TooManyDeadLetters", what)
    }

    fn now(&self) -> String {
        humantime::format_rfc3339_seconds(self.clock.now()).to_string()
    }
}

const LETTERS: &str = "letters";
const REFUSED: &str = "refused";
/// What is read of a letter without its record.
const SHOWN: [&str; 11] = [
    SK, "parts", "shard", "sequence", "version", "reason", "code", "message", "kept_at", "attempts",
    "tried_at",
];

fn letters_partition(route: &str, peer: &str) -> String {
    format!("dead#{route}#{peer}")
}

fn keys_partition(route: &str, peer: &str) -> String {
    format!("dead-keys#{route}#{peer}")
}

fn sort(digest: Digest, sequence: &SequenceNumber, part: usize) -> String {
    format!("{digest}#{}#{part:04}", padded(sequence))
}

/// A sequence number whose text sorts as the number does.
fn padded(sequence: &SequenceNumber) -> String {
    format!("{:0>40}", sequence.as_str())
}

fn count(row: &Row) -> Count {
    let get = |name| get_number(row, name).unwrap_or_default();
    Count { letters: get(LETTERS), refused: get(REFUSED) }
}

fn letter(row: &Row) -> Result<Letter, Failure> {
    let bad =
        |what: &str| Failure::new(Class::Unrecognised, "BadDeadLetter", format!("a letter has no {what}"));
    let get = |name| get_text(row, name).ok_or_else(|| bad(name));
    let key = get(SK)?.split('#').next().and_then(Digest::parse).ok_or_else(|| bad("key"))?;
    Ok(Letter {
        key,
        sequence: SequenceNumber::parse(get("sequence")?).ok_or_else(|| bad("sequence"))?,
        shard: get("shard")?.to_owned(),
        version: get("version")?.parse().map_err(|_| bad("version"))?,
        reason: Reason::ALL
            .into_iter()
            .find(|r| Some(r.name()) == get_text(row, "reason"))
            .ok_or_else(|| bad("reason"))?,
        code: get("code")?.to_owned(),
        message: get("message")?.to_owned(),
        kept_at: get("kept_at")?.to_owned(),
        attempts: get_number(row, "attempts").unwrap_or_default(),
        tried_at: get_text(row, "tried_at").map(str::to_owned),
        parts: get_number(row, "parts").ok_or_else(|| bad("parts"))?,
    })
}
