//! `[route.shape]`: what is read, and what is refused with its place.

use super::{SOUND, parse, report, with};
use crate::config::{Mask, MaskKey};

fn shaped(lines: &str) -> String {
    format!("{SOUND}[route.shape]\n{lines}\n")
}

/// Refused on the line after the section's title, with this.
#[track_caller]
fn refuses(lines: &str, column: usize, why: &str) {
    let problems = report(&shaped(lines));
    let line = SOUND.lines().count() + 2;
    let place = format!("f.toml:{line}:{column}: ");
    assert!(problems[0].starts_with(&place) && problems[0].contains(why), "{lines}: {problems:#?}");
}

#[test]
fn a_shape_is_read() {
    let config = parse(&shaped(
        "filter = 'item.a == 1'\ninclude = [\"a\", \"b.c\"]\nmask = { a = \"hash\", \"b.c\" = { text = \"x\" }, d = \"drop\" }\n\
         mask_key_env = \"KEY\"\nconstants = { s = \"x\", n = 1_000, f = 1.5, b = false }\nkeys = { pk = \"K#{id}\" }",
    ))
    .unwrap();
    let shape = config.routes[0].shape.as_ref().unwrap();
    assert_eq!(shape.filter.as_deref(), Some("item.a == 1"));
    assert_eq!(shape.include[1].to_string(), "b.c");
    let masks: Vec<&Mask> = shape.mask.values().collect();
    assert_eq!(masks, [&Mask::Hash, &Mask::Text("x".to_owned()), &Mask::Drop]);
    assert_eq!(shape.mask_key, Some(MaskKey::Env("KEY".to_owned())));
    assert_eq!(shape.constants["n"].as_n().unwrap(), "1000");
    assert_eq!(shape.keys["pk"].to_string(), "K#{id}");
    let inline = parse(&with("to = [\"new\"]", "to = [\"new\"]\nshape = { exclude = [\"a\"] }")).unwrap();
    assert_eq!(inline.routes[0].shape.as_ref().unwrap().exclude.len(), 1);
    assert_eq!(parse(SOUND).unwrap().routes[0].shape, None);
}

#[test]
fn what_is_wrong_with_an_expression_is_told_at_its_place_in_the_file() {
    refuses(
        "filter = 'item.a == 1 && state == 2'",
        26,
        "nothing is known of state; an attribute is item.state",
    );
    refuses("filter = \"item.a.startsWith(1)\"", 29, "is a number, where a string is needed");
    // Where the text is not written as it is, the place is the value's.
    refuses("filter = \"item.a == \\\"x\\\" && state\"", 10, "nothing is known of state");
    refuses("filter = 'item.a = 1'", 18, "");
    let problems = report(&shaped("filter = '''\nitem.a == 1\n  && lower(item.b) == 'x'\n'''"));
    let line = SOUND.lines().count() + 4;
    assert!(
        problems[0].starts_with(&format!("f.toml:{line}:")) && problems[0].contains("lower"),
        "{problems:?}"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    refuses("include = []", 11, "must not be empty");
    refuses("exclude = [\"a..b\"]", 11, "no path such as");
    refuses("mask = { a = \"blur\" }", 8, "\"mask\" of \"a\" must be \"drop\", \"hash\" or { text");
    refuses("mask = { a = \"hash\" }", 8, "needs a key; add mask_key_env");
    refuses("mask_key_env = \"KEY\"", 16, "there is none");
    refuses("mask = { a = \"drop\", \"a.b\" = \"drop\" }", 8, "one holds the other");
    refuses("rename = { a = \"c\", b = \"c\" }", 10, "which another attribute gets too");
    refuses("rename = { a = \"shardwalker\" }", 10, "which is the stamp's name");
    refuses("constants = { a = [1] }", 13, "a decimal number");
    refuses("keys = { pk = \"{a}{b}\" }", 8, "nothing between");
    refuses("keys = { a = \"{a}\", b = \"{b}\", c = \"{c}\" }", 8, "one or two");
    refuses("secret_key = \"x\"", 1, "looks like a credential");
    refuses("filters = \"x\"", 1, "did you mean \"filter\"?");
}

#[test]
fn a_shaped_route_has_no_way_back() {
    let problems =
        report(&with("to = [\"new\"]", "to = [\"new\"]\nreversible = true\nshape = { exclude = [\"a\"] }"));
    assert!(
        problems[0].contains("\"reversible\" is for peers that hold the source's items as they are"),
        "{problems:?}"
    );
}

#[test]
fn a_group_takes_no_shape() {
    let (members, _) = SOUND.split_once("[[route]]").unwrap();
    let problems = report(&format!(
        "{members}[[group]]\nname = \"pair\"\nmembers = [\"old\", \"new\"]\nshape = {{ exclude = [\"a\"] }}\n"
    ));
    assert!(
        problems[0].contains("\"shape\" is for one-way routes") && problems[0].contains("[[route]]"),
        "{problems:?}"
    );
}
