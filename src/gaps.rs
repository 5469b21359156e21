//! Gaps: ranges of records that were trimmed before they were read, kept in the state table for good.
//!
//! Rows: `gaps#<route>` / `<shard id>#<after>`. The keys of the lost changes are unknown; only a comparison of
//! the members finds them.

use crate::clock::Clock;
use crate::failure::Failure;
use crate::state::{Row, SK, StateTable, get_text, key, text};
use crate::status;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};
use std::time::SystemTime;

const SETTLED: &str = "settled";
const PEERS: &str = "peers";

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
    /// The peers and feeds that were not handed the records, in order; none when it is all of the route.
    pub peers: Vec<String>,
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
        )?;
        if self.peers.is_empty() { Ok(()) } else { write!(f, ", for {}", self.peers.join(", ")) }
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

    /// Keeps a gap; whether it is a new one. Keeping it again changes nothing that matters: what was settled stays so.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn keep(&self, route: &str, gap: &Gap) -> Result<bool, Failure> {
        let mut update = self.state.call("UpdateItem").update_item().table_name(self.state.name());
        update = update.set_key(Some(key(&partition(route), &format!("{}#{}", gap.shard, gap.after))));
        let fields = [
            ("shard", gap.shard.clone()),
            ("after", gap.after.clone()),
            ("from", time(gap.from, "unknown")),
            ("to", time(gap.to, "unknown")),
            ("found", time(Some(self.clock.now()), "")),
        ];
        for (name, value) in &fields {
            update = update
                .expression_attribute_names(format!("#{name}"), *name)
                .expression_attribute_values(format!(":{name}"), text(value));
        }
        let sets = fields.map(|(name, _)| match name {
            "found" => "#found = if_not_exists(#found, :found)".to_owned(),
            _ => format!("#{name} = :{name}"),
        });
        let mut expression = format!("SET {}", sets.join(", "));
        if !gap.peers.is_empty() {
            // Lanes that stand at the same place find it one by one.
            expression.push_str(" ADD #peers :peers");
            update = update
                .expression_attribute_names("#peers", PEERS)
                .expression_attribute_values(":peers", AttributeValue::Ss(gap.peers.clone()));
        }
        let update = update.update_expression(expression);
        let answer = update.return_values(ReturnValue::AllOld).send().await?;
        Ok(!answer.attributes.is_some_and(|before| before.contains_key("found")))
    }

    /// The gaps of a route, in the order of their shards.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn list(&self, route: &str) -> Result<Vec<status::Gap>, Failure> {
        let rows = self.state.rows(&partition(route), "", &[]).await?;
        let gap = |row: &Row| {
            let field = |name| get_text(row, name).unwrap_or("unknown").to_owned();
            let settled = get_text(row, SETTLED).map(str::to_owned);
            let mut peers = row.get(PEERS).and_then(|peers| peers.as_ss().ok()).cloned().unwrap_or_default();
            peers.sort();
            let (shard, after, from) = (field("shard"), field("after"), field("from"));
            status::Gap { shard, after, from, to: field("to"), peers, found: field("found"), settled }
        };
        Ok(rows.iter().map(gap).collect())
    }

    /// An operator has made up for the gaps of a route; they stay, and say so. Gives how many were not settled.
    ///
    /// # Errors
    /// The failure of a call; settling again is harmless.
    pub async fn settle(&self, route: &str, by: &str) -> Result<usize, Failure> {
        let (pk, now) = (partition(route), time(Some(self.clock.now()), ""));
        let mut settled = 0;
        for row in self.state.rows(&pk, "", &[]).await? {
            let Some(sk) = get_text(&row, SK).filter(|_| !row.contains_key(SETTLED)) else { continue };
            let update = self.state.call("UpdateItem").update_item().table_name(self.state.name());
            update
                .set_key(Some(key(&pk, sk)))
                .update_expression("SET #settled = :settled")
                .expression_attribute_names("#settled", SETTLED)
                .expression_attribute_values(":settled", text(format!("{now} by {by}")))
                .send()
                .await?;
            settled += 1;
        }
        Ok(settled)
    }
}

fn partition(route: &str) -> String {
    format!("gaps#{route}")
}

fn time(at: Option<SystemTime>, unknown: &str) -> String {
    at.map_or_else(|| unknown.to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string())
}
