//! What a group does at a member: its stream is read, so what a write replaced or created is seen there, and every
//! write is one that the member's own walker can tell from an application's.

use super::{Answer, Expect, Expressions, Found, Peer, ROUNDS, StepError, contended};
use crate::change::Image;
use crate::content::Content;
use crate::failure::{Class, Failure};
use crate::item::Key;
use crate::version::{Mark, Stamp, Version};
use crate::view::Fields;
use crate::wire::with_item;
use aws_sdk_dynamodb::operation::delete_item::builders::DeleteItemFluentBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};
use std::collections::HashMap;

/// What became of a write to a member of a group.
#[derive(Debug, Clone, PartialEq)]
pub enum Placed {
    /// It took effect, or had taken effect before, or there was nothing to delete.
    Done,
    /// Something newer is there.
    Beaten(Image),
}

/// An item as it was found, with the very attribute that holds its stamp.
struct Seen {
    image: Image,
    attribute: Option<AttributeValue>,
}

impl Peer {
    /// Puts `content`, stamped with `version`, unless something newer is there. One request.
    ///
    /// # Errors
    /// Any failure but that of the condition; the step can be repeated.
    pub async fn place(&self, content: &Content, version: Version) -> Result<Placed, StepError> {
        let stamp = Stamp::of(content, version).to_string();
        let mut expect = Expect::AbsentOrOlder;
        for _ in 0..ROUNDS {
            expect = match self.send_put(content, &stamp, version, &expect).await? {
                Answer::Done | Answer::Found(Found::Same(_)) => return Ok(Placed::Done),
                Answer::Found(Found::Newer(image)) => return Ok(Placed::Beaten(image)),
                Answer::Found(Found::Nothing | Found::Older | Found::Unstamped(_)) => Expect::AbsentOrOlder,
                Answer::Found(Found::NotAStamp(text)) => Expect::Seen(text),
            };
        }
        Err(contended())
    }

    /// As [`Self::place`], and gives what it replaced, if it has just done so.
    ///
    /// # Errors
    /// Any failure but that of the condition; the step can be repeated.
    pub async fn bring_back(&self, content: &Content, version: Version) -> Result<Option<Image>, StepError> {
        let stamp = Stamp::of(content, version).to_string();
        self.may_write().await?;
        let request = self.put_request(version, &Expect::AbsentOrOlder).return_values(ReturnValue::AllOld);
        let mut replaced = None;
        let answer = with_item(request, content, Some(self.stamped(&stamp))).send().await.map(|done| {
            replaced = done.attributes.filter(|item| !item.is_empty()).map(|item| self.image(&item).0);
        });
        match self.answer_to_put(answer, version)? {
            Answer::Done => Ok(replaced),
            // What it takes beside the plain case is seldom, and what it replaces then is no item of ours.
            Answer::Found(_) => self.place(content, version).await.map(|_| None),
        }
    }

    /// Deletes the item in two steps, unless something newer than `version` is there: the first marks it, so that the
    /// member's walker knows the removal for ours. The tombstone must have been raised.
    ///
    /// The mark carries the digest of what was there, so that an application's write in between is seen: the item is
    /// read first, and marked on condition that its stamp is still the same.
    ///
    /// # Errors
    /// Any failure but that of a condition; the step can be repeated.
    pub async fn remove(&self, key: &Key, version: Version) -> Result<Placed, StepError> {
        for _ in 0..ROUNDS {
            let Some(seen) = self.read(key).await? else { return Ok(Placed::Done) };
            let marked = match seen.image.stamp {
                Some(stamp) if stamp.version == version && stamp.mark == Mark::Deleted => stamp,
                Some(stamp) if stamp.version >= version && stamp.version.hlc <= self.ceiling(version) => {
                    return Ok(Placed::Beaten(seen.image));
                }
                _ => {
                    let mark = Stamp { mark: Mark::Deleted, ..Stamp::of(&seen.image.content, version) };
                    if !self.stamp_anew(key, mark, seen.attribute).await? {
                        continue;
                    }
                    mark
                }
            };
            if self.delete_marked(key, marked).await? {
                return Ok(Placed::Done);
            }
        }
        Err(contended())
    }

