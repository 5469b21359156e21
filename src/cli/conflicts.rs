//! `conflicts`: the journal of writes that lost to another member's.

use super::table::table;
use super::{ConfigArg, FOUND, answer, complain};
use crate::clock::Clock;
use crate::conflicts::{self, Kept};
use anyhow::{Context as _, bail};
use serde_json::Value;
use std::process::ExitCode;

/// Arguments of `conflicts`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// What to do with the conflicts that match
    #[arg(value_enum)]
    action: Action,
    /// Conflicts of this group only
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Conflicts of this key only: the digest that `list` shows
    #[arg(long, value_name = "DIGEST")]
    key: Option<String>,
    /// Conflicts in which a write of this member lost
    #[arg(long, value_name = "NAME")]
    loser: Option<String>,
    /// The newest so many
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Action {
    /// List conflicts; no values of items
    List,
    /// Print conflicts whole, with what both members had written
    Show,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let names: Vec<&str> = config.groups.iter().map(|group| group.name.as_str()).collect();
    if let Some(group) = args.group.as_deref().filter(|group| !names.contains(group)) {
        bail!("there is no group {group:?}; the groups are {}", names.join(", "));
    }
    let state = super::state_table(&config).await?;
    let now = Clock::system().since_epoch();
    let mut found = Vec::new();
    for group in names.into_iter().filter(|name| args.group.as_deref().is_none_or(|group| group == *name)) {
        let in_file =
            config.groups.iter().find(|of| of.name == group).and_then(|of| of.conflicts_file.as_ref());
        if let Some(file) = in_file {
            complain(&format!("the conflicts of group {group} are in {} of each worker", file.display()));
        }
        let matches = |kept: &Kept| {
            args.key.as_ref().is_none_or(|key| *key == kept.key)
                && args.loser.as_ref().is_none_or(|loser| *loser == kept.loser.member)
        };
        let whole = args.action == Action::Show;
        let kept = conflicts::list(&state, group, now, matches, args.limit, whole).await;
        let kept = kept.context("the conflicts could not be read")?;
        found.extend(kept.into_iter().map(|kept| (group, kept)));
    }
    if args.action == Action::Show || args.json {
        let whole = args.action == Action::Show;
        let all: Vec<Value> = found.iter().map(|(group, kept)| kept.document(group, whole)).collect();
        answer(&serde_json::to_string_pretty(&all)?);
    } else if found.is_empty() {
        complain("no conflicts are kept in the state table");
    } else {
        let header = ["GROUP", "KEY", "LOSER", "WINNER", "HOW", "AT", "FOUND", "LOST VERSION"];
        let row = |(group, kept): &(&str, Kept)| {
            let Kept { key, loser, winner, how, at, found, .. } = kept;
            [*group, key, &loser.member, &winner.member, how, at, found, &loser.version].map(str::to_owned)
        };
        let rows: Vec<_> = found.iter().map(row).collect();
        answer(&table(header, &rows));
    }
    Ok(if found.is_empty() && args.action == Action::Show {
        ExitCode::from(FOUND)
    } else {
        ExitCode::SUCCESS
    })
}
