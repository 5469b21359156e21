//! `pause` and `resume`: the operator's controls.

use super::{ConfigArg, answer};
use crate::clock::Clock;
use crate::config::Config;
use crate::control::{Controls, Scope, pauses};
use anyhow::{Context as _, bail};
use std::process::ExitCode;

/// Arguments of `pause`.
#[derive(Debug, clap::Args)]
pub(super) struct PauseArgs {
    #[command(flatten)]
    of: Of,
    /// Why: shown by `status`, by /healthz and in the board
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
}

/// Arguments of `resume`.
#[derive(Debug, clap::Args)]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    of: Of,
}

#[derive(Debug, clap::Args)]
struct Of {
    #[command(flatten)]
    config: ConfigArg,
    /// The route
    route: String,
    /// One of its peers only
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
}

/// Who it is about, and the controls; or the exit code of a bad config.
type Found = Result<(Scope, Controls), ExitCode>;

impl Of {
    async fn find(self) -> anyhow::Result<Found> {
        let config = match self.config.load() {
            Ok(config) => config,
            Err(code) => return Ok(Err(code)),
        };
        check(&config, &self.route, self.peer.as_deref())?;
        let state = super::state_table(&config).await?;
        let scope = Scope { route: self.route, peer: self.peer };
        Ok(Ok((scope, Controls::new(state, Clock::system()))))
    }
}

/// The route must exist, and have the peer.
pub(super) fn check(config: &Config, route: &str, peer: Option<&str>) -> anyhow::Result<()> {
    let Some(found) = config.route(route) else {
        let names: Vec<&str> = config.routes.iter().map(|route| route.name.as_str()).collect();
        bail!("there is no route {route:?}; the routes are {}", names.join(", "));
    };
    let peers: Vec<&str> = found.to.iter().map(|index| config.members[*index].name.as_str()).collect();
    if let Some(peer) = peer.filter(|peer| !peers.contains(peer)) {
        bail!("route {route} has no peer {peer:?}; its peers are {}", peers.join(", "));
    }
    Ok(())
}

pub(super) async fn pause(args: PauseArgs) -> anyhow::Result<ExitCode> {
    let (scope, controls) = match args.of.find().await? {
        Ok(found) => found,
        Err(code) => return Ok(code),
    };
    let pause = controls.pause(&scope, &args.why, &whoami()).await.context("the pause was not written")?;
    answer(&format!("{scope}: {pause}"));
    answer(
        "workers see it within some seconds; what is under way is finished, and nothing is lost for 24 hours",
    );
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn resume(args: ResumeArgs) -> anyhow::Result<ExitCode> {
    let (scope, controls) = match args.of.find().await? {
        Ok(found) => found,
        Err(code) => return Ok(code),
    };
    let before = pauses(&controls.rows().await.context("the state table could not be read")?);
    controls.resume(&scope).await.context("the pause was not taken away")?;
    match before.get(&scope) {
        Some(pause) => answer(&format!("{scope}: goes on (was {pause})")),
        None => answer(&format!("{scope}: was not paused")),
    }
    // What else keeps it, or a part of it, from going on.
    for (other, pause) in before.iter().filter(|(other, _)| **other != scope && other.route == scope.route) {
        let covers = other.peer.is_none() || scope.peer.is_none();
        if covers {
            let flag = other.peer.as_ref().map(|peer| format!(" --peer {peer}")).unwrap_or_default();
            answer(&format!("{other}: still {pause}; to go on: shardwalker resume {}{flag}", other.route));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The user and the host, for the record.
pub(super) fn whoami() -> String {
    let user =
        std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "someone".into());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => user,
        host => format!("{user}@{host}"),
    }
}
