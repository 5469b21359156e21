//! Items as they are looked at: names and values that are borrowed from the text or the item which holds them.
//!
//! Owns what all forms of an item have in common: how its text (DynamoDB JSON) is read, its canonical bytes, and its
//! size. In the canonical bytes attributes are sorted by name, sets are sorted, numbers are in canonical decimal and every
//! part has its type and length: two items have the same [`Digest`] exactly when DynamoDB holds the same value, however a
//! client or the service writes it down.

use crate::item::{Digest, Item};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum View<'a> {
    /// Text.
    S(Cow<'a, str>),
    /// The digits of a number.
    N(Cow<'a, str>),
    /// Bytes.
    B(Cow<'a, [u8]>),
    /// A flag.
    Bool(bool),
    /// Null; DynamoDB lets it be true only.
    Null(bool),
    /// Values in order.
    L(Vec<View<'a>>),
    /// Values by name.
    M(Fields<'a>),
    /// A set of texts.
    Ss(Vec<Cow<'a, str>>),
    /// A set of numbers.
    Ns(Vec<Cow<'a, str>>),
    /// A set of bytes.
    Bs(Vec<Cow<'a, [u8]>>),
    /// Of a type that the SDK gave and that this build does not know. DynamoDB refuses what is made of it.
    Unknown,
}

/// Values by name: an item, or a map in one. Sorted by name, and no name is there twice.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fields<'a>(Vec<(Cow<'a, str>, View<'a>)>);

impl<'a> Fields<'a> {
    /// What an item or a map holds.
    #[must_use]
    pub fn of(map: &'a HashMap<String, AttributeValue>) -> Self {
        let field = |(name, value): (&'a String, _)| (Cow::Borrowed(name.as_str()), View::of(value));
        let mut fields: Vec<_> = map.iter().map(field).collect();
        fields.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Self(fields)
    }

    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&View<'a>> {
        let at = self.0.binary_search_by(|(other, _)| (**other).cmp(name)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// Takes a value out.
    pub fn take(&mut self, name: &str) -> Option<View<'a>> {
        let at = self.0.binary_search_by(|(other, _)| (**other).cmp(name)).ok()?;
        Some(self.0.remove(at).1)
    }

    /// Names and values, in the order of the names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &View<'a>)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    /// The digest of the canonical bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut bytes = Vec::with_capacity(1024);
        self.feed(&mut bytes);
        Digest::from(&blake3::hash(&bytes))
    }

    /// Bytes that DynamoDB counts, near enough for bounds on memory.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.size()).sum()
    }

    /// The same as the SDK takes it.
    #[must_use]
    pub fn to_item(&self) -> Item {
        Item(self.0.iter().map(|(name, value)| (name.clone().into_owned(), value.to_value())).collect())
    }

    fn feed(&self, out: &mut Vec<u8>) {
        feed_count(self.0.len(), out);
        for (name, value) in &self.0 {
            feed_bytes(name.as_bytes(), out);
            value.feed(out);
        }
    }
}

impl<'a> View<'a> {
    /// A value of the SDK's.
    #[must_use]
    pub fn of(value: &'a AttributeValue) -> Self {
        let texts = |set: &'a [String]| set.iter().map(|text| Cow::Borrowed(text.as_str())).collect();
        match value {
            AttributeValue::S(text) => Self::S(Cow::Borrowed(text)),
            AttributeValue::N(digits) => Self::N(Cow::Borrowed(digits)),
            AttributeValue::B(bytes) => Self::B(Cow::Borrowed(bytes.as_ref())),
            AttributeValue::Bool(flag) => Self::Bool(*flag),
            AttributeValue::Null(flag) => Self::Null(*flag),
            AttributeValue::L(list) => Self::L(list.iter().map(Self::of).collect()),
            AttributeValue::M(map) => Self::M(Fields::of(map)),
            AttributeValue::Ss(set) => Self::Ss(texts(set)),
            AttributeValue::Ns(set) => Self::Ns(texts(set)),
            AttributeValue::Bs(set) => {
                Self::Bs(set.iter().map(|bytes| Cow::Borrowed(bytes.as_ref())).collect())
            }
            _ => Self::Unknown,
        }
    }

    /// The same as the SDK takes it.
    #[must_use]
    pub fn to_value(&self) -> AttributeValue {
        let texts = |set: &[Cow<'_, str>]| set.iter().map(|text| text.clone().into_owned()).collect();
        let blob = |bytes: &[u8]| Blob::new(bytes);
        match self {
            Self::S(text) => AttributeValue::S(text.clone().into_owned()),
            Self::N(digits) => AttributeValue::N(digits.clone().into_owned()),
            Self::B(bytes) => AttributeValue::B(blob(bytes)),
            Self::Bool(flag) => AttributeValue::Bool(*flag),
            Self::Null(flag) => AttributeValue::Null(*flag),
            Self::L(list) => AttributeValue::L(list.iter().map(Self::to_value).collect()),
            Self::M(fields) => AttributeValue::M(fields.to_item().0),
            Self::Ss(set) => AttributeValue::Ss(texts(set)),
            Self::Ns(set) => AttributeValue::Ns(texts(set)),
            Self::Bs(set) => AttributeValue::Bs(set.iter().map(|bytes| blob(bytes)).collect()),
            // DynamoDB refuses it: nothing is written in its place.
            Self::Unknown => AttributeValue::Null(false),
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::S(text) => text.len(),
            Self::N(digits) => digits.len() / 2 + 2,
            Self::B(bytes) => bytes.len(),
            Self::Bool(_) | Self::Null(_) | Self::Unknown => 1,
            Self::L(list) => 3 + list.iter().map(|value| 1 + value.size()).sum::<usize>(),
            Self::M(fields) => 3 + fields.0.len() + fields.size(),
            Self::Ss(set) => set.iter().map(|text| text.len()).sum(),
            Self::Ns(set) => set.iter().map(|digits| digits.len() / 2 + 2).sum(),
            Self::Bs(set) => set.iter().map(|bytes| bytes.len()).sum(),
        }
    }

    fn feed(&self, out: &mut Vec<u8>) {
        match self {
            Self::S(text) => feed_tagged(b'S', text.as_bytes(), out),
            Self::N(digits) => feed_tagged(b'N', &canonical_number(digits), out),
            Self::B(bytes) => feed_tagged(b'B', bytes, out),
            Self::Bool(flag) => out.push(if *flag { b'T' } else { b'F' }),
            Self::Null(_) => out.push(b'0'),
            Self::L(list) => {
                out.push(b'L');
                feed_count(list.len(), out);
                list.iter().for_each(|value| value.feed(out));
            }
            Self::M(fields) => {
                out.push(b'M');
                fields.feed(out);
            }
            Self::Ss(set) => feed_set(b's', set.iter().map(|text| Cow::Borrowed(text.as_bytes())), out),
            Self::Ns(set) => {
                feed_set(b'n', set.iter().map(|digits| Cow::Owned(canonical_number(digits))), out)
            }
            Self::Bs(set) => feed_set(b'b', set.iter().map(|bytes| Cow::Borrowed(&**bytes)), out),
            Self::Unknown => out.push(b'?'),
        }
    }
}

fn feed_set<'s>(tag: u8, members: impl Iterator<Item = Cow<'s, [u8]>>, out: &mut Vec<u8>) {
    let mut members: Vec<_> = members.collect();
    members.sort_unstable();
    out.push(tag);
    feed_count(members.len(), out);
    for member in members {
        feed_bytes(&member, out);
    }
}

fn feed_tagged(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    feed_bytes(bytes, out);
}

fn feed_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    feed_count(bytes.len(), out);
    out.extend_from_slice(bytes);
}

fn feed_count(count: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&(count as u64).to_le_bytes());
}

/// A decimal number as sign, digits without zeros at either end, and the exponent of the last digit. What is
/// not a decimal number stays as it is, marked.
fn canonical_number(text: &str) -> Vec<u8> {
    fn parts(text: &str) -> Option<Vec<u8>> {
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (rest, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = || whole.bytes().chain(fraction.bytes());
        if digits().next().is_none() || !digits().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let count = whole.len() + fraction.len();
        let mut exponent = exponent.checked_sub(i64::try_from(fraction.len()).ok()?)?;
        let Some(first) = digits().position(|digit| digit != b'0') else { return Some(b"0".to_vec()) };
        let zeros = digits().rev().take_while(|digit| *digit == b'0').count();
        exponent += i64::try_from(zeros).ok()?;
        let mut out = Vec::with_capacity(count + 8);
        out.push(if negative { b'-' } else { b'+' });
        out.extend(digits().take(count - zeros).skip(first));
        out.push(b'e');
        out.extend_from_slice(exponent.to_string().as_bytes());
        Some(out)
    }
    parts(text).unwrap_or_else(|| [b"!", text.as_bytes()].concat())
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of typed values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        // JSON does not say how many there are, and growing step by step costs more than some empty room.
        let mut fields = Vec::with_capacity(map.size_hint().unwrap_or(8));
        let mut sorted = true;
        while let Some(Text(name)) = map.next_key()? {
            match map.next_value() {
                Ok(value) => {
                    sorted &= fields.last().is_none_or(|(last, _)| *last < name);
                    fields.push((name, value));
                }
                Err(error) => return Err(de::Error::custom(format_args!("attribute {name:?}: {error}"))),
            };
        }
        if !sorted {
            fields.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            if let Some(twice) = fields.windows(2).find(|two| two[0].0 == two[1].0) {
                return Err(de::Error::custom(format_args!("attribute {:?} is there twice", twice[0].0)));
            }
        }
        Ok(Fields(fields))
    }
}

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

impl<'de: 'a, 'a> Deserialize<'de> for View<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(ViewVisitor)
    }
}

struct ViewVisitor;

impl<'de> Visitor<'de> for ViewVisitor {
    type Value = View<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value with its type, such as {\"S\": \"text\"}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<View<'de>, A::Error> {
        let kind = map.next_key()?.ok_or_else(|| de::Error::custom("a value without a type"))?;
        let texts = |set: Vec<Text<'de>>| set.into_iter().map(|text| text.0).collect();
        let value = match kind {
            Kind::S => View::S(map.next_value::<Text<'_>>()?.0),
            Kind::N => View::N(map.next_value::<Text<'_>>()?.0),
            Kind::B => View::B(map.next_value::<Bytes>()?.0.into()),
            Kind::BOOL => View::Bool(map.next_value()?),
            Kind::NULL => View::Null(map.next_value()?),
            Kind::SS => View::Ss(texts(map.next_value()?)),
            Kind::NS => View::Ns(texts(map.next_value()?)),
            Kind::BS => {
                View::Bs(map.next_value::<Vec<Bytes>>()?.into_iter().map(|bytes| bytes.0.into()).collect())
            }
            Kind::L => View::L(map.next_value()?),
            Kind::M => View::M(map.next_value()?),
        };
        match map.next_key::<IgnoredAny>()? {
            None => Ok(value),
            Some(_) => Err(de::Error::custom("a value of two types")),
        }
    }
}

/// Text that is borrowed where it can be.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_str(TextVisitor)
    }
}

struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Base64;
        impl Visitor<'_> for Base64 {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                BASE64.decode(text).map(Bytes).map_err(E::custom)
            }
        }
        from.deserialize_str(Base64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_attribute_that_is_there_twice_is_refused() {
        let read =
            |text: &str| serde_json::from_str::<Fields<'_>>(text).map(|_| ()).map_err(|e| e.to_string());
        read(r#"{"b":{"S":"1"},"a":{"S":"2"}}"#).unwrap();
        let why = read(r#"{"a":{"S":"1"},"b":{"S":"2"},"a":{"S":"3"}}"#).unwrap_err();
        assert!(why.contains("\"a\" is there twice"), "{why}");
        let why = read(r#"{"m":{"M":{"x":{"N":"1"},"x":{"N":"2"}}}}"#).unwrap_err();
        assert!(why.contains("\"x\" is there twice"), "{why}");
    }

    #[test]
    fn values_are_found_by_their_names() {
        let text = r#"{"b":{"S":"1"},"c":{"N":"2"},"a":{"BOOL":true}}"#;
        let mut fields: Fields<'_> = serde_json::from_str(text).unwrap();
        assert_eq!(fields.get("c"), Some(&View::N("2".into())));
        assert_eq!(fields.get("d"), None);
        assert_eq!(fields.take("b"), Some(View::S("1".into())));
        assert_eq!(fields.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "c"]);
    }

    proptest! {
        #[test]
        fn shifting_zeros_changes_nothing(digits in "[1-9][0-9]{0,36}", shift in 0usize..20) {
            let plain = canonical_number(&digits);
            let shifted = format!("{digits}{}e-{shift}", "0".repeat(shift));
            prop_assert_eq!(canonical_number(&shifted), plain);
        }
    }
}
