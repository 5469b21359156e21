//! The verdict: all items of all tables, read from the sandbox itself.
//!
//! Shares nothing with the replicator: it knows the stamp only by its name, to leave it out.

use super::DemoError;
use super::stage::{KEY, Stage};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// How a peer differs from the source, by keys in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// At the source only.
    pub missing: Vec<String>,
    /// At the peer only.
    pub extra: Vec<String>,
    /// At both, with other content.
    pub different: Vec<String>,
}

impl Difference {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.different.is_empty()
    }

    fn between(source: &Items, peer: &Items) -> Self {
        let without = |items: &Items, others: &Items| {
            items.keys().filter(|key| !others.contains_key(*key)).cloned().collect()
        };
        let differs = |(key, item): &(&String, &Value)| peer.get(*key).is_some_and(|other| other != *item);
        Self {
            missing: without(source, peer),
            extra: without(peer, source),
            different: source.iter().filter(differs).map(|(key, _)| key.clone()).collect(),
        }
    }
}

/// Items by key, without the stamp.
type Items = BTreeMap<String, Value>;

/// What the tables hold in the end.
#[derive(Debug)]
pub struct Comparison {
    /// Items at the source.
    pub source: usize,
    /// For each peer, in the route's order, its number of items and how it differs.
    pub peers: Vec<(usize, Difference)>,
}

/// Compares every item of every peer with the source's.
///
/// # Errors
/// What the sandbox says.
pub fn compare(stage: &Stage) -> Result<Comparison, DemoError> {
    let stamp = &stage.config.routes[0].stamp;
    let items = |arn: String| -> Result<Items, DemoError> {
        Ok(stage.sandbox.items(&arn)?.into_iter().map(|item| by_key(item, stamp)).collect())
    };
    let source = items(stage.source().arn.to_string())?;
    let peer = |member: &crate::config::Member| {
        let peer = items(member.arn.to_string())?;
        Ok((peer.len(), Difference::between(&source, &peer)))
    };
    Ok(Comparison { source: source.len(), peers: stage.peers().map(peer).collect::<Result<_, DemoError>>()? })
}

fn by_key(mut item: Value, stamp: &str) -> (String, Value) {
    if let Some(attributes) = item.as_object_mut() {
        attributes.remove(stamp);
    }
    (item[KEY]["S"].as_str().unwrap_or_default().to_owned(), item)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_of_difference_is_found_and_the_stamp_is_none() {
        let items = |rows: &[(&str, u32)]| -> Items {
            let item = |(key, revision): &(&str, u32)| {
                let stamp = format!("stamp {}", rows.len());
                json!({ KEY: {"S": key}, "revision": {"N": revision.to_string()}, "stamp": {"S": stamp} })
            };
            rows.iter().map(item).map(|item| by_key(item, "stamp")).collect()
        };
        let source = items(&[("A", 1), ("B", 2), ("C", 3)]);
        assert!(Difference::between(&source, &source).is_empty());
        let same = items(&[("A", 1), ("B", 2), ("C", 3)]);
        assert!(Difference::between(&source, &same).is_empty());
        let found = Difference::between(&source, &items(&[("B", 9), ("C", 3), ("D", 4), ("E", 5)]));
        assert_eq!(found.missing, ["A"]);
        assert_eq!(found.extra, ["D", "E"]);
        assert_eq!(found.different, ["B"]);
    }

    #[tokio::test]
    async fn tables_are_compared_as_they_are() {
        let stage = Stage::build(1).await.unwrap();
        let source = stage.source();
        let client = stage.local(source, "app", &["dynamodb:PutItem"]).unwrap();
        let key = aws_sdk_dynamodb::types::AttributeValue::S("ATL".into());
        client.put_item().table_name(&source.arn.table).item(KEY, key).send().await.unwrap();
        let comparison = compare(&stage).unwrap();
        assert_eq!(comparison.source, 1);
        let missing = Difference { missing: vec!["ATL".into()], ..Difference::default() };
        assert_eq!(comparison.peers, [(0, missing.clone()), (0, missing)]);
    }
}
