//! `tail`: a member's changes on the standard output, as they happen.

use super::{ConfigArg, aws, complain};
use crate::access::preflight::Preflight;
use crate::change::Change;
use crate::clock::Clock;
use crate::config::Images;
use crate::feed::Record;
use crate::feed::lines;
use crate::feed::output::{self, Output};
use crate::feed::tail::{Seen, TailParts, follow};
use crate::item::Item;
use crate::json::{Spelling, write_fields};
use crate::limit::Rate;
use crate::retry::Jitter;
use crate::shape::expression::{Expression, Fault};
use crate::shutdown;
use crate::starts::whole_seconds;
use crate::stream::list::Lister;
use crate::task::Tasks;
use crate::view::Fields;
use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use object_store::PutPayload;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Arguments of `tail`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// The member whose changes are shown
    member: String,
    /// Where to begin: so long ago (1h), at the oldest record (trim-horizon), or now (latest)
    #[arg(long, default_value = "latest", value_parser = from, value_name = "WHEN")]
    from: From,
    /// Only changes of items for which this is true before or after them, such as 'item.state == "WA"' (CEL, as in a
    /// route's shape)
    #[arg(long, value_parser = filter, value_name = "EXPRESSION")]
    filter: Option<Arc<Expression>>,
    /// How a change is shown
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Clone, Copy)]
enum From {
    Ago(Duration),
    TrimHorizon,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line of JSON, as a feed has it, with items as plain JSON
    #[default]
    Json,
    /// A line of JSON with items as DynamoDB JSON, exactly
    DynamodbJson,
    /// A line for people: time, event, key and the new item
    Plain,
}

fn from(text: &str) -> Result<From, String> {
    match text {
        "latest" => Ok(From::Ago(Duration::ZERO)),
        "trim-horizon" => Ok(From::TrimHorizon),
        text => humantime::parse_duration(text)
            .map(From::Ago)
            .map_err(|_| "it must be a duration such as 1h, trim-horizon or latest".to_owned()),
    }
}

/// Compiles a filter; what is wrong is shown below its place in the text.
fn filter(text: &str) -> Result<Arc<Expression>, String> {
    let pointed = |fault: Fault| {
        let before = text.get(..fault.at).unwrap_or(text);
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        let line = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        let column = before.get(start..).unwrap_or_default().chars().count();
        format!("{}\n  {line}\n  {:column$}^", fault.what, "")
    };
    Expression::compile(text).map(Arc::new).map_err(|faults| {
        let faults: Vec<String> = faults.into_iter().map(pointed).collect();
        faults.join("\n")
    })
}

