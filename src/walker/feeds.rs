//! The lanes of one shard as its readers see them.
//!
//! One read serves all lanes that keep up: those are at the front. A lane that the others would have to wait for is
//! let go: it keeps what it has, is fed by a second reader from where it stands, and is taken back when it has
//! reached the front. The lane that has room first leads, and is never let go, so that the front always moves as
//! fast as the fastest lane.

use crate::change::SequenceNumber;
use crate::lane::{Handed, Page, Position};
use crate::lease::plan::Start;
use crate::memory::{self, Memory, Reserved};
use crate::telemetry::metrics::Counted;
use futures::future::{BoxFuture, select_all};
use prometheus::{IntCounter, IntGauge};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

/// For so long in all the lanes at the front wait for one that is slower, until it is let go.
const PATIENCE: Duration = Duration::from_secs(1);

/// Lanes that are apart by less than this, by their last records' creation, start with one reader: reading a minute
/// twice is cheaper than reading all that follows by two.
const NEAR: Duration = Duration::from_secs(60);

/// A lane's number within its walker.
pub(super) type Id = usize;

/// Why a lane gets no more pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// The shard was read to its end.
    Ended,
    /// Reading waits for an operator, for this reason.
    Stopped(&'static str),
    /// A stop was asked for.
    Drained,
}

/// Which lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Those that the one read serves.
    Front,
    /// Those that catch up.
    Behind,
}

/// Where a lane stands in the shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The last record that was handed to it.
    pub(super) sequence: Option<SequenceNumber>,
    /// When that record was created.
    pub(super) created: Option<SystemTime>,
    /// Nothing was handed to it yet, and records before the oldest that is left may have been trimmed unread.
    pub(super) suspect: bool,
}

/// A lane with room for a page.
pub(super) struct Room {
    pub(super) id: Id,
    slot: mpsc::OwnedPermit<Box<Handed>>,
    memory: Reserved,
}

/// The lanes that get pages.
pub(super) struct Feeds {
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    /// Boxed, because there are few, and a map has room for eleven from the first on.
    feeds: BTreeMap<Id, Box<Feed>>,
    closed: BTreeMap<Id, Closed>,
    /// The last record that was read at the front.
    front: Option<SequenceNumber>,
    /// Whether the front is still read.
    open: bool,
    /// Whether the next page of the front comes after a gap: lanes that have not missed it there must find their own.
    gap: bool,
}

struct Feed {
    pages: mpsc::Sender<Box<Handed>>,
    memory: Memory,
    cursor: Cursor,
    side: Side,
    /// How long others have waited for it since it last had room at once.
    waited: Duration,
    /// Shows when there was nothing more to read, and it had everything.
    quiet: watch::Sender<Option<SystemTime>>,
    /// Shows that the shard was read to its end.
    ended: watch::Sender<bool>,
    about: About,
    /// Counts it while it is behind.
    behind: Option<Counted>,
}

/// Whose a lane is, and what is counted of it.
#[derive(Debug, Clone)]
pub(super) struct About {
    /// The name of its peer, or of its feed.
    pub(super) name: String,
    /// Lanes that are behind.
    pub(super) behind: IntGauge,
    /// How often one was let go.
    pub(super) let_go: IntCounter,
}

impl Feed {
    fn go(&mut self, side: Side) {
        (self.side, self.waited) = (side, Duration::ZERO);
        self.behind = (side == Side::Behind).then(|| Counted::new(self.about.behind.clone()));
    }
}

