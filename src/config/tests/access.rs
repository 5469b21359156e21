//! What is refused about ARNs, Regions, endpoints and roles, and in which words.

use super::{SOUND, in_old, parse, refuses, report, top, with};
use crate::config::TableArn;
use std::time::Duration;

#[test]
fn an_arn_is_refused_for_the_part_that_is_wrong() {
    let good = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders";
    let write = "; write \"arn:aws:dynamodb:REGION:ACCOUNT:table/NAME\"";
    let cases = [
        ("orders", format!("an ARN has six parts between colons, this has 1{write}")),
        (
            "ran:aws:dynamodb:eu-west-1:111111111111:table/orders",
            format!("its prefix \"ran\" is not \"arn\"{write}"),
        ),
        (
            "arn:AWS:dynamodb:eu-west-1:111111111111:table/orders",
            format!("its partition \"AWS\" is not \"aws\", \"aws-cn\", \"aws-us-gov\" or alike{write}"),
        ),
        (
            "arn:aws:s3:eu-west-1:111111111111:table/orders",
            format!("its service \"s3\" is not \"dynamodb\"{write}"),
        ),
        (
            "arn:aws:dynamodb::111111111111:table/orders",
            format!("its Region \"\" is not a Region's name{write}"),
        ),
        (
            "arn:aws:dynamodb:eu-west-1:11111111111x:table/orders",
            format!("its account \"11111111111x\" is not twelve digits{write}"),
        ),
        (
            "arn:aws:dynamodb:eu-west-1:111111111111:orders",
            format!("its resource \"orders\" does not begin with \"table/\"{write}"),
        ),
        (
            "arn:aws:dynamodb:eu-west-1:111111111111:table/o rders",
            format!(
                "its table name \"o rders\" is not 3 to 255 letters, digits, \"-\", \"_\" or \".\"{write}"
            ),
        ),
        (
            "arn:aws:dynamodb:eu-west-1:111111111111:table/orders/stream/2026-01-01T00:00:00.000",
            format!("it names a stream of {good}; write \"{good}\", the stream is found through the table"),
        ),
        (
            "arn:aws:dynamodb:eu-west-1:111111111111:table/orders/index/by-day",
            format!("it names an index of {good}; write \"{good}\""),
        ),
    ];
    for (arn, problem) in cases {
        let text = SOUND.replace(good, arn);
        assert_eq!(report(&text), [format!("f.toml:6:9: \"table\" is not a table's ARN: {problem}")]);
    }
    let arn: TableArn = "arn:aws-cn:dynamodb:cn-north-1:123456789012:table/a.b-c_D".parse().unwrap();
    assert_eq!(arn.to_string(), "arn:aws-cn:dynamodb:cn-north-1:123456789012:table/a.b-c_D");
}

#[test]
fn the_state_table_has_one_region() {
    refuses(
        &with("region = \"eu-west-1\"\n", ""),
        &[
            "f.toml:1:1: missing key \"region\" in [state]; a table's name does not tell its Region: write region = \"eu-west-1\"",
        ],
    );
    let arn = "\"arn:aws:dynamodb:eu-central-1:999999999999:table/state\"";
    refuses(
        &with("\"shardwalker-state\"", arn),
        &["f.toml:3:10: \"region\" is eu-west-1, but the table's ARN is of eu-central-1; leave the key out"],
    );
    let config = parse(&with("\"shardwalker-state\"\nregion = \"eu-west-1\"", arn)).unwrap();
    assert_eq!(config.state.access.region, "eu-central-1");
    assert_eq!(config.state.table, arn.trim_matches('"'));
}

#[test]
fn a_client_has_one_region() {
    let streams = "streams_endpoint = \"https://streams.dynamodb.eu-west-1.amazonaws.com\"\n";
    parse(&in_old(&format!("endpoint = \"https://dynamodb.eu-west-1.amazonaws.com\"\n{streams}"))).unwrap();
    refuses(
        &in_old(&format!("endpoint = \"https://dynamodb.eu-west-2.amazonaws.com\"\n{streams}")),
        &[
            "f.toml:7:12: \"endpoint\" is of Region eu-west-2, but member \"old\" is in eu-west-1; use an endpoint of eu-west-1",
        ],
    );
    refuses(
        &in_old(
            "streams_endpoint = \"https://vpce-0a1b2c-3d4e.streams.dynamodb.us-east-1.vpce.amazonaws.com\"",
        ),
        &[
            "f.toml:7:20: \"streams_endpoint\" is of Region us-east-1, but member \"old\" is in eu-west-1; use an endpoint of eu-west-1",
        ],
    );
    refuses(
        &in_old(
            "[member.assume_role]\nrole = \"arn:aws:iam::111111111111:role/r\"\nsts_endpoint = \"https://sts.us-east-1.amazonaws.com\"",
        ),
        &[
            "f.toml:9:16: \"sts_endpoint\" is of Region us-east-1, but member \"old\" is in eu-west-1; use an endpoint of eu-west-1",
        ],
    );
    // One default for tables of two Regions cannot be an endpoint of AWS.
    refuses(
        &top("endpoint = \"https://dynamodb.us-east-1.api.aws\""),
        &[
            "f.toml:1:12: \"endpoint\" is of Region us-east-1, but member \"old\" is in eu-west-1; use an endpoint of eu-west-1",
            "f.toml:1:12: \"endpoint\" is of Region us-east-1, but the state table is in eu-west-1; use an endpoint of eu-west-1",
            "f.toml:14:8: member \"old\" has AWS's endpoint for tables (line 1) and none for streams; add streams_endpoint = \"https://streams.dynamodb.eu-west-1.amazonaws.com\" to the member",
        ],
    );
}

