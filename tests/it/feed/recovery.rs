//! A file that a worker began and did not live to finish: the next one finishes that file, whatever has happened since.

use super::{Lake, SOON, write};
use crate::sandbox_support::s;
use crate::world::{Worker, eventually, with};
use aws_sdk_dynamodb::types::{AttributeValue, TimeToLiveSpecification};
use serde_json::Value;
use shardwalker::config::Config;
use shardwalker::sandbox::faults::{Effect, Rule};
use std::path::PathBuf;
use std::time::Duration;

/// A worker comes as far as to write a file, but not its entry in the manifest, and dies.
pub(super) async fn dies_before_the_entry(lake: &Lake, config: Config) {
    let (manifest, aside) = (lake.root().join("_manifest"), lake.directory.path().join("aside"));
    std::fs::create_dir_all(lake.root()).unwrap();
    let had = manifest.is_dir();
    if had {
        std::fs::rename(&manifest, &aside).unwrap();
    }
    std::fs::write(&manifest, b"in the way").unwrap();
    let worker = lake.world.start(config).await;
    let failed = || worker.metric("shardwalker_retries_total", &["at=\"lake\""]) > 0.0;
    eventually("the entry is refused", failed).await;
    worker.kill().await;
    std::fs::remove_file(&manifest).unwrap();
    if had {
        std::fs::rename(&aside, &manifest).unwrap();
    }
}

/// Items of which four fill a page of the stream.
async fn write_large(lake: &Lake, count: usize) {
    let large = "x".repeat(200 * 1024);
    for index in 0..count {
        lake.world.put(&format!("k{index}"), &format!("{large}{index}")).await;
    }
}

pub(super) fn files(lake: &Lake) -> Vec<PathBuf> {
    lake.files(".jsonl.zst")
}

/// What the lease says: the file that was intended, and the checkpoint.
pub(super) fn remembered(lake: &Lake) -> (Value, Value) {
    let rows = lake.world.rows("lease#copy");
    let row = rows.iter().find(|row| row["file:lake"].is_object()).unwrap();
    (row["file:lake"]["M"].clone(), row["peers"]["M"]["lake"]["M"]["sequence"].clone())
}

/// The reader gives one page, and then the shard has lost its records.
fn trim_after_a_page(lake: &Lake) {
    let trim = Rule::new(Effect::TrimShard).operation("GetRecords");
    lake.world.sandbox.faults().add(trim.after(1).times(1));
}

