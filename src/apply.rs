//! What a route does with a change: pure.
//!
//! On a one-way route every change with a new image is a put and every removal a delete; the source's own
//! stamps play no part but in the clock. Deletes by the time-to-live service are forwarded as configured.

use crate::change::{Change, Event};
use crate::item::Item;

/// What to do at a peer with one change.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Put this content, unless something newer is there.
    Put {
        /// The item without a stamp.
        content: Item,
        /// Whether the change created the item at its source, so that it is likely absent at the peer too.
        creates: bool,
    },
    /// Delete the item, unless something newer is there.
    Delete,
    /// Nothing, by a rule.
    Skip(Skip),
}

/// The rule by which a change is not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// The time-to-live service deleted it, and the route does not forward that.
    TtlDelete,
}

/// The steps of a one-way route for one change. `ttl_deletes` is the route's setting.
#[must_use]
pub fn plan(change: &Change, ttl_deletes: bool) -> Step {
    match (change.event, &change.new) {
        (Event::Insert | Event::Modify, Some(image)) => {
            Step::Put { content: image.content.clone(), creates: change.event == Event::Insert }
        }
        (Event::Remove, _) if change.by_ttl && !ttl_deletes => Step::Skip(Skip::TtlDelete),
        // Decoding gives every insert and modify its new image.
        (Event::Remove | Event::Insert | Event::Modify, _) => Step::Delete,
    }
}
