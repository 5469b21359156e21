//! Items as they are on the wire: pages of a stream and of a scan are read as they came, and what is put goes into its
//! request as text.
//!
//! The calls are the SDK's: endpoint, signature, time limit, errors, and everything in a request but the item. Pages are
//! read into [views](crate::view) that borrow from them. The SDK's own types take longer, in both directions, than
//! everything else that happens to an item.

use crate::content::Content;
use crate::failure::{Class, Failure};
use crate::json::write_text;
use crate::view::Fields;
use aws_sdk_dynamodb::client::customize::CustomizableOperation;
use aws_sdk_dynamodb::operation::put_item::builders::PutItemFluentBuilder;
use aws_sdk_dynamodb::operation::put_item::{PutItemError, PutItemOutput};
use aws_sdk_dynamodb::operation::scan::ScanOutput;
use aws_sdk_dynamodb::operation::scan::builders::ScanFluentBuilder;
use aws_sdk_dynamodbstreams::Client;
use aws_sdk_dynamodbstreams::operation::get_records::GetRecordsOutput;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextMut, Error, Output,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpResponse, OrchestratorError};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::client::ser_de::{DeserializeResponse, SharedResponseDeserializer};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use serde::Deserialize;
use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What GetRecords answers.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Page<'a> {
    /// The records, in order.
    #[serde(default, borrow)]
    pub records: Vec<Record<'a>>,
    /// Where the next page is; `None` at the end of the shard.
    pub next_shard_iterator: Option<String>,
}

/// A record as it is on the wire; what is not needed is left out.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Record<'a> {
    /// `INSERT`, `MODIFY` or `REMOVE`.
    #[serde(rename = "eventName", borrow)]
    pub event_name: Option<Cow<'a, str>>,
    /// The change.
    #[serde(borrow)]
    pub dynamodb: Option<Body<'a>>,
    /// Who made it, when that was a service.
    #[serde(rename = "userIdentity")]
    pub user_identity: Option<Identity>,
}

/// The change of a record.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Body<'a> {
    /// Seconds since 1970.
    pub approximate_creation_date_time: Option<f64>,
    /// The primary key.
    #[serde(borrow)]
    pub keys: Option<Fields<'a>>,
    /// The item after.
    #[serde(borrow)]
    pub new_image: Option<Fields<'a>>,
    /// The item before.
    #[serde(borrow)]
    pub old_image: Option<Fields<'a>>,
    /// The place in the shard.
    #[serde(borrow)]
    pub sequence_number: Option<Cow<'a, str>>,
    /// Which images the stream gives.
    #[serde(borrow)]
    pub stream_view_type: Option<Cow<'a, str>>,
}

/// Who made a change.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Identity {
    /// For example `dynamodb.amazonaws.com`.
    pub principal_id: Option<String>,
    /// For example `Service`.
    #[serde(rename = "Type")]
    pub kind: Option<String>,
}

/// What Scan answers.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Scanned<'a> {
    /// The items, in the segment's order.
    #[serde(default, borrow)]
    pub items: Vec<Fields<'a>>,
    /// The key after which the next page begins; `None` at the segment's end.
    #[serde(borrow)]
    pub last_evaluated_key: Option<Fields<'a>>,
    /// What it cost.
    pub consumed_capacity: Option<Capacity>,
}

/// What a call cost.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Capacity {
    /// Read or write units.
    pub capacity_units: Option<f64>,
}

/// A page that is JSON, but not of the form that this build knows: reading it again would not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a page cannot be read: {0}")]
pub struct Unreadable(String);

/// An answer as it came.
#[derive(Debug)]
pub struct Answer(SdkBody);

impl Answer {
    /// What it says.
    ///
    /// # Errors
    /// That it is no JSON: it came from something on the way, and another call may reach the service. Or that it is
    /// JSON of a form that this build does not know.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<Result<T, Unreadable>, Failure> {
        match serde_json::from_slice(self.0.bytes().unwrap_or_default()) {
            Ok(page) => Ok(Ok(page)),
            Err(error) if error.is_data() => Ok(Err(Unreadable(error.to_string()))),
            Err(error) => Err(Failure::new(Class::Transient, "BadAnswer", error.to_string())),
        }
    }
}

/// The next page of a shard; `limit` records at most.
///
/// # Errors
/// The failure of the call.
pub async fn get_records(client: &Client, iterator: &str, limit: i32) -> Result<Answer, Failure> {
    let unread = Unread::new(|| Output::erase(GetRecordsOutput::builder().build()));
    let call = client.get_records().shard_iterator(iterator).limit(limit);
    call.customize().interceptor(unread.clone()).send().await?;
    unread.answer()
}

