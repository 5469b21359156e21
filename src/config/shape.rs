//! `[route.shape]`: reading it, and what is refused before any table is looked at.
//!
//! What depends on the key of the source's table is left to [`Shape::fit`](crate::shape::Shape::fit).

use super::report::Place;
use super::section::{Located, Section};
use super::values::{self, Fault, shown, wrong_type};
use super::{Mask, MaskKey, Shape};
use crate::shape::expression::Expression;
use crate::shape::path::Path;
use crate::shape::template::Template;
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::{BTreeMap, BTreeSet};
use toml::de::DeValue;

/// A key of a table has so many attributes at most.
const KEYS: usize = 2;

/// A route's shape; what is wrong gives `None`, after it was reported. `stamp` is the name of the route's stamp.
pub(super) fn shape(mut section: Section<'_>, stamp: Option<&str>) -> Option<Shape> {
    let filter = section.or("filter", None, |value| values::string(value).map(Some));
    let prefix = section.or("key_prefix", BTreeMap::new(), table(text));
    let equals = section.or("attribute_equals", BTreeMap::new(), table(scalar));
    let include = section.or("include", Vec::new(), paths);
    let exclude = section.or("exclude", Vec::new(), paths);
    let masks = section.or("mask", BTreeMap::new(), table(mask));
    let env = section.optional("mask_key_env", values::string);
    let file = section.optional("mask_key_file", values::path);
    let rename = section.or("rename", BTreeMap::new(), table(text));
    let constants = section.or("constants", BTreeMap::new(), table(scalar));
    let keys = section.or("keys", BTreeMap::new(), table(template));
    let filter_is_sound = filter.as_ref().is_some_and(|filter| compiles(&section, filter));

    let masks = masks.and_then(|masks| masked_paths(&section, masks));
    let hashed = masks.as_ref().is_some_and(|(masks, _)| masks.values().any(|mask| *mask == Mask::Hash));
    let mut sound = filter_is_sound;
    let mut refuse = |key: &str, place: Place, fault: Fault| {
        section.report(key, place, fault);
        sound = false;
    };
    let mask_key = match (env, file) {
        (Some(env), Some(_)) => {
            let fault = Fault::new("and \"mask_key_file\" are both there").remedy("keep one of them");
            refuse("mask_key_env", env.place, fault);
            None
        }
        (Some(env), None) => Some((MaskKey::Env(env.value), env.place, "mask_key_env")),
        (None, Some(file)) => Some((MaskKey::File(file.value.into()), file.place, "mask_key_file")),
        (None, None) => None,
    };
    match (&mask_key, hashed) {
        (None, true) => {
            let place = masks.as_ref().map_or(Place::File, |(_, place)| *place);
            let fault = Fault::new("has \"hash\", which needs a key");
            refuse(
                "mask",
                place,
                fault.remedy("add mask_key_env = \"VARIABLE\" or mask_key_file = \"PATH\""),
            );
        }
        (Some((_, place, key)), false) => {
            let fault = Fault::new("is for masks that are \"hash\", and there is none");
            refuse(key, *place, fault.remedy("remove it, or mask an attribute"));
        }
        _ => {}
    }
    if let Some(keys) = keys.as_ref().filter(|keys| keys.value.len() > KEYS) {
        let fault =
            Fault::new(format!("has {} attributes, and a table's key has one or two", keys.value.len()));
        refuse("keys", keys.place, fault);
    }
    if let (Some(rename), Some(constants)) = (&rename, &constants) {
        let mut taken: BTreeSet<&String> = constants.value.keys().collect();
        for (from, to) in &rename.value {
            if !taken.insert(to) {
                let what =
                    format!("gives {} the name {}, which another attribute gets too", shown(from), shown(to));
                refuse("rename", rename.place, Fault::new(what));
            }
        }
    }
    if let Some(stamp) = stamp {
        let named = [
            ("rename", rename.as_ref().map(|of| (of.place, of.value.values().any(|to| to == stamp)))),
            ("constants", constants.as_ref().map(|of| (of.place, of.value.contains_key(stamp)))),
            ("keys", keys.as_ref().map(|of| (of.place, of.value.contains_key(stamp)))),
        ];
        for (key, place) in named.into_iter().filter_map(|(key, named)| Some((key, named.filter(|n| n.1)?.0)))
        {
            let fault = Fault::new(format!("makes an attribute {}, which is the stamp's name", shown(stamp)));
            refuse(key, place, fault.remedy("set \"stamp\" of the route to a name that no attribute has"));
        }
    }
    section.finish();
    let shape = Shape {
        filter: filter?.value,
        key_prefix: prefix?.value,
        attribute_equals: equals?.value,
        include: include?.value,
        exclude: exclude?.value,
        mask: masks?.0,
        mask_key: mask_key.map(|(key, ..)| key),
        rename: rename?.value,
        constants: constants?.value,
        keys: keys?.value,
    };
    sound.then_some(shape)
}

