//! One segment: the scans of all members side by side.

use super::pairing::{Paired, Pairing};
use super::record::Tally;
use super::{Compared, Verify, VerifyError};
use crate::backfill::scan::Page;
use crate::item::{Digest, Key};
use crate::retry;
use crate::state::Row;
use crate::task::Tasks;
use futures::future::try_join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Items of a page at most.
const PAGE: u16 = 1000;
/// Keys of a segment that are being looked up; more wait until some of them are settled.
const SUSPECTS: usize = 2000;
/// How often it is said how far it is.
const TELL: Duration = Duration::from_secs(10);

impl Verify {
    /// Compares what is left, each segment in a task; whether it came to the end, or to as many differences as were asked
    /// for.
    pub(super) async fn segments(self: &Arc<Self>) -> Result<bool, VerifyError> {
        let mut left = self.left.iter();
        let mut under_way = Tasks::new();
        let mut tell = tokio::time::interval_at(Instant::now() + TELL, TELL);
        loop {
            while under_way.len() < self.request.parallel.max(1)
                && let Some(segment) = left.next()
            {
                let (verify, segment) = (Arc::clone(self), *segment);
                under_way.spawn(async move { verify.segment(segment).await });
            }
            tokio::select! {
                biased;
                done = under_way.join_next() => match done {
                    Some(done) => done??,
                    None => return Ok(true),
                },
                _ = tell.tick() => self.tell(),
            }
            if self.request.stop_after.is_some_and(|most| self.found.load(Ordering::Relaxed) >= most) {
                under_way.abort_all().await;
                return Ok(false);
            }
        }
    }

    async fn segment(&self, segment: u32) -> Result<(), VerifyError> {
        let mut tally = Tally::default();
        let mut pairing = Pairing::new(self.sides.len(), self.waiting);
        // Where each scan goes on; those that have ended are left out.
        let mut scans: Vec<(usize, Option<Row>)> = (0..self.sides.len()).map(|side| (side, None)).collect();
        let mut suspects = FuturesUnordered::new();
        while !scans.is_empty() {
            let unfinished: Vec<usize> = scans.iter().map(|(side, _)| *side).collect();
            let (due, ahead): (Vec<_>, Vec<_>) =
                scans.into_iter().partition(|(side, _)| pairing.is_due(*side, &unfinished));
            let read = try_join_all(due.into_iter().map(|(side, after)| self.page(segment, side, after)));
            let pages = meanwhile(read, &mut suspects, &mut tally).await?;
            scans = ahead;
            for (side, page) in pages {
                tally.read_units += page.read_units;
                for item in page.items {
                    let (key, content) = match item {
                        Ok(Some(compared)) => compared,
                        Ok(None) => continue,
                        Err(Compared::NoKey(name)) => return Err(VerifyError::NoKey(name)),
                        Err(Compared::Unshaped(key, why)) => {
                            let told = self.unshaped(segment, &key, &why)?;
                            self.found.fetch_add(told.remaining(), Ordering::Relaxed);
                            tally.add(&told);
                            continue;
                        }
                    };
                    match pairing.add(side, key, content) {
                        Paired::Waits => {}
                        Paired::Equal => {
                            tally.compared += 1;
                            tally.equal += 1;
                        }
                        Paired::Suspect(key) => suspects.push(self.suspect(segment, key)),
                    }
                }
                if page.next.is_some() {
                    scans.push((side, page.next));
                }
            }
            while suspects.len() > SUSPECTS {
                tally.add(&suspects.next().await.unwrap_or_else(|| Ok(Tally::default()))?);
            }
        }
        for key in pairing.rest() {
            suspects.push(self.suspect(segment, key));
            while suspects.len() > SUSPECTS {
                tally.add(&suspects.next().await.unwrap_or_else(|| Ok(Tally::default()))?);
            }
        }
        while let Some(settled) = suspects.next().await {
            tally.add(&settled?);
        }
        self.record.lock().unwrap_or_else(PoisonError::into_inner).segment(segment, &tally)
    }

    async fn suspect(&self, segment: u32, key: Key) -> Result<Tally, VerifyError> {
        let tally = Box::pin(self.settle(segment, key)).await?;
        self.found.fetch_add(tally.remaining(), Ordering::Relaxed);
        Ok(tally)
    }

    async fn page(
        &self,
        segment: u32,
        side: usize,
        after: Option<Row>,
    ) -> Result<(usize, Page<Result<Option<(Key, Digest)>, Compared>>), VerifyError> {
        if self.drain.is_cancelled() {
            return Err(VerifyError::Stopped);
        }
        let scan = &self.sides[side].scan;
        let read = || scan.page(segment, after.clone(), PAGE, |item| self.compared(side, item));
        let notice = |failure: &crate::failure::Failure, _| {
            tracing::warn!(member = self.sides[side].name, why = %failure, "a page is read again");
        };
        let page = retry::run(Self::patience(), &self.jitter, &self.drain, notice, read).await?;
        Ok((side, page))
    }

    fn tell(&self) {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, tally) = record.so_far();
        let (compared, remaining) = (tally.compared, tally.remaining());
        tracing::info!(segments = done, of = done + self.left.len(), compared, remaining, "comparing");
    }
}

/// Reads while suspects are looked up.
async fn meanwhile<T, F>(
    read: impl Future<Output = Result<T, VerifyError>>,
    suspects: &mut FuturesUnordered<F>,
    tally: &mut Tally,
) -> Result<T, VerifyError>
where
    F: Future<Output = Result<Tally, VerifyError>>,
{
    let mut read = std::pin::pin!(read);
    loop {
        tokio::select! {
            biased;
            read = &mut read => return read,
            Some(settled) = suspects.next(), if !suspects.is_empty() => tally.add(&settled?),
        }
    }
}
