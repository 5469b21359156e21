//! DynamoDB JSON: items as text that every tool of the field reads (`{"id": {"S": "a"}}`).
//!
//! Exact in both directions: numbers stay text, binaries are base64.

use crate::item::Item;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

/// A text that is not DynamoDB JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not DynamoDB JSON: {0}")]
pub struct BadJson(String);

/// An item as DynamoDB JSON.
#[must_use]
pub fn from_item(item: &Item) -> Value {
    Value::Object(item.0.iter().map(|(name, value)| (name.clone(), from_value(value))).collect())
}

/// An item out of DynamoDB JSON.
///
/// # Errors
/// When the value is not an object of typed values; says which attribute.
pub fn to_item(value: &Value) -> Result<Item, BadJson> {
    let object = value.as_object().ok_or_else(|| BadJson("an item is an object".to_owned()))?;
    let attribute = |(name, value): (&String, &Value)| {
        let value = to_value(value).ok_or_else(|| BadJson(format!("attribute {name:?}")))?;
        Ok((name.clone(), value))
    };
    Ok(Item(object.iter().map(attribute).collect::<Result<_, _>>()?))
}

fn from_value(value: &AttributeValue) -> Value {
    let base64 = |bytes: &Blob| BASE64.encode(bytes.as_ref());
    match value {
        AttributeValue::S(text) => json!({ "S": text }),
        AttributeValue::N(number) => json!({ "N": number }),
        AttributeValue::B(bytes) => json!({ "B": base64(bytes) }),
        AttributeValue::Bool(flag) => json!({ "BOOL": flag }),
        AttributeValue::Null(flag) => json!({ "NULL": flag }),
        AttributeValue::Ss(set) => json!({ "SS": set }),
        AttributeValue::Ns(set) => json!({ "NS": set }),
        AttributeValue::Bs(set) => json!({ "BS": set.iter().map(base64).collect::<Vec<_>>() }),
        AttributeValue::L(list) => json!({ "L": list.iter().map(from_value).collect::<Vec<_>>() }),
        AttributeValue::M(map) => {
            let map: Map<_, _> = map.iter().map(|(name, value)| (name.clone(), from_value(value))).collect();
            json!({ "M": map })
        }
        // Decoding refuses values of unknown type.
        _ => Value::Null,
    }
}

fn to_value(value: &Value) -> Option<AttributeValue> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    let (kind, value) = object.iter().next()?;
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let bytes = |v: &Value| Some(Blob::new(BASE64.decode(v.as_str()?).ok()?));
    let all = |v: &Value| v.as_array()?.iter().map(text).collect::<Option<Vec<_>>>();
    Some(match kind.as_str() {
        "S" => AttributeValue::S(text(value)?),
        "N" => AttributeValue::N(text(value)?),
        "B" => AttributeValue::B(bytes(value)?),
        "BOOL" => AttributeValue::Bool(value.as_bool()?),
        "NULL" => AttributeValue::Null(value.as_bool()?),
        "SS" => AttributeValue::Ss(all(value)?),
        "NS" => AttributeValue::Ns(all(value)?),
        "BS" => AttributeValue::Bs(value.as_array()?.iter().map(bytes).collect::<Option<_>>()?),
        "L" => AttributeValue::L(value.as_array()?.iter().map(to_value).collect::<Option<_>>()?),
        "M" => AttributeValue::M(to_item(value).ok()?.0),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ten_types_survive() {
        let text = json!({
            "s": { "S": "" }, "n": { "N": "12345678901234567890123456789012345678" }, "b": { "B": "AP8=" },
            "t": { "BOOL": true }, "0": { "NULL": true }, "ss": { "SS": ["a", "b"] }, "ns": { "NS": ["1"] },
            "bs": { "BS": [""] }, "l": { "L": [{ "M": { "x": { "L": [] } } }] }, "m": { "M": {} }
        });
        assert_eq!(from_item(&to_item(&text).unwrap()), text);
    }

    #[test]
    fn what_is_not_an_item_is_refused_with_the_attribute() {
        for bad in [json!({ "a": 1 }), json!({ "a": { "S": 1 } }), json!({ "a": { "S": "x", "N": "1" } })] {
            assert_eq!(to_item(&bad), Err(BadJson("attribute \"a\"".to_owned())));
        }
        assert!(to_item(&json!([])).is_err());
    }
}
