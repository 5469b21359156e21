//! The command line: one file a command. The answer goes to stdout, the chatter to stderr.
//!
//! Exit codes: 0 done; 1 finished and found something (a bad config, a missing permission, differences);
//! 2 failed.

mod check;
mod run;

use crate::config::Config;
use crate::telemetry::logs;
use clap::{Parser, Subcommand};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Replicates DynamoDB tables across AWS accounts by walking the shards of their streams.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    /// What to log: a level, or directives such as info,shardwalker=debug
    #[arg(long, global = true, env = "SHARDWALKER_LOG", default_value = "warn,shardwalker=info")]
    log: String,
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
    if let Err(problem) = logs::start(cli.log_format, &cli.log) {
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
        }
    });
    // What is left are blocking calls of nobody's concern.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| {
        complain(&format!("error: {error:#}"));
        ExitCode::from(FAILED)
    })
}

/// Writes a line to stdout. A reader that has gone away is no failure of the command.
fn answer(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Writes a line to stderr.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
