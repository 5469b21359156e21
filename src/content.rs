//! What is on an item, as text: what streams and scans bring, and what peers get.
//!
//! DynamoDB JSON in one piece, names and sets sorted, without our attribute. It takes as much memory as it has bytes, and
//! goes into a request as it is; of an item's values only those are made that somebody asks for.

use crate::item::{Digest, Item};
use crate::json::{BadJson, Spelling, write_fields};
use crate::view::Fields;
use std::fmt;
use std::sync::OnceLock;

/// An item without our attribute.
#[derive(Clone)]
pub struct Content {
    /// What [`write_fields`] wrote.
    text: Box<str>,
    digest: OnceLock<Digest>,
}

impl Content {
    /// DynamoDB JSON: an object of typed values.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it holds.
    #[must_use]
    #[expect(clippy::expect_used, reason = "an item that is not what it was must not be written anywhere")]
    pub fn fields(&self) -> Fields<'_> {
        serde_json::from_str(&self.text).expect("it was written from such fields")
    }

    /// The same as the SDK takes it.
    #[must_use]
    pub fn item(&self) -> Item {
        self.fields().to_item()
    }

    /// The digest of its canonical bytes ([`view`](crate::view)).
    #[must_use]
    pub fn digest(&self) -> Digest {
        *self.digest.get_or_init(|| self.fields().digest())
    }

    /// Bytes that it takes in memory.
    #[must_use]
    pub fn footprint(&self) -> usize {
        size_of::<Self>() + self.text.len()
    }

    /// Reads it from DynamoDB JSON.
    ///
    /// # Errors
    /// When the text is something else; says which attribute.
    pub fn read(text: &str) -> Result<Self, BadJson> {
        serde_json::from_str::<Fields<'_>>(text).map(|fields| Self::from(&fields)).map_err(BadJson::from)
    }

    /// Of fields, whose digest is likely to be asked for.
    #[must_use]
    pub fn digested(fields: &Fields<'_>) -> Self {
        Self { digest: OnceLock::from(fields.digest()), ..Self::from(fields) }
    }
}

impl From<&Fields<'_>> for Content {
    #[expect(clippy::expect_used, reason = "as above")]
    fn from(fields: &Fields<'_>) -> Self {
        let mut text = Vec::with_capacity(1024);
        write_fields(fields, Spelling::Typed, &mut text);
        let text = String::from_utf8(text).expect("JSON is written as UTF-8").into_boxed_str();
        Self { text, digest: OnceLock::new() }
    }
}

impl From<&Item> for Content {
    fn from(item: &Item) -> Self {
        Self::from(&Fields::of(&item.0))
    }
}

impl From<Item> for Content {
    fn from(item: Item) -> Self {
        Self::from(&item)
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for Content {
    /// Says no values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} bytes)", self.text.len())
    }
}
