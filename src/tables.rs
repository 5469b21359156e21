//! A table that was deleted and made again is another table, under the same name.
//!
//! Its stream, if it has one, is new and says nothing of what was there before; a peer that was made again lacks
//! everything that was applied to the old one, and takes new changes as if nothing had happened. So the id that AWS
//! gave each member's table is kept in the state table, looked at when a worker starts and then once a minute. When it
//! differs, that is a gap: kept, counted and said, and the route pauses itself unless it goes on over gaps.
//!
//! Rows: `route#<route>` / `table#<member>`.

use crate::clock::Clock;
use crate::config::OnGap;
use crate::control::Gates;
use crate::failure::Failure;
use crate::gaps::{Gap, Gaps};
use crate::state::{Row, StateTable, get_text, key, text};
use crate::telemetry::metrics::Metrics;
use aws_sdk_dynamodb::Client;
use futures::future::join_all;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The pause between two looks.
const EVERY: Duration = Duration::from_secs(60);
const ID: &str = "id";

/// A member's table, as one route uses it.
#[derive(Debug, Clone)]
pub struct Watched {
    /// The route.
    pub route: String,
    /// What the route does about gaps.
    pub on_gap: OnGap,
    /// The member.
    pub member: String,
    /// The table's full ARN.
    pub table: String,
    /// A client of the member's access.
    pub client: Client,
}

/// Looks whether tables are still those that they were.
#[derive(Debug)]
pub struct Watch {
    /// The tables.
    pub tables: Vec<Watched>,
    /// Where their ids are kept.
    pub state: StateTable,
    /// Where gaps are kept.
    pub gaps: Gaps,
    /// Closed for a route whose table is another one.
    pub gates: Gates,
    /// The worker's clock.
    pub clock: Clock,
    /// The worker's metrics.
    pub metrics: Metrics,
}

impl Watch {
    /// Looks again and again until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            self.look().await;
        }
    }

    /// Looks once. What cannot be looked at is looked at the next time: a table that is gone is said by those who
    /// read or write it.
    pub async fn look(&self) {
        join_all(self.tables.iter().map(|watched| async move {
            if let Err(failure) = self.look_at(watched).await {
                tracing::debug!(member = watched.member, why = %failure, "a table's id could not be compared");
            }
        }))
        .await;
    }

    async fn look_at(&self, watched: &Watched) -> Result<(), Failure> {
        let answer = watched.client.describe_table().table_name(&watched.table).send().await?;
        let Some(id) = answer.table.and_then(|table| table.table_id) else { return Ok(()) };
        let (pk, sk) = (format!("route#{}", watched.route), format!("table#{}", watched.member));
        let row = self.state.get(&pk, &sk).await?;
        let before = row.as_ref().and_then(|row| get_text(row, ID));
        if before == Some(id.as_str()) {
            return Ok(());
        }
        if let Some(before) = before {
            self.made_again(watched, before).await?;
        }
        // The last step: whoever stops before it finds the same again.
        let mut row: Row = key(&pk, &sk);
        row.insert(ID.to_owned(), text(id));
        self.state.put(row).await
    }

    async fn made_again(&self, watched: &Watched, before: &str) -> Result<(), Failure> {
        let Watched { route, member, .. } = watched;
        let why = format!(
            "the table of {member} was deleted and made again: what was in the old one is not in it. Look at \
             what differs with shardwalker verify; then resume the route, and mend it with --repair"
        );
        tracing::error!(route, member, on_gap = ?watched.on_gap, "DATA IS MISSING: {why}");
        let gap = Gap {
            shard: format!("table {member}"),
            after: format!("the end of the table with id {before}"),
            from: None,
            to: None,
            peers: Vec::new(),
        };
        if self.gaps.keep(route, &gap).await? {
            self.metrics.gaps.with_label_values(&[route]).inc();
        }
        if watched.on_gap == OnGap::Stop {
            self.gates.trip(route, &why, self.clock);
        }
        Ok(())
    }
}