/// Whether a filter holds for a change's item before or after it; where the stream has neither, for its key.
///
/// # Errors
/// Why it holds for neither of them, when that is because it cannot be said.
fn shows(filter: &Expression, change: &Change) -> Result<bool, String> {
    let images = change.new.iter().chain(&change.old).map(|image| image.content.item());
    let mut items: Vec<Item> = images.collect();
    if items.is_empty() {
        items.push(change.key.attributes().clone());
    }
    let mut unknown = None;
    for item in &items {
        match filter.holds(item) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(why) => unknown = Some(why),
        }
    }
    unknown.map_or(Ok(false), Err)
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let Some(index) = config.members.iter().position(|member| member.name == args.member) else {
        let names: Vec<&str> = config.members.iter().map(|member| member.name.as_str()).collect();
        bail!("there is no member {:?}; the members are {}", args.member, names.join(", "));
    };
    let (aws, clock, stop) = (aws(&config), Clock::system(), CancellationToken::new());
    let mut signals = Tasks::new();
    signals.spawn(shutdown::on_signals(stop.clone())?);
    let nobody_reads = stop.clone();
    signals.spawn(async move {
        output::hung_up().await;
        nobody_reads.cancel();
    });
    let jitter = Jitter::seeded(rand::random());
    let preflight = Preflight::new(&config, &aws, &jitter, &stop);
    let found = Box::pin(preflight.table(index)).await.map_err(|finding| anyhow!("{finding}"))?;
    let stream = found.stream.context("the member's stream is off, and never was on")?;
    let member = &config.members[index];
    let stamp = config.routes.iter().find(|route| route.from == index || route.to.contains(&index));
    let stamp: Arc<str> = stamp.map_or("shardwalker", |route| &route.stamp).into();
    let streams = aws.clients(&member.access).await.streams;
    let stream: Arc<str> = stream.arn.as_str().into();
    let budget = Arc::new(Rate::new(f64::from(config.read.describe_rate)));
    let parts = TailParts {
        lister: Lister::new(streams.clone(), Arc::clone(&stream), budget),
        streams,
        stream,
        stamp,
        from: match args.from {
            From::TrimHorizon => None,
            // Records have whole seconds.
            From::Ago(ago) => clock.now().checked_sub(ago).map(whole_seconds),
        },
        read: config.read.clone(),
        clock,
        jitter: jitter.clone(),
        stop,
    };
    let (out, mut failed, mut said) = (Output::stdout(), None, BTreeSet::new());
    let take = async |seen: Seen| match seen {
        Seen::Note(note) => {
            complain(&note);
            true
        }
        Seen::Change(shard, change) => {
            let wanted = args.filter.as_deref().map_or(Ok(true), |filter| shows(filter, &change));
            if let Err(why) = &wanted
                && said.insert(why.clone())
            {
                complain(&format!("{why}; such changes are left out, and this is said once"));
            }
            if wanted != Ok(true) {
                return true;
            }
            let event = lines::event(change.event);
            let record =
                Record { change: &change, event, version: None, member: &args.member, shard: &shard };
            match out.write(PutPayload::from(line(&record, args.format))).await {
                Ok(()) => true,
                // Nobody reads any more.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => false,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        }
    };
    Box::pin(follow(parts, take)).await?;
    match failed {
        Some(error) => Err(error).context("stdout cannot be written"),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn line(record: &Record<'_>, format: Format) -> Vec<u8> {
    let mut out = Vec::new();
    match format {
        Format::Json => lines::line(record, Spelling::Plain, Images::Both, &mut out),
        Format::DynamodbJson => lines::line(record, Spelling::Typed, Images::Both, &mut out),
        Format::Plain => {
            let created = humantime::format_rfc3339_seconds(record.change.created);
            out.extend_from_slice(format!("{created} {} ", record.event).as_bytes());
            write_fields(&Fields::of(&record.change.key.attributes().0), Spelling::Plain, &mut out);
            if let Some(new) = &record.change.new {
                out.push(b' ');
                write_fields(&new.content.fields(), Spelling::Plain, &mut out);
            }
            out.push(b'\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Event, Image, SequenceNumber};
    use crate::json::to_item;
    use serde_json::{Value, json};
    use std::time::UNIX_EPOCH;

    #[test]
    fn what_is_wrong_with_a_filter_is_shown_below_its_place() {
        let why = filter("item.a == 1 && 'x'").unwrap_err();
        assert_eq!(
            why,
            "is a string, where true or false is needed\n  item.a == 1 && 'x'\n                 ^"
        );
        let why = filter("item.a == 1\n&& lower == 2").unwrap_err();
        assert!(why.ends_with("\n  && lower == 2\n     ^"), "{why}");
    }

    #[test]
    fn a_change_is_shown_when_its_item_was_or_is_in_the_filter() {
        let image = |state: Option<&str>| {
            let item = state.map(|state| json!({ "id": { "S": "k" }, "state": { "S": state } }));
            item.map(|item: Value| Image { content: to_item(&item).unwrap().into(), stamp: None })
        };
        let shown = |text: &str, old: Option<&str>, new: Option<&str>| {
            let change = Change {
                sequence: SequenceNumber::parse("1").unwrap(),
                created: UNIX_EPOCH,
                key: crate::item::Key::new(to_item(&json!({ "id": { "S": "k" } })).unwrap()),
                event: Event::Modify,
                old: image(old),
                new: image(new),
                by_ttl: false,
                size: 0,
            };
            shows(&filter(text).unwrap(), &change)
        };
        let state = "item.state == 'WA'";
        for (old, new, expected) in [
            (Some("WA"), Some("OR"), true),
            (Some("OR"), Some("WA"), true),
            (None, Some("WA"), true),
            (Some("OR"), Some("CA"), false),
        ] {
            assert_eq!(shown(state, old, new), Ok(expected), "{old:?} {new:?}");
        }
        assert!(shown(state, None, None).is_err_and(|why| why.contains("no attribute state")));
        assert_eq!(shown("item.id == 'k'", None, None), Ok(true), "there is always a key");
    }
}
