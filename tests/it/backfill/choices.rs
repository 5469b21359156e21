//! What becomes of items that are at the peer already, and of those with a stamp of their own.

use super::{Stage, count, put_at, request, stamp};
use crate::world::{PEERS, STAMP};
use serde_json::Value;
use shardwalker::backfill::{Ended, Request};
use shardwalker::peer::{OnExisting, Seeded};

fn value(stage: &Stage, id: &str) -> Value {
    let items = stage.world.sandbox.items(&stage.world.peers[0]).unwrap();
    items.into_iter().find(|item| item["id"]["S"] == id).unwrap()["value"]["S"].clone()
}

/// A peer with an item of the same content, one of another, and one that the source does not have.
async fn occupied() -> Stage {
    let stage = Stage::new();
    stage.fill(20).await;
    for (id, value) in [("k1", "before"), ("k2", "theirs"), ("other", "theirs")] {
        put_at(&stage.world, PEERS[0].0, "orders-copy", id, value).await;
    }
    stage
}

fn choosing(existing: OnExisting) -> Request {
    Request { peer: Some("b".to_owned()), existing: Some(existing), ..request() }
}

#[tokio::test(start_paused = true)]
async fn items_of_others_stop_a_backfill_until_an_operator_decides() {
    let stage = occupied().await;
    let worker = stage.service().await;
    let by_default = Request { peer: Some("b".to_owned()), ..request() };
    let (ended, picture) = stage.run(by_default.clone()).await;
    let Ended::Stopped(why) = ended else { panic!("{ended:?}") };
    assert!(why.contains("1 at b on one page") && why.contains("--on-existing keep|overwrite"), "{why}");
    assert!(!why.contains("theirs"), "no values");
    assert_eq!((picture.state, picture.why.as_ref()), ("stopped", Some(&why)));
    assert_eq!(value(&stage, "k2"), "theirs");
    // It goes on with a decision, from where it was.
    let (ended, picture) = stage.run(choosing(OnExisting::Keep)).await;
    assert_eq!((ended, picture.totals.items, picture.on_existing), (Ended::Done, 20, "keep"));
    assert_eq!((count(&picture, "b", Seeded::Kept), count(&picture, "b", Seeded::Equal)), (1, 1));
    assert_eq!((value(&stage, "k2"), value(&stage, "k3")), ("theirs".into(), "before".into()));
    // A change of the source takes the place of what was kept: that is what a route does.
    stage.world.put("k2", "changed").await;
    crate::world::eventually("it is copied", || value(&stage, "k2") == "changed").await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn items_of_others_are_overwritten_when_asked_for() {
    let stage = occupied().await;
    // One has something in the stamp's place that sorts after every stamp.
    let owner = crate::sandbox_support::Client::admin(&stage.world.sandbox, PEERS[0].0);
    let odd = crate::world::with("k3", &[(STAMP, crate::sandbox_support::s("zzz"))]);
    owner.db.put_item().table_name("orders-copy").set_item(Some(odd)).send().await.unwrap();
    let worker = stage.service().await;
    let (ended, picture) = stage.run(choosing(OnExisting::Overwrite)).await;
    assert_eq!(ended, Ended::Done);
    assert_eq!((count(&picture, "b", Seeded::Overwritten), count(&picture, "b", Seeded::Equal)), (2, 1));
    assert_eq!((value(&stage, "k2"), value(&stage, "k3")), ("before".into(), "before".into()));
    assert_eq!(value(&stage, "other"), "theirs", "what the source does not have is not touched");
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_second_backfill_brings_up_to_date_what_no_change_has_touched() {
    let stage = Stage::new();
    stage.fill(20).await;
    let world = &stage.world;
    stage.run(request()).await;
    // Changes that were lost: the stream was not followed, and has them no more.
    world.put("k1", "lost").await;
    tokio::time::sleep(std::time::Duration::from_secs(30 * 3600)).await;
    let (_, picture) = stage.run(Request { restart: true, ..request() }).await;
    assert_eq!((count(&picture, "b", Seeded::Updated), count(&picture, "b", Seeded::Unchanged)), (1, 19));
    assert!(world.all_equal());
}

#[tokio::test(start_paused = true)]
async fn an_item_keeps_the_version_of_its_own_stamp_when_it_is_clean() {
    let stage = Stage::new();
    stage.fill(3).await;
    let world = &stage.world;
    // `c` is what another route has written; the copy of `d` was changed since, and `e` is from the future.
    let (content, other) = (crate::world::with("c", &[]), crate::world::with("d", &[]));
    let item = |content: &std::collections::HashMap<_, _>| shardwalker::item::Item(content.clone()).into();
    let at = |millis| shardwalker::version::Version::new(shardwalker::version::Hlc::from_millis(millis), 9);
    let text = |content, millis| shardwalker::version::Stamp::of(&item(content), at(millis)).to_string();
    let future = crate::world::with("e", &[]);
    for (content, stamp) in [
        (&content, text(&content, 1_700_000_000_000)),
        (&other, text(&content, 1_700_000_000_000)),
        (&future, text(&future, 1_900_000_000_000)),
    ] {
        let mut stamped = content.clone();
        stamped.insert(STAMP.to_owned(), crate::sandbox_support::s(&stamp));
        world.app.db.put_item().table_name("orders").set_item(Some(stamped)).send().await.unwrap();
    }
    tokio::time::sleep(super::LONG_AGO).await;
    let (ended, _) = stage.run(request()).await;
    assert_eq!(ended, Ended::Done);
    let version = |id| stamp(world, &world.peers[0], id).unwrap().split(".p.").next().unwrap().to_owned();
    assert_eq!(version("c"), at(1_700_000_000_000).to_string());
    for id in ["d", "e", "k1"] {
        assert_eq!(version(id), "0000000000000000.00", "{id}");
    }
}
