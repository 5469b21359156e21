//! What is refused about members and routes together, and in which words.

use super::{parse, plus, refuses, report, with};
use crate::config::FeedPlace;

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
fn routes_into_a_source_have_the_stamp_of_those_out_of_it() {
    let routes = "[[route]]\nname = \"x\"\nfrom = \"a\"\nto = [\"b\"]\nstamp = \"seen\"\n[[route]]\nname = \"y\"\nfrom = \"b\"\nto = [\"c\"]\n";
    let remedy = "its stamps would be copied on as attributes of the items: give both the same stamp";
    refuses(
        &among(routes),
        &[&format!(
            "f.toml:22:8: route \"x\" (line 18) writes to \"b\" with another stamp, \"seen\"; {remedy}"
        )],
    );
    parse(&format!("{}stamp = \"seen\"\n", among(routes))).unwrap();
    let feed = "[[feed]]\nname = \"lake\"\nurl = \"file:///lake\"\n";
    let to_a_feed = routes.replace("to = [\"c\"]", "to = [\"lake\"]");
    let said = report(&among(&format!("{to_a_feed}{feed}")));
    assert!(said.len() == 1 && said[0].contains(remedy), "{said:?}");
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

#[test]
fn feeds_stand_beside_members() {
    let feed = "[[feed]]\nname = \"lake\"\nurl = \"s3://lake/orders/\"\nregion = \"eu-west-1\"\n";
    let config = parse(&format!("{}{feed}", with("to = [\"new\"]", "to = [\"new\", \"lake\"]"))).unwrap();
    assert_eq!((config.routes[0].to.len(), config.routes[0].feeds.as_slice()), (1, [0].as_slice()));
    assert_eq!(config.lanes().collect::<Vec<_>>(), [("move", "new"), ("move", "lake")]);
    let alone = parse(&format!("{}{feed}", with("to = [\"new\"]", "to = [\"lake\"]"))).unwrap();
    assert!(alone.routes[0].to.is_empty());
    refuses(
        &format!("{}{feed}", with("to = [\"new\"]", "to = [\"lake\", \"lake\"]")),
        &["f.toml:14:15: \"to\" names feed \"lake\" twice"],
    );
}

#[test]
fn a_feed_takes_changes_one_way_only_and_in_the_routes_shape() {
    let feed = "[[feed]]\nname = \"lake\"\nurl = \"file:///lake\"\n";
    let with = |key: &str| {
        let route = with("to = [\"new\"]", &format!("to = [\"new\", \"lake\"]\n{key}"));
        format!("{route}{feed}")
    };
    let says = "f.toml:14:14: a route with a way back leads to no feed; give the feed a route of its own";
    refuses(&with("reversible = true"), &[says]);
    let config = parse(&with("shape = { exclude = [\"a\"] }")).unwrap();
    assert!(config.routes[0].shape.is_some() && config.routes[0].feeds == [0]);
}

#[test]
fn feeds_lie_in_three_clouds() {
    let place = |keys: &str| {
        let text = format!("[[feed]]\nname = \"lake\"\n{keys}\n");
        parse(&plus(&text)).map(|config| config.feeds[0].place.clone())
    };
    let google = FeedPlace::Gcs { bucket: "a_lake.x".into(), prefix: "p/q".into(), endpoint: None };
    assert_eq!(place("url = \"gs://a_lake.x/p/q/\""), Ok(google));
    let azure = |endpoint: Option<&str>| FeedPlace::Azure {
        account: "acme".into(),
        container: "lake-1".into(),
        prefix: String::new(),
        endpoint: endpoint.map(str::to_owned),
    };
    assert_eq!(place("url = \"az://acme/lake-1\""), Ok(azure(None)));
    let local = "http://127.0.0.1:10000";
    assert_eq!(place(&format!("url = \"az://acme/lake-1\"\nendpoint = \"{local}\"")), Ok(azure(Some(local))));
    let refused = |keys: &str| report(&plus(&format!("[[feed]]\nname = \"lake\"\n{keys}\n")));
    assert_eq!(
        refused("url = \"gs://Lake\""),
        ["f.toml:17:7: \"url\" must be \"gs://BUCKET/PREFIX\" with a bucket's name, not \"gs://Lake\""]
    );
    assert_eq!(
        refused("url = \"az://lake\""),
        [
            "f.toml:17:7: \"url\" must be \"az://ACCOUNT/CONTAINER/PREFIX\" with the names of a storage account and a container, not \"az://lake\""
        ]
    );
    let remedy = "credentials are those of the environment or the machine";
    for key in ["region = \"eu-west-1\"", "profile = \"p\""] {
        assert_eq!(
            refused(&format!("url = \"gs://lake\"\n{key}")),
            [format!(
                "f.toml:17:7: \"url\" has no use for \"region\", \"profile\" or \"assume_role\", which are AWS's; {remedy}"
            )]
        );
    }
}

#[test]
fn what_makes_no_sense_of_a_feed_is_refused() {
    let refused = |keys: &str| report(&plus(&format!("[[feed]]\nname = \"lake\"\n{keys}\n")));
    assert_eq!(
        refused("url = \"s3://lake\""),
        [
            "f.toml:15:1: missing key \"region\" in [[feed]]; a bucket's name does not tell its Region: write region = \"eu-west-1\""
        ]
    );
    assert_eq!(
        refused("url = \"stdout\"\nformat = \"parquet\""),
        ["f.toml:18:10: \"format\" cannot be \"parquet\" on stdout, which takes lines"]
    );
    assert_eq!(
        refused("url = \"file:///lake\"\ncolumns = { id = \"text\" }\nformat = \"parquet\""),
        [
            "f.toml:18:11: \"columns\" of \"id\" must be string, int64, double, decimal(PRECISION,SCALE), boolean, binary, list or json, not \"text\""
        ]
    );
    assert_eq!(
        refused("url = \"ftp://lake\""),
        [
            "f.toml:17:7: \"url\" must be \"stdout\", or begin with \"file://\", \"s3://\", \"gs://\" or \"az://\", not \"ftp://lake\""
        ]
    );
    assert_eq!(refused("url = \"stdout\"\nsecret_key = \"x\"").len(), 1);
}

#[test]
fn pristine_peers_are_of_one_route_that_has_no_way_back() {
    let pristine = "[[route]]\nname = \"x\"\nfrom = \"a\"\nto = [\"c\"]\npristine = true\n";
    assert!(parse(&among(pristine)).unwrap().routes[0].pristine);
    let other = "[[route]]\nname = \"y\"\nfrom = \"b\"\nto = [\"c\"]\n";
    for text in [format!("{pristine}{other}"), format!("{other}{pristine}")] {
        let report = parse(&among(&text)).unwrap_err().to_string();
        assert!(report.contains("and one of the two is pristine"), "{report}");
    }
    let report = parse(&among(&format!("{pristine}reversible = true\n"))).unwrap_err().to_string();
    assert!(report.contains("a way back rests on the stamps of both sides"), "{report}");
    let group = "[[group]]\nname = \"g\"\nmembers = [\"a\", \"b\"]\npristine = true\n";
    let report = parse(&among(group)).unwrap_err().to_string();
    assert!(report.contains("is for one-way routes"), "{report}");
}

#[test]
fn a_way_back_closes_no_loop_with_its_own_route_and_with_no_other() {
    let reversible = "[[route]]\nname = \"move\"\nfrom = \"a\"\nto = [\"b\"]\nreversible = true\n";
    let config = parse(&among(reversible)).unwrap();
    let routes: Vec<_> =
        config.routes.iter().map(|route| (route.name.as_str(), route.from, route.to.clone())).collect();
    assert_eq!(routes, [("move", 0, vec![1]), ("move/back", 1, vec![0])]);
    assert!(config.routes.iter().all(|route| route.pair() == Some("move")));
    let other = "[[route]]\nname = \"other\"\nfrom = \"b\"\nto = [\"c\"]\n";
    assert_eq!(parse(&among(&format!("{reversible}{other}"))).unwrap().routes.len(), 3);
    // While writers are at b: b -> a -> c -> b.
    let loops = "[[route]]\nname = \"on\"\nfrom = \"a\"\nto = [\"c\"]\n[[route]]\nname = \"up\"\nfrom = \"c\"\nto = [\"b\"]\n";
    let report = parse(&among(&format!("{reversible}{loops}"))).unwrap_err().to_string();
    assert!(
        report.contains("this closes a loop of one-way routes: \"b\" -> \"a\" -> \"c\" -> \"b\""),
        "{report}"
    );
    // What c writes to a would stay there once writers are at b.
    for to in ["a", "b"] {
        let beside = format!("[[route]]\nname = \"beside\"\nfrom = \"c\"\nto = [\"{to}\"]\n");
        for text in [format!("{reversible}{beside}"), format!("{beside}{reversible}")] {
            let report = parse(&among(&text)).unwrap_err().to_string();
            assert!(report.contains("and one of the two has a way back"), "{report}");
        }
    }
    let two = reversible.replace("[\"b\"]", "[\"b\", \"c\"]");
    refuses(
        &among(&two),
        &["f.toml:19:14: a route with a way back has one peer; give each of the others a route of its own"],
    );
}
