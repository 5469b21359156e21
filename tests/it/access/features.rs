//! Each feature runs with exactly what is written for it; and of what is written, all is used by some feature. The calls
//! by which a start or a command looks whether it is let in do not count as use.

use super::{PRINCIPAL, World, actions};
use crate::sandbox_support::{Client, s};
use crate::verify::{request as compared, verify};
use crate::world::{Worker, eventually};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use serde_json::Value;
use shardwalker::access::needs::Feature;
use shardwalker::access::policy::{Attach, Document};
use shardwalker::aws::{Aws, Base};
use shardwalker::backfill::Request;
use shardwalker::config::Config;
use shardwalker::control::{Controls, Scope};
use shardwalker::cutover::{self, Goal};
use shardwalker::peer::OnExisting;
use shardwalker::service::{self, Service};
use shardwalker::state::StateTable;
use shardwalker::strip::{self, strip};
use shardwalker::telemetry::metrics::Metrics;
use shardwalker::verify::{self as compare, Prefer};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// Routes of every kind, by resource policies and by roles.
const CONFIG: &str = r#"
    access_patience = "0ms"
    [state]
    table = "state"
    region = "eu-west-1"
    [admin]
    listen = "off"
    [lease]
    duration = "12s"
    [write]
    request_timeout = "4s"

    [[member]]
    name = "orders"
    table = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders"
    [[member]]
    name = "copy"
    table = "arn:aws:dynamodb:eu-west-1:222222222222:table/copy"
    [[route]]
    name = "plain"
    from = "orders"
    to = ["copy"]

    [[member]]
    name = "events"
    table = "arn:aws:dynamodb:eu-west-1:111111111111:table/events"
    [[member]]
    name = "shaped"
    table = "arn:aws:dynamodb:eu-west-1:222222222222:table/shaped"
    assume_role = { role = "arn:aws:iam::222222222222:role/shaped", external_id = "shaped" }
    [[route]]
    name = "shaped"
    from = "events"
    to = ["shaped"]
    shape = { exclude = ["more"] }

    [[member]]
    name = "raw"
    table = "arn:aws:dynamodb:eu-west-1:111111111111:table/raw"
    assume_role = { role = "arn:aws:iam::111111111111:role/raw" }
    [[member]]
    name = "pristine"
    table = "arn:aws:dynamodb:eu-west-1:222222222222:table/pristine"
    [[route]]
    name = "pristine"
    from = "raw"
    to = ["pristine"]
    pristine = true

    [[member]]
    name = "old"
    table = "arn:aws:dynamodb:eu-west-1:111111111111:table/old"
    [[member]]
    name = "new"
    table = "arn:aws:dynamodb:eu-west-1:222222222222:table/new"
    [[route]]
    name = "move"
    from = "old"
    to = ["new"]
    reversible = true

    [[member]]
    name = "left"
    table = "arn:aws:dynamodb:eu-west-1:444444444444:table/carts"
    number = 1
    [[member]]
    name = "right"
    table = "arn:aws:dynamodb:eu-west-1:555555555555:table/carts"
    number = 2
    assume_role = { role = "arn:aws:iam::555555555555:role/carts" }
    [[group]]
    name = "carts"
    members = ["left", "right"]
"#;

/// An action and the table, or the table whose stream, it was used on.
type Used = BTreeSet<(String, String)>;

/// Keeps what is asked of DynamoDB.
#[derive(Debug, Clone)]
struct Recorder {
    inner: SharedHttpClient,
    used: Arc<Mutex<Used>>,
}

#[derive(Debug)]
struct Recording {
    inner: SharedHttpConnector,
    used: Arc<Mutex<Used>>,
}

impl HttpClient for Recorder {
    fn http_connector(&self, of: &HttpConnectorSettings, parts: &RuntimeComponents) -> SharedHttpConnector {
        let (inner, used) = (self.inner.http_connector(of, parts), Arc::clone(&self.used));
        SharedHttpConnector::new(Recording { inner, used })
    }
}

