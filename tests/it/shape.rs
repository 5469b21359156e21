//! Shaped routes on the sandbox, in virtual time: after everything the target is the shaped source.

mod changed;
mod command;
mod histories;
mod letters;

use crate::sandbox_support::{Client, s};
use crate::verify::{request, verify};
use crate::world::{HOME, PEERS, REGION, SOURCE, STAMP, Worker, World, eventually, resource_policy};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType,
    Projection, ProjectionType, ScalarAttributeType, TimeToLiveSpecification,
};
use serde_json::{Value, json};
use shardwalker::backfill::{Backfill, BackfillError, Ended, Request};
use shardwalker::config::Config;
use shardwalker::item::Item;
use shardwalker::json::{from_item, to_item};
use shardwalker::shape::Shape;
use shardwalker::verify::record::Tally;
use shardwalker::verify::{self, VerifyError};
use std::collections::BTreeMap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A source and a target with other keys, in the accounts of a world.
pub(crate) struct Shaped {
    pub(crate) world: World,
    pub(crate) source: String,
    pub(crate) target: String,
    keys: Vec<String>,
}

const ACTIONS: [&str; 5] = ["DescribeTable", "Scan", "GetItem", "PutItem", "DeleteItem"];

impl Shaped {
    pub(crate) fn new(source: &[&str], target: &[&str]) -> Self {
        Self::with_view(source, target, "NEW_AND_OLD_IMAGES")
    }

    fn with_view(source: &[&str], target: &[&str], view: &str) -> Self {
        let world = World::new();
        let sandbox = &world.sandbox;
        let target = sandbox.create_table(PEERS[0].0, REGION, "shaped", target, None).unwrap();
        Self::of(world, source, target, view)
    }

    fn of(world: World, keys: &[&str], target: String, view: &str) -> Self {
        let sandbox = &world.sandbox;
        sandbox.admin(HOME, "replicator").unwrap();
        let source = sandbox.create_table(SOURCE, REGION, "events", keys, Some(view)).unwrap();
        for table in [&source, &target] {
            sandbox.put_resource_policy(table, &resource_policy(table, &ACTIONS)).unwrap();
        }
        let stream = sandbox.stream_arn(&source).unwrap().unwrap();
        let reads = ["DescribeStream", "GetRecords", "GetShardIterator"];
        sandbox.put_resource_policy(&stream, &resource_policy(&stream, &reads)).unwrap();
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        Self { world, source, target, keys }
    }

    pub(crate) fn text(&self, shape: &str) -> String {
        format!(
            r#"
[state]
table = "shardwalker-state"
region = "{REGION}"
[admin]
listen = "off"
[lease]
duration = "12s"
[write]
request_timeout = "4s"
[[member]]
name = "source"
table = "{}"
[[member]]
name = "target"
table = "{}"
[[route]]
name = "copy"
from = "source"
to = ["target"]
{shape}
"#,
            self.source, self.target
        )
    }

