//! A backfill of a member of a group to the others: both tables have applications, and walkers see what is copied.

use super::request;
use crate::sandbox_support::{Client, s};
use crate::world::{HOME, PRINCIPAL, REGION, STAMP, Worker, eventually, with};
use aws_credential_types::provider::SharedCredentialsProvider;
use serde_json::{Value, json};
use shardwalker::aws::Base;
use shardwalker::backfill::counts::Fate;
use shardwalker::backfill::{Backfill, Ended, Picture, Request};
use shardwalker::clock::Clock;
use shardwalker::config::Config;
use shardwalker::peer::{OnExisting, Seeded};
use shardwalker::sandbox::faults::{Effect, Rule};
use shardwalker::sandbox::iam::Credentials;
use shardwalker::sandbox::{Options, Sandbox};
use shardwalker::service::{self, Service};
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const ACCOUNTS: [&str; 2] = ["111111111111", "222222222222"];

struct Pair {
    sandbox: Sandbox,
    tables: Vec<String>,
    apps: Vec<Client>,
    keys: Credentials,
}

impl Pair {
    fn new() -> Self {
        let start = Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let sandbox = Sandbox::new(Options { start, initial_shards: 1, ..Options::default() }).unwrap();
        let keys = sandbox.admin(HOME, "replicator").unwrap();
        let (mut tables, mut apps) = (Vec::new(), Vec::new());
        for account in ACCOUNTS {
            let view = Some("NEW_AND_OLD_IMAGES");
            let table = sandbox.create_table(account, REGION, "orders", &["id"], view).unwrap();
            let stream = sandbox.stream_arn(&table).unwrap().unwrap();
            for arn in [&table, &stream] {
                let policy = json!({ "Version": "2012-10-17", "Statement": [
                    { "Effect": "Allow", "Principal": { "AWS": PRINCIPAL }, "Action": "dynamodb:*", "Resource": arn }
                ]});
                sandbox.put_resource_policy(arn, &policy.to_string()).unwrap();
            }
            apps.push(Client::admin(&sandbox, account));
            tables.push(table);
        }
        Self { sandbox, tables, apps, keys }
    }

