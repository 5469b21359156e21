//! The door within the process: an HTTP connector for the AWS SDKs that calls the gateway directly.
//!
//! Promises no tasks, no sockets and no real time: it works under tokio's paused clock, and what it does
//! follows from the order of the calls.

use super::{Dropped, Source};
use crate::sandbox::Sandbox;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body_util::BodyExt;

#[derive(Debug, Clone)]
struct Door {
    sandbox: Sandbox,
    source: Source,
}

impl Sandbox {
    /// An HTTP client for the AWS SDKs that reaches this sandbox without a network.
    #[must_use]
    pub fn http_client(&self) -> SharedHttpClient {
        self.http_client_from(Source::default())
    }

    /// The same for a caller somewhere else.
    #[must_use]
    pub fn http_client_from(&self, source: Source) -> SharedHttpClient {
        SharedHttpClient::new(Door { sandbox: self.clone(), source })
    }
}

impl HttpClient for Door {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Door {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let Door { sandbox, source } = self.clone();
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|error| ConnectorError::user(Box::new(error)))?;
            let (parts, body) = request.into_parts();
            let body = match body.bytes() {
                Some(bytes) => Bytes::copy_from_slice(bytes),
                None => body.collect().await.map_err(ConnectorError::user)?.to_bytes(),
            };
            let answer = sandbox.handle(http::Request::from_parts(parts, body), source).await;
            let response = answer.map_err(|dropped| match dropped {
                Dropped::Request => ConnectorError::io(Box::new(dropped)),
                Dropped::Answer => ConnectorError::timeout(Box::new(dropped)),
            })?;
            HttpResponse::try_from(response.map(SdkBody::from))
                .map_err(|error| ConnectorError::user(Box::new(error)))
        })
    }
}
