//! What must hold, and what is found when it does not.

use super::{Application, Pair, existing, request};
use crate::operator::Operator;
use crate::sandbox_support::{n, s};
use crate::world::{World, eventually};
use aws_sdk_dynamodb::types::TimeToLiveSpecification;
use serde_json::{Value, json};
use shardwalker::config::Config;
use shardwalker::cutover::standing::Step;
use shardwalker::cutover::{Goal, Request};
use shardwalker::sandbox::faults::{Effect, Rule};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn writers_that_do_not_stop_are_found() {
    let pair = Pair::new();
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    let told = |stopped| Request { attach_deny: false, writers_stopped: stopped, ..request(Goal::Peer) };
    let steps = async {
        app.moves(0).await;
        // Asked to stop first.
        let report = pair.cutover(told(false)).await.unwrap();
        let refused = report.refused.unwrap();
        assert_eq!(report.step, Step::Stopping);
        assert!(
            refused.remedy.contains("ShardwalkerCutovercopy") && refused.remedy.contains("--writers-stopped"),
            "{refused:?}"
        );
        // Some go on all the while.
        let report = pair.cutover(told(true)).await.unwrap();
        assert_eq!((report.step, report.turn), (Step::Stopping, 0));
        let refused = report.refused.unwrap();
        assert!(refused.what.contains("is still written to"), "{refused:?}");
        app.stop.set(true);
    };
    futures::join!(app.run(3), steps);
    app.until_equal().await;
    // One comes back when everything is closed and compared.
    let late = async {
        // Only then it waits; what comes before is copied as ever, and compared.
        eventually("the gates are closed", || worker.board.picture(Duration::MAX).paused.len() == 2).await;
        app.write("late", Some("x")).await;
    };
    let (report, ()) = futures::join!(pair.cutover(told(true)), late);
    let report = report.unwrap();
    assert_eq!((report.step, report.turn), (Step::Stopping, 0), "{report:?}");
    assert!(report.refused.is_some());
    // It is not lost: what is not moved is copied as ever.
    app.until_equal().await;
    let report = pair.cutover(told(true)).await.unwrap();
    assert_eq!((report.refused, report.turn), (None, 1));
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_others_change_meanwhile_stays_theirs() {
    let pair = Pair::new();
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    app.write("k", Some("1")).await;
    app.until_equal().await;
    // Somebody puts the whole policy anew, without our statement, once the writers are out.
    let mut theirs = existing(&pair.tables[0]);
    let more = json!({
        "Sid": "More", "Effect": "Allow", "Resource": pair.tables[0], "Action": "dynamodb:GetItem",
        "Principal": { "AWS": "arn:aws:iam::222222222222:user/app" },
    });
    theirs["Statement"].as_array_mut().unwrap().push(more.clone());
    let change = async {
        eventually("it is sealed", || pair.step().1 == "sealed").await;
        pair.sandbox.put_resource_policy(&pair.tables[0], &theirs.to_string()).unwrap();
    };
    let (report, ()) = futures::join!(pair.cutover(request(Goal::Peer)), change);
    let report = report.unwrap();
    let refused = report.refused.unwrap();
    assert_eq!(report.step, Step::Stopping);
    assert!(refused.what.contains("is not in the policy"), "{refused:?}");
    pair.done(Goal::Peer).await;
    assert_eq!(pair.statements(0).await.len(), 3);
    pair.done(Goal::Source).await;
    let before: Vec<Value> = theirs["Statement"].as_array().unwrap().clone();
    assert_eq!(pair.statements(0).await, before);
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_does_not_hold_is_named_with_what_to_do() {
    let pair = Pair::new();
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    app.write("k", Some("1")).await;
    app.until_equal().await;
    let refused = async |wanted: Request| pair.cutover(wanted).await.unwrap().refused.unwrap();
    let finish = refused(request(Goal::Finish)).await;
    assert!(finish.what.contains("not at the peer"), "{finish:?}");
    // Nothing to undo is no trouble.
    assert_eq!(pair.done(Goal::Source).await.turn, 0);
    // The target has an item of its own.
    pair.apps[1].put("orders", "foreign", "x").await;
    let differs = refused(request(Goal::Peer)).await;
    assert!(
        differs.what.contains("1 of 2 items differ") && differs.remedy.contains("--repair"),
        "{differs:?}"
    );
    pair.apps[1].delete("orders", "foreign").await;
    // The marker's key is taken.
    let key = serde_json::from_value(json!({ "id": { "S": "k" } }))
        .map(|key| shardwalker::json::to_item(&key).unwrap());
    let taken = refused(Request { marker_key: Some(key.unwrap()), ..request(Goal::Peer) }).await;
    assert!(taken.remedy.contains("--marker-key"), "{taken:?}");
    assert_eq!(pair.items(0).get("k").map(String::as_str), Some("1"));
    assert_eq!(pair.done(Goal::Source).await.turn, 0);
    // Nobody copies.
    worker.stop().await.unwrap();
    let behind = refused(Request { within: Duration::from_secs(30), ..request(Goal::Peer) }).await;
    assert!(behind.what.contains("no worker lives"), "{behind:?}");
}

#[tokio::test(start_paused = true)]
async fn a_paused_route_and_one_without_a_way_back_are_not_turned() {
    let world = World::new();
    let operator = Operator::new(&world).await;
    let worker = world.worker().await;
    let cancel = tokio_util::sync::CancellationToken::new();
    let mut tell = |_: &str| ();
    let config: Config = world.config("", "");
    let run =
        shardwalker::cutover::cutover(config, request(Goal::Peer), world.options(false), cancel, &mut tell);
    let error = Box::pin(run).await.unwrap_err();
    assert_eq!(error.to_string(), "route copy has no way back: set reversible = true");
    drop(operator);
    worker.stop().await.unwrap();
}

/// Turns time to live on or off at a side.
async fn expire(pair: &Pair, side: usize, on: bool) {
    let specification =
        TimeToLiveSpecification::builder().attribute_name("until").enabled(on).build().unwrap();
    let update = pair.apps[side].db.update_time_to_live().table_name("orders");
    update.time_to_live_specification(specification).send().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_side_may_have_items_that_expire_by_themselves() {
    let pair = Pair::new();
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    app.write("k", Some("1")).await;
    app.until_equal().await;
    for (side, name) in [(0, "a"), (1, "b")] {
        expire(&pair, side, true).await;
        let report = pair.cutover(request(Goal::Peer)).await.unwrap();
        let refused = report.refused.unwrap();
        assert_eq!((report.step, pair.step()), (Step::Live, (0, "live".to_owned())), "nothing is begun");
        assert!(
            refused.what.contains(&format!("the items of {name} ({}) expire", pair.tables[side])),
            "{refused:?}"
        );
        assert!(refused.remedy.contains("turn time to live off at both sides"), "{refused:?}");
        expire(&pair, side, false).await;
    }
    pair.done(Goal::Peer).await;
    // The way back asks the same.
    expire(&pair, 1, true).await;
    let refused = pair.cutover(request(Goal::Source)).await.unwrap().refused.unwrap();
    assert!(refused.what.contains("the items of b"), "{refused:?}");
    worker.stop().await.unwrap();
}

/// Where the setting may not be looked at, the deletes themselves are found.
#[tokio::test(start_paused = true)]
async fn items_that_expire_after_the_last_write_are_found_where_the_setting_is_not_shown() {
    let pair = Pair::new();
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    app.write("k", Some("1")).await;
    let soon = pair.sandbox.clock().now_ms() / 1000 + 5;
    for key in 0..400_u64 {
        let put = pair.apps[0].db.put_item().table_name("orders").item("id", s(&format!("t{key}")));
        put.item("value", s("x")).item("until", n(&(soon + key).to_string())).send().await.unwrap();
    }
    eventually("both sides hold the same", || pair.items(0).len() == 401 && pair.items(0) == pair.items(1))
        .await;
    expire(&pair, 0, true).await;
    let hidden = Rule::new(Effect::Deny).operation("DescribeTimeToLive");
    pair.sandbox.faults().add(hidden);
    let sweeps = async {
        while !app.stop.get() {
            pair.sandbox.sweep_ttl().unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let steps = async {
        let report = pair.cutover(request(Goal::Peer)).await.unwrap();
        app.stop.set(true);
        report
    };
    let (report, ()) = futures::join!(steps, sweeps);
    let refused = report.refused.unwrap();
    assert!(
        refused.what.contains("still written to") && refused.remedy.contains("time to live"),
        "{refused:?}"
    );
    assert_eq!((report.turn, report.step), (0, Step::Stopping));
    // Called off, nothing of it is left.
    pair.done(Goal::Source).await;
    assert_eq!(pair.statements(0).await.len(), 1);
    eventually("the deletes arrive", || pair.items(0) == pair.items(1)).await;
    worker.stop().await.unwrap();
}

/// The statement is made for somebody else than whoever runs the command.
#[tokio::test(start_paused = true)]
async fn a_marker_that_our_own_statement_denies_is_said_and_can_be_undone() {
    let pair = Pair::new();
    let worker = pair.worker().await;
    let app = Application::new(&pair);
    app.write("k", Some("1")).await;
    app.until_equal().await;
    let others = vec!["arn:aws:iam::111111111111:role/others".to_owned()];
    let report = pair.cutover(Request { principals: others, ..request(Goal::Peer) }).await.unwrap();
    let refused = report.refused.unwrap();
    assert_eq!((report.turn, report.step), (0, Step::Draining));
    assert!(refused.what.contains("the marker may not be written"), "{refused:?}");
    assert!(refused.remedy.contains("--undo") && refused.remedy.contains("--principal"), "{refused:?}");
    // Neither does saying it again help, nor is anything of it left once it is called off.
    assert!(pair.cutover(request(Goal::Peer)).await.unwrap().refused.is_some());
    assert_eq!(pair.done(Goal::Source).await.turn, 0);
    assert_eq!(pair.statements(0).await, existing(&pair.tables[0])["Statement"].as_array().unwrap().clone());
    app.write("k", Some("2")).await;
    assert_eq!(app.refused.get(), 0, "writers may write again");
    app.until_equal().await;
    assert_eq!(pair.done(Goal::Peer).await.turn, 1);
    worker.stop().await.unwrap();
}
