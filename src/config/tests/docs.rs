//! docs/config.md and deploy/config.example.toml say what the parser does: its keys, ranges, defaults and
//! variables, no more and no less.

use super::{SOUND, parse, report};
use crate::config::section::VARIABLES;
use std::collections::{BTreeMap, BTreeSet};

const DOCS: &str = include_str!("../../../docs/config.md");
const EXAMPLE: &str = include_str!("../../../deploy/config.example.toml");
const TOP: &str = "Top level";
const SECTIONS: [&str; 17] = [
    TOP,
    "[state]",
    "[state.assume_role]",
    "[[member]]",
    "[member.assume_role]",
    "[[route]]",
    "[route.guard]",
    "[route.shape]",
    "[[feed]]",
    "[feed.assume_role]",
    "[[group]]",
    "[group.guard]",
    "[read]",
    "[write]",
    "[lease]",
    "[dead_letters]",
    "[admin]",
];

/// One documented key.
struct Row {
    key: &'static str,
    range: &'static str,
    default: &'static str,
}

/// What stands between the backquotes of a text.
fn quoted(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of the tables under the headings that name a section.
fn documented() -> BTreeMap<&'static str, Vec<Row>> {
    let mut sections = BTreeMap::new();
    for chapter in DOCS.split("\n## ").skip(1) {
        let (heading, body) = chapter.split_once('\n').unwrap();
        let titles = if heading == TOP { vec![TOP] } else { quoted(heading).collect() };
        for title in titles {
            let rows = body.lines().filter(|line| line.starts_with("| `")).map(|line| {
                let cells: Vec<&str> = line.split('|').map(str::trim).collect();
                Row { key: quoted(cells[1]).next().unwrap(), range: cells[2], default: cells[3] }
            });
            sections.insert(title, rows.collect());
        }
    }
    sections
}

const FEED: &str = "[[feed]]\nname = \"lake\"\nurl = \"s3://lake/orders\"\nregion = \"eu-west-1\"";

/// The sound file with one more line in a section.
fn with(section: &str, line: &str) -> String {
    let role = "role = \"arn:aws:iam::111111111111:role/r\"";
    match section {
        TOP => format!("{line}\n{SOUND}"),
        "[state]" => SOUND.replacen("[state]", &format!("[state]\n{line}"), 1),
        "[state.assume_role]" => format!("{SOUND}[state.assume_role]\n{role}\n{line}\n"),
        "[[member]]" => SOUND.replacen("[[member]]", &format!("[[member]]\n{line}"), 1),
        "[member.assume_role]" => SOUND.replacen(
            "[[member]]\nname = \"new\"",
            &format!("[member.assume_role]\n{role}\n{line}\n[[member]]\nname = \"new\""),
            1,
        ),
        "[[route]]" => format!("{SOUND}{line}\n"),
        "[route.guard]" => format!("{SOUND}[route.guard]\nmax_delete_share = 0.5\n{line}\n"),
        "[route.shape]" => format!("{SOUND}[route.shape]\n{line}\n"),
        "[[feed]]" => format!("{SOUND}{FEED}\n{line}\n"),
        "[feed.assume_role]" => format!("{SOUND}{FEED}\n[feed.assume_role]\n{role}\n{line}\n"),
        "[[group]]" => group(line),
        "[group.guard]" => group(&format!("[group.guard]\nmax_delete_share = 0.5\n{line}")),
        _ => format!("{SOUND}{section}\n{line}\n"),
    }
}

/// The sound file with a group in place of its route, and more in it.
fn group(more: &str) -> String {
    let (members, _) = SOUND.split_once("[[route]]").unwrap();
    format!("{members}[[group]]\nname = \"pair\"\nmembers = [\"old\", \"new\"]\n{more}\n")
}

/// The keys that the parser knows in a section, by its own account.
fn known(section: &str) -> BTreeSet<String> {
    let problems = report(&with(section, "unheard_of = 1"));
    let (_, keys) = problems[0].split_once("; the keys here are ").unwrap();
    let mut keys: BTreeSet<String> = keys.split(", ").map(str::to_owned).collect();
    if section == TOP {
        for section in
            ["state", "member", "route", "feed", "group", "read", "write", "lease", "dead_letters", "admin"]
        {
            assert!(keys.remove(section), "{section} is a section");
        }
    }
    keys
}

#[test]
fn every_key_is_documented_and_every_documented_key_exists() {
    let documented = documented();
    assert_eq!(
        documented.iter().filter(|entry| !entry.1.is_empty()).map(|entry| *entry.0).collect::<BTreeSet<_>>(),
        BTreeSet::from(SECTIONS)
    );
    for section in SECTIONS {
        let rows: BTreeSet<String> = documented[section].iter().map(|row| row.key.to_owned()).collect();
        assert_eq!(rows, known(section), "{section}");
    }
}

#[test]
fn documented_defaults_are_the_defaults() {
    let mut checked = 0;
    for (section, rows) in documented() {
        let without = parse(&with(section, "")).ok();
        for row in rows.iter().filter(|row| row.default.starts_with('`') && row.default != "`endpoint`") {
            let line = format!("{} = {}", row.key, row.default.trim_matches('`'));
            assert_eq!(parse(&with(section, &line)).ok(), without, "{section} {line}");
            assert!(without.is_some(), "{section}");
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} defaults found");
}

#[test]
fn documented_ranges_are_the_ranges() {
    let mut checked = 0;
    for (section, rows) in documented() {
        for row in rows {
            // Ranges of numbers and durations only, not of lengths.
            let Some((_, most)) = row.range.split_once(" to ").filter(|(_, most)| !most.contains(' ')) else {
                continue;
            };
            let beyond = most.parse::<u64>().map_or("\"999d\"".to_owned(), |most| (most + 1).to_string());
            let problems = report(&with(section, &format!("{} = {beyond}", row.key)));
            let expected = format!("\"{}\" must be from {}, not ", row.key, row.range);
            assert!(problems[0].contains(&expected), "{problems:?} and {expected}");
            checked += 1;
        }
    }
    assert!(checked > 15, "only {checked} ranges found");
}

#[test]
fn the_documented_variables_are_those_that_override() {
    let chapter = DOCS.split("\n## Environment\n").nth(1).unwrap();
    let rows: Vec<Vec<&str>> =
        chapter.lines().filter(|line| line.starts_with("| `")).map(|line| quoted(line).collect()).collect();
    let documented: BTreeSet<(&str, &str, &str)> =
        rows.iter().map(|row| (row.get(2).copied().unwrap_or_default(), row[1], row[0])).collect();
    assert_eq!(documented, BTreeSet::from(VARIABLES));
}

#[test]
fn the_example_in_the_documentation_is_sound() {
    let example = DOCS.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let config = parse(example).unwrap();
    assert_eq!(config.route("move-orders").map(|route| route.to.len()), Some(1));
}

#[test]
fn the_example_file_is_sound_with_and_without_its_comments() {
    parse(EXAMPLE).unwrap();
    let whole: Vec<&str> = EXAMPLE
        .lines()
        .map(|line| {
            line.strip_prefix('#').filter(|rest| rest.starts_with(char::is_alphabetic)).unwrap_or(line)
        })
        .collect();
    parse(&whole.join("\n")).unwrap();
    for section in SECTIONS {
        for key in known(section) {
            let written = whole.iter().any(|line| line.starts_with(&format!("{key} = ")));
            // Tables, and one of two keys of which a file has one.
            let other = ["assume_role", "guard", "shape", "mask_key_file"].contains(&key.as_str());
            assert!(written || other, "{key} of {section} is in the example");
        }
    }
}
