//! What `check` finds beside missing permissions of members: the state table, keys, this host's clock.

use super::{CONFIG, HOME, PRINCIPAL, World, actions, without};
use crate::sandbox_support::{Client, failure};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};
use serde_json::json;
use shardwalker::access::finding::Verdict;
use shardwalker::access::needs::Feature;
use shardwalker::access::policy::Attach;
use shardwalker::access::preflight::{Preflight, Report};
use shardwalker::aws::{Aws, Base};
use shardwalker::clock::Clock;
use shardwalker::config::Config;
use shardwalker::retry::Jitter;
use shardwalker::task::Tasks;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Before the first start, too, all but the making of the table is known.
#[tokio::test(start_paused = true)]
async fn what_the_state_table_takes_is_known_before_it_exists() {
    let mut world = World::new();
    let mut documents = world.documents(&[Feature::CreateStateTable]);
    world.apply(&documents);
    let unknown = |report: &Report| {
        let cells = report.cells.iter().filter(|cell| cell.member == "state table");
        cells
            .filter(|c| matches!(c.verdict, Verdict::Unknown(_)))
            .map(|c| c.action.clone())
            .collect::<Vec<_>>()
    };
    let report = world.check(&[Feature::CreateStateTable]).await;
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert_eq!(unknown(&report), ["dynamodb:CreateTable", "dynamodb:UpdateTimeToLive"]);
    let tables = Client::admin_of(&world.sandbox, HOME, "eu-west-1").db.list_tables().send().await.unwrap();
    assert!(tables.table_names().is_empty());
    // Without one of them, it is said.
    let own = documents.iter_mut().find(|d| d.attach == Attach::Role(PRINCIPAL.to_owned())).unwrap();
    let state = "arn:aws:dynamodb:eu-west-1:999999999999:table/state";
    let (index, ..) = actions(&own.policy)
        .into_iter()
        .find(|(_, resource, action)| resource.as_deref() == Some(state) && action == "dynamodb:Query")
        .unwrap();
    own.policy = without(&own.policy, index, Some(state), "dynamodb:Query");
    world.apply(&documents);
    let report = world.check(&[Feature::CreateStateTable]).await;
    let denied: Vec<_> = report.findings.iter().map(|f| (f.member.as_str(), f.call.as_deref())).collect();
    assert_eq!(denied, [("state table", Some("Query"))]);
}

/// As config and sandbox take it: by its ARN, in the replicator's own account.
#[tokio::test(start_paused = true)]
async fn a_state_table_is_made_by_its_arn() {
    let mut world = World::new();
    let arn = "arn:aws:dynamodb:eu-west-1:999999999999:table/state";
    world.config.state.table = arn.to_owned();
    world.apply(&world.documents(&[Feature::CreateStateTable]));
    world.start().await.stop().await.unwrap();
    assert!(world.sandbox.items(arn).is_ok_and(|rows| !rows.is_empty()));
    let report = world.check(&[Feature::CreateStateTable]).await;
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    // Nobody makes a table in another account.
    let stranger = Client::admin_of(&world.sandbox, "111111111111", "eu-west-1");
    let made = stranger.db.create_table().table_name(arn.replace("table/state", "table/other"));
    let id = AttributeDefinition::builder().attribute_name("id").attribute_type(ScalarAttributeType::S);
    let key = KeySchemaElement::builder().attribute_name("id").key_type(KeyType::Hash);
    let made = made.attribute_definitions(id.build().unwrap()).key_schema(key.build().unwrap());
    let (code, message) = failure(made.billing_mode(BillingMode::PayPerRequest).send().await.unwrap_err());
    assert_eq!(code, "AccessDeniedException", "{message}");
}

/// Of a state table with other keys the check says that, and not what each call says to them.
#[tokio::test(start_paused = true)]
async fn a_state_table_of_another_shape_is_one_finding() {
    let mut world = World::new();
    world.sandbox.create_table(HOME, "eu-west-1", "state", &["id"], None).unwrap();
    world.apply(&world.documents(&[]));
    let report = world.check(&[]).await;
    let [finding] = report.findings.as_slice() else { panic!("{:#?}", report.findings) };
    assert!(finding.what.contains("cannot be the state table: its key schema is"), "{finding}");
}

