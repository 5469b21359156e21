//! What is refused in a file, a section or a value, and in which words.

use super::{SOUND, in_old, parse, parse_with, plus, refuses, report, top, with};
use crate::config::{Config, OnGap, Place, Start};
use std::time::{Duration, SystemTime};

#[test]
fn a_small_file_gets_every_default() {
    let config = parse(SOUND).unwrap();
    assert_eq!(config.state.table, "shardwalker-state");
    assert_eq!(config.state.access.region, "eu-west-1");
    assert_eq!(config.state.tombstone_retention, Duration::from_hours(168));
    let old = config.member("old").unwrap();
    assert_eq!(old.arn.to_string(), "arn:aws:dynamodb:eu-west-1:111111111111:table/orders");
    assert_eq!((old.access.region.as_str(), old.number), ("eu-west-1", 0));
    assert_eq!(old.access.endpoint, None);
    let route = config.route("move").unwrap();
    assert_eq!((route.from, route.to.as_slice()), (0, &[1][..]));
    assert_eq!((route.ttl_deletes, route.stamp.as_str()), (true, "shardwalker"));
    assert_eq!((route.start, route.on_gap), (Start::TrimHorizon, OnGap::Stop));
    assert_eq!(route.max_clock_drift, Duration::from_secs(60));
    assert_eq!(config.read, crate::config::Read::default());
    assert_eq!(config.write, crate::config::Write::default());
    assert_eq!(config.lease, crate::config::Lease::default());
    assert_eq!(config.admin, crate::config::Admin::default());
    assert_eq!((config.grace, config.access_patience), (Duration::from_secs(25), Duration::from_secs(30)));
    assert_eq!((config.member("none"), config.route("none")), (None, None));
}

#[test]
fn all_problems_come_in_one_report_in_the_order_of_the_file() {
    refuses(
        r#"grace = 25
[state]
table = "s"
profil = "ops"
[[member]]
name = "a b"
table = "arn:aws:dynamodb:eu-west-1:1234:table/orders"
[[member]]
number = 256
[[route]]
name = "r"
too = ["x"]
[read]
idle_interval = "1 fortnight"
[write]
in_flight = 0
"#,
        &[
            "f.toml:1:9: \"grace\" must be a duration such as \"30s\", not an integer",
            "f.toml:3:9: \"table\" must be a table's ARN, or its name of 3 to 255 letters, digits, \"-\", \"_\" or \".\", not \"s\"",
            "f.toml:4:1: unknown key \"profil\" in [state]; did you mean \"profile\"?",
            "f.toml:6:8: \"name\" must be 1 to 64 letters, digits, \"-\", \"_\" or \".\", not \"a b\"",
            "f.toml:7:9: \"table\" is not a table's ARN: its account \"1234\" is not twelve digits; write \"arn:aws:dynamodb:REGION:ACCOUNT:table/NAME\"",
            "f.toml:8:1: missing key \"name\" in [[member]]; a name of your choice for the table",
            "f.toml:8:1: missing key \"table\" in [[member]]; the table's ARN, \"arn:aws:dynamodb:REGION:ACCOUNT:table/NAME\"",
            "f.toml:9:10: \"number\" must be from 0 to 255, not 256",
            "f.toml:10:1: missing key \"from\" in [[route]]; the name of the member whose changes are copied",
            "f.toml:10:1: missing key \"to\" in [[route]]; write to = [\"MEMBER\", ...]",
            "f.toml:12:1: unknown key \"too\" in [[route]]; did you mean \"to\"?",
            "f.toml:14:17: \"idle_interval\" must be a duration such as \"30s\", not \"1 fortnight\"",
            "f.toml:16:13: \"in_flight\" must be from 1 to 1000, not 0",
        ],
    );
}

#[test]
fn an_empty_file_says_what_belongs_there() {
    refuses(
        "",
        &[
            "f.toml: missing [[member]]; name each table that routes copy from or to",
            "f.toml: missing [[route]] or [[group]]; say which member is copied to which, or which members hold the same items",
            "f.toml: missing key \"table\" in [state]; the state table's name or ARN",
        ],
    );
    refuses(
        "member = []\nroute = [1]\n[state]\ntable = \"state\"\nregion = \"eu-west-1\"",
        &[
            "f.toml:1:10: \"member\" must not be empty; name each table that routes copy from or to",
            "f.toml:2:10: \"route\" must be an array of tables, not an integer; write [[route]]",
        ],
    );
}

