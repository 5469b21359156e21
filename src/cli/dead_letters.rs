//! `dead-letters`: what peers refused or could not be shaped, and what is to become of it.

use super::table::table;
use super::{ConfigArg, FOUND, answer, complain, pause};
use crate::apply::Rules;
use crate::aws::Aws;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::connect::Connector;
use crate::control::{Controls, closed};
use crate::dead_letters::retry::Retry;
use crate::dead_letters::{DeadLetters, Letter, Reason, record};
use crate::group::apply::GroupLane;
use crate::item::Digest;
use crate::ledger::Ledger;
use crate::peer::Peer;
use crate::retry::Jitter;
use crate::shape::{Shape, accepted, identities};
use crate::state::StateTable;
use crate::telemetry::metrics::Metrics;
use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Keys that are retried at the same time.
const AT_ONCE: usize = 8;

/// Arguments of `dead-letters`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// What to do with the letters that match
    #[arg(value_enum)]
    action: Action,
    /// Letters of this route only
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Letters for this peer or feed only
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// Letters of this key only: the digest that `list` and the log show
    #[arg(long, value_name = "DIGEST", value_parser = digest)]
    key: Option<Digest>,
    /// Letters kept for this reason only
    #[arg(long, value_enum)]
    reason: Option<Why>,
    /// Letters of this shard only
    #[arg(long, value_name = "ID")]
    shard: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// discard: every letter, when no other filter is given
    #[arg(long)]
    all: bool,
    /// discard: do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Action {
    /// List letters; no values of items
    List,
    /// Print a key's letters whole
    Show,
    /// Apply the letters of each matching key again, in order
    Retry,
    /// Delete matching letters for good
    Discard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Why {
    /// The peer refused it
    Refused,
    /// The route's shape cannot be given to it
    Unshaped,
    /// An earlier change of its key is a letter
    Behind,
}

fn digest(text: &str) -> Result<Digest, String> {
    Digest::parse(text).ok_or_else(|| "a key's digest is 32 lower-case hex digits".to_owned())
}

/// The letters of one route and peer that match.
struct Found<'a> {
    route: &'a config::Route,
    /// The peer's index in the config; `None` of a feed.
    index: Option<usize>,
    peer: &'a str,
    letters: Vec<Letter>,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    if let Some(route) = &args.route {
        pause::check(&config, route, args.peer.as_deref())?;
    } else if let Some(peer) = args.peer.as_deref().filter(|peer| config.lanes().all(|(_, to)| to != *peer)) {
        bail!("no route leads to {peer:?}");
    }
    if args.action == Action::Show && args.key.is_none() {
        bail!("show needs --key DIGEST: see list");
    }
    let state = super::state_table(&config).await?;
    let letters = DeadLetters::new(state.clone(), Clock::system(), config.dead_letters.per_key);
    let found = args.find(&config, &letters).await.context("the dead letters could not be read")?;
    match args.action {
        Action::List => args.list(&found),
        Action::Show => show(&letters, &found).await,
        Action::Retry => args.retry(&config, &state, &letters, &found).await,
        Action::Discard => args.discard(&letters, &found).await,
    }
}