#[test]
fn a_custom_endpoint_serves_all_regions_streams_and_roles() {
    let role = "[member.assume_role]\nrole = \"arn:aws:iam::111111111111:role/r\"";
    let text = format!("endpoint = \"http://127.0.0.1:8123\"\n{}", in_old(role));
    let config = parse(&text).unwrap();
    for access in config.members.iter().map(|member| &member.access).chain([&config.state.access]) {
        assert_eq!(access.endpoint.as_deref(), Some("http://127.0.0.1:8123"));
        assert_eq!(access.streams_endpoint, None);
    }
    let role = config.members[0].access.assume_role.as_ref().unwrap();
    assert_eq!(role.sts_endpoint.as_deref(), Some("http://127.0.0.1:8123"));
    assert_eq!((role.session_name.as_str(), role.duration), ("shardwalker", Duration::from_hours(1)));
    // A member's own comes first.
    let own =
        parse(&text.replace("[member.assume_role]", "endpoint = \"http://[::1]:1\"\n[member.assume_role]"));
    assert_eq!(own.unwrap().members[0].access.endpoint.as_deref(), Some("http://[::1]:1"));
}

#[test]
fn an_endpoint_is_a_url_and_plain_http_stays_at_home() {
    let url = "must be a URL such as \"https://dynamodb.example.com:8000\", not";
    for (endpoint, problem) in [
        ("localhost:8000", format!("{url} \"localhost:8000\"")),
        ("http://localhost:99999", format!("{url} \"http://localhost:99999\"")),
        ("http://localhost:", format!("{url} \"http://localhost:\"")),
        ("ftp://example.com", format!("{url} \"ftp://example.com\"")),
        ("https://example.com/?x", format!("{url} \"https://example.com/?x\"")),
        ("", format!("{url} \"\"")),
        ("http://emulator:8000", "must be https, items would travel in the clear to host \"emulator\"; use https, or set allow_http = true at the top level if that network is yours".to_owned()),
    ] {
        let text = top(&format!("endpoint = \"{endpoint}\""));
        assert_eq!(report(&text), [format!("f.toml:1:12: \"endpoint\" {problem}")]);
    }
    parse(&top("allow_http = true\nendpoint = \"http://emulator:8000\"")).unwrap();
    parse(&top("endpoint = \"http://localhost:8000\"")).unwrap();
    refuses(
        &top("allow_http = 1\nendpoint = \"http://emulator:8000\""),
        &["f.toml:1:14: \"allow_http\" must be true or false, not an integer"],
    );
}

#[test]
fn a_role_is_of_the_tables_account() {
    let role = |role: &str| in_old(&format!("[member.assume_role]\nrole = \"{role}\""));
    refuses(
        &role("arn:aws:iam::222222222222:role/replicator"),
        &[
            "f.toml:8:8: \"role\" is of account 222222222222, but member \"old\" is in 111111111111; give a role of account 111111111111",
        ],
    );
    refuses(
        &role("arn:aws-cn:iam::111111111111:role/replicator"),
        &["f.toml:8:8: \"role\" is of partition aws-cn, but member \"old\" is in aws"],
    );
    let write = "; write \"arn:aws:iam::ACCOUNT:role/NAME\"";
    for (arn, problem) in [
        ("arn:aws:sts::111111111111:assumed-role/r/s", "its service \"sts\" is that of a session of a role"),
        (
            "arn:aws:iam::111111111111:user/ann",
            "its resource \"user/ann\" is not \"role/\" and a role's name",
        ),
        ("arn:aws:iam::111111111111:role/", "its resource \"role/\" is not \"role/\" and a role's name"),
        (
            "arn:aws:iam:eu-west-1:111111111111:role/r",
            "its Region \"eu-west-1\" is not empty, as a role's is",
        ),
        ("arn:aws:iam::111:role/r", "its account \"111\" is not twelve digits"),
        ("arn:aws:s3::111111111111:role/r", "its service \"s3\" is not \"iam\""),
    ] {
        let expected = format!("f.toml:8:8: \"role\" is not a role's ARN: {problem}{write}");
        assert_eq!(report(&role(arn)), [expected]);
    }
    parse(&role("arn:aws:iam::111111111111:role/team/replicator")).unwrap();
}

#[test]
fn the_settings_of_a_role_keep_to_its_bounds() {
    refuses(
        &in_old("[member.assume_role]\nduration = \"5min\"\nexternal_id = \"x\"\nsession_name = \"a b\""),
        &[
            "f.toml:7:1: missing key \"role\" in [member.assume_role]; the role's ARN, \"arn:aws:iam::ACCOUNT:role/NAME\"",
            "f.toml:8:12: \"duration\" must be from 15min to 12h, not \"5min\"",
            "f.toml:9:15: \"external_id\" must be 2 to 1224 letters, digits or any of _+=,.@:/-, not \"x\"",
            "f.toml:10:16: \"session_name\" must be 2 to 64 letters, digits or any of _+=,.@-, not \"a b\"",
        ],
    );
}
