//! `run`: the service.

use super::{ConfigArg, FAILED, FOUND, complain};
use crate::service::{Service, ServiceError};
use crate::shutdown;
use crate::task::Tasks;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Make the state table when it does not exist (on-demand, with time-to-live)
    #[arg(long)]
    create_state_table: bool,
    /// This worker's name, instead of the config's
    #[arg(long, value_name = "NAME")]
    worker: Option<String>,
    /// Address of /metrics, /healthz and /readyz, instead of the config's
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    config.lease.worker = args.worker.or(config.lease.worker);
    config.admin.listen = args.listen.or(config.admin.listen);
    let drain = CancellationToken::new();
    let mut signals = Tasks::new();
    signals.spawn(shutdown::on_signals(drain.clone())?);
    let options = super::options(args.create_state_table);
    let service = match Service::build(config, options, drain).await {
        Ok(service) => service,
        Err(ServiceError::Stopped) => return Ok(ExitCode::SUCCESS),
        Err(error @ (ServiceError::Access(_) | ServiceError::State(_))) => {
            complain(&error.to_string());
            let code = if matches!(error, ServiceError::Access(_)) { FOUND } else { FAILED };
            return Ok(ExitCode::from(code));
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(address) = service.admin_address() {
        tracing::info!(%address, "metrics and health");
    }
    service.run().await?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
