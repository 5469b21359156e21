//! `[[feed]]`: destinations that take changes as files or lines, and which routes lead to them.
//!
//! Owns the keys of a feed and what makes no sense among them. That a route's `to` names a feed is found here too;
//! everything else about routes is in [`routes`](super::routes).

use super::access::{Defaults, Target, access};
use super::report::Place;
use super::routes::RouteDraft;
use super::section::{Located, Reader, Section};
use super::values::{self, Fault, boolean, duration, integer, shown, string, wrong_type};
use super::{Column, ColumnType, Compression, Feed, FeedFormat, FeedPlace, Images, Partition};
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;

/// A feed as read; what is `None` was reported.
pub(super) struct FeedDraft {
    pub(super) name: Option<Located<String>>,
    feed: Option<Feed>,
}

/// Where a feed's `url` leads, before credentials are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Url {
    Stdout,
    Files(PathBuf),
    S3 { bucket: String, prefix: String },
    Gcs { bucket: String, prefix: String },
    Azure { account: String, container: String, prefix: String },
}

pub(super) fn feed(mut section: Section<'_>) -> FeedDraft {
    let name = section.required("name", "a name of your choice for the feed", values::name);
    let hint = "\"file:///DIRECTORY\", \"s3://BUCKET/PREFIX\", \"gs://BUCKET/PREFIX\", \"az://ACCOUNT/CONTAINER/PREFIX\" or \
                \"stdout\"";
    let at = section.required("url", hint, url);
    let format = section.or("format", FeedFormat::Json, format);
    let images = section.or("images", Images::New, images);
    let compression = section.or("compression", Compression::Zstd, compression);
    let partition = section.or("partition", Partition::Hour, partition);
    let roll_mb = section.or("roll_mb", 16, integer(1..=512));
    let roll_age = section.or(
        "roll_age",
        Duration::from_mins(5),
        duration(Duration::from_secs(1)..=Duration::from_hours(1)),
    );
    let columns = section.or("columns", Vec::new(), columns);
    let place = place(&mut section, name.as_ref(), at.as_ref());
    if let (Some(format), Some(columns)) = (&format, &columns)
        && columns.given
        && format.value != FeedFormat::Parquet
    {
        let fault = Fault::new("is for format = \"parquet\" only");
        section.report(
            "columns",
            columns.place,
            fault.remedy("leave the key out: lines have every attribute"),
        );
    }
    if let (Some(Located { value: Url::Stdout, .. }), Some(format)) = (&at, &format)
        && format.value == FeedFormat::Parquet
    {
        section.report(
            "format",
            format.place,
            Fault::new("cannot be \"parquet\" on stdout, which takes lines"),
        );
    }
    if let (Some(format), Some(compression)) = (&format, &compression)
        && (format.value, compression.value) == (FeedFormat::Parquet, Compression::Gzip)
    {
        let fault = Fault::new("cannot be \"gzip\" with format = \"parquet\"");
        section.report("compression", compression.place, fault.remedy("use \"zstd\" or \"none\""));
    }
    section.finish();
    let build = |name: &Located<String>| {
        Some(Feed {
            name: name.value.clone(),
            place: place?,
            format: format?.value,
            images: images?.value,
            compression: compression?.value,
            partition: partition?.value,
            roll_bytes: roll_mb?.value << 20,
            roll_age: roll_age?.value,
            columns: columns?.value,
        })
    };
    let feed = name.as_ref().and_then(build);
    FeedDraft { name, feed }
}

fn place(
    section: &mut Section<'_>,
    name: Option<&Located<String>>,
    at: Option<&Located<Url>>,
) -> Option<FeedPlace> {
    let region = section.optional("region", values::region);
    let allow_http = section.or("allow_http", false, boolean).is_some_and(|allow| allow.value);
    let others = at.filter(|at| matches!(at.value, Url::Gcs { .. } | Url::Azure { .. }));
    let target = Target {
        whose: name.map_or("this feed".to_owned(), |name| format!("feed \"{}\"", name.value)),
        // Without one nothing could be said of the other keys.
        region: region.as_ref().map(|region| region.value.clone()).or_else(|| others.map(|_| String::new())),
        owner: None,
    };
    // The endpoint of the top level is one of tables.
    let defaults = Defaults { endpoint: None, allow_http };
    let access = access(section, "[feed.assume_role]", &defaults, &target).access;
    if let Some(at) = others
        && (region.is_some()
            || access.as_ref().is_some_and(|access| access.profile.is_some() || access.assume_role.is_some()))
    {
        let fault = Fault::new("has no use for \"region\", \"profile\" or \"assume_role\", which are AWS's");
        section.report(
            "url",
            at.place,
            fault.remedy("credentials are those of the environment or the machine"),
        );
    }
    let endpoint = access.as_ref().and_then(|access| access.endpoint.clone());
    match &at?.value {
        Url::Gcs { bucket, prefix } => {
            Some(FeedPlace::Gcs { bucket: bucket.clone(), prefix: prefix.clone(), endpoint })
        }
        Url::Azure { account, container, prefix } => Some(FeedPlace::Azure {
            account: account.clone(),
            container: container.clone(),
            prefix: prefix.clone(),
            endpoint,
        }),
        Url::Stdout => Some(FeedPlace::Stdout),
        Url::Files(directory) => Some(FeedPlace::Files(directory.clone())),
        Url::S3 { bucket, prefix } => {
            if region.is_none() {
                section.missing(
                    "region",
                    "a bucket's name does not tell its Region: write region = \"eu-west-1\"",
                );
            }
            Some(FeedPlace::S3 { bucket: bucket.clone(), prefix: prefix.clone(), access: Box::new(access?) })
        }
    }
}

