//! Comparing the definitions of members' tables: keys, indexes, streams, time to live and what else they are set to.

use super::{Request, VerifyError, members, only};
use crate::aws::{Aws, Base};
use crate::config::Config;
use crate::failure::{Class, Failure};
use crate::retry::{self, Jitter, Policy};
use crate::service::Options;
use aws_sdk_dynamodb::types::{
    KeySchemaElement, Projection, TableDescription, TimeToLiveDescription, TimeToLiveStatus,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use tokio_util::sync::CancellationToken;

/// A setting by name, as one table has it.
type Settings = BTreeMap<String, String>;

/// What a member does not have.
const NONE: &str = "-";

/// A setting in which members differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Which one.
    pub setting: String,
    /// What each member has, in the order of the config.
    pub members: Vec<(String, String)>,
}

/// The settings in which the members of a route or group differ, by name. What may not be read is said to be unknown, and
/// differs from nothing.
///
/// # Errors
/// [`VerifyError`].
pub async fn compare(
    config: Config,
    request: &Request,
    options: Options,
) -> Result<Vec<Setting>, VerifyError> {
    let config = only(config, request)?;
    let base = Base { request_timeout: Some(config.write.request_timeout), ..options.base };
    let (aws, jitter, cancel) = (Aws::new(base), Jitter::seeded(options.seed), CancellationToken::new());
    let policy = Policy::for_at_most(config.access_patience);
    let mut tables = Vec::new();
    for index in members(&config) {
        let member = &config.members[index];
        let (client, table) = (aws.clients(&member.access).await.tables, member.arn.to_string());
        let describe = || async { Ok(client.describe_table().table_name(&table).send().await?) };
        let described = retry::run(policy, &jitter, &cancel, |_, _| (), describe).await?.table;
        let expiry = || async {
            match client.describe_time_to_live().table_name(&table).send().await.map_err(Failure::from) {
                Ok(answer) => Ok(time_to_live(answer.time_to_live_description.as_ref())),
                // Nothing else needs it, so it is no mistake.
                Err(failure) if failure.class == Class::Denied => {
                    Ok("unknown: dynamodb:DescribeTimeToLive is not allowed".to_owned())
                }
                Err(failure) => Err(failure),
            }
        };
        let expiry = retry::run(policy, &jitter, &cancel, |_, _| (), expiry).await?;
        let mut settings = described.as_ref().map(settings).unwrap_or_default();
        settings.insert("time to live".to_owned(), expiry);
        tables.push((member.name.clone(), settings));
    }
    Ok(differing(&tables))
}

fn differing(tables: &[(String, Settings)]) -> Vec<Setting> {
    let names: BTreeSet<&String> = tables.iter().flat_map(|(_, settings)| settings.keys()).collect();
    let setting = |name: &String| {
        let value = |settings: &Settings| settings.get(name).map_or(NONE, String::as_str).to_owned();
        let members = tables.iter().map(|(member, settings)| (member.clone(), value(settings)));
        Setting { setting: name.clone(), members: members.collect() }
    };
    let differs = |setting: &Setting| {
        let known =
            setting.members.iter().map(|(_, value)| value).filter(|value| !value.starts_with("unknown"));
        known.collect::<BTreeSet<_>>().len() > 1
    };
    names.into_iter().map(setting).filter(differs).collect()
}

