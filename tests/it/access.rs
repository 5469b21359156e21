//! The generated policies are enough for what they are made for, and every single action of them is needed: without
//! it, the check names it.

use crate::sandbox_support::Client;
use crate::world::{Worker, eventually};
use aws_credential_types::provider::SharedCredentialsProvider;
use serde_json::{Value, json};
use shardwalker::access::finding::Verdict;
use shardwalker::access::needs::Feature;
use shardwalker::access::policy::{self, Attach, Document, Terms};
use shardwalker::access::preflight::{Preflight, Report};
use shardwalker::aws::{Aws, Base};
use shardwalker::clock::Clock;
use shardwalker::config::Config;
use shardwalker::retry::Jitter;
use shardwalker::sandbox::iam::Credentials;
use shardwalker::sandbox::{Options, Sandbox};
use shardwalker::service::{self, Service};
use shardwalker::task::Tasks;
use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

const HOME: &str = "999999999999";
const PRINCIPAL: &str = "arn:aws:iam::999999999999:user/replicator";
/// One-way by both ways, and a group by both ways.
const CONFIG: &str = r#"
    access_patience = "0ms"
    [state]
    table = "state"
    region = "eu-west-1"
    [admin]
    listen = "off"
    [[member]]
    name = "source"
    table = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders"
    [[member]]
    name = "shared"
    table = "arn:aws:dynamodb:eu-west-1:222222222222:table/orders-copy"
    [[member]]
    name = "by-role"
    table = "arn:aws:dynamodb:us-east-1:333333333333:table/orders"
    assume_role = { role = "arn:aws:iam::333333333333:role/in", external_id = "orders" }
    [[member]]
    name = "carts-shared"
    table = "arn:aws:dynamodb:eu-west-1:444444444444:table/carts"
    number = 1
    [[member]]
    name = "carts-by-role"
    table = "arn:aws:dynamodb:us-east-1:555555555555:table/carts"
    number = 2
    assume_role = { role = "arn:aws:iam::555555555555:role/carts" }
    [[route]]
    name = "copy"
    from = "source"
    to = ["shared", "by-role"]
    [[group]]
    name = "carts"
    members = ["carts-shared", "carts-by-role"]
"#;

struct World {
    sandbox: Sandbox,
    config: Config,
    keys: Credentials,
}

impl World {
    /// The accounts with their tables, and nothing allowed to anybody else.
    fn new() -> Self {
        let start = Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let sandbox = Sandbox::new(Options { start, ..Options::default() }).unwrap();
        let config = Config::parse(CONFIG, "test.toml", &|_| None).unwrap_or_else(|e| panic!("{e}"));
        for (index, member) in config.members.iter().enumerate() {
            let view = config.routes.iter().any(|route| route.from == index).then_some("NEW_AND_OLD_IMAGES");
            let arn = &member.arn;
            sandbox.create_table(&arn.account, &arn.region, &arn.table, &["id"], view).unwrap();
        }
        let nothing = json!({"Version": "2012-10-17", "Statement": []}).to_string();
        let keys = sandbox.user(HOME, "replicator", &nothing).unwrap();
        Self { sandbox, config, keys }
    }

    fn documents(&self, features: &[Feature]) -> Vec<Document> {
        let features = features.iter().copied().collect();
        let terms = Terms { principal: Some(PRINCIPAL.to_owned()), features, ..Terms::default() };
        policy::documents(&self.config, &terms).unwrap()
    }

    /// Puts every document where it belongs, and nothing else.
    fn apply(&mut self, documents: &[Document]) {
        for Document { account, attach, policy, .. } in documents {
            let text = policy.to_string();
            match attach {
                Attach::Table(table) => {
                    self.sandbox.put_resource_policy(&table.to_string(), &text).unwrap();
                }
                Attach::Stream(table) => {
                    let stream = self.sandbox.stream_arn(&table.to_string()).unwrap().unwrap();
                    self.sandbox.put_resource_policy(&stream, &text).unwrap();
                }
                Attach::Trust(role) => {
                    let own = documents.iter().find(|d| d.attach == Attach::Role(role.clone())).unwrap();
                    let name = role.rsplit('/').next().unwrap();
                    self.sandbox.role(account, name, &text, &own.policy.to_string()).unwrap();
                }
                Attach::Role(role) if role == PRINCIPAL => {
                    self.keys = self.sandbox.user(HOME, "replicator", &text).unwrap();
                }
                Attach::Role(_) | Attach::Key(_) => {}
            }
        }
    }

