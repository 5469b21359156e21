//! `verify`: whether members hold the same, and what does not.

use super::table::table;
use super::{ConfigArg, FOUND, answer, complain};
use crate::config::Config;
use crate::shutdown;
use crate::task::Tasks;
use crate::verify::judge::Kind;
use crate::verify::record::{Record, Tally};
use crate::verify::{Prefer, Request, Verify, VerifyError, schema};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// A one-way route, or a group, all of whose members are compared
    of: String,
    /// One peer of a one-way route only
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// Compare the tables' definitions instead of their items: keys, indexes, stream, time to live, class, capacity
    #[arg(long, conflicts_with_all = ["repair", "output", "sample", "stop_after"])]
    schema: bool,
    /// Write what makes members agree, where it is known who is right
    #[arg(long)]
    repair: bool,
    /// The member that is right where that is not known: the source of a one-way route, or any of a group
    #[arg(long, value_name = "MEMBER", requires = "repair")]
    prefer: Option<String>,
    /// In a group: the item with the highest value of this attribute is right where that is not known
    #[arg(long, value_name = "ATTRIBUTE", requires = "repair", conflicts_with = "prefer")]
    prefer_newest: Option<String>,
    /// The file that takes the differences, as JSON lines; the same command goes on where it was broken off
    ///
    /// [default: stdout, and nothing can be gone on with]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A difference that has stayed for so long counts, once the workers are as far as it
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    settle: Duration,
    /// Compare a part of the items only, chosen at random: percent
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    sample: Option<f64>,
    /// Parts in which the members are read [default: by their size, 4 to 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    segments: Option<u32>,
    /// Parts that are read at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Read units a second at each member
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    read_units: Option<u32>,
    /// Read strongly consistent, for twice the cost; what differs is always looked up so
    #[arg(long)]
    consistent: bool,
    /// End after so many differences
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    stop_after: Option<u64>,
    /// A repair deletes no more items than this
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_deletes: u64,
    /// Print JSON at the end
    #[arg(long)]
    json: bool,
}

pub(super) fn percent(text: &str) -> Result<f64, String> {
    let percent = text.trim_end_matches('%').parse::<f64>().map_err(|error| error.to_string())?;
    if percent > 0.0 && percent <= 100.0 {
        Ok(percent)
    } else {
        Err("more than 0 and at most 100".to_owned())
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let request = Request {
        of: args.of,
        peer: args.peer,
        sample: args.sample,
        segments: args.segments,
        parallel: usize::from(args.parallel),
        read_units: args.read_units,
        consistent: args.consistent,
        settle: args.settle,
        repair: args.repair,
        prefer: args.prefer.map(Prefer::Member).or(args.prefer_newest.map(Prefer::Newest)),
        stop_after: args.stop_after,
        max_deletes: args.max_deletes,
    };
    if args.schema {
        return definitions(config, &request, args.json).await;
    }
    let record = match &args.output {
        Some(path) => Record::open(path)?,
        None => Record::stdout(),
    };
    let drain = CancellationToken::new();
    let mut signals = Tasks::new();
    signals.spawn(shutdown::on_signals(drain.clone())?);
    let verify = match Box::pin(Verify::build(config, request, super::options(false), record, drain)).await {
        Ok(verify) => verify,
        Err(VerifyError::Access(findings)) => {
            complain(&findings.to_string());
            return Ok(ExitCode::from(FOUND));
        }
        Err(error) => return Err(error.into()),
    };
    let tally = match Box::pin(verify.run()).await {
        Ok(tally) => tally,
        Err(stopped @ (VerifyError::Enough(_) | VerifyError::TooManyDeletes(_))) => {
            complain(&stopped.to_string());
            return Ok(ExitCode::from(FOUND));
        }
        Err(error) => return Err(error.into()),
    };
    let said = match (args.json, &args.output) {
        (true, _) => serde_json::to_string_pretty(&tally)?,
        (false, _) => summary(&tally),
    };
    // The answer is the differences themselves, where they go to stdout.
    if args.output.is_some() {
        answer(&said)
    } else {
        complain(&said)
    }
    Ok(if tally.remaining() == 0 { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// What differs in the tables' definitions.
async fn definitions(config: Config, request: &Request, json: bool) -> anyhow::Result<ExitCode> {
    let differing = Box::pin(schema::compare(config, request, super::options(false))).await?;
    if json {
        answer(&serde_json::to_string_pretty(&differing)?);
    } else if differing.is_empty() {
        answer("the tables are defined alike");
    }
    let rows = differing.iter().flat_map(|found| {
        let row = |(member, value): &(String, String)| [found.setting.clone(), member.clone(), value.clone()];
        found.members.iter().map(row)
    });
    let rows: Vec<[String; 3]> = rows.collect();
    if !json && !rows.is_empty() {
        answer(&table(["SETTING", "MEMBER", "IS"], &rows));
    }
    Ok(if differing.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

fn summary(tally: &Tally) -> String {
    let Tally { compared, equal, in_flight, changing, repaired, .. } = tally;
    let mut said =
        vec![format!("{compared} keys compared: {equal} equal, {in_flight} equal when looked up again")];
    if *changing > 0 {
        said.push(format!("{changing} changed all the time and were not compared"));
    }
    let kinds = Kind::ALL.iter().filter(|kind| tally.of(**kind) > 0);
    let kinds: Vec<String> = kinds.map(|kind| format!("{} {}", tally.of(*kind), kind.name())).collect();
    said.push(match kinds.as_slice() {
        [] => "no differences".to_owned(),
        kinds => {
            format!("differences: {}; {repaired} repaired, {} remain", kinds.join(", "), tally.remaining())
        }
    });
    said.join("\n")
}
