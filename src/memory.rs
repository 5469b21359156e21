//! A bound on the bytes of changes that are held for one peer.
//!
//! Room for a whole page is reserved before the page is read, so that what is in memory never passes the bound,
//! whatever the peers do. Each peer has a bound of its own: one that is down fills its own and nobody else's.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a page may take, decoded: GetRecords gives 1 MB at most as DynamoDB counts, and items of many small values are several
/// times that as text. Where they take more, fewer records are asked for ([`reader`](crate::stream::reader)).
pub const PAGE: usize = 4 << 20;

/// Permits are counted in this many bytes.
const UNIT: usize = 1 << 10;

/// A bound. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Memory {
    permits: Arc<Semaphore>,
    total: u32,
}

/// Room that is taken until this is dropped.
#[derive(Debug)]
pub struct Reserved(OwnedSemaphorePermit);

impl Memory {
    /// A bound of `bytes`, at least one page.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let total = units(bytes.max(PAGE)).min(1 << 28);
        Self { permits: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits for room; waiters are served in turn. What is larger than the whole bound takes all of it.
    pub async fn reserve(&self, bytes: usize) -> Reserved {
        let permits = Arc::clone(&self.permits).acquire_many_owned(units(bytes).min(self.total)).await;
        #[expect(clippy::expect_used, reason = "the semaphore is private and is never closed")]
        Reserved(permits.expect("an open semaphore"))
    }

    /// Room, when there is some now.
    #[must_use]
    pub fn try_reserve(&self, bytes: usize) -> Option<Reserved> {
        Arc::clone(&self.permits).try_acquire_many_owned(units(bytes).min(self.total)).ok().map(Reserved)
    }

    /// The bound, in bytes.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total as usize * UNIT
    }

    /// Bytes that are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        (self.total as usize).saturating_sub(self.permits.available_permits()) * UNIT
    }
}

impl Reserved {
    /// How much it is, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.num_permits() * UNIT
    }

    /// Gives back what is not needed; keeps at most what was reserved.
    pub fn shrink(&mut self, bytes: usize) {
        let excess = self.0.num_permits().saturating_sub(units(bytes) as usize);
        drop(self.0.split(excess));
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_reserved_is_not_free_until_it_is_dropped() {
        let memory = Memory::new(2 * PAGE);
        let mut first = memory.reserve(PAGE).await;
        assert_eq!(memory.taken(), PAGE);
        first.shrink(PAGE / 2);
        assert_eq!(memory.taken(), PAGE / 2);
        assert!(memory.try_reserve(2 * PAGE).is_none());
        drop(first);
        let whole = memory.try_reserve(100 * PAGE).unwrap();
        assert_eq!(memory.taken(), 2 * PAGE);
        drop(whole);
        assert_eq!(memory.taken(), 0);
    }
}