pub(super) fn url(value: &DeValue<'_>) -> Result<Url, Fault> {
    let text = string(value)?;
    let wrong = |what: &str| Fault::new(format!("{what}, not {}", shown(&text)));
    if text == "stdout" {
        return Ok(Url::Stdout);
    }
    if let Some(path) = text.strip_prefix("file://") {
        let plain = path.starts_with('/') && !path.contains(['?', '#', '\0']);
        return if plain {
            Ok(Url::Files(path.into()))
        } else {
            Err(wrong("must be \"file://\" and a directory's absolute path"))
        };
    }
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let parts = |rest: &str| {
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        (name.to_owned(), prefix.trim_matches('/').to_owned())
    };
    let named = |name: &str, most: usize, more: &[u8]| {
        (3..=most).contains(&name.len()) && name.bytes().all(|b| plain(b) || more.contains(&b))
    };
    if let Some(rest) = text.strip_prefix("s3://") {
        let (bucket, prefix) = parts(rest);
        return if named(&bucket, 63, b"-.") {
            Ok(Url::S3 { bucket, prefix })
        } else {
            Err(wrong("must be \"s3://BUCKET/PREFIX\" with a bucket's name"))
        };
    }
    if let Some(rest) = text.strip_prefix("gs://") {
        let (bucket, prefix) = parts(rest);
        return if named(&bucket, 222, b"-._") {
            Ok(Url::Gcs { bucket, prefix })
        } else {
            Err(wrong("must be \"gs://BUCKET/PREFIX\" with a bucket's name"))
        };
    }
    if let Some(rest) = text.strip_prefix("az://") {
        let (account, rest) = parts(rest);
        let (container, prefix) = parts(&rest);
        return if named(&account, 24, b"") && named(&container, 63, b"-") {
            Ok(Url::Azure { account, container, prefix })
        } else {
            Err(wrong(
                "must be \"az://ACCOUNT/CONTAINER/PREFIX\" with the names of a storage account and a container",
            ))
        };
    }
    Err(wrong("must be \"stdout\", or begin with \"file://\", \"s3://\", \"gs://\" or \"az://\""))
}

fn format(value: &DeValue<'_>) -> Result<FeedFormat, Fault> {
    let all = [
        ("json", FeedFormat::Json),
        ("dynamodb-json", FeedFormat::DynamoJson),
        ("parquet", FeedFormat::Parquet),
    ];
    one_of(value, &all)
}

fn images(value: &DeValue<'_>) -> Result<Images, Fault> {
    one_of(value, &[("new", Images::New), ("both", Images::Both)])
}

fn compression(value: &DeValue<'_>) -> Result<Compression, Fault> {
    one_of(value, &[("zstd", Compression::Zstd), ("gzip", Compression::Gzip), ("none", Compression::None)])
}

fn partition(value: &DeValue<'_>) -> Result<Partition, Fault> {
    one_of(value, &[("hour", Partition::Hour), ("day", Partition::Day), ("none", Partition::None)])
}

fn one_of<T: Copy>(value: &DeValue<'_>, all: &[(&str, T)]) -> Result<T, Fault> {
    let text = string(value)?;
    all.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<String> = all.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        Fault::new(format!("must be one of {}, not {}", names.join(", "), shown(&text)))
    })
}

/// Columns by the attributes' names, in the order of the names.
fn columns(value: &DeValue<'_>) -> Result<Vec<Column>, Fault> {
    let DeValue::Table(entries) = value else {
        return Err(wrong_type("a table of types by attribute", value));
    };
    let mut columns = Vec::new();
    for (name, kind) in entries {
        let name: &str = name.get_ref();
        let kind = column_type(kind.get_ref())
            .map_err(|fault| Fault { what: format!("of {} {}", shown(name), fault.what), ..fault })?;
        if name.starts_with('_') {
            let what = format!("names {}: names with a \"_\" in front are the feed's own", shown(name));
            return Err(Fault::new(what));
        }
        columns.push(Column { name: name.to_owned(), kind });
    }
    columns.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(columns)
}

fn column_type(value: &DeValue<'_>) -> Result<ColumnType, Fault> {
    let text = string(value)?;
    ColumnType::parse(&text).ok_or_else(|| {
        Fault::new(format!(
            "must be string, int64, double, decimal(PRECISION,SCALE), boolean, binary, list or json, not {}",
            shown(&text)
        ))
    })
}

/// Takes the feeds out of the routes' destinations: for each route, by index into the feeds. What is named twice is
/// reported.
pub(super) fn of_routes(
    reader: &Reader<'_>,
    feeds: &[FeedDraft],
    routes: &mut [RouteDraft],
) -> Vec<Vec<usize>> {
    let position = |name: &str| {
        feeds.iter().position(|feed| feed.name.as_ref().is_some_and(|other| other.value == name))
    };
    let mut named = Vec::new();
    for route in routes {
        let mut own: Vec<usize> = Vec::new();
        let reversed = route.reversed_at().is_some();
        route.to.iter_mut().for_each(|to| {
            to.retain(|name| {
                let Some(feed) = position(&name.value) else { return true };
                if reversed {
                    let fault = Fault::new("a route with a way back leads to no feed");
                    reader.report(name.place, fault.remedy("give the feed a route of its own"));
                }
                if own.contains(&feed) {
                    twice(reader, name.place, &name.value);
                } else {
                    own.push(feed);
                }
                false
            });
        });
        named.push(own);
    }
    named
}

fn twice(reader: &Reader<'_>, place: Place, name: &str) {
    reader.report(place, Fault::new(format!("\"to\" names feed {} twice", shown(name))));
}

/// The feeds; `None` when a problem was reported.
pub(super) fn resolve(drafts: Vec<FeedDraft>) -> Option<Vec<Feed>> {
    drafts.into_iter().map(|draft| draft.feed).collect()
}
