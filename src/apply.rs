//! What a route does with a change: pure.
//!
//! On a one-way route every change with a new image is a put and every removal a delete; the source's own
//! stamps play no part but in the clock. Deletes by the time-to-live service are forwarded as configured.

use crate::change::{Change, Event};
use crate::item::Item;
use std::time::SystemTime;

/// What to do at a peer with one change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step<'a> {
    /// Put this content, unless something newer is there.
    Put {
        /// The item without a stamp.
        content: &'a Item,
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
    /// It happened before the time at which the route starts.
    BeforeStart,
}

/// What a route's config says about single changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Whether deletes by the time-to-live service are forwarded.
    pub ttl_deletes: bool,
    /// Changes from before this are left out.
    pub not_before: Option<SystemTime>,
}

/// The step of a one-way route for one change.
#[must_use]
pub fn plan<'a>(change: &'a Change, rules: &Rules) -> Step<'a> {
    if rules.not_before.is_some_and(|start| change.created < start) {
        return Step::Skip(Skip::BeforeStart);
    }
    match (change.event, &change.new) {
        (Event::Insert | Event::Modify, Some(image)) => {
            Step::Put { content: &image.content, creates: change.event == Event::Insert }
        }
        (Event::Remove, _) if change.by_ttl && !rules.ttl_deletes => Step::Skip(Skip::TtlDelete),
        // Decoding gives every insert and modify its new image.
        (Event::Remove | Event::Insert | Event::Modify, _) => Step::Delete,
    }
}
