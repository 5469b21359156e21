//! DynamoDB JSON: items as text that every tool of the field reads (`{"id": {"S": "a"}}`).
//!
//! Exact in both directions: numbers stay text, binaries are base64. Items are also written as plain JSON, which loses
//! types. Reading is by serde, from any text or value ([`view`](crate::view)).

use crate::item::Item;
use crate::view::{Fields, View};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// A text that is not DynamoDB JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not DynamoDB JSON: {0}")]
pub struct BadJson(String);

impl From<serde_json::Error> for BadJson {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

/// An item as DynamoDB JSON.
#[must_use]
pub fn from_item(item: &Item) -> Value {
    from_fields(&Fields::of(&item.0))
}

/// Values by name as DynamoDB JSON.
#[must_use]
pub fn from_fields(fields: &Fields<'_>) -> Value {
    Value::Object(fields.iter().map(|(name, value)| (name.to_owned(), from_value(value))).collect())
}

/// An item out of DynamoDB JSON.
///
/// # Errors
/// When the value is not an object of typed values; says which attribute.
pub fn to_item(value: &Value) -> Result<Item, BadJson> {
    Ok(Item::deserialize(value)?)
}

fn from_value(value: &View<'_>) -> Value {
    match value {
        View::S(text) => json!({ "S": text }),
        View::N(digits) => json!({ "N": digits }),
        View::B(bytes) => json!({ "B": BASE64.encode(bytes) }),
        View::Bool(flag) => json!({ "BOOL": flag }),
        View::Null(flag) => json!({ "NULL": flag }),
        View::Ss(set) => json!({ "SS": set }),
        View::Ns(set) => json!({ "NS": set }),
        View::Bs(set) => json!({ "BS": set.iter().map(|bytes| BASE64.encode(bytes)).collect::<Vec<_>>() }),
        View::L(list) => json!({ "L": list.iter().map(from_value).collect::<Vec<_>>() }),
        View::M(fields) => json!({ "M": from_fields(fields) }),
        View::Unknown => json!({ "NULL": false }),
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Fields::deserialize(from).map(|fields| fields.to_item())
    }
}

/// How items are spelled as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// As plain JSON: numbers are numbers, sets are lists, binaries are base64. Types are lost.
    Plain,
    /// As DynamoDB JSON: exact.
    Typed,
}

/// Appends values by name as an object. Names are sorted, and so are sets: the same bytes for the same item.
pub fn write_fields(fields: &Fields<'_>, spelling: Spelling, out: &mut Vec<u8>) {
    write_entries(fields.iter(), spelling, out);
}

/// Appends entries as an object, in their order.
pub fn write_entries<'e, 'v: 'e>(
    entries: impl Iterator<Item = (&'e str, &'e View<'v>)>,
    spelling: Spelling,
    out: &mut Vec<u8>,
) {
    out.push(b'{');
    for (index, (name, value)) in entries.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(name, out);
        out.push(b':');
        write_value(value, spelling, out);
    }
    out.push(b'}');
}

/// Appends a value.
pub fn write_value(value: &View<'_>, spelling: Spelling, out: &mut Vec<u8>) {
    match spelling {
        Spelling::Plain => write_inner(value, spelling, out),
        Spelling::Typed => {
            out.extend_from_slice(b"{\"");
            out.extend_from_slice(kind(value).as_bytes());
            out.extend_from_slice(b"\":");
            write_inner(value, spelling, out);
            out.push(b'}');
        }
    }
}

