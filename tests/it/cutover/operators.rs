//! Operators who meet each other, and policies that are shown and enforced late.

use super::interrupted::kill_at;
use super::{Application, Pair, existing, request};
use crate::world::{SOURCE, eventually};
use serde_json::{Value, json};
use shardwalker::backfill::{self, Backfill, BackfillError};
use shardwalker::cutover::standing::Step;
use shardwalker::cutover::{CutoverError, Goal, Request};
use shardwalker::sandbox::faults::{Effect, Rule};
use shardwalker::strip;
use shardwalker::verify::record::Record;
use shardwalker::verify::{self, Prefer, Verify, VerifyError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn before(pair: &Pair) -> Vec<Value> {
    existing(&pair.tables[0])["Statement"].as_array().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn a_statement_that_is_tried_again_does_not_outlive_a_move_that_was_called_off() {
    let pair = Pair::new();
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    app.write("k", Some("1")).await;
    app.until_equal().await;
    let puts = Rule::new(Effect::InternalError).operation("PutResourcePolicy").account(SOURCE);
    pair.sandbox.faults().add(puts);
    let undo = async {
        eventually("the first attaches", || pair.step().1 == "stopping").await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(pair.done(Goal::Source).await.turn, 0);
        pair.sandbox.faults().clear();
    };
    let (first, ()) = futures::join!(pair.cutover(request(Goal::Peer)), undo);
    assert!(matches!(first, Err(CutoverError::Another)), "{first:?}");
    assert_eq!((pair.statements(0).await, pair.step()), (before(&pair), (0, "live".to_owned())));
    app.write("k", Some("2")).await;
    assert_eq!(app.refused.get(), 0);
    app.until_equal().await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn policies_that_are_shown_late_keep_nobody_out_and_let_nobody_in() {
    let pair = Pair::new();
    pair.sandbox.faults().delay_policies(Duration::from_secs(3));
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    let steps = async {
        app.moves(0).await;
        assert_eq!(pair.done(Goal::Peer).await.turn, 1);
        app.moves(1).await;
        // Called off as soon as the statement is put.
        kill_at(&pair, Goal::Source, 1, "stopping").await;
        let attach = tokio::time::timeout(Duration::from_secs(1), pair.cutover(request(Goal::Source)));
        assert!(attach.await.is_err(), "it sees to it that the statement stays");
        pair.done(Goal::Peer).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(pair.statements(1).await, [Value::Null; 0]);
        app.moves(1).await;
        assert_eq!(pair.done(Goal::Source).await.turn, 2);
        app.moves(0).await;
        app.stop.set(true);
    };
    futures::join!(app.run(9), steps);
    app.until_equal().await;
    assert_eq!(pair.statements(0).await, before(&pair));
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_markers_key_is_remembered_when_a_drain_is_called_off() {
    let pair = Pair::new();
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    app.write("k", Some("1")).await;
    app.until_equal().await;
    let key = shardwalker::json::to_item(&serde_json::from_value(json!({ "id": { "S": "mine" } })).unwrap());
    let wanted = Request { marker_key: Some(key.unwrap()), ..request(Goal::Peer) };
    {
        let run = pair.cutover(wanted);
        tokio::pin!(run);
        tokio::select! {
            report = &mut run => panic!("{report:?}"),
            () = eventually("the marker is there", || pair.items(0).contains_key("mine")) => {}
        }
    }
    assert_eq!(pair.done(Goal::Source).await.turn, 0);
    app.until_equal().await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_backfill_neither_hinders_a_move_unseen_nor_outlives_it() {
    let pair = Pair::new();
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    for key in 0..40 {
        app.write(&format!("k{key}"), Some("1")).await;
    }
    app.until_equal().await;
    let start = |write_units, restart| {
        let request = backfill::Request {
            route: "copy".to_owned(),
            segments: Some(1),
            write_units,
            restart,
            ..backfill::Request::default()
        };
        let drain = CancellationToken::new();
        Box::pin(Backfill::build(pair.config(), request, pair.options(false), None, drain))
    };
    let slow = start(Some(1), false).await.unwrap();
    let (pictures, mut seen) = watch::channel(None);
    let refused = async {
        seen.wait_for(Option::is_some).await.unwrap();
        let report = pair.cutover(request(Goal::Peer)).await.unwrap();
        assert_eq!((report.turn, report.step), (0, Step::Live));
        assert!(report.refused.unwrap().what.contains("a backfill of copy is not done"));
    };
    let (ended, ()) = futures::join!(Box::pin(slow.run(pictures)), refused);
    assert_eq!(ended.unwrap(), backfill::Ended::Done);

    // One that was about to begin when the sides were sealed.
    let late = start(None, true).await.unwrap();
    kill_at(&pair, Goal::Peer, 0, "sealed").await;
    let ended = Box::pin(late.run(watch::channel(None).0)).await;
    assert!(matches!(ended, Err(BackfillError::Moved(_))), "{ended:?}");
    let error = start(None, false).await.err().unwrap().to_string();
    assert!(error.contains("writers are being moved"), "{error}");

    pair.done(Goal::Peer).await;
    let wanted = strip::Request {
        route: "copy".to_owned(),
        peer: "b".to_owned(),
        read_units: None,
        write_units: None,
    };
    let options = pair.options(false);
    let stripped = Box::pin(strip::strip(pair.config(), wanted, options, CancellationToken::new())).await;
    assert!(stripped.unwrap_err().to_string().contains("is not paused"), "writers may still come back");
    worker.stop().await.unwrap();
}

/// A repair that was begun in one turn and is carried out in another: what was right then would undo what writers have
/// written since.
#[tokio::test(start_paused = true)]
async fn a_repair_ends_with_the_turn_in_which_it_began() {
    let pair = Pair::new();
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    app.write("k", Some("1")).await;
    app.until_equal().await;
    let repair = || {
        let request = verify::Request {
            repair: true,
            prefer: Some(Prefer::Member("a".to_owned())),
            ..crate::verify::request("copy")
        };
        let (options, cancel) = (pair.options(false), CancellationToken::new());
        Box::pin(Verify::build(pair.config(), request, options, Record::nowhere(), cancel))
    };
    let (begun, later) = (repair().await.unwrap(), repair().await.unwrap());

    // While the sides are sealed nobody else writes.
    kill_at(&pair, Goal::Peer, 0, "sealed").await;
    let refused = repair().await.err().unwrap().to_string();
    assert!(refused.contains("writers are being moved"), "{refused}");
    pair.apps[1].put("orders", "stray", "not the source's").await;
    let ended = Box::pin(begun.run()).await.unwrap_err();
    assert!(matches!(&ended, VerifyError::Call(failure) if failure.code == "Moved"), "{ended}");
    assert!(ended.to_string().contains("nothing more is repaired"), "{ended}");
    assert!(pair.items(1).contains_key("stray"), "it has written nothing");
    pair.apps[1].delete("orders", "stray").await;

    // Once writers have moved, it would put the old side's item over theirs.
    assert_eq!(pair.done(Goal::Peer).await.turn, 1);
    worker.stop().await.unwrap();
    app.side.set(1);
    app.write("k", Some("2")).await;
    let ended = Box::pin(later.run()).await.unwrap_err();
    assert!(matches!(&ended, VerifyError::Call(failure) if failure.code == "Moved"), "{ended}");
    assert_eq!((pair.items(0)["k"].as_str(), pair.items(1)["k"].as_str()), ("1", "2"));
    let refused = repair().await.err().unwrap().to_string();
    assert!(refused.contains("copy"), "{refused}");
    let worker = pair.worker().await;
    app.until_equal().await;
    worker.stop().await.unwrap();
}
