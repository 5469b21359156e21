//! Finding the items of several scans that belong together, in whatever order each of them comes.
//!
//! Pure, and bounded: when the scans have drifted apart, the oldest key that waits is given up as a suspect, to be
//! looked up at every member.

use crate::item::{Digest, Key};
use std::collections::{HashMap, VecDeque};

/// What the scans of one segment have brought and what does not fit together yet.
#[derive(Debug)]
pub(super) struct Pairing {
    most: usize,
    waiting: HashMap<Digest, Waiting>,
    /// Who waits, oldest first; and some who do not any more.
    order: VecDeque<Digest>,
    /// How many of those who wait each member has brought.
    brought: Vec<usize>,
}

#[derive(Debug)]
struct Waiting {
    key: Key,
    contents: Vec<Option<Digest>>,
}

/// What an item led to.
#[derive(Debug, PartialEq)]
pub(super) enum Paired {
    /// Other members' are waited for.
    Waits,
    /// Every member has the same.
    Equal,
    /// To be looked up: members have different items, or too many wait.
    Suspect(Key),
}

impl Pairing {
    /// Of so many members; at most `most` keys wait.
    pub(super) fn new(members: usize, most: usize) -> Self {
        Self { most, waiting: HashMap::new(), order: VecDeque::new(), brought: vec![0; members] }
    }

    /// An item of a member, by the digest of its content.
    pub(super) fn add(&mut self, member: usize, key: Key, content: Digest) -> Paired {
        let digest = key.digest();
        let members = self.brought.len();
        let waiting = self.waiting.entry(digest).or_insert_with(|| {
            self.order.push_back(digest);
            Waiting { key, contents: vec![None; members] }
        });
        if waiting.contents[member].replace(content).is_none() {
            self.brought[member] += 1;
        }
        if waiting.contents.iter().all(Option::is_some) {
            let Some(Waiting { key, contents }) = self.take(digest) else { return Paired::Waits };
            return if contents.windows(2).all(|two| two[0] == two[1]) {
                Paired::Equal
            } else {
                Paired::Suspect(key)
            };
        }
        if self.waiting.len() > self.most
            && let Some(key) = self.oldest()
        {
            return Paired::Suspect(key);
        }
        if self.order.len() > 2 * self.waiting.len() + 1024 {
            self.order.retain(|digest| self.waiting.contains_key(digest));
        }
        Paired::Waits
    }

    /// Whether this member's scan is not ahead of the others'.
    pub(super) fn is_due(&self, member: usize, unfinished: &[usize]) -> bool {
        let least = unfinished.iter().map(|member| self.brought[*member]).min().unwrap_or_default();
        self.brought[member] <= least + self.most / 4
    }

    /// Those of which a member has no item, once every scan has ended.
    pub(super) fn rest(self) -> impl Iterator<Item = Key> {
        self.waiting.into_values().map(|waiting| waiting.key)
    }

    fn oldest(&mut self) -> Option<Key> {
        while let Some(digest) = self.order.pop_front() {
            if let Some(waiting) = self.take(digest) {
                return Some(waiting.key);
            }
        }
        None
    }

    fn take(&mut self, digest: Digest) -> Option<Waiting> {
        let waiting = self.waiting.remove(&digest)?;
        for (brought, content) in self.brought.iter_mut().zip(&waiting.contents) {
            *brought -= usize::from(content.is_some());
        }
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::Item;
    use aws_sdk_dynamodb::types::AttributeValue;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn key(id: u32) -> Key {
        Key::new(Item(HashMap::from([("id".to_owned(), AttributeValue::N(id.to_string()))])))
    }

    proptest! {
        /// Whatever the scans' order: what all members have alike is equal or a suspect, everything else is a suspect,
        /// and no more than the bound waits.
        #[test]
        fn nothing_that_differs_is_passed_over(
            items in prop::collection::vec((0_u32..40, 0_usize..3, 0_u8..2), 0..120),
            most in 1_usize..60,
        ) {
            let mut held = HashMap::new();
            let mut pairing = Pairing::new(3, most);
            let (mut equal, mut suspects) = (BTreeSet::new(), BTreeSet::new());
            for (id, member, content) in items {
                // A scan brings a key once.
                if held.contains_key(&(id, member)) {
                    continue;
                }
                held.insert((id, member), content);
                match pairing.add(member, key(id), Digest::from([content; 16])) {
                    Paired::Waits => {}
                    Paired::Equal => drop(equal.insert(id)),
                    Paired::Suspect(key) => drop(suspects.insert(key.digest())),
                }
                prop_assert!(pairing.waiting.len() <= most);
                prop_assert!(pairing.order.len() <= 2 * pairing.waiting.len() + 1025);
            }
            suspects.extend(pairing.rest().map(|key| key.digest()));
            for id in 0..40 {
                let contents: Vec<_> = (0..3).map(|member| held.get(&(id, member))).collect();
                let same = contents.iter().all(|content| content.is_some() && *content == contents[0]);
                let found = equal.contains(&id) || suspects.contains(&key(id).digest());
                prop_assert!(same || !equal.contains(&id));
                prop_assert!(found || contents.iter().all(Option::is_none));
            }
        }
    }
}
