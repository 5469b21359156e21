//! What a backfill and a comparison cost in read and write units, billed by the sandbox's table engine by DynamoDB's rules:
//! as docs/migration.md and docs/verify.md say.

#[allow(dead_code, reason = "the benchmarks use all of it")]
#[path = "../../benches/support/tap.rs"]
mod tap;

use crate::sandbox_support::{Client, s};
use crate::world::{HOME, PEERS, World, resource_policy, with};
use aws_smithy_runtime_api::client::http::{HttpConnector as _, HttpConnectorFuture, SharedHttpClient};
use aws_smithy_types::body::SdkBody;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use shardwalker::backfill::{Backfill, Ended, Request};
use shardwalker::config::Config;
use shardwalker::sandbox::Options;
use shardwalker::verify::record::{Record, Tally};
use shardwalker::verify::{self, Verify};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tap::tapped;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Items, whose pages double up to the last.
const ITEMS: u32 = 630;
/// Bytes of an item: with the stamp three write units, without it a little more than half a read unit.
const SIZE: usize = 2400;
/// Bytes of a read unit, strongly consistent.
const READ: f64 = 4096.0;

/// What one kind of request cost.
#[derive(Debug, Default, Clone, Copy)]
struct Cost {
    requests: f64,
    /// Those whose condition did not hold: they are billed as well, and their answers do not say how much.
    refused: f64,
    units: f64,
}

/// By the table and the operation; rows of the state table by the first word of their partition, too.
type Bill = Arc<Mutex<BTreeMap<(String, String), Cost>>>;

/// `client`, with every request to a table billed.
fn billed(client: SharedHttpClient, bill: Bill) -> SharedHttpClient {
    tapped(client, move |connector, mut request| {
        let operation = tap::operation(&request).to_owned();
        let body = request.body().bytes().and_then(|body| serde_json::from_slice::<Value>(body).ok());
        let counts = ["PutItem", "UpdateItem", "DeleteItem", "GetItem", "BatchGetItem", "Query", "Scan"];
        let Some(mut body) = body.filter(|_| counts.contains(&operation.as_str())) else {
            return connector.call(request);
        };
        let table = body["TableName"].as_str().map(str::to_owned);
        let batch = || body["RequestItems"].as_object().and_then(|tables| tables.keys().next().cloned());
        let mut table = table.or_else(batch).unwrap_or_default();
        let row = [&body["Item"], &body["Key"]].into_iter().find_map(|row| row["pk"]["S"].as_str());
        if let Some(kind) = row.and_then(|pk| pk.split('#').next()) {
            table = format!("{table}/{kind}");
        }
        body["ReturnConsumedCapacity"] = "TOTAL".into();
        *request.body_mut() = SdkBody::from(body.to_string());
        let (answer, bill) = (connector.call(request), Arc::clone(&bill));
        HttpConnectorFuture::new(async move {
            let answer = answer.await?;
            let text = answer.body().bytes().unwrap_or_default();
            let consumed = serde_json::from_slice::<Value>(text).unwrap_or_default();
            let units = match &consumed["ConsumedCapacity"] {
                Value::Array(tables) => tables.iter().filter_map(|t| t["CapacityUnits"].as_f64()).sum(),
                table => table["CapacityUnits"].as_f64().unwrap_or_default(),
            };
            let mut bill = bill.lock().unwrap();
            let cost = bill.entry((table, operation)).or_default();
            cost.requests += 1.0;
            cost.refused += f64::from(u8::from(!answer.status().is_success()));
            cost.units += units;
            drop(bill);
            Ok(answer)
        })
    })
}

/// A world whose source holds items that no worker has copied.
struct Shop {
    world: World,
    bill: Bill,
}

impl Shop {
    async fn new() -> Self {
        // What is billed is asked for after requests were signed.
        let options = Options { initial_shards: 2, verify_signatures: false, ..Options::default() };
        let world = World::with(options, Some("NEW_AND_OLD_IMAGES"));
        world.sandbox.admin(HOME, "replicator").unwrap();
        for table in std::iter::once(&world.source).chain(&world.peers) {
            world.sandbox.put_resource_policy(table, &resource_policy(table, &["*"])).unwrap();
        }
        let shop = Self { world, bill: Bill::default() };
        for number in 0..ITEMS {
            shop.put(number, "x").await;
        }
        // Makes the state table.
        shop.world.worker().await.stop().await.unwrap();
        shop
    }

