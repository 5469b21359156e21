//! Small runs of what the simulation found, each by itself.

use super::plan::{Act, Event, Plan};
use super::{report, run};
use crate::world::{PEERS, World, eventually};
use shardwalker::sandbox::faults::{Effect, Rule};
use shardwalker::sandbox::pause::Pause;
use shardwalker::service::Service;
use shardwalker::task::Tasks;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// A worker that stands still longer than its lease, in the middle of a creation, and then goes on: another one has
/// applied that creation and the delete after it, and nothing may come back.
#[tokio::test(start_paused = true)]
async fn a_creation_of_a_worker_that_stood_still_does_not_stay() {
    for step in 0..3 {
        stand_still_after(Duration::from_millis(step * 500)).await;
    }
}

async fn stand_still_after(trying: Duration) {
    let world = World::new();
    let pause = Pause::new();
    let mut first = Tasks::new();
    let service = Service::build(world.config("", ""), world.options(true), CancellationToken::new());
    let service = service.await.unwrap();
    world.sandbox.faults().add(Rule::new(Effect::InternalError).operation("PutItem").table("orders-copy"));
    for key in 0..8 {
        world.put(&format!("k{key}"), "1").await;
    }
    first.spawn(pause.over(service.run()));
    let tries = || world.requests("PutItem", PEERS[0].0);
    eventually("the worker tries", || tries() > 3).await;
    sleep(trying).await;
    pause.hold();
    world.sandbox.faults().clear();
    let second = world.worker().await;
    world.until_equal().await;
    for key in 0..8 {
        world.delete(&format!("k{key}")).await;
    }
    world.until_equal().await;
    // Reading the ledger takes a moment, in which the worker finds that it stood still.
    world.sandbox.faults().add(Rule::new(Effect::DelayMs(100)).operation("BatchGetItem"));
    let before = tries();
    pause.resume();
    sleep(Duration::from_secs(30)).await;
    assert!(
        world.all_equal(),
        "after {trying:?} and {} late puts: {:?}",
        tries() - before,
        world.items(&world.peers[0])
    );
    second.stop().await.unwrap();
}

/// An application of a member turns an item back to the content that we had written there, while an older write of
/// another member is on its way: that may find the stale stamp before the item is stamped anew, and must not stay.
#[test]
fn an_old_content_that_came_back_wins_over_an_older_write() {
    let write = |route, act| Event::Write { route, key: 0, act };
    let events = [
        (500, Event::Start { worker: 0, skew: 0 }),
        (600, write(0, Act::Put)),
        (15_000, Event::Crash { worker: 0 }),
        (16_000, write(0, Act::Put)),
        (18_000, write(1, Act::Update)),
        (18_100, write(1, Act::Back(2))),
        (19_000, Event::Start { worker: 0, skew: 0 }),
    ];
    for seed in 0..8 {
        let events = events.iter().map(|(at, event)| (Duration::from_millis(*at), event.clone()));
        let outcome = run::of(Plan::calm(seed, events.collect()), None);
        assert!(outcome.violation.is_none(), "{}", report(&outcome));
    }
}
