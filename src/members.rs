//! What was found of each route's members when a worker last started with them.
//!
//! A member that is down or closed at the moment when a worker starts must not keep the others waiting, and the
//! worker needs to know little of its table: the names and types of its keys, and its stream. So what a start has
//! found is kept, and the next start that cannot look goes by that. It is kept for each route, so that a mistake in the
//! access of a new one is still found when it is started first.
//!
//! Rows: `route#<route>` / `member#<ARN>`.

use crate::access::preflight::Found;
use crate::config::{Config, Route};
use crate::failure::{Class, Failure};
use crate::state::{SK, StateTable, get_text, key, text};
use std::collections::BTreeMap;

const FOUND: &str = "found";

/// What is kept: by route and row.
#[derive(Debug, Default)]
pub struct Members(BTreeMap<(String, String), Found>);

fn partition(route: &Route) -> String {
    format!("route#{}", route.name)
}

/// The routes with the members of each, with their rows.
fn uses(config: &Config) -> impl Iterator<Item = (&Route, usize, String)> {
    config.routes.iter().flat_map(move |route| {
        let members = std::iter::once(&route.from).chain(&route.to);
        members.map(move |index| (route, *index, format!("member#{}", config.members[*index].arn)))
    })
}

impl Members {
    /// Reads what is kept of a config's members. What cannot be read any more is as if it were not there.
    ///
    /// # Errors
    /// The failure of a call.
    pub async fn load(state: &StateTable, config: &Config) -> Result<Self, Failure> {
        let mut known = BTreeMap::new();
        for route in &config.routes {
            for row in state.rows(&partition(route), "member#", &[SK, FOUND]).await? {
                if let (Some(sk), Some(found)) = (get_text(&row, SK), get_text(&row, FOUND))
                    && let Ok(found) = serde_json::from_str(found)
                {
                    known.insert((route.name.clone(), sk.to_owned()), found);
                }
            }
        }
        Ok(Self(known))
    }

    /// What is known of each member, in the order of the config; `None` for those that some route has not been
    /// started with yet.
    #[must_use]
    pub fn known(&self, config: &Config) -> Vec<Option<Found>> {
        let mut known = vec![None; config.members.len()];
        let mut new = Vec::new();
        for (route, index, row) in uses(config) {
            match self.0.get(&(route.name.clone(), row)) {
                Some(found) => known[index] = Some(found.clone()),
                None => new.push(index),
            }
        }
        for index in new {
            known[index] = None;
        }
        known
    }

    /// Keeps what was found, in the order of the config, where it is not what is kept. It can be repeated.
    ///
    /// # Errors
    /// The failure of a call.
    pub async fn keep(
        &self,
        state: &StateTable,
        config: &Config,
        found: &[Option<Found>],
    ) -> Result<(), Failure> {
        for (route, index, sk) in uses(config) {
            let Some(found) = found.get(index).and_then(Option::as_ref) else { continue };
            // How large it is changes all the time, and is not needed.
            let lasting = Found { items: 0, bytes: 0, ..found.clone() };
            let mut row = key(&partition(route), &sk);
            if self.0.get(&(route.name.clone(), sk)) == Some(&lasting) {
                continue;
            }
            let json = serde_json::to_string(&lasting);
            let json =
                json.map_err(|error| Failure::new(Class::Unrecognised, "NotWritten", error.to_string()))?;
            row.insert(FOUND.to_owned(), text(json));
            state.put(row).await?;
        }
        Ok(())
    }
}
