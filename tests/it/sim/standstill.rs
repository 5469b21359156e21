//! Small runs of what the simulation and the model found, each by itself.

use super::network::Sabotage;
use super::plan::{Act, Event, Plan};
use super::{report, run};
use crate::sandbox_support::{Client, s};
use crate::world::{HOME, PEERS, REGION, SOURCE, STAMP, Worker, World, eventually};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_dynamodb::types::AttributeValue;
use shardwalker::aws::Base;
use shardwalker::clock::Clock;
use shardwalker::config::Config;
use shardwalker::sandbox::faults::{Effect, Rule};
use shardwalker::sandbox::pause::Pause;
use shardwalker::sandbox::{Options, Sandbox};
use shardwalker::service::{self, Service};
use shardwalker::task::Tasks;
use shardwalker::version::{Mark, Stamp};
use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// A worker that stands still longer than its lease, in the middle of a creation, and then goes on: another one has
/// applied that creation and the delete after it, and nothing may come back.
#[tokio::test(start_paused = true)]
async fn a_creation_of_a_worker_that_stood_still_does_not_stay() {
    for step in 0..3 {
        stand_still_after(Duration::from_millis(step * 500)).await;
    }
}

async fn stand_still_after(trying: Duration) {
    let world = World::new();
    let pause = Pause::new();
    let mut first = Tasks::new();
    let service = Service::build(world.config("", ""), world.options(true), CancellationToken::new());
    let service = service.await.unwrap();
    world.sandbox.faults().add(Rule::new(Effect::InternalError).operation("PutItem").table("orders-copy"));
    for key in 0..8 {
        world.put(&format!("k{key}"), "1").await;
    }
    first.spawn(pause.over(service.run()));
    let tries = || world.requests("PutItem", PEERS[0].0);
    eventually("the worker tries", || tries() > 3).await;
    sleep(trying).await;
    pause.hold();
    world.sandbox.faults().clear();
    let second = world.worker().await;
    world.until_equal().await;
    for key in 0..8 {
        world.delete(&format!("k{key}")).await;
    }
    world.until_equal().await;
    // Reading the ledger takes a moment, in which the worker finds that it stood still.
    world.sandbox.faults().add(Rule::new(Effect::DelayMs(100)).operation("BatchGetItem"));
    let before = tries();
    pause.resume();
    sleep(Duration::from_secs(30)).await;
    assert!(
        world.all_equal(),
        "after {trying:?} and {} late puts: {:?}",
        tries() - before,
        world.items(&world.peers[0])
    );
    second.stop().await.unwrap();
}

/// An application of a member turns an item back to the content that we had written there, while an older write of
/// another member is on its way: that may find the stale stamp before the item is stamped anew, and must not stay.
#[test]
fn an_old_content_that_came_back_wins_over_an_older_write() {
    for seed in 0..8 {
        let outcome = run::of(came_back(seed), None);
        assert!(outcome.violation.is_none(), "{}", report(&outcome));
    }
}

/// That run can fail: when the item is never stamped anew, one of these seeds does.
#[test]
fn without_its_new_stamp_an_old_content_that_came_back_is_lost() {
    let violation = (0..8).find_map(|seed| run::of(came_back(seed), Some(Sabotage::NewStamps)).violation);
    eprintln!("{}", violation.expect("a seed needs the new stamp"));
}

fn came_back(seed: u64) -> Plan {
    let write = |route, act| Event::Write { route, key: 0, act };
    let events = [
        (500, Event::Start { worker: 0, skew: 0 }),
        (600, write(0, Act::Put)),
        (15_000, Event::Crash { worker: 0 }),
        (16_000, write(0, Act::Put)),
        (18_000, write(1, Act::Update)),
        (18_100, write(1, Act::Back(2))),
        (19_000, Event::Start { worker: 0, skew: 0 }),
    ];
    let events = events.iter().map(|(at, event)| (Duration::from_millis(*at), event.clone()));
    Plan::calm(seed, events.collect())
}

/// Two members of a group, with the replicator in an account that may do anything there.
struct Pair {
    sandbox: Sandbox,
    tables: [String; 2],
    apps: [Client; 2],
}

const ACCOUNTS: [&str; 2] = [SOURCE, PEERS[0].0];

impl Pair {
    fn new() -> Self {
        let start = Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let sandbox = Sandbox::new(Options { start, initial_shards: 1, ..Options::default() }).unwrap();
        let tables = ACCOUNTS.map(|account| {
            let view = Some("NEW_AND_OLD_IMAGES");
            let table = sandbox.create_table(account, REGION, "orders", &["id"], view).unwrap();
            run::allow(&sandbox, &table);
            run::allow(&sandbox, &sandbox.stream_arn(&table).unwrap().unwrap());
            table
        });
        let apps = ACCOUNTS.map(|account| Client::admin(&sandbox, account));
        Self { sandbox, tables, apps }
    }