    fn base(&self) -> Base {
        let keys = aws_credential_types::Credentials::from(self.keys.clone());
        Base {
            credentials: Some(SharedCredentialsProvider::new(keys)),
            http: Some(self.sandbox.http_client()),
            request_timeout: None,
        }
    }

    async fn check(&self, features: &[Feature]) -> Report {
        let (aws, jitter, cancel) = (Aws::new(self.base()), Jitter::seeded(1), CancellationToken::new());
        let preflight = Preflight { config: &self.config, aws: &aws, jitter: &jitter, cancel: &cancel };
        let clock = Clock::starting_at(self.sandbox.clock().now());
        Box::pin(preflight.report(&features.iter().copied().collect(), clock)).await
    }

    async fn start(&self) -> Worker {
        let clock = Clock::starting_at(self.sandbox.clock().now());
        let options = service::Options { base: self.base(), create_state_table: true, clock, seed: 1 };
        let drain = CancellationToken::new();
        let service = Box::pin(Service::build(self.config.clone(), options, drain.clone())).await;
        Worker::of(service.unwrap_or_else(|error| panic!("{error}")), drain)
    }

    fn table(&self, name: &str) -> String {
        self.config.member(name).unwrap().arn.to_string()
    }

    fn ids(&self, name: &str) -> BTreeSet<String> {
        let items = self.sandbox.items(&self.table(name)).unwrap();
        items.iter().map(|item| item["id"]["S"].as_str().unwrap().to_owned()).collect()
    }

    fn app(&self, name: &str) -> Client {
        let arn = &self.config.member(name).unwrap().arn;
        let region = if arn.region == "us-east-1" { "us-east-1" } else { "eu-west-1" };
        Client::admin_of(&self.sandbox, &arn.account, region)
    }
}

/// The document without one action on one resource of one statement.
fn without(policy: &Value, index: usize, resource: Option<&str>, action: &str) -> Value {
    let mut statements = policy["Statement"].as_array().unwrap().clone();
    let statement = statements.remove(index);
    let left = list(&statement["Action"]).into_iter().filter(|a| a != action).collect::<Vec<_>>();
    let others = list(&statement["Resource"]).into_iter().filter(|r| Some(r.as_str()) != resource);
    let others: Vec<String> = others.collect();
    if let Some(resource) = resource.filter(|_| !others.is_empty()) {
        let mut rest = statement.clone();
        rest["Resource"] = json!(others);
        statements.push(rest);
        if !left.is_empty() {
            let mut less = statement;
            (less["Resource"], less["Action"]) = (json!(resource), json!(left));
            statements.push(less);
        }
    } else if !left.is_empty() {
        let mut less = statement;
        less["Action"] = json!(left);
        statements.push(less);
    }
    json!({"Version": "2012-10-17", "Statement": statements})
}

fn list(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(all) => all.iter().map(|one| one.as_str().unwrap().to_owned()).collect(),
        _ => Vec::new(),
    }
}

/// Every (statement, resource, action) of a document; a trust policy has no resources.
fn actions(policy: &Value) -> Vec<(usize, Option<String>, String)> {
    let mut all = Vec::new();
    for (index, statement) in policy["Statement"].as_array().unwrap().iter().enumerate() {
        let resources = list(&statement["Resource"]);
        let resources: Vec<Option<String>> =
            if resources.is_empty() { vec![None] } else { resources.into_iter().map(Some).collect() };
        for resource in resources {
            for action in list(&statement["Action"]) {
                all.push((index, resource.clone(), action));
            }
        }
    }
    all
}

const ALL: [Feature; 4] = [Feature::Backfill, Feature::Verify, Feature::Repair, Feature::CreateStateTable];