/// A page of a table.
///
/// # Errors
/// The failure of the call.
pub async fn scan(call: ScanFluentBuilder) -> Result<Answer, Failure> {
    let unread = Unread::new(|| Output::erase(ScanOutput::builder().build()));
    call.customize().interceptor(unread.clone()).send().await?;
    unread.answer()
}

/// Takes the place of the SDK's parser of an answer; errors are left to that.
#[derive(Debug, Clone)]
struct Unread {
    answer: Arc<Mutex<Option<SdkBody>>>,
    /// What the SDK gives instead.
    instead: fn() -> Output,
}

impl Unread {
    fn new(instead: fn() -> Output) -> Self {
        Self { answer: Arc::default(), instead }
    }

    fn lock(&self) -> MutexGuard<'_, Option<SdkBody>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self) -> Result<Answer, Failure> {
        let answer = self.lock().take().map(Answer);
        answer.ok_or_else(|| Failure::new(Class::Transient, "NoAnswer", "an answer without a body"))
    }
}

impl Intercept for Unread {
    fn name(&self) -> &'static str {
        "keep a page as it came"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if context.response().status().is_success() {
            config.interceptor_state().store_put(SharedResponseDeserializer::new(self.clone()));
        }
        Ok(())
    }
}

impl DeserializeResponse for Unread {
    fn deserialize_nonstreaming_with_config(
        &self,
        response: &HttpResponse,
        _: &ConfigBag,
    ) -> Result<Output, OrchestratorError<Error>> {
        *self.lock() = response.body().try_clone();
        Ok((self.instead)())
    }
}

/// Our attribute as it goes into a request.
#[derive(Debug, Clone, Copy)]
pub struct Stamped<'a> {
    /// The attribute's name.
    pub name: &'a str,
    /// The stamp.
    pub stamp: &'a str,
}

/// A put of an item, which goes into the request as the text that it is: the SDK writes the rest.
#[must_use]
pub fn with_item(
    request: PutItemFluentBuilder,
    content: &Content,
    stamped: Option<Stamped<'_>>,
) -> CustomizableOperation<PutItemOutput, PutItemError, PutItemFluentBuilder> {
    let text = content.text().as_bytes();
    let mut item = Vec::with_capacity(text.len() + 128);
    item.extend_from_slice(b",\"Item\":");
    item.extend_from_slice(text);
    if let Some(Stamped { name, stamp }) = stamped {
        item.pop();
        if text.len() > 2 {
            item.push(b',');
        }
        write_text(name, &mut item);
        item.extend_from_slice(b":{\"S\":");
        write_text(stamp, &mut item);
        item.extend_from_slice(b"}}");
    }
    item.push(b'}');
    request.customize().interceptor(WithItem(item))
}

/// The end of a request's body, after the SDK's part.
#[derive(Debug)]
struct WithItem(Vec<u8>);

impl Intercept for WithItem {
    fn name(&self) -> &'static str {
        "put the item into the request"
    }

    fn modify_before_retry_loop(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request_mut();
        // An object with the table's name, at least.
        let begin = request.body().bytes().and_then(|body| body.strip_suffix(b"}"));
        let body = [begin.ok_or("a put is no JSON")?, &self.0].concat();
        request.headers_mut().insert("content-length", body.len().to_string());
        *request.body_mut() = SdkBody::from(body);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_of_the_service_is_understood() {
        let page = json!({
            "Records": [{
                "awsRegion": "eu-west-1",
                "dynamodb": {
                    "ApproximateCreationDateTime": 1.8e9,
                    "Keys": { "id": { "S": "k" } },
                    "NewImage": { "id": { "S": "k" }, "n": { "N": "1" } },
                    "OldImage": null,
                    "SequenceNumber": "111100000000000000000000001",
                    "SizeBytes": 26,
                    "StreamViewType": "NEW_AND_OLD_IMAGES",
                },
                "eventID": "x", "eventName": "INSERT", "eventSource": "aws:dynamodb", "eventVersion": "1.1",
                "userIdentity": { "PrincipalId": "dynamodb.amazonaws.com", "Type": "Service" },
            }],
            "NextShardIterator": "next",
        });
        let text = page.to_string();
        let page: Page<'_> = serde_json::from_str(&text).unwrap();
        let record = &page.records[0];
        let body = record.dynamodb.as_ref().unwrap();
        assert_eq!(page.next_shard_iterator.as_deref(), Some("next"));
        assert_eq!(record.event_name.as_deref(), Some("INSERT"));
        assert_eq!(record.user_identity.as_ref().unwrap().kind.as_deref(), Some("Service"));
        assert_eq!(body.approximate_creation_date_time, Some(1.8e9));
        assert_eq!(body.new_image.as_ref().unwrap().iter().len(), 2);
        assert!(body.old_image.is_none());
        assert_eq!(serde_json::from_str::<Page<'_>>("{}").unwrap(), Page::default());
    }
}
