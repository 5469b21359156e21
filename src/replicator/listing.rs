//! Listing the stream: which shards there are now, and the rows that follow from it. One worker of a route lists all
//! of it; whoever finished a shard looks for its children.

use super::{LOOK_AGAIN, Replicator, some_at_once};
use crate::config::Start;
use crate::failure::Failure;
use crate::feed::watermark;
use crate::lease::listing::{self, Change, Listed};
use crate::lease::table::{HeldError, Rows};
use crate::retry::Policy;
use crate::stream::graph::Shard;
use futures::{FutureExt, StreamExt};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::time::Instant;

/// Shards of a page of a listing.
const LISTED_AT_ONCE: usize = 100;
/// After this long without children a finished shard is left to the ordinary listings.
const LOOK_FOR: Duration = Duration::from_secs(30);

impl Replicator {
    /// Somebody listed the stream.
    pub(super) fn listed(&mut self, listings: u64, enabled: bool) {
        let route = &self.parts.route;
        self.listings = listings;
        route.board.listed(&route.name);
        route.board.stream_is(&route.name, enabled);
        if !enabled {
            // Nothing comes after the last shards of a stream that is off.
            self.childless.clear();
        }
    }

    /// Lists the whole stream when that is this worker's to do, and due.
    pub(super) async fn list(&mut self) -> Result<(), Failure> {
        let (route, leases) = (Arc::clone(&self.parts.route), self.parts.leases.clone());
        let row = self.known.lister();
        if self.duty.wants(row, self.parts.heart.worker(), &self.dead)
            && let Some(row) = leases.take_lister(row).await?
        {
            self.duty.took(row);
        }
        if self.duty.due().is_none_or(|due| Instant::now() < due) {
            return Ok(());
        }
        let listing = match self.parts.lister.all().await {
            Ok(listing) => listing,
            Err(failure) => {
                let others = !self.parts.heart.living(&route.name).is_empty();
                let pause = self.stream_failed(&failure);
                return match self.duty.failed(pause, others) {
                    Some(held) => self.ours(leases.leave_lister(&held).await),
                    None => Ok(()),
                };
            }
        };
        self.listing_pauses.reset();
        let unlisted_for = self.duty.unlisted_for(self.known.leases(), &listing.shards);
        let marked = self.with_listed(&listing.shards, |listed| {
            listing::added(listed).chain(listing::marked(listed, &unlisted_for)).collect()
        });
        self.change(marked).await?;
        let pause = route.jitter.around(route.read.list_interval);
        if let Some(row) = self.duty.listed(listing.enabled, &route.peer_names(), pause) {
            self.listed(row.listings, listing.enabled);
            let written = leases.listed(&row).await;
            self.ours(written)?;
            self.known.merge(&BTreeSet::new(), Rows { leases: Vec::new(), lister: Some(row) });
            self.publish_watermarks();
        }
        Ok(())
    }

    /// Works out what the feeds have everything of, beside the rounds: a feed's place may be slow.
    pub(super) fn publish_watermarks(&mut self) {
        while let Some(Some(_ended)) = self.watermarks.join_next().now_or_never() {}
        let route = Arc::clone(&self.parts.route);
        if route.feeds.is_empty() || !self.watermarks.is_empty() || Instant::now() < self.watermarks_at {
            return;
        }
        self.watermarks_at = Instant::now() + watermark::INTERVAL;
        let (leases, now) = (self.parts.leases.clone(), route.clock.now());
        self.watermarks.spawn(async move {
            let rows = match leases.load().await {
                Ok(rows) => rows.leases,
                Err(failure) => {
                    tracing::warn!(route = &*route.name, why = %failure, "watermarks were not worked out; it is tried again");
                    return;
                }
            };
            for feed in &route.feeds {
                match watermark::publish(leases.state(), &route.name, feed, &rows, now).await {
                    Ok(at) => {
                        let labels = [&*route.name, feed.name()];
                        let since = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
                        let gauge = route.metrics.feed_watermark.with_label_values(&labels);
                        since.into_iter().for_each(|since| gauge.set(since.as_secs_f64()));
                    }
                    Err(failure) => {
                        tracing::warn!(feed = feed.name(), why = %failure, "the watermark was not written; it is tried again");
                    }
                }
            }
        });
    }

