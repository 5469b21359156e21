//! Shapes: which items of a one-way route's source its peers and feeds get, and what of each.
//!
//! Owns what a `[route.shape]` means. [`Shape`] is one that is ready: compiled, fitted to the key of the source's
//! table, with the key of its hashes. It promises three things. What it makes of an item depends on the item alone. The
//! key at the peers is made of the source's key alone, and leads back to it, so no two items meet under one key. And what
//! it cannot shape is an [`Unshaped`] with its reason, never an item that is left out silently.
//!
//! [`expression`] is the filter's, [`path`] finds parts of items, [`template`] makes keys, [`accepted`] remembers which
//! shape the peers' items have. Versions, and what is written when, are the lane's matter as on any route.

pub mod accepted;
pub mod expression;
pub mod path;
pub mod template;

use crate::change::{Change, Event, Image};
use crate::config::{self, Images, Mask, MaskKey};
use crate::failure::{Class, Failure};
use crate::item::{Item, Key};
use accepted::Identity;
use aws_sdk_dynamodb::types::AttributeValue;
use expression::Expression;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use std::collections::{BTreeMap, BTreeSet};
use template::{Template, Values};

/// A key attribute's name and type (`S`, `N` or `B`).
pub type KeyAttribute = (String, String);

/// The code of the failure of an item that cannot be shaped.
pub const UNSHAPED: &str = "Unshaped";

/// A shorter key could be guessed.
const SHORTEST_KEY: usize = 16;

/// Why an item cannot be shaped; holds no values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unshaped(String);

impl From<Unshaped> for Failure {
    fn from(why: Unshaped) -> Self {
        Self::new(Class::Invalid, UNSHAPED, why.0)
    }
}

/// What a shaped route does about a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// The item is in the filter. `creates`: as far as the images show, it was not there before.
    Put {
        /// Whether it is likely absent at the peers.
        creates: bool,
    },
    /// It has left the filter, or is gone.
    Delete,
    /// It was not in the filter, and is not now.
    Skip,
}

/// A shape that is ready.
#[derive(Debug)]
pub struct Shape {
    config: config::Shape,
    filter: Option<Expression>,
    /// The source's key attributes, partition key first.
    source: Vec<KeyAttribute>,
    kinds: BTreeMap<String, String>,
    /// The key attributes at the peers.
    keys: BTreeMap<String, Template>,
    hash: Option<Hmac<Sha256>>,
    identity: Identity,
}

