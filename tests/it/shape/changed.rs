//! A shape that is changed while its items are there.

use super::{Shaped, WA, event};
use crate::world::{STAMP, Worker, eventually};
use serde_json::json;
use shardwalker::backfill::{BackfillError, Ended};
use shardwalker::verify::VerifyError;

const BOTH: &str = "[route.shape]\nfilter = 'item.state in [\"WA\", \"OR\"]'\nexclude = [\"more\"]\n";

fn held(worker: &Worker) -> Option<String> {
    let pauses = worker.board.pauses();
    pauses.into_iter().find_map(|(_, _, pause)| pause.map(|pause| pause.why))
}

#[tokio::test(start_paused = true)]
async fn a_changed_shape_writes_nothing_until_the_items_are_copied_anew() {
    let shaped = Shaped::new(&["id"], &["id"]);
    let old = shaped.worker(WA).await;
    shaped.put(event("a", "WA", "1")).await;
    shaped.put(event("b", "OR", "1")).await;
    shaped.put(event("c", "WA", "1")).await;
    shaped.until_shaped(WA).await;
    // The new shape is held back, and the old one goes on.
    let new = shaped.worker(BOTH).await;
    let why = held(&new).unwrap();
    assert!(
        why.contains("the route's shape was changed") && why.contains("backfill copy --restart"),
        "{why}"
    );
    assert_eq!(held(&old), None);
    old.stop().await.unwrap();
    shaped.put(event("d", "OR", "1")).await;
    shaped.put(event("a", "WA", "2")).await;
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(shaped.there(WA).len(), 2, "nothing is written");
    assert!(held(&new).is_some());
    // Neither is it given to the items without being asked to.
    let refused = shaped.backfill(BOTH, false).await;
    assert!(matches!(&refused, Err(BackfillError::Shape(why)) if why.contains("--restart")), "{refused:?}");
    let refused = shaped.verify(BOTH, true).await;
    assert!(
        matches!(&refused, Err(VerifyError::Request(why)) if why.contains("shape was changed")),
        "{refused:?}"
    );
    // What it would come to is shown.
    let (tally, _) = shaped.verify(BOTH, false).await.unwrap();
    assert_eq!(tally.remaining(), 4, "{tally:?}");
    assert_eq!(shaped.backfill(BOTH, true).await.unwrap(), Ended::Done);
    shaped.until_shaped(BOTH).await;
    assert_eq!(shaped.there(BOTH).len(), 4);
    eventually("it goes on", || held(&new).is_none()).await;
    shaped.put(event("e", "OR", "1")).await;
    shaped.until_shaped(BOTH).await;
    new.stop().await.unwrap();
    let (tally, _) = shaped.verify(BOTH, false).await.unwrap();
    assert_eq!((tally.remaining(), tally.equal), (0, 5));
    // The one with the old config is held back now.
    let old = shaped.worker(WA).await;
    assert!(held(&old).is_some());
    old.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_narrower_filter_leaves_items_that_a_repair_deletes() {
    let shaped = Shaped::new(&["id"], &["id"]);
    let worker = shaped.worker(BOTH).await;
    shaped.put(event("a", "WA", "1")).await;
    shaped.put(event("b", "OR", "1")).await;
    shaped.until_shaped(BOTH).await;
    worker.stop().await.unwrap();
    assert_eq!(shaped.backfill(WA, true).await.unwrap(), Ended::Done);
    assert_eq!(shaped.there(WA).len(), 2);
    let (tally, _) = shaped.verify(WA, true).await.unwrap();
    assert_eq!((tally.differences, tally.repaired), ([("extra".to_owned(), 1)].into(), 1));
    assert_eq!(shaped.there(WA), shaped.wanted(WA));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_runs_on_with_the_old_shape_stops_writing_once_the_new_one_is_accepted() {
    let shaped = Shaped::new(&["id"], &["id"]);
    let old = shaped.worker(WA).await;
    shaped.put(event("a", "WA", "1")).await;
    shaped.until_shaped(WA).await;
    assert_eq!(shaped.backfill(BOTH, true).await.unwrap(), Ended::Done);
    eventually("it is held back", || held(&old).is_some()).await;
    shaped.put(event("b", "WA", "1")).await;
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    assert_eq!(shaped.there(BOTH).len(), 1);
    old.stop().await.unwrap();
    let new = shaped.worker(BOTH).await;
    shaped.until_shaped(BOTH).await;
    new.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_route_that_is_given_a_shape_or_loses_it_is_noticed() {
    let shaped = Shaped::new(&["id"], &["id"]);
    let plain = shaped.worker("").await;
    shaped.put(event("a", "WA", "1")).await;
    eventually("it is copied", || !shaped.world.sandbox.items(&shaped.target).unwrap().is_empty()).await;
    plain.stop().await.unwrap();
    let worker = shaped.worker(WA).await;
    assert!(held(&worker).unwrap().contains("has a shape now, and had none"));
    worker.stop().await.unwrap();
    assert_eq!(shaped.backfill(BOTH, true).await.unwrap(), Ended::Done);
    assert_eq!(shaped.there(BOTH), shaped.wanted(BOTH), "what the stream had brought is shaped too");
    let plain = shaped.worker("").await;
    assert!(held(&plain).unwrap().contains("had a shape, and has none now"));
    assert_eq!(shaped.backfill("", true).await.unwrap(), Ended::Done);
    eventually("it goes on", || held(&plain).is_none()).await;
    let items = |table: &str| {
        let mut items = shaped.world.sandbox.items(table).unwrap();
        for item in &mut items {
            item.as_object_mut().unwrap().remove(STAMP);
        }
        items
    };
    assert_eq!(items(&shaped.target), items(&shaped.source));
    plain.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_backfill_that_shapes_anew_keeps_what_changes_meanwhile() {
    let shaped = Shaped::new(&["id"], &["id"]);
    let worker = shaped.worker(WA).await;
    for id in 0..30 {
        shaped.put(event(&format!("e{id:02}"), "WA", "1")).await;
    }
    shaped.until_shaped(WA).await;
    worker.stop().await.unwrap();
    let worker = shaped.worker(BOTH).await;
    let write = async {
        for round in 0..60_usize {
            let id = format!("e{:02}", round * 7 % 30);
            match round % 4 {
                0 => shaped.delete(json!({ "id": { "S": id } })).await,
                1 => shaped.put(event(&id, "CA", "2")).await,
                _ => shaped.put(event(&id, ["WA", "OR"][round % 2], &round.to_string())).await,
            }
            tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        }
    };
    let (ended, ()) = tokio::join!(shaped.backfill(BOTH, true), write);
    assert_eq!(ended.unwrap(), Ended::Done);
    // A filter that is wider lets nothing behind.
    shaped.until_shaped(BOTH).await;
    worker.stop().await.unwrap();
}
