//! What holds for any input: configuration files, items, records, versions, lease rows, dead letters.
//!
//! The modules have properties of their own beside them; these go through the public door and, where it matters,
//! through the sandbox's tables and streams, whose engine shares nothing with this crate. A failing case is printed
//! with what shrank to, and is kept under `proptest-regressions/`.

use crate::sandbox_support::{A, Client, REGION, s};
use crate::world::{HOME, World};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use proptest::collection::{hash_map, vec};
use proptest::prelude::*;
use shardwalker::aws::Aws;
use shardwalker::change::{Change, Event, Image, SequenceNumber};
use shardwalker::clock::Clock;
use shardwalker::config::{Config, Place};
use shardwalker::content::Content;
use shardwalker::dead_letters::{self, DeadLetters, Reason};
use shardwalker::failure::{Class, Failure};
use shardwalker::item::{Item, Key};
use shardwalker::lane::Position;
use shardwalker::lease::row::{Lease, PeerPosition};
use shardwalker::lease::table::LeaseTable;
use shardwalker::sandbox::{Options, Sandbox};
use shardwalker::state::StateTable;
use shardwalker::telemetry::metrics::Metrics;
use shardwalker::version::{Hlc, Mark, Stamp, Version};
use shardwalker::wire;
use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};

const EXAMPLE: &str = include_str!("../../deploy/config.example.toml");

/// Few cases where each needs a table: the values in one are many.
fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: count, ..ProptestConfig::default() }
}

/// Runs a case in a runtime with paused time.
fn in_time<F: Future<Output = Result<(), TestCaseError>>>(case: F) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(Box::pin(case))
}

// ---- configuration ------------------------------------------------------------------------------------------

/// One damage to a file.
#[derive(Debug, Clone)]
enum Damage {
    Drop(usize),
    Double(usize),
    Swap(usize, usize),
    Character(usize, char),
    Cut(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let line = 0..200_usize;
    prop_oneof![
        line.clone().prop_map(Damage::Drop),
        line.clone().prop_map(Damage::Double),
        (line.clone(), line).prop_map(|(a, b)| Damage::Swap(a, b)),
        (any::<usize>(), any::<char>()).prop_map(|(at, with)| Damage::Character(at, with)),
        any::<usize>().prop_map(Damage::Cut),
    ]
}

impl Damage {
    fn done_to(&self, text: &str) -> String {
        let mut lines: Vec<&str> = text.lines().collect();
        let count = lines.len().max(1);
        match self {
            _ if lines.is_empty() => {}
            Self::Drop(at) => drop(lines.remove(at % count)),
            Self::Double(at) => lines.insert(at % count, lines[at % count]),
            Self::Swap(a, b) => lines.swap(a % count, b % count),
            Self::Character(at, with) => {
                let mut all: Vec<char> = text.chars().collect();
                let at = at % all.len();
                all[at] = *with;
                return all.into_iter().collect();
            }
            Self::Cut(at) => return text.chars().take(at % text.chars().count()).collect(),
        }
        lines.join("\n")
    }
}

proptest! {
    #[test]
    fn a_damaged_example_gives_a_configuration_or_problems_with_places(damages in vec(damage(), 1..6)) {
        let text = damages.iter().fold(EXAMPLE.to_owned(), |text, damage| damage.done_to(&text));
        if let Err(report) = Config::parse(&text, "f.toml", &|_| None) {
            prop_assert!(!report.problems.is_empty());
            for problem in &report.problems {
                prop_assert!(!problem.what.is_empty());
                if let Place::At { line, column } = problem.place {
                    let found = text.split('\n').nth(line - 1);
                    prop_assert!(found.is_some_and(|found| column <= found.chars().count() + 1), "{problem:?}");
                }
            }
        }
    }
}

// ---- items and records --------------------------------------------------------------------------------------

/// Numbers in any spelling that DynamoDB takes: up to 38 digits, zeros anywhere, exponents.
fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,15})?",
        "-?[1-9](\\.[0-9]{1,30})?[eE][+-]?[0-9]{1,2}",
        "0{1,3}[1-9][0-9]{0,10}0{0,5}(\\.0{1,3})?",
    ]
}

fn value() -> impl Strategy<Value = AttributeValue> {
    let bytes = || vec(any::<u8>(), 0..20).prop_map(Blob::new);
    let distinct = |mut set: Vec<String>| {
        set.sort();
        set.dedup();
        set
    };
    let leaf = prop_oneof![
        ".{0,20}".prop_map(AttributeValue::S),
        number().prop_map(AttributeValue::N),
        bytes().prop_map(AttributeValue::B),
        any::<bool>().prop_map(AttributeValue::Bool),
        Just(AttributeValue::Null(true)),
        vec(".{1,5}", 1..4).prop_map(move |set| AttributeValue::Ss(distinct(set))),
        vec("[1-9][0-9]{0,5}", 1..4).prop_map(move |set| AttributeValue::Ns(distinct(set))),
    ];
    leaf.prop_recursive(6, 24, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(AttributeValue::L),
            hash_map(".{1,5}", inner, 0..3).prop_map(AttributeValue::M),
        ]
    })
}

