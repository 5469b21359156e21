//! The generated policies are enough for what they are made for, and every single action of them is needed: without
//! it, the check names it.

mod bucket;
mod check;
mod conditions;
mod features;
mod moving;

use crate::process::until;
use crate::sandbox_support::Client;
use crate::world::{Worker, eventually};
use aws_credential_types::provider::SharedCredentialsProvider;
use serde_json::{Value, json};
use shardwalker::access::finding::{Cell, Verdict};
use shardwalker::access::needs::Feature;
use shardwalker::access::policy::{self, Attach, Document, Terms};
use shardwalker::access::preflight::{Preflight, Report};
use shardwalker::aws::{Aws, Base};
use shardwalker::backfill::{Backfill, Ended, Request};
use shardwalker::clock::Clock;
use shardwalker::config::{Config, Member};
use shardwalker::retry::Jitter;
use shardwalker::sandbox::iam::Credentials;
use shardwalker::sandbox::{Options, Sandbox};
use shardwalker::service::{self, Service};
use shardwalker::task::Tasks;
use shardwalker::verify::{self, Prefer};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout;
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
        Self::at(Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000)))
    }

    /// From a time on; by default, now.
    fn at(start: Option<SystemTime>) -> Self {
        Self::of(CONFIG, start)
    }

    /// Of another config.
    fn of(config: &str, start: Option<SystemTime>) -> Self {
        let sandbox = Sandbox::new(Options { start, ..Options::default() }).unwrap();
        let config = Config::parse(config, "test.toml", &|_| None).unwrap_or_else(|e| panic!("{e}"));
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
        self.written(Terms { features, ..Terms::default() })
    }

    fn written(&self, terms: Terms) -> Vec<Document> {
        policy::documents(&self.config, &Terms { principal: Some(PRINCIPAL.to_owned()), ..terms }).unwrap()
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
        self.check_by(self.base(), features).await
    }

    async fn check_by(&self, base: Base, features: &[Feature]) -> Report {
        let (aws, jitter, cancel) = (Aws::new(base), Jitter::seeded(1), CancellationToken::new());
        let preflight = Preflight::new(&self.config, &aws, &jitter, &cancel);
        let clock = Clock::starting_at(self.sandbox.clock().now());
        Box::pin(preflight.report(&features.iter().copied().collect(), clock)).await
    }

    fn options(&self) -> service::Options {
        let clock = Clock::starting_at(self.sandbox.clock().now());
        service::Options { base: self.base(), create_state_table: true, clock, seed: 1 }
    }

    async fn backfill(&self, route: &str) {
        let request = Request { route: route.to_owned(), ..Request::default() };
        self.backfilled_with(request, self.options()).await;
    }

    async fn backfilled_with(&self, request: Request, options: service::Options) {
        let route = request.route.clone();
        let drain = CancellationToken::new();
        let backfill = Backfill::build(self.config.clone(), request, options, None, drain);
        let backfill = Box::pin(backfill).await.unwrap_or_else(|error| panic!("{route}: {error}"));
        let ended = Box::pin(backfill.run(watch::channel(None).0)).await;
        assert!(matches!(ended, Ok(Ended::Done)), "{route}: {ended:?}");
    }

    async fn start(&self) -> Worker {
        let drain = CancellationToken::new();
        let service = Box::pin(Service::build(self.config.clone(), self.options(), drain.clone())).await;
        Worker::of(service.unwrap_or_else(|error| panic!("{error}")), drain)
    }

    /// Which members lack something when an action on a resource is missing in a document, and where it is to be added.
    fn lacking(&self, attach: &Attach, resource: Option<&str>) -> (Vec<String>, String) {
        let with = |of: &dyn Fn(&Member) -> bool| {
            let members = self.config.members.iter().filter(|member| of(member));
            members.map(|member| member.name.clone()).collect::<Vec<_>>()
        };
        let assumes =
            |m: &Member, role: &str| m.access.assume_role.as_ref().is_some_and(|own| own.role_arn == role);
        match attach {
            Attach::Table(table) => {
                (with(&|m| m.arn == *table), "the resource policy of the table, in".into())
            }
            Attach::Stream(table) => {
                (with(&|m| m.arn == *table), "the resource policy of the table's current stream, in".into())
            }
            Attach::Trust(role) => (with(&|m| assumes(m, role)), format!("the trust policy of {role}")),
            Attach::Role(role) => {
                let resource = resource.unwrap();
                let table = resource.split("/stream/").next().unwrap();
                let mut members = with(&|m| m.arn.to_string() == table || assumes(m, resource));
                if table.ends_with(":table/state") {
                    members.push("state table".into());
                }
                let place = match role == PRINCIPAL {
                    true if resource.contains(":role/") => format!("the identity policy of {PRINCIPAL}"),
                    true => "the identity policy of the role that makes the call".into(),
                    false => format!("the identity policy of {role}"),
                };
                (members, place)
            }
            Attach::Key(_) => (Vec::new(), String::new()),
        }
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

const ALL: [Feature; 6] = [
    Feature::Cutover,
    Feature::Backfill,
    Feature::Verify,
    Feature::Repair,
    Feature::Strip,
    Feature::CreateStateTable,
];

/// What runs with exactly these policies. A feature that comes later is run here, too.
#[tokio::test(start_paused = true)]
async fn generated_policies_are_enough_for_every_feature_that_runs() {
    let mut world = World::new();
    let (source, shared, by_role) =
        (world.app("source"), world.app("carts-shared"), world.app("carts-by-role"));
    source.put("orders", "a", "1").await;
    shared.put("carts", "a", "1").await;
    world.apply(&world.documents(&[Feature::Backfill, Feature::CreateStateTable]));
    for route in &world.config.routes {
        world.backfill(&route.name).await;
    }
    let ids = |name: &str| world.ids(name).into_iter().collect::<String>();
    for name in ["shared", "by-role", "carts-shared", "carts-by-role"] {
        assert_eq!(ids(name), "a", "{name} after the backfill");
    }

    world.apply(&world.documents(&[]));
    let ids = |name: &str| world.ids(name).into_iter().collect::<String>();
    let worker = world.start().await;
    for id in ["b", "c"] {
        source.put("orders", id, "1").await;
        shared.put("carts", id, "1").await;
    }
    by_role.put("carts", "d", "1").await;
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

    // What no stream tells: an item that is gone at a peer, and at a member.
    world.app("by-role").delete("orders", "b").await;
    world.app("carts-shared").delete("carts", "b").await;
    world.apply(&world.documents(&[Feature::Verify, Feature::Repair]));
    for (of, member) in [("copy", None), ("carts", Some("carts-by-role"))] {
        let prefer = member.map(|name: &str| Prefer::Member(name.to_owned()));
        let repair = verify::Request { repair: true, prefer, ..crate::verify::request(of) };
        let (tally, _) = crate::verify::verify(world.config.clone(), repair, world.options()).await.unwrap();
        assert_eq!((tally.remaining(), tally.repaired), (0, 1), "{of}");
    }
    let both = BTreeSet::from(["b".to_owned(), "c".to_owned()]);
    assert!(["by-role", "carts-shared", "carts-by-role"].iter().all(|name| world.ids(name) == both));
}

/// The operator's commands, as the real process.
#[tokio::test]
async fn generated_policies_are_enough_for_the_operators_commands() {
    let mut world = World::at(None);
    world.apply(&world.documents(&[Feature::CreateStateTable]));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("endpoint = \"http://{}\"\n", listener.local_addr().unwrap());
    let (sandbox, mut serving) = (world.sandbox.clone(), Tasks::new());
    serving.spawn(async move { sandbox.serve(listener, CancellationToken::new()).await });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shardwalker.toml");
    std::fs::write(&file, endpoint + CONFIG).unwrap();
    let process = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shardwalker"));
        command.args(args).env("SHARDWALKER_CONFIG", &file).env_remove("AWS_PROFILE").kill_on_drop(true);
        command.env("AWS_ACCESS_KEY_ID", &world.keys.access_key_id);
        command.env("AWS_SECRET_ACCESS_KEY", &world.keys.secret_access_key);
        command
    };
    let command = async |args: &[&str]| {
        let output = process(args).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!said.contains("AccessDenied") && !said.contains("not authorized"), "{args:?}: {said}");
        (output.status.code(), said)
    };
    let mut service = process(&["run", "--create-state-table"]).spawn().unwrap();
    let source = world.app("source");
    // It may begin with what is written after its start. Too large for the peers, with the stamp.
    let big = "x".repeat(400 * 1024 - 20);
    until("a change is a dead letter at both peers", async || {
        source.put("orders", "big", &big).await;
        let (code, listed) = command(&["dead-letters", "list"]).await;
        code != Some(2) && ["shared", "by-role"].iter().all(|peer| listed.contains(peer))
    })
    .await;
    let (code, said) = command(&["pause", "copy", "--peer", "shared", "--why", "a look"]).await;
    assert_eq!(code, Some(0), "{said}");
    let (_, said) = command(&["status"]).await;
    assert!(said.contains("a look"), "{said}");
    let (code, said) = command(&["resume", "copy", "--peer", "shared"]).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = command(&["dead-letters", "retry"]).await;
    assert!(code == Some(1) && said.contains("shared"), "refused as ever: {said}");
    let (code, said) = command(&["dead-letters", "discard", "--all", "--yes"]).await;
    assert_eq!(code, Some(0), "{said}");
    let mut tail = process(&["tail", "source", "--from", "trim-horizon", "--format", "plain"]);
    let mut tail = tail.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let line = timeout(Duration::from_secs(60), lines.next_line()).await.expect("a change is shown").unwrap();
    assert!(line.unwrap().contains("big"));
    tail.kill().await.unwrap();
    let (code, said) = command(&["conflicts", "list"]).await;
    assert_eq!(code, Some(0), "{said}");
    let (_, said) = command(&["verify", "copy", "--schema"]).await;
    assert!(said.contains("stream"), "{said}");
    service.kill().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_action_of_the_generated_policies_is_needed() {
    names_what_is_taken_away(World::new()).await;
}

