//! What a route does with a change: pure.
//!
//! On a one-way route every change with a new image is a put and every removal a delete, as far as the route's
//! [`shape`](crate::shape) lets the item through; the source's own stamps play no part but in the clock. Deletes by the
//! time-to-live service are forwarded as configured.

use crate::change::{Change, Event};
use crate::config::Images;
use crate::content::Content;
use crate::item::Key;
use crate::shape::{Judged, Shape, Unshaped};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

/// What to do at a peer with one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Put the item as [`Rules::item`] has it, unless something newer is there.
    Put {
        /// Whether the change created the item, so that it is likely absent at the peer too.
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
    /// The route's filter lets neither image through.
    Filtered,
}

/// What a route's config says about single changes.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Whether deletes by the time-to-live service are forwarded.
    pub ttl_deletes: bool,
    /// Changes from before this are left out.
    pub not_before: Option<SystemTime>,
    /// What the peers get of items; `None` for all of them, as they are.
    pub shape: Option<Arc<Shape>>,
}

impl Rules {
    /// The key at the peers.
    ///
    /// # Errors
    /// That there is none.
    pub fn key<'k>(&self, key: &'k Key) -> Result<Cow<'k, Key>, Unshaped> {
        self.shape.as_ref().map_or(Ok(Cow::Borrowed(key)), |shape| shape.key(key).map(Cow::Owned))
    }

    /// An item at the peers, with its key.
    ///
    /// # Errors
    /// That it cannot be shaped.
    pub fn item<'i>(
        &self,
        key: &'i Key,
        content: &'i Content,
    ) -> Result<(Cow<'i, Key>, Cow<'i, Content>), Unshaped> {
        let Some(shape) = &self.shape else { return Ok((Cow::Borrowed(key), Cow::Borrowed(content))) };
        shape.item(&content.item()).map(|(key, item)| (Cow::Owned(key), Cow::Owned(item.into())))
    }
}

/// The step of a one-way route for one change.
///
/// # Errors
/// That the route's filter cannot judge it.
pub fn plan(change: &Change, rules: &Rules) -> Result<Step, Unshaped> {
    if let Some(skip) = left_out(change, rules) {
        return Ok(Step::Skip(skip));
    }
    if let Some(shape) = &rules.shape {
        return Ok(match shape.judge(change)? {
            Judged::Put { creates } => Step::Put { creates },
            Judged::Delete => Step::Delete,
            Judged::Skip => Step::Skip(Skip::Filtered),
        });
    }
    Ok(match (change.event, &change.new) {
        (Event::Insert | Event::Modify, Some(_)) => Step::Put { creates: change.event == Event::Insert },
        // Decoding gives every insert and modify its new image.
        (Event::Remove | Event::Insert | Event::Modify, _) => Step::Delete,
    })
}

/// A change as a route's feed takes it: in the route's shape, with the images that the feed has. `None` where a rule
/// leaves it out.
///
/// # Errors
/// That it cannot be shaped.
pub fn record<'c>(
    change: &'c Change,
    rules: &Rules,
    images: Images,
) -> Result<Option<Cow<'c, Change>>, Unshaped> {
    if left_out(change, rules).is_some() {
        return Ok(None);
    }
    let Some(shape) = &rules.shape else { return Ok(Some(Cow::Borrowed(change))) };
    Ok(shape.change(change, images)?.map(Cow::Owned))
}

/// The rule that leaves a change out, whatever is in it.
fn left_out(change: &Change, rules: &Rules) -> Option<Skip> {
    if rules.not_before.is_some_and(|start| change.created < start) {
        return Some(Skip::BeforeStart);
    }
    (change.event == Event::Remove && change.by_ttl && !rules.ttl_deletes).then_some(Skip::TtlDelete)
}
