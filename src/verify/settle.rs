//! Looking up what the scans did not show to be the same, until it has stayed the same for a while; and mending it.

use super::judge::{self, Difference, Group, Held, Kind, Mend};
use super::record::Tally;
use super::{Prefer, Side, Verify, VerifyError};
use crate::change::Image;
use crate::content::Content;
use crate::failure::{Class, Failure};
use crate::item::{Digest, Key};
use crate::json;
use crate::peer::{Outcome, Placed, StepError};
use crate::retry;
use crate::shape::Unshaped;
use crate::version::{Hlc, Version};
use aws_sdk_dynamodb::types::AttributeValue;
use bigdecimal::BigDecimal;
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::atomic::Ordering as Atomic;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks at first, and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(15)];
/// What still changes after so many times the settling time is changing, and workers that have not come further for so long
/// are not waited for.
pub(super) const CHANGING: u32 = 5;
/// Mending is tried so often against applications that write meanwhile.
const ROUNDS: usize = 3;

/// What the members hold under a key, at about the same time.
#[derive(Debug)]
struct Look {
    images: Vec<Option<Image>>,
    /// In a group one for all of them.
    tombstones: Vec<Option<Version>>,
    /// The item of the source with this key cannot be shaped.
    unshaped: Option<(Key, Unshaped)>,
}

/// As far as it can be compared with a later look.
type Seen = (Vec<Option<Held>>, Vec<Option<Version>>);

impl Verify {
    /// Looks a key up until it is clear what it is; writes the differences to the record.
    pub(super) async fn settle(&self, segment: u32, key: Key) -> Result<Tally, VerifyError> {
        let begun = Instant::now();
        let (mut since, mut pause, mut changed) = (begun, PAUSES[0], false);
        let mut tally = Tally { compared: 1, ..Tally::default() };
        let mut look = self.look(&key).await?;
        let differences = loop {
            if let Some((key, why)) = &look.unshaped {
                tally.add(&Tally { compared: 0, ..self.unshaped(segment, key, why)? });
                return Ok(tally);
            }
            let differences = self.judge(&look);
            if differences.is_empty() {
                tally.in_flight = 1;
                return Ok(tally);
            }
            if changed && begun.elapsed() >= self.request.settle * CHANGING {
                tally.changing = 1;
                self.write(&json!({ "segment": segment, "kind": "changing", "key": json::from_item(key.attributes()) }))?;
                return Ok(tally);
            }
            let rest = self.request.settle.saturating_sub(since.elapsed());
            if rest > Duration::ZERO {
                self.pause(pause.min(rest)).await?;
                pause = (pause * 2).min(PAUSES[1]);
            } else if !self.waits_for_lanes(since).await? {
                break differences;
            }
            let next = self.look(&key).await?;
            changed = self.seen(&next) != self.seen(&look);
            if changed {
                since = Instant::now();
            }
            look = next;
        };
        if self.shape.is_some() && !first(&self.told, &key) {
            return Ok(Tally::default());
        }
        for difference in differences {
            *tally.differences.entry(difference.kind.name().to_owned()).or_default() += 1;
            let mut line = self.line(segment, &key, &difference, &look);
            if self.request.repair {
                match self.mend(&key, &difference).await? {
                    Ok(()) => {
                        tally.repaired += 1;
                        line["repaired"] = json!(true);
                    }
                    Err(why) => {
                        line["repaired"] = json!(false);
                        line["why"] = json!(why);
                    }
                }
            }
            self.write(&line)?;
        }
        Ok(tally)
    }

    /// Waits while what was written before `since` may be on its way; whether it was.
    async fn waits_for_lanes(&self, since: Instant) -> Result<bool, VerifyError> {
        let written = self.options.clock.now() - since.elapsed();
        let ask = || self.lag.may_bring(written);
        let mut waited = false;
        while retry::run(Self::patience(), &self.jitter, &self.drain, |_, _| (), ask).await? {
            self.pause(self.lag.interval()).await?;
            waited = true;
        }
        Ok(waited)
    }

    async fn pause(&self, pause: Duration) -> Result<(), VerifyError> {
        if retry::pause(pause, &self.drain).await { Ok(()) } else { Err(VerifyError::Stopped) }
    }