    /// Puts an item whose id is as long as a UUID, and as random.
    async fn put(&self, number: u32, letter: &str) {
        let id = id(number);
        let rest = SIZE - "id".len() - id.len() - "value".len();
        let item = with(&id, &[("value", s(&letter.repeat(rest)))]);
        self.world.app.db.put_item().table_name("orders").set_item(Some(item)).send().await.unwrap();
    }

    fn config(&self) -> Config {
        self.world.config("start = \"latest\"", "")
    }

    /// What a backfill in one segment costs, but for what must hold before.
    async fn backfill(&self, request: Request) -> BTreeMap<(String, String), Cost> {
        let mut options = self.world.options(false);
        options.base.http = options.base.http.map(|http| billed(http, Arc::clone(&self.bill)));
        let request = Request { route: "copy".to_owned(), segments: Some(1), restart: true, ..request };
        let built = Backfill::build(self.config(), request, options, None, CancellationToken::new());
        let backfill = Box::pin(built).await.unwrap();
        self.bill.lock().unwrap().clear();
        let ended = Box::pin(backfill.run(watch::channel(None).0)).await.unwrap();
        assert_eq!(ended, Ended::Done);
        self.bill.lock().unwrap().clone()
    }

    /// What a comparison in one segment costs, but for what must hold before.
    async fn verify(&self, consistent: bool) -> (Tally, BTreeMap<(String, String), Cost>) {
        let mut options = self.world.options(false);
        options.base.http = options.base.http.map(|http| billed(http, Arc::clone(&self.bill)));
        let request = verify::Request { segments: Some(1), consistent, ..crate::verify::request("copy") };
        let cancel = CancellationToken::new();
        let built = Verify::build(self.config(), request, options, Record::nowhere(), cancel);
        let verify = Box::pin(built).await.unwrap();
        self.bill.lock().unwrap().clear();
        let tally = Box::pin(verify.run()).await.unwrap();
        (tally, self.bill.lock().unwrap().clone())
    }

    fn of(&self, bill: &BTreeMap<(String, String), Cost>, table: &str, operation: &str) -> Cost {
        bill.get(&(table.to_owned(), operation.to_owned())).copied().unwrap_or_default()
    }
}

/// A key of 36 random hexadecimal digits.
fn id(number: u32) -> String {
    let mut random = StdRng::seed_from_u64(u64::from(number));
    (0..36).map(|_| char::from_digit(random.random_range(0..16), 16).unwrap()).collect()
}

const STATE: &str = "shardwalker-state";

#[tokio::test(start_paused = true)]
async fn a_backfill_costs_what_is_documented() {
    let shop = Shop::new().await;
    let (items, size) = (f64::from(ITEMS), SIZE as f64);
    let units_of_a_put = ((size + 0.06 * 1024.0) / 1024.0).ceil();

    let bill = shop.backfill(Request::default()).await;
    let scan = shop.of(&bill, &shop.world.source, "Scan");
    let (least, pages) = (items * size / READ, scan.requests);
    assert!(
        (least..least + pages).contains(&scan.units),
        "{scan:?}, expected {least} and less than 1 a page"
    );
    for peer in &shop.world.peers {
        let put = shop.of(&bill, peer, "PutItem");
        assert_eq!((put.requests, put.refused, put.units), (items, 0.0, items * units_of_a_put), "{put:?}");
    }
    let created = items * 2.0;
    let ledger = shop.of(&bill, STATE, "BatchGetItem");
    assert!((0.5..=1.0).contains(&(ledger.units / created)), "{ledger:?} for {created} creations");
    let keys = shop.of(&bill, &format!("{STATE}/backfill-keys"), "PutItem");
    assert!(keys.units <= pages + items * 20.0 / 1000.0, "{keys:?} for {items} keys on {pages} pages");
    let saves = shop.of(&bill, &format!("{STATE}/backfill"), "UpdateItem");
    assert!(
        saves.units <= pages + 1.0,
        "{saves:?}: a save of 1 unit for each page, and the taking of the segment"
    );
    let reads = shop.of(&bill, &shop.world.source, "GetItem").requests;
    assert_eq!(reads, 0.0, "items are not looked at one by one");

    // Again: the failed condition is all that is billed, and the ledger is read as after a creation. What has changed is
    // put after that.
    let changed = 100;
    for number in 0..changed {
        shop.put(number, "y").await;
    }
    let bill = shop.backfill(Request { eventual: true, ..Request::default() }).await;
    let scan = shop.of(&bill, &shop.world.source, "Scan");
    assert!((least / 2.0..least / 2.0 + pages).contains(&scan.units), "{scan:?}, half of {least}");
    for peer in &shop.world.peers {
        let (put, changed) = (shop.of(&bill, peer, "PutItem"), f64::from(changed));
        assert_eq!((put.requests - put.refused, put.refused), (changed, items), "{put:?}");
        assert_eq!(put.units, changed * units_of_a_put, "{put:?}");
    }
    let ledger = shop.of(&bill, STATE, "BatchGetItem");
    assert!((0.5..=1.0).contains(&(ledger.units / created)), "{ledger:?} for {created} that were there");
}