/// What runs with exactly these policies. A feature that comes later is run here, too.
#[tokio::test(start_paused = true)]
async fn generated_policies_are_enough_for_every_feature_that_runs() {
    let mut world = World::new();
    world.apply(&world.documents(&[Feature::CreateStateTable]));
    let worker = world.start().await;
    let (source, shared, by_role) =
        (world.app("source"), world.app("carts-shared"), world.app("carts-by-role"));
    for id in ["a", "b", "c"] {
        source.put("orders", id, "1").await;
        shared.put("carts", id, "1").await;
    }
    by_role.put("carts", "d", "1").await;
    let ids = |name: &str| world.ids(name).into_iter().collect::<String>();
    eventually("everything is copied", || {
        ids("shared") == "abc"
            && ids("by-role") == "abc"
            && ids("carts-shared") == "abcd"
            && ids("carts-by-role") == "abcd"
    })
    .await;
    source.delete("orders", "a").await;
    shared.delete("carts", "d").await;
    by_role.delete("carts", "a").await;
    eventually("deletes are copied", || {
        ids("shared") == "bc"
            && ids("by-role") == "bc"
            && ids("carts-shared") == "bc"
            && ids("carts-by-role") == "bc"
    })
    .await;
    assert!(worker.problems().is_empty(), "{:?}", worker.problems());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_action_of_the_generated_policies_is_needed() {
    let mut world = World::new();
    let documents = world.documents(&ALL);
    world.apply(&documents);
    // Makes the state table, so that everything can be tried.
    world.start().await.stop().await.unwrap();
    let report = world.check(&ALL).await;
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    let short: Vec<_> = report.cells.iter().filter(|cell| cell.verdict != Verdict::Allowed).collect();
    assert!(short.is_empty(), "{short:#?}");

    let mut tried = 0;
    for (index, document) in documents.iter().enumerate() {
        for (statement, resource, action) in actions(&document.policy) {
            let mut less = documents.clone();
            less[index].policy = without(&document.policy, statement, resource.as_deref(), &action);
            world.apply(&less);
            let report = world.check(&ALL).await;
            let what = format!("{:?} without {action} on {resource:?}", document.attach);
            let cell = report.cells.iter().find(|c| c.action == action && c.verdict != Verdict::Allowed);
            let cell = cell.unwrap_or_else(|| panic!("{what}: {:#?}", report.cells));
            let expected = match document.attach {
                Attach::Table(_) | Attach::Stream(_) => Verdict::DeniedByResource,
                // Of a role that is not assumed, STS does not say why.
                _ if action == "sts:AssumeRole" => Verdict::Denied,
                _ => Verdict::DeniedByIdentity,
            };
            assert_eq!(cell.verdict, expected, "{what}");
            let finding = report.findings.iter().find(|finding| {
                finding.member == cell.member
                    && finding.add.iter().any(|add| list(&add.statement["Action"]).contains(&action))
            });
            assert!(finding.is_some(), "{what}: {:#?}", report.findings);
            tried += 1;
        }
    }
    assert!(tried > 60, "{tried}");
    world.apply(&documents);
    assert!(world.check(&ALL).await.findings.is_empty(), "all of it is allowed again");
}

/// Following what the check says to add, again and again, ends with everything allowed.
#[tokio::test(start_paused = true)]
async fn what_the_check_says_to_add_is_what_is_missing() {
    let mut world = World::new();
    let documents = world.documents(&[]);
    // Everything but what lets the replicator in at the source.
    let left: Vec<Document> = documents
        .iter()
        .filter(|d| !matches!(&d.attach, Attach::Table(t) | Attach::Stream(t) if t.account == "111111111111"))
        .cloned()
        .collect();
    world.apply(&left);
    let mut given: Vec<(String, Vec<Value>)> = Vec::new();
    for round in 0.. {
        assert!(round < 5, "{given:#?}");
        let report = world.check(&[]).await;
        if report.findings.is_empty() {
            break;
        }
        for finding in report.findings {
            for add in finding.add {
                let resource = add.statement["Resource"].as_str().unwrap().to_owned();
                assert!(add.place.starts_with("the resource policy"), "{}", add.place);
                match given.iter_mut().find(|(on, _)| *on == resource) {
                    Some((_, statements)) => statements.push(add.statement),
                    None => given.push((resource, vec![add.statement])),
                }
            }
        }
        for (resource, statements) in &given {
            let document = json!({"Version": "2012-10-17", "Statement": statements});
            world.sandbox.put_resource_policy(resource, &document.to_string()).unwrap();
        }
    }
    assert_eq!(given.len(), 2, "the table and its stream");
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
    let preflight = Preflight { config: &world.config, aws: &aws, jitter: &jitter, cancel: &cancel };
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
