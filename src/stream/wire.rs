//! GetRecords, with its answer read as it is on the wire.
//!
//! The call is the SDK's: endpoint, signature, time limit, errors. Only the parsing of a page is done here, straight
//! into the types that peers are written with. The SDK's own takes longer than everything else that happens to a
//! record before it is sent, and its types would have to be turned into the others value by value.

use crate::failure::Failure;
use crate::item::Item;
use aws_sdk_dynamodbstreams::Client;
use aws_sdk_dynamodbstreams::operation::get_records::GetRecordsOutput;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeDeserializationInterceptorContextRef, Error, Output,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpResponse, OrchestratorError};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::client::ser_de::{DeserializeResponse, SharedResponseDeserializer};
use aws_smithy_types::config_bag::ConfigBag;
use serde::Deserialize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What GetRecords answers.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Page {
    /// The records, in order.
    #[serde(default)]
    pub records: Vec<Record>,
    /// Where the next page is; `None` at the end of the shard.
    pub next_shard_iterator: Option<String>,
}

/// A record as it is on the wire; what is not needed is left out.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Record {
    /// `INSERT`, `MODIFY` or `REMOVE`.
    #[serde(rename = "eventName")]
    pub event_name: Option<String>,
    /// The change.
    pub dynamodb: Option<Body>,
    /// Who made it, when that was a service.
    #[serde(rename = "userIdentity")]
    pub user_identity: Option<Identity>,
}

/// The change of a record.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Body {
    /// Seconds since 1970.
    pub approximate_creation_date_time: Option<f64>,
    /// The primary key.
    pub keys: Option<Item>,
    /// The item after.
    pub new_image: Option<Item>,
    /// The item before.
    pub old_image: Option<Item>,
    /// The place in the shard.
    pub sequence_number: Option<String>,
    /// Which images the stream gives.
    pub stream_view_type: Option<String>,
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

/// A page that is JSON, but not of the form that this build knows: reading it again would not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a page of records cannot be read: {0}")]
pub struct Unreadable(String);

/// The next page; `limit` records at most.
///
/// # Errors
/// The failure of the call, or a page of a form that this build does not know.
pub async fn get_records(
    client: &Client,
    iterator: &str,
    limit: i32,
) -> Result<Result<Page, Unreadable>, Failure> {
    let parsed = Parsed::default();
    let call = client.get_records().shard_iterator(iterator).limit(limit);
    call.customize().interceptor(parsed.clone()).send().await?;
    let page = parsed.lock().take();
    Ok(page.unwrap_or_else(|| Err(Unreadable("it was not parsed".to_owned()))))
}

/// Where the page goes: the SDK gives an empty output.
#[derive(Debug, Clone, Default)]
struct Parsed(Arc<Mutex<Option<Result<Page, Unreadable>>>>);

impl Parsed {
    fn lock(&self) -> MutexGuard<'_, Option<Result<Page, Unreadable>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for Parsed {
    fn name(&self) -> &'static str {
        "parse a page of records"
    }

    /// Takes the SDK's parser's place for this answer; errors are left to that.
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

impl DeserializeResponse for Parsed {
    fn deserialize_nonstreaming_with_config(
        &self,
        response: &HttpResponse,
        _: &ConfigBag,
    ) -> Result<Output, OrchestratorError<Error>> {
        let body = response.body().bytes().unwrap_or_default();
        let page = match serde_json::from_slice::<Page>(body) {
            Ok(page) => Ok(page),
            Err(error) if error.is_data() => Err(Unreadable(error.to_string())),
            // What is not even JSON came from something on the way; another try may reach the service.
            Err(error) => return Err(OrchestratorError::response(error.into())),
        };
        *self.lock() = Some(page);
        Ok(Output::erase(GetRecordsOutput::builder().build()))
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
        let page: Page = serde_json::from_value(page).unwrap();
        let record = &page.records[0];
        let body = record.dynamodb.as_ref().unwrap();
        assert_eq!(page.next_shard_iterator.as_deref(), Some("next"));
        assert_eq!(record.event_name.as_deref(), Some("INSERT"));
        assert_eq!(record.user_identity.as_ref().unwrap().kind.as_deref(), Some("Service"));
        assert_eq!(body.approximate_creation_date_time, Some(1.8e9));
        assert_eq!(body.new_image.as_ref().unwrap().0.len(), 2);
        assert!(body.old_image.is_none());
        assert_eq!(serde_json::from_str::<Page>("{}").unwrap(), Page::default());
    }
}
