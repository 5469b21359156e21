//! An HTTP client that shows the bodies of the puts to members, once they are answered.

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use std::fmt;
use std::sync::Arc;

type Note = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// `client`, with `note` called for every PutItem to a member that was answered well.
pub(crate) fn watched(
    client: SharedHttpClient,
    note: impl Fn(&[u8]) + Send + Sync + 'static,
) -> SharedHttpClient {
    SharedHttpClient::new(WatchedClient { client, note: Arc::new(note) })
}

struct WatchedClient {
    client: SharedHttpClient,
    note: Note,
}

struct WatchedConnector {
    connector: SharedHttpConnector,
    note: Note,
}

impl HttpClient for WatchedClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let connector = self.client.http_connector(settings, components);
        SharedHttpConnector::new(WatchedConnector { connector, note: Arc::clone(&self.note) })
    }
}

impl HttpConnector for WatchedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let put = request.headers().get("x-amz-target") == Some("DynamoDB_20120810.PutItem");
        // Members are addressed by their ARN, the state table by its name.
        let member = |body: &&[u8]| put && body.starts_with(b"{\"TableName\":\"arn:");
        let Some(body) = request.body().bytes().filter(member).map(<[u8]>::to_vec) else {
            return self.connector.call(request);
        };
        let (answer, note) = (self.connector.call(request), Arc::clone(&self.note));
        HttpConnectorFuture::new(async move {
            let answer = answer.await?;
            if answer.status().is_success() {
                note(&body);
            }
            Ok(answer)
        })
    }
}

impl fmt::Debug for WatchedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchedClient")
    }
}

impl fmt::Debug for WatchedConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchedConnector")
    }
}
