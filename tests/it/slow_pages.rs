//! An endpoint that needs longer for a full page than a request may take.

use crate::world::World;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;

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
