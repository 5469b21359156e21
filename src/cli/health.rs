//! `health`: asks a worker on this machine how it is; for schedulers that run a command, in images without a shell.

use super::{ConfigArg, FOUND, answer, complain};
use anyhow::{Context as _, bail};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

/// A page is small, and made from memory.
const LIMIT: Duration = Duration::from_secs(5);

/// Arguments of `health`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Ask whether it is ready, instead of whether the work goes on
    #[arg(long)]
    ready: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let Some(address) = config.admin.listen else {
        bail!("[admin] listen is off, so there is nobody to ask");
    };
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let (healthy, body) = get(reachable(address), path).with_context(|| format!("http://{address}{path}"))?;
    if healthy {
        answer(body.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    complain(body.trim_end());
    Ok(ExitCode::from(FOUND))
}

/// Who listens everywhere is asked on this machine.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    address
}

/// Whether a page answers with 200, and its body.
fn get(address: SocketAddr, path: &str) -> anyhow::Result<(bool, String)> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).context("no answer in HTTP")?;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok((status == "200", body))
}
