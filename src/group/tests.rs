use super::*;
use crate::change::SequenceNumber;
use crate::item::{Item, Key};
use crate::version::Version;
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

const DRIFT: Duration = Duration::from_secs(60);
const NOW: u64 = 1_800_000_000;

fn item(content: &str) -> Item {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    Item(HashMap::from([("id".to_owned(), text("k")), ("v".to_owned(), text(content))]))
}

/// A stamp of so many seconds from now, of member 2, over a content.
fn stamp(seconds: i64, content: &str) -> Stamp {
    let at = NOW.checked_add_signed(seconds).unwrap();
    Stamp::of(&item(content).into(), Version::new(Hlc::from_millis(at * 1000), 2))
}

fn mark(seconds: i64, content: &str) -> Stamp {
    Stamp { mark: Mark::Deleted, ..stamp(seconds, content) }
}

type Side<'a> = Option<(&'a str, Option<Stamp>)>;

fn record(old: Side<'_>, new: Side<'_>) -> Record {
    let image = |side: Side<'_>| side.map(|(content, stamp)| Image { content: item(content).into(), stamp });
    let created: SystemTime = UNIX_EPOCH + Duration::from_secs(NOW);
    let change = Change {
        sequence: SequenceNumber::parse("1").unwrap(),
        created,
        key: Key::new(Item(HashMap::from([("id".to_owned(), AttributeValue::S("k".to_owned()))]))),
        event: match (old, new) {
            (None, _) => Event::Insert,
            (_, None) => Event::Remove,
            _ => Event::Modify,
        },
        old: image(old),
        new: image(new),
        by_ttl: false,
        size: 0,
    };
    classify(&change, DRIFT)
}

fn write(creates: bool) -> Record {
    Record::Write { creates, stale: None, strange: false }
}

fn echo(stamp: Stamp, over: Over) -> Record {
    Record::Echo { stamp, over }
}

#[test]
fn what_applications_do_is_seen_whether_they_keep_our_attribute_or_drop_it() {
    let (a, s) = (Some(("a", None)), stamp(-9, "a"));
    assert_eq!(record(None, a), write(true), "PutItem, a new item");
    assert_eq!(record(a, Some(("b", None))), write(false), "over an application's item");
    assert_eq!(record(Some(("a", Some(s))), Some(("b", None))), write(false), "PutItem over ours drops it");
    assert_eq!(record(Some(("a", Some(s))), Some(("b", Some(s)))), write(false), "UpdateItem keeps it");
    assert_eq!(record(Some(("b", Some(s))), Some(("c", Some(s)))), write(false), "and again");
    assert_eq!(record(Some(("a", Some(s))), Some(("a", None))), write(false), "the attribute removed");
    assert_eq!(record(Some(("a", Some(s))), None), Record::Delete);
    assert_eq!(record(Some(("b", Some(s))), None), Record::Delete);
    assert_eq!(record(a, None), Record::Delete);
    // What was read elsewhere and changed, put here with our attribute.
    assert_eq!(record(None, Some(("b", Some(s)))), write(true));
    let older = stamp(-20, "x");
    assert_eq!(record(Some(("a", Some(s))), Some(("b", Some(older)))), write(false));
}

#[test]
fn an_old_content_that_comes_back_looks_clean_and_is_an_application_s() {
    let s = stamp(-9, "a");
    let back = Record::Write { creates: false, stale: Some(s), strange: false };
    assert_eq!(record(Some(("b", Some(s))), Some(("a", Some(s)))), back, "UpdateItem: A, B, A");
    let newer = stamp(-5, "b");
    assert_eq!(
        record(Some(("b", Some(newer))), Some(("a", Some(s)))),
        back,
        "PutItem of what was read before"
    );
}

