//! Groups: what a section becomes, and what is refused, in which words.

use super::{parse, refuses};
use crate::config::{Conflicts, Group, OnGap, Route, Start};
use std::time::Duration;

/// Members a to d with numbers 0 to 3, then more from line 19 on.
fn among(more: &str) -> String {
    let mut text = "[state]\ntable = \"arn:aws:dynamodb:eu-west-1:999999999999:table/state\"\n".to_owned();
    for (number, name) in ["a", "b", "c", "d"].iter().enumerate() {
        text += &format!(
            "[[member]]\nname = \"{name}\"\nnumber = {number}\ntable = \"arn:aws:dynamodb:eu-west-1:{number:012}:table/orders\"\n"
        );
    }
    text + more
}

fn group(name: &str, members: &str) -> String {
    format!("[[group]]\nname = \"{name}\"\nmembers = [{members}]\n")
}

fn route(name: &str, from: &str, to: &str) -> String {
    format!("[[route]]\nname = \"{name}\"\nfrom = \"{from}\"\nto = [\"{to}\"]\n")
}

#[test]
fn a_group_becomes_a_route_from_each_member_to_all_others() {
    let text = among(&(group("g", r#""c", "a", "b""#) + &route("out", "a", "d")));
    let config = parse(&text).unwrap();
    let expected = Group {
        name: "g".to_owned(),
        members: vec![2, 0, 1],
        conflicts: Conflicts::Sampled,
        conflicts_file: None,
    };
    assert_eq!(config.groups, [expected]);
    let edges: Vec<_> =
        config.routes.iter().map(|r| (r.name.as_str(), r.from, r.to.as_slice(), r.group)).collect();
    assert_eq!(
        edges,
        [
            ("out", 0, &[3][..], None),
            ("g/c", 2, &[0, 1][..], Some(0)),
            ("g/a", 0, &[2, 1][..], Some(0)),
            ("g/b", 1, &[2, 0][..], Some(0)),
        ]
    );
    let of_group = config.route("g/a").unwrap();
    assert_eq!((of_group.ttl_deletes, of_group.stamp.as_str()), (false, "shardwalker"));
    assert_eq!((of_group.start, of_group.on_gap), (Start::TrimHorizon, OnGap::Stop));
    assert_eq!(of_group.max_clock_drift, Duration::from_secs(60));
    assert_eq!((of_group.max_writes.len(), &of_group.guard), (0, &None));
}

#[test]
fn what_a_group_is_told_holds_for_each_of_its_routes() {
    let told = r#"conflicts = "full"
conflicts_file = "/var/log/lost.jsonl"
ttl_deletes = true
stamp = "seen"
start = "latest"
on_gap = "continue"
max_clock_drift = "5s"
max_writes_per_second = { b = 7, c = 8 }
[group.guard]
max_deletes = 9
"#;
    let text = among(&(group("g", r#""a", "b", "c""#) + told));
    let config = parse(&text).unwrap();
    assert_eq!(config.groups[0].conflicts, Conflicts::Full);
    assert_eq!(config.groups[0].conflicts_file.as_deref(), Some("/var/log/lost.jsonl".as_ref()));
    for route in &config.routes {
        let Route { ttl_deletes, stamp, start, on_gap, max_clock_drift, guard, .. } = route;
        assert_eq!((*ttl_deletes, stamp.as_str(), *start), (true, "seen", Start::Latest));
        assert_eq!((*on_gap, *max_clock_drift), (OnGap::Continue, Duration::from_secs(5)));
        assert_eq!(guard.as_ref().map(|guard| guard.max_deletes), Some(Some(9)));
    }
    let rates: Vec<_> = config.routes.iter().map(|route| route.max_writes.clone()).collect();
    assert_eq!(rates, [[(1, 7), (2, 8)].into(), [(2, 8)].into(), [(1, 7)].into()]);
    let each = parse(&among(&(group("g", r#""a", "b""#) + "max_writes_per_second = 5"))).unwrap();
    let rates: Vec<_> = each.routes.iter().map(|route| route.max_writes.clone()).collect();
    assert_eq!(rates, [[(1, 5)].into(), [(0, 5)].into()]);
}

#[test]
fn the_values_of_a_group_keep_to_their_rules() {
    refuses(
        &among(&(group("g/h", r#""a", "b""#) + "conflicts = \"some\"\nto = [\"a\"]\nguard = {}\n")),
        &[
            "f.toml:20:8: \"name\" must be 1 to 64 letters, digits, \"-\", \"_\" or \".\", not \"g/h\"",
            "f.toml:22:13: \"conflicts\" must be \"off\", \"sampled\" or \"full\", not \"some\"",
            "f.toml:23:1: unknown key \"to\" in [[group]]; the keys here are conflicts, conflicts_file, guard, max_clock_drift, max_writes_per_second, members, name, on_gap, stamp, start, ttl_deletes",
            "f.toml:24:9: missing key \"max_deletes\" in [group.guard]; or \"max_delete_share\": a guard needs something to guard against",
        ],
    );
    refuses(
        &among("[[group]]\nconflicts = 1\n"),
        &[
            "f.toml:19:1: missing key \"members\" in [[group]]; write members = [\"MEMBER\", \"MEMBER\", ...]",
            "f.toml:19:1: missing key \"name\" in [[group]]; a name of your choice for the group",
            "f.toml:20:13: \"conflicts\" must be a string, not an integer",
        ],
    );
    refuses(
        &among("[group]\nname = \"g\"\n"),
        &["f.toml:19:1: \"group\" must be an array of tables, not a table; write [[group]]"],
    );
}

#[test]
fn names_are_unique_among_groups_and_routes() {
    refuses(
        &among(&(route("x", "c", "d") + &group("x", r#""a", "b""#))),
        &["f.toml:24:8: route \"x\" exists already, on line 20; names are unique"],
    );
    refuses(
        &among(&(group("x", r#""a", "b""#) + &group("x", r#""c", "d""#))),
        &["f.toml:23:8: group \"x\" exists already, on line 20; names are unique"],
    );
}

#[test]
fn a_group_has_two_members_that_exist() {
    refuses(
        &among(&(group("g", r#""a""#) + &group("h", r#""b", "bb", "zebra", "b""#) + &group("i", ""))),
        &[
            "f.toml:21:12: \"members\" must be at least two; one table alone has nothing to agree with",
            "f.toml:24:17: \"members\" names member \"bb\", which does not exist; did you mean \"b\"?",
            "f.toml:24:23: \"members\" names member \"zebra\", which does not exist; the members are a, b, c, d",
            "f.toml:24:32: \"members\" names \"b\" twice",
            "f.toml:27:11: \"members\" must not be empty; write members = [\"MEMBER\", \"MEMBER\", ...]",
        ],
    );
}

#[test]
fn the_members_of_a_group_have_numbers_of_their_own() {
    let text = among(&group("g", r#""a", "b", "c""#));
    refuses(
        &text.replace("number = 2", "number = 0"),
        &[
            "f.toml:21:22: \"a\" and \"c\" are in group \"g\" and both have number 0, their versions could tie; give each member a number of its own, which it keeps for ever",
        ],
    );
    // Those of different groups may have the same.
    let two = among(&(group("g", r#""a", "b""#) + &group("h", r#""c", "d""#)));
    parse(&two.replace("number = 2", "number = 0")).unwrap();
}

#[test]
fn a_member_is_in_one_group() {
    refuses(
        &among(&(group("g", r#""a", "b""#) + &group("h", r#""b", "c""#))),
        &[
            "f.toml:24:12: \"b\" is a member of group \"g\" already, on line 21; what one group writes would not go on to the other: make one group of both, or take it out of one",
        ],
    );
}

#[test]
fn no_one_way_route_enters_a_group() {
    refuses(
        &among(&(group("g", r#""a", "b""#) + &route("in", "c", "a") + &route("twin", "a", "b"))),
        &[
            "f.toml:25:7: \"a\" is a member of group \"g\" (line 21), which no one-way route may enter; its copies would stay on \"a\": let the applications write to the group, or make \"c\" a member of it",
            "f.toml:29:7: \"b\" is a member of group \"g\" (line 21), which no one-way route may enter; remove the route: the group copies \"a\" to \"b\" already",
        ],
    );
    // A loop through a group is one that enters it, and so is a way from one group to another.
    refuses(
        &among(&(group("g", r#""a", "b""#) + &route("out", "a", "c") + &route("back", "c", "b"))),
        &[
            "f.toml:29:7: \"b\" is a member of group \"g\" (line 21), which no one-way route may enter; its copies would stay on \"b\": let the applications write to the group, or make \"c\" a member of it",
        ],
    );
    refuses(
        &among(&(group("g", r#""a", "b""#) + &group("h", r#""c", "d""#) + &route("over", "a", "c"))),
        &[
            "f.toml:28:7: \"c\" is a member of group \"h\" (line 24), which no one-way route may enter; its copies would stay on \"c\": let the applications write to the group, or make \"a\" a member of it",
        ],
    );
}

#[test]
fn one_way_routes_may_leave_a_group() {
    let text =
        group("g", r#""a", "b""#) + &route("x", "a", "c") + &route("y", "b", "c") + &route("z", "c", "d");
    assert_eq!(parse(&among(&text)).unwrap().routes.len(), 5);
    refuses(
        &among(&(text.clone() + &route("back", "d", "c"))),
        &[
            "f.toml:37:7: this closes a loop of one-way routes: \"c\" -> \"d\" -> \"c\"; a change would go round for ever; remove one of the routes",
        ],
    );
}

#[test]
fn rates_are_for_members_of_the_group() {
    refuses(
        &among(&(group("g", r#""a", "b""#) + "max_writes_per_second = { c = 5, a = 1 }\n")),
        &[
            "f.toml:22:25: \"max_writes_per_second\" names \"c\"; it must be one of the group's members, as in \"members\"",
        ],
    );
    // A member that is unknown is said once.
    refuses(
        &among(&(group("g", r#""a", "b", "zebra""#) + "max_writes_per_second = { zebra = 5 }\n")),
        &[
            "f.toml:21:22: \"members\" names member \"zebra\", which does not exist; the members are a, b, c, d",
        ],
    );
}

#[test]
fn every_member_of_a_group_is_a_source() {
    let endpoint = "endpoint = \"https://dynamodb.eu-west-1.amazonaws.com\"\n[[member]]\nname = \"c\"";
    refuses(
        &among(&group("g", r#""a", "b""#)).replace("[[member]]\nname = \"c\"", endpoint),
        &[
            "f.toml:22:17: member \"b\" has AWS's endpoint for tables (line 11) and none for streams; add streams_endpoint = \"https://streams.dynamodb.eu-west-1.amazonaws.com\" to the member",
        ],
    );
}
