//! Whole files in, whole reports out.

mod access;
mod docs;
mod groups;
mod problems;
mod roundtrip;
mod routes;
mod shape;

use super::Config;

/// A sound file, to which tests append.
const SOUND: &str = r#"[state]
table = "shardwalker-state"
region = "eu-west-1"
[[member]]
name = "old"
table = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders"
[[member]]
name = "new"
table = "arn:aws:dynamodb:us-east-1:222222222222:table/orders"
number = 1
[[route]]
name = "move"
from = "old"
to = ["new"]
"#;

/// Parses without any environment.
fn parse(text: &str) -> Result<Config, String> {
    parse_with(text, &[])
}

/// Parses under these environment variables.
fn parse_with(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
    let lookup = |name: &str| env.iter().find(|entry| entry.0 == name).map(|entry| entry.1.to_owned());
    Config::parse(text, "f.toml", &lookup).map_err(|report| report.to_string())
}

/// The lines of the report on a file that is not sound.
#[track_caller]
fn report(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(config) => panic!("accepted as {config:#?}"),
        Err(report) => report.lines().map(str::to_owned).collect(),
    }
}

/// Asserts the exact report on `text`.
#[track_caller]
fn refuses(text: &str, expected: &[&str]) {
    assert_eq!(report(text), expected);
}

/// The sound file with one text replaced, which must occur once.
#[track_caller]
fn with(from: &str, to: &str) -> String {
    assert_eq!(SOUND.matches(from).count(), 1, "{from:?} in the sound file");
    SOUND.replace(from, to)
}

/// The sound file and more below it: the first added line is line 15.
fn plus(more: &str) -> String {
    format!("{SOUND}{more}")
}

/// The sound file with more keys at the top level, before the sections.
fn top(more: &str) -> String {
    format!("{more}\n{SOUND}")
}

/// The sound file with more keys in the first member, from line 7 on.
fn in_old(more: &str) -> String {
    with("111111111111:table/orders\"\n", &format!("111111111111:table/orders\"\n{more}\n"))
}
