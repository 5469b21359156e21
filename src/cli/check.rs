//! `check`: the config, and what must hold before it may run.

use super::policy::FeaturesArg;
use super::table::table;
use super::{ConfigArg, FOUND, answer, aws};
use crate::access::feeds;
use crate::access::finding::{Cell, Finding, Verdict};
use crate::access::preflight::{Preflight, Report};
use crate::clock::Clock;
use crate::config::Config;
use crate::control::{Controls, Pause, Scope};
use crate::retry::Jitter;
use crate::shape::accepted;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Check the file only; call nobody
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    features: FeaturesArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    if args.offline {
        let (members, routes) = (config.members.len(), config.routes.len());
        answer(&if args.json {
            json!({ "ok": true, "members": members, "routes": routes }).to_string()
        } else {
            format!("{}: {members} members, {routes} routes, no problems", args.config.config.display())
        });
        return Ok(ExitCode::SUCCESS);
    }
    // Whoever asks wants to know how it is now.
    config.access_patience = Duration::ZERO;
    let aws = aws(&config);
    let (jitter, cancel) = (Jitter::seeded(rand::random()), CancellationToken::new());
    let preflight = Preflight::new(&config, &aws, &jitter, &cancel);
    let mut report = Box::pin(preflight.report(&args.features.of(), Clock::system())).await;
    let id = format!("{:016x}", rand::random::<u64>());
    Box::pin(feeds::check(&config, &aws, &id, &mut report)).await;
    report.findings.extend(shapes(&config).await);
    answer(&if args.json { format!("{:#}", as_json(&report)) } else { as_text(&config, &report) });
    Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// The peers whose items have another shape than their route's. Where the state table cannot be read, that is told already.
async fn shapes(config: &Config) -> Vec<Finding> {
    let Ok(state) = super::state_table(config).await else { return Vec::new() };
    let Ok(rows) = Controls::new(state, Clock::system()).rows().await else { return Vec::new() };
    let changed = accepted::changed(&rows, &accepted::expected(config, |_| None));
    let finding = |(scope, pause): (Scope, Pause)| {
        let peer = scope.peer.clone().unwrap_or_default();
        Finding::new(&peer, None, format!("{scope}: nothing is written"), pause.why)
    };
    changed.into_iter().map(finding).collect()
}

fn as_text(config: &Config, report: &Report) -> String {
    let row = |cell: &Cell| {
        let why = match &cell.verdict {
            // What failed is among the findings in full.
            Verdict::Unknown(why) if !why.contains('\n') && why.len() < 80 => why.clone(),
            _ => String::new(),
        };
        [cell.member.clone(), cell.action.clone(), cell.verdict.name().to_owned(), why]
    };
    let rows: Vec<[String; 4]> = report.cells.iter().map(row).collect();
    let mut parts = vec![table(["MEMBER", "PERMISSION", "", ""], &rows)];
    if !report.findings.is_empty() {
        parts.push(report.findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n"));
    }
    let mut lines = Vec::new();
    for (member, found) in config.members.iter().zip(&report.found) {
        if found.is_some() {
            lines.push(format!("member {}: ok ({})", member.name, member.arn));
        }
    }
    lines.extend(report.notes.iter().cloned());
    parts.push(lines.join("\n"));
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

fn as_json(report: &Report) -> Value {
    let cell = |cell: &Cell| {
        let mut value =
            json!({ "member": cell.member, "action": cell.action, "verdict": cell.verdict.name() });
        if let Verdict::Unknown(why) = &cell.verdict {
            value["why"] = json!(why);
        }
        value
    };
    let finding = |finding: &Finding| {
        let add: Vec<Value> =
            finding.add.iter().map(|add| json!({ "where": add.place, "statement": add.statement })).collect();
        json!({
            "member": finding.member, "call": finding.call, "what": finding.what,
            "remedy": finding.remedy, "add": add,
        })
    };
    json!({
        "ok": report.findings.is_empty(),
        "permissions": report.cells.iter().map(cell).collect::<Vec<_>>(),
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "notes": report.notes,
    })
}