impl HttpConnector for Recording {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").and_then(|target| target.split('.').nth(1));
        let body = request.body().bytes().and_then(|body| serde_json::from_slice(body).ok());
        if let (Some(call), Some(body)) = (target, body) {
            self.used.lock().unwrap().extend(uses(call, &body));
        }
        self.inner.call(request)
    }
}

/// What a request takes; nothing of a call that only looks whether it is let in.
fn uses(call: &str, body: &Value) -> Used {
    let probes = body.to_string().contains("shardwalker-probe")
        || body["Limit"] == 1 && (call != "Query" || body["Select"] == "COUNT");
    if probes {
        return Used::new();
    }
    let table = |arn: &Value| {
        let name = arn.as_str().unwrap_or_default().split('|').next().unwrap();
        let name = name.split("/stream/").next().unwrap();
        let own = !name.starts_with("arn:");
        if own { format!("arn:aws:dynamodb:eu-west-1:{}:table/{name}", super::HOME) } else { name.to_owned() }
    };
    let one = |call: &str, on: &Value| (format!("dynamodb:{call}"), table(on));
    match call {
        "BatchGetItem" => {
            let tables = body["RequestItems"].as_object().unwrap().keys();
            tables.map(|name| one(call, &Value::from(name.as_str()))).collect()
        }
        "TransactWriteItems" => {
            let items = body["TransactItems"].as_array().unwrap().iter();
            let parts = items.flat_map(|item| item.as_object().unwrap());
            let name = |kind: &str| match kind {
                "Put" => "PutItem",
                "Update" => "UpdateItem",
                "Delete" => "DeleteItem",
                _ => "ConditionCheckItem",
            };
            parts.map(|(kind, part)| one(name(kind), &part["TableName"])).collect()
        }
        "DescribeStream" | "GetShardIterator" => [one(call, &body["StreamArn"])].into(),
        "GetRecords" => [one(call, &body["ShardIterator"])].into(),
        _ => [one(call, &body["TableName"])].into(),
    }
}

/// What documents allow, on tables or their streams.
fn allowed(documents: &[Document]) -> Used {
    let roles = documents.iter().filter(|document| matches!(document.attach, Attach::Role(_)));
    let all = roles.flat_map(|document| actions(&document.policy));
    let of = |(_, resource, action): (usize, Option<String>, String)| {
        (action, resource.unwrap().trim_end_matches("/stream/*").to_owned())
    };
    all.map(of).filter(|(action, _)| action.starts_with("dynamodb:")).collect()
}

struct Features {
    world: World,
    used: Arc<Mutex<Used>>,
    written: Used,
}

impl Features {
    /// Puts what is written for `features` into its places, and nothing else.
    fn only(&mut self, features: &[Feature]) {
        let documents = self.world.documents(features);
        self.written.extend(allowed(&documents));
        self.world.apply(&documents);
    }

    fn options(&self) -> service::Options {
        let (inner, used) = (self.world.sandbox.http_client(), Arc::clone(&self.used));
        let http = Some(SharedHttpClient::new(Recorder { inner, used }));
        service::Options { base: Base { http, ..self.world.base() }, ..self.world.options() }
    }

    async fn start(&self) -> Worker {
        let drain = CancellationToken::new();
        let service = Service::build(self.world.config.clone(), self.options(), drain.clone());
        Worker::of(Box::pin(service).await.unwrap_or_else(|error| panic!("{error}")), drain)
    }

    async fn backfill(&self, route: &str, restart: bool) {
        let existing = Some(OnExisting::Overwrite);
        let request = Request { route: route.to_owned(), existing, restart, ..Request::default() };
        self.world.backfilled_with(request, self.options()).await;
    }

    async fn verify(&self, of: &str, prefer: Option<&str>) {
        let prefer = prefer.map(|name| Prefer::Member(name.to_owned()));
        let request = compare::Request { repair: true, prefer, ..compared(of) };
        let (tally, lines) = verify(self.world.config.clone(), request, self.options()).await.unwrap();
        assert_eq!(tally.remaining(), 0, "{of}: {lines:?}");
        assert!(tally.repaired > 0, "{of}: {tally:?}");
    }

