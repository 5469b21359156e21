//! Figures of a worker and of many measurements.

use shardwalker::telemetry::metrics::Metrics;
use std::time::Duration;

/// The sum of a metric's series.
pub(crate) fn metric(metrics: &Metrics, name: &str) -> f64 {
    let text = metrics.text();
    let series = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// The p50, the p99 and the most of some durations; zeros for none.
pub(crate) fn percentiles(durations: &mut [Duration]) -> [Duration; 3] {
    durations.sort_unstable();
    let last = durations.len().saturating_sub(1) as f64;
    [0.5, 0.99, 1.0].map(|share| durations.get((last * share) as usize).copied().unwrap_or_default())
}
