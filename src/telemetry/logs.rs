//! Logs: one line an event on stderr, for people or as JSON. Item values never go in.

use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;
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

/// Starts logging to stderr. `filter` is a list of directives such as `info,shardwalker=debug`; the SDK's own
/// chatter is left out unless it is named.
///
/// # Errors
/// When `filter` is not a list of directives.
pub fn start(format: Format, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("--log {filter:?}: {error}"))?;
    let registry = tracing_subscriber::registry().with(filter);
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

/// Whether the log is read on a terminal whose user did not ask for no colours (<https://no-color.org>).
fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