    async fn look(&self, key: &Key) -> Result<Look, VerifyError> {
        let _permit = self.looks.acquire().await.map_err(|_| VerifyError::Stopped)?;
        let policy = Self::patience();
        let source = self.shape.as_ref().map(|shape| shape.back(key));
        let read = |(index, side)| {
            // What no item of the source leads to is not there.
            let at = if index == 0 { source.as_ref().map_or(Some(key), Option::as_ref) } else { Some(key) };
            async move {
                let Some(key) = at else { return Ok(None) };
                let look = || async { of_step(Side::peer(side).look(key).await) };
                retry::run(policy, &self.jitter, &self.drain, |_, _| (), look).await
            }
        };
        let mut images = try_join_all(self.sides.iter().enumerate().map(read)).await?;
        let mut unshaped = None;
        if self.shape.is_some()
            && let Some(image) = images[0].take()
        {
            match self.shaped(&image.content.item()) {
                // The source's own stamp says nothing of the shaped content.
                Ok(shaped) => {
                    images[0] = shaped.map(|(_, item)| Image { content: item.into(), stamp: None });
                }
                Err(why) => unshaped = source.flatten().map(|key| (key, why)),
            }
        }
        // Most are the same by now, and the ledger has nothing to say about that.
        let content = |image: &Option<Image>| image.as_ref().map(|image| image.content.digest());
        let same = images.windows(2).all(|two| content(&two[0]) == content(&two[1]));
        let about = if self.group { &self.sides[..1] } else { &self.sides[1..] };
        let read = |side| async move {
            let read = || async { of_step(Side::peer(side).tombstone(key).await) };
            retry::run(policy, &self.jitter, &self.drain, |_, _| (), read).await
        };
        let tombstones =
            if same { vec![None; about.len()] } else { try_join_all(about.iter().map(read)).await? };
        Ok(Look { images, tombstones, unshaped })
    }

    /// Tells, once, that an item of the source cannot be shaped.
    pub(super) fn unshaped(&self, segment: u32, key: &Key, why: &Unshaped) -> Result<Tally, VerifyError> {
        if !first(&self.unshaped, key) {
            return Ok(Tally::default());
        }
        let kind = Kind::Unshaped;
        self.write(&json!({
            "segment": segment, "kind": kind, "key": json::from_item(key.attributes()), "why": why.to_string(),
            "at": [self.sides[0].name],
        }))?;
        let differences = [(kind.name().to_owned(), 1)].into();
        Ok(Tally { compared: 1, differences, ..Tally::default() })
    }

    fn seen(&self, look: &Look) -> Seen {
        let ceiling = Hlc::from_millis(self.options.clock.millis()).plus(self.max_drift);
        let held = |image: &Image| Held {
            content: image.content.digest(),
            stamp: image.stamp.filter(|stamp| stamp.version.hlc <= ceiling),
        };
        (look.images.iter().map(|image| image.as_ref().map(held)).collect(), look.tombstones.clone())
    }

    fn judge(&self, look: &Look) -> Vec<Difference> {
        let (seen, tombstones) = self.seen(look);
        let member = |name: &String| self.sides.iter().position(|side| side.name == *name);
        let preferred = match &self.request.prefer {
            Some(Prefer::Member(name)) => member(name),
            Some(Prefer::Newest(attribute)) => newest(&look.images, attribute),
            None => None,
        };
        if self.group {
            let numbers: Vec<u8> = self.sides.iter().map(|side| side.number).collect();
            let gaps: Vec<bool> = self.sides.iter().map(|side| side.gap).collect();
            let tombstone = tombstones.first().copied().flatten();
            let known = Group { numbers: &numbers, gaps: &gaps, tombstone, preferred };
            return judge::group(&seen, known).into_iter().collect();
        }
        let number = self.sides.first().map_or(0, |side| side.number);
        let peers = (1..seen.len()).zip(tombstones);
        peers
            .filter_map(|(peer, tombstone)| {
                let pristine = self.sides.get(peer).is_some_and(|side| side.peer.pristine());
                judge::one_way(&seen, peer, tombstone, number, preferred.is_some(), pristine)
            })
            .collect()
    }

