//! One conditional request to a member: its condition, and what its answer says of the item that was there.

use super::{Peer, StepError};
use crate::change::Image;
use crate::content::Content;
use crate::failure::{Class, Failure};
use crate::item::Key;
use crate::version::{Hlc, Stamp, Version};
use crate::view::Fields;
use crate::wire::{Stamped, with_item};
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::delete_item::builders::DeleteItemFluentBuilder;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::put_item::builders::PutItemFluentBuilder;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use std::collections::HashMap;
use std::time::Duration;

/// What a put expects to find, which tells a creation from an overwrite without reading first.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expect {
    Absent,
    Older,
    /// No item, or an older one.
    AbsentOrOlder,
    /// One with a stamp that is older.
    OlderStamp,
    /// One without a stamp.
    Unstamped,
    /// This very attribute in the stamp's place.
    Seen(String),
}

/// Longer than a signed request is accepted.
const ON_ITS_WAY: Duration = Duration::from_secs(15 * 60);

impl Peer {
    pub(super) async fn send_put(
        &self,
        content: &Content,
        stamp: &str,
        version: Version,
        expect: &Expect,
    ) -> Result<Answer, StepError> {
        self.may_write().await?;
        let request = with_item(self.put_request(version, expect), content, Some(self.stamped(stamp)));
        let answer = request.send().await.map(drop);
        self.answer_to_put(answer, version)
    }

    pub(super) fn answer_to_put(
        &self,
        answer: Result<(), SdkError<PutItemError, HttpResponse>>,
        version: Version,
    ) -> Result<Answer, StepError> {
        self.answer(answer, version, |error| match error {
            PutItemError::ConditionalCheckFailedException(failed) => Some(failed.item()),
            _ => None,
        })
    }

    /// Our attribute, with this text.
    pub(super) fn stamped<'s>(&'s self, stamp: &'s str) -> Stamped<'s> {
        Stamped { name: &self.stamp, stamp }
    }

    /// A put without its item.
    pub(super) fn put_request(&self, version: Version, expect: &Expect) -> PutItemFluentBuilder {
        let request = self
            .client
            .put_item()
            .table_name(&self.table)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match expect {
            Expect::Absent => request
                .condition_expression("attribute_not_exists(#pk)")
                .expression_attribute_names("#pk", &self.partition_key),
            Expect::Older => {
                let condition = format!("attribute_exists(#pk) AND ({OVERWRITABLE})");
                let request = request
                    .condition_expression(condition)
                    .expression_attribute_names("#pk", &self.partition_key);
                self.with_older(request, version)
            }
            Expect::AbsentOrOlder => self.with_older(request.condition_expression(OVERWRITABLE), version),
            Expect::OlderStamp => self.with_older(request.condition_expression(OLDER_STAMP), version),
            Expect::Unstamped => request
                .condition_expression(UNSTAMPED)
                .expression_attribute_names("#pk", &self.partition_key)
                .expression_attribute_names("#stamp", &self.stamp)
                .expression_attribute_values(":string", AttributeValue::S("S".to_owned())),
            Expect::Seen(text) => self.with_seen(request.condition_expression(SEEN), text),
        }
    }

    pub(super) async fn send_delete(
        &self,
        key: &Key,
        version: Version,
        expect: &Expect,
    ) -> Result<Answer, StepError> {
        self.may_write().await?;
        let request = self
            .client
            .delete_item()
            .table_name(&self.table)
            .set_key(Some(key.attributes().0.clone()))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let request = match expect {
            Expect::Seen(text) => self.with_seen(request.condition_expression(SEEN), text),
            Expect::OlderStamp => self.with_older(request.condition_expression(OLDER_STAMP), version),
            Expect::Absent | Expect::Older | Expect::AbsentOrOlder | Expect::Unstamped => {
                self.with_older(request.condition_expression(OVERWRITABLE), version)
            }
        };
        let answer = request.send().await;
        self.answer(answer, version, |error| match error {
            DeleteItemError::ConditionalCheckFailedException(failed) => Some(failed.item()),
            _ => None,
        })
    }

    /// Sorts an answer; `refused` gives the old item of a failed condition.
    pub(super) fn answer<T, E>(
        &self,
        answer: Result<T, SdkError<E, HttpResponse>>,
        version: Version,
        refused: impl Fn(&E) -> Option<Option<&HashMap<String, AttributeValue>>>,
    ) -> Result<Answer, StepError>
    where
        Failure: From<SdkError<E, HttpResponse>>,
    {
        let error = match answer {
            Ok(_) => {
                self.limit.succeeded();
                return Ok(Answer::Done);
            }
            Err(error) => error,
        };
        if let Some(item) = error.as_service_error().and_then(refused) {
            self.limit.succeeded();
            return Ok(Answer::Found(self.found(item, version)));
        }
        Err(self.failed(error.into()))
    }

