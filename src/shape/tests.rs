use super::*;
use crate::change::SequenceNumber;
use crate::config::Config;
use crate::json::{from_item, to_item};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::time::UNIX_EPOCH;

/// A config's shape with these lines.
fn config(lines: &str) -> config::Shape {
    let text = format!(
        r#"
        [state]
        table = "state"
        region = "eu-west-1"
        [[member]]
        name = "a"
        table = "arn:aws:dynamodb:eu-west-1:111111111111:table/one"
        [[member]]
        name = "b"
        table = "arn:aws:dynamodb:eu-west-1:222222222222:table/two"
        [[route]]
        name = "r"
        from = "a"
        to = ["b"]
        [route.shape]
        {lines}
        "#
    );
    let config = Config::parse(&text, "f", &|_| None).unwrap_or_else(|report| panic!("{report}"));
    config.routes[0].shape.clone().unwrap()
}

fn names(keys: &[(&str, &str)]) -> Vec<KeyAttribute> {
    keys.iter().map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned())).collect()
}

fn shape(lines: &str) -> Shape {
    Shape::fit(&config(lines), &names(&[("id", "S")])).unwrap()
}

/// A shape with a key of its hashes.
fn hashing(lines: &str) -> Shape {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
    shape(&format!("mask_key_file = {:?}\n{lines}", file.path()))
}

fn item(value: &Value) -> Item {
    to_item(value).unwrap()
}

fn made(shape: &Shape, value: &Value) -> Result<Value, String> {
    shape.item(&item(value)).map(|(_, item)| from_item(&item)).map_err(|why| why.to_string())
}

fn change(old: Option<Value>, new: Option<Value>) -> Change {
    let image =
        |value: &Option<Value>| value.as_ref().map(|v| Image { content: item(v).into(), stamp: None });
    let event = match (&old, &new) {
        (Some(_), Some(_)) => Event::Modify,
        (_, None) => Event::Remove,
        (None, _) => Event::Insert,
    };
    let key = image(&new)
        .or(image(&old))
        .map(|image| image.content.item())
        .unwrap_or_else(|| item(&json!({ "id": { "S": "k" } })));
    Change {
        sequence: SequenceNumber::parse("1").unwrap(),
        created: UNIX_EPOCH,
        key: key.key(&["id".to_owned()]).unwrap(),
        event,
        old: image(&old),
        new: image(&new),
        by_ttl: false,
        size: 0,
    }
}

#[test]
fn the_filter_is_judged_on_both_images() {
    let shape = shape("filter = 'item.state == \"WA\"'");
    let of = |state: &str| Some(json!({ "id": { "S": "k" }, "state": { "S": state } }));
    let without = Some(json!({ "id": { "S": "k" } }));
    let put = |creates| Ok(Judged::Put { creates });
    for (old, new, judged) in [
        (None, of("WA"), put(true)),
        (None, of("OR"), Ok(Judged::Skip)),
        (of("WA"), of("WA"), put(false)),
        (of("OR"), of("WA"), put(true)),
        (of("WA"), of("OR"), Ok(Judged::Delete)),
        (of("OR"), of("CA"), Ok(Judged::Skip)),
        (of("WA"), None, Ok(Judged::Delete)),
        (of("OR"), None, Ok(Judged::Skip)),
        // Not known, so it may have been there.
        (None, None, Ok(Judged::Delete)),
        // Not to be judged, so it may have been there.
        (without.clone(), None, Ok(Judged::Delete)),
        (without.clone(), of("OR"), Ok(Judged::Delete)),
        (without.clone(), of("WA"), put(false)),
    ] {
        assert_eq!(shape.judge(&change(old.clone(), new.clone())), judged, "{old:?} {new:?}");
    }
    let unknown = shape.judge(&change(of("WA"), without)).unwrap_err();
    assert!(unknown.to_string().contains("no attribute state"), "{unknown}");
}