    pub(crate) fn config(&self, shape: &str) -> Config {
        let text = self.text(shape);
        Config::parse(&text, "test.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"))
    }

    async fn worker(&self, shape: &str) -> Worker {
        self.world.start(self.config(shape)).await
    }

    pub(crate) async fn put(&self, item: Value) {
        let item = to_item(&item).unwrap();
        self.world.app.db.put_item().table_name("events").set_item(Some(item.0)).send().await.unwrap();
    }

    pub(crate) async fn delete(&self, key: Value) {
        let key = to_item(&key).unwrap();
        self.world.app.db.delete_item().table_name("events").set_key(Some(key.0)).send().await.unwrap();
    }

    fn shape(&self, lines: &str) -> Shape {
        let keys: Vec<_> = self.keys.iter().map(|key| (key.clone(), "S".to_owned())).collect();
        Shape::fit(self.config(lines).routes[0].shape.as_ref().unwrap(), &keys).unwrap()
    }

    /// The shaped items of the source, by their keys; those that cannot be shaped are left out.
    fn wanted(&self, lines: &str) -> BTreeMap<String, Value> {
        let shape = self.shape(lines);
        let items = self.world.sandbox.items(&self.source).unwrap();
        let items = items.iter().map(|item| to_item(item).unwrap());
        let items = items.filter(|item| shape.lets_through(item) == Ok(true));
        let shaped = items.filter_map(|item| shape.item(&item).ok());
        shaped.map(|(key, item)| (by(key.attributes()), from_item(&item))).collect()
    }

    /// The items of the target, without their stamps, by their keys.
    fn there(&self, lines: &str) -> BTreeMap<String, Value> {
        let keys: Vec<String> = self.shape(lines).keys().into_iter().map(|(name, _)| name).collect();
        let items = self.world.sandbox.items(&self.target).unwrap();
        let one = |mut item: Value| {
            item.as_object_mut().unwrap().remove(STAMP).expect("a stamp");
            let whole = to_item(&item).unwrap();
            (by(whole.key(&keys).unwrap().attributes()), item)
        };
        items.into_iter().map(one).collect()
    }

    async fn until_shaped(&self, lines: &str) {
        eventually("the target is the shaped source", || self.there(lines) == self.wanted(lines)).await;
    }

    async fn backfill(&self, shape: &str, restart: bool) -> Result<Ended, BackfillError> {
        let (config, options) = (self.config(shape), self.world.options(true));
        let request = Request { route: "copy".to_owned(), restart, ..Request::default() };
        let backfill = Backfill::build(config, request, options, None, CancellationToken::new()).await?;
        Box::pin(backfill.run(watch::channel(None).0)).await
    }

    async fn verify(&self, shape: &str, repair: bool) -> Result<(Tally, Vec<Value>), VerifyError> {
        let request = verify::Request { segments: None, repair, ..request("copy") };
        verify(self.config(shape), request, self.world.options(false)).await
    }

    /// The dead letters: reason and code of each, and the key of the letter.
    fn letters(&self) -> Vec<(String, String)> {
        let text = |row: &Value, name: &str| row[name]["S"].as_str().unwrap().to_owned();
        let rows = self.world.rows("dead#copy#target");
        rows.iter().map(|row| (text(row, "reason"), text(row, "message"))).collect()
    }
}

fn by(key: &Item) -> String {
    // An object's names are sorted.
    from_item(key).to_string()
}

fn event(id: &str, state: &str, more: &str) -> Value {
    json!({ "id": { "S": id }, "state": { "S": state }, "more": { "S": more } })
}

const WA: &str = "[route.shape]\nfilter = 'item.state == \"WA\"'\n";

