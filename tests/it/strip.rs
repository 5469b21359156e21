//! Taking the stamps off after a migration, on the sandbox.

use crate::operator::Operator;
use crate::sandbox_support::{Client, s};
use crate::world::{HOME, PEERS, STAMP, World, eventually, resource_policy};
use shardwalker::strip::{Request, StripError, Stripped, strip};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

fn request(peer: &str) -> Request {
    Request { route: "copy".to_owned(), peer: peer.to_owned(), read_units: None, write_units: None }
}

fn allow(world: &World) {
    world.sandbox.admin(HOME, "replicator").unwrap();
    let actions = ["DescribeTable", "Scan", "UpdateItem", "PutItem", "DeleteItem"];
    let policy = resource_policy(&world.peers[0], &actions);
    world.sandbox.put_resource_policy(&world.peers[0], &policy).unwrap();
}

async fn run(world: &World, request: Request) -> Result<Stripped, StripError> {
    let (config, cancel) = (world.config("", ""), CancellationToken::new());
    Box::pin(strip(config, request, world.options(false), cancel)).await
}

fn stamped(world: &World, peer: usize) -> usize {
    world.sandbox.items(&world.peers[peer]).unwrap().iter().filter(|item| item.get(STAMP).is_some()).count()
}

#[tokio::test(start_paused = true)]
async fn stamps_go_once_the_route_is_paused_and_nothing_else_does() {
    let world = World::new();
    let worker = world.worker().await;
    for item in 0..50 {
        world.put(&format!("k{item}"), "value").await;
    }
    world.until_equal().await;
    allow(&world);
    let refused = run(&world, request("b")).await.unwrap_err().to_string();
    assert!(refused.contains("shardwalker pause copy --peer b"), "{refused}");
    let operator = Operator::new(&world).await;
    operator.controls.pause(&Operator::route(), "migrated", "me").await.unwrap();
    // The new owner writes already: whole items, and parts of them.
    let app = Client::admin_of(&world.sandbox, PEERS[0].0, PEERS[0].1);
    app.put("orders-copy", "k0", "theirs").await;
    let update = app.db.update_item().table_name("orders-copy").key("id", s("k1"));
    let update = update.update_expression("SET #v = :v").expression_attribute_names("#v", "value");
    update.expression_attribute_values(":v", s("theirs")).send().await.unwrap();
    assert_eq!(stamped(&world, 0), 49);

    let stripped = run(&world, request("b")).await.unwrap();
    assert_eq!(stripped, Stripped { items: 50, stripped: 49, without: 1, changed: 0 });
    assert_eq!((stamped(&world, 0), stamped(&world, 1)), (0, 50));
    let items = world.sandbox.items(&world.peers[0]).unwrap();
    let theirs = |item: &&serde_json::Value| item["value"]["S"] == "theirs";
    assert_eq!((items.len(), items.iter().filter(theirs).count()), (50, 2));
    assert!(items.iter().all(|item| item.as_object().unwrap().len() == 2), "id and value are left");
    let again = run(&world, request("b")).await.unwrap();
    assert_eq!((again.stripped, again.without), (0, 50));
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_keeps_to_its_rate_and_leaves_alone_what_changes() {
    let world = World::new();
    let worker = world.worker().await;
    for item in 0..40 {
        world.put(&format!("k{item:02}"), "value").await;
    }
    world.until_equal().await;
    worker.stop().await.unwrap();
    allow(&world);
    let operator = Operator::new(&world).await;
    operator.controls.pause(&Operator::route(), "migrated", "me").await.unwrap();
    let app = Client::admin_of(&world.sandbox, PEERS[0].0, PEERS[0].1);
    let begun = Instant::now();
    let busy = async {
        eventually("it has begun", || stamped(&world, 0) < 40).await;
        // They were read already.
        for item in 0..40 {
            app.put("orders-copy", &format!("k{item:02}"), "theirs").await;
        }
    };
    let slowly = Request { write_units: Some(2), ..request("b") };
    let (stripped, ()) = futures::join!(run(&world, slowly), busy);
    let stripped = stripped.unwrap();
    assert_eq!(stripped.items, 40);
    assert!(stripped.changed > 5 && stripped.stripped > 0, "{stripped:?}");
    assert_eq!(stripped.stripped + stripped.changed + stripped.without, 40);
    // Two write units a second, and a second's worth at once.
    let written = stripped.stripped + stripped.changed;
    assert!(begun.elapsed() >= Duration::from_secs(written / 2 - 1), "{:?}: {stripped:?}", begun.elapsed());
    assert_eq!(stamped(&world, 0), 0);
    let items = world.sandbox.items(&world.peers[0]).unwrap();
    assert!(items.iter().all(|item| item["value"]["S"] == "theirs"), "nothing was taken back");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_stripped_is_said() {
    let world = World::new();
    world.worker().await.stop().await.unwrap();
    let operator = Operator::new(&world).await;
    operator.controls.pause(&Operator::route(), "migrated", "me").await.unwrap();
    let denied = run(&world, request("b")).await.unwrap_err().to_string();
    assert!(denied.contains("\"dynamodb:Scan\"") && denied.contains("\"dynamodb:UpdateItem\""), "{denied}");
    let nobody = run(&world, request("x")).await.unwrap_err().to_string();
    assert_eq!(nobody, "route copy has no peer \"x\"");
    let group = crate::groups::Group::new();
    let of_group = Request { route: "orders/a".to_owned(), ..request("b") };
    let (config, options) = (group.config(""), group.options(true));
    let refused = Box::pin(strip(config, of_group, options, CancellationToken::new())).await.unwrap_err();
    assert!(refused.to_string().contains("whose members need their stamps"), "{refused}");
}
