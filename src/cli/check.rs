//! `check`: the config, and what must hold before it may run.

use super::{ConfigArg, FOUND, answer};
use crate::access::preflight::Preflight;
use crate::aws::{Aws, Base};
use crate::retry::Jitter;
use std::process::ExitCode;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Check the file only; call nobody
    #[arg(long)]
    offline: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    if args.offline {
        answer(&format!(
            "{}: {} members, {} routes, no problems",
            args.config.config.display(),
            config.members.len(),
            config.routes.len()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    // Whoever asks wants to know how it is now.
    config.access_patience = Duration::ZERO;
    let aws = Aws::new(Base { request_timeout: Some(config.write.request_timeout), ..Base::default() });
    let (jitter, cancel) = (Jitter::seeded(rand::random()), CancellationToken::new());
    let preflight = Preflight { config: &config, aws: &aws, jitter: &jitter, cancel: &cancel };
    match preflight.run().await {
        Ok(_) => {
            for member in &config.members {
                answer(&format!("member {}: ok ({})", member.name, member.arn));
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(findings) => {
            answer(&findings.to_string());
            Ok(ExitCode::from(FOUND))
        }
    }
}
