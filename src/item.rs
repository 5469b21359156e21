//! Items as the SDK takes them, keys and digests. What they have in common with items as text is in
//! [`view`](crate::view).

use crate::view::Fields;
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
        let mut fields = Fields::of(&self.0);
        without.map(|name| fields.take(name));
        fields.digest()
    }

    /// The primary key whose attributes have these names.
    ///
    /// # Errors
    /// The name of one that the item lacks.
    pub fn key<'a>(&self, names: &'a [String]) -> Result<Key, &'a str> {
        Key::within(&Fields::of(&self.0), names)
    }

    /// Bytes that DynamoDB counts for this item, near enough for bounds on memory.
    #[must_use]
    pub fn size(&self) -> usize {
        Fields::of(&self.0).size()
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

    /// A key as it was read.
    #[must_use]
    pub fn of(fields: &Fields<'_>) -> Self {
        Self { attributes: fields.to_item(), digest: fields.digest() }
    }

    /// The key in an item, whose attributes have these names.
    ///
    /// # Errors
    /// The name of one that the item lacks.
    pub fn within<'n>(fields: &Fields<'_>, names: &'n [String]) -> Result<Self, &'n str> {
        let mut key = Item::default();
        for name in names {
            let value = fields.get(name).ok_or(name.as_str())?;
            key.0.insert(name.clone(), value.to_value());
        }
        Ok(Self::new(key))
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

impl From<&blake3::Hash> for Digest {
    fn from(hash: &blake3::Hash) -> Self {
        let mut digest = [0; 16];
        digest.copy_from_slice(&hash.as_bytes()[..16]);
        Self(digest)
    }
}

impl From<[u8; 16]> for Digest {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 32];
        // It has exactly the room.
        hex::encode_to_slice(self.0, &mut text).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
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
    }
}