fn item() -> impl Strategy<Value = HashMap<String, AttributeValue>> {
    hash_map("[a-z]{1,8}", value(), 0..6)
}

proptest! {
    #![proptest_config(cases(24))]

    /// What a replicator puts with a stamp, the stream gives back as the same content with the same digest: an
    /// echo is recognised whatever the item holds.
    #[test]
    fn any_item_is_its_own_echo(items in vec(item(), 1..12), hlc in 0..1_u64 << 47) {
        in_time(async {
            let sandbox = Sandbox::new(Options { initial_shards: 1, ..Options::default() }).unwrap();
            let table = sandbox.create_table(A, REGION, "items", &["id"], Some("NEW_AND_OLD_IMAGES")).unwrap();
            let stream = sandbox.stream_arn(&table).unwrap().unwrap();
            let client = Client::admin(&sandbox, A);
            let mut written = Vec::new();
            for (index, mut content) in items.into_iter().enumerate() {
                content.insert("id".into(), s(&index.to_string()));
                let stamp = Content::from(Item(content.clone()));
                let stamp = Stamp::of(&stamp, Version::new(Hlc::from_millis(hlc), 3));
                let put = client.db.put_item().table_name("items").set_item(Some(content));
                put.item("stamp", s(&stamp.to_string())).send().await.unwrap();
                written.push(stamp);
            }
            let shard = sandbox.shards(&table).unwrap()[0].id.clone();
            let iterator = client.oldest(&stream, &shard).await;
            let answer = wire::get_records(&client.streams, &iterator, 1000).await.unwrap();
            let records = answer.read::<wire::Page<'_>>().unwrap().unwrap().records;
            prop_assert_eq!(records.len(), written.len());
            for (record, stamp) in records.into_iter().zip(written) {
                let new = Change::decode(record, "stamp", true).unwrap().new.unwrap();
                prop_assert_eq!(new.stamp, Some(stamp));
                prop_assert_eq!(new.content.digest(), stamp.digest);
            }
            Ok(())
        })?;
    }

    /// The service itself compares versions, as text: exactly the lower ones are overwritten.
    #[test]
    fn the_service_orders_stamps_as_versions(pairs in vec((any::<u64>(), any::<u8>(), -2_i64..=2, -1_i16..=1), 1..20)) {
        in_time(async {
            let sandbox = Sandbox::new(Options::default()).unwrap();
            sandbox.create_table(A, REGION, "items", &["id"], None).unwrap();
            let client = Client::admin(&sandbox, A);
            for (hlc, member, step, other) in pairs {
                let version = |hlc: u64, member: u8| format!("{hlc:016x}.{member:02x}").parse::<Version>().unwrap();
                let there = version(hlc, member);
                let comes = version(hlc.saturating_add_signed(step), member.saturating_add_signed(other as i8));
                let stamp = Stamp { version: there, mark: Mark::Put, digest: Item::default().digest(None) };
                let put = || client.db.put_item().table_name("items").item("id", s("k"));
                put().item("stamp", s(&stamp.to_string())).send().await.unwrap();
                let condition = put().condition_expression("stamp < :version");
                let answer = condition.expression_attribute_values(":version", s(&comes.to_string())).send().await;
                prop_assert_eq!(answer.is_ok(), there < comes, "{} then {}", there, comes);
            }
            Ok(())
        })?;
    }
}

// ---- sequence numbers ---------------------------------------------------------------------------------------

proptest! {
    #[test]
    fn sequence_numbers_of_any_length_are_in_the_order_of_their_padded_text(
        a in "[0-9]{1,40}", b in "[0-9]{1,40}", c in "[0-9]{1,40}",
    ) {
        let parse = |text: &str| SequenceNumber::parse(text).unwrap();
        let padded = |text: &str| format!("{text:0>40}");
        let (x, y, z) = (parse(&a), parse(&b), parse(&c));
        prop_assert_eq!(x.as_str(), &a);
        if padded(&a) != padded(&b) {
            prop_assert_eq!(x.cmp(&y), padded(&a).cmp(&padded(&b)));
        }
        prop_assert_eq!(x.cmp(&y), y.cmp(&x).reverse());
        prop_assert_eq!(x == y, x.cmp(&y).is_eq());
        if x <= y && y <= z {
            prop_assert!(x <= z);
        }
    }
}

// ---- rows ---------------------------------------------------------------------------------------------------

async fn state(world: &World) -> (StateTable, Clock) {
    let config = world.config("", "");
    drop(world.build(config.clone()).await.unwrap());
    let home = Aws::new(world.base()).clients(&config.state.access).await;
    let clock = Clock::starting_at(world.sandbox.clock().now());
    (StateTable::new(&config.state, &home, Metrics::new().unwrap()), clock)
}

