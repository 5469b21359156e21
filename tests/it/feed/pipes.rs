//! Changes on the standard output, when nobody takes them. The real process, in real time.

use crate::process::{Served, until};
use crate::sandbox_support::s;
use crate::world::with;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Child;

/// Far more than a pipe holds.
async fn write_much(served: &Served) {
    for index in 0..40 {
        let item = with(&format!("k{index}"), &[("value", s(&"x".repeat(20_000)))]);
        served.world.app.db.put_item().table_name("orders").set_item(Some(item)).send().await.unwrap();
    }
}

fn to_stdout(text: String) -> String {
    let text = text.replace(r#"to = ["b", "c"]"#, r#"to = ["b", "lines"]"#);
    format!("{text}\n[[feed]]\nname = \"lines\"\nurl = \"stdout\"\n")
}

async fn ended(child: &mut Child) -> Option<i32> {
    tokio::time::timeout(Duration::from_secs(30), child.wait()).await.expect("it ends").unwrap().code()
}

#[tokio::test]
async fn a_reader_that_stalls_holds_up_the_feed_and_nothing_else() {
    let served = Served::new().await;
    let process = served.run_as("25s", to_stdout, Stdio::piped()).await;
    write_much(&served).await;
    let equal =
        async || served.world.items(&served.world.peers[0]) == served.world.items(&served.world.source);
    until("the peer is equal", equal).await;
    served.world.put("later", "x").await;
    until("it goes on", equal).await;
    assert_eq!(process.get("/healthz").await.0, 200);
    process.signal("TERM");
    let (code, _, said) = process.end_of_both().await;
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test]
async fn there_are_lines_on_stdout_and_nothing_else() {
    let served = Served::new().await;
    let mut lines = Vec::new();
    // What is complete is known when the second one starts: every shard has a record by then.
    for round in ["a", "b"] {
        let process = served.run_as("25s", to_stdout, Stdio::piped()).await;
        for index in 0..20 {
            served.world.put(&format!("{round}{index}"), "x").await;
        }
        let done = async || {
            let metrics = process.get("/metrics").await.1;
            let known = |name: &str| {
                metrics.lines().any(|line| line.starts_with(&format!("{name}{{")) && !line.ends_with(" 0"))
            };
            let applied = metrics.lines().filter(|line| {
                line.starts_with("shardwalker_changes_total{")
                    && line.contains("lines")
                    && !line.ends_with(" 0")
            });
            let applied: f64 = applied.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
            applied >= 20.0 && (round == "a" || known("shardwalker_feed_watermark_seconds"))
        };
        until("the lines are written", done).await;
        process.signal("TERM");
        lines.extend(process.end_of_both().await.1.lines().map(str::to_owned));
    }
    let events = lines.iter().filter(|line| line.starts_with(r#"{"event":"INSERT""#)).count();
    assert!(events >= 40 && events == lines.len(), "{lines:?}");
}

#[tokio::test]
async fn a_tail_ends_when_nobody_reads_any_more_though_nothing_happens() {
    let served = Served::new().await;
    let _process = served.run("25s").await;
    served.world.put("a", "x").await;
    let mut tail = served.child(&["tail", "source", "--from", "trim-horizon"]);
    let mut out = BufReader::new(tail.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).await.unwrap();
    assert!(line.starts_with(r#"{"event":"INSERT""#), "{line}");
    drop(out);
    assert_eq!(ended(&mut tail).await, Some(0));
}

#[tokio::test]
async fn a_tail_shows_what_its_filter_lets_through() {
    let served = Served::new().await;
    let _process = served.run("25s").await;
    for (id, value) in [("a", "1"), ("b", "2"), ("c", "2")] {
        served.world.put(id, value).await;
    }
    let args = ["tail", "source", "--from", "trim-horizon", "--filter"];
    let mut tail = served.child(&[&args[..], &["item.value == '2'"]].concat());
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let line: serde_json::Value =
            serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
        ids.push(line["key"]["id"].as_str().unwrap().to_owned());
    }
    ids.sort();
    assert_eq!(ids, ["b", "c"]);
    let (code, out, said) = served.command(&[&args[..], &["item.value = '2'"]].concat()).await;
    assert!(code == 2 && out.is_empty() && said.contains("item.value = '2'\n             ^"), "{said}");
}

#[tokio::test]
async fn a_signal_ends_a_tail_whose_reader_stalls() {
    let served = Served::new().await;
    let _process = served.run("25s").await;
    write_much(&served).await;
    let mut tail = served.child(&["tail", "source", "--from", "trim-horizon"]);
    let mut out = tail.stdout.take().unwrap();
    out.read_exact(&mut [0]).await.unwrap();
    let pid = tail.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(ended(&mut tail).await, Some(0));
    drop(out);
}
