//! Whether the keys of a route's tables go together: those of the source and the peers, or those that its shape makes.
//!
//! Pure.

use super::finding::Finding;
use super::preflight::Found;
use super::probe::KeyAttribute;
use crate::config::Config;
use crate::shape::Shape;
use std::collections::BTreeSet;

/// The peers whose keys are not what their routes need, and shapes that do not fit their sources.
pub(super) fn compare(config: &Config, found: &[Option<Found>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let of = |index: usize| found.get(index).and_then(Option::as_ref);
    let mut compared = BTreeSet::new();
    for route in &config.routes {
        let tables = match route.group {
            None => format!("route {}", route.name),
            // All are compared with the first one.
            Some(group) if compared.insert(group) => format!("group {}", config.groups[group].name),
            Some(_) => continue,
        };
        let Some(source) = of(route.from) else { continue };
        let first = &config.members[route.from].name;
        let (keys, whose, remedy) = match &route.shape {
            None => (
                source.keys.clone(),
                format!("that of {first}"),
                format!("the tables of {tables} must have the same key attributes, by name and type"),
            ),
            Some(shape) => match Shape::fit(shape, &source.keys) {
                Ok(shape) => (
                    shape.keys(),
                    format!("the one that the shape of {tables} makes"),
                    "make the table with that key, or change rename or keys of the shape".to_owned(),
                ),
                Err(wrong) => {
                    let what = format!("the shape of {tables} does not fit: {}", wrong.join("; "));
                    let remedy =
                        format!("the key of {first} is {}: change [route.shape]", spell(&source.keys));
                    findings.push(Finding::new(first, None, what, remedy));
                    continue;
                }
            },
        };
        // A shape may make the one the partition key that the source has as its sort key.
        let fits = |peer: &Found| match &route.shape {
            None => peer.keys == keys,
            Some(_) => keys.iter().all(|key| peer.keys.contains(key)) && peer.keys.len() == keys.len(),
        };
        for &to in &route.to {
            let Some(peer) = of(to).filter(|peer| !fits(peer)) else { continue };
            let what = format!("its primary key is {}, but {whose} is {}", spell(&peer.keys), spell(&keys));
            findings.push(Finding::new(&config.members[to].name, None, what, remedy.clone()));
        }
    }
    findings
}

fn spell(keys: &[KeyAttribute]) -> String {
    let key = |(name, kind): &KeyAttribute| format!("{name} ({kind})");
    keys.iter().map(key).collect::<Vec<_>>().join(", ")
}
