//! What something takes: on the clock, and of the processors.

use anyhow::Context;
use std::time::Duration;
use tokio::time::Instant;

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub(crate) wall: Duration,
    /// Of all threads of this process.
    pub(crate) cpu: Duration,
}

/// A run that is measured.
pub(crate) struct Stopwatch {
    begun: Instant,
    cpu: Duration,
}

impl Stopwatch {
    pub(crate) fn start() -> anyhow::Result<Self> {
        Ok(Self { begun: Instant::now(), cpu: cpu()? })
    }

    pub(crate) fn stop(self) -> anyhow::Result<Took> {
        Ok(Took { wall: self.begun.elapsed(), cpu: cpu()?.saturating_sub(self.cpu) })
    }
}

/// The CPU time of all threads of this process, in the scheduler's nanoseconds.
fn cpu() -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for thread in std::fs::read_dir("/proc/self/task").context("CPU time is read from Linux's /proc")? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanos += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}
