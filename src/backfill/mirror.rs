//! A backfill to peers without stamps: nothing there says whether what is found is newer than what was read.
//!
//! So an item is only created. What must be written over or deleted is made what the source holds now, and the source is
//! looked at again after each such write, until it holds what was written last. Whatever such a write took the place of
//! was in the source before that look, so what the source holds is as new or newer; and what comes to the source later
//! comes to the peer by the stream, later. Before a lane deletes an item it raises the tombstone of its key; after a creation
//! that is read. Whichever of the two comes second sees the other.

use crate::content::Content;
use crate::failure::{Class, Failure};
use crate::item::{Digest, Key};
use crate::peer::pristine::Created;
use crate::peer::{Peer, Seeded, StepError};
use crate::shape::{Shape, Unshaped};
use std::sync::Arc;

/// The source may change under a write; after so many times it is tried again later.
const ROUNDS: usize = 8;

/// The source, to be looked at item by item.
#[derive(Debug, Clone)]
pub(super) struct Mirror {
    pub(super) source: Arc<Peer>,
    pub(super) shape: Option<Arc<Shape>>,
}

impl Mirror {
    /// Sees that the peer has an item of the source, which was read as `content`, or what has become of it since.
    ///
    /// # Errors
    /// Any failure; the step can be repeated.
    pub(super) async fn seed(&self, peer: &Peer, key: &Key, content: &Content) -> Result<Seeded, StepError> {
        let read = content.digest();
        match peer.create(content).await? {
            Created::Found(there) => {
                let there = there.digest();
                if there == read {
                    // Perhaps of a try whose answer was lost, before a delete.
                    return self.unless_deleted(peer, key, read, Seeded::Equal).await;
                }
                if self.at_source(key).await?.is_some_and(|now| now.digest() == there) {
                    return Ok(Seeded::Equal);
                }
                let stays = self.bring(peer, key, None).await?;
                Ok(if stays { Seeded::Overwritten } else { Seeded::Deleted })
            }
            Created::New => self.unless_deleted(peer, key, read, Seeded::Created).await,
        }
    }

    /// Sees to a key whose item somebody may have created, or written over, before he died.
    ///
    /// # Errors
    /// Any failure; the step can be repeated.
    pub(super) async fn settle(&self, peer: &Peer, key: &Key) -> Result<(), StepError> {
        if peer.tombstone(key).await?.is_some() {
            self.bring(peer, key, None).await?;
        }
        Ok(())
    }

    async fn unless_deleted(
        &self,
        peer: &Peer,
        key: &Key,
        wrote: Digest,
        done: Seeded,
    ) -> Result<Seeded, StepError> {
        if peer.tombstone(key).await?.is_none() || self.bring(peer, key, Some(wrote)).await? {
            return Ok(done);
        }
        Ok(Seeded::Deleted)
    }

    /// Makes the peer's item what the source's is; whether there is one in the end. `wrote` is what was put last, when
    /// that is known.
    async fn bring(&self, peer: &Peer, key: &Key, wrote: Option<Digest>) -> Result<bool, StepError> {
        let mut last = wrote.map(Some);
        for _ in 0..ROUNDS {
            let now = self.at_source(key).await?;
            let digest = now.as_ref().map(Content::digest);
            if last == Some(digest) {
                return Ok(digest.is_some());
            }
            match &now {
                Some(item) => peer.overwrite(item).await?,
                None => peer.erase(key).await?,
            }
            last = Some(digest);
        }
        let why = "the source's item changed under this write again and again";
        Err(StepError::Home(Failure::new(Class::Transient, "Contended", why)))
    }

    /// What the source holds now for a key of the peer, as the peer gets it.
    async fn at_source(&self, key: &Key) -> Result<Option<Content>, StepError> {
        let home = |error: StepError| StepError::Home(error.failure().clone());
        let Some(shape) = &self.shape else {
            return Ok(self.source.look(key).await.map_err(home)?.map(|image| image.content));
        };
        let Some(from) = shape.back(key) else { return Ok(None) };
        let Some(image) = self.source.look(&from).await.map_err(home)? else { return Ok(None) };
        let unshaped = |why: Unshaped| StepError::Peer(why.into());
        let shaped = super::copy::shaped(shape, &image.content).map_err(unshaped)?;
        Ok(shaped.filter(|(to, _)| to.digest() == key.digest()).map(|(_, item)| item))
    }
}
