//! Active-active groups against the sandbox: applications of every kind, conflicts, deletes, the journal.

mod journal;
mod members;

use crate::sandbox_support::{Client, s};
use crate::world::{HOME, REGION, STAMP, Worker, eventually, resource_policy};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_dynamodb::types::{
    AttributeValue, Delete, Put, PutRequest, TransactWriteItem, Update, WriteRequest,
};
use serde_json::{Value, json};
use shardwalker::aws::Base;
use shardwalker::clock::Clock;
use shardwalker::config::Config;
use shardwalker::sandbox::faults::{Effect, Rule};
use shardwalker::sandbox::iam::Credentials;
use shardwalker::sandbox::{Options, Sandbox};
use shardwalker::service::{self, Service};
use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

pub(crate) const ACCOUNTS: [(&str, &str); 3] =
    [("111111111111", REGION), ("222222222222", REGION), ("333333333333", "us-east-1")];
pub(crate) const NAMES: [&str; 3] = ["a", "b", "c"];
pub(crate) const TABLE: &str = "orders";

/// Three members, each with an application, and the replicator in an account of its own with what a group needs and
/// nothing else.
pub(crate) struct Group {
    pub(crate) sandbox: Sandbox,
    pub(crate) tables: Vec<String>,
    pub(crate) apps: Vec<Client>,
    keys: Credentials,
}

impl Group {
    pub(crate) fn new() -> Self {
        let start = Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let sandbox = Sandbox::new(Options { initial_shards: 2, start, ..Options::default() }).unwrap();
        let (mut tables, mut apps) = (Vec::new(), Vec::new());
        let keys = sandbox.user(HOME, "replicator", &identity_policy()).unwrap();
        for (account, region) in ACCOUNTS {
            let view = Some("NEW_AND_OLD_IMAGES");
            let table = sandbox.create_table(account, region, TABLE, &["id"], view).unwrap();
            let actions = ["DescribeTable", "GetItem", "PutItem", "UpdateItem", "DeleteItem"];
            sandbox.put_resource_policy(&table, &resource_policy(&table, &actions)).unwrap();
            let stream = sandbox.stream_arn(&table).unwrap().unwrap();
            let actions = ["DescribeStream", "GetRecords", "GetShardIterator"];
            sandbox.put_resource_policy(&stream, &resource_policy(&stream, &actions)).unwrap();
            tables.push(table);
            apps.push(Client::admin_of(&sandbox, account, region));
        }
        Self { sandbox, tables, apps, keys }
    }

