//! What this process uses: time, CPU time and memory.

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

impl Took {
    /// What is between two runs: what one in their midst would have taken.
    pub(crate) fn between(before: Self, after: Self) -> Self {
        Self { wall: (before.wall + after.wall) / 2, cpu: (before.cpu + after.cpu) / 2 }
    }
}

/// Median, least and most of a figure of some rounds; of none, nothing.
pub(crate) fn spread(rounds: &[(Took, Took)], value: &dyn Fn(&(Took, Took)) -> f64) -> (f64, f64, f64) {
    let mut values: Vec<f64> = rounds.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    (at(values.len() / 2), at(0), at(values.len().saturating_sub(1)))
}

/// Measures a run.
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

/// The CPU time of all threads of this process, in the scheduler's nanoseconds. None may have ended meanwhile.
fn cpu() -> anyhow::Result<Duration> {
    cpu_of(|_| true)
}

/// The same of the threads whose names are chosen.
pub(crate) fn cpu_of(chosen: impl Fn(&str) -> bool) -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for thread in std::fs::read_dir("/proc/self/task").context("CPU time is read from Linux's /proc")? {
        let thread = thread?.path();
        if !chosen(std::fs::read_to_string(thread.join("comm"))?.trim_end()) {
            continue;
        }
        let text = std::fs::read_to_string(thread.join("schedstat"))?;
        nanos += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// A figure of `/proc/self/status` in MB (10^6 bytes).
pub(crate) fn megabytes(field: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("memory is read from Linux's /proc")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes: f64 =
        line.and_then(|line| line.trim().strip_suffix("kB")).context("no such figure")?.trim().parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}
