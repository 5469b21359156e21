//! The table engine's edge: JSON in, JSON out, its errors in the gateway's form.
//!
//! Owns everything that is particular to the engine: how it marks what its decoder refuses, and the rendering of
//! items in an order that does not depend on hash maps.

use crate::sandbox::error::{ApiError, ApiResult};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dynoxide::{AttributeValue, DynoxideError, Item};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;

/// Reads a request as the engine's type.
///
/// # Errors
/// What DynamoDB says of a body like this.
pub fn read<T: DeserializeOwned>(operation: &str, body: Value) -> ApiResult<T> {
    serde_json::from_value(body).map_err(|error| refused(operation, &error.to_string()))
}

/// The engine's decoder marks the class of its refusals in the text.
fn refused(operation: &str, text: &str) -> ApiError {
    let serialization = |message: &str| ApiError::new("SerializationException", message);
    if let Some(message) = text.strip_prefix("VALIDATION_REQUEST:") {
        let enveloped = matches!(operation, "PutItem" | "UpdateItem" | "DeleteItem");
        let prefix = if enveloped { "1 validation error detected: " } else { "" };
        return ApiError::validation(format!("{prefix}{message}"));
    }
    for marker in ["VALIDATION_AS_READ:", "VALIDATION:"] {
        if let Some(message) = text.strip_prefix(marker) {
            return ApiError::validation(message);
        }
    }
    for marker in ["SERIALIZATION_AS_READ:", "SERIALIZATION:"] {
        if let Some(message) = text.strip_prefix(marker) {
            return serialization(message);
        }
    }
    if text.contains("empty AttributeValue") {
        return ApiError::validation(
            "Supplied AttributeValue is empty, must contain exactly one of the supported datatypes",
        );
    }
    let bad_value = ["Supplied AttributeValue", "missing field", "unknown variant", "invalid type: null"];
    if bad_value.iter().any(|sign| text.contains(sign)) {
        return ApiError::validation(text);
    }
    serialization(text)
}

/// Writes an answer of the engine.
///
/// # Errors
/// Only if it cannot be written as JSON.
pub fn write(answer: &impl Serialize) -> ApiResult<Vec<u8>> {
    serde_json::to_vec(answer).map_err(|error| ApiError::internal(error.to_string()))
}

impl From<DynoxideError> for ApiError {
    fn from(error: DynoxideError) -> Self {
        let code = error.error_type();
        let code = code.rsplit('#').next().unwrap_or(code);
        let mut answer = Self::new(code, error.to_string()).with_status(error.status_code());
        let details = match &error {
            DynoxideError::ConditionalCheckFailedException(_, Some(item)) => {
                Some(("Item", serde_json::to_value(item)))
            }
            DynoxideError::TransactionCanceledException(_, reasons) => {
                Some(("CancellationReasons", serde_json::to_value(reasons)))
            }
            _ => None,
        };
        if let Some((name, Ok(value))) = details {
            answer = answer.with(name, value);
        }
        answer
    }
}

/// An item as DynamoDB JSON, its attributes in order of name: equal items render alike.
pub fn render_item(item: &Item, out: &mut Vec<u8>) {
    let mut attributes: Vec<_> = item.iter().collect();
    attributes.sort_unstable_by(|a, b| a.0.cmp(b.0));
    out.push(b'{');
    for (index, (name, value)) in attributes.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        render_string(name, out);
        out.push(b':');
        render_value(value, out);
    }
    out.push(b'}');
}

/// A value as DynamoDB JSON.
pub fn render_value(value: &AttributeValue, out: &mut Vec<u8>) {
    let open = |kind: &str, out: &mut Vec<u8>| {
        out.extend_from_slice(b"{\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\":");
    };
    open(value.type_name(), out);
    match value {
        AttributeValue::S(text) | AttributeValue::N(text) => render_string(text, out),
        AttributeValue::B(bytes) => render_string(&STANDARD.encode(bytes), out),
        AttributeValue::BOOL(flag) | AttributeValue::NULL(flag) => {
            out.extend_from_slice(if *flag { b"true" } else { b"false" });
        }
        AttributeValue::SS(set) | AttributeValue::NS(set) => {
            render_list(set, out, |text, out| render_string(text, out));
        }
        AttributeValue::BS(set) => {
            render_list(set, out, |bytes, out| render_string(&STANDARD.encode(bytes), out));
        }
        AttributeValue::L(list) => render_list(list, out, render_value),
        AttributeValue::M(map) => render_item(map, out),
    }
    out.push(b'}');
}

fn render_list<T>(list: &[T], out: &mut Vec<u8>, mut each: impl FnMut(&T, &mut Vec<u8>)) {
    out.push(b'[');
    for (index, element) in list.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        each(element, out);
    }
    out.push(b']');
}

fn render_string(text: &str, out: &mut Vec<u8>) {
    if text.bytes().any(|b| b < 0x20 || b == b'"' || b == b'\\') {
        out.extend_from_slice(Value::from(text).to_string().as_bytes());
    } else {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    }
}

/// The size of an item as DynamoDB counts it, in bytes.
#[must_use]
pub fn item_size(item: &Item) -> usize {
    dynoxide::types::item_size(item)
}

/// An item as JSON, in order of name.
#[must_use]
pub fn item_json(item: &Item) -> Value {
    let ordered: BTreeMap<_, _> = item.iter().collect();
    serde_json::to_value(ordered).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rendering_is_ordered_and_reads_back() {
        let value = json!({
            "b": {"S": "line\n\"quoted\" \\"}, "a": {"N": "1.5"}, "z": {"NULL": true}, "t": {"BOOL": false},
            "bin": {"B": "AAEC"}, "ss": {"SS": ["x", "y"]}, "bs": {"BS": ["AA==", "AQ=="]},
            "m": {"M": {"q": {"L": [{"S": ""}, {"M": {}}]}}}
        });
        let item: Item = read("PutItem", value.clone()).unwrap();
        let mut rendered = Vec::new();
        render_item(&item, &mut rendered);
        assert_eq!(serde_json::from_slice::<Value>(&rendered).unwrap(), value);
        assert!(rendered.starts_with(b"{\"a\":{\"N\":\"1.5\"},\"b\":"));
    }
}
