//! HTTP clients around another one: what passes is watched, or takes its time.

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

type Call = Arc<dyn Fn(&SharedHttpConnector, HttpRequest) -> HttpConnectorFuture + Send + Sync>;

/// `client`, with every request sent by `call`.
pub(crate) fn tapped(
    client: SharedHttpClient,
    call: impl Fn(&SharedHttpConnector, HttpRequest) -> HttpConnectorFuture + Send + Sync + 'static,
) -> SharedHttpClient {
    SharedHttpClient::new(Tap { client, call: Arc::new(call) })
}

/// `client`, with `note` called with the body of every PutItem to a member, once it was answered well.
pub(crate) fn watched(
    client: SharedHttpClient,
    note: impl Fn(&[u8]) + Send + Sync + 'static,
) -> SharedHttpClient {
    let note = Arc::new(note);
    tapped(client, move |connector, request| {
        let put = operation(&request) == "PutItem";
        // Members are addressed by their ARN, the state table by its name.
        let member = |body: &&[u8]| put && body.starts_with(b"{\"TableName\":\"arn:");
        let Some(body) = request.body().bytes().filter(member).map(<[u8]>::to_vec) else {
            return connector.call(request);
        };
        let (answer, note) = (connector.call(request), Arc::clone(&note));
        HttpConnectorFuture::new(async move {
            let answer = answer.await?;
            if answer.status().is_success() {
                note(&body);
            }
            Ok(answer)
        })
    })
}

/// `client` behind a network: half of `latency` to get there, and half of it back.
pub(crate) fn delayed(client: SharedHttpClient, latency: Duration) -> SharedHttpClient {
    tapped(client, move |connector, request| {
        let connector = connector.clone();
        HttpConnectorFuture::new(async move {
            tokio::time::sleep(latency / 2).await;
            let answer = connector.call(request).await;
            tokio::time::sleep(latency / 2).await;
            answer
        })
    })
}

/// `client`, with everything behind it done by another runtime: what an endpoint costs is then not what a client of it
/// costs.
pub(crate) fn elsewhere(client: SharedHttpClient, runtime: Handle) -> SharedHttpClient {
    tapped(client, move |connector, request| {
        let connector = connector.clone();
        let answer = runtime.spawn(async move { connector.call(request).await });
        HttpConnectorFuture::new(async move {
            answer.await.unwrap_or_else(|broken| Err(ConnectorError::other(broken.into(), None)))
        })
    })
}

/// A request's operation, such as `PutItem`.
pub(crate) fn operation(request: &HttpRequest) -> &str {
    request.headers().get("x-amz-target").and_then(|target| target.rsplit('.').next()).unwrap_or_default()
}

struct Tap {
    client: SharedHttpClient,
    call: Call,
}

struct TapConnector {
    connector: SharedHttpConnector,
    call: Call,
}

impl HttpClient for Tap {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let connector = self.client.http_connector(settings, components);
        SharedHttpConnector::new(TapConnector { connector, call: Arc::clone(&self.call) })
    }
}

impl HttpConnector for TapConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        (self.call)(&self.connector, request)
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap")
    }
}

impl fmt::Debug for TapConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TapConnector")
    }
}