    async fn cutover(&self, goal: Goal) {
        let request =
            cutover::Request { attach_deny: false, writers_stopped: true, ..crate::cutover::request(goal) };
        let request = cutover::Request { route: "move".to_owned(), ..request };
        let (cancel, mut tell) = (CancellationToken::new(), |_: &str| {});
        let config = self.world.config.clone();
        let options = service::Options { create_state_table: false, ..self.options() };
        let report = Box::pin(cutover::cutover(config, request, options, cancel, &mut tell)).await.unwrap();
        assert_eq!(report.refused, None, "{goal:?}: {report:?}");
    }

    /// A pause by an operator.
    async fn pause(&self, route: &str, peer: &str) {
        let aws = Aws::new(self.world.base());
        let state = &self.world.config.state;
        let state = StateTable::new(state, &aws.clients(&state.access).await, Metrics::new().unwrap());
        let clock = shardwalker::clock::Clock::starting_at(self.world.sandbox.clock().now());
        let scope = Scope { route: route.to_owned(), peer: Some(peer.to_owned()) };
        Controls::new(state, clock).pause(&scope, "migrated", "me").await.unwrap();
    }

    async fn put(&self, member: &str, id: &str, value: &str) {
        let (app, table) = self.app(member);
        let put = app.db.put_item().table_name(table).item("id", s(id)).item("value", s(value));
        put.item("more", s("more")).send().await.unwrap();
    }

    async fn delete(&self, member: &str, id: &str) {
        let (app, table) = self.app(member);
        app.delete(&table, id).await;
    }

    fn app(&self, member: &str) -> (Client, String) {
        let arn = &self.world.config.member(member).unwrap().arn;
        (Client::admin_of(&self.world.sandbox, &arn.account, "eu-west-1"), arn.table.clone())
    }

    /// The ids of a table's items, with their values.
    fn held(&self, member: &str) -> String {
        let items = self.world.sandbox.items(&self.world.table(member)).unwrap();
        let text = |item: &Value, name: &str| item[name]["S"].as_str().unwrap_or_default().to_owned();
        let mut held: Vec<_> = items.iter().map(|item| text(item, "id") + &text(item, "value")).collect();
        held.sort();
        held.join(" ")
    }

    async fn until(&self, member: &str, held: &str) {
        eventually(&format!("{member} holds {held}"), || self.held(member) == held).await;
    }
}

const ONE_WAY: [(&str, &str); 4] =
    [("orders", "copy"), ("events", "shaped"), ("raw", "pristine"), ("old", "new")];