fn position() -> impl Strategy<Value = PeerPosition> {
    let sequence = prop::option::of("[0-9]{1,40}".prop_map(|text| SequenceNumber::parse(&text).unwrap()));
    let created = prop::option::of((0..4_000_000_000_u64).prop_map(|s| UNIX_EPOCH + Duration::from_secs(s)));
    (sequence, any::<u64>(), created, any::<bool>()).prop_map(|(sequence, hlc, created, done)| {
        let hlc = format!("{hlc:016x}").parse().unwrap();
        PeerPosition { position: Position { sequence, hlc, created }, done }
    })
}

fn lease() -> impl Strategy<Value = Lease> {
    let peers = prop::collection::btree_map("[a-zA-Z0-9._-]{1,64}", position(), 0..5);
    let shard = "shardId-[0-9]{20}-[0-9a-f]{8}";
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let more = (prop::option::of("[a-z]{1,20}"), prop::option::of(0..4_000_000_000_u64));
    (shard, prop::option::of(shard), any::<u64>(), flags, more, peers).prop_map(
        |(shard, parent, epoch, (initial, closed, gone), (handoff, expires), peers)| {
            let owner = None;
            Lease { shard, parent, owner, epoch, initial, closed, gone, handoff, expires, peers }
        },
    )
}

fn image() -> impl Strategy<Value = Option<Image>> {
    let stamp = prop::option::of((any::<u64>(), any::<u8>(), any::<[u8; 16]>()));
    let stamp = stamp.prop_map(|stamp| {
        let (hlc, member, digest) = stamp?;
        let hlc = format!("{hlc:016x}").parse().unwrap();
        Some(Stamp { version: Version::new(hlc, member), mark: Mark::Put, digest: digest.into() })
    });
    prop::option::of(
        (item(), stamp).prop_map(|(content, stamp)| Image { content: Item(content).into(), stamp }),
    )
}

fn change() -> impl Strategy<Value = Change> {
    let event = prop_oneof![Just(Event::Insert), Just(Event::Modify), Just(Event::Remove)];
    // Some do not fit into one row.
    let bulk = prop_oneof![4 => Just(0), 1 => 300_000..800_000_usize];
    ("[1-9][0-9]{20,39}", 0..4_000_000_000_u64, ".{1,20}", event, image(), image(), any::<bool>(), bulk)
        .prop_map(|(sequence, created, key, event, old, mut new, by_ttl, bulk)| {
            if let Some(new) = &mut new {
                // Does not compress.
                let noise = blake3_noise(&sequence, bulk);
                let mut item = new.content.item();
                item.0.insert("bulk".into(), AttributeValue::B(Blob::new(noise)));
                new.content = item.into();
            }
            Change {
                sequence: SequenceNumber::parse(&sequence).unwrap(),
                created: UNIX_EPOCH + Duration::from_secs(created),
                key: Key::new(Item(HashMap::from([("id".to_owned(), AttributeValue::S(key))]))),
                event,
                old,
                new,
                by_ttl,
                size: 0,
            }
        })
}

fn blake3_noise(seed: &str, length: usize) -> Vec<u8> {
    let mut noise = vec![0; length];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut noise);
    noise
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn any_lease_comes_back_from_the_table_as_it_was(leases in vec(lease(), 1..8)) {
        in_time(async {
            let world = World::new();
            let (state, _) = state(&world).await;
            let table = LeaseTable::new(state, "r", "label", "me".into());
            let mut expected = std::collections::BTreeMap::new();
            for lease in leases {
                table.add(&lease).await.unwrap();
                expected.entry(lease.shard.clone()).or_insert(lease);
            }
            prop_assert_eq!(table.load().await.unwrap().leases, expected.into_values().collect::<Vec<_>>());
            Ok(())
        })?;
    }

    #[test]
    fn any_dead_letter_can_be_read_as_it_happened(changes in vec(change(), 1..4)) {
        in_time(async {
            let world = World::new();
            let (state, clock) = state(&world).await;
            let letters = DeadLetters::new(state, clock, 1000);
            let why = Failure::new(Class::Invalid, "ValidationException", "too large");
            let lane = dead_letters::Lane { route: "r", peer: "p", shard: "shardId-1" };
            for change in &changes {
                letters.keep(lane, change, Version::default(), Reason::Refused, &why).await.unwrap();
            }
            let rows = world.rows("dead#r#p");
            for change in changes {
                let start = format!("{}#{:0>40}#", change.key.digest(), change.sequence.as_str());
                let parts = rows.iter().filter(|row| row["sk"]["S"].as_str().unwrap().starts_with(&start));
                let body: Vec<u8> = parts.flat_map(|row| bytes(row["data"]["B"].as_str().unwrap())).collect();
                let read = dead_letters::record::decode(&body).unwrap();
                prop_assert_eq!(Change { size: 0, ..read }, change);
            }
            prop_assert!(world.rows("dead-keys#r#p").len() <= rows.len());
            let home = world.sandbox.tables().into_iter().filter(|table| table.contains(HOME)).count();
            prop_assert_eq!(home, 1, "all of it is in the state table");
            Ok(())
        })?;
    }
}

fn bytes(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}
