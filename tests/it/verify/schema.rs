//! Comparing how members' tables are defined.

use crate::sandbox_support::Client;
use crate::world::{HOME, World};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, LocalSecondaryIndex,
    Projection, ProjectionType, ScalarAttributeType, StreamSpecification, StreamViewType, TableClass,
    TimeToLiveSpecification,
};
use shardwalker::config::Config;
use shardwalker::verify::schema;

fn define(name: &str) -> AttributeDefinition {
    let kind = ScalarAttributeType::S;
    AttributeDefinition::builder().attribute_name(name).attribute_type(kind).build().unwrap()
}

fn key(name: &str, kind: KeyType) -> KeySchemaElement {
    KeySchemaElement::builder().attribute_name(name).key_type(kind).build().unwrap()
}

/// Makes a table with two indexes, a stream, a time to live and a class; its ARN.
async fn table(client: &Client, name: &str, projection: Projection, rich: bool) -> String {
    let create = client.db.create_table().table_name(name).billing_mode(BillingMode::PayPerRequest);
    let mut create = create
        .attribute_definitions(define("id"))
        .attribute_definitions(define("at"))
        .key_schema(key("id", KeyType::Hash))
        .key_schema(key("at", KeyType::Range));
    let global = GlobalSecondaryIndex::builder()
        .index_name("by-state")
        .key_schema(key("state", KeyType::Hash))
        .projection(projection)
        .build();
    create = create.attribute_definitions(define("state")).global_secondary_indexes(global.unwrap());
    if rich {
        let local = LocalSecondaryIndex::builder()
            .index_name("by-name")
            .key_schema(key("id", KeyType::Hash))
            .key_schema(key("name", KeyType::Range))
            .projection(Projection::builder().projection_type(ProjectionType::KeysOnly).build())
            .build();
        let stream =
            StreamSpecification::builder().stream_enabled(true).stream_view_type(StreamViewType::NewImage);
        create = create
            .attribute_definitions(define("name"))
            .local_secondary_indexes(local.unwrap())
            .stream_specification(stream.build().unwrap())
            .table_class(TableClass::StandardInfrequentAccess)
            .deletion_protection_enabled(true);
    }
    let arn = create.send().await.unwrap().table_description.unwrap().table_arn.unwrap();
    if rich {
        let expiry = TimeToLiveSpecification::builder().enabled(true).attribute_name("until").build();
        let update = client.db.update_time_to_live().table_name(name);
        update.time_to_live_specification(expiry.unwrap()).send().await.unwrap();
    }
    arn
}

async fn differing(world: &World, from: &str, to: &str) -> Vec<String> {
    let text = world.config_text("", "").replace(&world.source, from).replace(&world.peers[0], to);
    let config = Config::parse(&text, "test.toml", &|_| None).unwrap_or_else(|report| panic!("{report}"));
    let request = crate::verify::Request { peer: Some("b".to_owned()), ..super::request("copy") };
    let found = schema::compare(config, &request, world.options(false)).await.unwrap();
    let line = |found: &schema::Setting| {
        let (from, to) = (&found.members[0], &found.members[1]);
        assert_eq!((&*from.0, &*to.0), ("source", "b"));
        format!("{}: {} | {}", found.setting, from.1, to.1)
    };
    found.iter().map(line).collect()
}

#[tokio::test(start_paused = true)]
async fn every_setting_in_which_tables_differ_is_found_and_no_other() {
    let world = World::new();
    world.sandbox.admin(HOME, "replicator").unwrap();
    let client = Client::admin(&world.sandbox, HOME);
    let include = |names: &[&str]| {
        let projection = Projection::builder().projection_type(ProjectionType::Include);
        names.iter().fold(projection, |projection, name| projection.non_key_attributes(*name)).build()
    };
    let rich = table(&client, "rich", include(&["b", "a"]), true).await;
    let twin = table(&client, "twin", include(&["a", "b"]), true).await;
    let all = Projection::builder().projection_type(ProjectionType::All).build();
    let plain = table(&client, "plain", all, false).await;
    assert_eq!(differing(&world, &rich, &twin).await, [""; 0], "the order of a projection is of no account");
    assert_eq!(
        differing(&world, &rich, &plain).await,
        [
            "deletion protection: on | off",
            "global index by-state: state (S); INCLUDE a b | state (S); ALL",
            "local index by-name: id (S), name (S); KEYS_ONLY | -",
            "stream: NEW_IMAGE | off",
            "table class: STANDARD_INFREQUENT_ACCESS | STANDARD",
            "time to live: until | off",
        ]
    );
}
