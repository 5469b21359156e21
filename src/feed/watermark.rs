//! What a feed has everything of: pure, from the leases' rows; and the file that says so.
//!
//! The watermark is a time: every change that was created before it is in the feed's files. The worker that lists the
//! stream works it out once in a while, from what the checkpoints say of every shard. It is kept in the state table,
//! where it only rises, and written to `<route>/<feed>/_watermark.json`.
//!
//! A shard that is not done has everything up to its checkpoint's time, which for an idle shard moves on with the
//! reads that find nothing. One that nobody began has what its parent has. One that is done holds the watermark back
//! until its children are known: what comes after it may be older than what other shards have. A split makes two children
//! at one time, and listings lag, so that one may be known before the other: a child counts as all of them only a while
//! after the time in its id. Where ids hold no time, as with emulators, the first child that is known is taken for all.

use crate::failure::{Class, Failure};
use crate::feed::{Feed, file};
use crate::lease::row::Lease;
use crate::state::{PK, SK, StateTable, get_number, number, text};
use crate::stream::graph;
use object_store::PutPayload;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the watermark is worked out.
pub const INTERVAL: Duration = Duration::from_secs(30);
/// Records may come late, and their creation times may step back; clocks are right to about so much.
pub const SLACK: Duration = Duration::from_secs(60);
/// What was made so long ago is in every listing: they lag by seconds, and one of a stream of 50,000 shards takes 100 s.
pub const LISTED: Duration = Duration::from_secs(150);

/// The time before which all of a stream's changes are durable in a feed at `now`, just after a listing, but for the slack;
/// `None` while that is not known of some shard.
#[must_use]
pub fn complete<'a>(
    leases: impl IntoIterator<Item = &'a Lease>,
    feed: &str,
    now: SystemTime,
) -> Option<SystemTime> {
    let leases: BTreeMap<&str, &Lease> =
        leases.into_iter().map(|lease| (lease.shard.as_str(), lease)).collect();
    let old = |shard: &str| graph::born(shard).is_none_or(|born| born + LISTED <= now);
    let children = leases.values().filter(|lease| old(&lease.shard));
    let parents: BTreeSet<&str> = children.filter_map(|lease| lease.parent.as_deref()).collect();
    let mut least = None;
    for lease in leases.values() {
        let position = lease.peers.get(feed);
        let done = position.is_some_and(|position| position.done);
        // What aged out counts for nothing: it is complete, or a gap that was told.
        if lease.gone || (done && parents.contains(lease.shard.as_str())) {
            continue;
        }
        let parent = lease.parent.as_deref().and_then(|parent| leases.get(parent));
        let own = position.and_then(|position| position.position.created);
        let inherited = || {
            let parent = parent?.peers.get(feed)?;
            parent.position.created
        };
        let reached = own.or_else(inherited)?;
        least = Some(least.map_or(reached, |least: SystemTime| least.min(reached)));
    }
    least
}

/// Works the watermark of a route's feed out and shows it; gives it when it is known.
///
/// # Errors
/// The failure of a call to the state table or the feed's place; trying again is harmless.
pub async fn publish(
    state: &StateTable,
    route: &str,
    feed: &Feed,
    leases: &[Lease],
    now: SystemTime,
) -> Result<Option<SystemTime>, Failure> {
    let Some(complete) = complete(leases, feed.name(), now) else { return Ok(None) };
    let seconds = complete.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(SLACK).as_secs();
    let mut known = raise(state, route, feed.name(), seconds).await?;
    loop {
        let at = UNIX_EPOCH + Duration::from_secs(known);
        if feed.store.is_stdout() {
            return Ok(Some(at));
        }
        let body = serde_json::json!({
            "feed": feed.name(), "route": route, "complete_to": humantime::format_rfc3339_seconds(at).to_string(),
        });
        feed.store
            .put(
                &format!("{}/_watermark.json", file::root(&feed.settings, route)),
                PutPayload::from(body.to_string().into_bytes()),
            )
            .await?;
        // Another worker may have written a lower one over a higher.
        let now = read(state, route, feed.name()).await?;
        if now <= known {
            return Ok(Some(at));
        }
        known = now;
    }
}

fn partition(feed: &str) -> String {
    format!("feed#{feed}")
}

