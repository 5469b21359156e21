//! What a failed AWS call means: its class, what happens then, and what the operator should do.
//!
//! Classification is by the service's error code, the same for every operation, in one exhaustive place. A
//! failure knows nothing of retries; [`crate::retry`] and the rooms that call decide by the [`Class`].

use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use std::error::Error;
use std::fmt;

/// What a failure means for the call that met it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The service refused for load; nothing happened. Slow down, try again.
    Throttled,
    /// Nothing happened, and the same call may go through later (a conflict with a transaction).
    Transient,
    /// Whether it happened is unknown: a timeout, a broken connection, an internal error.
    Unknown,
    /// The caller may not do this. Policies arrive late, so it is tried again, slowly.
    Denied,
    /// The caller's credentials are expired, unknown, or could not be had.
    Credentials,
    /// The table, stream or shard does not exist.
    NotFound,
    /// The condition of a conditional write did not hold: a normal outcome.
    Condition,
    /// This very request can never succeed: an item too large, a value that the table refuses.
    Invalid,
    /// A shard iterator that is too old.
    IteratorExpired,
    /// A position in a stream whose records are gone.
    Trimmed,
    /// An error code that this build does not know.
    Unrecognised,
}

/// What is done about a failure of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Try again soon, with growing pauses.
    RetrySoon,
    /// Try again slowly and say so: only an operator or time will mend it.
    RetrySlowly,
    /// Give it back to the caller, who knows what to do.
    GiveBack,
}

impl Class {
    /// All classes, for metrics.
    pub const ALL: [Self; 11] = [
        Self::Throttled,
        Self::Transient,
        Self::Unknown,
        Self::Denied,
        Self::Credentials,
        Self::NotFound,
        Self::Condition,
        Self::Invalid,
        Self::IteratorExpired,
        Self::Trimmed,
        Self::Unrecognised,
    ];

    /// What is done about it.
    #[must_use]
    pub const fn action(self) -> Action {
        match self {
            Self::Throttled | Self::Transient | Self::Unknown => Action::RetrySoon,
            Self::Denied | Self::Credentials | Self::NotFound | Self::Unrecognised => Action::RetrySlowly,
            Self::Condition | Self::Invalid | Self::IteratorExpired | Self::Trimmed => Action::GiveBack,
        }
    }

    /// What is done about it where nobody above could do better than to try again.
    #[must_use]
    pub const fn insist(self) -> Action {
        match self.action() {
            Action::GiveBack => Action::RetrySlowly,
            action => action,
        }
    }

    /// The label in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::Transient => "transient",
            Self::Unknown => "unknown-outcome",
            Self::Denied => "denied",
            Self::Credentials => "credentials",
            Self::NotFound => "not-found",
            Self::Condition => "condition",
            Self::Invalid => "invalid",
            Self::IteratorExpired => "iterator-expired",
            Self::Trimmed => "trimmed",
            Self::Unrecognised => "unrecognised",
        }
    }

    /// What an operator should do about failures that stay.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Throttled => "raise the table's capacity, or wait: the rate adapts by itself",
            Self::Transient => "nothing: it is tried again",
            Self::Unknown => "check the network path and the service's health; writes are tried again safely",
            Self::Denied => {
                "allow the action on both sides: the caller's identity policy and the resource policy"
            }
            Self::Credentials => "check the credentials, the role's trust policy and the external id",
            Self::NotFound => {
                "check that the table exists and that its stream is on, under the ARN in the config"
            }
            Self::Condition => "nothing: a newer version is already there",
            Self::Invalid => "look at the dead letter: the peer refuses this item",
            Self::IteratorExpired => "nothing: the iterator is opened anew",
            Self::Trimmed => "records were lost: mend it with shardwalker verify, --repair",
            Self::Unrecognised => "look up the error code; this version of shardwalker does not know it",
        }
    }

    fn of_code(code: &str) -> Option<Self> {
        Some(match code {
            "ProvisionedThroughputExceededException"
            | "ThrottlingException"
            | "Throttling"
            | "RequestLimitExceeded"
            | "LimitExceededException"
            | "TooManyRequestsException"
            | "SlowDown" => Self::Throttled,
            "TransactionConflictException"
            | "ReplicatedWriteConflictException"
            | "TransactionInProgressException"
            | "ResourceInUseException" => Self::Transient,
            "InternalServerError"
            | "InternalFailure"
            | "InternalServerException"
            | "ServiceUnavailable"
            | "ServiceUnavailableException"
            | "RequestTimeout" => Self::Unknown,
            "AccessDeniedException" | "AccessDenied" | "UnauthorizedOperation" => Self::Denied,
            "ExpiredTokenException"
            | "ExpiredToken"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "IncompleteSignature"
            | "MissingAuthenticationTokenException"
            | "MissingAuthenticationToken" => Self::Credentials,
            "ResourceNotFoundException" | "TableNotFoundException" => Self::NotFound,
            "ConditionalCheckFailedException" => Self::Condition,
            "ValidationException" | "ItemCollectionSizeLimitExceededException" => Self::Invalid,
            "ExpiredIteratorException" => Self::IteratorExpired,
            "TrimmedDataAccessException" => Self::Trimmed,
            _ => return None,
        })
    }
}

/// The code of a call that had no answer in time.
pub const TIMEOUT: &str = "Timeout";

/// A failed call: its class, and what the service said. Never holds values of items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What it means.
    pub class: Class,
    /// The service's error code, or what broke below it.
    pub code: String,
    /// The service's message, with the throttling reason when it gave one.
    pub message: String,
}

impl Failure {
    /// A failure that did not come from the SDK.
    #[must_use]
    pub fn new(class: Class, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { class, code: code.into(), message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl Error for Failure {}

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        match &error {
            SdkError::ServiceError(context) => {
                let status = context.raw().status().as_u16();
                let error = context.err();
                let code = error.code().unwrap_or("");
                let by_status = if status >= 500 { Class::Unknown } else { Class::Unrecognised };
                let class = Class::of_code(code).unwrap_or(by_status);
                let code = if code.is_empty() { format!("HTTP {status}") } else { code.to_owned() };
                Self { class, code, message: error.message().unwrap_or_default().to_owned() }
            }
            SdkError::TimeoutError(_) => Self::new(Class::Unknown, TIMEOUT, "no answer in time"),
            SdkError::DispatchFailure(failure) => {
                let connector = failure.as_connector_error();
                let on_the_wire = connector.is_some_and(|e| e.is_io() || e.is_timeout());
                let text = chain(&error);
                // The credentials are asked for before the request is sent.
                let class = if on_the_wire { Class::Unknown } else { Class::Credentials };
                Self::new(class, if on_the_wire { "Connection" } else { "Credentials" }, text)
            }
            SdkError::ResponseError(context) => {
                let status = context.raw().status().as_u16();
                Self::new(Class::Unknown, format!("HTTP {status}"), chain(&error))
            }
            SdkError::ConstructionFailure(_) => Self::new(Class::Invalid, "Request", chain(&error)),
            _ => Self::new(Class::Unrecognised, "Sdk", chain(&error)),
        }
    }
}

/// The messages of an error and its sources, without repetitions.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = Class::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Class::ALL.len());
    }

    #[test]
    fn chains_are_joined_without_repetitions() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: inner")]
        struct Outer(#[source] Inner);
        #[derive(Debug, thiserror::Error)]
        #[error("inner")]
        struct Inner(#[source] std::fmt::Error);
        let text = chain(&Outer(Inner(std::fmt::Error)));
        assert!(text.starts_with("outer: inner: an error"), "{text}");
    }
}
