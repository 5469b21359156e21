//! Workers that start while members are down or closed. On the sandbox, in virtual time.

use crate::groups::Group;
use crate::sandbox_support::Client;
use crate::world::{PEERS, SOURCE, World, eventually, resource_policy};
use shardwalker::sandbox::faults::{Effect, Rule};
use shardwalker::service::ServiceError;

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_no_peer_that_is_down_or_closed() {
    let world = World::new();
    let worker = world.worker().await;
    world.load(20, 60, 1).await;
    world.until_equal().await;
    worker.stop().await.unwrap();
    for (round, effect) in [(2, Effect::Unavailable), (3, Effect::Deny), (4, Effect::DropRequest)] {
        world.sandbox.faults().add(Rule::new(effect).account(PEERS[0].0));
        world.load(20, 60, round).await;
        let worker = world.worker().await;
        let source = world.items(&world.source);
        eventually("the other peer is served", || world.items(&world.peers[1]) == source).await;
        assert_ne!(world.items(&world.peers[0]), source);
        world.sandbox.faults().clear();
        world.until_equal().await;
        worker.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_a_source_that_is_down_and_goes_on_with_it() {
    let world = World::new();
    let worker = world.worker().await;
    world.load(20, 60, 1).await;
    world.until_equal().await;
    worker.stop().await.unwrap();
    world.load(20, 60, 2).await;
    world.sandbox.faults().add(Rule::new(Effect::Unavailable).account(SOURCE));
    let worker = world.worker().await;
    eventually("it says what it waits for", || !worker.problems().is_empty()).await;
    world.sandbox.faults().clear();
    world.until_equal().await;
    eventually("nothing is wrong any more", || worker.problems().is_empty()).await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_start_of_a_group_waits_for_no_member_that_is_down() {
    let group = Group::new();
    let worker = group.start("").await;
    group.apps[0].put("orders", "k", "first").await;
    group.until("k", Some("first")).await;
    worker.stop().await.unwrap();
    group.sandbox.faults().add(Rule::new(Effect::Unavailable).account(crate::groups::ACCOUNTS[2].0));
    let worker = group.start("").await;
    group.apps[0].put("orders", "k", "second").await;
    eventually("the others agree", || group.value(1, "k").as_deref() == Some("second")).await;
    group.apps[1].put("orders", "k", "third").await;
    eventually("both ways", || group.value(0, "k").as_deref() == Some("third")).await;
    assert_eq!(group.value(2, "k").as_deref(), Some("first"));
    group.sandbox.faults().clear();
    group.until("k", Some("third")).await;
    group.until_quiet().await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_new_route_lacks_and_what_cannot_pass_ends_the_start() {
    let world = World::new();
    world.sandbox.faults().add(Rule::new(Effect::Deny).account(PEERS[0].0));
    let refused = |error: ServiceError, what: &str| {
        let ServiceError::Access(findings) = &error else { panic!("{error}") };
        assert!(findings.0.iter().all(|finding| finding.member == "b"), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    };
    refused(world.build(world.config("", "")).await.err().unwrap(), "AccessDenied");
    world.sandbox.faults().clear();
    world.worker().await.stop().await.unwrap();
    // The same access, and a new route.
    world.sandbox.faults().add(Rule::new(Effect::Deny).account(PEERS[0].0));
    let text = world.config_text("", "").replace("name = \"copy\"", "name = \"new\"");
    let config = shardwalker::config::Config::parse(&text, "new.toml", &|_| None).unwrap();
    refused(world.build(config).await.err().unwrap(), "AccessDenied");
    world.sandbox.faults().clear();
    // A table with other keys does not become right by waiting.
    let (account, region) = PEERS[0];
    let admin = Client::admin(&world.sandbox, account);
    admin.db.delete_table().table_name("orders-copy").send().await.unwrap();
    let other = world.sandbox.create_table(account, region, "orders-copy", &["other"], None).unwrap();
    let policy = resource_policy(&other, &["DescribeTable", "PutItem", "DeleteItem"]);
    world.sandbox.put_resource_policy(&other, &policy).unwrap();
    refused(world.build(world.config("", "")).await.err().unwrap(), "primary key");
}
