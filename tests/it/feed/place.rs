//! Where a feed's files lie, and what happens while they cannot lie there.

use super::{Lake, SOON, write};
use crate::process::{Served, until};
use crate::world::eventually;
use shardwalker::config::Config;
use std::collections::BTreeMap;
use std::process::Stdio;

#[tokio::test(start_paused = true)]
async fn feeds_of_one_route_at_one_place_do_not_mix() {
    let lake = Lake::new(1);
    let place = lake.directory.path().display();
    let text = lake.world.config_text("", "").replace(r#"to = ["b", "c"]"#, r#"to = ["lake", "other"]"#);
    let feed = |name: &str| format!("[[feed]]\nname = \"{name}\"\nurl = \"file://{place}\"\n{SOON}\n");
    let text = format!("{text}\n{}{}", feed("lake"), feed("other"));
    let worker = lake.world.start(Config::parse(&text, "test.toml", &|_| None).unwrap()).await;
    write(&lake.world, 0, 30).await;
    eventually("every record is in both", || lake.lines().len() >= 60).await;
    let mut of_feed = BTreeMap::<String, usize>::new();
    for line in lake.lines() {
        let feed = line.file.split('/').nth(1).unwrap().to_owned();
        *of_feed.entry(feed).or_default() += 1;
    }
    assert_eq!(of_feed, [("lake".to_owned(), 30), ("other".to_owned(), 30)].into());
    let marks = || lake.files("_watermark.json").len();
    eventually("each says what it has", || marks() == 2).await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_cannot_be_made_holds_up_nobody_else() {
    let lake = Lake::new(1);
    let within = lake.directory.path().join("mount");
    std::fs::write(&within, b"a file in the way").unwrap();
    let mut config = lake.config(SOON, true);
    config.feeds[0].place = shardwalker::config::FeedPlace::Files(within.join("lake"));
    let worker = lake.world.start(config).await;
    write(&lake.world, 0, 30).await;
    let peer = || lake.world.items(&lake.world.peers[0]) == lake.world.items(&lake.world.source);
    eventually("the peer is equal", peer).await;
    let failed = || worker.metric("shardwalker_retries_total", &["at=\"lake\""]) > 1.0;
    eventually("the failure is counted", failed).await;
    std::fs::remove_file(&within).unwrap();
    lake.until_there(30).await;
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_cloud_without_credentials_says_what_it_needs_and_holds_up_nobody_else() {
    let served = Served::new().await;
    let to_clouds = |text: String| {
        let text = text.replace(r#"to = ["b", "c"]"#, r#"to = ["b", "google", "azure"]"#);
        let feed = |name: &str, url: &str| format!("[[feed]]\nname = \"{name}\"\nurl = \"{url}\"\n");
        format!("{text}\n{}{}", feed("google", "gs://acme-lake/x"), feed("azure", "az://acme/lake"))
    };
    let process = served.run_as("25s", to_clouds, Stdio::null()).await;
    served.world.put("a", "x").await;
    until("the peer is equal", async || {
        served.world.items(&served.world.peers[0]) == served.world.items(&served.world.source)
    })
    .await;
    let (code, out, said) = served.command(&["check"]).await;
    assert_eq!(code, 1, "{out}{said}");
    for needed in ["GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CLIENT_ID"] {
        assert!(format!("{out}{said}").contains(needed), "{out}{said}");
    }
    process.signal("TERM");
    assert_eq!(process.end().await.0, Some(0));
}
