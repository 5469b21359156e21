//! The door over TCP: HTTP/1.1 for any client, and the admin paths for tests in other processes.

use super::{Dropped, Source, admin};
use crate::sandbox::Sandbox;
use crate::task::Tasks;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// How often the time-to-live service looks for expired items while the sandbox is served.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Serves until `stop` is cancelled; then closes every connection at once.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
        let mut connections = Tasks::new();
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        let served = loop {
            tokio::select! {
                // Stopping goes first: a busy listener must not hold it up.
                biased;
                () = stop.cancelled() => break Ok(()),
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        connections.spawn(connection(self.clone(), stream, peer));
                    }
                    Err(error) => break Err(error),
                },
                Some(_) = connections.join_next() => {}
                _ = sweep.tick() => {
                    if let Err(error) = self.sweep_ttl() {
                        tracing::warn!(%error, "the sandbox could not sweep expired items");
                    }
                }
            }
        };
        connections.abort_all().await;
        served
    }
}

async fn connection(sandbox: Sandbox, stream: TcpStream, peer: SocketAddr) {
    // Small answers must not wait for more to send.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let service = service_fn(|request| answer(sandbox.clone(), request, peer));
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, %peer, "a connection to the sandbox ended");
    }
}

/// An error here makes the connection end without an answer, which is what a dropped request looks like.
async fn answer(
    sandbox: Sandbox,
    request: Request<Incoming>,
    peer: SocketAddr,
) -> Result<Response<Full<Bytes>>, Dropped> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Dropped::Request)?.to_bytes();
    let response = match parts.uri.path().strip_prefix("/_sandbox/") {
        Some(path) if peer.ip().is_loopback() => admin::answer(&sandbox, &parts.method, path, &body),
        _ => {
            let source = Source { ip: peer.ip(), vpce: None };
            sandbox.handle(Request::from_parts(parts, body), source).await?
        }
    };
    Ok(response.map(Full::new))
}
