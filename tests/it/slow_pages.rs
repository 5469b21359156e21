//! Pages that are smaller than what GetRecords gives: because a full one is too slow, or takes too much memory.

use crate::sandbox_support::s;
use crate::world::{World, eventually, with};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use shardwalker::sandbox::Options;

/// Passes requests on, but never answers a GetRecords for more than 300 records.
#[derive(Debug)]
struct Slow(SharedHttpClient);

#[derive(Debug)]
struct SlowConnector(SharedHttpConnector);

impl HttpClient for Slow {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        parts: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(SlowConnector(self.0.http_connector(settings, parts)))
    }
}

impl HttpConnector for SlowConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let body: Option<serde_json::Value> =
            request.body().bytes().and_then(|b| serde_json::from_slice(b).ok());
        let reads =
            request.headers().get("x-amz-target").is_some_and(|target| target.ends_with("GetRecords"));
        let limit = body.and_then(|body| body["Limit"].as_u64()).unwrap_or(1000);
        if reads && limit > 300 {
            return HttpConnectorFuture::new(std::future::pending());
        }
        self.0.call(request)
    }
}

#[tokio::test(start_paused = true)]
async fn pages_shrink_until_they_come_in_time() {
    let world = World::new();
    world.load(100, 300, 1).await;
    let mut options = world.options(true);
    options.base.http = options.base.http.map(|http| SharedHttpClient::new(Slow(http)));
    let worker = world.start_with(world.config("", ""), options).await;
    world.until_equal().await;
    assert!(worker.metric("shardwalker_retries_total", &["at=\"stream\"", "unknown-outcome"]) >= 2.0);
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn pages_shrink_until_they_fit_into_memory() {
    let one = Options { initial_shards: 1, ..Options::default() };
    let world = World::with(one, Some("NEW_AND_OLD_IMAGES"));
    let small = AttributeValue::L(vec![s(""); 3000]);
    for item in 0..ITEMS {
        let item = with(&format!("k{item}"), &[("small", small.clone())]);
        world.app.db.put_item().table_name("orders").set_item(Some(item)).send().await.unwrap();
    }
    let worker = world.worker().await;
    let applied = || worker.metric("shardwalker_changes_total", &["outcome=\"applied\""]) as usize;
    eventually("all is applied", || applied() == 2 * ITEMS).await;
    assert!(world.all_equal());
    // 3 KB each as DynamoDB counts, and 27 KB as text: the first page is of 1 MB, and some 150 fit into each after it.
    let pages = worker.metric("shardwalker_pages_read_total", &["kind=\"full\""]);
    assert!((4.0..8.0).contains(&pages), "{pages} pages");
    worker.stop().await.unwrap();
}

const ITEMS: usize = 700;
