//! The conflict journal: which writes that lost are found, kept and told.

use super::{ACCOUNTS, Group, NAMES, TABLE};
use crate::world::Worker;
use serde_json::Value;
use shardwalker::sandbox::faults::{Effect, Rule};
use std::collections::BTreeSet;
use std::time::Duration;

/// Nobody reads the streams of these members.
fn hide(group: &Group, members: &[usize]) {
    for member in members {
        let account = ACCOUNTS[*member].0;
        group.sandbox.faults().add(Rule::new(Effect::Unavailable).operation("GetRecords").account(account));
    }
}

/// All three write keys of this prefix, a first and c last, and nobody has seen the others' writes.
async fn conflict(group: &Group, prefix: &str, keys: usize) {
    for (member, name) in NAMES.iter().enumerate() {
        for key in 0..keys {
            group.apps[member].put(TABLE, &format!("{prefix}{key}"), name).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Which member's write of which key lost to which member's, as the journal has it.
fn lost(group: &Group) -> BTreeSet<(String, String, String)> {
    let row = |row: &Value| {
        let text = |name: &str| row[name]["S"].as_str().unwrap().to_owned();
        let key: Value = serde_json::from_str(&text("key_attributes")).unwrap();
        (text("loser"), text("winner"), key["id"]["S"].as_str().unwrap().to_owned())
    };
    group.rows("conflict#").iter().map(row).collect()
}

fn counted(worker: &Worker, loser: &str, winner: &str) -> f64 {
    let labels = [format!("loser=\"{loser}\""), format!("winner=\"{winner}\"")];
    worker.metric("shardwalker_conflicts_total", &[&labels[0], &labels[1]])
}

#[tokio::test(start_paused = true)]
async fn every_write_that_lost_is_kept_in_whatever_order_the_streams_are_read() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for order in orders {
        let group = Group::new();
        let worker = group.start("conflicts = \"full\"").await;
        hide(&group, &order);
        conflict(&group, "k", 8).await;
        for read in 1..=3 {
            group.sandbox.faults().clear();
            hide(&group, &order[read..]);
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        group.until("k7", Some("c")).await;
        group.until_quiet().await;
        assert!(group.equal());
        let lost = lost(&group);
        for key in 0..8 {
            for loser in ["a", "b"] {
                let of_key = lost.iter().any(|(l, _, k)| l == loser && *k == format!("k{key}"));
                assert!(of_key, "{order:?}: the write of k{key} at {loser} is in no row: {lost:?}");
            }
        }
        assert!(lost.iter().all(|(loser, ..)| loser != "c"), "{order:?}: {lost:?}");
        worker.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_lost_to_two_is_kept_twice() {
    let group = Group::new();
    let worker = group.start("conflicts = \"full\"").await;
    hide(&group, &[0, 1, 2]);
    conflict(&group, "k", 4).await;
    group.sandbox.faults().clear();
    group.until("k3", Some("c")).await;
    group.until_quiet().await;
    let rows = lost(&group);
    let pairs = [("a", "b"), ("a", "c"), ("b", "c")];
    for (loser, winner) in pairs {
        let kept = rows.iter().filter(|(l, w, _)| l == loser && w == winner).count();
        assert!(counted(&worker, loser, winner) >= kept as f64, "{loser} to {winner}: {rows:?}");
    }
    let counted: f64 = pairs.iter().map(|(loser, winner)| counted(&worker, loser, winner)).sum();
    assert!(rows.len() as f64 == counted, "each once: {} rows, {counted} counted", rows.len());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_as_configured_and_everything_is_counted() {
    for (setting, most) in [("off", 0), ("sampled", 60), ("full", usize::MAX)] {
        let group = Group::new();
        let worker = group.start(&format!("conflicts = \"{setting}\"")).await;
        hide(&group, &[0, 1, 2]);
        conflict(&group, "k", 60).await;
        group.sandbox.faults().clear();
        group.until("k59", Some("c")).await;
        group.until_quiet().await;
        let (kept, all) = (group.rows("conflict#").len(), worker.metric("shardwalker_conflicts_total", &[]));
        assert!(all >= 120.0, "{setting}: {all} counted");
        assert!(kept <= most && (setting == "off" || kept > 0), "{setting}: {kept} kept");
        assert!(setting != "full" || kept >= 120, "{setting}: {kept} kept");
        worker.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_too_large_is_left_out_with_its_size() {
    let group = Group::new();
    let worker = group.start("conflicts = \"full\"").await;
    hide(&group, &[0, 1, 2]);
    group.apps[0].put(TABLE, "k", &"x".repeat(70_000)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    group.apps[1].put(TABLE, "k", "small").await;
    group.sandbox.faults().clear();
    group.until("k", Some("small")).await;
    group.until_quiet().await;
    let rows = group.rows("conflict#");
    let row = rows.iter().find(|row| row["loser"]["S"] == "a").unwrap();
    let size: usize = row["loser_too_large"]["S"].as_str().unwrap().parse().unwrap();
    assert!(size > 70_000 && row.get("loser_image").is_none());
    assert!(row["winner_image"]["S"].as_str().unwrap().contains("small"));
    worker.stop().await.unwrap();
}
