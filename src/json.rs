//! DynamoDB JSON: items as text that every tool of the field reads (`{"id": {"S": "a"}}`).
//!
//! Exact in both directions: numbers stay text, binaries are base64. Reading is by serde, from any text or value: the
//! pages of a stream come through here too.

use crate::item::Item;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fmt;

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
    Item::deserialize(value).map_err(|error| BadJson(error.to_string()))
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

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of typed values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
        // JSON does not say how many there are, and growing step by step costs more than some empty room.
        let mut item = HashMap::with_capacity(map.size_hint().unwrap_or(12));
        while let Some(name) = map.next_key::<String>()? {
            match map.next_value::<Typed>() {
                Ok(Typed(value)) => item.insert(name, value),
                Err(error) => return Err(de::Error::custom(format_args!("attribute {name:?}: {error}"))),
            };
        }
        Ok(Item(item))
    }
}

/// A value with its type: `{"S": "a"}`.
struct Typed(AttributeValue);

/// The types of DynamoDB.
#[derive(Deserialize)]
#[expect(clippy::upper_case_acronyms, reason = "as DynamoDB names them")]
enum Kind {
    S,
    N,
    B,
    BOOL,
    NULL,
    SS,
    NS,
    BS,
    L,
    M,
}

impl<'de> Deserialize<'de> for Typed {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(TypedVisitor)
    }
}

struct TypedVisitor;

impl<'de> Visitor<'de> for TypedVisitor {
    type Value = Typed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value with its type, such as {\"S\": \"text\"}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Typed, A::Error> {
        let kind = map.next_key()?.ok_or_else(|| de::Error::custom("a value without a type"))?;
        let value = match kind {
            Kind::S => AttributeValue::S(map.next_value()?),
            Kind::N => AttributeValue::N(map.next_value()?),
            Kind::B => AttributeValue::B(map.next_value::<Bytes>()?.0),
            Kind::BOOL => AttributeValue::Bool(map.next_value()?),
            Kind::NULL => AttributeValue::Null(map.next_value()?),
            Kind::SS => AttributeValue::Ss(map.next_value()?),
            Kind::NS => AttributeValue::Ns(map.next_value()?),
            Kind::BS => {
                AttributeValue::Bs(map.next_value::<Vec<Bytes>>()?.into_iter().map(|b| b.0).collect())
            }
            Kind::L => AttributeValue::L(map.next_value::<Vec<Typed>>()?.into_iter().map(|v| v.0).collect()),
            Kind::M => AttributeValue::M(map.next_value::<Item>()?.0),
        };
        match map.next_key::<IgnoredAny>()? {
            None => Ok(Typed(value)),
            Some(_) => Err(de::Error::custom("a value of two types")),
        }
    }
}

struct Bytes(Blob);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Base64;
        impl Visitor<'_> for Base64 {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                BASE64.decode(text).map(|bytes| Bytes(Blob::new(bytes))).map_err(E::custom)
            }
        }
        from.deserialize_str(Base64)
    }
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
            let why = to_item(&bad).unwrap_err().to_string();
            assert!(why.starts_with("not DynamoDB JSON: attribute \"a\": "), "{why}");
        }
        assert!(to_item(&json!([])).is_err());
    }
}
