//! Feeds of a route with a shape: what enters and leaves the filter, whoever crashes when; what cannot be shaped; and a
//! shape that is changed. And which images a stream must have.

use super::recovery::{dies_before_the_entry, files, remembered};
use super::snapshot::{backfill_of, request, scanned};
use super::{Lake, SOON, write};
use crate::sandbox_support::{Client, s};
use crate::world::{HOME, Worker, World, eventually, with};
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};
use shardwalker::backfill::{Ended, Request};
use shardwalker::clock::Clock;
use shardwalker::sandbox::Options;
use shardwalker::shape::accepted;
use shardwalker::state::StateTable;
use shardwalker::telemetry::metrics::Metrics;
use std::collections::BTreeMap;
use std::time::Duration;

/// Items whose value is even.
const EVEN: &str =
    r#"filter = 'int(item.value) % 2 == 0', rename = { value = "n" }, keys = { pk = "K#{id}" }"#;
/// All items, and nothing but their keys.
const KEYS: &str = r#"include = ["id"]"#;

/// Writes a few items again and again, each with an even and an odd value by turns.
async fn write_numbers(world: &World, from: usize, to: usize) {
    for n in from..to {
        world.put(&format!("k{}", n % 7), &n.to_string()).await;
    }
}

/// How many of these writes there are to tell of: the first odd value of a key neither enters the filter nor leaves it.
fn told(written: usize) -> usize {
    written - (1..written.min(7)).step_by(2).count()
}

/// What the lines add up to, by the key at the source, and what is told of the source's items.
fn sums(lake: &Lake) -> [BTreeMap<String, Value>; 2] {
    let mut lines = lake.lines();
    lines.sort_by_key(|line| line.value["version"].as_str().unwrap().to_owned());
    let mut items = BTreeMap::new();
    for line in lines {
        let key = line.value["key"]["pk"].as_str().unwrap().to_owned();
        let before = match line.value["event"].as_str().unwrap() {
            "REMOVE" => items.remove(&key),
            _ => items.insert(key, line.value["new"]["n"].clone()),
        };
        assert_eq!(before.is_none(), line.value["event"] == "INSERT", "{:?}", line.value);
    }
    let source = lake.world.items(&lake.world.source);
    let source = source.values().map(|item| (format!("K#{}", text(item, "id")), json!(text(item, "value"))));
    let even = |(_, n): &(String, Value)| n.as_str().unwrap().parse::<u64>().unwrap().is_multiple_of(2);
    [items, source.filter(even).collect()]
}

fn text<'i>(item: &'i Value, name: &str) -> &'i str {
    item[name]["S"].as_str().unwrap()
}

/// Why the feed is held back.
fn held(worker: &Worker) -> Option<String> {
    worker.board.pauses().into_iter().find_map(|(_, _, pause)| pause.map(|pause| pause.why))
}

/// The feed's letters: the reasons, by sequence number.
fn letters(lake: &Lake) -> BTreeMap<String, String> {
    let rows = lake.world.rows("dead#copy#lake");
    rows.iter().map(|row| (text(row, "sequence").to_owned(), text(row, "reason").to_owned())).collect()
}