#[test]
fn several_errors_of_syntax_come_together_and_hide_no_others() {
    refuses(
        "[state]\ntable = \"state\nregion = eu-west-1\n[[member]]\nname = 5\n[[route]]\nfrom = \"x\"\nto = [\"y\"",
        &[
            "f.toml:2:15: invalid basic string, expected `\"`",
            "f.toml:3:10: string values must be quoted, expected literal string",
            "f.toml:5:8: \"name\" must be a string, not an integer",
            "f.toml:8:10: unclosed array, expected `]`",
        ],
    );
}

#[test]
fn wrong_types_are_named() {
    refuses(
        &plus("on_gap = 1\nstart = [1]\nttl_deletes = \"no\"\nstamp = 2.5\n[lease]\nduration = 2026-01-01\n"),
        &[
            "f.toml:15:10: \"on_gap\" must be a string, not an integer",
            "f.toml:16:9: \"start\" must be \"trim-horizon\", \"latest\" or a time such as \"2026-01-01T00:00:00Z\"",
            "f.toml:17:15: \"ttl_deletes\" must be true or false, not a string",
            "f.toml:18:9: \"stamp\" must be a string, not a float",
            "f.toml:20:12: \"duration\" must be a duration such as \"30s\", not a date or time",
        ],
    );
    refuses(
        &with("to = [\"new\"]", "to = \"new\"").replace("[state]", "[[state]]"),
        &[
            "f.toml:1:1: \"state\" must be a table, not an array; write [state]",
            "f.toml:14:6: \"to\" must be an array of strings, not a string; write to = [\"MEMBER\", ...]",
        ],
    );
    refuses(&with("[\"new\"]", "[\"new\", 1]"), &["f.toml:14:14: \"to\" must hold strings only"]);
    refuses(
        &with("[[route]]", "[route]"),
        &["f.toml:11:1: \"route\" must be an array of tables, not a table; write [[route]]"],
    );
}

#[test]
fn columns_count_characters() {
    refuses(
        &in_old(
            "assume_role = { external_id = \"größe\", x = 1, role = \"arn:aws:iam::111111111111:role/r\" }",
        ),
        &[
            "f.toml:7:31: \"external_id\" must be 2 to 1224 letters, digits or any of _+=,.@:/-, not \"größe\"",
            "f.toml:7:40: unknown key \"x\" in [member.assume_role]; the keys here are duration, external_id, role, session_name, sts_endpoint",
        ],
    );
}

#[test]
fn credentials_have_no_place_in_the_file() {
    let credential = "looks like a credential; credentials are never in the file: use a profile, a role or the environment";
    let text = in_old(
        "aws_secret_access_key = \"abc\"\naccess-key-id = \"AKIA\"\nSessionToken = 1\npassword = \"x\"",
    );
    let expected = [
        format!("f.toml:7:1: \"aws_secret_access_key\" {credential}"),
        format!("f.toml:8:1: \"access-key-id\" {credential}"),
        format!("f.toml:9:1: \"SessionToken\" {credential}"),
        format!("f.toml:10:1: \"password\" {credential}"),
    ];
    assert_eq!(report(&text), expected);
    refuses(
        &top("endpoint = \"https://AKIAXX:hush@example.com\""),
        &[
            "f.toml:1:12: \"endpoint\" must be a URL without user name and password; credentials are never in the file: use a profile, a role or the environment",
        ],
    );
}

#[test]
fn a_stamp_is_an_attributes_name() {
    refuses(
        &plus("stamp = \"\"\n"),
        &["f.toml:15:9: \"stamp\" must be an attribute's name of 1 to 255 bytes, not \"\""],
    );
    let long = "ä".repeat(128);
    let cut = "ä".repeat(80);
    refuses(
        &plus(&format!("stamp = \"{long}\"\n")),
        &[&format!("f.toml:15:9: \"stamp\" must be an attribute's name of 1 to 255 bytes, not \"{cut}\"…")],
    );
}

