//! `pause` and `resume`: the operator's controls.

use super::{ConfigArg, answer};
use crate::clock::Clock;
use crate::config::Config;
use crate::control::{Controls, Pause, Scope, pauses};
use crate::cutover::standing::{CUTOVER, FOR_GOOD};
use crate::shape::accepted::{self, Expected};
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
    /// The route; or a group, all of whose routes are meant
    route: String,
    /// One of its peers only
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
}

/// What it is about, the controls, and the shapes that peers should have; or the exit code of a bad config.
type Found = Result<(Vec<Scope>, Controls, Expected), ExitCode>;

impl Of {
    async fn find(self) -> anyhow::Result<Found> {
        let config = match self.config.load() {
            Ok(config) => config,
            Err(code) => return Ok(Err(code)),
        };
        let group = config.groups.iter().position(|group| group.name == self.route);
        let scope = |route: String| Scope { route, peer: self.peer.clone() };
        let scopes: Vec<Scope> = if group.is_some() {
            let named = |index: &usize| self.peer.as_deref() == Some(config.members[*index].name.as_str());
            let leads = |to: &[usize]| self.peer.is_none() || to.iter().any(named);
            let routes = config.routes.iter().filter(|route| route.group == group && leads(&route.to));
            routes.map(|route| scope(route.name.clone())).collect()
        } else {
            check(&config, &self.route, self.peer.as_deref())?;
            vec![scope(self.route.clone())]
        };
        if scopes.is_empty() {
            bail!("group {} has no member {:?}", self.route, self.peer.unwrap_or_default());
        }
        let state = super::state_table(&config).await?;
        let expected = accepted::expected(&config, |_| None);
        Ok(Ok((scopes, Controls::new(state, Clock::system()), expected)))
    }
}

/// The route must exist, and have the peer.
pub(super) fn check(config: &Config, route: &str, peer: Option<&str>) -> anyhow::Result<()> {
    let Some(found) = config.route(route) else {
        let names: Vec<&str> = config.routes.iter().map(|route| route.name.as_str()).collect();
        bail!("there is no route {route:?}; the routes are {}", names.join(", "));
    };
    let peers: Vec<&str> = config.destinations(found).collect();
    if let Some(peer) = peer.filter(|peer| !peers.contains(peer)) {
        bail!("route {route} has no peer {peer:?}; its peers are {}", peers.join(", "));
    }
    Ok(())
}

pub(super) async fn pause(args: PauseArgs) -> anyhow::Result<ExitCode> {
    let (scopes, controls, _) = match args.of.find().await? {
        Ok(found) => found,
        Err(code) => return Ok(code),
    };
    for scope in &scopes {
        let pause = controls.pause(scope, &args.why, &whoami()).await.context("the pause was not written")?;
        answer(&format!("{scope}: {pause}"));
    }
    answer(
        "workers see it within some seconds; what is under way is finished, and nothing is lost for 24 hours",
    );
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn resume(args: ResumeArgs) -> anyhow::Result<ExitCode> {
    let (scopes, controls, expected) = match args.of.find().await? {
        Ok(found) => found,
        Err(code) => return Ok(code),
    };
    let rows = controls.rows().await.context("the state table could not be read")?;
    let (before, changed) = (pauses(&rows), accepted::changed(&rows, &expected));
    for scope in &scopes {
        controls.resume(scope).await.context("the pause was not taken away")?;
        match before.get(scope) {
            Some(pause) if pause.by == CUTOVER => answer(&stays(scope, pause)),
            Some(pause) => answer(&format!("{scope}: goes on (was {pause})")),
            None => answer(&format!("{scope}: was not paused")),
        }
        // What else keeps it, or a part of it, from going on.
        let others = before.iter().filter(|(other, _)| *other != scope && other.route == scope.route);
        for (other, pause) in others.filter(|(other, _)| other.peer.is_none() || scope.peer.is_none()) {
            if pause.by == CUTOVER {
                answer(&stays(other, pause));
                continue;
            }
            let flag = other.peer.as_ref().map(|peer| format!(" --peer {peer}")).unwrap_or_default();
            answer(&format!("{other}: still {pause}; to go on: shardwalker resume {}{flag}", other.route));
        }
        let same = |peer: &Option<String>| scope.peer.is_none() || *peer == scope.peer;
        for (other, pause) in
            changed.iter().filter(|(other, _)| other.route == scope.route && same(&other.peer))
        {
            answer(&format!("{other}: writes nothing still: {}", pause.why));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a cutover closed, and how it is opened.
fn stays(scope: &Scope, pause: &Pause) -> String {
    let (route, other) = match scope.route.strip_suffix("/back") {
        Some(route) => (route, ""),
        None => (scope.route.as_str(), " --undo"),
    };
    let how = if pause.why == FOR_GOOD {
        "nothing opens it again".to_owned()
    } else {
        format!("only its cutover opens it: shardwalker cutover {route}{other}")
    };
    format!("{scope}: still {pause}; {how}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cutover_closed_is_opened_by_it_alone() {
        let pause =
            |why: &str| Pause { why: why.into(), by: CUTOVER.into(), since: "2026-01-01T00:00:00Z".into() };
        let scope = |route: &str| Scope { route: route.into(), peer: None };
        let told = stays(&scope("copy"), &pause("writers are at the other side"));
        assert!(
            told.contains(
                "still paused since 2026-01-01T00:00:00Z by cutover: writers are at the other side"
            )
        );
        assert!(told.ends_with("shardwalker cutover copy --undo"), "{told}");
        assert!(
            stays(&scope("copy/back"), &pause("writers are being moved"))
                .ends_with("shardwalker cutover copy")
        );
        assert!(stays(&scope("copy"), &pause(FOR_GOOD)).ends_with("nothing opens it again"));
    }
}
