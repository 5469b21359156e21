//! The operator's commands, as the real binary, beside a running service. On the sandbox over TCP, in real time.

use crate::process::{Served, until};
use crate::sandbox_support::s;
use crate::world::with;
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

async fn put_big(served: &Served, id: &str) {
    let big = with(id, &[("value", s(&"secret".repeat(400 * 1024 / 6 - 3)))]);
    served.world.app.db.put_item().table_name("orders").set_item(Some(big)).send().await.unwrap();
}

#[tokio::test]
async fn pauses_and_status_of_a_running_service() {
    let served = Served::new().await;
    let process = served.run("25s").await;
    served.world.load(20, 60, 1).await;
    let (code, out, said) =
        served.command(&["status", "--wait", "caught-up", "--timeout", "25s", "--json"]).await;
    assert_eq!(code, 0, "{out}{said}");
    assert!(served.world.all_equal(), "caught up means that members are equal");
    let status = json(&out);
    let worker = status["workers"].as_object().unwrap().values().next().unwrap();
    assert_eq!(
        (&worker["alive"], &worker["shards"]["copy"]),
        (&Value::from(true), &Value::from(2)),
        "{status}"
    );
    assert_eq!(status["routes"]["copy"]["peers"]["b"]["caught_up"], true);
    assert_eq!(status["problems"], Value::Array(Vec::new()));

    let (code, out, _) = served.command(&["pause", "copy", "--peer", "b", "--why", "index build"]).await;
    assert!(code == 0 && out.contains("paused since") && out.contains("index build"), "{out}");
    until("the worker knows", async || process.get("/healthz").await.1.contains("index build")).await;
    assert_eq!(process.get("/healthz").await.0, 200);
    assert!(process.get("/metrics").await.1.contains("shardwalker_paused{peer=\"b\",route=\"copy\"} 1"));
    served.world.put("while paused", "x").await;
    until("the other peer has it", async || {
        served.world.items(&served.world.peers[1]) == served.world.items(&served.world.source)
    })
    .await;
    let (code, out, _) = served.command(&["status"]).await;
    assert_eq!(code, 0, "{out}");
    let line = |peer: &str| {
        let line = out.lines().find(|line| line.starts_with(&format!("copy   {peer} "))).unwrap_or_default();
        line.to_owned()
    };
    assert!(line("b").contains("paused"), "{out}");
    assert!(out.contains("route copy, peer b: paused since") && out.contains("by op"), "{out}");
    let (code, _, said) = served.command(&["status", "--wait", "caught-up", "--timeout", "1s"]).await;
    assert!(code == 1 && said.contains("not every peer"), "{said}");

    let (_, out, _) = served.command(&["resume", "copy"]).await;
    assert!(out.contains("was not paused") && out.contains("resume copy --peer b"), "{out}");
    let (code, out, _) = served.command(&["resume", "copy", "--peer", "b"]).await;
    assert!(code == 0 && out.contains("goes on"), "{out}");
    until("members are equal", async || served.world.all_equal()).await;
    let (code, _, said) = served.command(&["pause", "cpoy"]).await;
    assert!(code == 2 && said.contains("the routes are copy"), "{said}");
    process.signal("TERM");
    assert_eq!(process.end().await.0, Some(0));
    let (code, out, _) = served.command(&["status"]).await;
    assert!(code == 1 && out.contains("no worker lives"), "{out}");
}

#[tokio::test]
async fn dead_letters_are_listed_shown_retried_and_discarded() {
    let served = Served::new().await;
    let process = served.run("25s").await;
    put_big(&served, "one").await;
    put_big(&served, "two").await;
    let metric = "shardwalker_dead_letters_total{peer=\"c\",reason=\"refused\",route=\"copy\"} 2";
    until("they are refused", async || process.get("/metrics").await.1.contains(metric)).await;
    served.world.put("one", "behind").await;
    until("one waits", async || served.world.rows("dead#copy").len() >= 6).await;

    let list = |more: &'static [&'static str]| {
        let args: Vec<&str> = ["dead-letters", "list", "--json"].iter().chain(more).copied().collect();
        let served = &served;
        async move { json(&served.command(&args).await.1).as_array().unwrap().clone() }
    };
    assert_eq!(list(&[]).await.len(), 6);
    let letters = list(&["--peer", "b"]).await;
    assert_eq!(letters.len(), 3);
    let behind = list(&["--peer", "b", "--reason", "behind"]).await;
    assert_eq!((behind.len(), &behind[0]["attempts"]), (1, &Value::from(0)));
    let (code, out, _) = served.command(&["dead-letters", "list"]).await;
    assert!(code == 0 && out.contains("refused") && !out.contains("secret"), "{out}");
    let key = behind[0]["key"].as_str().unwrap();
    let (code, out, _) = served.command(&["dead-letters", "show", "--key", key, "--peer", "b"]).await;
    assert!(code == 0 && out.contains("secretsecret"));
    assert_eq!(json(&out)[1]["record"]["new"]["content"]["value"]["S"], "behind");
    assert_eq!(served.command(&["dead-letters", "show"]).await.0, 2);
    let (code, out, _) = served.command(&["status"]).await;
    assert!(code == 1 && out.contains("route copy, peer b: 3 dead letters of 2 keys"), "{out}");

    // Nothing has changed: they are refused again.
    let (code, out, said) = served.command(&["dead-letters", "retry", "--peer", "b", "--json"]).await;
    assert_eq!(code, 1, "{said}");
    assert_eq!(
        (json(&out)["remain"].as_array().unwrap().len(), &json(&out)["applied"]),
        (2, &Value::from(0))
    );
    assert_eq!(list(&["--peer", "b", "--reason", "refused"]).await[0]["attempts"], 2);

    // The big ones are given up at b; what waits behind is applied.
    assert_eq!(served.command(&["dead-letters", "discard"]).await.0, 2);
    let (code, _, said) = served.command(&["dead-letters", "discard", "--peer", "b"]).await;
    assert!(code == 2 && said.contains("--yes"), "{said}");
    let refused = ["dead-letters", "discard", "--peer", "b", "--reason", "refused", "--yes"];
    let (code, out, _) = served.command(&refused).await;
    assert!(code == 0 && out.contains("2 dead letters of 2 keys"), "{out}");
    let (code, out, said) = served.command(&["dead-letters", "retry", "--peer", "b"]).await;
    assert!(code == 0 && out.contains("1 applied"), "{out}{said}");
    assert!(served.world.rows("dead#copy#b").is_empty() && served.world.rows("dead-keys#copy#b").is_empty());
    // The keys are free again, in the running worker too.
    served.world.put("two", "small").await;
    until("b has both", async || {
        let items = served.world.items(&served.world.peers[0]);
        let value =
            |id: &str| items.get(&format!("{{\"S\":\"{id}\"}}")).map(|item| item["value"]["S"].clone());
        value("one") == Some("behind".into()) && value("two") == Some("small".into())
    })
    .await;
    let (code, ..) = served.command(&["dead-letters", "discard", "--all", "--yes"]).await;
    assert_eq!(code, 0);
    assert_eq!(list(&[]).await.len(), 0);
    process.signal("TERM");
    assert_eq!(process.end().await.0, Some(0));
}