#[test]
fn our_own_writes_are_known_and_what_they_replaced() {
    let (s, old) = (stamp(0, "a"), stamp(-9, "o"));
    assert_eq!(record(None, Some(("a", Some(s)))), echo(s, Over::Nothing));
    assert_eq!(record(Some(("o", Some(old))), Some(("a", Some(s)))), echo(s, Over::Clean));
    assert_eq!(record(Some(("x", Some(old))), Some(("a", Some(s)))), echo(s, Over::Dirty));
    assert_eq!(record(Some(("x", None)), Some(("a", Some(s)))), echo(s, Over::Dirty));
    // A stamp from the future counts as none: what it is on is an application's, and ours may replace it.
    assert_eq!(record(Some(("o", Some(stamp(61, "o")))), Some(("a", Some(s)))), echo(s, Over::Dirty));
    assert_eq!(record(Some(("o", Some(old))), Some(("a", Some(stamp(61, "a"))))), write(false));
}

#[test]
fn a_delete_in_two_steps_is_ours_and_a_write_between_them_is_seen() {
    let (s, d) = (stamp(-9, "a"), mark(0, "a"));
    assert_eq!(record(Some(("a", Some(s))), Some(("a", Some(d)))), echo(d, Over::Clean), "the mark");
    assert_eq!(
        record(Some(("a", None)), Some(("a", Some(d)))),
        echo(d, Over::Dirty),
        "over an application's"
    );
    assert_eq!(record(Some(("a", Some(d))), None), Record::Removal);
    let marked = |creates| Record::Write { creates, stale: Some(d), strange: false };
    assert_eq!(
        record(Some(("a", Some(d))), Some(("b", Some(d)))),
        marked(false),
        "an update of a marked item"
    );
    assert_eq!(record(Some(("b", Some(d))), None), echo(d, Over::Dirty), "and its removal");
    // The content changed after it was looked at and before it was marked.
    assert_eq!(record(Some(("b", Some(s))), Some(("b", Some(d)))), echo(d, Over::Dirty));
    // We never create a marked item, nor change one as we mark it: an application put back what it had read.
    assert_eq!(record(None, Some(("a", Some(d)))), marked(true));
    assert_eq!(record(None, Some(("b", Some(d)))), marked(true));
    assert_eq!(record(Some(("o", Some(s))), Some(("a", Some(d)))), marked(false));
    assert_eq!(record(Some(("o", None)), Some(("a", Some(d)))), marked(false));
}

#[test]
fn a_newer_stamp_that_does_not_match_is_strange() {
    let (s, old) = (stamp(0, "a"), stamp(-9, "o"));
    let strange = Record::Write { creates: false, stale: None, strange: true };
    assert_eq!(record(Some(("o", Some(old))), Some(("b", Some(s)))), strange);
    // An application that had read it puts it back over what another one wrote whole.
    let back = Record::Write { creates: false, stale: None, strange: false };
    assert_eq!(record(Some(("o", None)), Some(("b", Some(s)))), back);
}

#[test]
fn one_lane_of_a_member_has_the_duty() {
    let (s, peers) = (stamp(0, "a"), vec![3, 2, 4]);
    let lanes = peers.iter().map(|peer| Place { peer: *peer, peers: peers.clone() });
    let lanes: Vec<_> = lanes.collect();
    let steps = |record: Record| lanes.iter().map(|lane| lane.step(record)).collect::<Vec<_>>();
    assert_eq!(steps(echo(s, Over::Dirty)), [Step::Nothing, Step::Repair(s), Step::Nothing]);
    assert_eq!(steps(echo(s, Over::Nothing)), [Step::Nothing, Step::Check(s), Step::Nothing]);
    assert_eq!(steps(echo(s, Over::Clean)), [Step::Nothing; 3]);
    let put = |stale| Step::Put { creates: false, stale };
    let back = Record::Write { creates: false, stale: Some(s), strange: false };
    assert_eq!(steps(back), [put(None), put(Some(s)), put(None)]);
    assert_eq!(steps(Record::Delete), [Step::Delete; 3]);
    for origin in [1, 2, 3, 4, 200] {
        assert_eq!(lanes.iter().filter(|lane| lane.has_duty(origin)).count(), 1, "{origin}");
    }
    assert!(lanes[1].has_duty(1), "what was written here goes to the lowest number");
}
