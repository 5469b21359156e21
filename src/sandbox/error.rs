//! Errors as AWS puts them on the wire.
//!
//! Owns codes, HTTP statuses and both spellings (JSON for DynamoDB, XML for IAM and STS); what happened and
//! its wording is the business of whoever raises one.

use serde_json::{Map, Value, json};

/// An error answer of the sandbox.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// The bare code, such as `ResourceNotFoundException`.
    pub code: String,
    /// AWS's words.
    pub message: String,
    /// Further members of the JSON body.
    pub details: Map<String, Value>,
}

/// What every operation of the sandbox answers.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error with status 400.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { status: 400, code: code.into(), message: message.into(), details: Map::new() }
    }

    /// The request breaks a rule of the API.
    pub fn validation(message: impl Into<String>) -> Self {
        Self::new("ValidationException", message)
    }

    /// The table, stream or shard is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new("ResourceNotFoundException", message)
    }

    /// A fault of the server: the outcome is unknown to the caller.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { status: 500, ..Self::new("InternalServerError", message) }
    }

    /// The same error with another HTTP status.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// The same error with one more member in its JSON body.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.details.insert(name.into(), value);
        self
    }

    /// The JSON body, as DynamoDB spells it.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let namespace = match self.code.as_str() {
            "AccessDeniedException"
            | "ExpiredTokenException"
            | "IncompleteSignatureException"
            | "InvalidSignatureException"
            | "MissingAuthenticationTokenException"
            | "SerializationException"
            | "UnknownOperationException"
            | "UnrecognizedClientException" => "com.amazon.coral.service",
            "ThrottlingException" => "com.amazon.coral.availability",
            "ValidationException" => "com.amazon.coral.validate",
            _ => "com.amazonaws.dynamodb.v20120810",
        };
        let message = match self.code.as_str() {
            "AccessDeniedException" | "SerializationException" | "TransactionCanceledException" => "Message",
            _ => "message",
        };
        let mut body = Map::new();
        body.insert("__type".into(), json!(format!("{namespace}#{}", self.code)));
        body.insert(message.into(), json!(self.message));
        body.extend(self.details.clone());
        Value::Object(body).to_string().into_bytes()
    }

    /// The XML body, as the Query protocol of IAM and STS spells it.
    #[must_use]
    pub fn to_xml(&self, namespace: &str, request_id: &str) -> Vec<u8> {
        let code = match self.code.as_str() {
            // The Query protocol has other names for the same things.
            "AccessDeniedException" => "AccessDenied",
            "ExpiredTokenException" => "ExpiredToken",
            "InvalidSignatureException" => "SignatureDoesNotMatch",
            "MissingAuthenticationTokenException" => "MissingAuthenticationToken",
            "UnrecognizedClientException" => "InvalidClientTokenId",
            "ValidationException" => "ValidationError",
            "ThrottlingException" => "Throttling",
            other => other,
        };
        let kind = if self.status < 500 { "Sender" } else { "Receiver" };
        let message = xml_escape(&self.message);
        format!(
            "<ErrorResponse xmlns=\"{namespace}\"><Error><Type>{kind}</Type><Code>{code}</Code>\
             <Message>{message}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
        )
        .into_bytes()
    }
}

/// Text as the content of an XML element.
#[must_use]
pub fn xml_escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
