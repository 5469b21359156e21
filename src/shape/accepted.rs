//! Which shape the items of a route's peers have, and the records that its feeds get.
//!
//! Owns a row for each route and peer or feed, beside the operator's pauses, so that every worker sees it within some seconds.
//! It is written when a shaped route first starts, and then only by an operator: by a backfill that is begun anew, which
//! puts the items in their new shape, or by `shape accept`. A worker whose config says otherwise writes nothing to
//! that peer; nor does one that runs on with the old config once the new shape is accepted. So items of two shapes never
//! come to lie side by side without somebody having said so.
//!
//! Rows: `fleet` / `control#shape#<route>#<peer>`. A route that has begun without a row had no shape.

use crate::clock::Clock;
use crate::config::{self, Config, Mask};
use crate::control::{Pause, Scope};
use crate::failure::{Class, Failure};
use crate::item::Item;
use crate::json;
use crate::lease::fleet::{CONTROL, FLEET};
use crate::starts;
use crate::state::{Row, SK, StateTable, get_text, key, text};
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::json;
use std::collections::BTreeMap;

/// Who keeps a gate closed: the `by` of the pause that shows it.
pub const SHAPE: &str = "shape";
/// In place of a digest: no shape.
const NONE: &str = "none";
/// The attribute with the digest.
const DIGEST: &str = "shape";
/// The attribute with the fingerprint of the mask key.
const SECRET: &str = "mask_key";

/// What tells one shape from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The digest of what the config says; `none` for a route without a shape.
    pub digest: String,
    /// A fingerprint of the key of its hashes; `None` where none is used, or it is not known here.
    pub secret: Option<String>,
}

/// The shape that each route and peer or feed should have, by their names. Routes of groups are not in it.
pub type Expected = BTreeMap<(String, String), Identity>;

impl Identity {
    /// That of a route without a shape.
    #[must_use]
    pub fn none() -> Self {
        Self { digest: NONE.to_owned(), secret: None }
    }

    /// That of a config's shape, as far as it can be told without the key of its hashes.
    #[must_use]
    pub fn of(shape: &config::Shape) -> Self {
        let config::Shape {
            filter,
            key_prefix,
            attribute_equals,
            include,
            exclude,
            mask,
            rename,
            constants,
            keys,
            ..
        } = shape;
        let values = |values: &BTreeMap<String, AttributeValue>| {
            json::from_item(&Item(values.iter().map(|(name, value)| (name.clone(), value.clone())).collect()))
        };
        let paths = |paths: &[super::path::Path]| {
            let mut paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
            paths.sort_unstable();
            paths
        };
        let mask = mask.iter().map(|(path, mask)| {
            let mask = match mask {
                Mask::Drop => json!("drop"),
                Mask::Hash => json!("hash"),
                Mask::Text(text) => json!({ "text": text }),
            };
            (path.to_string(), mask)
        });
        let keys = keys.iter().map(|(name, template)| (name.clone(), json!(template.to_string())));
        // Objects are sorted by name, so equal shapes have equal texts.
        let said = json!({
            "filter": filter, "key_prefix": key_prefix, "attribute_equals": values(attribute_equals),
            "include": paths(include), "exclude": paths(exclude), "rename": rename, "constants": values(constants),
            "mask": mask.collect::<serde_json::Map<_, _>>(), "keys": keys.collect::<serde_json::Map<_, _>>(),
        });
        let hash = blake3::hash(said.to_string().as_bytes());
        Self { digest: hex::encode(&hash.as_bytes()[..16]), secret: None }
    }

    /// Whether both are the same shape, as far as is known of their keys.
    fn agrees(&self, other: &Self) -> bool {
        let secrets = self.secret.as_ref().zip(other.secret.as_ref());
        self.digest == other.digest && secrets.is_none_or(|(a, b)| a == b)
    }
}

/// One word.
impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.digest)?;
        self.secret.as_ref().map_or(Ok(()), |secret| write!(f, ".{secret}"))
    }
}

/// What the config's one-way routes should have. `known` gives a route's shape with its key, where that was read.
#[must_use]
pub fn expected<'s>(config: &Config, known: impl Fn(&str) -> Option<&'s Identity>) -> Expected {
    let one_way = config.routes.iter().filter(|route| route.group.is_none());
    let of = |route: &config::Route| match known(&route.name) {
        Some(identity) => identity.clone(),
        None => route.shape.as_ref().map_or_else(Identity::none, Identity::of),
    };
    let lanes = one_way.flat_map(|route| config.destinations(route).map(move |peer| (route, peer)));
    lanes.map(|(route, peer)| ((route.name.clone(), peer.to_owned()), of(route))).collect()
}

/// Notes the shapes of routes that start for the first time, and of peers that are new to a shaped route. It can be
/// repeated, and must be done before anything else is remembered of a route.
///
/// # Errors
/// The failure of a call.
pub async fn claim(state: &StateTable, clock: Clock, expected: &Expected) -> Result<(), Failure> {
    if expected.values().all(|identity| *identity == Identity::none()) {
        return Ok(());
    }
    let rows = state.rows(FLEET, CONTROL, &[]).await?;
    let known = of_rows(&rows);
    for ((route, peer), identity) in expected {
        let without = known.contains_key(&(route.clone(), peer.clone())) || *identity == Identity::none();
        if without {
            continue;
        }
        let shaped = known.keys().any(|(other, _)| other == route);
        // What a route without a shape has copied is as it was at the source.
        let identity = if !shaped && starts::newest(state, route).await?.is_some() {
            Identity::none()
        } else {
            identity.clone()
        };
        let mut row = key(FLEET, &sort(route, peer));
        row.extend(to_row(&identity, clock, "the first start"));
        let put = state.call("PutItem").put_item().table_name(state.name()).set_item(Some(row));
        let put = put.condition_expression("attribute_not_exists(#sk)").expression_attribute_names("#sk", SK);
        match put.send().await.map_err(Failure::from) {
            Err(failure) if failure.class != Class::Condition => return Err(failure),
            // Another worker may have been faster.
            _ => {}
        }
    }
    Ok(())
}

