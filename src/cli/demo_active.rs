//! `demo --active-active`: the figures go to stdout, a line every second to stderr.

use super::demo::{painted, thousands};
use super::table::table;
use super::{FOUND, answer, complain};
use crate::demo::Options;
use crate::demo::active::{self, Figures, Phase, Progress};
use anyhow::Context;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

pub(super) async fn run(options: Options, json: bool, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    let seed = options.seed;
    let mut shown = None;
    let mut show = |progress: &Progress| {
        let now = (progress.phase, progress.elapsed.as_secs());
        if shown.replace(now) != Some(now) {
            complain(&line(progress));
        }
    };
    let figures = Box::pin(active::run(options, stop, &mut show)).await;
    let figures = figures.with_context(|| format!("demo with seed {seed}"))?;
    if json {
        answer(&serde_json::to_string(&figures)?);
    } else {
        answer(&summary(&figures));
        answer(&painted(&verdict(&figures), figures.agree && figures.quiet));
    }
    Ok(if figures.agree && figures.quiet { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

fn line(progress: &Progress) -> String {
    let phase = match progress.phase {
        Phase::Together => "writing",
        Phase::Apart => "one is cut off",
        Phase::Settling => "settling",
    };
    let member =
        |(name, writes, differ): &(String, u64, usize)| format!("{name} {writes} writes, {differ} differ");
    let members: Vec<String> = progress.members.iter().map(member).collect();
    let (seconds, conflicts) = (progress.elapsed.as_secs(), progress.conflicts);
    format!("{seconds:>4} s  {phase:<14} {}; {conflicts} conflicts", members.join("; "))
}

fn summary(figures: &Figures) -> String {
    let rows: Vec<[String; 6]> = figures
        .members
        .iter()
        .map(|member| {
            let place = &member.place;
            [
                place.name.clone(),
                place.account.clone(),
                place.region.clone(),
                thousands(member.writes),
                thousands(place.items as u64),
                thousands(member.different.len() as u64),
            ]
        })
        .collect();
    let mut text = table(["MEMBER", "ACCOUNT", "REGION", "WRITES", "ITEMS", "DIFFERENT"], &rows);
    if let Some(cut) = &figures.cut {
        text += &format!(
            "\n{} was cut off for {} s and wrote on; {} keys differed when it came back.",
            cut.member, cut.seconds, cut.differed
        );
    }
    text + &format!(
        "\n{} conflicts, of writes that had not seen each other; {} are kept in the journal. All was equal and quiet {} s after \
         the last write.",
        figures.conflicts, figures.kept, figures.settle_seconds
    )
}

fn verdict(figures: &Figures) -> String {
    let keys = || figures.members.iter().flat_map(|member| &member.different).cloned().collect::<Vec<_>>();
    match (figures.agree, figures.quiet) {
        (true, true) => format!("All {} members hold the same items.", figures.members.len()),
        (true, false) => format!("The members are equal, but something writes on. Seed {}.", figures.seed),
        (false, _) => format!("THE MEMBERS DIFFER: {}. Seed {}.", keys().join(", "), figures.seed),
    }
}