impl Args {
    async fn find<'a>(
        &self,
        config: &'a Config,
        letters: &DeadLetters,
    ) -> Result<Vec<Found<'a>>, crate::failure::Failure> {
        let mut found = Vec::new();
        for route in config.routes.iter().filter(|r| self.route.as_ref().is_none_or(|name| *name == r.name)) {
            let peers = route.to.iter().copied().map(Some).chain(std::iter::repeat(None));
            for (peer, index) in config.destinations(route).zip(peers) {
                if self.peer.as_ref().is_some_and(|name| name != peer) {
                    continue;
                }
                let mut letters = letters.letters(&route.name, peer, self.key).await?;
                letters.retain(|letter| self.matches(letter));
                found.push(Found { route, index, peer, letters });
            }
        }
        Ok(found)
    }

    fn matches(&self, letter: &Letter) -> bool {
        let reason = match self.reason {
            None => true,
            Some(Why::Refused) => letter.reason == Reason::Refused,
            Some(Why::Unshaped) => letter.reason == Reason::Unshaped,
            Some(Why::Behind) => letter.reason == Reason::Behind,
        };
        reason && self.shard.as_ref().is_none_or(|shard| *shard == letter.shard)
    }

    fn list(&self, found: &[Found<'_>]) -> anyhow::Result<ExitCode> {
        if self.json {
            let letters = found.iter().flat_map(|found| found.letters.iter().map(|l| shown(found, l)));
            answer(&serde_json::to_string_pretty(&letters.collect::<Vec<_>>())?);
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<[String; 10]> = found
            .iter()
            .flat_map(|found| {
                found.letters.iter().map(|l| {
                    [
                        found.route.name.clone(),
                        found.peer.to_owned(),
                        l.key.to_string(),
                        l.sequence.to_string(),
                        l.version.to_string(),
                        l.reason.name().to_owned(),
                        l.attempts.to_string(),
                        l.kept_at.clone(),
                        l.tried_at.clone().unwrap_or_else(|| "-".to_owned()),
                        format!("{}: {}", l.code, l.message),
                    ]
                })
            })
            .collect();
        if rows.is_empty() {
            complain("no dead letters");
        } else {
            let header =
                ["ROUTE", "PEER", "KEY", "SEQUENCE", "VERSION", "REASON", "TRIES", "KEPT", "TRIED", "WHY"];
            answer(&table(header, &rows));
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn retry(
        &self,
        config: &Config,
        state: &StateTable,
        letters: &DeadLetters,
        found: &[Found<'_>],
    ) -> anyhow::Result<ExitCode> {
        let (aws, metrics) = (super::aws(config), Metrics::new()?);
        let (clock, jitter) = (Clock::system(), Jitter::seeded(rand::random()));
        let controls = Controls::new(state.clone(), clock).rows().await;
        let rows = controls.context("the state table could not be read")?;
        // What is written now has the shape that this process would give it.
        let shapes = identities(found.iter().map(|found| found.route)).map_err(anyhow::Error::msg)?;
        let paused = closed(&rows, &accepted::expected(config, |route| shapes.get(route)));
        let ledger = Ledger::new(state.clone(), clock, config.state.tombstone_retention);
        let connector = Connector {
            config,
            aws: &aws,
            ledger,
            state: state.clone(),
            gates: None,
            heart: None,
            clock,
            metrics: &metrics,
        };
        let (mut applied, mut superseded, mut remain) = (0, 0, Vec::new());
        for found in found {
            let mut keys: BTreeSet<Digest> = found.letters.iter().map(|letter| letter.key).collect();
            if self.reason.is_none() && self.shard.is_none() {
                // Keys that are remembered although their last letter is gone already.
                let counts = letters.counts(&found.route.name, found.peer).await?;
                keys.extend(
                    counts.into_iter().map(|(key, _)| key).filter(|key| self.key.is_none_or(|k| k == *key)),
                );
            }
            if keys.is_empty() {
                continue;
            }
            let about = |scope: &&crate::control::Scope| {
                scope.route == found.route.name && scope.peer.as_deref().is_none_or(|peer| peer == found.peer)
            };
            if let Some(scope) = paused.keys().find(about) {
                let why = format!("{scope} is {}; {}", paused[scope], paused[scope].remedy());
                complain(&format!("route {}, peer {}: {why}", found.route.name, found.peer));
                remain.push(json!({ "route": found.route.name, "peer": found.peer, "paused": why }));
                continue;
            }
            let Some(index) = found.index else {
                let why = format!(
                    "what a feed was not given is not written into its files later: make the shape fit, copy the items as \
                     they are now (shardwalker backfill {} --peer {} --restart), and discard the letters",
                    found.route.name, found.peer
                );
                complain(&format!("route {}, feed {}: {why}", found.route.name, found.peer));
                remain.push(json!({ "route": found.route.name, "peer": found.peer, "feed": why }));
                continue;
            };
            let (peer, group) = self.connect(config, &aws, &jitter, &connector, (found, index)).await?;
            let group = group.map(|lane| (lane, found.route.max_clock_drift));
            let cancel = CancellationToken::new();
            // Not what the route left out since: these changes were taken when they came.
            let shape = self.shape(config, &aws, &jitter, found).await?;
            let rules = Rules { ttl_deletes: found.route.ttl_deletes, not_before: None, shape };
            let (route, jitter) = (found.route.name.as_str(), &jitter);
            let retry = Retry { letters, route, peer: &peer, rules, group, jitter, cancel: &cancel };
            let mut done = stream::iter(keys).map(|key| retry.key(key)).buffer_unordered(AT_ONCE);
            while let Some(retried) = done.try_next().await.with_context(|| {
                format!("route {route}, peer {}: retrying failed; what is left stays", found.peer)
            })? {
                applied += retried.applied;
                superseded += retried.superseded;
                if let Some((letter, why)) = retried.refused {
                    complain(&format!(
                        "route {route}, peer {}: key {} is refused again: {why}",
                        found.peer, letter.key
                    ));
                    remain.push(json!({
                        "route": route, "peer": found.peer, "key": letter.key.to_string(),
                        "sequence": letter.sequence.as_str(), "code": why.code, "message": why.message,
                    }));
                }
            }
        }
        if self.json {
            answer(&json!({ "applied": applied, "superseded": superseded, "remain": remain }).to_string());
        } else {
            answer(&format!(
                "{applied} applied, {superseded} superseded by something newer, {} keys remain",
                remain.len()
            ));
        }
        Ok(if remain.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
    }

    async fn connect(
        &self,
        config: &Config,
        aws: &Aws,
        jitter: &Jitter,
        connector: &Connector<'_>,
        (found, index): (&Found<'_>, usize),
    ) -> anyhow::Result<(Peer, Option<GroupLane>)> {
        let cancel = CancellationToken::new();
        let preflight = crate::access::preflight::Preflight::new(config, aws, jitter, &cancel);
        let table =
            async |index| preflight.table(index).await.map_err(|finding| anyhow::anyhow!("{finding}"));
        let peer = connector.peer(found.route, index, &table(index).await?).await;
        let Some(_) = found.route.group else { return Ok((peer, None)) };
        let home = table(found.route.from).await?;
        let membership = connector.membership(found.route, &home).await.map(Arc::new);
        let index = found.route.to.iter().position(|to| *to == index);
        Ok((peer, membership.zip(index).and_then(|(route, index)| GroupLane::new(&route, index))))
    }

    /// The route's shape, if it has one.
    async fn shape(
        &self,
        config: &Config,
        aws: &Aws,
        jitter: &Jitter,
        found: &Found<'_>,
    ) -> anyhow::Result<Option<Arc<Shape>>> {
        let Some(shape) = &found.route.shape else { return Ok(None) };
        let cancel = CancellationToken::new();
        let preflight = crate::access::preflight::Preflight::new(config, aws, jitter, &cancel);
        let source =
            preflight.table(found.route.from).await.map_err(|finding| anyhow::anyhow!("{finding}"))?;
        let fitted = Shape::fit(shape, &source.keys);
        Ok(Some(Arc::new(fitted.map_err(|wrong| anyhow::anyhow!("{}", wrong.join("; ")))?)))
    }

    async fn discard(&self, letters: &DeadLetters, found: &[Found<'_>]) -> anyhow::Result<ExitCode> {
        let filtered = self.route.is_some() || self.peer.is_some() || self.key.is_some();
        if !(filtered || self.reason.is_some() || self.shard.is_some() || self.all) {
            bail!("discard needs a filter (--route, --peer, --key, --reason, --shard) or --all");
        }
        let count: usize = found.iter().map(|found| found.letters.len()).sum();
        let keys: BTreeSet<Digest> = found.iter().flat_map(|f| &f.letters).map(|letter| letter.key).collect();
        let what = format!("{count} dead letters of {} keys", keys.len());
        if count > 0 && !self.yes && !confirmed(&what)? {
            bail!("nothing was discarded: give --yes, or answer yes");
        }
        for found in found {
            let (route, peer) = (found.route.name.as_str(), found.peer);
            for letter in &found.letters {
                letters.remove(route, peer, letter).await.context("a letter could not be discarded")?;
            }
            for key in found.letters.iter().map(|letter| letter.key).collect::<BTreeSet<_>>() {
                letters.release(route, peer, key).await.context("a key could not be released")?;
            }
        }
        if self.json {
            answer(&json!({ "discarded": count }).to_string());
        } else {
            answer(&format!("discarded {what}"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Asks on the terminal; without one nobody has agreed.
fn confirmed(what: &str) -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Ok(false);
    }
    write!(std::io::stderr(), "Discard {what} for good? The peers will miss these changes. [yes/no] ")?;
    let mut line = String::new();
    stdin.read_line(&mut line)?;
    Ok(line.trim() == "yes")
}

/// The key's letters whole, as the operator asked: one JSON document.
async fn show(letters: &DeadLetters, found: &[Found<'_>]) -> anyhow::Result<ExitCode> {
    let mut whole = Vec::new();
    for found in found {
        for letter in &found.letters {
            let change = letters.record(&found.route.name, found.peer, letter).await;
            let mut value = shown(found, letter);
            value["record"] = record::to_json(&change.context("a record could not be read")?);
            whole.push(value);
        }
    }
    answer(&serde_json::to_string_pretty(&whole)?);
    Ok(if whole.is_empty() { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

/// A letter without its record.
fn shown(found: &Found<'_>, letter: &Letter) -> Value {
    json!({
        "route": found.route.name,
        "peer": found.peer,
        "key": letter.key.to_string(),
        "sequence": letter.sequence.as_str(),
        "shard": letter.shard,
        "version": letter.version.to_string(),
        "reason": letter.reason.name(),
        "code": letter.code,
        "message": letter.message,
        "kept_at": letter.kept_at,
        "attempts": letter.attempts,
        "tried_at": letter.tried_at,
    })
}
