//! A command that is killed at any time goes on, and one that is called off leaves everything as it was.

use super::{Application, Pair, existing, request};
use crate::world::HOME;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shardwalker::cutover::Goal;
use shardwalker::sandbox::faults::{Effect, Rule};
use std::future::{Future as _, poll_fn};
use std::task::Poll;
use std::time::Duration;
use tokio::time::timeout;

/// Runs it until it is done, killing it again and again.
async fn again_and_again(pair: &Pair, goal: Goal, random: &mut StdRng) -> u32 {
    let mut kills = 0;
    loop {
        // The longest wait is for two beats after one and a half, within the seal.
        let budget = Duration::from_millis(random.random_range(0..25_000));
        match timeout(budget, pair.cutover(request(goal))).await {
            Err(_) => kills += 1,
            Ok(Ok(report)) if report.refused.is_none() => return kills,
            // A comparison that was broken off by a fault, or a drain that was.
            Ok(_) => {}
        }
        assert!(kills < 400, "it never ends");
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_killed_at_any_time_goes_on() {
    let given = std::env::var("CUTOVER_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in given.map_or(1..3_u64, |seed| seed..seed + 1) {
        eprintln!("CUTOVER_SEED={seed}");
        let pair = Pair::new();
        let worker = pair.worker().await;
        let app = Application::new(&pair);
        let mut random = StdRng::seed_from_u64(seed);
        let steps = async {
            app.moves(0).await;
            let mut kills = 0;
            for (goal, side) in [(Goal::Peer, 1), (Goal::Source, 0), (Goal::Peer, 1)] {
                pair.sandbox
                    .faults()
                    .add(Rule::new(Effect::DropAnswer).operation("PutItem").account(HOME).probability(0.02));
                kills += again_and_again(&pair, goal, &mut random).await;
                pair.sandbox.faults().clear();
                app.moves(side).await;
            }
            app.stop.set(true);
            kills
        };
        let ((), kills) = futures::join!(app.run(seed), steps);
        assert!(kills > 5, "seed {seed}: {kills}");
        app.until_equal().await;
        worker.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_that_is_called_off_at_any_step_leaves_everything_as_it_was() {
    let pair = Pair::new();
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    let steps = async {
        for (turn, goal, undo, side) in [(0, Goal::Peer, Goal::Source, 0), (1, Goal::Source, Goal::Peer, 1)] {
            app.moves(side).await;
            for step in ["stopping", "draining", "sealed", "turning"] {
                kill_at(&pair, goal, turn, step).await;
                let report = pair.done(undo).await;
                assert_eq!((report.turn, pair.step()), (turn, (turn, "live".to_owned())), "{step}");
                let statements = pair.statements(side).await;
                let before = existing(&pair.tables[0])["Statement"].as_array().unwrap().clone();
                assert_eq!(statements, if side == 0 { before } else { Vec::new() }, "{step}");
                app.moves(side).await;
            }
            pair.done(goal).await;
            app.moves(1 - side).await;
        }
        app.stop.set(true);
    };
    futures::join!(app.run(7), steps);
    app.until_equal().await;
    worker.stop().await.unwrap();
}

/// Runs it, and drops it as soon as it comes to a step.
pub(super) async fn kill_at(pair: &Pair, goal: Goal, turn: u64, step: &str) {
    // So that no step passes within one look.
    pair.sandbox.faults().add(Rule::new(Effect::DelayMs(1)).account(HOME));
    let mut run = Box::pin(pair.cutover(request(goal)));
    let killed = poll_fn(|context| match run.as_mut().poll(context) {
        Poll::Ready(report) => panic!("it was never {step}: {report:?}"),
        Poll::Pending if pair.step() == (turn, step.to_owned()) => Poll::Ready(()),
        Poll::Pending => Poll::Pending,
    });
    killed.await;
    pair.sandbox.faults().clear();
}
