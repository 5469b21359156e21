//! The right to list a stream: one worker a route has it, so that any number of workers spend no more of the
//! source account's DescribeStream calls than one. The others learn the shards from the leases' rows.
//!
//! Its row stands among the leases and is taken like one: conditional on owner and epoch, free or of an owner
//! that died. Listing is harmless when two do it (rows are only added), so nothing else is fenced by it. The row
//! also says what a listing found of the stream as a whole.
//!
//! Rows: `lease#<route>#<stream>` / `!lister`.

use crate::failure::Failure;
use crate::lease::row::{EPOCH, Lease, OWNER};
use crate::lease::table::{HELD, HeldError, LeaseTable, refused};
use crate::state::{Row, get_number, get_text, number, text};
use crate::stream::graph::Shard;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// The row's sort key: no shard's id, and before all of them.
pub(super) const LISTER: &str = "!lister";
const LISTINGS: &str = "listings";
const DISABLED: &str = "disabled";
const PEERS: &str = "listed_for";

/// The row of the one that lists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListerRow {
    /// The worker that lists.
    pub owner: Option<String>,
    /// Rises with every change of owner.
    pub epoch: u64,
    /// How many listings there were: that it moves shows that somebody lists.
    pub listings: u64,
    /// Whether the stream was turned off.
    pub disabled: bool,
    /// The peers of the route for which the rows of gone shards are marked: those that came to the route since
    /// wait for the next listing before they start.
    pub listed_for: BTreeSet<String>,
}

/// Reads a row; what is missing has its default.
pub(super) fn from_row(row: &Row) -> ListerRow {
    let flag = row.get(DISABLED).and_then(|v| v.as_bool().ok()).copied();
    let peers = row.get(PEERS).and_then(|v| v.as_l().ok()).map(Vec::as_slice).unwrap_or_default();
    ListerRow {
        owner: get_text(row, OWNER).map(str::to_owned),
        epoch: get_number(row, EPOCH).unwrap_or_default(),
        listings: get_number(row, LISTINGS).unwrap_or_default(),
        disabled: flag.unwrap_or_default(),
        listed_for: peers.iter().filter_map(|v| v.as_s().ok().cloned()).collect(),
    }
}

impl LeaseTable {
    /// Takes the right to list as its row was seen: absent, free, this worker's own from before, or an owner's
    /// that died. `None` when it changed since.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn take_lister(&self, seen: Option<&ListerRow>) -> Result<Option<ListerRow>, Failure> {
        let epoch = seen.map_or(0, |row| row.epoch);
        let request = self
            .update(LISTER)
            .update_expression("SET #owner = :me, #epoch = :next")
            .expression_attribute_values(":me", text(self.worker()))
            .expression_attribute_values(":next", number(epoch + 1))
            .return_values(ReturnValue::AllNew);
        let request = match seen {
            None => request.condition_expression("attribute_not_exists(#epoch)"),
            Some(row) => {
                let request = request.expression_attribute_values(":epoch", number(row.epoch));
                match &row.owner {
                    None => request.condition_expression("#epoch = :epoch AND attribute_not_exists(#owner)"),
                    Some(owner) => request
                        .condition_expression("#epoch = :epoch AND #owner = :seen")
                        .expression_attribute_values(":seen", text(owner)),
                }
            }
        };
        match request.send().await {
            Ok(answer) => Ok(answer.attributes.as_ref().map(from_row)),
            Err(error) if refused(&error).is_some() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what a listing found, as the one that took the right with `held`.
    ///
    /// # Errors
    /// [`HeldError`].
    pub async fn listed(&self, held: &ListerRow) -> Result<(), HeldError> {
        let peers = held.listed_for.iter().map(text).collect();
        let request = self
            .listers(held)
            .update_expression("SET #listings = :listings, #disabled = :disabled, #peers = :peers")
            .expression_attribute_names("#listings", LISTINGS)
            .expression_attribute_names("#disabled", DISABLED)
            .expression_attribute_names("#peers", PEERS)
            .expression_attribute_values(":listings", number(held.listings))
            .expression_attribute_values(":disabled", AttributeValue::Bool(held.disabled))
            .expression_attribute_values(":peers", AttributeValue::L(peers));
        send(request).await
    }

    /// Gives the right to list back.
    ///
    /// # Errors
    /// [`HeldError`].
    pub async fn leave_lister(&self, held: &ListerRow) -> Result<(), HeldError> {
        send(self.listers(held).update_expression("REMOVE #owner")).await
    }

    fn listers(&self, held: &ListerRow) -> UpdateItemFluentBuilder {
        self.update(LISTER)
            .condition_expression(HELD)
            .expression_attribute_values(":me", text(self.worker()))
            .expression_attribute_values(":mine", number(held.epoch))
    }
}

async fn send(request: UpdateItemFluentBuilder) -> Result<(), HeldError> {
    match request.send().await {
        Ok(_) => Ok(()),
        Err(error) if refused(&error).is_some() => Err(HeldError::Lost),
        Err(error) => Err(HeldError::Call(error.into())),
    }
}

/// After so many listings in a row that failed, another worker shall try.
const TRIES: u32 = 3;
/// And this one leaves it to the others for so long.
const PENANCE: Duration = Duration::from_secs(60);

/// Whether this worker lists a stream, and when next.
#[derive(Debug)]
pub struct Duty {
    held: Option<ListerRow>,
    due: Instant,
    failed: u32,
    not_before: Instant,
    /// Shards with rows that listings leave out, since when.
    unlisted: BTreeMap<String, Instant>,
}

impl Default for Duty {
    fn default() -> Self {
        let now = Instant::now();
        Self { held: None, due: now, failed: 0, not_before: now, unlisted: BTreeMap::new() }
    }
}

impl Duty {
    /// Whether this worker should try to take the right to list.
    #[must_use]
    pub fn wants(&self, row: Option<&ListerRow>, me: &str, dead: &BTreeSet<String>) -> bool {
        let owner = row.and_then(|row| row.owner.as_deref());
        let free = owner.is_none_or(|owner| owner == me || dead.contains(owner));
        self.held.is_none() && free && Instant::now() >= self.not_before
    }