    /// Writes what makes members agree under a key; why not, when it cannot be done.
    async fn mend(&self, key: &Key, found: &Difference) -> Result<Result<(), String>, VerifyError> {
        let mut at = found.at.clone();
        for round in 0..ROUNDS {
            // It is judged anew: what is written must be of this moment.
            let look = self.look(key).await?;
            if let Some((_, why)) = look.unshaped {
                return Ok(Err(why.to_string()));
            }
            let mut differences = self.judge(&look);
            differences.retain(|difference| self.group || difference.at == at);
            let Some(difference) = differences.pop() else { return Ok(Ok(())) };
            let Some(mend) = difference.mend else {
                let source = self.sides.first().map_or("", |side| &side.name);
                return Ok(Err(match difference.kind {
                    Kind::Foreign => format!("an application wrote it at the peer; replace it with --prefer {source}"),
                    _ => "it is not known which write came last; say it with --prefer MEMBER or --prefer-newest \
                          ATTRIBUTE"
                        .to_owned(),
                }));
            };
            at = difference.at;
            let most = self.request.max_deletes;
            if round == 0 && mend.from.is_none() && self.deletes.fetch_add(1, Atomic::Relaxed) >= most {
                return Err(VerifyError::TooManyDeletes(most));
            }
            for index in &mend.at {
                let Some(side) = self.sides.get(*index) else { continue };
                let policy = Self::patience();
                let write = || async {
                    self.still().await?;
                    self.write_to(side, key, &mend, &look).await
                };
                let written = retry::run(policy, &self.jitter, &self.drain, |_, _| (), write).await;
                match written {
                    Ok(()) => {}
                    Err(retry::GaveUp::Failed(failure)) if failure.class == Class::Invalid => {
                        return Ok(Err(format!("{} refuses it: {failure}", side.name)));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let differences = self.judge(&self.look(key).await?);
        let left = differences.iter().any(|difference| self.group || difference.at == at);
        Ok(if left { Err("it changes all the time".to_owned()) } else { Ok(()) })
    }

    /// That it still is the turn of the route's cutover in which this began: what was right then may be old by now. It is
    /// asked before each request, so that none is begun longer before a turn than requests last.
    async fn still(&self) -> Result<(), Failure> {
        let why = match crate::cutover::turn(&self.state, &self.route).await? {
            Ok(turn) if Some(turn) == self.turn => return Ok(()),
            Ok(_) => format!("writers of {} have moved", self.route.name),
            Err(why) => why,
        };
        let why =
            format!("{why}; nothing more is repaired: compare again once they are where they should be");
        Err(Failure::new(Class::Condition, "Moved", why))
    }

    /// One conditional write; that something newer is there is no failure.
    async fn write_to(&self, side: &Side, key: &Key, mend: &Mend, look: &Look) -> Result<(), Failure> {
        let (peer, version) = (&side.peer, mend.version);
        let content: Option<&Content> =
            mend.from.and_then(|from| look.images.get(from)?.as_ref()).map(|image| &image.content);
        match content {
            Some(content) if self.group => of_step(peer.place(content, version).await).map(|_: Placed| ()),
            // Whoever calls this looks again, and so finds what came under it.
            Some(content) if peer.pristine() => of_step(peer.overwrite(content).await),
            Some(content) => of_step(peer.put(content, key, version, false).await).map(|_: Outcome| ()),
            None => {
                of_step(peer.raise(key, version).await)?;
                if self.group {
                    of_step(peer.remove(key, version).await).map(|_: Placed| ())
                } else {
                    of_step(peer.delete(key, version).await).map(|_: Outcome| ())
                }
            }
        }
    }

    /// What is told of a difference: keys, digests and versions; no other values.
    fn line(&self, segment: u32, key: &Key, difference: &Difference, look: &Look) -> Value {
        let (seen, _) = self.seen(look);
        let name = |index: &usize| self.sides.get(*index).map(|side| side.name.clone());
        let members: serde_json::Map<String, Value> = self
            .sides
            .iter()
            .zip(&seen)
            .map(|(side, held)| {
                let held = held.map(|held| {
                    let stamp = held.stamp.map(|stamp| stamp.version.to_string());
                    json!({
                        "digest": held.content.to_string(),
                        "stamp": stamp,
                        "written_by": if held.clean().is_some() { "replicator" } else { "application" },
                    })
                });
                (side.name.clone(), json!(held))
            })
            .collect();
        json!({
            "segment": segment,
            "kind": difference.kind,
            "key": json::from_item(key.attributes()),
            "at": difference.at.iter().filter_map(name).collect::<Vec<_>>(),
            "members": members,
        })
    }

    /// Writes a line to the record.
    fn write(&self, line: &Value) -> Result<(), VerifyError> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).line(line)
    }
}

impl Side {
    /// As a function, whose result lives as long as the side.
    fn peer(&self) -> &crate::peer::Peer {
        &self.peer
    }
}

/// Whether a key is met for the first time.
fn first(met: &Mutex<HashSet<Digest>>, key: &Key) -> bool {
    met.lock().unwrap_or_else(PoisonError::into_inner).insert(key.digest())
}

fn of_step<T>(step: Result<T, StepError>) -> Result<T, Failure> {
    step.map_err(|error| error.failure().clone())
}

/// The member whose item has the highest value of an attribute; `None` when one of the items lacks it, or two of
/// different contents share it.
fn newest(images: &[Option<Image>], attribute: &str) -> Option<usize> {
    let mut best: Option<(usize, AttributeValue, &Image)> = None;
    for (index, image) in images.iter().enumerate() {
        let Some(image) = image else { continue };
        let value = image.content.fields().get(attribute)?.to_value();
        best = match best {
            None => Some((index, value, image)),
            Some(before) => match order(&value, &before.1)? {
                Ordering::Greater => Some((index, value, image)),
                Ordering::Equal if before.2.content.digest() != image.content.digest() => return None,
                _ => Some(before),
            },
        };
    }
    best.map(|(index, ..)| index)
}

fn order(a: &AttributeValue, b: &AttributeValue) -> Option<Ordering> {
    match (a, b) {
        (AttributeValue::S(a), AttributeValue::S(b)) => Some(a.cmp(b)),
        (AttributeValue::N(a), AttributeValue::N(b)) => {
            Some(a.parse::<BigDecimal>().ok()?.cmp(&b.parse::<BigDecimal>().ok()?))
        }
        _ => None,
    }
}