fn kind(value: &View<'_>) -> &'static str {
    match value {
        View::S(_) => "S",
        View::N(_) => "N",
        View::B(_) => "B",
        View::Bool(_) => "BOOL",
        View::Ss(_) => "SS",
        View::Ns(_) => "NS",
        View::Bs(_) => "BS",
        View::L(_) => "L",
        View::M(_) => "M",
        View::Null(_) | View::Unknown => "NULL",
    }
}

fn write_inner(value: &View<'_>, spelling: Spelling, out: &mut Vec<u8>) {
    let plain = spelling == Spelling::Plain;
    match value {
        View::S(text) => write_text(text, out),
        View::N(digits) => write_number(digits, plain, out),
        View::B(bytes) => write_bytes(bytes, out),
        View::Bool(flag) => out.extend_from_slice(if *flag { b"true" } else { b"false" }),
        View::Ss(set) => write_list(sorted(set), out, |text, out| write_text(text, out)),
        View::Ns(set) => write_list(sorted(set), out, |digits, out| write_number(digits, plain, out)),
        View::Bs(set) => write_list(sorted(set), out, |bytes, out| write_bytes(bytes, out)),
        View::L(values) => write_list(values, out, |value, out| write_value(value, spelling, out)),
        View::M(fields) => write_fields(fields, spelling, out),
        View::Null(_) | View::Unknown if plain => out.extend_from_slice(b"null"),
        View::Null(true) => out.extend_from_slice(b"true"),
        // DynamoDB refuses it.
        View::Null(false) | View::Unknown => out.extend_from_slice(b"false"),
    }
}

fn sorted<T: Ord>(set: &[T]) -> Vec<&T> {
    let mut set: Vec<&T> = set.iter().collect();
    set.sort_unstable();
    set
}

/// Appends values as a list.
pub fn write_list<T>(
    values: impl IntoIterator<Item = T>,
    out: &mut Vec<u8>,
    mut each: impl FnMut(T, &mut Vec<u8>),
) {
    out.push(b'[');
    for (index, value) in values.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        each(value, out);
    }
    out.push(b']');
}

fn write_number(digits: &str, plain: bool, out: &mut Vec<u8>) {
    if plain && is_json_number(digits) {
        out.extend_from_slice(digits.as_bytes());
    } else {
        write_text(digits, out);
    }
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(BASE64.encode(bytes).as_bytes());
    out.push(b'"');
}

/// Appends a text in quotes.
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    // Most texts stand as they are; all bytes are looked at together.
    let escaped = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    if !text.bytes().fold(false, |any, byte| any | escaped(byte)) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    let before = out.len();
    // A string into memory cannot fail; an empty one would be no JSON.
    if serde_json::to_writer(&mut *out, text).is_err() {
        out.truncate(before);
        out.extend_from_slice(b"\"\"");
    }
}

/// Whether a number may stand in JSON as DynamoDB wrote it.
fn is_json_number(digits: &str) -> bool {
    let rest = digits.strip_prefix('-').unwrap_or(digits);
    let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let all = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let no_zero_in_front = whole == "0" || !whole.starts_with('0');
    all(whole)
        && no_zero_in_front
        && all(fraction)
        && all(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    fn all_types() -> Value {
        json!({
            "s": { "S": "a\"\n\u{1F600}" }, "n": { "N": "12345678901234567890123456789012345678" },
            "b": { "B": "AP8=" }, "t": { "BOOL": true }, "z": { "NULL": true }, "ss": { "SS": ["b", "a"] },
            "ns": { "NS": ["2", "1E+2"] }, "bs": { "BS": ["BA==", "AQ=="] },
            "l": { "L": [{ "M": { "x": { "L": [] } } }] }, "m": { "M": {} }
        })
    }

    fn spelled(spelling: Spelling) -> String {
        let mut out = Vec::new();
        let item = to_item(&all_types()).unwrap();
        write_fields(&Fields::of(&item.0), spelling, &mut out);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn a_text_is_written_as_serde_writes_it(text in any::<String>()) {
            let mut out = Vec::new();
            write_text(&text, &mut out);
            prop_assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&text).unwrap());
        }
    }

    #[test]
    fn typed_items_are_what_they_were() {
        let read: Value = serde_json::from_str(&spelled(Spelling::Typed)).unwrap();
        let mut expected = all_types();
        expected["ss"]["SS"] = json!(["a", "b"]);
        expected["ns"]["NS"] = json!(["1E+2", "2"]);
        expected["bs"]["BS"] = json!(["AQ==", "BA=="]);
        assert_eq!(read, expected);
    }

    #[test]
    fn plain_items_keep_every_digit() {
        assert_eq!(
            spelled(Spelling::Plain),
            r#"{"b":"AP8=","bs":["AQ==","BA=="],"l":[{"x":[]}],"m":{},"n":12345678901234567890123456789012345678,"ns":[1E+2,2],"s":"a\"\n😀","ss":["a","b"],"t":true,"z":null}"#
        );
    }

    #[test]
    fn only_what_json_reads_stands_as_a_number() {
        for good in ["0", "-1.50", "1E-130", "0.1"] {
            assert!(is_json_number(good) && serde_json::from_str::<Value>(good).is_ok(), "{good}");
        }
        for bad in ["", "-", ".5", "1.", "01", "1e", "NaN", "+1"] {
            assert!(!is_json_number(bad), "{bad}");
        }
    }
}