/// Something else that is wrong with a member does not hide that its keys differ.
#[tokio::test(start_paused = true)]
async fn keys_are_compared_whatever_else_is_wrong() {
    let mut world = World::new();
    let admin = Client::admin_of(&world.sandbox, "222222222222", "eu-west-1");
    admin.db.delete_table().table_name("orders-copy").send().await.unwrap();
    world.sandbox.create_table("222222222222", "eu-west-1", "orders-copy", &["id", "sort"], None).unwrap();
    let mut documents = world.documents(&[]);
    let shared =
        documents.iter_mut().find(|d| matches!(&d.attach, Attach::Table(t) if t.table == "orders-copy"));
    let shared = shared.unwrap();
    shared.policy = without(&shared.policy, 0, None, "dynamodb:DeleteItem");
    world.apply(&documents);
    let report = world.check(&[]).await;
    let of = report.findings.iter().filter(|finding| finding.member == "shared");
    let said: String = of.map(|finding| finding.to_string() + "\n").collect();
    assert!(said.contains("DeleteItem") && said.contains("its primary key is id (S), sort (S)"), "{said}");
}

/// By its bare name, the table would be made in the caller's account.
#[tokio::test(start_paused = true)]
async fn a_state_table_of_another_account_is_not_made_at_home() {
    let mut world = World::new();
    let arn = "arn:aws:dynamodb:eu-west-1:111111111111:table/shared-state";
    world.sandbox.create_table("111111111111", "eu-west-1", "shared-state", &["pk", "sk"], None).unwrap();
    let all = |resource: &str, principal: Option<&str>| {
        let mut statement = json!({"Effect": "Allow", "Action": "dynamodb:*", "Resource": resource});
        if let Some(principal) = principal {
            statement["Principal"] = json!({ "AWS": principal });
        }
        json!({"Version": "2012-10-17", "Statement": [statement]}).to_string()
    };
    world.sandbox.put_resource_policy(arn, &all(arn, Some(PRINCIPAL))).unwrap();
    world.keys = world.sandbox.user(HOME, "replicator", &all("*", None)).unwrap();
    world.config.state.table = arn.to_owned();
    let report = world.check(&[Feature::CreateStateTable]).await;
    let home = Client::admin_of(&world.sandbox, HOME, "eu-west-1");
    let made = home.db.list_tables().send().await.unwrap();
    assert!(made.table_names().is_empty(), "{:?}", made.table_names());
    let create = report.cells.iter().find(|cell| cell.action == "dynamodb:CreateTable").unwrap();
    assert!(
        matches!(&create.verdict, Verdict::Unknown(why) if why.contains("another account")),
        "{create:?}"
    );
}

/// Over TCP, where answers are dated.
#[tokio::test]
async fn a_clock_that_is_wrong_is_said() {
    let mut world = World::new();
    world.apply(&world.documents(&[]));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("endpoint = \"http://{}\"\n", listener.local_addr().unwrap());
    world.config = Config::parse(&(endpoint + CONFIG), "test.toml", &|_| None).unwrap();
    let (sandbox, mut serving) = (world.sandbox.clone(), Tasks::new());
    serving.spawn(async move { sandbox.serve(listener, CancellationToken::new()).await });
    let base = Base { http: None, ..world.base() };
    let (aws, jitter, cancel) = (Aws::new(base), Jitter::seeded(1), CancellationToken::new());
    let preflight = Preflight::new(&world.config, &aws, &jitter, &cancel);
    let now = Clock::system().now();
    let hour = Duration::from_hours(1);
    for (clock, says) in
        [(now, None), (now + hour, Some("s ahead of AWS's")), (now - hour, Some("s behind AWS's"))]
    {
        let report = Box::pin(preflight.report(&BTreeSet::new(), Clock::starting_at(clock))).await;
        let what: Vec<&str> = report.findings.iter().map(|finding| finding.what.as_str()).collect();
        match says {
            None => assert!(what.is_empty(), "{what:?}"),
            Some(says) => assert!(what.len() == 1 && what[0].contains(says), "{what:?}"),
        }
    }
}