    async fn worker(&self) -> Worker {
        let [a, b] = &self.tables;
        let text = format!(
            "[state]\ntable = \"state\"\nregion = \"{REGION}\"\n[admin]\nlisten = \"off\"\n\
             [lease]\nduration = \"12s\"\n[write]\nrequest_timeout = \"4s\"\n\
             [[member]]\nname = \"a\"\ntable = \"{a}\"\nnumber = 1\n\
             [[member]]\nname = \"b\"\ntable = \"{b}\"\nnumber = 2\n\
             [[group]]\nname = \"g\"\nmembers = [\"a\", \"b\"]\n"
        );
        let config = Config::parse(&text, "pair.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"));
        let keys = self.sandbox.admin(HOME, "replicator").unwrap();
        let base = Base {
            credentials: Some(SharedCredentialsProvider::new(aws_credential_types::Credentials::from(keys))),
            http: Some(self.sandbox.http_client()),
            request_timeout: None,
        };
        let clock = Clock::starting_at(self.sandbox.clock().now());
        let options = service::Options { base, create_state_table: true, clock, seed: 7 };
        let drain = CancellationToken::new();
        Worker::of(Service::build(config, options, drain.clone()).await.unwrap(), drain)
    }

    /// The replicator's requests of these operations at a member fail like this, and no others.
    fn fail(&self, faults: &[(Effect, &str, usize)]) {
        self.sandbox.faults().clear();
        for (effect, operation, member) in faults {
            let rule = Rule::new(*effect).operation(operation).account(ACCOUNTS[*member]);
            self.sandbox.faults().add(rule.caller(HOME));
        }
    }

    /// The content of the item, and its stamp.
    fn item(&self, member: usize) -> Option<(String, Option<Stamp>)> {
        let item = self.sandbox.items(&self.tables[member]).unwrap().pop()?;
        let stamp = item[STAMP]["S"].as_str().and_then(Stamp::parse);
        Some((item["value"]["S"].as_str().unwrap().to_owned(), stamp))
    }

    async fn until(&self, what: &str, member: usize, state: impl Fn(Option<(&str, Option<Stamp>)>) -> bool) {
        let item = || self.item(member);
        eventually(what, || state(item().as_ref().map(|(content, stamp)| (content.as_str(), *stamp)))).await;
    }

    async fn until_marked(&self, member: usize) {
        let marked = |stamp: Stamp| stamp.mark == Mark::Deleted;
        let what = "the first step of the delete";
        self.until(what, member, |item| item.is_some_and(|(_, stamp)| stamp.is_some_and(marked))).await;
    }

    async fn update(&self, member: usize, value: &str) {
        let update = self.apps[member].db.update_item().table_name("orders").key("id", s("k"));
        let update = update.update_expression("SET #v = :v").expression_attribute_names("#v", "value");
        update.expression_attribute_values(":v", s(value)).send().await.unwrap();
    }

    /// The whole item, with our attribute.
    async fn read(&self, member: usize) -> HashMap<String, AttributeValue> {
        let read = self.apps[member].db.get_item().table_name("orders").key("id", s("k"));
        read.consistent_read(true).send().await.unwrap().item.unwrap()
    }
}

/// An application updates an item between the two steps of our delete, which must be stamped anew then. Meanwhile an
/// application puts back what the item was before, and a worker that repeats the delete marks that: the new stamp finds
/// the mark that it waits for, on another content.
#[tokio::test(start_paused = true)]
async fn an_update_between_the_steps_of_a_delete_is_not_stamped_onto_another_content() {
    let pair = Pair::new();
    let first = pair.worker().await;
    pair.apps[1].put("orders", "k", "0").await;
    pair.until("the first content is copied", 0, |item| item.is_some()).await;
    let before = pair.read(0).await;
    sleep(Duration::from_secs(5)).await;

    pair.fail(&[(Effect::InternalError, "DeleteItem", 0), (Effect::InternalError, "PutItem", 1)]);
    pair.apps[1].delete("orders", "k").await;
    pair.until_marked(0).await;
    pair.update(0, "1").await;
    // The second step lands, and its worker dies before it knows.
    let held = (Effect::InternalError, "PutItem", 1);
    pair.fail(&[(Effect::DelayAnswerMs(3_000), "DeleteItem", 0), held]);
    pair.until("the second step of the delete", 0, |item| item.is_none()).await;
    first.kill().await;

    pair.apps[0].db.put_item().table_name("orders").set_item(Some(before)).send().await.unwrap();
    pair.fail(&[]);
    let second = pair.worker().await;
    pair.fail(&[(Effect::InternalError, "DeleteItem", 0), held]);
    pair.until_marked(0).await;
    pair.fail(&[(Effect::InternalError, "DeleteItem", 0)]);
    pair.until("the update is copied", 1, |item| item.is_some_and(|(content, _)| content == "1")).await;
    let of_update = |stamp: Stamp| stamp.version.member == 1;
    pair.until("it is stamped anew", 0, |item| item.is_some_and(|(_, stamp)| stamp.is_some_and(of_update)))
        .await;
    pair.fail(&[]);
    second.stop().await.unwrap();
    let third = pair.worker().await;
    sleep(Duration::from_secs(60)).await;
    third.stop().await.unwrap();
    let items = [0, 1].map(|member| pair.item(member));
    for item in &items {
        let (content, stamp) = item.as_ref().unwrap();
        assert_eq!(content, "1", "{items:?}");
        assert!(stamp.is_some_and(|stamp| stamp.mark == Mark::Put && of_update(stamp)), "{items:?}");
    }
}
