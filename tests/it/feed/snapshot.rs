//! What the source holds, as files of a feed.

use super::{Lake, Line, SOON, write};
use crate::world::{HOME, eventually, resource_policy};
use serde_json::json;
use shardwalker::backfill::{Backfill, Ended, Request};
use shardwalker::config::Config;
use shardwalker::sandbox::faults::{Effect, Rule};
use std::collections::BTreeSet;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A lake whose source may be scanned.
pub(super) fn scanned(shards: u32) -> Lake {
    let lake = Lake::new(shards);
    lake.world.sandbox.admin(HOME, "replicator").unwrap();
    let policy = resource_policy(&lake.world.source, &["DescribeTable", "Scan"]);
    lake.world.sandbox.put_resource_policy(&lake.world.source, &policy).unwrap();
    lake
}

pub(super) fn request(segments: u32, peer: Option<&str>) -> Request {
    let (route, peer) = ("copy".to_owned(), peer.map(str::to_owned));
    Request { route, peer, segments: Some(segments), ..Request::default() }
}

async fn backfill(lake: &Lake, request: Request, peer: bool) -> Ended {
    Box::pin(backfill_of(lake, lake.config(SOON, peer), request)).await
}

pub(super) async fn backfill_of(lake: &Lake, config: Config, request: Request) -> Ended {
    let options = lake.world.options(true);
    let backfill = Backfill::build(config, request, options, None, CancellationToken::new()).await;
    Box::pin(backfill.unwrap().run(watch::channel(None).0)).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_backfill_writes_a_snapshot_in_the_same_form() {
    let lake = scanned(2);
    write(&lake.world, 0, 60).await;
    assert!(matches!(Box::pin(backfill(&lake, request(3, None), true)).await, Ended::Done));
    let snapshot = |line: &Line| line.value["event"] == "SNAPSHOT";
    let lines: Vec<Line> = lake.lines().into_iter().filter(snapshot).collect();
    assert_eq!(lines.len(), 20);
    assert!(lines.iter().all(|line| line.file.starts_with("copy.snapshot/lake/run=1/")), "{lines:?}");
    let values: BTreeSet<String> = lines.iter().map(|line| line.value["new"]["value"].to_string()).collect();
    assert_eq!(values.len(), 20, "the newest of each");
    let peer = lake.world.items(&lake.world.peers[0]);
    assert_eq!(peer, lake.world.items(&lake.world.source), "the peer beside it is filled too");
}

#[tokio::test(start_paused = true)]
async fn a_backfill_of_the_feed_alone_is_a_run_of_its_own() {
    let lake = scanned(2);
    write(&lake.world, 0, 20).await;
    assert_eq!(Box::pin(backfill(&lake, request(3, None), true)).await, Ended::Done);
    assert_eq!(Box::pin(backfill(&lake, request(2, Some("lake")), true)).await, Ended::Done);
    let mut runs = std::collections::BTreeMap::<String, BTreeSet<String>>::new();
    for line in lake.lines() {
        let run = line.file.rsplit_once('/').unwrap().0.to_owned();
        let key = line.value["key"]["id"].to_string();
        assert!(runs.entry(run).or_default().insert(key), "{line:?} is in its run twice");
    }
    let items: Vec<usize> = runs.values().map(BTreeSet::len).collect();
    assert_eq!(items, [20, 20], "{:?}", runs.keys());
}

/// What a worker that lost its segment still sends must not come to lie over the file of the next one, which has read
/// other items from there on.
#[tokio::test(start_paused = true)]
async fn who_takes_a_segment_over_writes_files_of_its_own() {
    let lake = scanned(1);
    write(&lake.world, 0, 20).await;
    let segments = json!({ "S": "backfill#copy" });
    let cut = Rule::new(Effect::DropRequest).operation("UpdateItem").account(HOME).key(segments);
    // It takes the segment, and cannot save what it has written.
    lake.world.sandbox.faults().add(Rule { after: 1, ..cut });
    let written = || lake.files(".jsonl.zst");
    {
        let mut first = Box::pin(backfill(&lake, request(1, None), false));
        let there = eventually("its file is there", || !written().is_empty());
        tokio::select! {
            ended = &mut first => panic!("{ended:?}"),
            () = there => {}
        }
    }
    lake.world.sandbox.faults().clear();
    let before: Vec<_> = written().into_iter().map(|path| (std::fs::read(&path).unwrap(), path)).collect();
    lake.world.delete("k3").await;
    assert_eq!(Box::pin(backfill(&lake, request(1, None), false)).await, Ended::Done);
    assert!(written().len() > before.len());
    for (bytes, path) in before {
        assert!(std::fs::read(&path).unwrap() == bytes, "{} is as it was", path.display());
    }
    let keys: BTreeSet<String> =
        lake.lines().iter().map(|line| line.value["key"]["id"].to_string()).collect();
    assert_eq!(keys.len(), 20);
}
