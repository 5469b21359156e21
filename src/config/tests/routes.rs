//! What is refused about members and routes together, and in which words.

use super::{parse, plus, refuses, with};

#[test]
fn names_are_unique() {
    refuses(
        &plus(
            r#"[[member]]
name = "old"
table = "arn:aws:dynamodb:eu-west-1:333333333333:table/orders"
[[route]]
name = "move"
from = "new"
to = ["nev"]
"#,
        ),
        &[
            "f.toml:16:8: member \"old\" exists already, on line 5; names are unique",
            "f.toml:19:8: route \"move\" exists already, on line 12; names are unique",
            "f.toml:21:7: \"to\" names member \"nev\", which does not exist; did you mean \"new\"?",
        ],
    );
}

#[test]
fn a_table_is_one_member_and_never_the_state_table() {
    let same =
        "[[member]]\nname = \"twin\"\ntable = \"arn:aws:dynamodb:eu-west-1:111111111111:table/orders\"\n";
    refuses(
        &plus(same),
        &[
            "f.toml:17:9: table arn:aws:dynamodb:eu-west-1:111111111111:table/orders is a member already, on line 6; a table is one member; routes may share it",
        ],
    );
    let state = with(
        "\"shardwalker-state\"\nregion = \"eu-west-1\"",
        "\"arn:aws:dynamodb:us-east-1:222222222222:table/orders\"\n",
    );
    refuses(
        &state,
        &[
            "f.toml:9:9: table arn:aws:dynamodb:us-east-1:222222222222:table/orders is the state table; the state table cannot be a member",
        ],
    );
}

/// Members a, b and c with numbers 0, 1 and 2, then routes from line 15 on.
fn among(routes: &str) -> String {
    let mut text = "[state]\ntable = \"arn:aws:dynamodb:eu-west-1:999999999999:table/state\"\n".to_owned();
    for (number, name) in ["a", "b", "c"].iter().enumerate() {
        text += &format!(
            "[[member]]\nname = \"{name}\"\nnumber = {number}\ntable = \"arn:aws:dynamodb:eu-west-1:{number:012}:table/orders\"\n"
        );
    }
    text + routes
}

#[test]
fn routes_name_members_that_exist() {
    refuses(
        &among("[[route]]\nname = \"r\"\nfrom = \"aa\"\nto = [\"zebra\", \"b\"]\n"),
        &[
            "f.toml:17:8: \"from\" names member \"aa\", which does not exist; did you mean \"a\"?",
            "f.toml:18:7: \"to\" names member \"zebra\", which does not exist; the members are a, b, c",
        ],
    );
}

#[test]
fn a_name_is_not_unknown_when_members_could_not_be_read() {
    let route = "[[route]]\nname = \"r\"\nfrom = \"a\"\nto = [\"x\"]\n";
    refuses(&among(route).replace("\"b\"", "5"), &["f.toml:8:8: \"name\" must be a string, not an integer"]);
    refuses(
        "member = 1\nroute = [{ name = \"r\", from = \"a\", to = [\"x\"] }]\n[state]\ntable = \"arn:aws:dynamodb:eu-west-1:999999999999:table/state\"",
        &["f.toml:1:10: \"member\" must be an array of tables, not an integer; write [[member]]"],
    );
}

#[test]
fn a_route_leads_elsewhere_and_once() {
    refuses(
        &among(
            "[[route]]\nname = \"r\"\nfrom = \"a\"\nto = [\"a\", \"b\", \"b\"]\n[[route]]\nname = \"s\"\nfrom = \"a\"\nto = [\"b\"]\n[[route]]\nname = \"t\"\nfrom = \"a\"\nto = []\n",
        ),
        &[
            "f.toml:18:7: \"to\" names \"a\", from which the route comes",
            "f.toml:18:17: \"to\" names \"b\" twice",
            "f.toml:22:7: route \"r\" (line 18) copies \"a\" to \"b\" already",
            "f.toml:26:6: \"to\" must not be empty; write to = [\"MEMBER\", ...]",
        ],
    );
}