/// A feed's records are those of a table that holds only shaped items.
#[test]
fn a_change_is_told_as_whoever_knows_only_shaped_items_sees_it() {
    let shape = shape(
        "filter = 'item.state == \"WA\"'\nexclude = [\"secret\"]\nkeys = { pk = \"K#{id}\" }\nrename = { state = \"s\" }",
    );
    let of =
        |state: &str| Some(json!({ "id": { "S": "k" }, "state": { "S": state }, "secret": { "S": "x" } }));
    let without = Some(json!({ "id": { "S": "k" }, "secret": { "S": "x" } }));
    let told = |images: Images, old: Option<Value>, new: Option<Value>| {
        let change = Change { by_ttl: new.is_none(), ..change(old, new) };
        let shaped = shape.change(&change, images).unwrap()?;
        assert_eq!((&shaped.sequence, shaped.created), (&change.sequence, change.created));
        assert_eq!(shaped.by_ttl, change.by_ttl);
        assert_eq!(from_item(shaped.key.attributes()), json!({ "pk": { "S": "K#k" } }));
        let shown = json!({ "pk": { "S": "K#k" }, "id": { "S": "k" }, "s": { "S": "WA" } });
        let image = |image: &Option<Image>| {
            image.as_ref().map(|image| assert_eq!(from_item(&image.content.item()), shown)).is_some()
        };
        Some((shaped.event, image(&shaped.old), image(&shaped.new)))
    };
    let both = |old, new| told(Images::Both, old, new);
    assert_eq!(both(None, of("WA")), Some((Event::Insert, false, true)));
    assert_eq!(both(of("OR"), of("WA")), Some((Event::Insert, false, true)), "it enters");
    assert_eq!(both(of("WA"), of("WA")), Some((Event::Modify, true, true)));
    assert_eq!(both(of("WA"), of("OR")), Some((Event::Remove, true, false)), "it leaves");
    assert_eq!(both(of("WA"), None), Some((Event::Remove, true, false)));
    assert_eq!(both(of("OR"), of("CA")), None);
    assert_eq!(both(of("OR"), None), None);
    assert_eq!(both(None, of("OR")), None);
    // It may have been there, and nothing of it is told.
    assert_eq!(both(without.clone(), of("WA")), Some((Event::Modify, false, true)));
    assert_eq!(both(without.clone(), None), Some((Event::Remove, false, false)));
    assert_eq!(told(Images::New, of("WA"), of("WA")), Some((Event::Modify, false, true)));
    let unknown = shape.change(&change(of("WA"), without), Images::New).unwrap_err();
    assert!(unknown.to_string().contains("no attribute state"), "{unknown}");
}

/// Such a stream may have no old images, and the key says all there is to say.
#[test]
fn a_filter_on_the_key_is_judged_without_images() {
    let shape = shape("key_prefix = { id = \"C#\" }");
    let of = |id: &str| Some(json!({ "id": { "S": id } }));
    let judge = |event: Event, key: &str, old: Option<Value>, new: Option<Value>| {
        let key = item(&json!({ "id": { "S": key } })).key(&["id".to_owned()]).unwrap();
        shape.judge(&Change { event, key, ..change(old, new) })
    };
    for old in [None, of("D#1")] {
        assert_eq!(judge(Event::Modify, "D#1", old.clone(), of("D#1")), Ok(Judged::Skip), "{old:?}");
        assert_eq!(judge(Event::Remove, "D#1", old, None), Ok(Judged::Skip));
    }
    assert_eq!(judge(Event::Insert, "D#1", None, of("D#1")), Ok(Judged::Skip));
    assert_eq!(judge(Event::Insert, "C#1", None, of("C#1")), Ok(Judged::Put { creates: true }));
    assert_eq!(judge(Event::Modify, "C#1", None, of("C#1")), Ok(Judged::Put { creates: false }));
    assert_eq!(judge(Event::Remove, "C#1", None, None), Ok(Judged::Delete));
}

/// Also where the rest of the filter needs images: no change of an item moves its key.
#[test]
fn what_the_key_keeps_out_is_never_deleted() {
    let shape = shape("key_prefix = { id = \"C#\" }\nfilter = 'item.state == \"WA\"'");
    let of = |id: &str| Some(json!({ "id": { "S": id }, "state": { "S": "OR" } }));
    let modified = |id: &str| shape.judge(&Change { event: Event::Modify, ..change(None, of(id)) });
    assert_eq!(modified("D#1"), Ok(Judged::Skip));
    assert_eq!(modified("C#1"), Ok(Judged::Delete));
}

