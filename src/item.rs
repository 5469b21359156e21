//! Items, keys and digests.
//!
//! Owns the canonical bytes of an item: attributes sorted by name, sets sorted, numbers in canonical decimal,
//! every part with its type and length. Two items have the same [`Digest`] exactly when DynamoDB holds the same
//! value, however a client or the service writes it down.

use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::HashMap;
use std::fmt;

/// An item, or a part of one: attribute names and values. What the SDK takes and gives.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Item(pub HashMap<String, AttributeValue>);

impl Item {
    /// The digest of this item's canonical bytes, leaving out the attribute named `without`.
    #[must_use]
    pub fn digest(&self, without: Option<&str>) -> Digest {
        let mut bytes = Vec::with_capacity(1024);
        feed_map(&self.0, without, &mut bytes);
        Digest::from_hash(&blake3::hash(&bytes))
    }

    /// The primary key whose attributes have these names.
    ///
    /// # Errors
    /// The name of one that the item lacks.
    pub fn key<'a>(&self, names: &'a [String]) -> Result<Key, &'a str> {
        let mut key = Self::default();
        for name in names {
            let value = self.0.get(name).ok_or(name.as_str())?;
            key.0.insert(name.clone(), value.clone());
        }
        Ok(Key::new(key))
    }

    /// Bytes that DynamoDB counts for this item, near enough for bounds on memory.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value_size(value)).sum()
    }

    /// Bytes that it takes in memory, about: many small attributes take far more than DynamoDB counts.
    #[must_use]
    pub fn footprint(&self) -> usize {
        map_footprint(&self.0)
    }
}

/// A string's header and what an allocation takes at least.
const STRING: usize = size_of::<String>() + 16;

fn map_footprint(map: &HashMap<String, AttributeValue>) -> usize {
    // A table is between half full and full.
    let slot = size_of::<(String, AttributeValue)>() * 3 / 2;
    map.iter().map(|(name, value)| slot + name.len().max(16) + value_footprint(value)).sum()
}

/// Beside the value's own slot.
fn value_footprint(value: &AttributeValue) -> usize {
    match value {
        AttributeValue::S(text) | AttributeValue::N(text) => text.len().max(16),
        AttributeValue::B(bytes) => bytes.as_ref().len().max(16),
        AttributeValue::L(list) => {
            list.iter().map(|value| size_of::<AttributeValue>() + value_footprint(value)).sum()
        }
        AttributeValue::M(map) => map_footprint(map),
        AttributeValue::Ss(set) | AttributeValue::Ns(set) => set.iter().map(|text| STRING + text.len()).sum(),
        AttributeValue::Bs(set) => set.iter().map(|bytes| STRING + bytes.as_ref().len()).sum(),
        _ => 0,
    }
}

/// A primary key: its one or two attributes and their digest, which stands for it in maps and rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    attributes: Item,
    digest: Digest,
}

impl Key {
    /// A key from its attributes.
    #[must_use]
    pub fn new(attributes: Item) -> Self {
        let digest = attributes.digest(None);
        Self { attributes, digest }
    }

    /// The key's attributes.
    #[must_use]
    pub fn attributes(&self) -> &Item {
        &self.attributes
    }

    /// The digest of names and values; equal for equal keys only.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// 128 bits of BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Digest([u8; 16]);

impl Digest {
    fn from_hash(hash: &blake3::Hash) -> Self {
        let mut digest = [0; 16];
        digest.copy_from_slice(&hash.as_bytes()[..16]);
        Self(digest)
    }

    /// Reads 32 lower-case hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        let mut digest = [0; 16];
        hex::decode_to_slice(text, &mut digest).ok()?;
        Some(Self(digest))
    }
}

