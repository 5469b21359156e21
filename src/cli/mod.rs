//! The command line: one file a command. The answer goes to stdout, the chatter to stderr.
//!
//! Exit codes: 0 done; 1 finished and found something (a bad config, a missing permission, differences);
//! 2 failed.

mod backfill;
mod check;
mod conflicts;
mod cutover;
mod dead_letters;
#[cfg(feature = "sandbox")]
mod demo;
#[cfg(feature = "sandbox")]
mod demo_active;
mod health;
mod pause;
mod policy;
mod run;
#[cfg(feature = "sandbox")]
mod sandbox;
mod shape;
mod status;
mod strip;
mod table;
mod tail;
mod verify;

use crate::aws::{Aws, Base};
use crate::clock::Clock;
use crate::config::Config;
use crate::service::Options;
use crate::state::StateTable;
use crate::telemetry::logs;
use crate::telemetry::metrics::Metrics;
use clap::{Parser, Subcommand};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Replicates DynamoDB tables across AWS accounts by walking the shards of their streams.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    /// What to log: a level, or directives such as info,shardwalker=debug
    ///
    /// [default: warn,shardwalker=info; error for the demo]
    #[arg(long, global = true, env = "SHARDWALKER_LOG", value_name = "DIRECTIVES")]
    log: Option<String>,
    /// The form of the log on stderr
    #[arg(long, global = true, env = "SHARDWALKER_LOG_FORMAT", value_enum, default_value_t)]
    log_format: logs::Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service: replicate until stopped
    Run(run::Args),
    /// Check a config, and every permission that it needs
    Check(check::Args),
    /// Write the least policies that every account needs; or simulate what policies decide
    Policy(Box<policy::Args>),
    /// Ask a worker on this machine how it is: its exit code is that of a health check
    Health(health::Args),
    /// Copy what a route's source holds to its peers, while the service streams
    Backfill(backfill::Args),
    /// Compare members item by item, and mend what differs
    Verify(Box<verify::Args>),
    /// Take our attribute off a peer's items, after a finished migration
    Strip(strip::Args),
    /// Move the writers of a route with a way back to its peer, step by step; or back again
    Cutover(Box<cutover::Args>),
    /// Show what all workers do, how far each peer is, and what needs an operator
    Status(status::Args),
    /// Pause a route, or one of its peers, in all workers
    Pause(pause::PauseArgs),
    /// Let a paused route, or one of its peers, go on
    Resume(pause::ResumeArgs),
    /// Try a route's shape on sample items, or accept a changed one
    Shape(shape::Args),
    /// List, show, retry or discard what peers refused
    DeadLetters(dead_letters::Args),
    /// List or show writes of a group's member that lost to another's
    Conflicts(conflicts::Args),
    /// Show a member's changes as they happen, a line each
    Tail(tail::Args),
    /// Serve the embedded AWS accounts until stopped
    #[cfg(feature = "sandbox")]
    Sandbox(sandbox::Args),
    /// Show the service at work on the embedded sandbox: exits with 0 when all tables agree in the end
    #[cfg(feature = "sandbox")]
    Demo(demo::Args),
}

impl Command {
    /// What is logged when nothing is said about it. The demo shows its progress in other ways.
    const fn default_log(&self) -> &'static str {
        #[cfg(feature = "sandbox")]
        if matches!(self, Self::Demo(_)) {
            return "error,aws_smithy_runtime=off";
        }
        "warn,aws_config=error,shardwalker=info"
    }
}

/// The config file of a command.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArg {
    /// The config file (TOML; docs/config.md)
    #[arg(short, long, value_name = "FILE", env = "SHARDWALKER_CONFIG")]
    config: PathBuf,
}

impl ConfigArg {
    /// The config, or the exit code after its problems were printed.
    fn load(&self) -> Result<Config, ExitCode> {
        Config::load(&self.config).map_err(|report| {
            complain(&report.to_string());
            ExitCode::from(FOUND)
        })
    }
}

/// Finished, and found something.
const FOUND: u8 = 1;
/// Failed.
const FAILED: u8 = 2;

/// Runs the command of the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(problem) = logs::start(cli.log_format, cli.log.as_deref().unwrap_or(cli.command.default_log()))
    {
        complain(&problem);
        return ExitCode::from(FAILED);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("no runtime: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Run(args) => run::run(args).await,
            Command::Check(args) => check::run(args).await,
            Command::Health(args) => health::run(&args),
            Command::Policy(args) => policy::run(&args),
            Command::Backfill(args) => Box::pin(backfill::run(args)).await,
            Command::Verify(args) => Box::pin(verify::run(*args)).await,
            Command::Strip(args) => Box::pin(strip::run(args)).await,
            Command::Cutover(args) => Box::pin(cutover::run(*args)).await,
            Command::Status(args) => Box::pin(status::run(args)).await,
            Command::Pause(args) => pause::pause(args).await,
            Command::Resume(args) => pause::resume(args).await,
            Command::Shape(args) => Box::pin(shape::run(args)).await,
            Command::DeadLetters(args) => Box::pin(dead_letters::run(args)).await,
            Command::Conflicts(args) => conflicts::run(args).await,
            Command::Tail(args) => Box::pin(tail::run(args)).await,
            #[cfg(feature = "sandbox")]
            Command::Sandbox(args) => sandbox::run(args).await,
            #[cfg(feature = "sandbox")]
            Command::Demo(args) => demo::run(args).await,
        }
    });
    // What is left are blocking calls of nobody's concern.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| {
        complain(&format!("error: {error:#}"));
        ExitCode::from(FAILED)
    })
}

/// What a service and a backfill are built with.
fn options(create_state_table: bool) -> Options {
    Options { base: Base::default(), create_state_table, clock: Clock::system(), seed: rand::random() }
}

/// Clients for a command that is no service.
fn aws(config: &Config) -> Aws {
    Aws::new(Base { request_timeout: Some(config.write.request_timeout), ..Base::default() })
}

/// The state table, which must be there.
async fn state_table(config: &Config) -> anyhow::Result<StateTable> {
    let clients = Box::pin(aws(config).clients(&config.state.access)).await;
    let state = StateTable::new(&config.state, &clients, Metrics::new()?);
    Box::pin(state.open(false, Duration::ZERO)).await?;
    Ok(state)
}

/// Writes a line to stdout. A reader that has gone away is no failure of the command.
fn answer(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Writes a line to stderr.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
