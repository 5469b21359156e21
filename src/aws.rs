//! The only place where AWS clients are made.
//!
//! One client per Region, endpoint, profile and role: whoever asks with the same [`Access`] gets the same one,
//! with its connections and its credentials. The SDK's own retries are off ([`crate::retry`] is the one retry
//! layer), and every call has a time limit.

use crate::config::Access;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::{AppName, StalledStreamProtectionConfig};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_types::endpoint_config::AccountIdEndpointMode;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::Mutex;

/// What all clients share. The default is a production process.
#[derive(Debug, Clone, Default)]
pub struct Base {
    /// Credentials instead of the default chain (and of profiles).
    pub credentials: Option<SharedCredentialsProvider>,
    /// Another way to send requests than the SDK's own HTTPS client.
    pub http: Option<SharedHttpClient>,
    /// The time limit of one request; `None` for 5 s.
    pub request_timeout: Option<Duration>,
}

/// The clients for one [`Access`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Clients {
    /// DynamoDB.
    pub tables: aws_sdk_dynamodb::Client,
    /// Its streams.
    pub streams: aws_sdk_dynamodbstreams::Client,
}

/// Makes clients, and keeps them.
#[derive(Debug)]
pub struct Aws {
    base: Base,
    made: Mutex<HashMap<Access, Clients>>,
}

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

impl Aws {
    /// Makes nothing yet.
    #[must_use]
    pub fn new(base: Base) -> Self {
        Self { base, made: Mutex::new(HashMap::new()) }
    }

    /// The clients for an access, made at the first call. Sends nothing.
    pub async fn clients(&self, access: &Access) -> Clients {
        let mut made = self.made.lock().await;
        if let Some(clients) = made.get(access) {
            return clients.clone();
        }
        // Reading the machine's configuration takes a large future, once.
        let clients = Box::pin(self.make(access)).await;
        made.insert(access.clone(), clients.clone());
        clients
    }

    /// The credentials for an access; `None` when the chain has none to try.
    pub async fn credentials(&self, access: &Access) -> Option<SharedCredentialsProvider> {
        self.with_role(access).await.credentials_provider()
    }

    async fn make(&self, access: &Access) -> Clients {
        let config = self.with_role(access).await;
        let with_endpoint = |endpoint: &Option<String>| match endpoint {
            Some(url) => config.to_builder().endpoint_url(url).build(),
            None => config.clone(),
        };
        let streams = access.streams_endpoint.as_ref().or(access.endpoint.as_ref()).cloned();
        Clients {
            tables: aws_sdk_dynamodb::Client::new(&with_endpoint(&access.endpoint)),
            streams: aws_sdk_dynamodbstreams::Client::new(&with_endpoint(&streams)),
        }
    }

    /// With the credentials of the access's role, when it has one.
    async fn with_role(&self, access: &Access) -> SdkConfig {
        let config = self.sdk_config(access).await;
        match &access.assume_role {
            None => config,
            Some(role) => {
                let sts = match &role.sts_endpoint {
                    Some(endpoint) => config.to_builder().endpoint_url(endpoint).build(),
                    None => config.clone(),
                };
                let mut provider = AssumeRoleProvider::builder(&role.role_arn)
                    .session_name(&role.session_name)
                    .session_length(role.duration)
                    .region(Region::new(access.region.clone()))
                    .configure(&sts);
                if let Some(id) = &role.external_id {
                    provider = provider.external_id(id);
                }
                let provider = SharedCredentialsProvider::new(provider.build().await);
                config.to_builder().credentials_provider(provider).build()
            }
        }
    }

    /// The part that is the same for DynamoDB, its streams and STS; no endpoint.
    async fn sdk_config(&self, access: &Access) -> SdkConfig {
        let timeout = self.base.request_timeout.unwrap_or(REQUEST_TIMEOUT);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(timeout)
            .operation_attempt_timeout(timeout)
            .operation_timeout(timeout)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(Region::new(access.region.clone()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            // One regional endpoint for all accounts: what proxies, VPC endpoints and firewalls are set up for.
            .account_id_endpoint_mode(AccountIdEndpointMode::Disabled)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Ok(name) = AppName::new("shardwalker") {
            loader = loader.app_name(name);
        }
        if let Some(http) = &self.base.http {
            loader = loader.http_client(http.clone());
        }
        if let Some(credentials) = &self.base.credentials {
            loader = loader.credentials_provider(credentials.clone());
        } else if let Some(profile) = &access.profile {
            // The default chain would take keys of the environment before it.
            let mut about = ProviderConfig::default().with_region(Some(Region::new(access.region.clone())));
            if let Some(http) = &self.base.http {
                about = about.with_http_client(http.clone());
            }
            let provider = ProfileFileCredentialsProvider::builder().configure(&about).profile_name(profile);
            loader = loader.profile_name(profile).credentials_provider(provider.build());
        }
        loader.load().await
    }
}
