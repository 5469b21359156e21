//! `shape`: trying a route's shape on samples, and accepting one for items that are there.

use super::{ConfigArg, FOUND, answer, complain, pause};
use crate::access::preflight::Preflight;
use crate::change::{Change, Event, Image, SequenceNumber};
use crate::clock::Clock;
use crate::config::{Config, Route};
use crate::item::{Item, Key};
use crate::json::{from_item, to_item};
use crate::retry::Jitter;
use crate::shape::accepted::{self, Identity};
use crate::shape::{Judged, KeyAttribute, Shape, Unshaped, identity};
use anyhow::{Context as _, bail};
use aws_sdk_dynamodb::types::AttributeValue;
use clap::Subcommand;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Arguments of `shape`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a route's shape makes of sample items: exits with 1 when one cannot be shaped
    Try(TryArgs),
    /// Accept a changed shape without copying anew: the peers' items stay as they are until they change, a feed's files
    /// for good
    Accept(AcceptArgs),
}

#[derive(Debug, clap::Args)]
struct TryArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// The route
    route: String,
    /// Items in DynamoDB JSON, one a line; or changes, {"old": ITEM, "new": ITEM}; - for stdin
    #[arg(long, value_name = "FILE")]
    items: PathBuf,
    /// A key attribute of the source, the partition key first: then its table is not asked
    #[arg(long, value_name = "NAME")]
    key: Vec<String>,
    /// Print JSON, a line for each
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct AcceptArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// The route
    route: String,
    /// One of its peers or feeds only
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Try(args) => args.run().await,
        Command::Accept(args) => args.run().await,
    }
}

/// A line of the file: the item before and after.
struct Sample {
    line: usize,
    old: Option<Item>,
    new: Option<Item>,
}

/// What becomes of a sample.
enum Outcome {
    Put(Key, Item),
    Delete(Key),
    Skip,
}

impl TryArgs {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let mut config = match self.config.load() {
            Ok(config) => config,
            Err(code) => return Ok(code),
        };
        config.access_patience = Duration::ZERO;
        pause::check(&config, &self.route, None)?;
        let Some(route) = config.route(&self.route) else { bail!("there is no route {:?}", self.route) };
        let Some(of_route) = &route.shape else {
            bail!("route {} has no shape: its peers get all items as they are", self.route);
        };
        let samples = self.samples()?;
        let keys = self.keys(&config, route, &samples).await?;
        let shape = Shape::fit(of_route, &keys).map_err(|wrong| anyhow::anyhow!("{}", wrong.join("\n")))?;
        let mut counts = [0; 4];
        for sample in &samples {
            let outcome = outcome(&shape, &keys, sample);
            counts[match &outcome {
                Ok(Outcome::Put(..)) => 0,
                Ok(Outcome::Delete(_)) => 1,
                Ok(Outcome::Skip) => 2,
                Err(_) => 3,
            }] += 1;
            answer(&if self.json {
                as_json(sample, &outcome).to_string()
            } else {
                as_text(sample, &outcome)
            });
        }
        let [put, deleted, skipped, failed] = counts;
        complain(&format!(
            "{put} put, {deleted} deleted, {skipped} skipped by the filter, {failed} cannot be shaped"
        ));
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
    }

    fn samples(&self) -> anyhow::Result<Vec<Sample>> {
        let name = self.items.display();
        let text = if self.items.as_os_str() == "-" {
            std::io::read_to_string(std::io::stdin())
        } else {
            std::fs::read_to_string(&self.items)
        };
        let text = text.with_context(|| format!("{name} cannot be read"))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines
            .map(|(index, line)| {
                let at = || format!("{name}:{}", index + 1);
                let value: Value = serde_json::from_str(line).with_context(at)?;
                sample(index + 1, &value).with_context(at)
            })
            .collect()
    }

    /// The source's key: as given, as its table has it, or, when that cannot be asked, as the shape's own keys name it.
    async fn keys(
        &self,
        config: &Config,
        route: &Route,
        samples: &[Sample],
    ) -> anyhow::Result<Vec<KeyAttribute>> {
        let kind = |name: &String| {
            let images = samples.iter().flat_map(|sample| [&sample.old, &sample.new]).flatten();
            let value = images.filter_map(|item| item.0.get(name)).next();
            let kind = match value {
                Some(AttributeValue::N(_)) => "N",
                Some(AttributeValue::B(_)) => "B",
                _ => "S",
            };
            (name.clone(), kind.to_owned())
        };
        if !self.key.is_empty() {
            return Ok(self.key.iter().map(kind).collect());
        }
        let (aws, jitter, cancel) =
            (super::aws(config), Jitter::seeded(rand::random()), CancellationToken::new());
        let preflight = Preflight::new(config, &aws, &jitter, &cancel);
        let finding = match preflight.table(route.from).await {
            Ok(found) => return Ok(found.keys),
            Err(finding) => finding,
        };
        let templates = route.shape.iter().flat_map(|shape| shape.keys.values());
        let mut names: Vec<String> = Vec::new();
        for name in templates.flat_map(|template| template.attributes()) {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        if names.is_empty() {
            bail!("the source's key is not known; give it by --key NAME, or mend this:\n{finding}");
        }
        complain(&format!("the source's table cannot be asked; its key is taken to be {}", names.join(", ")));
        Ok(names.iter().map(kind).collect())
    }
}

