//! What one record costs without I/O, part by part: parsing its page, decoding, clock and plan, stamp, encoding.
//!
//! `parse` and `encode` go through the SDK's client: parsing is GetRecords from a canned endpoint, with all that a
//! call costs, over the records of a full page, and the SDK's own parsing of the same beside it; encoding is PutItem
//! up to where it would be signed. The other parts are the crate's own pure functions. All figures are per record.

#[path = "support/endpoint.rs"]
mod endpoint;
#[expect(dead_code, reason = "the benchmarks share it, and each uses a part")]
#[path = "support/records.rs"]
mod records;
#[path = "support/settings.rs"]
mod settings;

use anyhow::Context;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextRef;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use criterion::{BatchSize, Criterion};
use endpoint::{Endpoint, Script};
use records::Kind;
use settings::STAMP;
use shardwalker::apply::{self, Rules, Step};
use shardwalker::aws::Aws;
use shardwalker::change::Change;
use shardwalker::content::Content;
use shardwalker::version::{Fold, Hlc, Stamp, Version};
use shardwalker::wire::{self, Answer, Page, Record, Stamped};
use std::hint::black_box;
use std::time::Duration;

/// A full page: 1 MB of records.
const RECORDS: usize = 500;
const RULES: Rules = Rules { ttl_deletes: true, not_before: None, shape: None };

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let records: Vec<Vec<u8>> = (0..RECORDS).map(|index| records::record(index, Kind::Modify)).collect();
    let page = endpoint::page(0, records.iter().map(Vec::as_slice), RECORDS);
    let endpoint = Endpoint::new(Script { shards: 1, peers: 1, read: Box::new(move |_, _| page.clone()) });
    let clients =
        runtime.block_on(async { Aws::new(endpoint.options().base).clients(&settings::access()).await });
    let read = || wire::get_records(&clients.streams, "0:0", 1000);
    let answer = runtime.block_on(read())?;
    let records: Vec<Record<'_>> = answer.read::<Page<'_>>()??.records;
    let changes: Vec<Change> =
        records.iter().map(|r| Change::decode(r.clone(), STAMP, true)).collect::<Result<_, _>>()?;
    let change = changes.first().context("an empty page")?;
    anyhow::ensure!(matches!(apply::plan(change, &RULES)?, Step::Put { .. }), "not a put");
    let content = &change.new.as_ref().context("no new image")?.content;
    let version = Version::new(Hlc::from_time(change.created), 0);

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("record");
    let per_record = |took: Duration| took / RECORDS as u32;
    group.bench_function("parse", |bencher| {
        bencher.iter_custom(|times| {
            let begun = tokio::time::Instant::now();
            for _ in 0..times {
                // Only a benchmark that is broken fails here, and its figure says so: nothing takes no time.
                let answer = runtime.block_on(read());
                let _ = black_box(answer.as_ref().map(Answer::read::<Page<'_>>));
            }
            per_record(begun.elapsed())
        });
    });
    group.bench_function("parse by the SDK", |bencher| {
        bencher.iter_custom(|times| {
            let begun = tokio::time::Instant::now();
            for _ in 0..times {
                let call = clients.streams.get_records().shard_iterator("0:0").send();
                let _ = black_box(runtime.block_on(call));
            }
            per_record(begun.elapsed())
        });
    });
    group.bench_function("decode", |bencher| {
        let mut next = records.iter().cycle();
        let record = || next.next().cloned().unwrap_or_default();
        bencher.iter_batched(record, |record| Change::decode(record, STAMP, true), BatchSize::SmallInput);
    });
    group.bench_function("clock and plan", |bencher| {
        let mut fold = Fold::from(Hlc::ZERO, Duration::from_secs(60));
        bencher.iter(|| {
            let (hlc, _) = fold.step(change.created, change.stamps());
            black_box((hlc, apply::plan(black_box(change), &RULES).is_ok()));
        });
    });
    group.bench_function("stamp", |bencher| {
        bencher.iter(|| Stamp::of(black_box(content), version).to_string());
    });
    group.bench_function("encode", |bencher| {
        let stamp = Stamp::of(content, version).to_string();
        bencher.iter(|| runtime.block_on(encode(&clients.tables, content, &stamp)));
    });
    group.finish();
    criterion.final_summary();
    Ok(())
}

/// PutItem up to where it would be signed; whether it came that far.
async fn encode(client: &aws_sdk_dynamodb::Client, content: &Content, stamp: &str) -> bool {
    let request = client.put_item().table_name(settings::table(1).to_string());
    let request = wire::with_item(request, content, Some(Stamped { name: STAMP, stamp }));
    request.interceptor(Unsigned).send().await.is_err()
}

/// Ends a call before it is signed.
#[derive(Debug)]
struct Unsigned;

impl Intercept for Unsigned {
    fn name(&self) -> &'static str {
        "unsigned"
    }

    fn read_before_signing(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        Err("as far as it goes".into())
    }
}