impl From<[u8; 16]> for Digest {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

fn feed_map(map: &HashMap<String, AttributeValue>, without: Option<&str>, out: &mut Vec<u8>) {
    let mut entries: Vec<_> = map.iter().filter(|(name, _)| Some(name.as_str()) != without).collect();
    entries.sort_unstable_by_key(|(name, _)| *name);
    feed_count(entries.len(), out);
    for (name, value) in entries {
        feed_bytes(name.as_bytes(), out);
        feed_value(value, out);
    }
}

fn feed_value(value: &AttributeValue, out: &mut Vec<u8>) {
    match value {
        AttributeValue::S(text) => tagged(b'S', text.as_bytes(), out),
        AttributeValue::N(number) => tagged(b'N', &canonical_number(number), out),
        AttributeValue::B(bytes) => tagged(b'B', bytes.as_ref(), out),
        AttributeValue::Bool(value) => out.push(if *value { b'T' } else { b'F' }),
        AttributeValue::Null(_) => out.push(b'0'),
        AttributeValue::L(list) => {
            out.push(b'L');
            feed_count(list.len(), out);
            for value in list {
                feed_value(value, out);
            }
        }
        AttributeValue::M(map) => {
            out.push(b'M');
            feed_map(map, None, out);
        }
        AttributeValue::Ss(set) => feed_set(b's', set.iter().map(|s| s.as_bytes().to_vec()).collect(), out),
        AttributeValue::Ns(set) => feed_set(b'n', set.iter().map(|n| canonical_number(n)).collect(), out),
        AttributeValue::Bs(set) => feed_set(b'b', set.iter().map(|b| b.as_ref().to_vec()).collect(), out),
        // Decoding refuses values of unknown type, so none comes here from a stream.
        _ => out.push(b'?'),
    }
}

fn feed_set(tag: u8, mut members: Vec<Vec<u8>>, out: &mut Vec<u8>) {
    members.sort_unstable();
    out.push(tag);
    feed_count(members.len(), out);
    for member in members {
        feed_bytes(&member, out);
    }
}

fn tagged(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
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
        let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let mut exponent = exponent.checked_sub(i64::try_from(fraction.len()).ok()?)?;
        let Some(first) = digits.iter().position(|d| *d != b'0') else { return Some(b"0".to_vec()) };
        let last = digits.iter().rposition(|d| *d != b'0').unwrap_or(first);
        exponent += i64::try_from(digits.len() - 1 - last).ok()?;
        let mut out = Vec::with_capacity(digits.len() + 8);
        out.push(if negative { b'-' } else { b'+' });
        out.extend_from_slice(&digits[first..=last]);
        out.push(b'e');
        out.extend_from_slice(exponent.to_string().as_bytes());
        Some(out)
    }
    parts(text).unwrap_or_else(|| [b"!", text.as_bytes()].concat())
}