/// Whether a filter compiles; what is wrong is reported at its place within the expression.
fn compiles(section: &Section<'_>, filter: &Located<Option<String>>) -> bool {
    let Some(source) = &filter.value else { return true };
    let Err(faults) = Expression::compile(source) else { return true };
    for fault in faults {
        let rest = source.get(fault.at..).unwrap_or_default();
        let near = if rest.is_empty() { "at its end".to_owned() } else { format!("at {}", shown(rest)) };
        let place = section.within("filter", fault.at).unwrap_or(filter.place);
        section.report("filter", place, Fault::new(format!("{near}: {}", fault.what)));
    }
    false
}

/// Masks by their paths, and where they are.
fn masked_paths(
    section: &Section<'_>,
    masks: Located<BTreeMap<String, Mask>>,
) -> Option<(BTreeMap<Path, Mask>, Place)> {
    let mut by_path = BTreeMap::new();
    for (text, mask) in masks.value {
        let Some(path) = Path::parse(&text) else {
            section.report("mask", masks.place, bad_path(&text));
            return None;
        };
        if let Some(other) = by_path.keys().find(|other: &&Path| other.covers(&path) || path.covers(other)) {
            let what = format!(
                "names {} and {}, of which one holds the other",
                shown(&other.to_string()),
                shown(&text)
            );
            section.report("mask", masks.place, Fault::new(what));
            return None;
        }
        by_path.insert(path, mask);
    }
    Some((by_path, masks.place))
}

/// A table whose values are all of one kind.
fn table<T>(
    parse: impl Fn(&DeValue<'_>) -> Result<T, Fault>,
) -> impl Fn(&DeValue<'_>) -> Result<BTreeMap<String, T>, Fault> {
    move |value| {
        let DeValue::Table(entries) = value else { return Err(wrong_type("a table", value)) };
        let entry = |(name, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
            let name: &std::borrow::Cow<'_, str> = name.get_ref();
            match parse(value.get_ref()) {
                Ok(value) => Ok((name.to_string(), value)),
                Err(fault) => Err(Fault { what: format!("of {} {}", shown(name), fault.what), ..fault }),
            }
        };
        entries.iter().map(entry).collect()
    }
}

/// A text that is not empty.
fn text(value: &DeValue<'_>) -> Result<String, Fault> {
    let text = values::string(value)?;
    if text.is_empty() { Err(Fault::new("must not be empty")) } else { Ok(text) }
}

/// A string, a number or a boolean.
fn scalar(value: &DeValue<'_>) -> Result<AttributeValue, Fault> {
    let number = |text: &str| {
        let plain = text.replace('_', "");
        let known = plain.parse::<bigdecimal::BigDecimal>();
        let known = known.map_err(|_| Fault::new(format!("must be a decimal number, not {}", shown(text))));
        known.map(|_| AttributeValue::N(plain.trim_start_matches('+').to_owned()))
    };
    match value {
        DeValue::String(text) => Ok(AttributeValue::S(text.to_string())),
        DeValue::Boolean(value) => Ok(AttributeValue::Bool(*value)),
        DeValue::Integer(integer) if integer.radix() == 10 => number(integer.as_str()),
        DeValue::Float(float) => number(float.as_str()),
        other => Err(wrong_type("a string, a decimal number, true or false", other)),
    }
}

fn mask(value: &DeValue<'_>) -> Result<Mask, Fault> {
    const RULE: &str = "must be \"drop\", \"hash\" or { text = \"...\" }";
    match value {
        DeValue::String(name) => match name.as_ref() {
            "drop" => Ok(Mask::Drop),
            "hash" => Ok(Mask::Hash),
            other => Err(Fault::new(format!("{RULE}, not {}", shown(other)))),
        },
        DeValue::Table(entries) => match (entries.len(), entries.get("text")) {
            (1, Some(text)) => values::string(text.get_ref()).map(Mask::Text),
            _ => Err(Fault::new(RULE)),
        },
        _ => Err(Fault::new(RULE)),
    }
}

fn template(value: &DeValue<'_>) -> Result<Template, Fault> {
    let text = values::string(value)?;
    Template::parse(&text).map_err(|what| Fault::new(format!("is {}, which {what}", shown(&text))))
}

/// Paths; at least one.
fn paths(value: &DeValue<'_>) -> Result<Vec<Path>, Fault> {
    let DeValue::Array(elements) = value else { return Err(wrong_type("an array of strings", value)) };
    let path = |element: &toml::Spanned<DeValue<'_>>| {
        let text = values::string(element.get_ref())?;
        Path::parse(&text).ok_or_else(|| bad_path(&text))
    };
    let paths: Vec<Path> = elements.iter().map(path).collect::<Result<_, _>>()?;
    if paths.is_empty() {
        Err(Fault::new("must not be empty").remedy("leave the key out"))
    } else {
        Ok(paths)
    }
}

fn bad_path(text: &str) -> Fault {
    let fault = Fault::new(format!("names {}, which is no path such as \"address.city\"", shown(text)));
    fault.remedy("write \\. for a dot that belongs to a name")
}
