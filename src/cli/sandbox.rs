//! `sandbox`: serves the embedded accounts until stopped.

use super::{FOUND, answer, complain};
use crate::sandbox::setup::{DEFAULT_REGION, Ready, Setup};
use crate::shutdown;
use crate::task::Tasks;
use anyhow::Context;
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Arguments of `sandbox`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What is in the sandbox (TOML; docs/sandbox.md); three accounts, each with an admin, if absent
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8123")]
    listen: SocketAddr,
    /// Print the endpoint and the accounts as one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let setup = match &args.config {
        None => Setup::default(),
        Some(path) => {
            let shown = path.display();
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
            match Setup::parse(&text) {
                Ok(setup) => setup,
                Err(error) => {
                    complain(&format!("{shown}: {error}"));
                    return Ok(ExitCode::from(FOUND));
                }
            }
        }
    };
    let (sandbox, ready) = match setup.build() {
        Ok(built) => built,
        Err(error) => {
            complain(&format!("the sandbox cannot be set up: {}", error.message));
            return Ok(ExitCode::from(FOUND));
        }
    };
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    if args.json {
        answer(&json!({"endpoint": endpoint, "accounts": ready.accounts}).to_string());
    } else {
        answer(&how_to(&endpoint, &ready));
    }
    let stop = CancellationToken::new();
    let mut signals = Tasks::new();
    signals.spawn(shutdown::on_signals(stop.clone()));
    sandbox.serve(listener, stop).await?;
    Ok(ExitCode::SUCCESS)
}

fn how_to(endpoint: &str, ready: &Ready) -> String {
    let mut lines = vec![format!("sandbox at {endpoint}")];
    for account in &ready.accounts {
        lines.push(format!("\naccount {}", account.id));
        for user in &account.users {
            lines.push(format!("  user {}", user.name));
            lines.push(format!("    AWS_ACCESS_KEY_ID={}", user.access_key_id));
            lines.push(format!("    AWS_SECRET_ACCESS_KEY={}", user.secret_access_key));
        }
        lines.extend(account.roles.iter().map(|role| format!("  role {role}")));
        lines.extend(account.tables.iter().map(|table| format!("  table {table}")));
    }
    if let Some(user) = ready.accounts.iter().flat_map(|account| &account.users).next() {
        lines.push(format!(
            "\ntry\n  export AWS_ENDPOINT_URL={endpoint} AWS_DEFAULT_REGION={DEFAULT_REGION}\n  \
             export AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={}\n  \
             aws sts get-caller-identity\n  \
             aws dynamodb list-tables",
            user.access_key_id, user.secret_access_key
        ));
    }
    lines.join("\n")
}