/// The check names every action of the documents that is taken away.
async fn names_what_is_taken_away(mut world: World) {
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
            let (members, place) = world.lacking(&document.attach, resource.as_deref());
            let lacks = |cell: &&Cell| {
                cell.action == action && cell.verdict != Verdict::Allowed && members.contains(&cell.member)
            };
            let cell = report.cells.iter().find(lacks);
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
                    && finding.add.iter().any(|add| {
                        list(&add.statement["Action"]).contains(&action) && add.place.starts_with(&place)
                    })
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
    // Everything but the replicator's own policy, and what lets it in at the source and at a peer.
    let accounts = ["111111111111", "222222222222"];
    let left = |d: &&Document| match &d.attach {
        Attach::Table(table) | Attach::Stream(table) => !accounts.contains(&table.account.as_str()),
        Attach::Role(role) => role != PRINCIPAL,
        Attach::Trust(_) | Attach::Key(_) => true,
    };
    world.apply(&documents.iter().filter(left).cloned().collect::<Vec<_>>());
    // Statements by the resource in whose policy they stand; without one, the replicator's own.
    let mut given: BTreeMap<Option<String>, Vec<Value>> = BTreeMap::new();
    for round in 0.. {
        assert!(round < 10, "{given:#?}");
        let report = world.check(&[]).await;
        if report.findings.is_empty() {
            break;
        }
        for add in report.findings.into_iter().flat_map(|finding| finding.add) {
            let resource = add.statement["Resource"].as_str().map(str::to_owned);
            let on = match () {
                () if add.place.starts_with("the resource policy") => resource,
                () if add.place.starts_with("the identity policy") => None,
                () => continue,
            };
            let statements = given.entry(on).or_default();
            if !statements.contains(&add.statement) {
                statements.push(add.statement);
            }
        }
        for (resource, statements) in &given {
            let document = json!({"Version": "2012-10-17", "Statement": statements}).to_string();
            match resource {
                Some(resource) => world.sandbox.put_resource_policy(resource, &document).unwrap(),
                None => world.keys = world.sandbox.user(HOME, "replicator", &document).unwrap(),
            }
        }
    }
    assert_eq!(given.len(), 4, "the source's table and stream, the peer's table, and its own: {given:#?}");
}
