//! Paths into an item: `address.city` names the attribute `city` of the map `address`.
//!
//! A path goes through maps, and through lists to each of their elements, so that `contacts.email` means the `email`
//! of every contact. A dot that belongs to a name is written `\.`. Pure.

use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::HashMap;
use std::fmt;

/// Attributes of an item, or of a map in it.
pub type Attributes = HashMap<String, AttributeValue>;

/// A path into an item; never empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    first: String,
    rest: Vec<String>,
}

impl Path {
    /// Reads a path; `None` when one of its names is empty.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (mut names, mut name, mut chars) = (Vec::new(), String::new(), text.chars());
        while let Some(char) = chars.next() {
            match char {
                '\\' => name.push(chars.next()?),
                '.' => names.push(std::mem::take(&mut name)),
                other => name.push(other),
            }
        }
        names.push(name);
        if names.iter().any(String::is_empty) {
            return None;
        }
        let mut names = names.into_iter();
        Some(Self { first: names.next()?, rest: names.collect() })
    }

    /// The attribute of the item that it begins with.
    #[must_use]
    pub fn attribute(&self) -> &str {
        &self.first
    }

    /// Whether it names an attribute of the item itself.
    #[must_use]
    pub fn is_attribute(&self) -> bool {
        self.rest.is_empty()
    }

    /// Whether this path leads to `other`, or to something that holds it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.first == other.first && other.rest.starts_with(&self.rest)
    }

    fn names(&self) -> Vec<&str> {
        std::iter::once(&self.first).chain(&self.rest).map(String::as_str).collect()
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> =
            self.names().into_iter().map(|name| name.replace('\\', "\\\\").replace('.', "\\.")).collect();
        f.write_str(&names.join("."))
    }
}

/// What lies on the paths, and nothing else.
#[must_use]
pub fn project(item: &Attributes, paths: &[Path]) -> Attributes {
    let paths: Vec<Vec<&str>> = paths.iter().map(Path::names).collect();
    let paths: Vec<&[&str]> = paths.iter().map(Vec::as_slice).collect();
    project_map(item, &paths)
}

fn project_map(map: &Attributes, paths: &[&[&str]]) -> Attributes {
    let one = |(name, value): (&String, &AttributeValue)| {
        let here = paths.iter().filter_map(|path| path.split_first()).filter(|(first, _)| *first == name);
        let below: Vec<&[&str]> = here.map(|(_, rest)| rest).collect();
        if below.is_empty() {
            return None;
        }
        if below.iter().any(|rest| rest.is_empty()) {
            return Some((name.clone(), value.clone()));
        }
        Some((name.clone(), project_value(value, &below)?))
    };
    map.iter().filter_map(one).collect()
}

/// What lies below a value; `None` when nothing can.
fn project_value(value: &AttributeValue, paths: &[&[&str]]) -> Option<AttributeValue> {
    match value {
        AttributeValue::M(map) => Some(AttributeValue::M(project_map(map, paths))),
        AttributeValue::L(list) => {
            Some(AttributeValue::L(list.iter().filter_map(|value| project_value(value, paths)).collect()))
        }
        _ => None,
    }
}

/// Takes away what lies on a path.
pub fn remove(item: &mut Attributes, path: &Path) {
    walk(item, &path.names(), &mut |map, name| drop(map.remove(name)));
}

/// Puts another value, or none, in the place of each that lies on a path. Where the path meets a value that it does not
/// go through, that value is masked: what is hidden may stand there as well.
pub fn mask(
    item: &mut Attributes,
    path: &Path,
    by: &mut dyn FnMut(&AttributeValue) -> Option<AttributeValue>,
) {
    mask_map(item, &path.names(), by);
}

fn mask_map(
    map: &mut Attributes,
    names: &[&str],
    by: &mut dyn FnMut(&AttributeValue) -> Option<AttributeValue>,
) {
    let Some((name, rest)) = names.split_first() else { return };
    if map.get_mut(*name).is_some_and(|value| !mask_value(value, rest, by)) {
        map.remove(*name);
    }
}

