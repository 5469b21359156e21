//! `cutover`: moving the writers of a route with a way back, step by step, and back again.

use super::{ConfigArg, FOUND, answer, complain};
use crate::cutover::{CutoverError, Goal, Report, Request, cutover};
use crate::item::Item;
use crate::json;
use crate::shutdown;
use crate::task::Tasks;
use std::process::ExitCode;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Arguments of `cutover`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// A route with `reversible = true`
    route: String,
    /// Move writers back to the source; or call off a move that is under way
    #[arg(long, conflicts_with_all = ["finish", "status"])]
    undo: bool,
    /// Give the way back up: nothing is copied on this route any more
    #[arg(long, requires = "yes", conflicts_with = "status")]
    finish: bool,
    /// Yes: what --finish ends cannot be begun again
    #[arg(long)]
    yes: bool,
    /// Only show where it stands
    #[arg(long)]
    status: bool,
    /// Attach the statement that stops writers to the table's resource policy, and take it off again in the end
    #[arg(long, conflicts_with = "writers_stopped")]
    attach_deny: bool,
    /// Writers are stopped: go on
    #[arg(long)]
    writers_stopped: bool,
    /// Who is not denied: the workers' identity and whoever runs this command; may be repeated [default: the role that
    /// the member is reached through]
    #[arg(long = "principal", value_name = "ARN", value_parser = super::policy::principal)]
    principals: Vec<String>,
    /// How long each wait may last
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "10min")]
    within: Duration,
    /// While writers are stopped compare a part of the items only, chosen at random: percent
    #[arg(long, value_name = "PERCENT", value_parser = super::verify::percent)]
    sample: Option<f64>,
    /// Read units a second at each member while they are compared
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    read_units: Option<u32>,
    /// The key of the final marker, as DynamoDB JSON, when the reserved one does not fit
    #[arg(long, value_name = "JSON", value_parser = key)]
    marker_key: Option<Item>,
    /// Print JSON at the end
    #[arg(long)]
    json: bool,
}

fn key(text: &str) -> Result<Item, String> {
    let value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    json::to_item(&value).map_err(|error| error.to_string())
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let goal = match (args.undo, args.finish, args.status) {
        (true, ..) => Goal::Source,
        (_, true, _) => Goal::Finish,
        (.., true) => Goal::Show,
        _ => Goal::Peer,
    };
    let request = Request {
        route: args.route,
        goal,
        attach_deny: args.attach_deny,
        writers_stopped: args.writers_stopped,
        principals: args.principals,
        within: args.within,
        sample: args.sample,
        read_units: args.read_units,
        marker_key: args.marker_key,
    };
    let cancel = CancellationToken::new();
    let mut signals = Tasks::new();
    signals.spawn(shutdown::on_signals(cancel.clone())?);
    let json = args.json;
    let mut tell = |line: &str| if json { complain(line) } else { answer(line) };
    let options = super::options(false);
    let report = match Box::pin(cutover(config, request, options, cancel, &mut tell)).await {
        Ok(report) => report,
        Err(CutoverError::Access(findings)) => {
            complain(&findings.to_string());
            return Ok(ExitCode::from(FOUND));
        }
        Err(error) => return Err(error.into()),
    };
    if json {
        answer(&serde_json::to_string_pretty(&report)?);
    } else {
        print(&report, goal);
    }
    Ok(if report.refused.is_none() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

fn print(report: &Report, goal: Goal) {
    let Report { route, turn, step, since, writers_at, refused, .. } = report;
    if let Some(refusal) = refused {
        complain(&format!("{}\n  {}", refusal.what, refusal.remedy));
    }
    if goal == Goal::Show || refused.is_some() {
        let since = if since.is_empty() { String::new() } else { format!(" since {since}") };
        answer(&format!("route {route}: {}{since}, turn {turn}, writers at {writers_at}", step.name()));
    }
}