    pub(super) fn failed(&self, failure: Failure) -> StepError {
        if failure.class == Class::Throttled {
            self.limit.throttled();
        }
        StepError::Peer(failure)
    }

    /// What stands where a put's condition failed.
    pub(super) fn found(&self, item: Option<&HashMap<String, AttributeValue>>, version: Version) -> Found {
        let Some(item) = item.filter(|item| !item.is_empty()) else { return Found::Nothing };
        let Some(AttributeValue::S(text)) = item.get(&self.stamp) else {
            return Found::Unstamped(self.content(Some(item)));
        };
        match Stamp::parse(text) {
            None => Found::NotAStamp(text.clone()),
            Some(stamp) if stamp.version == version => Found::Same(stamp),
            Some(stamp) if stamp.version < version || stamp.version.hlc > self.ceiling(version) => {
                Found::Older
            }
            Some(stamp) => Found::Newer(Image { content: self.content(Some(item)), stamp: Some(stamp) }),
        }
    }

    /// What is on an item beside our attribute.
    pub(super) fn content(&self, item: Option<&HashMap<String, AttributeValue>>) -> Content {
        Image::of(item.map(Fields::of).unwrap_or_default(), &self.stamp, true).content
    }

    /// Beyond this a stamp is not believed. It follows this worker's clock, and never falls behind the versions
    /// that it writes: a replay of old records must not take today's stamps for ones from the future. Nor must a request
    /// that was on its way for long: what was written meanwhile is not beyond it.
    pub(super) fn ceiling(&self, version: Version) -> Hlc {
        Hlc::from_millis(self.clock.millis()).max(version.hlc).plus(self.max_drift + ON_ITS_WAY)
    }

    pub(super) fn with_seen<R: Expressions>(&self, request: R, seen: &str) -> R {
        request.alias("#stamp", &self.stamp).value(":seen", AttributeValue::S(seen.to_owned()))
    }

    pub(super) fn with_older<R: Expressions>(&self, request: R, version: Version) -> R {
        request
            .alias("#stamp", &self.stamp)
            .value(":string", AttributeValue::S("S".to_owned()))
            .value(":version", AttributeValue::S(version.to_string()))
            .value(
                ":ceiling",
                AttributeValue::S(Version::new(self.ceiling(version), u8::MAX).to_string() + "~"),
            )
    }
}

/// True where nothing newer is, also where there is no item.
const OVERWRITABLE: &str = "attribute_not_exists(#stamp) OR NOT attribute_type(#stamp, :string) \
     OR #stamp < :version OR #stamp > :ceiling";

/// True where an older stamp is, and not where an application wrote.
const OLDER_STAMP: &str = "attribute_type(#stamp, :string) AND (#stamp < :version OR #stamp > :ceiling)";

/// True where an item is and no stamp.
const UNSTAMPED: &str =
    "attribute_exists(#pk) AND (attribute_not_exists(#stamp) OR NOT attribute_type(#stamp, :string))";

/// True where the attribute in the stamp's place still is what was seen.
const SEEN: &str = "#stamp = :seen";

pub(super) enum Answer {
    Done,
    Found(Found),
}

pub(super) enum Found {
    Nothing,
    Older,
    /// An application's.
    Unstamped(Content),
    /// An application's: the attribute holds this, which sorts like a newer stamp but is none.
    NotAStamp(String),
    /// One of this very version.
    Same(Stamp),
    Newer(Image),
}

/// Names and values of an expression, the same for puts and deletes.
pub(super) trait Expressions {
    fn alias(self, alias: &str, name: &str) -> Self;
    fn value(self, name: &str, value: AttributeValue) -> Self;
}

macro_rules! expressions {
    ($request:ty) => {
        impl Expressions for $request {
            fn alias(self, alias: &str, name: &str) -> Self {
                self.expression_attribute_names(alias, name)
            }
            fn value(self, name: &str, value: AttributeValue) -> Self {
                self.expression_attribute_values(name, value)
            }
        }
    };
}
expressions!(PutItemFluentBuilder);
expressions!(DeleteItemFluentBuilder);
expressions!(UpdateItemFluentBuilder);
