//! Moving the writers of a one-way route to its peer, and back, without losing or doubling a write.
//!
//! [`standing`] is the state machine, pure; `guide` goes through its steps, each of which can be repeated; [`rows`] is what
//! the state table knows; [`deny`] and [`marker`] are what is done at the tables. The service walks the direction that the
//! row says ([`standing::walk`]), and writes nothing in the other.
//!
//! **Why nothing is lost.** Writers are stopped. The marker, written after that, arrives at the other side, so does its
//! removal, and then the stream is quiet for every worker's and shard's next looks. Then all gates are closed: nothing is
//! written to either side by anybody, a late write of a writer that did not stop would show as a change that waits, and the
//! whole of both tables is compared, strongly consistent: equal tables owe each other nothing, whatever a shard may hold.
//! Then the other direction's place in its stream is pinned, before writers come. It begins up to five minutes earlier,
//! because clocks differ: what it repeats of the quiet time before ends as it was, key by key.
//!
//! **Why the newer side wins.** Each turn's versions begin above the highest of the turn before ([`Standing::floor`]), so
//! whatever stamp or tombstone an item has from before is older; an item without a stamp is an application's from before
//! the turn. The direction that was left has its gates closed for good, and forgets its leases when its turn comes again.
//!
//! [`Standing::floor`]: standing::Standing::floor

pub mod deny;
mod guide;
pub mod marker;
pub mod rows;
pub mod standing;

use crate::access::finding::Findings;
use crate::failure::Failure;
use crate::item::Item;
use crate::retry::GaveUp;
use crate::state::{StateError, StateTable};
use crate::verify::VerifyError;
use serde::Serialize;
use std::time::Duration;

pub use guide::cutover;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Writers at the peer.
    Peer,
    /// Writers at the source again.
    Source,
    /// No way back any more.
    Finish,
    /// Nothing: show where it stands.
    Show,
}

/// What is to be done, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// A route with a way back.
    pub route: String,
    /// What is to be done.
    pub goal: Goal,
    /// Attach the Deny to the table's resource policy.
    pub attach_deny: bool,
    /// The operator's word that writers are stopped.
    pub writers_stopped: bool,
    /// Who is not denied; when there is none, the role that the member is reached through.
    pub principals: Vec<String>,
    /// How long each wait may last.
    pub within: Duration,
    /// Compare so many percent only, while writers are stopped; `None` for all.
    pub sample: Option<f64>,
    /// Read units a second at each member while they are compared.
    pub read_units: Option<u32>,
    /// The marker's key from now on, instead of the reserved one.
    pub marker_key: Option<Item>,
}

/// Why a cutover does not go on: what to do is the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// What does not hold.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// Where a cutover is, and what was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The route.
    pub route: String,
    /// How often writers have moved.
    pub turn: u64,
    /// The step.
    pub step: standing::Step,
    /// Since when (RFC 3339); empty before the first move.
    pub since: String,
    /// The member where writers write, or did before they were stopped.
    pub writers_at: String,
    /// What was done, a line each.
    pub done: Vec<String>,
    /// Why it does not go on, when it does not.
    pub refused: Option<Refusal>,
}

/// Why a cutover failed; the same command goes on.
#[derive(Debug, thiserror::Error)]
pub enum CutoverError {
    /// The request does not fit the config.
    #[error("{0}")]
    Request(String),
    /// The state table.
    #[error(transparent)]
    State(#[from] StateError),
    /// What must hold before.
    #[error("{0}")]
    Access(#[from] Findings),
    /// A call that did not succeed in time.
    #[error("{0}; the same command goes on")]
    Call(#[from] Failure),
    /// The comparison.
    #[error("comparing: {0}; the same command goes on")]
    Verify(#[from] VerifyError),
    /// Another process moves the same cutover.
    #[error("the cutover was moved by another process; look with --status")]
    Another,
    /// The metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Asked to stop.
    #[error("stopped as asked; the same command goes on")]
    Stopped,
}

impl From<GaveUp> for CutoverError {
    fn from(gave_up: GaveUp) -> Self {
        match gave_up {
            GaveUp::Failed(failure) => Self::Call(failure),
            GaveUp::Cancelled => Self::Stopped,
        }
    }
}

/// The turn in which a route may be written to beside the workers, or why it may not ([`standing::turn`]). Strongly
/// consistent; 0 for a route that has no way back.
///
/// # Errors
/// The failure of the call.
pub async fn turn(state: &StateTable, route: &crate::config::Route) -> Result<Result<u64, String>, Failure> {
    if route.pair().is_none() {
        return Ok(Ok(0));
    }
    let rows = state.rows(crate::lease::fleet::FLEET, crate::lease::fleet::CONTROL, &[]).await?;
    Ok(standing::turn(route, &rows))
}