    fn config(&self) -> Config {
        let mut text = format!(
            "[state]\ntable = \"shardwalker-state\"\nregion = \"{REGION}\"\n[admin]\nlisten = \"off\"\n\
             [lease]\nduration = \"12s\"\n[write]\nrequest_timeout = \"4s\"\n"
        );
        for (number, table) in self.tables.iter().enumerate() {
            text +=
                &format!("[[member]]\nname = \"m{number}\"\ntable = \"{table}\"\nnumber = {}\n", number + 1);
        }
        text += "[[group]]\nname = \"orders\"\nmembers = [\"m0\", \"m1\"]\nstart = \"latest\"\n";
        Config::parse(&text, "group.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"))
    }

    fn options(&self, seed: u64) -> service::Options {
        let keys = aws_credential_types::Credentials::from(self.keys.clone());
        let base = Base {
            credentials: Some(SharedCredentialsProvider::new(keys)),
            http: Some(self.sandbox.http_client()),
            request_timeout: None,
        };
        let clock = Clock::starting_at(self.sandbox.clock().now());
        service::Options { base, create_state_table: true, clock, seed }
    }

    async fn service(&self) -> Worker {
        let drain = CancellationToken::new();
        let service = Service::build(self.config(), self.options(7), drain.clone()).await.unwrap();
        Worker::of(service, drain)
    }

    async fn backfill(&self, seed: u64, request: Request) -> (Ended, Picture) {
        let (options, drain) = (self.options(seed), CancellationToken::new());
        let backfill = Backfill::build(self.config(), request, options, None, drain).await.unwrap();
        let (pictures, seen) = watch::channel(None);
        let ended = Box::pin(backfill.run(pictures)).await.unwrap();
        let picture = seen.borrow().clone().unwrap();
        (ended, picture)
    }

    fn items(&self, member: usize) -> BTreeMap<String, Value> {
        let items = self.sandbox.items(&self.tables[member]).unwrap();
        let plain = items.into_iter().map(|mut item| {
            item.as_object_mut().unwrap().remove(STAMP);
            (item["id"]["S"].as_str().unwrap().to_owned(), item)
        });
        plain.collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_is_copied_to_the_others_and_nothing_goes_round() {
    let pair = Pair::new();
    for item in 0..60 {
        pair.apps[0].put("orders", &format!("k{item}"), "before").await;
    }
    // Of the other member: one of its own, one with the same key.
    pair.apps[1].put("orders", "own", "b").await;
    pair.apps[1].put("orders", "k5", "theirs").await;
    tokio::time::sleep(Duration::from_secs(900)).await;
    let worker = pair.service().await;
    eventually("the streams are followed", || worker.metric("shardwalker_leases_held", &[]) == 2.0).await;
    let of = |member: &str, existing| Request {
        route: format!("orders/{member}"),
        existing: Some(existing),
        write_units: Some(10),
        ..request()
    };
    let writes = async {
        for n in 0..20 {
            pair.apps[n % 2].put("orders", &format!("k{n}"), &format!("written {n}")).await;
            pair.apps[(n + 1) % 2].delete("orders", &format!("k{}", n + 30)).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let ((ended, picture), ()) = futures::join!(pair.backfill(21, of("m0", OnExisting::Keep)), writes);
    assert_eq!((ended, picture.totals.items > 0), (Ended::Done, true));
    let (ended, _) = Box::pin(pair.backfill(22, of("m1", OnExisting::Overwrite))).await;
    assert_eq!(ended, Ended::Done);
    eventually("both hold the same", || pair.items(0) == pair.items(1)).await;
    assert_eq!(pair.items(0)["own"]["value"]["S"], "b");
    assert_eq!(pair.items(0)["k7"]["value"]["S"], "written 7");
    assert!(!pair.items(0).contains_key("k35"), "deleted");
    // What was copied is not sent on by the member that it was copied to.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let members = || {
        let counts = pair.sandbox.counters().snapshot();
        let by = &counts["PutItem"];
        ACCOUNTS.iter().map(|account| by.get(*account).map_or(0, |count| count.requests)).sum::<u64>()
    };
    let before = members();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(members(), before, "quiet");
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_member_whose_item_is_being_deleted_is_left_to_its_stream() {
    let pair = Pair::new();
    pair.apps[0].put("orders", "k1", "before").await;
    let content = with("k2", &[("value", s("going"))]);
    let item = shardwalker::item::Item(content.clone()).into();
    let version =
        shardwalker::version::Version::new(shardwalker::version::Hlc::from_millis(1_700_000_000_000), 2);
    let put = shardwalker::version::Stamp::of(&item, version);
    let mark = shardwalker::version::Stamp { mark: shardwalker::version::Mark::Deleted, ..put };
    let mut marked = content;
    marked.insert(STAMP.to_owned(), s(&mark.to_string()));
    pair.apps[0].db.put_item().table_name("orders").set_item(Some(marked)).send().await.unwrap();
    tokio::time::sleep(Duration::from_secs(900)).await;
    let of = Request { route: "orders/m0".to_owned(), ..request() };
    let (ended, picture) = Box::pin(pair.backfill(21, of)).await;
    let peer = &picture.totals.peers["m1"];
    let of = |fate| peer.get(fate);
    assert_eq!(ended, Ended::Done);
    assert_eq!(of(shardwalker::backfill::counts::Fate::Leaving), 1);
    assert_eq!(of(shardwalker::backfill::counts::Fate::Seeded(Seeded::Created)), 1);
    assert!(!pair.items(1).contains_key("k2"));
}

/// A second backfill of a group meets what the first one copied, with the same version and older content. The stream
/// brings what has changed since; to write it as well would look like an application's write, newer than the delete.
#[tokio::test(start_paused = true)]
async fn a_second_backfill_leaves_what_changed_since_to_the_stream() {
    let pair = Pair::new();
    pair.apps[0].put("orders", "k1", "before").await;
    tokio::time::sleep(Duration::from_secs(900)).await;
    let of = |restart| Request { route: "orders/m0".to_owned(), restart, ..request() };
    Box::pin(pair.backfill(21, of(false))).await;
    pair.apps[0].put("orders", "k1", "changed").await;
    let slow = Rule::new(Effect::DelayMs(3000)).operation("PutItem").account(ACCOUNTS[1]);
    pair.sandbox.faults().add(slow.key(json!({ "S": "k1" })));
    let puts = || {
        let counts = pair.sandbox.counters().snapshot();
        counts["PutItem"].get(ACCOUNTS[1]).map_or(0, |count| count.requests)
    };
    let before = puts();
    let delete = async {
        // Preflight asks whether it may put, before anything is read.
        eventually("it was read", || puts() > before + 1).await;
        pair.apps[0].delete("orders", "k1").await;
    };
    let ((ended, picture), ()) = futures::join!(Box::pin(pair.backfill(22, of(true))), delete);
    let unchanged = Fate::Seeded(Seeded::Unchanged);
    assert_eq!((ended, picture.totals.peers["m1"].get(unchanged)), (Ended::Done, 1));
    pair.sandbox.faults().clear();
    let worker = pair.service().await;
    eventually("it is deleted", || pair.items(0).is_empty() && pair.items(1).is_empty()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((pair.items(0).len(), pair.items(1).len()), (0, 0), "and stays so");
    worker.stop().await.unwrap();
}

/// Each member's stream is applied from before the backfill: what is copied to a member shows in its own.
#[tokio::test(start_paused = true)]
async fn the_place_in_every_members_stream_is_pinned() {
    let pair = Pair::new();
    pair.apps[0].put("orders", "k1", "before").await;
    tokio::time::sleep(Duration::from_secs(900)).await;
    Box::pin(pair.backfill(21, Request { route: "orders/m0".to_owned(), ..request() })).await;
    let state = format!("arn:aws:dynamodb:{REGION}:{HOME}:table/shardwalker-state");
    let rows = pair.sandbox.items(&state).unwrap();
    let pinned = |route: &str| {
        let pk = format!("route#{route}");
        rows.iter().any(|row| row["pk"]["S"] == *pk && row["begun"]["N"] == "1800000900")
    };
    assert!(pinned("orders/m0") && pinned("orders/m1"), "{rows:?}");
}