#[tokio::test(start_paused = true)]
async fn items_enter_and_leave_the_filter_of_a_feed() {
    let lake = Lake::new(1);
    let worker = lake.world.start(lake.shaped(&format!("{SOON}\nimages = \"both\""), EVEN)).await;
    for n in ["1", "2", "4", "5", "7", "8"] {
        lake.world.put("a", n).await;
    }
    lake.world.delete("a").await;
    lake.world.put("a", "9").await;
    lake.world.delete("a").await;
    lake.until_there(5).await;
    let mut lines: Vec<Value> = lake.lines().into_iter().map(|line| line.value).collect();
    lines.sort_by_key(|line| line["version"].as_str().unwrap().to_owned());
    let item = |n: &str| json!({ "pk": "K#a", "id": "a", "n": n });
    let short: Vec<Value> =
        lines.iter().map(|line| json!([line["event"], line["old"], line["new"]])).collect();
    let expected = [
        json!(["INSERT", null, item("2")]),
        json!(["MODIFY", item("2"), item("4")]),
        json!(["REMOVE", item("4"), null]),
        json!(["INSERT", null, item("8")]),
        json!(["REMOVE", item("8"), null]),
    ];
    assert_eq!(short, expected);
    assert!(lines.iter().all(|line| line["key"] == json!({ "pk": "K#a" })));
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn crashes_leave_every_shaped_record_in_one_file() {
    for seed in 0..6_u64 {
        let lake = Lake::new(1);
        let mut written = 0;
        for round in 0..6_u64 {
            let worker = lake.world.start(lake.shaped("roll_age = \"1s\"", EVEN)).await;
            write_numbers(&lake.world, written, written + 15).await;
            written += 15;
            tokio::time::sleep(Duration::from_millis(900 + (seed * 6 + round) * 37)).await;
            worker.kill().await;
            lake.sequences();
        }
        let worker = lake.world.start(lake.shaped(SOON, EVEN)).await;
        lake.until_there(told(written)).await;
        let [found, wanted] = sums(&lake);
        assert_eq!(found, wanted);
        worker.stop().await.unwrap();
    }
}

/// A page of which nothing is left neither stays in memory nor closes the file, and the checkpoint passes it when no file
/// is open.
#[tokio::test(start_paused = true)]
async fn what_is_filtered_out_takes_no_memory_and_makes_no_file() {
    let lake = Lake::new(1);
    let large = "x".repeat(300 * 1024);
    let config = |age: &str| {
        let shape = "filter = 'item.value.startsWith(\"in\")'";
        let mut config = lake.shaped(&format!("roll_age = \"{age}\"\nroll_mb = 512"), shape);
        config.read.memory_mb = 16;
        config
    };
    let worker = lake.world.start(config("1h")).await;
    let read = |records: f64| worker.metric("shardwalker_records_read_total", &[]) >= records;
    for index in 0..30 {
        lake.world.put(&format!("k{index}"), &large).await;
    }
    eventually("they are read", || read(30.0)).await;
    let passed = || {
        lake.world.rows("lease#copy").iter().any(|row| row["peers"]["M"]["lake"]["M"]["sequence"].is_object())
    };
    eventually("the checkpoint passes them", passed).await;
    lake.world.put("one", "in").await;
    for index in 0..60 {
        lake.world.put(&format!("k{index}"), &format!("{large}{index}")).await;
    }
    eventually("they are read", || read(91.0)).await;
    let held = || worker.metric("shardwalker_buffered_bytes", &[]);
    eventually("their pages are given back", || held() < f64::from(1 << 20)).await;
    assert_eq!(files(&lake), Vec::<std::path::PathBuf>::new(), "nothing is old or large enough");
    worker.stop().await.unwrap();
    assert!(lake.expected(1));
    let worker = lake.world.start(config("5s")).await;
    lake.world.put("two", "in").await;
    lake.until_there(2).await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_shaped_is_a_dead_letter_and_holds_up_nothing() {
    let lake = Lake::new(1);
    let config = || lake.shaped(SOON, "filter = 'item.kind == \"a\"'");
    let put = async |id: &str, kind: &str| {
        let item = with(id, &[("kind", s(kind))]);
        lake.world.app.db.put_item().table_name("orders").set_item(Some(item)).send().await.unwrap();
    };
    let worker = lake.world.start(config()).await;
    lake.world.put("odd", "1").await;
    put("x", "a").await;
    // Before the file is there, and so before any checkpoint.
    eventually("it is a letter", || letters(&lake).len() == 1).await;
    worker.kill().await;
    let worker = lake.world.start(config()).await;
    put("odd", "a").await;
    lake.until_there(2).await;
    assert_eq!(letters(&lake).into_values().collect::<Vec<_>>(), ["unshaped"], "a replay is the same letter");
    let mended = lake.lines().into_iter().find(|line| line.value["key"]["id"] == "odd").unwrap();
    assert_eq!(mended.value["event"], "MODIFY", "it may have been there");
    let in_files = lake.sequences();
    assert!(letters(&lake).into_keys().all(|sequence| !in_files.contains(&sequence)));
    assert_eq!(worker.metric("shardwalker_dead_letters_total", &["lake", "unshaped"]), 1.0);
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_changed_shape_is_written_into_no_file_until_it_is_accepted() {
    let lake = scanned(1);
    let worker = lake.world.start(lake.shaped(SOON, EVEN)).await;
    write_numbers(&lake.world, 0, 20).await;
    lake.until_there(told(20)).await;
    worker.stop().await.unwrap();
    let new = || lake.shaped(SOON, KEYS);
    let worker = lake.world.start(new()).await;
    let why = held(&worker).unwrap();
    assert!(why.contains("shape was changed") && why.contains("backfill copy --restart"), "{why}");
    write_numbers(&lake.world, 20, 30).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(lake.expected(told(20)), "nothing is written");
    let again = Request { restart: true, ..request(1, None) };
    assert_eq!(Box::pin(backfill_of(&lake, new(), again)).await, Ended::Done);
    eventually("it goes on", || held(&worker).is_none()).await;
    let changes = || {
        let lines = lake.lines().into_iter().map(|line| line.value);
        lines.filter(|line| line["event"] != "SNAPSHOT").collect::<Vec<_>>()
    };
    eventually("what waited is there", || changes().len() == told(20) + 10).await;
    let shaped = |line: &Value| line["new"].as_object().is_some_and(|item| item.keys().eq(["id"]));
    assert_eq!(changes().iter().filter(|line| shaped(line)).count(), 10, "in the new shape");
    let snapshot = lake.lines().into_iter().filter(|line| line.value["event"] == "SNAPSHOT");
    let snapshot: Vec<Value> = snapshot.map(|line| line.value).collect();
    assert!(snapshot.len() == 7 && snapshot.iter().all(shaped), "{snapshot:?}");
    // Who runs on with the old shape writes nothing more.
    let old = lake.world.start(lake.shaped(SOON, EVEN)).await;
    assert!(held(&old).is_some());
    old.stop().await.unwrap();
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_goes_through_the_shape() {
    let lake = scanned(2);
    write_numbers(&lake.world, 0, 14).await;
    // The filter cannot judge it.
    lake.world.put("odd", "seven").await;
    let snapshot = || backfill_of(&lake, lake.shaped(SOON, EVEN), request(2, None));
    assert_eq!(Box::pin(snapshot()).await, Ended::Done);
    let items = lake.lines().into_iter().map(|line| line.value);
    let items: BTreeMap<String, Value> = items
        .map(|line| (line["key"]["pk"].as_str().unwrap().to_owned(), line["new"]["n"].clone()))
        .collect();
    let even = (7..14).filter(|n| n % 2 == 0).map(|n| (format!("K#k{}", n % 7), json!(n.to_string())));
    assert_eq!(items, even.collect());
    assert_eq!(letters(&lake).into_values().collect::<Vec<_>>(), ["unshaped"]);
}

async fn accept(lake: &Lake, config: &shardwalker::config::Config) {
    let aws = shardwalker::aws::Aws::new(lake.world.base());
    let clients = aws.clients(&config.state.access).await;
    let state = StateTable::new(&config.state, &clients, Metrics::new().unwrap());
    for ((route, feed), identity) in accepted::expected(config, |_| None) {
        accepted::accept(&state, Clock::system(), &route, &feed, &identity, "a test").await.unwrap();
    }
}

/// A file that cannot be written is tried again and again; but not any more once another shape is accepted.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_being_written_is_broken_off_when_another_shape_is_accepted() {
    let lake = Lake::new(1);
    let old = lake.world.start(lake.shaped(SOON, EVEN)).await;
    let route = lake.directory.path().join("copy");
    std::fs::write(&route, b"in the way").unwrap();
    write_numbers(&lake.world, 0, 20).await;
    let failed = || old.metric("shardwalker_retries_total", &["at=\"lake\""]) > 1.0;
    eventually("it cannot be written", failed).await;
    let new = lake.shaped(SOON, KEYS);
    accept(&lake, &new).await;
    eventually("it is held back", || held(&old).is_some()).await;
    std::fs::remove_file(&route).unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(files(&lake), Vec::<std::path::PathBuf>::new());
    old.stop().await.unwrap();
    let worker = lake.world.start(new).await;
    lake.until_there(20).await;
    assert!(lake.lines().iter().all(|line| line.value["new"].as_object().unwrap().keys().eq(["id"])));
    worker.stop().await.unwrap();
}

/// A file that was begun in a shape that is not the accepted one any more: the one that is there counts, and the records of
/// one that is not are judged anew.
#[tokio::test(start_paused = true)]
async fn a_file_that_was_begun_in_another_shape_is_seen_to_its_end() {
    for there in [true, false] {
        for shape in [KEYS, "filter = 'item.value == \"none\"'"] {
            let lake = Lake::new(1);
            write_numbers(&lake.world, 0, 20).await;
            dies_before_the_entry(&lake, lake.shaped(SOON, EVEN)).await;
            let (intended, saved) = remembered(&lake);
            assert_ne!(intended["to"], saved);
            if !there {
                std::fs::remove_file(&files(&lake)[0]).unwrap();
            }
            let new = lake.shaped(SOON, shape);
            accept(&lake, &new).await;
            let worker = lake.world.start(new).await;
            let passed = || remembered(&lake).1 == intended["to"];
            eventually("the checkpoint passes it", passed).await;
            let records = match (there, shape) {
                (true, _) => told(20),
                (false, KEYS) => 20,
                (false, _) => 0,
            };
            assert!(lake.expected(records), "{there} {shape}: {} records", lake.lines().len());
            let entries = lake.files(".json").len();
            assert_eq!(entries > 0, records > 0, "{there} {shape}");
            lake.world.put("k0", "none").await;
            lake.until_there(records + 1).await;
            worker.stop().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_feed_with_both_images_needs_a_stream_that_has_them() {
    for (view, why) in [
        ("NEW_IMAGE", "has no old images; feed lake has images = \"both\""),
        ("KEYS_ONLY", "has no new images"),
    ] {
        let world = World::with(Options::default(), Some(view));
        let lake = Lake { world, directory: tempfile::tempdir().unwrap() };
        let refused = async |feed: &str| {
            let mut config = lake.config(feed, false);
            config.access_patience = Duration::ZERO;
            lake.world.build(config).await.err().map(|why| why.to_string())
        };
        let said = refused("images = \"both\"").await.unwrap();
        assert!(said.contains(why) && said.contains("NEW_AND_OLD_IMAGES"), "{said}");
        assert_eq!(refused("").await.is_some(), view == "KEYS_ONLY", "new images are enough without");
    }
}

/// The columns of a Parquet feed, as the state table keeps them.
fn columns(lake: &Lake) -> Vec<String> {
    let rows = lake.world.rows("feed#lake");
    let row = rows.iter().find(|row| row["sk"]["S"] == "schema#copy");
    row.map(|row| row["columns"]["M"].as_object().unwrap().keys().cloned().collect()).unwrap_or_default()
}

/// Deletes show only what keys are made of: the columns wait for a file that shows more, also when the first file is written
/// again after that.
#[tokio::test(start_paused = true)]
async fn the_columns_are_not_those_of_a_file_that_holds_only_deletes() {
    let lake = Lake::new(1);
    let config = || {
        let text = lake.config_text(&format!("format = \"parquet\"\n{SOON}"), false);
        let text = text.replace("to = [", "start = \"latest\"\nto = [");
        shardwalker::config::Config::parse(&text, "test.toml", &|_| None).unwrap()
    };
    write(&lake.world, 0, 20).await;
    // Longer than the margin that a start leaves for clocks.
    tokio::time::sleep(Duration::from_secs(900)).await;
    let worker = lake.world.start(config()).await;
    worker.stop().await.unwrap();
    for index in 0..10 {
        lake.world.delete(&format!("k{index}")).await;
    }
    dies_before_the_entry(&lake, config()).await;
    let [first] = lake.files(".parquet").try_into().unwrap();
    let bytes = std::fs::read(&first).unwrap();
    std::fs::remove_file(&first).unwrap();
    assert_eq!(columns(&lake), [""; 0]);
    // Another shard's file has shown the columns meanwhile.
    let home = Client::admin(&lake.world.sandbox, HOME);
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let known = [("id".to_owned(), text("string")), ("value".to_owned(), text("string"))].into();
    let put = home.db.put_item().table_name("shardwalker-state").item("pk", text("feed#lake"));
    let put = put.item("sk", text("schema#copy")).item("columns", AttributeValue::M(known));
    put.send().await.unwrap();
    let worker = lake.world.start(config()).await;
    eventually("the first file is written again", || first.exists()).await;
    assert!(std::fs::read(&first).unwrap() == bytes, "and is what it was");
    lake.world.put("more", "x").await;
    eventually("there is another one", || lake.files(".parquet").len() == 2).await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_columns_are_those_of_the_first_file_that_holds_more_than_deletes() {
    let lake = Lake::new(1);
    let shape = "filter = 'item.value != \"out\"'";
    lake.world.put("a", "x").await;
    tokio::time::sleep(Duration::from_secs(900)).await;
    let mut config = lake.shaped(&format!("format = \"parquet\"\n{SOON}"), shape);
    config.routes[0].start = shardwalker::config::Start::Latest;
    let worker = lake.world.start(config).await;
    // It leaves the filter: what is told is a delete.
    lake.world.put("a", "out").await;
    eventually("the first file is there", || lake.files(".parquet").len() == 1).await;
    assert_eq!(columns(&lake), [""; 0]);
    lake.world.put("a", "in").await;
    eventually("the second file is there", || lake.files(".parquet").len() == 2).await;
    assert_eq!(columns(&lake), ["id", "value"]);
    worker.stop().await.unwrap();
}
