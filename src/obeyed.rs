//! Waiting until every worker does what the controls say.
//!
//! A worker sets its gates by the controls that a look brings, and says with its next beat which they were
//! ([`crate::lease::heart`]). Who says nothing and does not beat for a lease's duration is dead, and has no right to write
//! before it has looked again. So when this wait is over nobody starts anything that the controls forbid; what was begun
//! before ends within the time limit of a request, or is tried no more.

use crate::config::Lease;
use crate::failure::Failure;
use crate::lease::fleet::{FLEET, controls, controls_digest, obeying};
use crate::retry::{self, GaveUp, Jitter, Policy};
use crate::state::StateTable;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// Waits until every worker and backfill that lives obeys the controls as they are in the state table; gives those that do
/// not `within` that time, which must be longer than a lease's duration.
///
/// # Errors
/// That the table could not be read, or that it was cancelled.
pub async fn everywhere(
    state: &StateTable,
    lease: &Lease,
    within: Duration,
    jitter: &Jitter,
    cancel: &CancellationToken,
) -> Result<Vec<String>, GaveUp> {
    let begun = Instant::now();
    let mut seen: BTreeMap<String, (u64, Instant)> = BTreeMap::new();
    loop {
        let read = || async { Ok::<_, Failure>((Instant::now(), state.rows(FLEET, "", &[]).await?)) };
        let policy = Policy::for_at_most(within);
        let (at, rows) = retry::run(policy, jitter, cancel, |_, _| (), read).await?;
        let wanted = controls_digest(&controls(&rows));
        let mut others = Vec::new();
        for (name, counter, obeyed) in obeying(&rows) {
            let known = seen.entry(name.to_owned()).or_insert((counter, at));
            if known.0 != counter {
                *known = (counter, at);
            }
            if obeyed != wanted && at.saturating_duration_since(known.1) < lease.duration {
                others.push(name.to_owned());
            }
        }
        if others.is_empty() || begun.elapsed() > within {
            return Ok(others);
        }
        if !retry::pause(LOOK, cancel).await {
            return Err(GaveUp::Cancelled);
        }
    }
}
