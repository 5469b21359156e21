//! Feeds: every record in exactly one file, in order, whoever crashes when; and what a feed says is complete.

mod pipes;
mod place;
mod recovery;
mod shaped;
mod snapshot;

use crate::world::{HOME, World, eventually};
use serde_json::Value;
use shardwalker::config::Config;
use shardwalker::sandbox::Options;
use shardwalker::sandbox::faults::{Effect, Rule};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A world with a directory for a feed.
struct Lake {
    world: World,
    directory: tempfile::TempDir,
}

/// A line of a feed.
#[derive(Debug, Clone)]
struct Line {
    file: String,
    value: Value,
}

impl Lake {
    fn new(shards: u32) -> Self {
        let world =
            World::with(Options { initial_shards: shards, ..Options::default() }, Some("NEW_AND_OLD_IMAGES"));
        Self { world, directory: tempfile::tempdir().unwrap() }
    }

    /// A config of the route to a feed and, when asked for, to a peer.
    fn config(&self, feed: &str, peer: bool) -> Config {
        let text = self.config_text(feed, peer);
        Config::parse(&text, "test.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"))
    }

    /// A config of the route to the feed alone, in this shape.
    fn shaped(&self, feed: &str, shape: &str) -> Config {
        let text = self.config_text(feed, false).replace("to = [", &format!("shape = {{ {shape} }}\nto = ["));
        Config::parse(&text, "test.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"))
    }

    fn config_text(&self, feed: &str, peer: bool) -> String {
        let text = self
            .world
            .config_text("", "")
            .replace(r#"to = ["b", "c"]"#, if peer { r#"to = ["b", "lake"]"# } else { r#"to = ["lake"]"# });
        let place = self.directory.path().display();
        format!("{text}\n[[feed]]\nname = \"lake\"\nurl = \"file://{place}\"\n{feed}\n")
    }

    /// The directory of the changes.
    fn root(&self) -> PathBuf {
        self.directory.path().join("copy/lake")
    }

    fn files(&self, end: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(self.directory.path(), &mut found);
        found.retain(|path| path.to_str().unwrap().ends_with(end));
        found.sort();
        found
    }

    /// All lines of all files, as a reader of the directory sees them.
    fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for path in self.files(".jsonl.zst") {
            let text = zstd::decode_all(std::fs::read(&path).unwrap().as_slice()).unwrap();
            for line in String::from_utf8(text).unwrap().lines() {
                let file = path.strip_prefix(self.directory.path()).unwrap().to_str().unwrap().to_owned();
                lines.push(Line { file, value: serde_json::from_str(line).unwrap() });
            }
        }
        lines
    }

    /// The sequence numbers, each of which must be there once.
    fn sequences(&self) -> BTreeSet<String> {
        let mut seen = BTreeMap::new();
        for line in self.lines() {
            let sequence = line.value["sequence"].as_str().unwrap().to_owned();
            if let Some(before) = seen.insert(sequence.clone(), line.file.clone()) {
                panic!("record {sequence} is in {before} and in {}", line.file);
            }
        }
        seen.into_keys().collect()
    }

    /// What the stream holds.
    fn expected(&self, records: usize) -> bool {
        self.lines().len() >= records && self.sequences().len() == records
    }

    async fn until_there(&self, records: usize) {
        eventually("every record is in a file", || self.lines().len() >= records).await;
        assert!(self.expected(records), "{} lines for {records} records", self.lines().len());
    }

    /// The items that the lines add up to, by key, must be the source's.
    fn assert_adds_up(&self) {
        let mut lines = self.lines();
        lines.sort_by_key(|line| line.value["version"].as_str().unwrap().to_owned());
        let mut items = BTreeMap::new();
        for line in lines {
            let key = line.value["key"]["id"].as_str().unwrap().to_owned();
            match line.value["event"].as_str().unwrap() {
                "REMOVE" => items.remove(&key),
                _ => items.insert(key, line.value["new"]["value"].clone()),
            };
        }
        let source = self.world.items(&self.world.source);
        let source: BTreeMap<String, Value> = source
            .values()
            .map(|item| (item["id"]["S"].as_str().unwrap().to_owned(), item["value"]["S"].clone()))
            .collect();
        assert_eq!(items, source);
    }

    /// Takes back what a worker did after it intended a file that no checkpoint passed: nothing for 0, the manifest's
    /// entry for 1, and with 2 the file too. How many files that were.
    fn tear(&self, step: u64) -> u32 {
        let mut torn = 0;
        for row in self.world.rows("lease#copy") {
            let (intent, saved) = (&row["file:lake"]["M"], &row["peers"]["M"]["lake"]["M"]["sequence"]);
            if intent.is_null() || intent["to"] == *saved || step == 0 {
                continue;
            }
            let path = intent["path"]["S"].as_str().unwrap();
            let entry = format!("{}.json", path.replacen("copy/lake/", "copy/lake/_manifest/", 1));
            // It may not have come that far by itself.
            let _absent = std::fs::remove_file(self.directory.path().join(entry));
            if step == 2 {
                let _absent = std::fs::remove_file(self.directory.path().join(path));
            }
            torn += 1;
        }
        torn
    }

    fn watermark(&self) -> Option<String> {
        let text = std::fs::read(self.directory.path().join("copy/lake/_watermark.json")).ok()?;
        let value: Value = serde_json::from_slice(&text).unwrap();
        Some(value["complete_to"].as_str().unwrap().to_owned())
    }
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, found) } else { found.push(path) }
    }
}

