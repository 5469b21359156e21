//! Faults: each effect at the client, which requests a rule hits, and that a seed repeats a run.

use crate::sandbox_support::*;
use aws_sdk_dynamodb::error::SdkError;
use serde_json::json;
use shardwalker::sandbox::Sandbox;
use shardwalker::sandbox::faults::{Effect, Rule};
use std::time::Duration;
use tokio::time::Instant;

fn setup() -> (Sandbox, Client, String) {
    let sandbox = sandbox();
    let table = orders(&sandbox);
    let client = Client::admin(&sandbox, A);
    (sandbox, client, table)
}

/// The error of one PutItem under a fault, and whether the item is there.
async fn struck(effect: Effect) -> ((String, String), bool) {
    let (sandbox, client, table) = setup();
    sandbox.faults().add(Rule::new(effect).operation("PutItem").times(1));
    let put = || client.db.put_item().table_name(&table).item("id", s("1")).send();
    let error = failure(put().await.unwrap_err());
    let there = !sandbox.items(&table).unwrap().is_empty();
    put().await.expect("the fault is over");
    assert_eq!(sandbox.faults().rules()[0].1, 1);
    (error, there)
}

#[tokio::test(start_paused = true)]
async fn refusals_have_no_effect() {
    for (effect, code) in [
        (Effect::ProvisionedThroughputExceeded, "ProvisionedThroughputExceededException"),
        (Effect::Throttle, "ThrottlingException"),
        (Effect::RequestLimitExceeded, "RequestLimitExceeded"),
        (Effect::InternalError, "InternalServerError"),
        (Effect::Unavailable, "ServiceUnavailable"),
        (Effect::Deny, "AccessDeniedException"),
        (Effect::TransactionConflict, "TransactionConflictException"),
    ] {
        let ((found, _), there) = struck(effect).await;
        assert_eq!((found.as_str(), there), (code, false), "{effect:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_throttled_request_says_why() {
    use aws_sdk_dynamodb::operation::put_item::PutItemError::ProvisionedThroughputExceededException;
    let (sandbox, client, table) = setup();
    sandbox.faults().add(Rule::new(Effect::ProvisionedThroughputExceeded));
    let put = client.db.put_item().table_name(&table).item("id", s("1"));
    let error = put.send().await.unwrap_err().into_service_error();
    let ProvisionedThroughputExceededException(error) = error else { panic!("another error: {error:?}") };
    let reason = error.throttling_reasons()[0].reason().unwrap();
    assert_eq!(reason, "TableWriteProvisionedThroughputExceeded");
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_did_nothing_and_a_lost_answer_did() {
    for (effect, there) in
        [(Effect::DropRequest, false), (Effect::DropAnswer, true), (Effect::InternalErrorAfter, true)]
    {
        assert_eq!(struck(effect).await.1, there, "{effect:?}");
    }
    let (sandbox, client, table) = setup();
    let put = || client.db.put_item().table_name(&table).item("id", s("1")).send();
    sandbox.faults().add(Rule::new(Effect::DropRequest));
    let error = put().await.unwrap_err();
    assert!(matches!(&error, SdkError::DispatchFailure(f) if f.is_io()), "{error:?}");
    sandbox.faults().clear();
    sandbox.faults().add(Rule::new(Effect::DropAnswer));
    let error = put().await.unwrap_err();
    assert!(matches!(&error, SdkError::DispatchFailure(f) if f.is_timeout()), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn delays_take_virtual_time_before_or_after_the_effect() {
    for effect in [Effect::DelayMs(30_000), Effect::DelayAnswerMs(30_000)] {
        let (sandbox, client, table) = setup();
        sandbox.faults().add(Rule::new(effect).operation("PutItem"));
        let start = Instant::now();
        let put = client.db.put_item().table_name(&table).item("id", s("1")).send();
        let look = async {
            tokio::time::sleep(Duration::from_secs(15)).await;
            sandbox.items(&table).unwrap().len()
        };
        let (put, half_way) = tokio::join!(put, look);
        put.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(30));
        assert_eq!(half_way, usize::from(effect == Effect::DelayAnswerMs(30_000)), "{effect:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_hits_what_it_names() {
    let (sandbox, client, table) = setup();
    let other = sandbox.create_table(A, REGION, "other", &["id"], None).unwrap();
    let in_b = sandbox.create_table(B, REGION, "orders", &["id"], None).unwrap();
    let bob = Client::new(&sandbox, &sandbox.admin(A, "bob").unwrap());
    let of_b = Client::admin(&sandbox, B);
    let fails = async |client: &Client, table: &str, id: &str| {
        client.db.put_item().table_name(table).item("id", s(id)).send().await.is_err()
    };
    let deny = || Rule::new(Effect::Deny);
    for (rule, expected) in [
        (deny().operation("PutItem"), [true, true, true, true, true]),
        (deny().operation("GetItem"), [false, false, false, false, false]),
        (deny().table("orders"), [true, true, false, true, true]),
        (deny().account(B), [false, false, false, false, true]),
        (deny().table("orders").account(A), [true, true, false, true, false]),
        (deny().key(json!({"S": "1"})), [true, false, true, true, true]),
        (deny().caller("arn:aws:iam::111111111111:user/bob"), [false, false, false, true, false]),
        (deny().caller(B), [false, false, false, false, true]),
    ] {
        sandbox.faults().clear();
        sandbox.faults().add(rule.clone());
        let found = [
            fails(&client, &table, "1").await,
            fails(&client, &table, "2").await,
            fails(&client, &other, "1").await,
            fails(&bob, &table, "1").await,
            fails(&of_b, &in_b, "1").await,
        ];
        assert_eq!(found, expected, "{rule:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_may_let_some_pass_and_then_end() {
    let (sandbox, client, table) = setup();
    sandbox.faults().add(Rule::new(Effect::Deny).after(2).times(3));
    let mut found = Vec::new();
    for _ in 0..7 {
        found.push(client.db.get_item().table_name(&table).key("id", s("1")).send().await.is_err());
    }
    assert_eq!(found, [false, false, true, true, true, false, false]);
}

#[tokio::test(start_paused = true)]
async fn a_session_may_end_early() {
    let (sandbox, client, table) = setup();
    let answer = client.sts.get_session_token().send().await.unwrap();
    let keys = answer.credentials().unwrap();
    let keys = shardwalker::sandbox::iam::Credentials {
        access_key_id: keys.access_key_id().into(),
        secret_access_key: keys.secret_access_key().into(),
        session_token: Some(keys.session_token().into()),
        expires_ms: None,
    };
    let session = Client::new(&sandbox, &keys);
    session.put(&table, "1", "a").await;
    sandbox.faults().add(Rule::new(Effect::ExpireCredentials).times(1));
    for _ in 0..2 {
        let error = session.db.get_item().table_name(&table).key("id", s("1")).send().await.unwrap_err();
        assert_eq!(failure(error).0, "ExpiredTokenException", "it stays expired");
    }
    client.put(&table, "1", "b").await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_may_be_trimmed_and_an_iterator_expire() {
    let (sandbox, client, table) = setup();
    client.put(&table, "1", "a").await;
    let stream = sandbox.stream_arn(&table).unwrap().unwrap();
    let shard = sandbox.shards(&table).unwrap().into_iter().find(|shard| shard.records == 1).unwrap();
    let iterator = client.oldest(&stream, &shard.id).await;
    for (effect, code) in [
        (Effect::ExpireIterator, "ExpiredIteratorException"),
        (Effect::TrimShard, "TrimmedDataAccessException"),
    ] {
        sandbox.faults().clear();
        sandbox.faults().add(Rule::new(effect).operation("GetRecords").times(1));
        let error = client.streams.get_records().shard_iterator(&iterator).send().await.unwrap_err();
        assert_eq!(failure(error).0, code);
    }
    assert!(sandbox.shards(&table).unwrap().iter().all(|shard| shard.records == 0));
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted() {
    let (sandbox, client, table) = setup();
    client.put(&table, "1", "a").await;
    client.put(&table, "2", "a").await;
    client.db.put_item().table_name(&table).send().await.unwrap_err();
    let counts = sandbox.counters().snapshot();
    assert_eq!((counts["PutItem"][A].requests, counts["PutItem"][A].errors), (3, 1));
    sandbox.counters().reset();
    assert!(sandbox.counters().snapshot().is_empty());
}

/// Everything that can be seen of a run under faults.
async fn run(seed: u64) -> String {
    let sandbox = with(|options| options.seed = seed);
    let table = orders(&sandbox);
    let client = Client::admin(&sandbox, A);
    sandbox.faults().add(Rule::new(Effect::DropAnswer).probability(0.2));
    sandbox.faults().add(Rule::new(Effect::Throttle).probability(0.2));
    let mut seen = String::new();
    for key in 0..60 {
        let put = client.db.put_item().table_name(&table).item("id", s(&key.to_string()));
        seen += &format!("{:?}\n", put.send().await.map(drop).map_err(failure));
        if key == 30 {
            sandbox.split(&table, None).unwrap();
        }
    }
    sandbox.faults().clear();
    seen + &format!("{:?} {:?}", sandbox.shards(&table), client.all_records(&sandbox, &table).await)
}

#[tokio::test(start_paused = true)]
async fn a_seed_repeats_a_run() {
    let (first, again, other) = (run(7).await, run(7).await, run(8).await);
    // The images inside a record are maps, whose order says nothing.
    let without_images = |seen: &str| seen.split("new_image").next().unwrap_or_default().to_owned();
    assert_eq!(without_images(&first), without_images(&again));
    assert_ne!(without_images(&first), without_images(&other));
    assert_eq!(first.len(), again.len());
}
