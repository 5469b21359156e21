//! Listing a stream's shards, within one budget of calls for a source account.

use crate::failure::{Class, Failure};
use crate::limit::Rate;
use crate::stream::graph::Shard;
use aws_sdk_dynamodbstreams::Client;
use aws_sdk_dynamodbstreams::operation::describe_stream::builders::DescribeStreamFluentBuilder;
use aws_sdk_dynamodbstreams::types::{ShardFilter, ShardFilterType, StreamStatus};
use std::sync::Arc;

/// Lists one stream's shards. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lister {
    client: Client,
    stream: Arc<str>,
    /// DescribeStream has a limit for the whole account: one budget for all its streams.
    budget: Arc<Rate>,
}

/// What a listing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The shards, in the service's order; those that aged out are missing.
    pub shards: Vec<Shard>,
    /// Whether the stream still takes records.
    pub enabled: bool,
}

impl Lister {
    /// A lister of a stream.
    #[must_use]
    pub fn new(client: Client, stream: Arc<str>, budget: Arc<Rate>) -> Self {
        Self { client, stream, budget }
    }

    /// All shards that the stream lists now, page by page.
    ///
    /// # Errors
    /// The failure of the page that failed.
    pub async fn all(&self) -> Result<Listing, Failure> {
        self.pages(|request| request).await
    }

    /// The children of a shard that was read to its end, as far as they are listed. An endpoint that does not
    /// know the filter gives all shards.
    ///
    /// # Errors
    /// The failure of the page that failed.
    pub async fn children(&self, shard: &str) -> Result<Listing, Failure> {
        let filter = ShardFilter::builder().r#type(ShardFilterType::ChildShards).shard_id(shard).build();
        match self.pages(|request| request.shard_filter(filter.clone())).await {
            Err(failure) if failure.class == Class::Invalid => self.all().await,
            other => other,
        }
    }

    async fn pages(
        &self,
        with: impl Fn(DescribeStreamFluentBuilder) -> DescribeStreamFluentBuilder,
    ) -> Result<Listing, Failure> {
        let mut listing = Listing { shards: Vec::new(), enabled: true };
        let mut start: Option<String> = None;
        loop {
            self.budget.turn().await;
            let request = self.client.describe_stream().stream_arn(&*self.stream);
            let answer = with(request).set_exclusive_start_shard_id(start.clone()).send().await?;
            let Some(page) = answer.stream_description else { return Ok(listing) };
            listing.enabled =
                !matches!(page.stream_status, Some(StreamStatus::Disabled | StreamStatus::Disabling));
            for shard in page.shards.unwrap_or_default() {
                let closed = shard.sequence_number_range.is_some_and(|r| r.ending_sequence_number.is_some());
                let Some(id) = shard.shard_id else { continue };
                listing.shards.push(Shard { id, parent: shard.parent_shard_id, closed });
            }
            // Only an absent id ends the listing, not an empty page; the same id again would go on for ever.
            let next = page.last_evaluated_shard_id.filter(|id| !id.is_empty());
            if next.is_none() || next == start {
                return Ok(listing);
            }
            start = next;
        }
    }
}
