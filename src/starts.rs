//! When a route first saw a stream: one row, written by the first worker, the same for all.
//!
//! A route that starts with what is written from now on must not lose what comes between its first look and its
//! first checkpoint: after a crash it reads from the beginning and leaves out what is older than this time.
//!
//! Rows: `route#<route>` / `stream#<label>`.

use crate::clock::Clock;
use crate::failure::{Class, Failure};
use crate::state::{PK, SK, StateTable, get_number, get_text, number, text};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// This worker's clock may be ahead of the stream's, by no more than signatures tolerate: so much earlier is still
/// "from now on".
pub const MARGIN: Duration = Duration::from_secs(300);

/// When a route first saw a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// The first worker's clock then, in whole seconds.
    pub at: SystemTime,
    /// The label of another stream that the route read before, when nobody has agreed yet to leave it.
    pub after: Option<String>,
}

/// The time when `route` first saw `stream`: now, when it has no row yet.
///
/// # Errors
/// The failure of the call.
pub async fn begun(state: &StateTable, clock: Clock, route: &str, stream: &str) -> Result<Begun, Failure> {
    let (pk, sk) = (partition(route), sort(stream));
    let now = clock.since_epoch().as_secs();
    let others = state.rows(&pk, "stream#", &[SK]).await?;
    let older = others.iter().filter_map(|row| get_text(row, SK)).filter(|other| *other != sk).max();
    let mut put = state
        .call("PutItem")
        .put_item()
        .table_name(state.name())
        .item(PK, text(&pk))
        .item(SK, text(&sk))
        .item(BEGUN, number(now))
        .condition_expression("attribute_not_exists(#pk)")
        .expression_attribute_names("#pk", PK);
    if let Some(older) = older {
        put = put.item(AFTER, text(older.trim_start_matches("stream#")));
    }
    match put.send().await.map_err(Failure::from) {
        Ok(_) => {}
        Err(failure) if failure.class == Class::Condition => {}
        Err(failure) => return Err(failure),
    }
    let rows = state.rows(&pk, &sk, &[]).await?;
    let row = rows.first();
    let seconds = row.and_then(|row| get_number(row, BEGUN)).ok_or_else(|| {
        Failure::new(Class::Unrecognised, "BadRoute", format!("the row of route {route} has no time"))
    })?;
    let after = row.and_then(|row| get_text(row, AFTER)).map(str::to_owned);
    Ok(Begun { at: UNIX_EPOCH + Duration::from_secs(seconds), after })
}

/// The label of the stream that a route reads, when it has read any.
///
/// # Errors
/// The failure of the call.
pub async fn newest(state: &StateTable, route: &str) -> Result<Option<String>, Failure> {
    let rows = state.rows(&partition(route), "stream#", &[]).await?;
    let newest =
        rows.iter().max_by_key(|row| (get_number::<u64>(row, BEGUN), get_text(row, SK).map(str::to_owned)));
    Ok(newest.and_then(|row| Some(get_text(row, SK)?.trim_start_matches("stream#").to_owned())))
}

/// The route goes on with `stream`, whatever the one before it still held.
///
/// # Errors
/// The failure of the call.
pub async fn confirm(state: &StateTable, route: &str, stream: &str) -> Result<(), Failure> {
    state
        .call("UpdateItem")
        .update_item()
        .table_name(state.name())
        .key(PK, text(partition(route)))
        .key(SK, text(sort(stream)))
        .update_expression("REMOVE #after")
        .expression_attribute_names("#after", AFTER)
        .send()
        .await?;
    Ok(())
}

/// A time without its fraction of a second.
#[must_use]
pub fn whole_seconds(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

const BEGUN: &str = "begun";
const AFTER: &str = "after";

fn partition(route: &str) -> String {
    format!("route#{route}")
}

fn sort(stream: &str) -> String {
    format!("stream#{stream}")
}
