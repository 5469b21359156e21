//! When a route first saw a stream: one row, written by the first worker, the same for all.
//!
//! A route that starts with what is written from now on must not lose what comes between its first look and its
//! first checkpoint: after a crash it reads from the beginning and leaves out what is older than this time.
//!
//! Rows: `route#<route>` / `stream#<label>`.

use crate::clock::Clock;
use crate::failure::{Class, Failure};
use crate::state::{PK, SK, StateTable, get_number, number, text};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The stream's clock may be behind this worker's: so much earlier is still "from now on".
pub const MARGIN: Duration = Duration::from_secs(60);

/// When a route first saw a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// The first worker's clock then, in whole seconds.
    pub at: SystemTime,
}

/// The time when `route` first saw `stream`: now, when it has no row yet.
///
/// # Errors
/// The failure of the call.
pub async fn begun(state: &StateTable, clock: Clock, route: &str, stream: &str) -> Result<Begun, Failure> {
    let (pk, sk) = (format!("route#{route}"), format!("stream#{stream}"));
    let now = clock.since_epoch().as_secs();
    let written = state
        .call("PutItem")
        .put_item()
        .table_name(state.name())
        .item(PK, text(&pk))
        .item(SK, text(&sk))
        .item("begun", number(now))
        .condition_expression("attribute_not_exists(#pk)")
        .expression_attribute_names("#pk", PK)
        .send()
        .await
        .map_err(Failure::from);
    let seconds = match written {
        Ok(_) => now,
        Err(failure) if failure.class == Class::Condition => {
            let rows = state.rows(&pk, &sk, &[]).await?;
            rows.first().and_then(|row| get_number(row, "begun")).ok_or_else(|| {
                Failure::new(Class::Unrecognised, "BadRoute", format!("the row of route {route} has no time"))
            })?
        }
        Err(failure) => return Err(failure),
    };
    Ok(Begun { at: UNIX_EPOCH + Duration::from_secs(seconds) })
}
