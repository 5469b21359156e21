//! `strip`: taking the stamps off a peer's items, after a finished migration.

use super::{ConfigArg, FOUND, answer, complain};
use crate::shutdown;
use crate::strip::{Request, StripError, strip};
use crate::task::Tasks;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// Arguments of `strip`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// A one-way route, which must be paused
    route: String,
    /// The peer whose items are stripped
    #[arg(long, value_name = "NAME")]
    peer: String,
    /// Read units a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    read_units: Option<u32>,
    /// Write units a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    write_units: Option<u32>,
    /// Print JSON at the end
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    super::pause::check(&config, &args.route, Some(&args.peer))?;
    let cancel = CancellationToken::new();
    let mut signals = Tasks::new();
    signals.spawn(shutdown::on_signals(cancel.clone())?);
    let Args { route, peer, read_units, write_units, .. } = args;
    let request = Request { route, peer, read_units, write_units };
    let stripped = match Box::pin(strip(config, request, super::options(false), cancel)).await {
        Ok(stripped) => stripped,
        Err(StripError::Access(findings)) => {
            complain(&findings.to_string());
            return Ok(ExitCode::from(FOUND));
        }
        Err(error) => return Err(error.into()),
    };
    answer(&if args.json {
        serde_json::to_string_pretty(&stripped)?
    } else {
        format!(
            "{} items: {} stripped, {} had no stamp, {} changed meanwhile and stay as they were written",
            stripped.items, stripped.stripped, stripped.without, stripped.changed
        )
    });
    Ok(ExitCode::SUCCESS)
}