impl Shape {
    /// Fits a shape to the key of its source's table, and reads the key of its hashes.
    ///
    /// # Errors
    /// Everything that does not fit.
    pub fn fit(config: &config::Shape, source: &[KeyAttribute]) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        let filter = config.filter.as_deref().map(Expression::compile).transpose().unwrap_or_else(|faults| {
            wrong.extend(faults.into_iter().map(|fault| format!("filter: {}", fault.what)));
            None
        });
        let keys = keys(config, source);
        misfits(config, source, &keys, &mut wrong);
        let hash = hash(config).unwrap_or_else(|why| {
            wrong.push(why);
            None
        });
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let identity = Identity { secret: hash.as_ref().map(fingerprint), ..Identity::of(config) };
        let kinds = source.iter().cloned().collect();
        Ok(Self { config: config.clone(), filter, source: source.to_vec(), kinds, keys, hash, identity })
    }

    /// What tells it from another shape.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The key attributes that the peers' tables must have, in the names' order.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyAttribute> {
        let kind = |template: &Template| {
            template.copies().and_then(|name| self.kinds.get(name)).map_or("S", String::as_str).to_owned()
        };
        self.keys.iter().map(|(name, template)| (name.clone(), kind(template))).collect()
    }

    /// Whether the partition key of a peer, of this name, has the same value as that of the source: then both tables'
    /// scans come in the same order.
    #[must_use]
    pub fn keeps_partitions(&self, partition_key: &str) -> bool {
        let copied = self.keys.get(partition_key).and_then(Template::copies);
        copied.is_some() && copied == self.source.first().map(|(name, _)| name.as_str())
    }

    /// Whether an item is in the filter.
    ///
    /// # Errors
    /// Why that cannot be said.
    pub fn lets_through(&self, item: &Item) -> Result<bool, Unshaped> {
        if !self.declared_lets(item, |_| true) {
            return Ok(false);
        }
        self.filter.as_ref().map_or(Ok(true), |filter| filter.holds(item)).map_err(Unshaped)
    }

    /// The same of an image, whose values are made only where something is asked of them.
    fn lets_image(&self, image: &Image) -> Result<bool, Unshaped> {
        let config = &self.config;
        let asks =
            self.filter.is_some() || !config.key_prefix.is_empty() || !config.attribute_equals.is_empty();
        if asks { self.lets_through(&image.content.item()) } else { Ok(true) }
    }

    /// Whether items with this key can be in the filter, as far as it looks at the key's attributes one by one.
    fn lets_key(&self, key: &Key) -> bool {
        self.declared_lets(key.attributes(), |name| self.kinds.contains_key(name))
    }

    /// Whether what is declared of these attributes holds.
    fn declared_lets(&self, item: &Item, of: impl Fn(&str) -> bool) -> bool {
        let begins = |(name, prefix): (&String, &String)| match item.0.get(name) {
            Some(AttributeValue::S(text)) => text.starts_with(prefix.as_str()),
            _ => false,
        };
        let equals = |(name, value): (&String, &AttributeValue)| {
            !of(name) || item.0.get(name).is_some_and(|v| same(v, value))
        };
        self.config.key_prefix.iter().all(begins) && self.config.attribute_equals.iter().all(equals)
    }

    /// What to do about a change, by its key and both its images. Where the old one is not known, or cannot be judged,
    /// the item may have been in the filter; but never where the key keeps it out, which no change moves.
    ///
    /// # Errors
    /// That the new image cannot be judged.
    pub fn judge(&self, change: &Change) -> Result<Judged, Unshaped> {
        if !self.lets_key(&change.key) {
            return Ok(Judged::Skip);
        }
        let lets = |image: &Image| self.lets_image(image);
        let was_out =
            || change.event == Event::Insert || change.old.as_ref().is_some_and(|old| lets(old) == Ok(false));
        Ok(match &change.new {
            Some(new) if change.event != Event::Remove && lets(new)? => Judged::Put { creates: was_out() },
            _ if was_out() => Judged::Skip,
            _ => Judged::Delete,
        })
    }

    /// A change as a feed has it, under the key of the peers: for whoever knows only shaped items it is what it is at
    /// the source, or an insert when the item enters the filter and a removal when it leaves. `None` when neither image is
    /// in the filter. An old image that is not known, or that cannot be judged or shaped, may have been in it: the change
    /// stays what it is, and of that image nothing is told.
    ///
    /// # Errors
    /// That the new image or the key cannot be shaped.
    pub fn change(&self, change: &Change, images: Images) -> Result<Option<Change>, Unshaped> {
        let image =
            |image: &Image| Ok(Image { content: self.item(&image.content.item())?.1.into(), stamp: None });
        let (event, new) = match (self.judge(change)?, &change.new) {
            (Judged::Skip, _) => return Ok(None),
            (Judged::Put { creates: true }, Some(new)) => (Event::Insert, Some(image(new)?)),
            (Judged::Put { creates: false }, Some(new)) => (Event::Modify, Some(image(new)?)),
            (Judged::Delete | Judged::Put { .. }, _) => (Event::Remove, None),
        };
        let told = |_: &&Image| images == Images::Both && event != Event::Insert;
        let was_in = |old: &&Image| self.lets_image(old) == Ok(true);
        let old = change.old.as_ref().filter(told).filter(was_in);
        let old = old.and_then(|old| Result::<_, Unshaped>::ok(image(old)));
        let key = self.key(&change.key)?;
        let Change { sequence, created, by_ttl, .. } = change;
        let (sequence, created, by_ttl) = (sequence.clone(), *created, *by_ttl);
        Ok(Some(Change { sequence, created, key, event, old, new, by_ttl, size: 0 }.sized()))
    }

    /// The key at the peers of an item with this key at the source.
    ///
    /// # Errors
    /// That there is none which leads back to it.
    pub fn key(&self, source: &Key) -> Result<Key, Unshaped> {
        let values = source.attributes().0.iter().map(|(name, value)| (name.clone(), value.clone()));
        self.key_of(&values.collect()).map(Key::new)
    }

    /// The key at the source of the only item that can have this key at the peers; `None` when there is none.
    #[must_use]
    pub fn back(&self, target: &Key) -> Option<Key> {
        let mut found = Values::new();
        for (name, template) in &self.keys {
            for (name, value) in template.back(target.attributes().0.get(name)?, &self.kinds)? {
                if found.get(&name).is_some_and(|other| !same(other, &value)) {
                    return None;
                }
                found.insert(name, value);
            }
        }
        let source = Key::new(Item(found.into_iter().collect()));
        let fits = source.attributes().0.len() == self.source.len()
            && self.key(&source).is_ok_and(|key| key.digest() == target.digest());
        fits.then_some(source)
    }

    /// What the peers get of an item: its key there, and the whole item with it.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn item(&self, source: &Item) -> Result<(Key, Item), Unshaped> {
        let config = &self.config;
        let mut shaped = if config.include.is_empty() {
            source.0.clone()
        } else {
            path::project(&source.0, &config.include)
        };
        config.exclude.iter().for_each(|path| path::remove(&mut shaped, path));
        for (path, mask) in &config.mask {
            path::mask(&mut shaped, path, &mut |value| match mask {
                Mask::Drop => None,
                Mask::Text(text) => Some(AttributeValue::S(text.clone())),
                Mask::Hash => Some(self.hashed(value)),
            });
        }
        let moved = config.rename.iter().filter_map(|(from, to)| Some((to, shaped.remove(from)?)));
        for (to, value) in moved.collect::<Vec<_>>() {
            if shaped.insert(to.clone(), value).is_some() {
                return Err(Unshaped(format!(
                    "an attribute is renamed to {to}, and there is one of that name"
                )));
            }
        }
        shaped.extend(config.constants.iter().map(|(name, value)| (name.clone(), value.clone())));
        let named = |(name, _): &KeyAttribute| Some((name.clone(), source.0.get(name)?.clone()));
        let key = self.key_of(&self.source.iter().filter_map(named).collect())?;
        for (name, value) in &key.0 {
            if shaped.insert(name.clone(), value.clone()).is_some_and(|other| !same(&other, value)) {
                let why = format!(
                    "{name} is a key attribute at the peer, and the item has another attribute of that name"
                );
                return Err(Unshaped(why));
            }
        }
        Ok((Key::new(key), Item(shaped)))
    }

    fn key_of(&self, values: &Values) -> Result<Item, Unshaped> {
        let make = |(name, template): (&String, &Template)| Ok((name.clone(), template.make(values)?));
        self.keys.iter().map(make).collect::<Result<_, String>>().map(Item).map_err(Unshaped)
    }

    /// HMAC-SHA256 of a value, in hex: of a string's or binary's bytes, of a number in plain decimals, of `true` or
    /// `false`; of anything else in its canonical bytes.
    fn hashed(&self, value: &AttributeValue) -> AttributeValue {
        // `fit` has it where it is used.
        let Some(mut hash) = self.hash.clone() else { return AttributeValue::Null(true) };
        match value {
            AttributeValue::S(text) => hash.update(text.as_bytes()),
            AttributeValue::B(bytes) => hash.update(bytes.as_ref()),
            AttributeValue::N(number) => {
                hash.update(template::number(number).as_deref().unwrap_or(number).as_bytes());
            }
            AttributeValue::Bool(value) => hash.update(value.to_string().as_bytes()),
            other => {
                let digest = Item([("value".to_owned(), other.clone())].into()).digest(None);
                hash.update(digest.to_string().as_bytes());
            }
        }
        AttributeValue::S(hex::encode(hash.finalize().into_bytes()))
    }
}

