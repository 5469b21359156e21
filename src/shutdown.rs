//! Stopping: the first signal asks to drain, a second one ends the process at once.

use tokio_util::sync::CancellationToken;

/// The exit code of a process that a second signal ended.
pub const AT_ONCE: i32 = 130;

/// Takes SIGTERM and SIGINT from now on. The future cancels `drain` at the first one, and exits at the second;
/// it runs until then.
///
/// # Errors
/// When the process cannot listen for signals.
pub fn on_signals(drain: CancellationToken) -> std::io::Result<impl Future<Output = ()> + Send> {
    let mut signals = Signals::new()?;
    Ok(async move {
        let name = signals.next().await;
        tracing::info!(signal = name, "draining; a second signal stops at once");
        drain.cancel();
        let name = signals.next().await;
        tracing::warn!(
            signal = name,
            "stopping at once; what was not checkpointed is read again at the next start"
        );
        std::process::exit(AT_ONCE);
    })
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> &'static str {
        // Only a console that is gone makes this fail; then nobody can ask for a stop.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        "Ctrl-C"
    }
}