/// An item, or the images of a change.
fn sample(line: usize, value: &Value) -> anyhow::Result<Sample> {
    let Some(object) = value.as_object() else { bail!("is no object") };
    let image = |name: &str| match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => to_item(value).map(Some),
    };
    let both = !object.is_empty() && object.keys().all(|name| name == "old" || name == "new");
    if let (true, Ok(old), Ok(new)) = (both, image("old"), image("new")) {
        return Ok(Sample { line, old, new });
    }
    Ok(Sample { line, old: None, new: Some(to_item(value)?) })
}

fn outcome(shape: &Shape, keys: &[KeyAttribute], sample: &Sample) -> Result<Outcome, String> {
    let names: Vec<String> = keys.iter().map(|(name, _)| name.clone()).collect();
    let (Some(item), Some(sequence)) =
        (sample.new.as_ref().or(sample.old.as_ref()), SequenceNumber::parse("0"))
    else {
        return Err("there is neither an old nor a new image".to_owned());
    };
    let key = item.key(&names).map_err(|name| format!("there is no key attribute {name}"))?;
    let image = |item: &Option<Item>| item.as_ref().map(|item| Image { content: item.into(), stamp: None });
    let event = match (&sample.old, &sample.new) {
        (Some(_), Some(_)) => Event::Modify,
        (_, None) => Event::Remove,
        (None, Some(_)) => Event::Insert,
    };
    let change = Change {
        sequence,
        created: Clock::system().now(),
        key,
        event,
        old: image(&sample.old),
        new: image(&sample.new),
        by_ttl: false,
        size: 0,
    };
    let shaped = || -> Result<Outcome, Unshaped> {
        Ok(match (shape.judge(&change)?, &change.new) {
            (Judged::Skip, _) => Outcome::Skip,
            (Judged::Put { .. }, Some(new)) => {
                let (key, item) = shape.item(&new.content.item())?;
                Outcome::Put(key, item)
            }
            (Judged::Delete | Judged::Put { .. }, _) => Outcome::Delete(shape.key(&change.key)?),
        })
    };
    shaped().map_err(|why| why.to_string())
}

const FILTERED: &str = "the filter does not let it through";

fn as_text(sample: &Sample, outcome: &Result<Outcome, String>) -> String {
    let mut lines = Vec::new();
    let mut show = |what: &str, item: &Item| lines.push(format!("  {what:<7}{}", from_item(item)));
    if let Some(old) = &sample.old {
        show("old", old);
    }
    if let Some(new) = &sample.new {
        show("before", new);
    }
    let what = match outcome {
        Ok(Outcome::Put(key, item)) => {
            show("key", key.attributes());
            show("after", item);
            "put".to_owned()
        }
        Ok(Outcome::Delete(key)) => {
            show("key", key.attributes());
            "deleted at the peers".to_owned()
        }
        Ok(Outcome::Skip) => format!("skipped: {FILTERED}"),
        Err(why) => format!("CANNOT BE SHAPED: {why}"),
    };
    format!("line {}: {what}\n{}", sample.line, lines.join("\n"))
}

fn as_json(sample: &Sample, outcome: &Result<Outcome, String>) -> Value {
    let image = |item: &Option<Item>| item.as_ref().map(from_item);
    let mut line = json!({ "line": sample.line, "old": image(&sample.old), "new": image(&sample.new) });
    let said = match outcome {
        Ok(Outcome::Put(key, item)) => {
            json!({ "action": "put", "key": from_item(key.attributes()), "after": from_item(item) })
        }
        Ok(Outcome::Delete(key)) => json!({ "action": "delete", "key": from_item(key.attributes()) }),
        Ok(Outcome::Skip) => json!({ "action": "skip", "why": FILTERED }),
        Err(why) => json!({ "action": "error", "why": why }),
    };
    if let (Some(line), Value::Object(said)) = (line.as_object_mut(), said) {
        line.extend(said);
    }
    line
}

impl AcceptArgs {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let config = match self.config.load() {
            Ok(config) => config,
            Err(code) => return Ok(code),
        };
        pause::check(&config, &self.route, self.peer.as_deref())?;
        let Some(route) = config.route(&self.route).filter(|route| route.group.is_none()) else {
            bail!("{} is of a group, which has no shape", self.route);
        };
        let accepted = match &route.shape {
            Some(shape) => identity(shape).map_err(anyhow::Error::msg)?,
            None => Identity::none(),
        };
        let state = super::state_table(&config).await?;
        let by = pause::whoami();
        for peer in
            config.destinations(route).filter(|peer| self.peer.as_deref().is_none_or(|only| only == *peer))
        {
            let accept = accepted::accept(&state, Clock::system(), &route.name, peer, &accepted, &by);
            accept.await.context("the shape was not accepted")?;
            answer(&format!("route {}, peer {peer}: shape {accepted} is accepted", route.name));
        }
        answer(
            "workers see it within some seconds. Items that are there stay as they are until they change at the source; \
             those that the shape lets out or gives another key stay for good, also when they are deleted at the source, \
             until you delete them: shardwalker verify ROUTE --repair. The files of a feed stay as they are",
        );
        Ok(ExitCode::SUCCESS)
    }
}
