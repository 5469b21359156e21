//! Reading one shard for its lanes: one reader at the front, and a second one for lanes that are behind.
//!
//! Two readers a shard at most, whatever the number of peers, as AWS allows. Neither asks for a page before a lane has
//! room for it.

use super::feeds::{Closed, Cursor, Feeds, Id, Room, Side};
use super::pace::Pace;
use crate::change::{Change, Image, SequenceNumber};
use crate::config::OnGap;
use crate::failure::{Action, Class, Failure};
use crate::gaps::Gap;
use crate::lane::Page;
use crate::lease::plan::Take;
use crate::lease::table::Held;
use crate::retry::{self, GaveUp, Pauses, Policy};
use crate::route::Route;
use crate::stream::reader::{Place, Read, ReadError, Reader};
use crate::telemetry::board::ShardStatus;
use crate::version::{Hlc, Stamp};
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Reads one shard.
pub(super) struct Reading<'a> {
    pub(super) route: &'a Route,
    pub(super) shard: &'a Arc<str>,
    pub(super) held: &'a Held,
    pub(super) take: &'a Take,
    pub(super) feeds: &'a Feeds,
    pub(super) pace: Pace,
    pub(super) status: &'a ShardStatus,
    /// Ends when reading must stop.
    pub(super) drain: &'a CancellationToken,
}

/// One of the two readers.
struct Hand {
    /// The lane that it reads for; none for those at the front.
    lane: Option<Id>,
    reader: Reader,
    pauses: Pauses,
    /// When the last record that was read was created.
    last: Option<SystemTime>,
    /// What the last record was, or the last checkpoint.
    after: Option<SequenceNumber>,
    /// A gap is to be kept before anything is read.
    suspect: bool,
    /// It was so at the beginning.
    suspected: bool,
    /// Records are missing before the next page.
    jumped: bool,
}

/// A run of empty pages.
#[derive(Default)]
struct Empty {
    pages: u32,
    since: Option<Instant>,
}

/// A page may be empty in the middle of a shard. So many in a row, over so long a time, are taken for its end: it is
/// what a watermark rests on.
const QUIET_PAGES: u32 = 10;
const QUIET: Duration = Duration::from_secs(60);

impl Empty {
    /// Takes another page, whose read began at a time; whether nothing more is to be read, said once each [`QUIET`].
    fn is_quiet(&mut self, nothing: bool, begun: Instant) -> bool {
        if !nothing {
            *self = Self::default();
            return false;
        }
        self.pages += 1;
        let since = *self.since.get_or_insert(begun);
        let quiet = self.pages >= QUIET_PAGES && begun.duration_since(since) >= QUIET;
        if quiet {
            self.since = Some(begun);
        }
        quiet
    }
}

/// How a page went.
enum Paged {
    /// It is handed out; whether it was empty, and to whom else it went.
    Read { empty: bool, others: Vec<Id> },
    /// It was not read; after this pause it may be.
    Later(Duration),
    /// No more pages.
    Closed(Closed),
}