/// Whether the filter of a shape looks at more than the source's key, so that a change's old image is needed.
#[must_use]
pub fn needs_old_images(config: &config::Shape, source: &[KeyAttribute]) -> bool {
    let key = |name: &String| source.iter().any(|(of_key, _)| of_key == name);
    config.filter.is_some() || !config.attribute_equals.keys().all(key)
}

/// The key attributes at the peers: those that the config makes, or the source's under the names that they get.
fn keys(config: &config::Shape, source: &[KeyAttribute]) -> BTreeMap<String, Template> {
    if !config.keys.is_empty() {
        return config.keys.clone();
    }
    let renamed = |name: &String| config.rename.get(name).unwrap_or(name).clone();
    source.iter().map(|(name, _)| (renamed(name), Template::copy(name))).collect()
}

/// What does not fit the source's key.
fn misfits(
    config: &config::Shape,
    source: &[KeyAttribute],
    keys: &BTreeMap<String, Template>,
    wrong: &mut Vec<String>,
) {
    let kind = |name: &str| source.iter().find(|(of_key, _)| of_key == name).map(|(_, kind)| kind.as_str());
    let spelt: Vec<&str> = source.iter().map(|(name, _)| name.as_str()).collect();
    let of_source = spelt.join(", ");
    for name in config.key_prefix.keys() {
        match kind(name) {
            None => {
                wrong.push(format!("key_prefix names {name}; the source's key attributes are {of_source}"))
            }
            Some("S") => {}
            Some(_) => wrong.push(format!("key_prefix names {name}, which is no string")),
        }
    }
    for path in config.mask.keys().filter(|path| kind(path.attribute()).is_some()) {
        wrong.push(format!(
            "mask names {path}, which is of the source's key: the key at the peers leads back to it, as verify needs; \
             choose a source whose key may be shown"
        ));
    }
    let mut used = BTreeSet::new();
    for (target, template) in keys {
        for name in template.attributes() {
            used.insert(name);
            match kind(name) {
                None => wrong.push(format!(
                    "keys: {target} is made of {name}, which is not of the source's key ({of_source}): an item's key \
                     would change with it"
                )),
                Some("B") if template.copies().is_none() => {
                    wrong.push(format!("keys: {target} is composed of {name}, which is binary"));
                }
                Some(_) => {}
            }
        }
        if config.constants.contains_key(target) {
            wrong.push(format!("constants names {target}, which is a key attribute at the peers"));
        }
        let from = |from: &&String| template.copies() != Some(from.as_str());
        let renamed = config.rename.iter().filter(|(_, to)| *to == target).map(|(from, _)| from);
        for from in renamed.filter(from) {
            wrong.push(format!(
                "rename gives {from} the name {target}, which is a key attribute at the peers"
            ));
        }
    }
    for name in spelt.iter().filter(|name| !used.contains(**name)) {
        wrong.push(format!(
            "keys leaves out {name} of the source's key: items that differ only in it would meet under one key"
        ));
    }
    let excluded =
        config.exclude.iter().filter(|path| config.keys.is_empty() && kind(path.attribute()).is_some());
    for path in excluded {
        wrong.push(format!("exclude names {path}, which is of the key"));
    }
}