/// Writes an item again and again: each is one record.
async fn write(world: &World, from: usize, to: usize) {
    for index in from..to {
        world.put(&format!("k{}", index % 20), &format!("v{index}")).await;
    }
}

const SOON: &str = "roll_age = \"5s\"";

#[tokio::test(start_paused = true)]
async fn every_record_is_in_one_file_and_the_manifest_names_it() {
    let lake = Lake::new(2);
    let worker = lake.world.start(lake.config(SOON, false)).await;
    write(&lake.world, 0, 200).await;
    lake.world.delete("k3").await;
    lake.until_there(201).await;
    lake.assert_adds_up();
    worker.stop().await.unwrap();
    let entries = lake.files(".json").into_iter().filter(|path| path.to_str().unwrap().contains("_manifest"));
    let mut records = 0;
    for path in entries {
        let entry: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        records += entry["records"].as_u64().unwrap();
        let file = std::fs::read(lake.directory.path().join(entry["path"].as_str().unwrap())).unwrap();
        assert_eq!(file.len() as u64, entry["bytes"].as_u64().unwrap());
    }
    assert_eq!(records, 201);
    assert!(
        lake.lines().iter().all(|line| line.file.starts_with("copy/lake/dt=2027-01-15/hour=")),
        "{:?}",
        lake.lines()[0]
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_writes_what_is_open_and_the_next_worker_goes_on() {
    let lake = Lake::new(2);
    let worker = lake.world.start(lake.config("", false)).await;
    write(&lake.world, 0, 50).await;
    eventually("they are read", || worker.metric("shardwalker_records_read_total", &[]) >= 50.0).await;
    assert_eq!(lake.lines().len(), 0, "nothing is old or large enough");
    worker.stop().await.unwrap();
    assert!(lake.expected(50));
    let worker = lake.world.start(lake.config("", false)).await;
    write(&lake.world, 50, 80).await;
    eventually("they are read", || worker.metric("shardwalker_records_read_total", &[]) >= 30.0).await;
    worker.stop().await.unwrap();
    assert!(lake.expected(80));
    lake.assert_adds_up();
}

/// Kills workers at many moments; with files of a few records and checkpoints that fail now and then, each step of
/// a file is one of them.
#[tokio::test(start_paused = true)]
async fn crashes_at_any_moment_leave_every_record_in_one_file() {
    for seed in 0..8_u64 {
        let lake = Lake::new(1);
        let mut written = 0;
        for round in 0..6_u64 {
            let worker = lake.world.start(lake.config("roll_age = \"1s\"", false)).await;
            write(&lake.world, written, written + 15).await;
            written += 15;
            // The moments walk over the second in which a file is intended, written and checkpointed.
            tokio::time::sleep(Duration::from_millis(900 + (seed * 6 + round) * 37)).await;
            worker.kill().await;
            lake.sequences();
        }
        let worker = lake.world.start(lake.config(SOON, false)).await;
        lake.until_there(written).await;
        lake.assert_adds_up();
        worker.stop().await.unwrap();
    }
}

/// A worker that dies before the intent, between intent and file, between file and entry, and before the checkpoint.
/// Files take no virtual time, so the steps between an intent and its checkpoint are taken back by hand.
#[tokio::test(start_paused = true)]
async fn each_step_of_a_file_may_be_the_last_one() {
    // Changes of the leases are intents, checkpoints and now and then a listing: let so many through, then none.
    let (mut intended, mut torn) = (0.0, 0);
    for (allowed, step) in (0..4_u64).flat_map(|allowed| (0..3).map(move |step| (allowed, step))) {
        let lake = Lake::new(1);
        let worker = lake.world.start(lake.config(SOON, false)).await;
        write(&lake.world, 0, 30).await;
        eventually("they are read", || worker.metric("shardwalker_records_read_total", &[]) >= 30.0).await;
        let leases = lake.world.rows("lease#copy")[0]["pk"].clone();
        let cut = Rule::new(Effect::DropRequest).operation("UpdateItem").account(HOME).key(leases);
        lake.world.sandbox.faults().add(Rule { after: allowed, ..cut });
        tokio::time::sleep(Duration::from_secs(8)).await;
        worker.kill().await;
        lake.world.sandbox.faults().clear();
        torn += lake.tear(step);
        write(&lake.world, 30, 60).await;
        let worker = lake.world.start(lake.config(SOON, false)).await;
        lake.until_there(60).await;
        lake.assert_adds_up();
        intended += worker.metric("shardwalker_feed_files_total", &["reason=\"intended\""]);
        worker.stop().await.unwrap();
    }
    assert!(torn > 1, "some files were not checkpointed");
    assert!(intended >= f64::from(torn), "{torn} files were torn, {intended} finished by the next worker");
}

#[tokio::test(start_paused = true)]
async fn two_workers_and_splits_keep_every_record_once() {
    let lake = Lake::new(2);
    let config = || lake.config(SOON, false);
    let (one, two) = (lake.world.start(config()).await, lake.world.start(config()).await);
    write(&lake.world, 0, 100).await;
    let shards = lake.world.sandbox.shards(&lake.world.source).unwrap();
    lake.world.sandbox.split(&lake.world.source, Some(&shards[0].id)).unwrap();
    write(&lake.world, 100, 200).await;
    one.kill().await;
    write(&lake.world, 200, 300).await;
    lake.until_there(300).await;
    lake.assert_adds_up();
    two.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_cannot_write_holds_up_nobody_else() {
    let lake = Lake::new(1);
    let worker = lake.world.start(lake.config(SOON, true)).await;
    write(&lake.world, 0, 20).await;
    lake.until_there(20).await;
    // A file where a directory should be refuses everything.
    let route = lake.directory.path().join("copy");
    let aside = lake.directory.path().join("aside");
    std::fs::rename(&route, &aside).unwrap();
    std::fs::write(&route, b"in the way").unwrap();
    write(&lake.world, 20, 60).await;
    let peer = || lake.world.items(&lake.world.peers[0]) == lake.world.items(&lake.world.source);
    eventually("the peer is equal", peer).await;
    eventually("the failure is counted", || {
        worker.metric("shardwalker_retries_total", &["at=\"lake\""]) > 2.0
    })
    .await;
    std::fs::remove_file(&route).unwrap();
    std::fs::rename(&aside, &route).unwrap();
    lake.until_there(60).await;
    lake.assert_adds_up();
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn open_files_take_no_more_than_their_part_of_the_memory() {
    let lake = Lake::new(2);
    let mut config = lake.config("roll_age = \"1h\"\nroll_mb = 512", false);
    config.read.memory_mb = 16;
    let worker = lake.world.start(config).await;
    let large = "x".repeat(300 * 1024);
    for index in 0..60 {
        lake.world.put(&format!("k{index}"), &format!("{large}{index}")).await;
    }
    eventually("they are read", || worker.metric("shardwalker_records_read_total", &[]) >= 60.0).await;
    eventually("some are written", || {
        worker.metric("shardwalker_feed_files_total", &["reason=\"memory\""]) > 1.0
    })
    .await;
    assert!(worker.metric("shardwalker_buffered_bytes", &[]) <= f64::from(16 << 20));
    worker.stop().await.unwrap();
    assert!(lake.expected(60));
}

#[tokio::test(start_paused = true)]
async fn the_watermark_rises_on_idle_shards_and_is_never_early() {
    let lake = Lake::new(2);
    let now = || humantime::format_rfc3339_seconds(lake.world.sandbox.clock().now()).to_string();
    let worker = lake.world.start(lake.config("roll_age = \"30s\"", false)).await;
    let (mut last, mut written) = (String::new(), Vec::new());
    for round in 0..20 {
        for index in round * 5..round * 5 + 5 {
            lake.world.put(&format!("k{}", index % 20), &format!("v{index}")).await;
            written.push((format!("v{index}"), now()));
        }
        if let Some(mark) = lake.watermark() {
            assert!(mark >= last, "it rises only: {last} then {mark}");
            let value = |line: &Line| line.value["new"]["value"].as_str().unwrap().to_owned();
            let there: BTreeSet<String> = lake.lines().iter().map(value).collect();
            for (value, _) in written.iter().filter(|(_, at)| *at < mark) {
                assert!(there.contains(value), "{value} is older than {mark} and in no file");
            }
            last = mark;
        }
        tokio::time::sleep(Duration::from_secs(25)).await;
    }
    assert!(!last.is_empty(), "there is a watermark");
    // Nothing more is written, and yet it moves on.
    let end = now();
    eventually("it passes the last record", || lake.watermark().is_some_and(|mark| mark > end)).await;
    assert!(lake.expected(100));
    worker.stop().await.unwrap();
}