impl Reading<'_> {
    /// Reads at the front until the shard ends or reading stops. Then the lanes there are closed.
    pub(super) async fn front(&self) {
        let cursor = self.feeds.front().unwrap_or(Cursor { sequence: None, created: None, suspect: false });
        let mut hand = self.hand(None, cursor);
        let mut wait = self.pace.interval();
        let mut empty = Empty::default();
        while let Some(room) = self.feeds.room(Side::Front).await {
            let (begun, at) = (Instant::now(), self.route.clock.now());
            let span = tracing::debug_span!("page", reader = "front");
            match self.page(&mut hand, room, Side::Front).instrument(span).await {
                Paged::Read { empty: nothing, .. } => {
                    if empty.is_quiet(nothing, begun) {
                        self.feeds.quiet(at);
                    }
                    let (min, idle) = (self.pace.interval(), self.route.read.idle_interval);
                    wait = if nothing { (wait * 2).min(idle).max(min) } else { min };
                    let pause = self.route.jitter.around(wait).max(min).saturating_sub(begun.elapsed());
                    tokio::time::sleep(pause).await;
                }
                Paged::Later(pause) => tokio::time::sleep(pause).await,
                Paged::Closed(why) => self.feeds.close_front(why),
            }
        }
        self.status.reading_ended();
    }

    /// Reads for the lanes that are behind, one page of one of them at a time.
    pub(super) async fn behind(&self) {
        let mut hands: BTreeMap<Id, Hand> = BTreeMap::new();
        while let Some(room) = self.feeds.room(Side::Behind).await {
            let id = room.id;
            let Some(cursor) = self.feeds.cursor(id) else { continue };
            let hand = hands.entry(id).or_insert_with(|| self.hand(Some(id), cursor));
            let begun = Instant::now();
            let span = tracing::debug_span!("page", reader = "behind");
            let pause = match self.page(hand, room, Side::Behind).instrument(span).await {
                Paged::Read { others, .. } => {
                    for other in others {
                        // It stands elsewhere now.
                        hands.remove(&other);
                        self.feeds.rejoin(other);
                    }
                    if self.feeds.rejoin(id) {
                        hands.remove(&id);
                        tracing::debug!(lane = id, "a lane has caught up");
                    }
                    self.pace.interval().saturating_sub(begun.elapsed())
                }
                Paged::Later(pause) => pause,
                Paged::Closed(why) => {
                    hands.remove(&id);
                    self.feeds.close(id, why);
                    Duration::ZERO
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn hand(&self, lane: Option<Id>, cursor: Cursor) -> Hand {
        let Cursor { sequence, created, suspect } = cursor;
        let after = sequence.clone();
        let place = match (sequence, self.route.rules.not_before) {
            (Some(sequence), _) => Place::After(sequence),
            (None, Some(time)) if self.take.seen.initial => Place::At(time),
            (None, _) => Place::TrimHorizon,
        };
        let reader = Reader::new(
            self.route.streams.clone(),
            Arc::clone(&self.route.stream),
            Arc::clone(self.shard),
            Arc::clone(&self.route.stamp),
            place,
        );
        // What a peer gets as it is carries its digest.
        let digests = !self.route.peers.is_empty() && self.route.rules.shape.is_none();
        let reader = reader.with_digests(digests);
        let pauses = Pauses::new(Policy::FOREVER, self.route.jitter.clone());
        Hand { lane, reader, pauses, last: created, after, suspect, suspected: suspect, jumped: false }
    }

    /// Reads one page and hands it out: to `room`, and to others on the same side. Boxed, because a call is large and
    /// an idle shard waits most of the time.
    fn page<'a>(&'a self, hand: &'a mut Hand, room: Room, side: Side) -> BoxFuture<'a, Paged> {
        Box::pin(self.read_page(hand, room, side))
    }

    async fn read_page(&self, hand: &mut Hand, room: Room, side: Side) -> Paged {
        if std::mem::take(&mut hand.suspect)
            && let Some(closed) = self.gap(None, false, hand).await
        {
            return Paged::Closed(closed);
        }
        let read = match hand.reader.read().await {
            Ok(read) => read,
            Err(error) => {
                drop(room);
                return self.failed(error, hand).await;
            }
        };
        hand.pauses.reset();
        self.status.read();
        let Read { changes, end } = read;
        let empty = changes.is_empty();
        let mut others = Vec::new();
        self.count(&changes);
        if side == Side::Front {
            self.status.page(changes.last().map(|change| change.created));
        }
        if !empty {
            let from = self.feeds.cursor(room.id).and_then(|cursor| cursor.sequence);
            let page = Arc::new(Page::new(changes));
            hand.last = page.changes.last().map(|change| change.created);
            hand.after = page.changes.last().map(|change| change.sequence.clone());
            match (side, std::mem::take(&mut hand.jumped)) {
                (Side::Front, _) => self.feeds.hand_out(&page, room).await,
                // Others that are behind may lack records before it, too: each finds its own gap.
                (Side::Behind, true) => self.feeds.give(room, &page),
                (Side::Behind, false) => others = self.feeds.hand_behind(&page, from.as_ref(), room),
            }
        }
        if end { Paged::Closed(Closed::Ended) } else { Paged::Read { empty, others } }
    }

    fn count(&self, changes: &[Change]) {
        let (metrics, route) = (&self.route.metrics, &*self.route.name);
        let Some(newest) = changes.last() else {
            metrics.pages.with_label_values(&[route, "empty"]).inc();
            return;
        };
        self.held.count(changes.len() as u64);
        metrics.pages.with_label_values(&[route, "full"]).inc();
        metrics.records_read.with_label_values(&[route]).inc_by(changes.len() as u64);
        let age = self.route.clock.now().duration_since(newest.created).unwrap_or_default();
        metrics.clock_skew.with_label_values(&[route]).set(skew(
            changes,
            self.route.clock.since_epoch(),
            self.route.max_drift,
        ));
        metrics.read_lag.with_label_values(&[route]).observe(age.as_secs_f64());
        tracing::trace!(changes = changes.len(), "page");
    }

    async fn failed(&self, error: ReadError, hand: &mut Hand) -> Paged {
        let closed = match error {
            // Nothing was read yet, and nothing was expected: the oldest record is another one by now.
            ReadError::Trimmed { after: None } => {
                hand.reader.seek(Place::TrimHorizon);
                None
            }
            ReadError::Trimmed { after } => self.gap(after, false, hand).await,
            ReadError::Gone => self.gap(hand.after.clone(), true, hand).await,
            ReadError::Undecodable(error) => Some(self.stop("undecodable", &error.to_string())),
            ReadError::Unreadable(error) => Some(self.stop("undecodable", &error.to_string())),
            ReadError::Call(failure) => {
                self.route.metrics.retried(&self.route.name, "stream", failure.class);
                self.status.read_failed(&failure);
                let action = match failure.class {
                    Class::Throttled => return Paged::Later(self.route.jitter.around(self.pace.refused())),
                    Class::IteratorExpired => Action::RetrySoon,
                    class => class.insist(),
                };
                return Paged::Later(hand.pauses.next(action).unwrap_or(Policy::FOREVER.slow));
            }
        };
        closed.map_or(Paged::Later(Duration::ZERO), Paged::Closed)
    }

    /// Records are gone: says which, keeps that, and goes on from the oldest that is left or stops as configured.
    async fn gap(&self, after: Option<SequenceNumber>, gone: bool, hand: &mut Hand) -> Option<Closed> {
        if gone && hand.after.is_none() && self.take.seen.initial && !hand.suspected {
            tracing::warn!(
                "the shard aged out before it was read for the first time; the route starts after it"
            );
            return Some(Closed::Ended);
        }
        hand.reader.seek(Place::TrimHorizon);
        let rest = if gone { None } else { hand.reader.read().await.ok() };
        // What is left is read again in its turn.
        hand.reader.seek(Place::TrimHorizon);
        let first = rest.as_ref().and_then(|read| read.changes.first());
        let to = first.map(|change| change.created);
        let peers = self.feeds.lacking(hand.lane, first.map(|change| &change.sequence));
        let after = after.map_or_else(|| "the last checkpoint".to_owned(), |after| after.to_string());
        let gap = Gap { shard: self.shard.to_string(), after, from: hand.last, to, peers };
        let keep = || self.route.gaps.keep(&self.route.name, &gap);
        let notice = |failure: &Failure, _| {
            self.route.metrics.retried(&self.route.name, "state", failure.class);
        };
        match retry::run(Policy::FOREVER, &self.route.jitter, self.drain, notice, keep).await {
            Ok(true) => {
                self.route.metrics.gaps.with_label_values(&[&self.route.name]).inc();
                tracing::error!(
                    %gap,
                    on_gap = ?self.route.on_gap,
                    "DATA IS MISSING at the peers: once the shard goes on, mend it with shardwalker verify, --repair"
                );
            }
            // The checkpoint stays before it until the shard has a newer record.
            Ok(false) => tracing::warn!(%gap, "a gap that was found before"),
            Err(GaveUp::Failed(_) | GaveUp::Cancelled) => return Some(Closed::Drained),
        }
        if self.route.on_gap == OnGap::Stop {
            return Some(self.stop("gap", &gap.to_string()));
        }
        hand.jumped = true;
        gone.then_some(Closed::Ended)
    }

    fn stop(&self, reason: &'static str, why: &str) -> Closed {
        self.status.stopped(why);
        tracing::error!(reason, why, "the shard stops here and waits for an operator; other shards go on");
        Closed::Stopped(reason)
    }
}

/// How far the clock by which some records were dated is off, at least, in seconds: ahead of `now` when one was created
/// later than that; behind (below 0) when one was created before a version that it carries. Creation times have whole
/// seconds.
fn skew(changes: &[Change], now: Duration, max_drift: Duration) -> f64 {
    let off = changes.iter().map(|change| {
        let created = Hlc::from_time(change.created);
        let ahead = Duration::from_millis(created.millis()).saturating_sub(now);
        // One that is too far ahead to be believed and matches its content was written by us: the record's time is wrong.
        let believed = |image: &Image, stamp: &Stamp| {
            stamp.version.hlc <= created.plus(max_drift) || stamp.digest == image.content.digest()
        };
        let images = [&change.old, &change.new].into_iter().flatten();
        let carried = images.filter_map(|image| Some((image, image.stamp?)));
        let carried =
            carried.filter(|(image, stamp)| believed(image, stamp)).map(|(_, stamp)| stamp.version.hlc);
        let carried = carried.max().unwrap_or_default();
        let behind = Duration::from_millis(carried.millis().saturating_sub(created.millis() + 1000));
        if ahead.is_zero() { -behind.as_secs_f64() } else { ahead.as_secs_f64() }
    });
    off.max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Event;
    use crate::content::Content;
    use crate::item::{Item, Key};
    use crate::version::Version;
    use std::time::UNIX_EPOCH;

    /// A record created at so many seconds, with a stamp of so many milliseconds.
    fn record(created: u64, stamp: Option<u64>) -> Change {
        let content = Content::from(Item::default());
        let version = |millis| Version::new(Hlc::from_millis(millis), 1);
        let stamp = stamp.map(|millis| Stamp::of(&content, version(millis)));
        Change {
            sequence: SequenceNumber::parse("1").unwrap(),
            created: UNIX_EPOCH + Duration::from_secs(created),
            key: Key::new(Item::default()),
            event: Event::Insert,
            old: None,
            new: Some(Image { content, stamp }),
            by_ttl: false,
            size: 0,
        }
    }

    #[test]
    fn a_clock_that_is_wrong_is_seen_from_the_records() {
        let off = |records: &[Change]| skew(records, Duration::from_millis(100_500), Duration::from_secs(60));
        let same = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
        same(off(&[]), 0.0);
        same(off(&[record(100, Some(100_900)), record(90, None)]), 0.0);
        same(off(&[record(90, None), record(130, None), record(110, None)]), 29.5);
        // Of ours, from a member whose clock is far behind; and one that an application made up.
        same(off(&[record(90, Some(200_000))]), -109.0);
        let mut forged = record(90, Some(200_000));
        forged.new.as_mut().unwrap().content = Content::read(r#"{"a":{"BOOL":true}}"#).unwrap();
        same(off(&[forged]), 0.0);
        same(off(&[record(90, Some(97_500)), record(99, Some(90_000))]), -6.5);
    }
}