/// What tells the shapes of routes from others, with the keys of their hashes; by the routes' names.
///
/// # Errors
/// Which of these keys cannot be read, and why.
pub fn identities<'r>(
    routes: impl Iterator<Item = &'r config::Route>,
) -> Result<BTreeMap<String, Identity>, String> {
    let shaped = routes.filter_map(|route| Some((route, route.shape.as_ref()?)));
    let one = |(route, shape): (&config::Route, _)| match identity(shape) {
        Ok(identity) => Ok((route.name.clone(), identity)),
        Err(why) => Err(format!("route {}: {why}", route.name)),
    };
    shaped.map(one).collect()
}

/// What tells a config's shape from another one, with the key of its hashes.
///
/// # Errors
/// Why that key cannot be read.
pub fn identity(config: &config::Shape) -> Result<Identity, String> {
    Ok(Identity { secret: hash(config)?.as_ref().map(fingerprint), ..Identity::of(config) })
}

/// The hash with its key; `None` where none is used.
fn hash(config: &config::Shape) -> Result<Option<Hmac<Sha256>>, String> {
    let Some(from) = &config.mask_key else { return Ok(None) };
    // A key of any length is taken.
    Ok(Hmac::new_from_slice(&secret(from)?).ok())
}

fn fingerprint(hash: &Hmac<Sha256>) -> String {
    let mut hash = hash.clone();
    hash.update(b"shardwalker: fingerprint of a mask key");
    hex::encode(&hash.finalize().into_bytes()[..8])
}

/// The key of hashes.
fn secret(from: &MaskKey) -> Result<Vec<u8>, String> {
    let (bytes, origin) = match from {
        MaskKey::Env(name) => {
            let value = std::env::var_os(name).unwrap_or_default();
            (value.into_encoded_bytes(), format!("the environment variable {name}"))
        }
        MaskKey::File(path) => {
            let origin = format!("the file {}", path.display());
            let bytes = std::fs::read(path)
                .map_err(|error| format!("the mask key: {origin} cannot be read: {error}"))?;
            (bytes, origin)
        }
    };
    let bytes = bytes.trim_ascii_end();
    if bytes.len() < SHORTEST_KEY {
        return Err(format!(
            "the mask key: {origin} holds {} bytes, and at least {SHORTEST_KEY} are needed, such as those of openssl \
             rand -hex 32",
            bytes.len()
        ));
    }
    Ok(bytes.to_vec())
}

/// Whether two values are the same to DynamoDB.
fn same(a: &AttributeValue, b: &AttributeValue) -> bool {
    let digest = |value: &AttributeValue| Item([("value".to_owned(), value.clone())].into()).digest(None);
    a == b || digest(a) == digest(b)
}

#[cfg(test)]
mod tests;