#[test]
fn one_way_routes_make_no_loop() {
    let route = |name: &str, from: &str, to: &str| {
        format!("[[route]]\nname = \"{name}\"\nfrom = \"{from}\"\nto = [\"{to}\"]\n")
    };
    refuses(
        &among(&(route("x", "a", "b") + &route("y", "b", "c") + &route("z", "c", "a"))),
        &[
            "f.toml:26:7: this closes a loop of one-way routes: \"a\" -> \"b\" -> \"c\" -> \"a\"; a change would go round for ever; remove one of the routes",
        ],
    );
    refuses(
        &among(&(route("x", "a", "b") + &route("y", "b", "a"))),
        &[
            "f.toml:22:7: this closes a loop of one-way routes: \"a\" -> \"b\" -> \"a\"; a change would go round for ever; remove one of the routes",
        ],
    );
    let chain =
        parse(&among(&(route("x", "a", "b") + &route("y", "b", "c") + &route("z", "a", "c")))).unwrap();
    assert_eq!(
        chain.routes.iter().map(|route| (route.from, route.to[0])).collect::<Vec<_>>(),
        [(0, 1), (1, 2), (0, 2)]
    );
}

#[test]
fn sources_of_one_peer_have_their_own_numbers_and_one_stamp() {
    let routes = "[[route]]\nname = \"x\"\nfrom = \"a\"\nto = [\"c\"]\n[[route]]\nname = \"y\"\nfrom = \"b\"\nto = [\"c\"]\n";
    parse(&among(routes)).unwrap();
    refuses(
        &among(routes).replace("number = 1", "number = 0"),
        &[
            "f.toml:22:7: \"a\" and \"b\" both write to \"c\" and both have number 0, their versions could tie; give \"b\" another number",
        ],
    );
    refuses(
        &format!("{}stamp = \"seen\"\n", among(routes)),
        &[
            "f.toml:22:7: route \"x\" (line 18) writes to \"c\" too, with another stamp; routes to one member need the same stamp to see each other's versions",
        ],
    );
    // What could not be read is reported once and not compared.
    refuses(
        &among(routes).replace("number = 0", "number = -1").replace("number = 1", "number = -1"),
        &[
            "f.toml:5:10: \"number\" must be from 0 to 255, not -1",
            "f.toml:9:10: \"number\" must be from 0 to 255, not -1",
        ],
    );
}

#[test]
fn rates_are_for_all_peers_or_for_those_that_are_named() {
    let rates = |line: &str| parse(&plus(line)).map(|config| config.routes[0].max_writes.clone());
    assert_eq!(rates("max_writes_per_second = 50"), Ok([(1, 50)].into()));
    assert_eq!(rates("max_writes_per_second = { new = 7 }"), Ok([(1, 7)].into()));
    refuses(
        &plus("max_writes_per_second = { old = 7 }"),
        &[
            "f.toml:15:25: \"max_writes_per_second\" names \"old\"; it must be one of the route's peers, as in \"to\"",
        ],
    );
    refuses(
        &plus("max_writes_per_second = { new = 0 }"),
        &["f.toml:15:25: \"max_writes_per_second\" of \"new\" must be from 1 to 1000000, not 0"],
    );
}

#[test]
fn a_guard_needs_a_limit() {
    refuses(
        &plus("guard = { window = \"1min\" }"),
        &[
            "f.toml:15:9: missing key \"max_deletes\" in [route.guard]; or \"max_delete_share\": a guard needs something to guard against",
        ],
    );
    refuses(
        &plus("guard = { max_delete_share = 1.5 }"),
        &["f.toml:15:30: \"max_delete_share\" must be more than 0 and at most 1, such as 0.5"],
    );
    let config = parse(&plus("guard = { max_deletes = 0 }")).unwrap();
    assert_eq!(config.routes[0].guard.as_ref().map(|guard| guard.max_deletes), Some(Some(0)));
}