#[tokio::test(start_paused = true)]
async fn items_enter_and_leave_the_filter() {
    let shaped = Shaped::new(&["id"], &["id"]);
    let worker = shaped.worker(WA).await;
    for (id, state) in [("in", "WA"), ("out", "OR"), ("leaves", "WA"), ("enters", "OR"), ("goes", "WA")] {
        shaped.put(event(id, state, "1")).await;
    }
    shaped.until_shaped(WA).await;
    assert_eq!(shaped.there(WA).len(), 3);
    shaped.put(event("leaves", "CA", "2")).await;
    shaped.put(event("enters", "WA", "2")).await;
    shaped.put(event("out", "CA", "2")).await;
    shaped.put(event("in", "WA", "2")).await;
    shaped.delete(json!({ "id": { "S": "goes" } })).await;
    shaped.until_shaped(WA).await;
    let left: Vec<String> = shaped.there(WA).into_keys().collect();
    assert_eq!(left, [r#"{"id":{"S":"enters"}}"#, r#"{"id":{"S":"in"}}"#]);
    // One that has left comes back, although its delete is remembered.
    shaped.put(event("leaves", "WA", "3")).await;
    shaped.until_shaped(WA).await;
    assert_eq!(shaped.there(WA).len(), 3);
    assert!(worker.metric("shardwalker_changes_total", &["skipped"]) >= 2.0);
    worker.stop().await.unwrap();
    assert_eq!(shaped.letters(), []);
}

#[tokio::test(start_paused = true)]
async fn an_item_is_projected_masked_and_given_another_key() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a key of sixteen bytes and more").unwrap();
    let lines = format!(
        "[route.shape]\ninclude = [\"name\", \"address.city\", \"email\"]\nrename = {{ name = \"who\" }}\n\
         constants = {{ origin = \"shop\" }}\nmask = {{ email = \"hash\" }}\nmask_key_file = {:?}\n\
         keys = {{ pk = \"C#{{id}}\", sk = \"{{at}}\" }}\n",
        file.path()
    );
    let shaped = Shaped::new(&["id", "at"], &["pk", "sk"]);
    let worker = shaped.worker(&lines).await;
    let customer = |id: &str, city: &str| {
        json!({
            "id": { "S": id }, "at": { "S": "1" }, "name": { "S": "Ann" }, "email": { "S": "ann@example.com" },
            "phone": { "S": "555" }, "address": { "M": { "city": { "S": city }, "street": { "S": "Pine" } } },
        })
    };
    shaped.put(customer("a", "Seattle")).await;
    shaped.put(customer("b", "Seattle")).await;
    shaped.until_shaped(&lines).await;
    shaped.put(customer("a", "Portland")).await;
    shaped.delete(json!({ "id": { "S": "b" }, "at": { "S": "1" } })).await;
    shaped.until_shaped(&lines).await;
    let there = shaped.there(&lines);
    let mut item = there.into_values().next().unwrap();
    let email = item.as_object_mut().unwrap().remove("email").unwrap();
    assert_eq!(email["S"].as_str().unwrap().len(), 64);
    assert_eq!(
        item,
        json!({
            "pk": { "S": "C#a" }, "sk": { "S": "1" }, "who": { "S": "Ann" }, "origin": { "S": "shop" },
            "address": { "M": { "city": { "S": "Portland" } } },
        })
    );
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn keys_that_would_meet_are_dead_letters_of_their_own() {
    let lines = "[route.shape]\nkeys = { pk = \"{a}#{b}\" }\n";
    let shaped = Shaped::new(&["a", "b"], &["pk"]);
    let worker = shaped.worker(lines).await;
    let item = |a: &str, b: &str| json!({ "a": { "S": a }, "b": { "S": b }, "v": { "S": a } });
    shaped.put(item("x#y", "z")).await;
    shaped.put(item("x", "y#z")).await;
    shaped.put(item("p", "q")).await;
    shaped.until_shaped(lines).await;
    eventually("the letter is there", || shaped.letters().len() == 1).await;
    let (reason, message) = shaped.letters().remove(0);
    assert!(reason == "unshaped" && message.contains("not one-to-one"), "{reason}: {message}");
    assert_eq!(shaped.there(lines)[r#"{"pk":{"S":"x#y#z"}}"#]["v"], json!({ "S": "x" }));
    // Its later changes wait behind it; nothing is ever done under the other one's key.
    shaped.delete(json!({ "a": { "S": "x#y" }, "b": { "S": "z" } })).await;
    eventually("it waits behind", || shaped.letters().len() == 2).await;
    assert_eq!(shaped.letters()[1].0, "behind");
    assert_eq!(shaped.there(lines).len(), 2);
    worker.stop().await.unwrap();
    // The comparison names what a shape cannot be given to, and repairs nothing under the other's key.
    shaped.put(item("x#y", "z")).await;
    let (tally, told) = shaped.verify(lines, true).await.unwrap();
    assert_eq!((tally.differences, tally.repaired), ([("unshaped".to_owned(), 1)].into(), 0));
    let told = told.iter().find(|line| line["kind"] == "unshaped").unwrap();
    assert_eq!(told["key"], json!({ "a": { "S": "x#y" }, "b": { "S": "z" } }));
    assert_eq!(shaped.there(lines).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_the_filter_cannot_judge_is_a_dead_letter_and_can_be_mended() {
    let shaped = Shaped::new(&["id"], &["id"]);
    let worker = shaped.worker(WA).await;
    shaped.put(json!({ "id": { "S": "a" } })).await;
    eventually("the letter is there", || shaped.letters().len() == 1).await;
    let (reason, message) = shaped.letters().remove(0);
    assert!(reason == "unshaped" && message.contains("there is no attribute state"), "{reason}: {message}");
    assert!(worker.metric("shardwalker_dead_letters_total", &["unshaped"]) == 1.0);
    // Other items go on.
    shaped.put(event("b", "WA", "1")).await;
    shaped.until_shaped(WA).await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_backfill_and_a_comparison_go_through_the_shape() {
    let lines = "start = \"latest\"\n[route.shape]\nfilter = 'item.state == \"WA\"'\nexclude = [\"more\"]\nkeys = { pk = \"E#{id}\" }\n";
    let shaped = Shaped::new(&["id"], &["pk"]);
    for id in 0..40 {
        shaped.put(event(&format!("e{id:02}"), ["WA", "OR"][id % 2], "x")).await;
    }
    tokio::time::sleep(std::time::Duration::from_secs(900)).await;
    let worker = shaped.worker(lines).await;
    assert_eq!(shaped.backfill(lines, false).await.unwrap(), Ended::Done);
    assert_eq!((shaped.there(lines), shaped.there(lines).len()), (shaped.wanted(lines), 20));
    let (tally, _) = shaped.verify(lines, false).await.unwrap();
    assert_eq!((tally.compared, tally.equal, tally.remaining()), (20, 20, 0));
    worker.stop().await.unwrap();
    // What the stream did not bring: one more, one that left, one changed.
    shaped.put(event("e98", "WA", "x")).await;
    shaped.put(event("e00", "OR", "x")).await;
    let mut changed = event("e02", "WA", "y");
    changed["v"] = json!({ "N": "1" });
    shaped.put(changed).await;
    // And an application's, under a key to which nothing leads.
    let theirs = Client::admin(&shaped.world.sandbox, PEERS[0].0);
    theirs.db.put_item().table_name("shaped").item("pk", s("nobody's")).send().await.unwrap();
    let kinds = |tally: &Tally| tally.differences.iter().map(|(k, n)| format!("{k} {n}")).collect::<Vec<_>>();
    let (tally, _) = shaped.verify(lines, false).await.unwrap();
    assert_eq!(kinds(&tally), ["different 1", "extra 1", "foreign 1", "missing 1"]);
    let (tally, _) = shaped.verify(lines, true).await.unwrap();
    assert_eq!((tally.repaired, tally.remaining()), (3, 1));
    theirs.db.delete_item().table_name("shaped").key("pk", s("nobody's")).send().await.unwrap();
    assert_eq!(shaped.there(lines), shaped.wanted(lines));
    let (tally, _) = shaped.verify(lines, false).await.unwrap();
    assert_eq!((tally.remaining(), tally.equal), (0, 20));
}

#[tokio::test(start_paused = true)]
async fn a_target_may_have_other_key_types_indexes_and_expiry() {
    let world = World::new();
    let theirs = Client::admin(&world.sandbox, PEERS[0].0);
    let define = |name: &str, kind: ScalarAttributeType| {
        AttributeDefinition::builder().attribute_name(name).attribute_type(kind).build().unwrap()
    };
    let key = |name: &str, kind: KeyType| {
        KeySchemaElement::builder().attribute_name(name).key_type(kind).build().unwrap()
    };
    let index = GlobalSecondaryIndex::builder()
        .index_name("by-state")
        .key_schema(key("state", KeyType::Hash))
        .projection(Projection::builder().projection_type(ProjectionType::All).build());
    let string = ScalarAttributeType::S;
    let create = theirs.db.create_table().table_name("indexed").billing_mode(BillingMode::PayPerRequest);
    let create = create.attribute_definitions(define("pk", string.clone()));
    let create = create.attribute_definitions(define("state", string));
    let create = create.key_schema(key("pk", KeyType::Hash)).global_secondary_indexes(index.build().unwrap());
    let target = create.send().await.unwrap().table_description.unwrap().table_arn.unwrap();
    let expiry = TimeToLiveSpecification::builder().enabled(true).attribute_name("until").build().unwrap();
    theirs
        .db
        .update_time_to_live()
        .table_name("indexed")
        .time_to_live_specification(expiry)
        .send()
        .await
        .unwrap();
    let lines = "[route.shape]\nkeys = { pk = \"E#{id}\" }\nrename = { more = \"until\" }\n";
    let shaped = Shaped::of(world, &["id"], target, "NEW_IMAGE");
    let worker = shaped.worker(lines).await;
    shaped.put(event("a", "WA", "x")).await;
    shaped.put(event("b", "OR", "x")).await;
    shaped.until_shaped(lines).await;
    let query = theirs.db.query().table_name("indexed").index_name("by-state");
    let query = query.key_condition_expression("#s = :s").expression_attribute_names("#s", "state");
    let found = query.expression_attribute_values(":s", s("WA")).send().await.unwrap().items.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["pk"], AttributeValue::S("E#a".to_owned()));
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_refused_before_anything_runs() {
    let refused = async |shaped: &Shaped, lines: &str| {
        let mut config = shaped.config(lines);
        config.access_patience = std::time::Duration::ZERO;
        let Err(why) = shaped.world.build(config).await else { panic!("{lines} is accepted") };
        why.to_string()
    };
    let shaped = Shaped::new(&["id"], &["pk"]);
    let why = refused(&shaped, "[route.shape]\nexclude = [\"more\"]").await;
    assert!(why.contains("its primary key is pk (S)") && why.contains("is id (S)"), "{why}");
    let why = refused(&shaped, "[route.shape]\nkeys = { pk = \"{id}#{state}\" }").await;
    assert!(why.contains("made of state, which is not of the source's key"), "{why}");
    let shaped = Shaped::with_view(&["id"], &["id"], "NEW_IMAGE");
    let why = refused(&shaped, WA).await;
    assert!(why.contains("no old images; the filter of route copy is judged on both"), "{why}");
}