    /// A change of the lister's row; that another worker has it now is no failure.
    fn ours(&mut self, result: Result<(), HeldError>) -> Result<(), Failure> {
        match result {
            Ok(()) => Ok(()),
            Err(HeldError::Lost) => {
                self.duty.lost();
                Ok(())
            }
            Err(HeldError::Call(failure)) => Err(failure),
        }
    }

    pub(super) async fn look_for_children(&mut self) -> Result<(), Failure> {
        let known = &self.known;
        self.childless.retain(|id, since| !known.has_child(id) && since.elapsed() < LOOK_FOR);
        if self.childless.is_empty() {
            self.look_again = LOOK_AGAIN;
            return Ok(());
        }
        self.look_again = (self.look_again * 2).min(self.parts.route.read.list_interval);
        // Many that end together are found by fewer calls in a listing of all.
        let pages = known.leases().len() / LISTED_AT_ONCE + 1;
        let parents: Vec<Option<String>> = if self.childless.len() > pages {
            vec![None]
        } else {
            self.childless.keys().cloned().map(Some).collect()
        };
        for parent in parents {
            let found = match &parent {
                Some(parent) => self.parts.lister.children(parent).await,
                None => self.parts.lister.all().await,
            };
            match found {
                Ok(found) => {
                    let added = self.with_listed(&found.shards, |listed| listing::added(listed).collect());
                    self.change(added).await?;
                }
                Err(failure) => {
                    self.look_again = self.look_again.max(self.stream_failed(&failure));
                    return Ok(());
                }
            }
        }
        let known = &self.known;
        self.childless.retain(|id, _| !known.has_child(id));
        Ok(())
    }

    fn with_listed<T>(&self, shards: &[Shard], decide: impl FnOnce(&Listed<'_>) -> T) -> T {
        let route = &self.parts.route;
        decide(&Listed {
            leases: self.known.leases(),
            shards,
            peers: &route.peer_names(),
            from_now: matches!(route.start, Start::Latest),
            begun: route.begun,
            now: route.clock.now(),
        })
    }

    /// Changes rows, and reads them again.
    async fn change(&mut self, changes: Vec<Change>) -> Result<(), Failure> {
        if changes.is_empty() {
            return Ok(());
        }
        let shard = |change: &Change| match change {
            Change::Add(row) => row.shard.clone(),
            Change::Mark { shard, .. } | Change::Keep { shard, .. } => shard.clone(),
        };
        let touched: BTreeSet<String> = changes.iter().map(shard).collect();
        let leases = &self.parts.leases;
        let calls = changes.into_iter().map(|change| async move {
            match change {
                Change::Add(row) => Ok(leases.add(&row).await?.then_some(row.shard)),
                Change::Mark { shard, closed, gone } => {
                    leases.mark(&shard, closed, gone).await.map(|()| None)
                }
                Change::Keep { shard, expires } => leases.keep(&shard, expires).await.map(|()| None),
            }
        });
        let results: Vec<Result<_, Failure>> = some_at_once(calls).collect().await;
        let results: Result<Vec<_>, Failure> = results.into_iter().collect();
        let added: Vec<String> = results?.into_iter().flatten().collect();
        let name = &self.parts.route.name;
        self.parts.heart.changed(name, added.iter().map(String::as_str));
        let rows = self.parts.leases.get(&touched).await?;
        self.known.merge(&touched, rows);
        let dead = &self.dead;
        self.known.watch(self.parts.heart.looked(), |owner| dead.contains(owner));
        Ok(())
    }

    fn stream_failed(&mut self, failure: &Failure) -> Duration {
        let action = self.say(failure);
        self.listing_pauses.next(action).unwrap_or(Policy::FOREVER.slow)
    }
}