#[tokio::test(start_paused = true)]
async fn a_comparison_costs_what_is_documented() {
    let shop = Shop::new().await;
    shop.backfill(Request::default()).await;
    let all = f64::from(ITEMS) * SIZE as f64;
    let tables = [&shop.world.source, &shop.world.peers[0], &shop.world.peers[1]];
    for (consistent, bytes) in [(false, READ * 2.0), (true, READ)] {
        let (tally, bill) = shop.verify(consistent).await;
        assert_eq!((tally.equal, tally.remaining()), (u64::from(ITEMS), 0));
        let mut scanned = 0.0;
        for table in tables {
            let scan = shop.of(&bill, table, "Scan");
            // The peers' items have a stamp.
            let range = all / bytes..all * 1.06 / bytes + scan.requests;
            assert!(range.contains(&scan.units), "{table}: {scan:?}, expected {range:?}");
            assert_eq!(shop.of(&bill, table, "GetItem").requests, 0.0, "what pairs is not looked up");
            scanned += scan.units;
        }
        assert!((tally.read_units - scanned).abs() < 0.01, "{} counted, {scanned} billed", tally.read_units);
    }
    // What does not pair is looked up at each member until it has stayed so for as long as it must.
    let owner = Client::admin_of(&shop.world.sandbox, PEERS[0].0, PEERS[0].1);
    let gone = 3;
    for number in 0..gone {
        owner.delete("orders-copy", &id(number)).await;
    }
    let (tally, bill) = shop.verify(false).await;
    assert_eq!(tally.remaining(), u64::from(gone));
    for table in tables {
        let looks = shop.of(&bill, table, "GetItem").requests / f64::from(gone);
        assert!((2.0..=8.0).contains(&looks), "{looks} looks at {table} for each");
    }
}

/// A comparison waits before a page for what the pages before it cost.
#[tokio::test(start_paused = true)]
async fn a_comparison_keeps_to_its_read_units() {
    let shop = Shop::new().await;
    shop.backfill(Request::default()).await;
    let mut took = Vec::new();
    for read_units in [None, Some(20)] {
        let options = shop.world.options(false);
        // A page ends after 1 MB, so that there are several.
        let request = verify::Request { segments: Some(16), read_units, ..crate::verify::request("copy") };
        let cancel = CancellationToken::new();
        let built = Verify::build(shop.config(), request, options, Record::nowhere(), cancel);
        let (verify, begun) = (Box::pin(built).await.unwrap(), tokio::time::Instant::now());
        let tally = Box::pin(verify.run()).await.unwrap();
        assert_eq!(tally.equal, u64::from(ITEMS));
        took.push((begun.elapsed(), tally.read_units));
    }
    let (free, limited) = (took[0].0, took[1].0);
    // At each of the three members at the same time.
    let expected = Duration::from_secs_f64(took[1].1 / 3.0 / 20.0);
    assert!(free < Duration::from_secs(2), "{free:?}");
    assert!(
        (expected * 2 / 3..expected * 3 / 2).contains(&limited),
        "{limited:?}, expected about {expected:?}"
    );
}