#[test]
fn a_mask_hides_what_stands_in_the_way_of_its_path() {
    let shape = hashing(
        "mask = { \"contact.email\" = \"hash\", \"phone.home\" = \"drop\", \"card.number\" = { text = \"*\" } }",
    );
    let masked = made(
        &shape,
        &json!({
            "id": { "S": "1" }, "contact": { "S": "ann@example.com" }, "phone": { "N": "5550100" },
            "card": { "L": [{ "S": "4111" }, { "M": { "number": { "S": "42" }, "kind": { "S": "v" } } }, { "SS": ["1"] }, { "NULL": true }] },
        }),
    )
    .unwrap();
    assert_eq!(masked["contact"]["S"].as_str().map(str::len), Some(64), "{masked}");
    assert_eq!(masked.get("phone"), None);
    let star = json!({ "S": "*" });
    let number = json!({ "M": { "number": star, "kind": { "S": "v" } } });
    assert_eq!(masked["card"], json!({ "L": [star, number, star, { "NULL": true }] }));
}

#[test]
fn declared_filters_need_no_expression() {
    let shape = shape("key_prefix = { id = \"C#\" }\nattribute_equals = { n = 1.50, on = true }");
    let lets = |id: &str, n: &str, on: bool| {
        let item = item(&json!({ "id": { "S": id }, "n": { "N": n }, "on": { "BOOL": on } }));
        shape.lets_through(&item).unwrap()
    };
    assert!(lets("C#1", "1.5", true) && lets("C#", "15e-1", true));
    assert!(!lets("D#1", "1.5", true) && !lets("C#1", "1.6", true) && !lets("C#1", "1.5", false));
    assert_eq!(shape.lets_through(&item(&json!({ "id": { "S": "C#1" } }))), Ok(false));
    let keys = names(&[("id", "S")]);
    assert!(!needs_old_images(
        &config("key_prefix = { id = \"C\" }\nattribute_equals = { id = \"Cx\" }"),
        &keys
    ));
    assert!(needs_old_images(&config("attribute_equals = { state = \"WA\" }"), &keys));
}

#[test]
fn an_item_is_projected_masked_renamed_and_completed() {
    let shape = hashing(
        "include = [\"name\", \"address.city\", \"email\", \"n\", \"tags\"]\nrename = { name = \"customer\", id = \"key\" }\n\
         constants = { origin = \"shop\", rank = 3, live = true }\n\
         mask = { email = \"hash\", \"address.city\" = { text = \"***\" }, n = \"hash\", tags = \"drop\" }",
    );
    let source = json!({
        "id": { "S": "1" }, "name": { "S": "Ann" }, "email": { "S": "ann@example.com" }, "n": { "N": "1.0" },
        "address": { "M": { "city": { "S": "Seattle" }, "street": { "S": "Pine" } } },
        "tags": { "SS": ["a"] }, "secret": { "S": "x" },
    });
    // By another implementation: printf %s ann@example.com | openssl dgst -sha256 -hmac 0123456789abcdef
    let email = "9f70eb4f1d9f0194d58bc08c41ce2b3b2e4e580a424a246ce2484484122343df";
    let shaped = made(&shape, &source).unwrap();
    assert_eq!(shaped["email"]["S"], email);
    let hashed = |value: AttributeValue| {
        from_item(&Item([("v".to_owned(), shape.hashed(&value))].into()))["v"].clone()
    };
    assert_eq!(shaped["n"], hashed(AttributeValue::S("1".to_owned())), "a number by its value");
    let mut shaped = shaped;
    for hashed in ["email", "n"] {
        shaped.as_object_mut().unwrap().remove(hashed);
    }
    assert_eq!(
        shaped,
        json!({
            "key": { "S": "1" }, "customer": { "S": "Ann" }, "address": { "M": { "city": { "S": "***" } } },
            "origin": { "S": "shop" }, "rank": { "N": "3" }, "live": { "BOOL": true },
        })
    );
    assert_eq!(shape.keys(), names(&[("key", "S")]));
}

