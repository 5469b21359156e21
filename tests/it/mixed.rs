//! Two groups and two routes in one process, over members in the same Region and in others.

use crate::sandbox_support::{Client, s};
use crate::world::{HOME, REGION, STAMP, Worker, eventually};
use aws_credential_types::provider::SharedCredentialsProvider;
use serde_json::{Value, json};
use shardwalker::aws::Base;
use shardwalker::clock::Clock;
use shardwalker::config::Config;
use shardwalker::sandbox::{Options, Sandbox};
use shardwalker::service::{self, Service};
use std::time::{Duration, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// Account, Region and table; the first four are members of groups.
const TABLES: [(&str, &str, &str); 6] = [
    ("111111111111", REGION, "orders"),
    ("222222222222", REGION, "orders-eu"),
    ("222222222222", REGION, "carts"),
    ("333333333333", "us-east-1", "carts"),
    ("444444444444", REGION, "orders-copy"),
    ("444444444444", "us-east-1", "carts-copy"),
];

/// A table's items without stamps, in order.
fn items(sandbox: &Sandbox, table: &str) -> Vec<Value> {
    let mut items = sandbox.items(table).unwrap();
    items.iter_mut().for_each(|item| _ = item.as_object_mut().unwrap().remove(STAMP));
    items.sort_by_key(|item| item["id"].to_string());
    items
}

#[tokio::test(start_paused = true)]
async fn two_groups_and_two_routes_in_one_process_keep_to_themselves() {
    let start = Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let sandbox = Sandbox::new(Options { initial_shards: 2, start, ..Options::default() }).unwrap();
    let (mut tables, mut apps) = (Vec::new(), Vec::new());
    let mut config =
        format!("[state]\ntable = \"shardwalker-state\"\nregion = \"{REGION}\"\n[admin]\nlisten = \"off\"\n");
    for (index, (account, region, name)) in TABLES.into_iter().enumerate() {
        let view = (index < 4).then_some("NEW_AND_OLD_IMAGES");
        let table = sandbox.create_table(account, region, name, &["id"], view).unwrap();
        for arn in [Some(table.clone()), sandbox.stream_arn(&table).unwrap()].into_iter().flatten() {
            let policy = json!({ "Version": "2012-10-17", "Statement": [
                { "Effect": "Allow", "Principal": { "AWS": HOME }, "Resource": arn, "Action": "dynamodb:*" },
            ]});
            sandbox.put_resource_policy(&arn, &policy.to_string()).unwrap();
        }
        config += &format!("[[member]]\nname = \"m{index}\"\ntable = \"{table}\"\nnumber = {index}\n");
        tables.push(table);
        apps.push(Client::admin_of(&sandbox, account, region));
    }
    config += "[[group]]\nname = \"orders\"\nmembers = [\"m0\", \"m1\"]\n\
               [[group]]\nname = \"carts\"\nmembers = [\"m2\", \"m3\"]\n\
               [[route]]\nname = \"orders-out\"\nfrom = \"m1\"\nto = [\"m4\"]\n\
               [[route]]\nname = \"carts-out\"\nfrom = \"m2\"\nto = [\"m5\"]\n";
    let config = Config::parse(&config, "mixed.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"));
    let keys = aws_credential_types::Credentials::from(sandbox.admin(HOME, "replicator").unwrap());
    let base = Base {
        credentials: Some(SharedCredentialsProvider::new(keys)),
        http: Some(sandbox.http_client()),
        request_timeout: None,
    };
    let clock = Clock::starting_at(sandbox.clock().now());
    let options = service::Options { base, create_state_table: true, clock, seed: 7 };
    let drain = CancellationToken::new();
    let service = Box::pin(Service::build(config, options, drain.clone())).await.unwrap();
    let worker = Worker::of(service, drain);
    for round in 0..3 {
        for (index, app) in apps.iter().enumerate().take(4) {
            for key in 0..10 {
                let id = format!("k{}", (key + index * 5) % 20);
                app.put(TABLES[index].2, &id, &format!("{index}-{round}")).await;
            }
            app.delete(TABLES[index].2, &format!("k{}", round + index * 5)).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    // Each family by itself: a write that went astray would be seen.
    for family in [[0, 1, 4], [2, 3, 5]] {
        let mark = s(&format!("family {}", family[0]));
        let app = &apps[family[0]];
        let item = [("id".to_owned(), s("last")), ("value".to_owned(), mark)].into();
        app.db.put_item().table_name(TABLES[family[0]].2).set_item(Some(item)).send().await.unwrap();
    }
    let equal = || {
        [[0, 1, 4], [2, 3, 5]].into_iter().all(|family| {
            let [first, second, copy] = family.map(|index| items(&sandbox, &tables[index]));
            let last = json!({"id": {"S": "last"}, "value": {"S": format!("family {}", family[0])}});
            first == second && first == copy && first.contains(&last)
        })
    };
    eventually("each group is equal, and its copy with it", equal).await;
    assert_ne!(items(&sandbox, &tables[0]), items(&sandbox, &tables[2]));
    worker.stop().await.unwrap();
}
