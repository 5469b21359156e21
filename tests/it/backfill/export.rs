//! Backfills from an export of the source to S3, as it lies in a folder.

use super::{Stage, count, request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression;
use flate2::write::GzEncoder;
use md5::{Digest as _, Md5};
use serde_json::{Value, json};
use shardwalker::backfill::{Ended, Request};
use shardwalker::config::flag::Location;
use shardwalker::peer::Seeded;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// What DynamoDB would write now: the source's items in three data files.
async fn export(stage: &Stage) -> TempDir {
    let (world, folder) = (&stage.world, TempDir::new().unwrap());
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let items = world.sandbox.items(&world.source).unwrap();
    let mut files = String::new();
    for (number, part) in items.chunks(items.len().div_ceil(3)).enumerate() {
        let mut data = GzEncoder::new(Vec::new(), Compression::fast());
        part.iter().for_each(|item| writeln!(data, "{}", json!({ "Item": item })).unwrap());
        let data = data.finish().unwrap();
        let name = format!("part{number}.json.gz");
        std::fs::write(folder.path().join("data").join(&name), &data).unwrap();
        let md5 = BASE64.encode(Md5::digest(&data));
        files += &json!({
            "itemCount": part.len(), "md5Checksum": md5, "etag": "x", "dataFileS3Key": format!("AWSDynamoDB/1/data/{name}"),
        })
        .to_string();
        files += "\n";
    }
    std::fs::write(folder.path().join("manifest-files.json"), files).unwrap();
    let described = world.app.db.describe_table().table_name("orders").send().await.unwrap().table.unwrap();
    summary(
        folder.path(),
        &json!({
            "version": "2020-06-30", "exportArn": format!("{}/export/1", world.source), "tableArn": world.source,
            "tableId": described.table_id(), "exportTime": time(world.sandbox.clock().now()), "s3Bucket": "bucket",
            "itemCount": items.len(), "billedSizeBytes": 0, "outputFormat": "DYNAMODB_JSON", "exportType": "FULL_EXPORT",
        }),
    );
    folder
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

fn summary(folder: &Path, summary: &Value) {
    std::fs::write(folder.join("manifest-summary.json"), summary.to_string()).unwrap();
}

fn from(folder: &TempDir) -> Request {
    Request { segments: None, export: Some(Location::Files(folder.path().to_owned())), ..request() }
}

#[tokio::test(start_paused = true)]
async fn an_export_is_copied_without_a_scan_and_what_changed_since_wins() {
    let stage = Stage::new();
    let world = &stage.world;
    stage.allow(&["DescribeTable"]);
    stage.fill(90).await;
    let worker = stage.service().await;
    let folder = export(&stage).await;
    for item in 0..10 {
        world.put(&format!("k{item}"), "after").await;
        world.delete(&format!("k{}", item + 10)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (ended, picture) = stage.run(from(&folder)).await;
    assert_eq!((ended, picture.totals.items, picture.segments.all), (Ended::Done, 90, 3));
    assert_eq!((picture.items_expected, picture.totals.read_units), (90, 0.0));
    let counts = [Seeded::Created, Seeded::Newer, Seeded::Deleted].map(|fate| count(&picture, "b", fate));
    assert_eq!(counts, [70, 10, 10]);
    assert!(world.all_equal());
    assert_eq!(world.requests("Scan", crate::world::SOURCE), 0);
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_file_goes_on_at_its_line_and_a_broken_one_is_refused_before_anything_of_it_is_copied() {
    let stage = Stage::new();
    let world = &stage.world;
    stage.fill(90).await;
    let worker = stage.service().await;
    let folder = export(&stage).await;
    let mut one = stage.start(Request { write_units: Some(10), parallel: Some(1), ..from(&folder) }).await;
    crate::world::eventually("a part is done", || one.items() > 0).await;
    one.drain.cancel();
    assert_eq!(one.end().await.unwrap(), Ended::Drained);
    let before = world.requests("PutItem", crate::world::PEERS[0].0);
    let last = folder.path().join("data/part2.json.gz");
    let whole = std::fs::read(&last).unwrap();
    std::fs::write(&last, &whole[..whole.len() - 1]).unwrap();
    let broken = stage.start(from(&folder)).await.end().await.unwrap_err().to_string();
    assert!(broken.contains("part2.json.gz: its checksum is not that of the manifest"), "{broken}");
    std::fs::write(&last, whole).unwrap();
    let (ended, picture) = stage.run(from(&folder)).await;
    assert_eq!((ended, picture.totals.items), (Ended::Done, 90));
    assert!(world.requests("PutItem", crate::world::PEERS[0].0) - before < 90, "not from the beginning");
    assert!(world.all_equal());
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn exports_that_would_lose_or_bring_back_something_are_refused() {
    let stage = Stage::new();
    stage.fill(9).await;
    let early = export(&stage).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    // The route sees its stream now, after the export.
    stage.service().await.stop().await.unwrap();
    let folder = export(&stage).await;
    let text = std::fs::read_to_string(folder.path().join("manifest-summary.json")).unwrap();
    let good: Value = serde_json::from_str(&text).unwrap();
    let refused =
        async |folder: &TempDir| stage.build(from(folder)).await.err().map(|error| error.to_string());
    assert_eq!(refused(&folder).await, None);
    assert!(refused(&early).await.unwrap().contains("what changed in between would be lost"));
    for (field, value, why) in [
        ("exportType", json!("INCREMENTAL_EXPORT"), "incremental export"),
        ("outputFormat", json!("ION"), "its format is ION"),
        (
            "tableArn",
            json!("arn:aws:dynamodb:eu-west-1:1:table/x"),
            "it is of arn:aws:dynamodb:eu-west-1:1:table/x",
        ),
        ("tableId", json!("another"), "deleted and made again"),
        ("exportTime", json!(null), "no exportTime"),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        summary(folder.path(), &bad);
        let said = refused(&folder).await.unwrap();
        assert!(said.contains(why), "{field}: {said}");
    }
    summary(folder.path(), &good);
    tokio::time::sleep(Duration::from_secs(8 * 86_400)).await;
    let old = refused(&folder).await.unwrap();
    assert!(old.contains("as long ago as tombstones are kept"), "{old}");
}