#[test]
fn keys_are_composed_and_led_back() {
    let source = names(&[("customer", "S"), ("order", "N")]);
    let of = |lines: &str| Shape::fit(&config(lines), &source).unwrap();
    let shape = of("keys = { pk = \"C#{customer}#{order}\", sk = \"{order}\" }\nexclude = [\"customer\"]");
    let order = json!({ "customer": { "S": "ann" }, "order": { "N": "7" }, "v": { "S": "x" } });
    let (key, content) = shape.item(&item(&order)).unwrap();
    let keys = json!({ "pk": { "S": "C#ann#7" }, "sk": { "N": "7" } });
    assert_eq!(from_item(key.attributes()), keys);
    assert_eq!(
        from_item(&content),
        json!({ "pk": keys["pk"], "sk": keys["sk"], "order": { "N": "7" }, "v": { "S": "x" } })
    );
    let at_source = item(&order).key(&["customer".to_owned(), "order".to_owned()]).unwrap();
    assert_eq!(shape.key(&at_source).unwrap().digest(), key.digest());
    assert_eq!(shape.back(&key).unwrap().digest(), at_source.digest());
    assert_eq!(shape.keys(), names(&[("pk", "S"), ("sk", "N")]));
    assert!(!shape.keeps_partitions("pk") && !shape.keeps_partitions("sk"));
    for never in [
        json!({ "pk": { "S": "C#ann#7" }, "sk": { "N": "8" } }),
        json!({ "pk": { "S": "ann#7" }, "sk": { "N": "7" } }),
        json!({ "pk": { "S": "C#ann#7" } }),
    ] {
        assert!(shape.back(&Key::new(item(&never))).is_none(), "{never}");
    }
    // Two keys that would meet: the one that is not led back is refused, whichever comes first.
    let two = names(&[("a", "S"), ("b", "S")]);
    let shape = Shape::fit(&config("keys = { pk = \"{a}#{b}\" }"), &two).unwrap();
    let made = |a: &str, b: &str| shape.item(&item(&json!({ "a": { "S": a }, "b": { "S": b } }))).map(drop);
    assert!(made("x", "y#z").is_ok());
    assert!(made("x#y", "z").unwrap_err().to_string().contains("not one-to-one"));
    assert!(of("rename = { customer = \"c\" }").keeps_partitions("c"));
}

#[test]
fn names_that_meet_are_reported() {
    let renaming = shape("rename = { a = \"b\" }");
    let both = json!({ "id": { "S": "1" }, "a": { "S": "x" }, "b": { "S": "y" } });
    assert!(made(&renaming, &both).unwrap_err().contains("renamed to b"));
    assert!(made(&shape("rename = { a = \"b\", b = \"a\" }"), &both).is_ok(), "they change places");
    let composed = shape("keys = { pk = \"{id}\" }");
    assert!(
        made(&composed, &json!({ "id": { "S": "1" }, "pk": { "S": "other" } }))
            .unwrap_err()
            .contains("key attribute")
    );
}

#[test]
fn what_does_not_fit_the_sources_key_is_refused() {
    let keys = names(&[("id", "S"), ("at", "B")]);
    for (lines, why) in [
        ("key_prefix = { state = \"W\" }", "key_prefix names state; the source's key attributes are id, at"),
        ("key_prefix = { at = \"W\" }", "no string"),
        ("mask = { id = \"drop\" }", "mask names id, which is of the source's key"),
        ("exclude = [\"id\"]", "exclude names id, which is of the key"),
        ("keys = { pk = \"{id}\" }", "keys leaves out at"),
        (
            "keys = { pk = \"{id}#{state}\", sk = \"{at}\" }",
            "made of state, which is not of the source's key",
        ),
        ("keys = { pk = \"{id}#{at}\" }", "composed of at, which is binary"),
        ("constants = { id = 1 }", "constants names id, which is a key attribute"),
        ("rename = { state = \"id\" }", "rename gives state the name id"),
        (
            "mask = { state = \"hash\" }\nmask_key_env = \"SHARDWALKER_TEST_UNSET\"",
            "the environment variable SHARDWALKER_TEST_UNSET holds 0 bytes",
        ),
        (
            "mask = { state = \"hash\" }\nmask_key_file = \"/nowhere/key\"",
            "the file /nowhere/key cannot be read",
        ),
    ] {
        let wrong = Shape::fit(&config(lines), &keys).unwrap_err();
        assert!(wrong.iter().any(|what| what.contains(why)), "{lines}: {wrong:?}");
    }
}

