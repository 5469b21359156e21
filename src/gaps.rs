//! Gaps: ranges of records that were trimmed before they were read, kept in the state table for good.
//!
//! Rows: `gaps#<route>` / `<shard id>#<after>`. The keys of the lost changes are unknown; only a comparison of
//! the members finds them.

use crate::clock::Clock;
use crate::failure::Failure;
use crate::state::{PK, SK, StateTable, text};
use std::time::SystemTime;

/// A range of records that nobody will ever read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The shard's id.
    pub shard: String,
    /// The last sequence number that was read, or a word for the beginning.
    pub after: String,
    /// When the last record that was read was created; `None` when none was read.
    pub from: Option<SystemTime>,
    /// When the first record that is left was created; `None` when none is left.
    pub to: Option<SystemTime>,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "records of shard {} after {}, created between {} and {}, were trimmed before they were read",
            self.shard,
            self.after,
            time(self.from, "the shard's beginning"),
            time(self.to, "its end")
        )
    }
}

/// The gaps in a state table. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gaps {
    state: StateTable,
    clock: Clock,
}

impl Gaps {
    /// The gaps in a state table.
    #[must_use]
    pub fn new(state: StateTable, clock: Clock) -> Self {
        Self { state, clock }
    }

    /// Keeps a gap. Keeping it again changes nothing but the time at which it was found.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn keep(&self, route: &str, gap: &Gap) -> Result<(), Failure> {
        self.state
            .call("PutItem")
            .put_item()
            .table_name(self.state.name())
            .item(PK, text(format!("gaps#{route}")))
            .item(SK, text(format!("{}#{}", gap.shard, gap.after)))
            .item("shard", text(&gap.shard))
            .item("after", text(&gap.after))
            .item("from", text(time(gap.from, "unknown")))
            .item("to", text(time(gap.to, "unknown")))
            .item("found", text(time(Some(self.clock.now()), "")))
            .send()
            .await?;
        Ok(())
    }
}

fn time(at: Option<SystemTime>, unknown: &str) -> String {
    at.map_or_else(|| unknown.to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string())
}