/// Accepts a shape for a route's peer.
///
/// # Errors
/// The failure of the call; accepting again is harmless.
pub async fn accept(
    state: &StateTable,
    clock: Clock,
    route: &str,
    peer: &str,
    identity: &Identity,
    by: &str,
) -> Result<(), Failure> {
    let mut row = key(FLEET, &sort(route, peer));
    row.extend(to_row(identity, clock, by));
    state.put(row).await
}

/// The peers whose items have another shape than the config says, by the rows of the controls, each with what is to be
/// done.
#[must_use]
pub fn changed(rows: &[Row], expected: &Expected) -> BTreeMap<Scope, Pause> {
    let known = of_rows(rows);
    let pause = |((route, peer), identity): (&(String, String), &Identity)| {
        let (had, since) = known.get(&(route.clone(), peer.clone()))?;
        if had.agrees(identity) {
            return None;
        }
        let what = match (had.digest.as_str(), identity.digest.as_str()) {
            (NONE, _) => "the route has a shape now, and had none",
            (_, NONE) => "the route had a shape, and has none now",
            (a, b) if a == b => "the key of the shape's hashes is another one",
            _ => "the route's shape was changed",
        };
        let why = format!(
            "{what}: what is at {peer} has the one that was accepted. Copy it anew in the new one: shardwalker \
             backfill {route} --restart; it leaves items that the new one lets out or gives another key, which \
             shardwalker verify {route} --repair deletes at a peer. Or leave all as it is until it changes: shardwalker \
             shape accept {route} --peer {peer}; what the new shape lets out then stays until that repair, whatever \
             becomes of it at the source. The files of a feed stay in any case. Or take the change back"
        );
        let scope = Scope { route: route.clone(), peer: Some(peer.clone()) };
        Some((scope, Pause { why, by: SHAPE.to_owned(), since: since.clone() }))
    };
    expected.iter().filter_map(pause).collect()
}

/// Whether items of a route's peers have, or had, a shape.
#[must_use]
pub fn is_known(rows: &[Row], route: &str) -> bool {
    of_rows(rows).keys().any(|(known, _)| known == route)
}

fn sort(route: &str, peer: &str) -> String {
    format!("{CONTROL}{SHAPE}#{route}#{peer}")
}

fn to_row(identity: &Identity, clock: Clock, by: &str) -> Row {
    let mut row = Row::from([
        (DIGEST.to_owned(), text(&identity.digest)),
        ("since".to_owned(), text(humantime::format_rfc3339_seconds(clock.now()).to_string())),
        ("by".to_owned(), text(by)),
    ]);
    row.extend(identity.secret.as_ref().map(|secret| (SECRET.to_owned(), text(secret))));
    row
}

/// The accepted shapes, each with when that was.
fn of_rows(rows: &[Row]) -> BTreeMap<(String, String), (Identity, String)> {
    let accepted = |row: &Row| {
        let (route, peer) = get_text(row, SK)?
            .strip_prefix(CONTROL)?
            .strip_prefix(SHAPE)?
            .strip_prefix('#')?
            .rsplit_once('#')?;
        let identity = Identity {
            digest: get_text(row, DIGEST)?.to_owned(),
            secret: get_text(row, SECRET).map(str::to_owned),
        };
        let since = get_text(row, "since").unwrap_or_default().to_owned();
        Some(((route.to_owned(), peer.to_owned()), (identity, since)))
    };
    rows.iter().filter_map(accepted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expects(digest: &str, secret: Option<&str>) -> Expected {
        let identity = Identity { digest: digest.to_owned(), secret: secret.map(str::to_owned) };
        Expected::from([(("r".to_owned(), "b".to_owned()), identity)])
    }

    fn row(digest: &str, secret: Option<&str>) -> Row {
        let identity = Identity { digest: digest.to_owned(), secret: secret.map(str::to_owned) };
        let mut row = key(FLEET, &sort("r", "b"));
        row.extend(to_row(&identity, Clock::system(), "me"));
        row
    }

    #[test]
    fn a_worker_whose_shape_is_not_the_accepted_one_is_told_what_changed() {
        let none = NONE;
        for (had, now, what) in [
            (Some(("a", None)), ("a", None), None),
            (Some(("a", Some("1"))), ("a", Some("1")), None),
            // The key is not known where a status is asked for.
            (Some(("a", Some("1"))), ("a", None), None),
            (None, (none, None), None),
            (Some(("a", None)), ("b", None), Some("was changed")),
            (Some(("a", Some("1"))), ("a", Some("2")), Some("another one")),
            (Some(("a", None)), (none, None), Some("has none now")),
            (Some((none, None)), ("a", None), Some("had none")),
            // Before its first start.
            (None, ("a", None), None),
        ] {
            let rows: Vec<Row> = had.iter().map(|(digest, secret)| row(digest, *secret)).collect();
            let changed = changed(&rows, &expects(now.0, now.1));
            let why = changed.values().next().map(|pause| pause.why.as_str());
            assert_eq!(why.is_some(), what.is_some(), "{had:?} {now:?}");
            assert!(what.is_none_or(|what| why.is_some_and(|why| why.contains(what))), "{why:?}");
        }
        assert!(crate::control::pauses(&[row("a", None)]).is_empty(), "it is no pause");
    }
}