    pub(crate) fn config(&self, group: &str) -> Config {
        let text = self.text(group);
        Config::parse(&text, "group.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"))
    }

    fn text(&self, group: &str) -> String {
        let mut text = format!(
            "[state]\ntable = \"shardwalker-state\"\nregion = \"{REGION}\"\n[admin]\nlisten = \"off\"\n\
             [lease]\nduration = \"12s\"\n[write]\nrequest_timeout = \"4s\"\n"
        );
        for (index, (name, table)) in NAMES.iter().zip(&self.tables).enumerate() {
            text += &format!("[[member]]\nname = \"{name}\"\ntable = \"{table}\"\nnumber = {}\n", index + 1);
        }
        text + &format!("[[group]]\nname = \"orders\"\nmembers = [\"a\", \"b\", \"c\"]\n{group}\n")
    }

    pub(crate) fn options(&self, create_state_table: bool) -> service::Options {
        let credentials = aws_credential_types::Credentials::from(self.keys.clone());
        let base = Base {
            credentials: Some(SharedCredentialsProvider::new(credentials)),
            http: Some(self.sandbox.http_client()),
            request_timeout: None,
        };
        let clock = Clock::starting_at(self.sandbox.clock().now());
        service::Options { base, create_state_table, clock, seed: 7 }
    }

    pub(crate) async fn start(&self, group: &str) -> Worker {
        let options = self.options(true);
        let drain = CancellationToken::new();
        let service = Service::build(self.config(group), options, drain.clone()).await.unwrap();
        Worker::of(service, drain)
    }

    /// A member's items by key, without stamps.
    fn items(&self, member: usize) -> HashMap<String, Value> {
        let items = self.sandbox.items(&self.tables[member]).unwrap();
        let plain = items.into_iter().map(|mut item| {
            item.as_object_mut().unwrap().remove(STAMP);
            (item["id"]["S"].as_str().unwrap().to_owned(), item)
        });
        plain.collect()
    }

    pub(crate) fn equal(&self) -> bool {
        let first = self.items(0);
        (1..3).all(|member| self.items(member) == first)
    }

    pub(crate) fn value(&self, member: usize, id: &str) -> Option<String> {
        self.items(member).get(id).map(|item| item["value"]["S"].as_str().unwrap_or("?").to_owned())
    }

    /// Waits until all members have this value of a key, `None` for no item.
    pub(crate) async fn until(&self, id: &str, value: Option<&str>) {
        let what = format!("{id} is {value:?} everywhere");
        eventually(&what, || (0..3).all(|member| self.value(member, id).as_deref() == value)).await;
    }

    /// Waits until nobody writes any more, and sees that it stays so.
    pub(crate) async fn until_quiet(&self) {
        let writes = || -> u64 {
            let counts = self.sandbox.counters().snapshot();
            let of = |operation: &str| {
                let accounts = counts.get(operation).into_iter().flatten();
                let members = accounts.filter(|(account, _)| ACCOUNTS.iter().any(|(a, _)| a == *account));
                members.map(|(_, count)| count.requests).sum::<u64>()
            };
            of("PutItem") + of("UpdateItem") + of("DeleteItem")
        };
        for _ in 0..60 {
            let before = writes();
            tokio::time::sleep(Duration::from_secs(10)).await;
            if writes() == before {
                return;
            }
        }
        panic!("members are written to again and again");
    }

    fn rows(&self, prefix: &str) -> Vec<Value> {
        let table = format!("arn:aws:dynamodb:{REGION}:{HOME}:table/shardwalker-state");
        let mut rows = self.sandbox.items(&table).unwrap();
        rows.retain(|row| row["pk"]["S"].as_str().unwrap().starts_with(prefix));
        rows
    }

    pub(crate) async fn update(&self, member: usize, id: &str, value: &str) {
        let update = self.apps[member].db.update_item().table_name(TABLE).key("id", s(id));
        let update = update.update_expression("SET #v = :v").expression_attribute_names("#v", "value");
        update.expression_attribute_values(":v", s(value)).send().await.unwrap();
    }

    /// A member's whole item, with our attribute.
    async fn read(&self, member: usize, id: &str) -> HashMap<String, AttributeValue> {
        let answer = self.apps[member].db.get_item().table_name(TABLE).key("id", s(id)).consistent_read(true);
        answer.send().await.unwrap().item.unwrap_or_default()
    }
}