#[tokio::test(start_paused = true)]
async fn every_feature_runs_with_what_is_written_for_it_and_uses_all_of_it() {
    let world = World::of(CONFIG, Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000)));
    let mut run = Features { world, used: Arc::default(), written: Used::new() };

    run.only(&[Feature::Backfill, Feature::CreateStateTable]);
    for (source, _) in ONE_WAY {
        run.put(source, "a", "1").await;
    }
    run.put("left", "a", "1").await;
    // What the peer's application has written already.
    run.put("pristine", "a", "0").await;
    for route in ["plain", "shaped", "pristine", "move", "carts/left", "carts/right"] {
        run.backfill(route, false).await;
    }
    for (_, peer) in ONE_WAY {
        assert_eq!(run.held(peer), "a1", "{peer} after the backfill");
    }
    assert_eq!(run.held("right"), "a1");

    run.only(&[]);
    let worker = run.start().await;
    for (source, _) in ONE_WAY {
        run.put(source, "b", "1").await;
        run.put(source, "b", "2").await;
        run.delete(source, "a").await;
    }
    // Both at the same time: one of the two must come back where the other took its place.
    for write in 0..20 {
        let value = write.to_string();
        futures::join!(run.put("left", "c", &value), run.put("right", "c", &value));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    run.delete("left", "a").await;
    for (_, peer) in ONE_WAY {
        run.until(peer, "b2").await;
    }
    eventually("both are equal", || run.held("left") == "c19" && run.held("right") == "c19").await;
    assert!(worker.problems().is_empty(), "{:?}", worker.problems());
    worker.stop().await.unwrap();

    // A shape that is begun anew while its items are there.
    run.only(&[Feature::Backfill]);
    let worker = run.start().await;
    run.backfill("shaped", true).await;
    assert_eq!(run.held("shaped"), "b2");
    worker.stop().await.unwrap();

    run.only(&[Feature::Verify, Feature::Repair]);
    for (_, peer) in ONE_WAY {
        run.delete(peer, "b").await;
    }
    // What is not ours goes only where all is the source's.
    run.put("pristine", "x", "1").await;
    run.delete("left", "c").await;
    for (of, prefer) in
        [("plain", None), ("shaped", None), ("pristine", None), ("move", None), ("carts", Some("right"))]
    {
        run.verify(of, prefer).await;
    }
    for (_, peer) in ONE_WAY {
        assert_eq!(run.held(peer), "b2", "{peer} is mended");
    }

    run.only(&[Feature::Cutover, Feature::Verify]);
    let worker = run.start().await;
    run.cutover(Goal::Peer).await;
    run.put("new", "d", "1").await;
    run.until("old", "b2 d1").await;
    run.cutover(Goal::Source).await;
    run.put("old", "e", "1").await;
    run.until("new", "b2 d1 e1").await;
    worker.stop().await.unwrap();

    run.only(&[Feature::Strip]);
    let strips = [("plain", "copy"), ("shaped", "shaped"), ("move", "new"), ("move/back", "old")];
    for (route, peer) in strips {
        run.pause(route, peer).await;
        let request = strip::Request {
            route: route.to_owned(),
            peer: peer.to_owned(),
            read_units: None,
            write_units: None,
        };
        let (config, options) = (run.world.config.clone(), run.options());
        let stripped = Box::pin(strip(config, request, options, CancellationToken::new())).await.unwrap();
        assert!(stripped.stripped > 0, "{peer}: {stripped:?}");
    }

    let used = run.used.lock().unwrap().clone();
    let idle: Vec<_> = run.written.difference(&used).collect();
    assert!(idle.is_empty(), "written for {PRINCIPAL} and its roles, and never used: {idle:#?}");
    // Whether items expire, and whether a Deny is left, is looked at where that is allowed, and may be forbidden.
    let free = |(action, _): &&(String, String)| {
        !["dynamodb:DescribeTimeToLive", "dynamodb:GetResourcePolicy"].contains(&action.as_str())
    };
    let beyond: Vec<_> = used.difference(&run.written).filter(free).collect();
    assert!(beyond.is_empty(), "{beyond:#?}");
}

#[tokio::test(start_paused = true)]
async fn every_action_that_is_written_for_routes_of_every_kind_is_needed() {
    let start = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    super::names_what_is_taken_away(World::of(CONFIG, Some(start))).await;
}

/// Nobody compares a history with a table, and there is no stamp to be taken off from what never gets one.
#[test]
fn nothing_is_written_for_what_a_feature_refuses() {
    let shaped = "to = [\"shaped\"]\n    shape = { exclude = [\"more\"] }";
    let text = CONFIG.replace(shaped, "to = [\"lake\"]");
    let text = format!("{text}\n[[feed]]\nname = \"lake\"\nurl = \"file:///lake\"\n");
    let config = Config::parse(&text, "test.toml", &|_| None).unwrap_or_else(|e| panic!("{e}"));
    let world = World { config, ..World::new() };
    let on = |feature: Feature, table: &str| -> BTreeSet<String> {
        let ends = format!(":table/{table}");
        let all = allowed(&world.documents(&[feature])).into_iter();
        all.filter(|(_, on)| on.ends_with(&ends)).map(|(action, _)| action).collect()
    };
    let scans = |feature, table| on(feature, table).contains("dynamodb:Scan");
    assert!(scans(Feature::Verify, "orders") && scans(Feature::Verify, "copy"));
    assert!(!scans(Feature::Verify, "events"), "its only destination is a feed");
    assert!(scans(Feature::Backfill, "events"), "of which there are snapshots");
    assert!(scans(Feature::Strip, "copy"));
    assert!(!scans(Feature::Strip, "pristine"), "it has no stamps");
    assert!(!on(Feature::Strip, "pristine").contains("dynamodb:UpdateItem"));
}