impl Feeds {
    /// No lanes yet. The front is read from where the slowest stands of those `starts` that are near the most advanced.
    pub(super) fn new<'a>(starts: impl Iterator<Item = &'a Position> + Clone) -> Self {
        let newest = starts.clone().filter_map(|start| start.created).max();
        let near = |start: &&Position| match (newest, start.created) {
            (Some(newest), Some(created)) => newest.duration_since(created).unwrap_or_default() < NEAR,
            (newest, _) => newest.is_none(),
        };
        let front = starts.filter(near).min_by(|a, b| a.sequence.cmp(&b.sequence));
        let front = front.and_then(|start| start.sequence.clone());
        let inner = Inner { feeds: BTreeMap::new(), closed: BTreeMap::new(), front, open: true, gap: false };
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }

    /// Adds a lane that stands at `start`; `late` when the front is read already.
    pub(super) fn add(
        &self,
        id: Id,
        pages: mpsc::Sender<Box<Handed>>,
        memory: Memory,
        start: &Start,
        late: bool,
        about: About,
    ) {
        let Start { position, suspect } = start;
        let cursor =
            Cursor { suspect: *suspect, sequence: position.sequence.clone(), created: position.created };
        let mut inner = self.lock();
        // What one that comes late may have missed is found out by the second reader.
        let front = inner.reached(&cursor) && !(late && cursor.suspect);
        let side = if front { Side::Front } else { Side::Behind };
        let (quiet, ended) = (watch::Sender::new(None), watch::Sender::new(false));
        let mut feed =
            Feed { pages, memory, cursor, side, waited: Duration::ZERO, quiet, ended, about, behind: None };
        feed.go(side);
        inner.feeds.insert(id, Box::new(feed));
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Shows when the front had nothing more to read while a lane was there, and what was read before was handed to it.
    pub(super) fn quiet_of(&self, id: Id) -> watch::Receiver<Option<SystemTime>> {
        let inner = self.lock();
        inner.feeds.get(&id).map_or_else(|| watch::channel(None).1, |feed| feed.quiet.subscribe())
    }

    /// Shows, before a lane's pages end, whether that is because the shard was read to its end.
    pub(super) fn ended_of(&self, id: Id) -> watch::Receiver<bool> {
        let inner = self.lock();
        inner.feeds.get(&id).map_or_else(|| watch::channel(false).1, |feed| feed.ended.subscribe())
    }

    /// The front has nothing more to read, as of a time.
    pub(super) fn quiet(&self, at: SystemTime) {
        for feed in self.lock().feeds.values().filter(|feed| feed.side == Side::Front) {
            feed.quiet.send_replace(Some(at));
        }
    }

    /// Waits for a lane on `side` that has room for a page; `None` when the front is not read any more. Lanes may come
    /// to be behind at any time.
    pub(super) async fn room(&self, side: Side) -> Option<Room> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let waits: Vec<BoxFuture<'_, Option<Room>>> = {
                let inner = self.lock();
                if side == Side::Front && !inner.open {
                    return None;
                }
                let feeds = inner.feeds.iter().filter(|(_, feed)| feed.side == side);
                feeds.map(|(id, feed)| room(*id, feed, memory::PAGE)).collect()
            };
            if waits.is_empty() {
                changed.await;
                continue;
            }
            tokio::select! {
                biased;
                (found, ..) = select_all(waits) => if found.is_some() {
                    return found;
                } else {
                    // A lane has broken down; its walker ends soon.
                    changed.await;
                },
                () = &mut changed => {}
            }
        }
    }

    /// Where a lane stands; `None` when it is not fed any more.
    pub(super) fn cursor(&self, id: Id) -> Option<Cursor> {
        self.lock().feeds.get(&id).map(|feed| feed.cursor.clone())
    }

    /// A reader, of a lane that is behind or of the front, has found a gap: the names, in order, of the lanes that it serves
    /// and that may lack records before `first`, the first one that is left; `None` when none is. No other lane comes to
    /// the front until the page after the gap is handed out.
    pub(super) fn lacking(&self, lane: Option<Id>, first: Option<&SequenceNumber>) -> Vec<String> {
        let mut inner = self.lock();
        inner.gap |= lane.is_none();
        let served = |id: Id, feed: &Feed| lane.map_or(feed.side == Side::Front, |lane| lane == id);
        let before = |feed: &Feed| first.is_none() || feed.cursor.sequence.as_ref() < first;
        let lacking = inner.feeds.iter().filter(|(id, feed)| served(**id, feed) && before(feed));
        let mut names: Vec<_> = lacking.map(|(_, feed)| feed.about.name.clone()).collect();
        names.sort();
        names
    }

    /// Where the first of the lanes at the front stands.
    pub(super) fn front(&self) -> Option<Cursor> {
        let inner = self.lock();
        let feeds = inner.feeds.values().filter(|feed| feed.side == Side::Front);
        feeds.min_by(|a, b| a.cursor.sequence.cmp(&b.cursor.sequence)).map(|feed| feed.cursor.clone())
    }

    /// Gives a page that was read at the front to all lanes there, `lead` first. Lanes without room are waited for
    /// within [`PATIENCE`], then let go.
    pub(super) async fn hand_out(&self, page: &Arc<Page>, lead: Room) {
        let Some(last) = page.changes.last() else { return };
        let others: Vec<Id> = {
            let mut inner = self.lock();
            inner.front = Some(last.sequence.clone());
            inner.gap = false;
            let front = inner.feeds.iter().filter(|(id, feed)| feed.side == Side::Front && **id != lead.id);
            front.map(|(id, _)| *id).collect()
        };
        self.give(lead, page);
        for id in others {
            self.give_in_time(id, page).await;
        }
    }

    async fn give_in_time(&self, id: Id, page: &Arc<Page>) {
        let (wait, left) = {
            let mut inner = self.lock();
            let Some(feed) = inner.feeds.get_mut(&id) else { return };
            if let Some(room) = try_room(id, feed, page) {
                feed.waited = Duration::ZERO;
                drop(inner);
                self.give(room, page);
                return;
            }
            (room(id, feed, cost(page)), PATIENCE.saturating_sub(feed.waited))
        };
        let begun = Instant::now();
        let found = tokio::time::timeout(left, wait).await;
        let mut inner = self.lock();
        let Some(feed) = inner.feeds.get_mut(&id) else { return };
        feed.waited += begun.elapsed();
        if let Ok(Some(room)) = found {
            drop(inner);
            self.give(room, page);
            return;
        }
        feed.go(Side::Behind);
        feed.about.let_go.inc();
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Gives a page that was read after `from` to the lane that is behind, and to others there that it serves too;
    /// these are returned.
    pub(super) fn hand_behind(&self, page: &Arc<Page>, from: Option<&SequenceNumber>, to: Room) -> Vec<Id> {
        let Some(last) = page.changes.last() else { return Vec::new() };
        let within = |feed: &Feed| {
            let at = feed.cursor.sequence.as_ref();
            feed.side == Side::Behind && at >= from && at < Some(&last.sequence)
        };
        let rooms: Vec<Room> = {
            let inner = self.lock();
            let served = inner.feeds.iter().filter(|(id, feed)| **id != to.id && within(feed));
            served.filter_map(|(id, feed)| try_room(*id, feed, page)).collect()
        };
        self.give(to, page);
        let ids = rooms.iter().map(|room| room.id).collect();
        rooms.into_iter().for_each(|room| self.give(room, page));
        ids
    }

    /// Gives a page to one lane alone.
    pub(super) fn give(&self, room: Room, page: &Arc<Page>) {
        let Room { id, slot, mut memory } = room;
        memory.shrink(cost(page));
        if let (Some(feed), Some(last)) = (self.lock().feeds.get_mut(&id), page.changes.last()) {
            let cursor = (Some(last.sequence.clone()), Some(last.created));
            (feed.cursor.sequence, feed.cursor.created) = cursor;
            feed.cursor.suspect = false;
        }
        slot.send(Box::new(Handed { page: Arc::clone(page), memory }));
    }

    /// Takes a lane back to the front, when it has reached it.
    pub(super) fn rejoin(&self, id: Id) -> bool {
        let mut inner = self.lock();
        let Some(feed) = inner.feeds.get(&id) else { return false };
        if !inner.reached(&feed.cursor) {
            return false;
        }
        if let Some(feed) = inner.feeds.get_mut(&id) {
            feed.go(Side::Front);
        }
        drop(inner);
        self.changed.notify_waiters();
        true
    }

    /// The lane gets no more pages.
    pub(super) fn close(&self, id: Id, why: Closed) {
        let mut inner = self.lock();
        if let Some(feed) = inner.feeds.remove(&id) {
            feed.ended.send_replace(why == Closed::Ended);
            inner.closed.insert(id, why);
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// The front is not read any more: the lanes there get no more pages.
    pub(super) fn close_front(&self, why: Closed) {
        self.close_all(why, |feed| feed.side == Side::Front);
    }

    /// No lane gets any more pages.
    pub(super) fn drain(&self) {
        self.close_all(Closed::Drained, |_| true);
    }

    fn close_all(&self, why: Closed, which: impl Fn(&Feed) -> bool) {
        let mut inner = self.lock();
        let Inner { feeds, closed, open, .. } = &mut *inner;
        *open = false;
        feeds.retain(|id, feed| {
            let close = which(feed);
            if close {
                feed.ended.send_replace(why == Closed::Ended);
                closed.insert(*id, why);
            }
            !close
        });
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Why a lane gets no more pages; `None` while it does.
    pub(super) fn closed(&self, id: Id) -> Option<Closed> {
        self.lock().closed.get(&id).copied()
    }

    /// Whether a lane is behind.
    pub(super) fn is_behind(&self, id: Id) -> bool {
        self.lock().feeds.get(&id).is_some_and(|feed| feed.side == Side::Behind)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn reached(&self, cursor: &Cursor) -> bool {
        self.open && !self.gap && cursor.sequence >= self.front
    }
}

/// Bytes that a page takes, about, with what a lane keeps of each change.
fn cost(page: &Page) -> usize {
    page.changes.iter().map(|change| change.size + 512).sum()
}

fn room(id: Id, feed: &Feed, bytes: usize) -> BoxFuture<'static, Option<Room>> {
    let (pages, memory) = (feed.pages.clone(), feed.memory.clone());
    Box::pin(async move {
        let slot = pages.reserve_owned().await.ok()?;
        let memory = memory.reserve(bytes).await;
        Some(Room { id, slot, memory })
    })
}

fn try_room(id: Id, feed: &Feed, page: &Page) -> Option<Room> {
    let slot = feed.pages.clone().try_reserve_owned().ok()?;
    let memory = feed.memory.try_reserve(cost(page))?;
    Some(Room { id, slot, memory })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Change;
    use crate::version::Hlc;
    use serde_json::json;
    use std::time::UNIX_EPOCH;

    fn position(sequence: u64, seconds: u64) -> Position {
        let created = Some(UNIX_EPOCH + Duration::from_secs(seconds));
        Position { sequence: SequenceNumber::parse(&sequence.to_string()), hlc: Hlc::ZERO, created }
    }

    fn page(sequence: u64) -> Arc<Page> {
        let body = json!({
            "SequenceNumber": sequence.to_string(), "ApproximateCreationDateTime": 1, "Keys": { "id": { "S": "k" } },
        });
        let record = json!({ "eventName": "REMOVE", "dynamodb": body }).to_string();
        let record = serde_json::from_str(&record).unwrap();
        Arc::new(Page::new(vec![Change::decode(record, "stamp", true).unwrap()]))
    }

    /// Feeds with a lane for each start; each holds one page that it has not taken.
    fn feeds(starts: &[Position]) -> (Feeds, Vec<mpsc::Receiver<Box<Handed>>>) {
        let feeds = Feeds::new(starts.iter());
        let about = |id: usize| About {
            name: format!("p{id}"),
            behind: IntGauge::new("behind", "behind").unwrap(),
            let_go: IntCounter::new("let_go", "let_go").unwrap(),
        };
        let pages = starts.iter().enumerate().map(|(id, start)| {
            let (sender, pages) = mpsc::channel(1);
            let start = Start { position: start.clone(), suspect: false };
            feeds.add(id, sender, Memory::new(4 * memory::PAGE), &start, false, about(id));
            pages
        });
        let pages = pages.collect();
        (feeds, pages)
    }

    fn behind(feeds: &Feeds) -> Vec<bool> {
        (0..3).map(|id| feeds.is_behind(id)).collect()
    }

    #[tokio::test]
    async fn lanes_that_are_near_start_with_one_reader_at_the_slowest() {
        let (feeds, _pages) = feeds(&[position(50, 960), position(40, 950), position(30, 100)]);
        assert_eq!(behind(&feeds), [false, false, true]);
        assert_eq!(feeds.front().unwrap().sequence, position(40, 0).sequence);
        let first = position(45, 0).sequence;
        assert_eq!(feeds.lacking(None, first.as_ref()), ["p1"]);
        assert_eq!(feeds.lacking(None, None), ["p0", "p1"]);
        assert_eq!(feeds.lacking(Some(2), first.as_ref()), ["p2"]);
        let none = Position::default();
        let (feeds, _pages) = self::feeds(&[none.clone(), none.clone(), none]);
        assert_eq!(behind(&feeds), [false; 3]);
        assert_eq!(feeds.front().unwrap().sequence, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_without_room_is_let_go_and_comes_back_at_the_front() {
        let start = position(10, 100);
        let (feeds, mut pages) = feeds(&[start.clone(), start.clone(), start]);
        let begun = Instant::now();
        for sequence in [11, 12, 13] {
            let lead = feeds.room(Side::Front).await.unwrap();
            assert_ne!(lead.id, 2, "whoever has room leads");
            feeds.hand_out(&page(sequence), lead).await;
            for taken in pages.iter_mut().take(2) {
                assert_eq!(
                    taken.recv().await.unwrap().page.changes[0].sequence.as_str(),
                    sequence.to_string()
                );
            }
        }
        assert_eq!(behind(&feeds), [false, false, true]);
        assert_eq!(begun.elapsed(), PATIENCE, "the others waited for it once");
        assert_eq!(feeds.cursor(2).unwrap().sequence, position(11, 0).sequence);
        assert!(!feeds.rejoin(2));
        pages[2].recv().await.unwrap();
        let room = feeds.room(Side::Behind).await.unwrap();
        assert_eq!(feeds.hand_behind(&page(13), None, room), Vec::<Id>::new());
        assert!(feeds.rejoin(2));
        assert_eq!(behind(&feeds), [false; 3]);
    }

    #[tokio::test]
    async fn no_lane_comes_to_the_front_between_a_gap_and_the_page_after_it() {
        let (feeds, mut pages) = feeds(&[position(10, 1000), position(10, 1000), position(5, 1)]);
        let room = feeds.room(Side::Behind).await.unwrap();
        feeds.give(room, &page(10));
        assert_eq!(feeds.lacking(None, None), ["p0", "p1"]);
        assert!(!feeds.rejoin(2), "the gap does not name it");
        let room = feeds.room(Side::Front).await.unwrap();
        feeds.hand_out(&page(20), room).await;
        assert!(!feeds.rejoin(2));
        pages[2].recv().await.unwrap();
        assert_eq!(feeds.lacking(Some(2), None), ["p2"]);
        let room = feeds.room(Side::Behind).await.unwrap();
        feeds.give(room, &page(20));
        assert!(feeds.rejoin(2));
    }

    #[tokio::test]
    async fn closed_lanes_get_no_more_and_say_why() {
        let (feeds, mut pages) = feeds(&[position(5, 1000), position(4, 1000), position(1, 1)]);
        feeds.close_front(Closed::Ended);
        assert!(feeds.room(Side::Front).await.is_none());
        assert_eq!((feeds.closed(0), feeds.closed(2)), (Some(Closed::Ended), None));
        assert!(pages[0].recv().await.is_none());
        assert!(!feeds.rejoin(2), "nobody reads at the front any more");
        feeds.drain();
        assert_eq!(feeds.closed(2), Some(Closed::Drained));
        assert!(pages[2].recv().await.is_none());
    }
}