/// Whether the value stays.
fn mask_value(
    value: &mut AttributeValue,
    names: &[&str],
    by: &mut dyn FnMut(&AttributeValue) -> Option<AttributeValue>,
) -> bool {
    match value {
        AttributeValue::M(map) if !names.is_empty() => mask_map(map, names, by),
        AttributeValue::L(list) if !names.is_empty() => {
            list.retain_mut(|value| mask_value(value, names, by));
        }
        AttributeValue::Null(_) if !names.is_empty() => {}
        other => match by(other) {
            Some(masked) => *other = masked,
            None => return false,
        },
    }
    true
}

fn walk(map: &mut Attributes, names: &[&str], at: &mut dyn FnMut(&mut Attributes, &str)) {
    match names {
        [] => {}
        [last] => at(map, last),
        [name, rest @ ..] => {
            if let Some(value) = map.get_mut(*name) {
                walk_value(value, rest, at);
            }
        }
    }
}

fn walk_value(value: &mut AttributeValue, names: &[&str], at: &mut dyn FnMut(&mut Attributes, &str)) {
    match value {
        AttributeValue::M(map) => walk(map, names, at),
        AttributeValue::L(list) => list.iter_mut().for_each(|value| walk_value(value, names, at)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use serde_json::{Value, json};

    fn item() -> Attributes {
        let contact = |email: &str| json!({ "M": { "email": { "S": email }, "name": { "S": "n" } } });
        json::to_item(&json!({
            "id": { "S": "1" },
            "a.b": { "S": "dotted" },
            "address": { "M": { "city": { "S": "Seattle" }, "street": { "S": "Pine" } } },
            "contacts": { "L": [contact("x"), { "S": "none" }, contact("y")] },
        }))
        .unwrap()
        .0
    }

    fn shown(item: Attributes) -> Value {
        json::from_item(&crate::item::Item(item))
    }

    fn paths(texts: &[&str]) -> Vec<Path> {
        texts.iter().map(|text| Path::parse(text).unwrap()).collect()
    }

    #[test]
    fn paths_are_read_and_written() {
        for text in ["a", "a.b.c", "a\\.b.c", "a\\\\b"] {
            assert_eq!(Path::parse(text).unwrap().to_string(), text);
        }
        for text in ["", ".", "a.", ".a", "a..b", "a\\"] {
            assert_eq!(Path::parse(text), None, "{text}");
        }
        let [whole, part, other] = &paths(&["a", "a.b", "ab"])[..] else { unreachable!() };
        assert!(whole.covers(part) && whole.covers(whole) && !part.covers(whole) && !whole.covers(other));
    }

    #[test]
    fn what_is_included_is_all_that_is_left() {
        let left =
            project(&item(), &paths(&["id", "a\\.b", "address.city", "contacts.email", "id.x", "none"]));
        let email = |email: &str| json!({ "M": { "email": { "S": email } } });
        assert_eq!(
            shown(left),
            json!({
                "id": { "S": "1" },
                "a.b": { "S": "dotted" },
                "address": { "M": { "city": { "S": "Seattle" } } },
                "contacts": { "L": [email("x"), email("y")] },
            })
        );
    }

    #[test]
    fn what_is_excluded_or_masked_is_found_in_maps_and_lists() {
        let mut left = item();
        paths(&["a\\.b", "address.street", "contacts.name", "id.deeper"])
            .iter()
            .for_each(|p| remove(&mut left, p));
        let [email, city] = &paths(&["contacts.email", "address.city"])[..] else { unreachable!() };
        let star = || AttributeValue::S("*".to_owned());
        mask(&mut left, email, &mut |_| Some(star()));
        mask(&mut left, city, &mut |_| Some(AttributeValue::Null(true)));
        let email = json!({ "M": { "email": { "S": "*" } } });
        assert_eq!(
            shown(left),
            json!({
                "id": { "S": "1" },
                "address": { "M": { "city": { "NULL": true } } },
                "contacts": { "L": [email, { "S": "*" }, email] },
            })
        );
    }
}