#[test]
fn a_start_is_a_position_or_a_time_with_its_offset() {
    let at = |millis| Start::At(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
    for (start, expected) in [
        ("\"trim-horizon\"", Start::TrimHorizon),
        ("\"latest\"", Start::Latest),
        ("\"2026-01-01T00:00:00Z\"", at(1_767_225_600_000)),
        ("2026-01-01T00:00:00Z", at(1_767_225_600_000)),
        ("2026-01-01 01:30:00.5+01:30", at(1_767_225_600_500)),
        ("\"2025-12-31T23:00:00-01:00\"", at(1_767_225_600_000)),
    ] {
        assert_eq!(parse(&plus(&format!("start = {start}\n"))).unwrap().routes[0].start, expected, "{start}");
    }
    let rule = "must be \"trim-horizon\", \"latest\" or a time such as \"2026-01-01T00:00:00Z\"";
    let time = "must be a time from 1970 on with its offset from UTC";
    for (start, problem) in [
        ("\"oldest\"", format!("{rule}, not \"oldest\"")),
        ("5", rule.to_owned()),
        ("2026-01-01T00:00:00", format!("{time}, not \"2026-01-01T00:00:00\"; append \"Z\" for UTC")),
        ("\"1969-12-31T23:59:59Z\"", format!("{time}, not \"1969-12-31T23:59:59Z\"")),
        ("1970-01-01T00:00:00+01:00", format!("{time}, not \"1970-01-01T00:00:00+01:00\"")),
    ] {
        assert_eq!(
            report(&plus(&format!("start = {start}\n"))),
            [format!("f.toml:15:9: \"start\" {problem}")]
        );
    }
    refuses(
        &plus("on_gap = \"ignore\"\n"),
        &["f.toml:15:10: \"on_gap\" must be \"stop\" or \"continue\", not \"ignore\""],
    );
}

#[test]
fn numbers_and_durations_keep_to_their_ranges() {
    refuses(
        &format!(
            "grace = \"2h\"\naccess_patience = \"20min\"\n{}",
            plus(
                r#"max_clock_drift = "500ms"
[read]
min_interval = "100ms"
idle_interval = "2min"
list_interval = "1ms"
describe_rate = 11
[write]
in_flight = 1001
checkpoint_interval = "0"
request_timeout = "99999999999999999999999s"
[lease]
duration = "2s"
renew_interval = "1ms"
worker = "two words"
[admin]
listen = "localhost:9464"
stall_after = "9s"
"#
            )
            .replace("[state]", "[state]\ntombstone_retention = \"24h\"")
        ),
        &[
            "f.toml:1:9: \"grace\" must be from 0ms to 1h, not \"2h\"",
            "f.toml:2:19: \"access_patience\" must be from 0ms to 15min, not \"20min\"",
            "f.toml:4:23: \"tombstone_retention\" must be from 25h to 365d, not \"24h\"",
            "f.toml:18:19: \"max_clock_drift\" must be from 1s to 1h, not \"500ms\"",
            "f.toml:20:16: \"min_interval\" must be from 200ms to 1min, not \"100ms\"",
            "f.toml:21:17: \"idle_interval\" must be from 200ms to 1min, not \"2min\"",
            "f.toml:22:17: \"list_interval\" must be from 1s to 10min, not \"1ms\"",
            "f.toml:23:17: \"describe_rate\" must be from 1 to 10, not 11",
            "f.toml:25:13: \"in_flight\" must be from 1 to 1000, not 1001",
            "f.toml:26:23: \"checkpoint_interval\" must be from 100ms to 1min, not \"0\"",
            "f.toml:27:19: \"request_timeout\" must be from 100ms to 1min, not \"99999999999999999999999s\"",
            "f.toml:29:12: \"duration\" must be from 3s to 10min, not \"2s\"",
            "f.toml:30:18: \"renew_interval\" must be from 100ms to 10min, not \"1ms\"",
            "f.toml:31:10: \"worker\" must be 1 to 128 visible ASCII characters, not \"two words\"",
            "f.toml:33:10: \"listen\" must be an IP address and port such as \"127.0.0.1:9464\", or \"off\", not \"localhost:9464\"",
            "f.toml:34:15: \"stall_after\" must be from 10s to 1d, not \"9s\"",
        ],
    );
}

#[test]
fn settings_that_depend_on_each_other_agree() {
    let third = "more than a third of the lease's duration of";
    let remedy = "; a worker must have time for a second try before its lease runs out";
    let text =
        plus("[lease]\nduration = \"12s\"\nrenew_interval = \"5s\"\n[write]\nrequest_timeout = \"4s\"\n");
    assert_eq!(report(&text), [format!("f.toml:17:18: \"renew_interval\" is 5s, {third} 12s{remedy}")]);
    // A default that no longer fits is the lease's fault.
    let text = plus("[lease]\nduration = \"12s\"\n");
    assert_eq!(report(&text), [format!("f.toml:16:12: \"request_timeout\" is 5s, {third} 12s{remedy}")]);
    let config = parse(&plus("[lease]\nduration = \"15s\"\n")).unwrap();
    assert_eq!(config.lease.renew_interval, Duration::from_millis(2500));

    refuses(
        &plus("[read]\nmin_interval = \"2s\"\n"),
        &["f.toml:16:16: \"idle_interval\" is 1s, less than \"min_interval\", which is 2s"],
    );
    refuses(
        &plus("[read]\nidle_interval = \"20s\"\n[admin]\nstall_after = \"10s\"\n"),
        &[
            "f.toml:18:15: \"stall_after\" is 10s, less than \"idle_interval\", which is 20s; an idle shard would count as stalled",
        ],
    );
}

#[test]
fn durations_at_the_end_of_their_type_are_refused() {
    for text in [
        "18446744073709551615s 1000ms",
        "1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s",
    ] {
        let problems = report(&top(&format!("grace = \"{text}\"")));
        assert_eq!(problems, [format!("f.toml:1:9: \"grace\" must be from 0ms to 1h, not \"{text}\"")]);
    }
}

#[test]
fn the_environment_overrides_the_file() {
    let config = parse_with(
        SOUND,
        &[
            ("SHARDWALKER_ENDPOINT", "http://127.0.0.1:8000"),
            ("SHARDWALKER_STATE_TABLE", "other-state"),
            ("SHARDWALKER_STATE_REGION", "us-west-2"),
            ("SHARDWALKER_WORKER", "pod-7"),
            ("SHARDWALKER_ADMIN_LISTEN", "off"),
        ],
    )
    .unwrap();
    assert_eq!(config.members[1].access.endpoint.as_deref(), Some("http://127.0.0.1:8000"));
    assert_eq!(
        (config.state.table.as_str(), config.state.access.region.as_str()),
        ("other-state", "us-west-2")
    );
    assert_eq!((config.lease.worker.as_deref(), config.admin.listen), (Some("pod-7"), None));
    // Empty is unset.
    assert_eq!(parse_with(SOUND, &[("SHARDWALKER_WORKER", "")]).unwrap().lease.worker, None);
}

#[test]
fn a_problem_of_a_variable_names_it() {
    let arn = "arn:aws:dynamodb:eu-central-1:999999999999:table/state";
    let env = [
        ("SHARDWALKER_ADMIN_LISTEN", ":9464"),
        ("SHARDWALKER_STATE_TABLE", arn),
        ("SHARDWALKER_ENDPOINT", "https://dynamodb.eu-central-1.amazonaws.com"),
    ];
    let streams = "streams_endpoint = \"https://127.0.0.1:8000\"";
    let report = parse_with(&in_old(streams).replace("us-east-1", "eu-central-1"), &env).unwrap_err();
    let expected = [
        "f.toml:3:10: \"region\" is eu-west-1, but the table's ARN is of eu-central-1; leave the key out",
        "SHARDWALKER_ADMIN_LISTEN: \"listen\" must be an IP address and port such as \"127.0.0.1:9464\", or \"off\", not \":9464\"",
        "SHARDWALKER_ENDPOINT: \"endpoint\" is of Region eu-central-1, but member \"old\" is in eu-west-1; use an endpoint of eu-west-1",
    ];
    assert_eq!(report.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_file_that_cannot_be_read_is_one_problem() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none.toml");
    let report = Config::load(&path).unwrap_err();
    assert_eq!(report.problems.len(), 1);
    assert_eq!(report.problems[0].place, Place::File);
    assert!(report.to_string().starts_with(&format!("{}: cannot read the configuration: ", path.display())));

    std::fs::write(&path, "[state]\nx = 1\n").unwrap();
    let report = Config::load(&path).unwrap_err();
    assert_eq!(report.origin, path.display().to_string());
}
