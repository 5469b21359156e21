//! The demo, as a process: its exit code, its figures, and how it stops.

use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Far more than a slow machine needs.
const LIMIT: Duration = Duration::from_secs(180);

fn demo(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_shardwalker"))
        .arg("demo")
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn figures(child: Child) -> (i32, Value, String) {
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await.expect("the demo ends").unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let figures = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}:\n{stdout}{stderr}"));
    (output.status.code().unwrap(), figures, stderr)
}

#[tokio::test]
async fn three_accounts_agree_after_inserts_updates_deletes_and_a_split() {
    let child = demo(&["--for", "3s", "--rate", "50", "--seed", "7", "--json"]);
    let (code, figures, progress) = figures(child).await;
    assert_eq!(code, 0, "{figures}\n{progress}");
    assert_eq!(
        (&figures["agree"], &figures["caught_up"]),
        (&Value::Bool(true), &Value::Bool(true)),
        "{figures}"
    );
    assert_eq!(figures["denied_before_policies"], 3);
    let writes = &figures["writes"];
    let count = |kind: &str| writes[kind].as_u64().unwrap();
    let total = count("inserts") + count("updates") + count("deletes");
    assert!(count("updates") > 0 && count("deletes") > 0, "{figures}");
    // A peer that fell behind for a moment is caught up by a second reader, which reads some records again.
    assert!(figures["records_read"].as_u64().unwrap() >= total, "{figures}");
    assert_eq!((&figures["split"]["from"], &figures["split"]["to"]), (&4.into(), &8.into()));
    assert_eq!((&figures["shards"]["open"], &figures["shards"]["closed"]), (&8.into(), &4.into()));
    let items = figures["source"]["items"].as_u64().unwrap();
    assert_eq!(items, count("inserts") - count("deletes"));
    let peers = figures["peers"].as_array().unwrap();
    assert_eq!(peers.len(), 2);
    for peer in peers {
        assert_eq!(peer["items"], items, "{figures}");
        assert_ne!(peer["account"], figures["source"]["account"]);
        let changes = peer["changes"].as_object().unwrap();
        assert_eq!(changes.values().filter_map(Value::as_u64).sum::<u64>(), total, "{figures}");
        assert_eq!(changes["dead"], 0);
        let lag = &peer["lag"];
        let ms = |name: &str| lag[name].as_f64().unwrap();
        assert!(lag["writes"].as_u64().unwrap() > 0, "{figures}");
        assert!(
            0.0 < ms("p50_ms") && ms("p50_ms") <= ms("p99_ms") && ms("p99_ms") <= ms("max_ms"),
            "{figures}"
        );
    }
    assert_ne!(peers[0]["region"], peers[1]["region"], "one peer is in another Region");
    assert!(progress.contains("writing: ") && progress.contains("lag p50"), "{progress}");
}

/// Interrupts a demo once a line of its progress says that it writes.
async fn interrupted(mut child: Child, says: &str) -> (i32, Value) {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let writing = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(says) {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(LIMIT, writing).await.expect("the load begins"), "the demo ended early");
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let (rest, (code, figures, _)) =
        tokio::join!(async { while let Ok(Some(_)) = lines.next_line().await {} }, figures(child));
    let () = rest;
    (code, figures)
}

#[tokio::test]
async fn an_interrupt_ends_the_load_and_the_verdict_still_comes() {
    let child = demo(&["--for", "1h", "--rate", "50", "--seed", "8", "--json"]);
    let (code, figures) = interrupted(child, "writing: ").await;
    assert_eq!(code, 0, "{figures}");
    assert_eq!((&figures["interrupted"], &figures["agree"]), (&Value::Bool(true), &Value::Bool(true)));
    assert_eq!(figures["split"], Value::Null, "half an hour had not passed");
}

#[tokio::test]
async fn a_group_agrees_after_one_of_its_members_was_cut_off() {
    let child = demo(&["--active-active", "--for", "6s", "--rate", "60", "--seed", "7", "--json"]);
    let (code, figures, progress) = figures(child).await;
    assert_eq!(code, 0, "{figures}\n{progress}");
    assert_eq!((&figures["agree"], &figures["quiet"]), (&Value::Bool(true), &Value::Bool(true)), "{figures}");
    assert!(figures["cut"]["differed"].as_u64().unwrap() > 0, "{figures}");
    let members = figures["members"].as_array().unwrap();
    assert_eq!(members.len(), 3);
    assert!(members.iter().all(|member| member["writes"].as_u64().unwrap() > 0), "{figures}");
    assert!(figures["conflicts"].as_u64().unwrap() >= figures["kept"].as_u64().unwrap(), "{figures}");
}

#[tokio::test]
async fn a_group_that_is_stopped_early_tells_of_no_cut() {
    let child = demo(&["--active-active", "--for", "1h", "--rate", "60", "--seed", "7", "--json"]);
    let (code, figures) = interrupted(child, " s  writing ").await;
    assert_eq!(code, 0, "{figures}");
    assert_eq!((&figures["cut"], &figures["agree"]), (&Value::Null, &Value::Bool(true)), "{figures}");
}
