//! Logs: one line an event on stderr, for people or as JSON.
//!
//! Promises that item values never go in, whatever is asked for: our own events hold none, and what others say is cut
//! off below the level at which requests and answers are written out.

use std::io::IsTerminal as _;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Starts logging to stderr. `filter` is a list of directives such as `info,shardwalker=debug`; no directive lifts
/// the `ceiling`.
///
/// # Errors
/// When `filter` is not a list of directives.
pub fn start(format: Format, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("--log {filter:?}: {error}"))?;
    let registry = tracing_subscriber::registry().with(filter).with(ceiling());
    let started = match format {
        Format::Human => {
            let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(colours()).with_target(false);
            registry.with(layer).try_init()
        }
        Format::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).with_target(false))
            .try_init(),
    };
    // Somebody else has started logging: only in tests.
    drop(started);
    Ok(())
}

/// What is logged at most: all of our own, and `info` of everything else. Below it the SDK, hyper and others write out
/// requests and answers, and items with them. How credentials are found is told at `debug`, without them.
fn ceiling() -> Targets {
    let ours = [(env!("CARGO_PKG_NAME"), LevelFilter::TRACE), ("aws_config", LevelFilter::DEBUG)];
    Targets::new().with_default(LevelFilter::INFO).with_targets(ours)
}

/// Whether the log is read on a terminal whose user did not ask for no colours (<https://no-color.org>).
fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