fn value_size(value: &AttributeValue) -> usize {
    match value {
        AttributeValue::S(text) => text.len(),
        AttributeValue::N(number) => number.len() / 2 + 2,
        AttributeValue::B(bytes) => bytes.as_ref().len(),
        AttributeValue::Bool(_) | AttributeValue::Null(_) => 1,
        AttributeValue::L(list) => 3 + list.iter().map(|v| 1 + value_size(v)).sum::<usize>(),
        AttributeValue::M(map) => 3 + map.iter().map(|(k, v)| 1 + k.len() + value_size(v)).sum::<usize>(),
        AttributeValue::Ss(set) => set.iter().map(String::len).sum(),
        AttributeValue::Ns(set) => set.iter().map(|n| n.len() / 2 + 2).sum(),
        AttributeValue::Bs(set) => set.iter().map(|b| b.as_ref().len()).sum(),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_dynamodb::primitives::Blob;
    use proptest::prelude::*;

    fn item(attributes: &[(&str, AttributeValue)]) -> Item {
        Item(attributes.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect())
    }

    #[test]
    fn many_small_attributes_take_more_memory_than_dynamodb_counts() {
        let number = |at: usize| (format!("a{at}"), AttributeValue::N("1".into()));
        let small = Item((0..1000).map(number).collect());
        assert!(small.footprint() > 10 * small.size(), "{} {}", small.footprint(), small.size());
        let large = Item(HashMap::from([("a".to_owned(), AttributeValue::S("x".repeat(100_000)))]));
        assert!(large.footprint() < large.size() + 1000, "{} {}", large.footprint(), large.size());
        let within = |value: AttributeValue| Item(HashMap::from([("a".to_owned(), value)])).footprint();
        assert!(within(AttributeValue::L(vec![AttributeValue::Null(true); 1000])) > 50_000);
        assert!(within(AttributeValue::M(small.0.clone())) > small.footprint());
    }

    #[test]
    fn numbers_are_equal_by_value() {
        let n = |text: &str| item(&[("n", AttributeValue::N(text.into()))]).digest(None);
        for same in ["100", "1e2", "1E+2", "100.0", "0100", "+100", "0.1e3", "10000e-2"] {
            assert_eq!(n(same), n("100"), "{same}");
        }
        for zero in ["0", "-0", "0.000", "0e5", ".0"] {
            assert_eq!(n(zero), n("0"), "{zero}");
        }
        for other in ["-100", "10", "1000", "100.00000000000000000000000000000000001", "abc", ""] {
            assert_ne!(n(other), n("100"), "{other}");
        }
    }

    #[test]
    fn sets_are_equal_in_any_order_and_lists_are_not() {
        let digest = |v: AttributeValue| item(&[("v", v)]).digest(None);
        let strings = |v: &[&str]| v.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            digest(AttributeValue::Ss(strings(&["a", "b"]))),
            digest(AttributeValue::Ss(strings(&["b", "a"])))
        );
        assert_eq!(
            digest(AttributeValue::Ns(strings(&["1.0", "2"]))),
            digest(AttributeValue::Ns(strings(&["2", "1"])))
        );
        let (a, b) = (AttributeValue::S("a".into()), AttributeValue::S("b".into()));
        assert_ne!(
            digest(AttributeValue::L(vec![a.clone(), b.clone()])),
            digest(AttributeValue::L(vec![b, a]))
        );
    }

    #[test]
    fn types_and_borders_are_told_apart() {
        let values = [
            AttributeValue::S("1".into()),
            AttributeValue::N("1".into()),
            AttributeValue::B(Blob::new("1")),
            AttributeValue::Bool(true),
            AttributeValue::Bool(false),
            AttributeValue::Null(true),
            AttributeValue::S(String::new()),
            AttributeValue::B(Blob::new("")),
            AttributeValue::L(vec![]),
            AttributeValue::M(HashMap::new()),
            AttributeValue::Ss(vec!["1".into()]),
            AttributeValue::Ns(vec!["1".into()]),
            AttributeValue::Bs(vec![Blob::new("1")]),
            AttributeValue::L(vec![AttributeValue::S("1".into())]),
        ];
        let digests: std::collections::BTreeSet<_> =
            values.iter().map(|v| item(&[("v", v.clone())]).digest(None)).collect();
        assert_eq!(digests.len(), values.len());
        assert_ne!(
            item(&[("ab", AttributeValue::S("c".into()))]).digest(None),
            item(&[("a", AttributeValue::S("bc".into()))]).digest(None)
        );
    }

    proptest! {
        #[test]
        fn the_left_out_attribute_does_not_count(names in prop::collection::btree_set("[a-z]{1,4}", 1..6)) {
            let mut item = Item(names.iter().map(|n| (n.clone(), AttributeValue::S(n.clone()))).collect());
            let before = item.digest(None);
            item.0.insert("STAMP".into(), AttributeValue::S("x".into()));
            prop_assert_eq!(item.digest(Some("STAMP")), before);
            prop_assert_ne!(item.digest(None), before);
        }

        #[test]
        fn shifting_zeros_changes_nothing(digits in "[1-9][0-9]{0,36}", shift in 0usize..20) {
            let plain = canonical_number(&digits);
            let shifted = format!("{digits}{}e-{shift}", "0".repeat(shift));
            prop_assert_eq!(canonical_number(&shifted), plain);
        }
    }
}