#[test]
fn equal_shapes_have_one_identity_and_others_another() {
    let one = Identity::of(&config("include = [\"a\", \"b\"]\nrename = { a = \"c\" }"));
    assert_eq!(one, Identity::of(&config("rename = { a = \"c\" }\ninclude = [\"b\", \"a\"]")));
    let lines = [
        "filter = 'item.a == 1'",
        "include = [\"a\", \"b\"]",
        "exclude = [\"a\", \"b\"]",
        "rename = { a = \"b\" }",
        "constants = { a = \"b\" }",
        "constants = { a = 1 }",
        "mask = { a = \"drop\" }",
        "mask = { a = { text = \"drop\" } }",
        "keys = { a = \"{b}\" }",
        "key_prefix = { a = \"b\" }",
        "attribute_equals = { a = \"b\" }",
    ];
    let all: BTreeSet<String> = lines.iter().map(|lines| Identity::of(&config(lines)).digest).collect();
    assert_eq!(all.len(), lines.len());
    let key = |key: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), key).unwrap();
        // The same path, so that only the key differs.
        let shape = config::Shape {
            mask_key: Some(MaskKey::File(file.path().to_owned())),
            ..config("mask = { a = \"hash\" }\nmask_key_env = \"X\"")
        };
        identity(&shape).unwrap()
    };
    assert_eq!(key("0123456789abcdef").digest, key("0123456789abcdeg").digest);
    assert_ne!(key("0123456789abcdef"), key("0123456789abcdeg"));
}

proptest! {
    /// Whatever happens to items: putting and deleting what the shape says, change by change, leaves exactly what it makes
    /// of the items in the end, and every put and delete of an item is under the one key that leads back to it.
    #[test]
    fn applying_changes_comes_to_the_shaped_items(
        writes in prop::collection::vec((0_u8..6, prop::option::of((0_u8..3, 0_u8..3))), 1..60),
    ) {
        let shape = shape("filter = 'item.s != 0'\nkeys = { pk = \"K-{id}\" }\nrename = { v = \"w\" }");
        let (mut source, mut target) = (BTreeMap::new(), BTreeMap::new());
        for (id, value) in writes {
            let new = value.map(|(s, v)| {
                json!({ "id": { "S": id.to_string() }, "s": { "N": s.to_string() }, "v": { "N": v.to_string() } })
            });
            let old = match &new {
                Some(new) => source.insert(id, new.clone()),
                None => source.remove(&id),
            };
            if old.is_none() && new.is_none() || old == new {
                continue;
            }
            let change = change(old, new);
            let key = shape.key(&change.key).unwrap();
            prop_assert_eq!(shape.back(&key).unwrap().digest(), change.key.digest());
            match shape.judge(&change).unwrap() {
                Judged::Put { creates } => {
                    let (of_item, content) = shape.item(&change.new.as_ref().unwrap().content.item()).unwrap();
                    prop_assert_eq!(of_item.digest(), key.digest());
                    let before = target.insert(key.digest(), content);
                    prop_assert_eq!(creates, before.is_none());
                }
                Judged::Delete => prop_assert!(target.remove(&key.digest()).is_some()),
                Judged::Skip => prop_assert!(!target.contains_key(&key.digest())),
            }
        }
        let shaped = source.values().map(item).filter(|item| shape.lets_through(item).unwrap());
        let shaped: BTreeMap<_, _> =
            shaped.map(|item| shape.item(&item).unwrap()).map(|(key, item)| (key.digest(), item)).collect();
        prop_assert_eq!(target, shaped);
    }
}