fn sort(route: &str) -> String {
    format!("watermark#{route}")
}

const COMPLETE: &str = "complete_to";

/// Raises the row; gives what it holds now.
async fn raise(state: &StateTable, route: &str, feed: &str, seconds: u64) -> Result<u64, Failure> {
    let update = state
        .call("UpdateItem")
        .update_item()
        .table_name(state.name())
        .key(PK, text(partition(feed)))
        .key(SK, text(sort(route)))
        .update_expression("SET #complete = :complete")
        .condition_expression("attribute_not_exists(#complete) OR #complete < :complete")
        .expression_attribute_names("#complete", COMPLETE)
        .expression_attribute_values(":complete", number(seconds));
    match update.send().await.map_err(Failure::from) {
        Ok(_) => Ok(seconds),
        Err(failure) if failure.class == Class::Condition => read(state, route, feed).await,
        Err(failure) => Err(failure),
    }
}

async fn read(state: &StateTable, route: &str, feed: &str) -> Result<u64, Failure> {
    let row = state.get(&partition(feed), &sort(route)).await?;
    Ok(row.and_then(|row| get_number(&row, COMPLETE)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::Position;
    use crate::lease::row::PeerPosition;
    use crate::stream::graph::Shard;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn lease(shard: &str, parent: Option<&str>, created: Option<u64>, done: bool) -> Lease {
        let row = Shard { id: shard.to_owned(), parent: parent.map(str::to_owned), closed: done };
        let position = Position { created: created.map(at), ..Position::default() };
        let peers = BTreeMap::from([("f".to_owned(), PeerPosition { position, done })]);
        Lease { peers, ..Lease::new(&row) }
    }

    #[test]
    fn the_least_of_all_shards_counts() {
        let leases = [lease("a", None, Some(100), false), lease("b", None, Some(90), false)];
        assert_eq!(complete(&leases, "f", at(1000)), Some(at(90)));
        assert_eq!(complete(&leases, "other", at(1000)), None, "nothing is known of it");
        assert_eq!(complete(&[], "f", at(1000)), None);
    }

    #[test]
    fn a_finished_shard_holds_back_until_its_children_are_known() {
        let parent = lease("a", None, Some(50), true);
        let other = lease("b", None, Some(90), false);
        assert_eq!(complete(&[parent.clone(), other.clone()], "f", at(1000)), Some(at(50)));
        let unborn = Lease { peers: BTreeMap::new(), ..lease("c", Some("a"), None, false) };
        assert_eq!(
            complete(&[parent.clone(), other.clone(), unborn], "f", at(1000)),
            Some(at(50)),
            "as far as its parent"
        );
        let child = lease("c", Some("a"), Some(80), false);
        assert_eq!(complete(&[parent, other.clone(), child], "f", at(1000)), Some(at(80)));
        let gone = Lease { gone: true, ..lease("z", None, Some(1), false) };
        assert_eq!(complete(&[gone, other.clone()], "f", at(1000)), Some(at(90)));
        let unread = Lease { peers: BTreeMap::new(), ..lease("d", None, None, false) };
        assert_eq!(
            complete(&[other, unread], "f", at(1000)),
            None,
            "nothing is known of a shard that nobody began"
        );
    }

    /// A split makes two children at one time, and a listing may show one of them first.
    #[test]
    fn a_child_that_is_just_made_may_have_a_sibling_that_is_not_listed_yet() {
        const SPLIT: u64 = 1_800_000_000;
        let id = |name: &str| format!("shardId-{:020}-{name}", SPLIT * 1000);
        let parent = lease("a", None, Some(SPLIT - 5), true);
        let first = lease(&id("b"), Some("a"), Some(SPLIT + 90), false);
        let known = [parent.clone(), first.clone()];
        let soon = at(SPLIT + 100);
        assert_eq!(complete(&known, "f", soon), Some(at(SPLIT - 5)), "as far as the parent");
        let second = Lease { peers: BTreeMap::new(), ..lease(&id("c"), Some("a"), None, false) };
        let late = at(SPLIT) + LISTED;
        assert_eq!(complete(&[parent, first, second], "f", late), Some(at(SPLIT - 5)), "nobody began it");
        assert_eq!(complete(&known, "f", late), Some(at(SPLIT + 90)), "there is no other");
    }
}
