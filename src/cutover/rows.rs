//! The row of a cutover, and the rows of the directions that it turns.
//!
//! Owns how they are read and written. A change of the row is conditional on the one before, so two operators never move
//! the same cutover; one whose answer was lost is found to have happened.

use super::standing::{REVISION, Standing};
use crate::clock::Clock;
use crate::failure::{Class, Failure};
use crate::lease::fleet::FLEET;
use crate::lease::table::LeaseTable;
use crate::starts;
use crate::state::{PK, Row, SK, StateTable, get_text, key, number};
use crate::transact::{Action, Outcome};
use crate::version::Hlc;

/// The code of what is not done because another process has moved the cutover.
pub const MOVED: &str = "CutoverMoved";

pub(super) fn moved() -> Failure {
    Failure::new(Class::Condition, MOVED, "another process has moved the cutover")
}

/// The cutovers in a state table.
#[derive(Debug, Clone)]
pub struct Standings {
    state: StateTable,
    clock: Clock,
    /// This process: what it finds written is its own only with this.
    id: String,
}

impl Standings {
    /// Those of a state table.
    #[must_use]
    pub fn new(state: StateTable, clock: Clock) -> Self {
        Self { state, clock, id: format!("{:016x}", rand::random::<u64>()) }
    }

    /// Where a route's cutover stands. Strongly consistent.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn load(&self, route: &str) -> Result<Standing, Failure> {
        let row = self.state.get(FLEET, &Standing::sort(route)).await?;
        let Some(row) = row else { return Ok(Standing::new(route)) };
        Standing::from_row(&row).ok_or_else(|| {
            let why = format!("the row of {route}'s cutover cannot be read by this version");
            Failure::new(Class::Invalid, "BadCutover", why)
        })
    }

    /// Changes it from what was seen to what shall be; gives that as it is written, or `None` when somebody else was
    /// faster.
    ///
    /// # Errors
    /// The failure of the call; trying again is harmless.
    pub async fn change(&self, seen: &Standing, to: Standing) -> Result<Option<Standing>, Failure> {
        let since = if (seen.turn, seen.step) == (to.turn, to.step) {
            seen.since.clone()
        } else {
            humantime::format_rfc3339_seconds(self.clock.now()).to_string()
        };
        let to = Standing { revision: seen.revision + 1, since, writer: self.id.clone(), ..to };
        let mut row = key(FLEET, &Standing::sort(&to.route));
        row.extend(to.to_row());
        let put = self.state.call("PutItem").put_item().table_name(self.state.name()).set_item(Some(row));
        let put = if seen.revision == 0 {
            put.condition_expression("attribute_not_exists(#pk)").expression_attribute_names("#pk", PK)
        } else {
            put.condition_expression("#revision = :seen")
                .expression_attribute_names("#revision", REVISION)
                .expression_attribute_values(":seen", number(seen.revision))
        };
        match put.send().await.map_err(Failure::from) {
            Ok(_) => Ok(Some(to)),
            // The answer of an earlier try may have been lost.
            Err(failure) if failure.class == Class::Condition => {
                let now = self.load(&to.route).await?;
                let same = Standing { since: to.since.clone(), ..now.clone() } == to;
                Ok(same.then_some(now))
            }
            Err(failure) => Err(failure),
        }
    }

    /// How far each shard of a route is, and the highest clock of its lanes.
    ///
    /// # Errors
    /// The failure of a call.
    pub async fn positions(&self, route: &str) -> Result<(Vec<(String, String)>, Hlc), Failure> {
        let (mut positions, mut highest) = (Vec::new(), Hlc::ZERO);
        for label in self.streams(route).await? {
            for lease in LeaseTable::new(self.state.clone(), route, &label, "".into()).load().await?.leases {
                for position in lease.peers.values() {
                    highest = highest.max(position.position.hlc);
                    let sequence = position.position.sequence.as_ref().map(ToString::to_string);
                    positions.extend(sequence.map(|sequence| (lease.shard.clone(), sequence)));
                }
            }
        }
        Ok((positions, highest))
    }

    /// Forgets how far a route was, and where it began. Nobody may walk it, as `seen` says: each row goes only while the
    /// cutover's is still that one.
    ///
    /// # Errors
    /// The failure of a call; trying again goes on. Of the code [`MOVED`] when the cutover was moved by another process.
    pub async fn forget(&self, seen: &Standing, route: &str) -> Result<(), Failure> {
        for label in self.streams(route).await? {
            // The stream's own row goes last: it is what says that there are others.
            self.delete_all(seen, &format!("lease#{route}#{label}"), "").await?;
            self.delete_all(seen, &format!("route#{route}"), &format!("stream#{label}")).await?;
        }
        Ok(())
    }

    /// Pins a route's place in a stream: what is written from now on is its. Where another process has pinned it since it
    /// was forgotten, that stands.
    ///
    /// # Errors
    /// The failure of a call.
    pub async fn pin(&self, route: &str, label: &str) -> Result<(), Failure> {
        starts::begun(&self.state, self.clock, route, label).await.map(drop)
    }

    async fn streams(&self, route: &str) -> Result<Vec<String>, Failure> {
        let rows = self.state.rows(&format!("route#{route}"), "stream#", &[SK]).await?;
        let label = |row| Some(get_text(row, SK)?.strip_prefix("stream#")?.to_owned());
        Ok(rows.iter().filter_map(label).collect())
    }

    async fn delete_all(&self, seen: &Standing, pk: &str, prefix: &str) -> Result<(), Failure> {
        let rows = self.state.rows(pk, prefix, &[SK]).await?;
        let keys = rows.iter().filter_map(|row| Some(key(pk, get_text(row, SK)?)));
        // One after the other: they share a row.
        for key in keys {
            self.delete(seen, key).await?;
        }
        Ok(())
    }

    async fn delete(&self, seen: &Standing, row: Row) -> Result<(), Failure> {
        // Changes nothing, and needs no right that the workers don't have.
        let check = Action::update(key(FLEET, &Standing::sort(&seen.route)), "SET #revision = :seen")
            .condition("#revision = :seen")
            .name("#revision", REVISION)
            .value(":seen", number(seen.revision));
        match self.state.transact([check, Action::delete(row)]).await? {
            Outcome::Done => Ok(()),
            Outcome::Refused(_) => Err(moved()),
        }
    }
}
