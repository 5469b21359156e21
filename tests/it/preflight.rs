//! What must hold before a route may run, and what is said when it does not.

use crate::sandbox_support::Client;
use crate::world::{HOME, PEERS, PRINCIPAL, REGION, World, resource_policy};
use shardwalker::sandbox::Options;
use shardwalker::sandbox::faults::Weather;
use shardwalker::service::ServiceError;
use std::time::Duration;
use tokio::time::Instant;

/// What a start says when it fails, without much patience.
async fn complaint(world: &World) -> String {
    let config = world.config("", "access_patience = \"3s\"");
    match world.build(config).await {
        Err(ServiceError::Access(findings)) => findings.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it started"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_statement_is_named_with_member_call_and_side() {
    let world = World::new();
    let stream = world.sandbox.stream_arn(&world.source).unwrap().unwrap();
    let (source, peer) = (world.source.clone(), world.peers[0].clone());
    let read = ["DescribeStream", "GetRecords", "GetShardIterator"];
    let write = ["DescribeTable", "PutItem", "DeleteItem"];
    // The resource, what is allowed on it, which of it is taken away, and the complaint's member, call and place.
    type Case<'a> = (&'a str, &'a [&'a str], usize, &'a str, &'a str, &'a str);
    let cases: [Case<'_>; 6] = [
        (
            &source,
            &["DescribeTable"],
            0,
            "source",
            "DescribeTable",
            "policy of the table, in account 111111111111",
        ),
        (
            &stream,
            &read,
            0,
            "source",
            "DescribeStream",
            "the table's current stream, in account 111111111111",
        ),
        (&stream, &read, 1, "source", "GetRecords", "the table's current stream, in account 111111111111"),
        (
            &stream,
            &read,
            2,
            "source",
            "GetShardIterator",
            "the table's current stream, in account 111111111111",
        ),
        (&peer, &write, 1, "b", "PutItem", "policy of the table, in account 222222222222"),
        (&peer, &write, 2, "b", "DeleteItem", "policy of the table, in account 222222222222"),
    ];
    for (arn, actions, without, member, call, place) in cases {
        let left: Vec<&str> =
            actions.iter().enumerate().filter(|(i, _)| *i != without).map(|(_, a)| *a).collect();
        let left = if left.is_empty() { vec!["Scan"] } else { left };
        world.sandbox.put_resource_policy(arn, &resource_policy(arn, &left)).unwrap();
        let said = complaint(&world).await;
        assert!(said.starts_with(&format!("member {member}: {call}: AccessDenied")), "{said}");
        assert!(said.contains(place), "{said}");
        let statement: serde_json::Value =
            serde_json::from_str(said.lines().find(|line| line.trim().starts_with('{')).unwrap()).unwrap();
        assert_eq!(statement["Principal"]["AWS"], PRINCIPAL);
        assert_eq!(statement["Resource"], arn);
        assert!(statement["Action"].as_array().unwrap().contains(&format!("dynamodb:{call}").into()));
        world.sandbox.put_resource_policy(arn, &resource_policy(arn, actions)).unwrap();
    }
    world.build(world.config("", "")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_missing_identity_statement_is_told_from_a_missing_resource_statement() {
    let world = World::new();
    let allow_state = r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"dynamodb:*",
        "Resource":"arn:aws:dynamodb:*:999999999999:table/*"}}"#;
    world.sandbox.user(HOME, "replicator", allow_state).unwrap();
    let said = complaint(&world).await;
    for member in ["source", "b", "c"] {
        assert!(said.contains(&format!("member {member}: DescribeTable: AccessDenied")), "{said}");
    }
    assert_eq!(said.matches("add to the identity policy").count(), 3, "{said}");
    assert!(!said.contains("add to the resource policy"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_deny_is_not_answered_with_another_allow() {
    let world = World::new();
    let peer = &world.peers[0];
    let mut policy: serde_json::Value =
        serde_json::from_str(&resource_policy(peer, &["DescribeTable", "PutItem", "DeleteItem"])).unwrap();
    let deny = serde_json::json!({ "Effect": "Deny", "Principal": { "AWS": PRINCIPAL },
        "Action": "dynamodb:PutItem", "Resource": peer });
    policy["Statement"].as_array_mut().unwrap().push(deny);
    world.sandbox.put_resource_policy(peer, &policy.to_string()).unwrap();
    let said = complaint(&world).await;
    assert!(said.contains("member b: PutItem") && said.contains("a Deny statement forbids it"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_off_or_has_no_new_images_is_refused_with_the_remedy() {
    let world = World::with(Options::default(), None);
    let said = complaint(&world).await;
    assert!(said.starts_with("member source: DescribeTable: the table's stream is off"), "{said}");
    assert!(said.contains("aws dynamodb update-table --table-name orders"), "{said}");
    for (view, refused) in [("KEYS_ONLY", true), ("OLD_IMAGE", true), ("NEW_IMAGE", false)] {
        let world = World::with(Options::default(), Some(view));
        if refused {
            let said = complaint(&world).await;
            assert!(said.contains(&format!("view type is {view}, which has no new images")), "{said}");
            assert!(said.contains("StreamViewType=NEW_AND_OLD_IMAGES"), "{said}");
        } else {
            world.build(world.config("", "")).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn key_schemas_must_agree_by_name_and_type() {
    let world = World::new();
    let (account, region) = PEERS[0];
    let admin = Client::admin(&world.sandbox, account);
    admin.db.delete_table().table_name("orders-copy").send().await.unwrap();
    let table = world.sandbox.create_table(account, region, "orders-copy", &["id", "sort"], None).unwrap();
    let actions = ["DescribeTable", "PutItem", "DeleteItem"];
    world.sandbox.put_resource_policy(&table, &resource_policy(&table, &actions)).unwrap();
    let said = complaint(&world).await;
    assert!(said.contains("its primary key is id (S), sort (S), but that of source is id (S)"), "{said}");
    // Its policy is gone with the table, so the service may not even know that.
    admin.db.delete_table().table_name("orders-copy").send().await.unwrap();
    let said = complaint(&world).await;
    assert!(said.contains("member b: DescribeTable: AccessDeniedException"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn policies_that_arrive_late_are_waited_for_within_limits() {
    let world = World::new();
    let weather = Weather { policy_delay_ms: 20_000, ..Weather::default() };
    let peer = &world.peers[0];
    world.sandbox.put_resource_policy(peer, &resource_policy(peer, &["Scan"])).unwrap();
    world.sandbox.faults().set_weather(weather);
    let actions = ["DescribeTable", "PutItem", "DeleteItem"];
    world.sandbox.put_resource_policy(peer, &resource_policy(peer, &actions)).unwrap();
    let begun = Instant::now();
    world.build(world.config("", "access_patience = \"60s\"")).await.unwrap();
    let took = begun.elapsed();
    assert!((Duration::from_secs(20)..Duration::from_secs(30)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_state_table_is_made_on_request_and_explained_otherwise() {
    let world = World::new();
    world.build(world.config("", "")).await.unwrap();
    let state = Client::admin(&world.sandbox, HOME);
    let ttl = state.db.describe_time_to_live().table_name("shardwalker-state").send().await.unwrap();
    let ttl = ttl.time_to_live_description.unwrap();
    assert_eq!(ttl.attribute_name(), Some("expires"));
    state.db.delete_table().table_name("shardwalker-state").send().await.unwrap();
    let said = world.build_without_state(world.config("", "")).await.err().unwrap().to_string();
    assert!(
        said.contains("shardwalker-state does not exist; `shardwalker run --create-state-table` makes it"),
        "{said}"
    );
    world.sandbox.create_table(HOME, REGION, "shardwalker-state", &["id"], None).unwrap();
    let said = world.build(world.config("", "")).await.err().unwrap().to_string();
    assert!(said.contains("cannot be the state table: its key schema is"), "{said}");
    assert!(said.contains("partition key pk (S) and sort key sk (S)"), "{said}");
}
