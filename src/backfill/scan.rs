//! Reading a whole table in parallel segments, page by page, at a bounded rate.
//!
//! Owns the Scan call, what it costs and how fast it may be. A page's place in its segment is the key after which the
//! next one begins; who reads which segment, and what is done with the items, is left to others.

use crate::failure::{Class, Failure};
use crate::limit::{Adaptive, Rate};
use crate::state::Row;
use crate::view::Fields;
use crate::wire::{self, Scanned};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::ReturnConsumedCapacity;

/// A table to be read in segments.
#[derive(Debug)]
pub struct TableScan {
    client: Client,
    /// The table's full ARN.
    table: String,
    segments: u32,
    consistent: bool,
    /// Read units a second at most.
    units: Option<Rate>,
    /// Follows the table's throttling.
    limit: Adaptive,
}

/// A page of a segment.
#[derive(Debug)]
pub struct Page<T> {
    /// What the items were read as, in the segment's order.
    pub items: Vec<T>,
    /// The key after which the next page begins; `None` at the segment's end.
    pub next: Option<Row>,
    /// Read units that it cost.
    pub read_units: f64,
}

impl TableScan {
    /// A table by its ARN, in so many segments. `consistent` reads see everything that was written before and cost twice.
    /// `read_units` is how many a second this process may spend.
    #[must_use]
    pub fn new(
        client: Client,
        table: String,
        segments: u32,
        consistent: bool,
        read_units: Option<u32>,
    ) -> Self {
        let units = read_units.map(|units| Rate::new(f64::from(units)));
        Self { client, table, segments, consistent, units, limit: Adaptive::new(None) }
    }

    /// How many segments there are.
    #[must_use]
    pub const fn segments(&self) -> u32 {
        self.segments
    }

    /// The page of a segment after a key, of so many items at most, each read by `read`. Waits before it for what earlier pages cost, and
    /// slows down while the table throttles.
    ///
    /// # Errors
    /// The failure of the call; it can be repeated.
    pub async fn page<T>(
        &self,
        segment: u32,
        after: Option<Row>,
        most: u16,
        read: impl Fn(Fields<'_>) -> T,
    ) -> Result<Page<T>, Failure> {
        if let Some(units) = &self.units {
            // What a page costs is known afterwards: it waits until those before it are made up for.
            units.spend(0.0).await;
        }
        self.limit.turn().await;
        let scan = self
            .client
            .scan()
            .table_name(&self.table)
            .consistent_read(self.consistent)
            .limit(i32::from(most))
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .set_exclusive_start_key(after);
        // One segment of one is the same as no segments at all.
        let scan = scan.segment(segment.cast_signed()).total_segments(self.segments.cast_signed());
        let answer = match wire::scan(scan).await {
            Ok(answer) => answer,
            Err(failure) => {
                if failure.class == Class::Throttled {
                    self.limit.throttled();
                }
                return Err(failure);
            }
        };
        self.limit.succeeded();
        let page = answer
            .read::<Scanned<'_>>()?
            .map_err(|unreadable| Failure::new(Class::Unrecognised, "Unreadable", unreadable.to_string()))?;
        let read_units = page.consumed_capacity.and_then(|cost| cost.capacity_units);
        let read_units = read_units.filter(|units| units.is_finite() && *units >= 0.0).unwrap_or_default();
        if let Some(units) = &self.units {
            units.owe(read_units);
        }
        let next = page.last_evaluated_key.filter(|key| key.iter().len() > 0);
        let items = page.items.into_iter().map(read).collect();
        Ok(Page { items, next: next.map(|key| key.to_item().0), read_units })
    }
}
