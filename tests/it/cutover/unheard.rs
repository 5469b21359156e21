//! Workers that do not see where a cutover stands.

use super::{Application, Pair, request};
use crate::world::{HOME, eventually};
use shardwalker::cutover::Goal;
use shardwalker::cutover::standing::Step;
use shardwalker::sandbox::faults::{Effect, Rule};
use std::time::Duration;

/// Beats every second, and looks every twenty: the beats say nothing of what the workers know.
#[tokio::test(start_paused = true)]
async fn no_turn_is_made_before_every_worker_has_closed_its_gates() {
    let pair =
        Pair { lease: "duration = \"60s\"\nrenew_interval = \"1s\"\nlook_interval = \"20s\"", ..Pair::new() };
    let workers = [pair.worker().await, pair.worker().await, pair.worker().await];
    let app = Application::new(&pair);
    let steps = async {
        app.moves(0).await;
        for (turn, goal, side) in [(0, Goal::Peer, 1), (1, Goal::Source, 0)] {
            let turned = async {
                eventually("it turns", || pair.step() != (turn, "sealed".to_owned()) && is_past(&pair, turn))
                    .await;
                let left = if turn == 0 { "route copy, peer b" } else { "route copy/back, peer a" };
                for worker in &workers {
                    let paused = worker.board.picture(Duration::MAX).paused;
                    assert!(paused.iter().any(|line| line.contains(left)), "{}: {paused:?}", worker.name());
                }
            };
            futures::join!(pair.done(goal), turned);
            app.moves(side).await;
        }
        app.stop.set(true);
    };
    futures::join!(app.run(5), steps);
    app.until_equal().await;
    for worker in workers {
        worker.stop().await.unwrap();
    }
}

/// Past the seal of a turn.
fn is_past(pair: &Pair, turn: u64) -> bool {
    let (now, step) = pair.step();
    now > turn || step == "turning"
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_beats_and_sees_nothing_holds_the_cutover_up_and_writes_nothing() {
    let pair = Pair::new();
    let one = pair.worker().await;
    let blind = pair.worker_of("blind").await;
    let app = Application::new(&pair);
    let steps = async {
        app.moves(0).await;
        let user = format!("arn:aws:iam::{HOME}:user/blind");
        let looks = Rule::new(Effect::Throttle).operation("Query").account(HOME).caller(&user);
        pair.sandbox.faults().add(looks);
        // Long after it may not write any more; what it held is stuck, or was taken by the other one.
        let report = pair.cutover(request(Goal::Peer)).await.unwrap();
        assert_eq!(report.turn, 0, "{report:?}");
        let refused = report.refused.unwrap();
        if report.step == Step::Sealed {
            assert!(refused.what.contains(blind.name()), "{refused:?}");
        }
        pair.sandbox.faults().clear();
        assert_eq!(pair.done(Goal::Peer).await.turn, 1);
        app.moves(1).await;
        app.stop.set(true);
    };
    futures::join!(app.run(6), steps);
    app.until_equal().await;
    one.stop().await.unwrap();
    blind.stop().await.unwrap();
}