    /// Puts `content` with `version` in place of the item that carries its stale stamp; `false` when none does any more.
    /// The content is put with it: a stale mark may have come to be on another one.
    ///
    /// # Errors
    /// Any failure but that of the condition; the step can be repeated.
    pub async fn restamp(
        &self,
        content: &Content,
        stale: Stamp,
        version: Version,
    ) -> Result<bool, StepError> {
        let stamp = Stamp::of(content, version).to_string();
        self.may_write().await?;
        let request = self.client.put_item().table_name(&self.table).condition_expression("#stamp = :seen");
        let request = self.with_seen(request, &stale.to_string());
        let request = with_item(request, content, Some(self.stamped(&stamp)));
        self.took_effect(request.send().await.map(drop).map_err(Failure::from))
    }

    /// The item, strongly consistent; `None` when there is none.
    ///
    /// # Errors
    /// Any failure.
    pub async fn look(&self, key: &Key) -> Result<Option<Image>, StepError> {
        Ok(self.read(key).await?.map(|seen| seen.image))
    }

    async fn read(&self, key: &Key) -> Result<Option<Seen>, StepError> {
        self.requests.inc();
        let answer = self
            .client
            .get_item()
            .table_name(&self.table)
            .set_key(Some(key.attributes().0.clone()))
            .consistent_read(true)
            .send()
            .await;
        let answer = answer.map_err(|error| self.failed(error.into()))?;
        Ok(answer.item.filter(|item| !item.is_empty()).map(|item| {
            let (image, attribute) = self.image(&item);
            Seen { image, attribute }
        }))
    }

    /// An item without our attribute, and that.
    fn image(&self, item: &HashMap<String, AttributeValue>) -> (Image, Option<AttributeValue>) {
        (Image::of(Fields::of(item), &self.stamp, true), item.get(&self.stamp).cloned())
    }

    /// Sets the stamp of an item that has `seen` in its place; `false` when it has not.
    async fn stamp_anew(
        &self,
        key: &Key,
        stamp: Stamp,
        seen: Option<AttributeValue>,
    ) -> Result<bool, StepError> {
        self.may_write().await?;
        let request = self
            .client
            .update_item()
            .table_name(&self.table)
            .set_key(Some(key.attributes().0.clone()))
            .update_expression("SET #stamp = :stamp")
            .alias("#stamp", &self.stamp)
            .value(":stamp", AttributeValue::S(stamp.to_string()));
        let request = match seen {
            Some(seen) => request.condition_expression("#stamp = :seen").value(":seen", seen),
            None => request
                .condition_expression("attribute_exists(#pk) AND attribute_not_exists(#stamp)")
                .alias("#pk", &self.partition_key),
        };
        self.took_effect(request.send().await.map(drop).map_err(Failure::from))
    }

    async fn delete_marked(&self, key: &Key, mark: Stamp) -> Result<bool, StepError> {
        self.may_write().await?;
        let request: DeleteItemFluentBuilder = self
            .client
            .delete_item()
            .table_name(&self.table)
            .set_key(Some(key.attributes().0.clone()))
            .condition_expression("#stamp = :seen");
        let request = self.with_seen(request, &mark.to_string());
        self.took_effect(request.send().await.map(drop).map_err(Failure::from))
    }

    /// Whether a condition held.
    pub(super) fn took_effect(&self, answer: Result<(), Failure>) -> Result<bool, StepError> {
        match answer {
            Err(failure) if failure.class != Class::Condition => Err(self.failed(failure)),
            answer => {
                self.limit.succeeded();
                Ok(answer.is_ok())
            }
        }
    }
}