    /// It has the right now, and lists at once.
    pub fn took(&mut self, row: ListerRow) {
        (self.held, self.due, self.failed) = (Some(row), Instant::now(), 0);
        self.unlisted.clear();
    }

    /// Another worker has it now.
    pub fn lost(&mut self) {
        self.held = None;
    }

    /// The row as this worker holds it.
    #[must_use]
    pub fn held(&self) -> Option<&ListerRow> {
        self.held.as_ref()
    }

    /// When the next listing is due, when this worker lists.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.held.as_ref().map(|_| self.due)
    }

    /// A listing succeeded, and the next is due after `pause`: what to write to the row.
    pub fn listed(&mut self, enabled: bool, peers: &[&str], pause: Duration) -> Option<ListerRow> {
        (self.due, self.failed) = (Instant::now() + pause, 0);
        let held = self.held.as_mut()?;
        held.listings += 1;
        held.disabled = !enabled;
        held.listed_for = peers.iter().map(|peer| (*peer).to_owned()).collect();
        Some(held.clone())
    }

    /// For how long listings have left out each shard that has a row, after one that found `shards`.
    pub fn unlisted_for(
        &mut self,
        leases: &BTreeMap<String, Lease>,
        shards: &[Shard],
    ) -> BTreeMap<String, Duration> {
        let found: BTreeSet<&str> = shards.iter().map(|shard| shard.id.as_str()).collect();
        let (now, before) = (Instant::now(), std::mem::take(&mut self.unlisted));
        let out = leases.values().filter(|lease| !lease.gone && !found.contains(lease.shard.as_str()));
        let since = |shard: &str| before.get(shard).copied().unwrap_or(now);
        self.unlisted = out.map(|lease| (lease.shard.clone(), since(&lease.shard))).collect();
        self.unlisted.iter().map(|(shard, since)| (shard.clone(), now - *since)).collect()
    }

    /// A listing failed; the next is due after `pause`. The row to give back, when another worker shall try.
    pub fn failed(&mut self, pause: Duration, others: bool) -> Option<ListerRow> {
        self.due = Instant::now() + pause;
        self.failed += 1;
        if self.failed < TRIES || !others {
            return None;
        }
        self.not_before = Instant::now() + PENANCE;
        self.held.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_fails_three_times_leaves_it_to_others_for_a_minute() {
        let (mut duty, dead) = (Duty::default(), BTreeSet::new());
        assert!(duty.wants(None, "me", &dead));
        duty.took(ListerRow::default());
        assert!(!duty.wants(None, "me", &dead));
        let pause = Duration::from_secs(1);
        for _ in 0..5 {
            assert_eq!(duty.failed(pause, false), None, "there is nobody else");
        }
        assert!(duty.listed(true, &["b"], pause).is_some());
        assert_eq!((duty.failed(pause, true), duty.failed(pause, true)), (None, None));
        assert_eq!(duty.failed(pause, true).map(|row| row.listings), Some(1));
        assert!(!duty.wants(None, "me", &dead));
        tokio::time::advance(PENANCE).await;
        assert!(duty.wants(None, "me", &dead));
        let row = |owner: &str| ListerRow { owner: Some(owner.to_owned()), ..ListerRow::default() };
        assert!(!duty.wants(Some(&row("other")), "me", &dead));
        assert!(duty.wants(Some(&row("other")), "me", &BTreeSet::from(["other".to_owned()])));
        assert!(duty.wants(Some(&row("me")), "me", &dead), "its own, from a take whose answer was lost");
    }
}