fn settings(table: &TableDescription) -> Settings {
    let mut settings = Settings::new();
    let mut set = |name: String, value: String| drop(settings.insert(name, value));
    let kind = |name: &str| {
        let known = table.attribute_definitions().iter().find(|known| known.attribute_name() == name);
        known.map_or("?", |known| known.attribute_type().as_str()).to_owned()
    };
    let keys = |keys: &[KeySchemaElement]| {
        let key =
            |key: &KeySchemaElement| format!("{} ({})", key.attribute_name(), kind(key.attribute_name()));
        keys.iter().map(key).collect::<Vec<_>>().join(", ")
    };
    let projected = |projection: Option<&Projection>| {
        let Some(projection) = projection else { return String::new() };
        let attributes: BTreeSet<&String> = projection.non_key_attributes().iter().collect();
        let attributes = attributes.into_iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        let kind = projection.projection_type().map_or("", |kind| kind.as_str());
        [kind, &attributes].join(" ").trim_end().to_owned()
    };
    set("key".to_owned(), keys(table.key_schema()));
    for index in table.global_secondary_indexes() {
        let name = index.index_name().unwrap_or_default();
        set(
            format!("global index {name}"),
            format!("{}; {}", keys(index.key_schema()), projected(index.projection())),
        );
    }
    for index in table.local_secondary_indexes() {
        let name = index.index_name().unwrap_or_default();
        set(
            format!("local index {name}"),
            format!("{}; {}", keys(index.key_schema()), projected(index.projection())),
        );
    }
    let stream = table.stream_specification().filter(|stream| stream.stream_enabled());
    let view = stream.map_or("off", |stream| stream.stream_view_type().map_or("on", |view| view.as_str()));
    set("stream".to_owned(), view.to_owned());
    let class = table.table_class_summary().and_then(|summary| summary.table_class());
    set("table class".to_owned(), class.map_or("STANDARD", |class| class.as_str()).to_owned());
    let billing = table.billing_mode_summary().and_then(|summary| summary.billing_mode());
    let billing = billing.map_or("PROVISIONED", |mode| mode.as_str()).to_owned();
    let capacity = table.provisioned_throughput().filter(|_| billing == "PROVISIONED");
    let units = |units: Option<i64>| units.unwrap_or_default();
    let capacity = capacity.map(|capacity| {
        format!(
            ", {} read and {} write units",
            units(capacity.read_capacity_units()),
            units(capacity.write_capacity_units())
        )
    });
    set("capacity".to_owned(), billing + &capacity.unwrap_or_default());
    // The key itself is always another one in another account.
    let encrypted = table.sse_description().and_then(|sse| sse.sse_type());
    set("encryption".to_owned(), encrypted.map_or("owned by AWS", |kind| kind.as_str()).to_owned());
    let protected = table.deletion_protection_enabled() == Some(true);
    set("deletion protection".to_owned(), if protected { "on" } else { "off" }.to_owned());
    settings
}

fn time_to_live(described: Option<&TimeToLiveDescription>) -> String {
    let on = [TimeToLiveStatus::Enabled, TimeToLiveStatus::Enabling];
    let on = described.filter(|ttl| ttl.time_to_live_status().is_some_and(|status| on.contains(status)));
    on.and_then(|ttl| ttl.attribute_name()).unwrap_or("off").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_dynamodb::types::{
        AttributeDefinition, GlobalSecondaryIndexDescription, KeyType, ProjectionType, ScalarAttributeType,
        StreamSpecification, StreamViewType,
    };

    fn table(index: &[&str], view: Option<StreamViewType>) -> TableDescription {
        let key = |name: &str| {
            KeySchemaElement::builder().attribute_name(name).key_type(KeyType::Hash).build().unwrap()
        };
        let define = |name: &str| {
            let kind = ScalarAttributeType::S;
            AttributeDefinition::builder().attribute_name(name).attribute_type(kind).build().unwrap()
        };
        let mut table = TableDescription::builder().key_schema(key("id")).attribute_definitions(define("id"));
        for name in index {
            let projection = Projection::builder()
                .projection_type(ProjectionType::Include)
                .non_key_attributes("b")
                .non_key_attributes("a");
            let index = GlobalSecondaryIndexDescription::builder().index_name(*name).key_schema(key("id"));
            table = table.global_secondary_indexes(index.projection(projection.build()).build());
        }
        if let Some(view) = view {
            let stream = StreamSpecification::builder().stream_enabled(true).stream_view_type(view).build();
            table = table.stream_specification(stream.unwrap());
        }
        table.build()
    }

    #[test]
    fn what_differs_is_named_with_what_each_member_has() {
        let view = Some(StreamViewType::NewAndOldImages);
        let tables = [
            ("a".to_owned(), settings(&table(&["by-a", "by-b"], view))),
            ("b".to_owned(), settings(&table(&["by-b"], None))),
        ];
        let differing: Vec<String> = differing(&tables)
            .iter()
            .map(|found| format!("{}: {} / {}", found.setting, found.members[0].1, found.members[1].1))
            .collect();
        assert_eq!(
            differing,
            ["global index by-a: id (S); INCLUDE a b / -", "stream: NEW_AND_OLD_IMAGES / off"]
        );
    }

    #[test]
    fn what_may_not_be_read_differs_from_nothing() {
        let ttl = |value: &str| BTreeMap::from([("time to live".to_owned(), value.to_owned())]);
        let three = |first: &str| {
            let values = [first, "expires", "unknown: not allowed"];
            differing(&values.map(|value| (value.to_owned(), ttl(value)))).len()
        };
        assert_eq!((three("expires"), three("off")), (0, 1));
    }
}