/// Enough for a group, and no more.
fn identity_policy() -> String {
    json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Resource": "arn:aws:dynamodb:*:*:table/orders/stream/*",
          "Action": ["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"] },
        { "Effect": "Allow", "Resource": "arn:aws:dynamodb:*:*:table/orders",
          "Action": ["dynamodb:DescribeTable", "dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem",
                     "dynamodb:DeleteItem"] },
        { "Effect": "Allow", "Resource": "arn:aws:dynamodb:*:999999999999:table/shardwalker-state",
          "Action": ["dynamodb:CreateTable", "dynamodb:UpdateTimeToLive", "dynamodb:DescribeTimeToLive",
                     "dynamodb:DescribeTable", "dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem",
                     "dynamodb:DeleteItem", "dynamodb:Query", "dynamodb:BatchGetItem"] },
    ]})
    .to_string()
}

#[tokio::test(start_paused = true)]
async fn what_any_member_writes_is_everywhere_and_nothing_goes_round() {
    let group = Group::new();
    let worker = group.start("").await;
    for (member, name) in NAMES.iter().enumerate() {
        group.apps[member].put(TABLE, &format!("put-{name}"), name).await;
        group.update(member, &format!("update-{name}"), name).await;
    }
    for name in NAMES {
        group.until(&format!("put-{name}"), Some(name)).await;
        group.until(&format!("update-{name}"), Some(name)).await;
    }
    // Each goes on from what another wrote.
    for (member, id) in [(1, "put-a"), (2, "put-b"), (0, "update-c")] {
        group.apps[member].put(TABLE, id, "again").await;
        group.until(id, Some("again")).await;
        group.update((member + 1) % 3, id, "and again").await;
        group.until(id, Some("and again")).await;
        // A repair that is under way may bring back what is deleted in that moment: it goes again, and is told as lost.
        group.until_quiet().await;
        group.apps[(member + 2) % 3].delete(TABLE, id).await;
        group.until(id, None).await;
    }
    group.until_quiet().await;
    assert!(group.equal());
    assert_eq!(group.items(0).len(), 3);
    assert!(
        group.rows("conflict#").is_empty(),
        "everybody had seen what was there: {:?}",
        group.rows("conflict#")
    );
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_old_content_that_comes_back_goes_everywhere() {
    let group = Group::new();
    let worker = group.start("").await;
    group.apps[0].put(TABLE, "k", "old").await;
    group.until("k", Some("old")).await;
    // UpdateItem keeps the stamp of "old" at b: the content comes back under it.
    for value in ["new", "old", "new", "old"] {
        group.update(1, "k", value).await;
        group.until("k", Some(value)).await;
    }
    // And at once, before anybody looks.
    group.update(1, "k", "between").await;
    group.update(1, "k", "old").await;
    group.until_quiet().await;
    group.until("k", Some("old")).await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn whole_items_that_are_put_back_with_our_attribute_are_an_application_s_writes() {
    let group = Group::new();
    let worker = group.start("").await;
    group.apps[0].put(TABLE, "k", "one").await;
    group.until("k", Some("one")).await;
    for (member, value) in [(1, "two"), (0, "three"), (2, "four")] {
        let mut item = group.read(member, "k").await;
        item.insert("value".to_owned(), s(value));
        group.apps[member].db.put_item().table_name(TABLE).set_item(Some(item)).send().await.unwrap();
        group.until("k", Some(value)).await;
    }
    // What was read long ago comes back whole, after others wrote.
    let stale = group.read(1, "k").await;
    assert!(stale.contains_key(STAMP));
    group.apps[0].put(TABLE, "k", "five").await;
    group.until("k", Some("five")).await;
    group.apps[1].db.put_item().table_name(TABLE).set_item(Some(stale)).send().await.unwrap();
    group.until("k", Some("four")).await;
    group.until_quiet().await;
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn transactions_and_batches_arrive_item_by_item() {
    let group = Group::new();
    let worker = group.start("").await;
    group.apps[0].put(TABLE, "gone", "x").await;
    group.apps[0].put(TABLE, "changed", "x").await;
    group.until("gone", Some("x")).await;
    group.until("changed", Some("x")).await;
    let put = |id: &str| HashMap::from([("id".to_owned(), s(id)), ("value".to_owned(), s("batch"))]);
    let requests = (0..20).map(|n| {
        let request = PutRequest::builder().set_item(Some(put(&format!("batch-{n}")))).build().unwrap();
        WriteRequest::builder().put_request(request).build()
    });
    let batch = group.apps[1].db.batch_write_item().request_items(TABLE, requests.collect());
    batch.send().await.unwrap();
    let update = Update::builder().table_name(TABLE).key("id", s("changed")).update_expression("SET #v = :v");
    let update = update.expression_attribute_names("#v", "value").expression_attribute_values(":v", s("y"));
    let acts = [
        TransactWriteItem::builder()
            .put(Put::builder().table_name(TABLE).set_item(Some(put("transacted"))).build().unwrap()),
        TransactWriteItem::builder().update(update.build().unwrap()),
        TransactWriteItem::builder()
            .delete(Delete::builder().table_name(TABLE).key("id", s("gone")).build().unwrap()),
    ];
    let acts = acts.into_iter().map(|act| act.build()).collect();
    group.apps[2].db.transact_write_items().set_transact_items(Some(acts)).send().await.unwrap();
    group.until("transacted", Some("batch")).await;
    group.until("changed", Some("y")).await;
    group.until("gone", None).await;
    for n in 0..20 {
        group.until(&format!("batch-{n}"), Some("batch")).await;
    }
    group.until_quiet().await;
    assert!(group.equal());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn of_writes_that_had_not_seen_each_other_the_last_wins_and_the_others_are_kept() {
    let group = Group::new();
    let worker = group.start("conflicts = \"full\"").await;
    group.apps[0].put(TABLE, "k", "start").await;
    group.until("k", Some("start")).await;
    // Seconds apart, so that their order is told; nobody reads the streams meanwhile.
    group.sandbox.faults().add(Rule::new(Effect::Unavailable).operation("GetRecords"));
    group.update(0, "k", "first").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    group.apps[1].put(TABLE, "k", "second").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    group.update(2, "k", "third").await;
    group.sandbox.faults().clear();
    group.until("k", Some("third")).await;
    group.until_quiet().await;
    group.until("k", Some("third")).await;
    let rows = group.rows("conflict#orders#");
    let mut losers: Vec<_> = rows.iter().map(|row| row["loser"]["S"].as_str().unwrap()).collect();
    losers.sort_unstable();
    assert_eq!(losers, ["a", "b"], "{rows:?}");
    for row in &rows {
        let image: Value = serde_json::from_str(row["loser_image"]["S"].as_str().unwrap()).unwrap();
        let expected = if row["loser"]["S"] == "a" { "first" } else { "second" };
        assert_eq!(image["value"]["S"], expected);
        assert!(image.get(STAMP).is_none());
    }
    assert!(worker.metric("shardwalker_conflicts_total", &["loser=\"a\""]) >= 1.0);
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_journal_can_be_a_file() {
    let group = Group::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lost.jsonl");
    let worker = group.start(&format!("conflicts = \"full\"\nconflicts_file = {file:?}")).await;
    group.sandbox.faults().add(Rule::new(Effect::Unavailable).operation("GetRecords"));
    for (app, key) in [(0, "k"), (0, "l"), (1, "k"), (1, "l")] {
        group.apps[app].put(TABLE, key, NAMES[app]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    group.sandbox.faults().clear();
    group.until("k", Some("b")).await;
    group.until("l", Some("b")).await;
    group.until_quiet().await;
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut keys: Vec<_> =
        lines.iter().map(|line| line["key_attributes"]["id"]["S"].as_str().unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["k", "l"], "{text}");
    for line in &lines {
        assert_eq!((&line["loser"]["member"], &line["winner"]["member"]), (&json!("a"), &json!("b")));
        assert_eq!(line["loser"]["image"]["value"]["S"], "a");
    }
    assert!(group.rows("conflict#").is_empty());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_delete_wins_over_older_writes_and_loses_to_newer_ones() {
    let group = Group::new();
    let worker = group.start("conflicts = \"full\"").await;
    for id in ["older", "newer"] {
        group.apps[0].put(TABLE, id, "start").await;
        group.until(id, Some("start")).await;
    }
    group.sandbox.faults().add(Rule::new(Effect::Unavailable).operation("GetRecords"));
    group.apps[1].put(TABLE, "older", "lost").await;
    group.apps[0].delete(TABLE, "newer").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    group.apps[0].delete(TABLE, "older").await;
    group.update(2, "newer", "kept").await;
    group.sandbox.faults().clear();
    group.until("older", None).await;
    group.until("newer", Some("kept")).await;
    group.until_quiet().await;
    group.until("older", None).await;
    group.until("newer", Some("kept")).await;
    let rows = group.rows("conflict#orders#");
    let lost =
        |loser: &str, how: &str| rows.iter().any(|row| row["loser"]["S"] == loser && row["how"]["S"] == how);
    assert!(lost("b", "deleted"), "{rows:?}");
    assert!(rows.iter().any(|row| row["loser"]["S"] == "a" && row["winner"]["S"] == "c"), "{rows:?}");
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_conflicts_a_write_costs_one_request_at_each_peer_and_a_delete_two() {
    let group = Group::new();
    let worker = group.start("").await;
    let peers = [ACCOUNTS[1].0, ACCOUNTS[2].0];
    let count = |operation: &str, accounts: &[&str]| -> u64 {
        let counts = group.sandbox.counters().snapshot();
        let of =
            |account: &&str| counts.get(operation).and_then(|by| by.get(*account)).map_or(0, |c| c.requests);
        accounts.iter().map(of).sum()
    };
    let sent = |accounts: &[&str]| {
        ["PutItem", "UpdateItem", "DeleteItem", "GetItem"].map(|operation| count(operation, accounts))
    };
    let keys: Vec<String> = (0..25).map(|n| format!("k{n}")).collect();
    let n = keys.len() as u64;
    group.until_quiet().await;
    let mut before = sent(&peers);
    let mut since = |peers: &[&str]| {
        let now = sent(peers);
        let more = std::array::from_fn(|at| now[at] - before[at]);
        before = now;
        more
    };
    for id in &keys {
        group.apps[0].put(TABLE, id, "created").await;
    }
    group.until_quiet().await;
    assert_eq!(since(&peers), [2 * n, 0, 0, 0], "creations");
    for id in &keys {
        group.update(0, id, "updated").await;
    }
    group.until_quiet().await;
    assert_eq!(since(&peers), [2 * n, 0, 0, 0], "updates");
    let at_home = sent(&[ACCOUNTS[0].0]);
    for id in &keys {
        group.apps[0].delete(TABLE, id).await;
    }
    group.until_quiet().await;
    assert_eq!(since(&peers), [0, 2 * n, 2 * n, 2 * n], "deletes: a look, a mark, the removal");
    let deletes_of_the_application = [0, 0, n, 0];
    let more: [u64; 4] = std::array::from_fn(|at| sent(&[ACCOUNTS[0].0])[at] - at_home[at]);
    assert_eq!(more, deletes_of_the_application, "nothing at home");
    assert!(group.equal() && group.items(0).is_empty());
    worker.stop().await.unwrap();
}