/// A worker that meets faults from its first read on, which are not those of its own start.
async fn starts(lake: &Lake, config: Config, faults: impl Fn(&Lake)) -> Worker {
    let (service, drain) = lake.world.build(config).await.unwrap();
    faults(lake);
    Worker::of(service, drain)
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_whole_is_not_written_again_from_what_is_left() {
    for on_gap in ["stop", "continue"] {
        let lake = Lake::new(1);
        write_large(&lake, 20).await;
        let config = || {
            let text =
                lake.config_text(SOON, false).replace("to = [", &format!("on_gap = \"{on_gap}\"\nto = ["));
            Config::parse(&text, "test.toml", &|_| None).unwrap()
        };
        dies_before_the_entry(&lake, config()).await;
        assert!(lake.expected(20), "{on_gap}");
        let worker = starts(&lake, config(), trim_after_a_page).await;
        let told = || worker.metric("shardwalker_gaps_total", &[]) == 1.0;
        eventually("the gap is found", told).await;
        if on_gap == "continue" {
            lake.world.put("later", "x").await;
            lake.until_there(21).await;
        }
        worker.stop().await.unwrap();
        assert!(lake.lines().len() >= 20, "{on_gap}: {} of 20 records are left", lake.lines().len());
        let entries =
            lake.files(".json").into_iter().filter(|path| path.to_str().unwrap().contains("_manifest"));
        let entries: Vec<Value> =
            entries.map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect();
        let whole = entries.iter().find(|entry| entry["records"] == 20);
        let whole = whole.unwrap_or_else(|| panic!("{on_gap}: {entries:?}"));
        let file = std::fs::read(lake.directory.path().join(whole["path"].as_str().unwrap())).unwrap();
        assert_eq!(whole["bytes"], file.len(), "{on_gap}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stops_does_not_end_the_file_that_was_begun() {
    let lake = Lake::new(1);
    write_large(&lake, 20).await;
    dies_before_the_entry(&lake, lake.config(SOON, false)).await;
    std::fs::remove_file(&files(&lake)[0]).unwrap();
    let before = remembered(&lake);
    let worker = starts(&lake, lake.config(SOON, false), trim_after_a_page).await;
    let stopped = || worker.metric("shardwalker_shards_stopped", &["gap"]) == 1.0;
    eventually("the shard stops", stopped).await;
    worker.stop().await.unwrap();
    assert_eq!(files(&lake), Vec::<PathBuf>::new(), "no file of a part under the name of the whole");
    assert_eq!(remembered(&lake), before, "and no checkpoint beyond what was read");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_begun_with_more_memory_is_finished_with_less() {
    let lake = Lake::new(1);
    let config = |memory_mb| {
        let mut config = lake.config("roll_age = \"20s\"\nroll_mb = 512", false);
        config.read.memory_mb = memory_mb;
        config
    };
    write_large(&lake, 110).await;
    dies_before_the_entry(&lake, config(128)).await;
    std::fs::remove_file(&files(&lake)[0]).unwrap();
    let worker = lake.world.start(config(16)).await;
    lake.until_there(110).await;
    assert_eq!(worker.metric("shardwalker_feed_files_total", &["reason=\"intended\""]), 1.0);
    worker.stop().await.unwrap();
}

/// A page in which every record is left out by a rule is no reason to move into a file that was begun.
#[tokio::test(start_paused = true)]
async fn pages_that_are_left_out_do_not_move_the_checkpoint_into_a_file_that_was_begun() {
    let lake = Lake::new(1);
    let ttl = TimeToLiveSpecification::builder().attribute_name("expires").enabled(true).build().unwrap();
    let enable = lake.world.app.db.update_time_to_live().table_name("orders");
    enable.time_to_live_specification(ttl).send().await.unwrap();
    let text = lake.config_text(SOON, false).replace("to = [", "ttl_deletes = false\nto = [");
    let config = || Config::parse(&text, "test.toml", &|_| None).unwrap();
    for index in 0..40 {
        let expires = AttributeValue::N("1799990000".to_owned());
        let item = with(&format!("old{index}"), &[("expires", expires), ("value", s("x"))]);
        lake.world.app.db.put_item().table_name("orders").set_item(Some(item)).send().await.unwrap();
    }
    let worker = lake.world.start(config()).await;
    lake.until_there(40).await;
    worker.stop().await.unwrap();
    assert_eq!(lake.world.sandbox.sweep_ttl().unwrap(), 40);
    write(&lake.world, 0, 5).await;
    dies_before_the_entry(&lake, config()).await;
    let (intended, saved) = remembered(&lake);
    assert_ne!(intended["to"], saved, "a file is under way");
    let path = intended["path"]["S"].as_str().unwrap().to_owned();
    std::fs::remove_file(lake.directory.path().join(&path)).unwrap();
    // Slow answers make the pages small, and after one of them nothing more is read.
    let faults = lake.world.sandbox.faults();
    let small = |_: &Lake| {
        faults.add(Rule::new(Effect::DelayMs(60_000)).operation("GetRecords").times(6));
        faults.add(Rule::new(Effect::DropRequest).operation("GetRecords").after(1));
    };
    let worker = starts(&lake, config(), small).await;
    let read = || worker.metric("shardwalker_records_read_total", &[]) >= 1.0;
    eventually("a page is read", read).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(worker.metric("shardwalker_records_read_total", &[]) < 40.0);
    worker.kill().await;
    faults.clear();
    assert_eq!(remembered(&lake).1, saved);
    let worker = lake.world.start(config()).await;
    lake.until_there(45).await;
    worker.stop().await.unwrap();
    assert!(lake.directory.path().join(path).exists(), "{:?}", files(&lake));
}
