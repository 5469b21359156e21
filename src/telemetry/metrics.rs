//! Every metric, in one struct. The registry is passed down, never global.
//!
//! A metric's name, type, labels and meaning are given once, in [`Metrics::new`]; `docs/METRICS.md` is tested
//! against [`Metrics::descriptions`]. Label values come from the config and from fixed sets, never from data.

use crate::failure::Class;
use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// The metrics of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    descriptions: std::sync::Arc<[Description]>,
    /// Stream records read, by route.
    pub records_read: IntCounterVec,
    /// GetRecords pages, by route and `kind` (`full`, `empty`).
    pub pages: IntCounterVec,
    /// Writes that lost to another member's, by group, loser and winner.
    pub conflicts: IntCounterVec,
    /// Outcomes of changes, by route, peer and `outcome`.
    pub writes: IntCounterVec,
    /// Requests sent to peers, by route and peer.
    pub peer_requests: IntCounterVec,
    /// Requests sent to the state table, by `operation`.
    pub state_requests: IntCounterVec,
    /// Failures that were tried again, by route, `at` (a peer's name, `stream`, `state`) and `class`.
    pub retries: IntCounterVec,
    /// From a record's creation to its application, by route and peer, in seconds.
    pub lag: HistogramVec,
    /// From a record's creation to its reading, by route, in seconds.
    pub read_lag: HistogramVec,
    /// Records kept as dead letters, by route, peer and `reason`.
    pub dead_letters: IntCounterVec,
    /// Ranges of records that were trimmed before they were read, by route.
    pub gaps: IntCounterVec,
    /// Shards that stopped and wait for an operator, by route and `reason`.
    pub shards_stopped: IntGaugeVec,
    /// Leases that this worker holds, by route.
    pub leases_held: IntGaugeVec,
    /// Leases that this worker lost to another, by route.
    pub leases_lost: IntCounterVec,
    /// The oldest progress that is not checkpointed yet, by route, in seconds.
    pub checkpoint_age: GaugeVec,
    /// Writes under way, by route and peer.
    pub in_flight: IntGaugeVec,
    /// Lanes that are fed by a second reader because they were slower than the others of their shard, by route and peer.
    pub lanes_behind: IntGaugeVec,
    /// Lanes that were let go because the others would have had to wait, by route and peer.
    pub lanes_let_go: IntCounterVec,
    /// About what changes take that are held for a peer, by route and peer, in bytes.
    pub buffered: IntGaugeVec,
    /// The current limit on a peer's writes a second; +Inf while there is none; by route and peer.
    pub rate_limit: GaugeVec,
    /// Stamps too far ahead of their record's creation to be believed, by route.
    pub stamps_disbelieved: IntCounterVec,
    /// How far a source's clock is off, at least, by route, in seconds: above 0 ahead, below 0 behind.
    pub clock_skew: GaugeVec,
    /// Times at which a route's guard paused it, by route.
    pub guard_trips: IntCounterVec,
    /// 1 while a peer is paused, by route and peer.
    pub paused: IntGaugeVec,
    /// Until the oldest record that is not applied leaves the stream, by route and peer, in seconds.
    pub time_to_loss: GaugeVec,
    /// Items of backfills, by route, peer and `outcome`.
    pub backfill_items: IntCounterVec,
    /// Read units that backfills spent, by route.
    pub backfill_read_units: CounterVec,
    /// Write units that backfills spent, by route and peer.
    pub backfill_write_units: IntCounterVec,
    /// Segments of a backfill that are not done, by route.
    pub backfill_segments: IntGaugeVec,
    /// Bytes that were written to feeds, by route and feed.
    pub feed_bytes: IntCounterVec,
    /// Files that were written to feeds, by route, feed and `reason`.
    pub feed_files: IntCounterVec,
    /// What a feed has everything of that was created before, by route and feed, in seconds since 1970.
    pub feed_watermark: GaugeVec,
    /// 1 while the work goes on, 0 when `/healthz` fails.
    pub healthy: Gauge,
}

/// The metrics of one route and peer, looked up once: they are counted for every change.
#[derive(Debug, Clone)]
pub struct LaneMetrics {
    /// Changes that took effect.
    pub applied: IntCounter,
    /// Changes that met something newer.
    pub superseded: IntCounter,
    /// Changes covered by a later one of their key.
    pub folded: IntCounter,
    /// Changes left out by a rule.
    pub skipped: IntCounter,
    /// Records of our own writes, about which there was nothing to do.
    pub echoes: IntCounter,
    /// Changes kept as dead letters.
    pub dead: IntCounter,
    /// See [`Metrics::lag`].
    pub lag: Histogram,
    /// See [`Metrics::in_flight`].
    pub in_flight: IntGauge,
    /// See [`Metrics::rate_limit`].
    pub rate_limit: Gauge,
}

/// Counts in a gauge for as long as it lives, however it ends.
#[derive(Debug)]
pub struct Counted(IntGauge);

impl Counted {
    /// One more, until it is dropped.
    #[must_use]
    pub fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A metric's entry in the documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Its full name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels, in order.
    pub labels: Vec<String>,
    /// What it means.
    pub help: String,
}

/// Lag buckets in seconds: the creation time has whole seconds, so finer ones mean little below 1 s.
const LAG_BUCKETS: [f64; 14] =
    [0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0, 86400.0];

impl Metrics {
    /// Makes and registers them, beside the process's own metrics where the platform has them.
    ///
    /// # Errors
    /// When a name is registered twice, which a test excludes.
    pub fn new() -> Result<Self, prometheus::Error> {
        let mut r = Registrar { registry: Registry::new(), descriptions: Vec::new() };
        let metrics = Self {
            records_read: r.counter("records_read_total", &["route"], "Stream records read")?,
            pages: r.counter("pages_read_total", &["route", "kind"], "GetRecords pages: full or empty")?,
            writes: r.counter(
                "changes_total",
                &["route", "peer", "outcome"],
                "Changes by what became of them at a peer",
            )?,
            conflicts: r.counter(
                "conflicts_total",
                &["group", "loser", "winner"],
                "Writes of one member that lost to another's which had not seen them",
            )?,
            peer_requests: r.counter(
                "peer_requests_total",
                &["route", "peer"],
                "Requests sent to a peer table",
            )?,
            state_requests: r.counter(
                "state_requests_total",
                &["operation"],
                "Requests sent to the state table",
            )?,
            retries: r.counter(
                "retries_total",
                &["route", "at", "class"],
                "Failed calls that were tried again, by where (a peer, stream, state) and class of failure",
            )?,
            lag: r.histogram(
                "lag_seconds",
                &["route", "peer"],
                "From a record's creation (whole seconds) to its application at a peer",
            )?,
            read_lag: r.histogram(
                "read_lag_seconds",
                &["route"],
                "From a record's creation (whole seconds) to its reading",
            )?,
            dead_letters: r.counter(
                "dead_letters_total",
                &["route", "peer", "reason"],
                "Records kept as dead letters: refused by the peer, not to be shaped, or behind one of the same key",
            )?,
            gaps: r.counter(
                "gaps_total",
                &["route"],
                "Ranges of records that were trimmed before they were read: data is missing at the peers",
            )?,
            shards_stopped: r.gauges(
                "shards_stopped",
                &["route", "reason"],
                "Shards of this worker that stopped and wait for an operator",
            )?,
            leases_held: r.gauges("leases_held", &["route"], "Leases on shards that this worker holds")?,
            leases_lost: r.counter(
                "leases_lost_total",
                &["route"],
                "Leases that another worker took from this one",
            )?,
            checkpoint_age: r.gauge_vec(
                "checkpoint_age_seconds",
                &["route"],
                "Age of the oldest progress of this worker's shards that is not checkpointed yet",
            )?,
            in_flight: r.gauges("in_flight", &["route", "peer"], "Writes to a peer that are under way")?,
            lanes_behind: r.gauges(
                "lanes_behind",
                &["route", "peer"],
                "Lanes that catch up by a second reader because they were slower than others of their shard",
            )?,
            lanes_let_go: r.counter(
                "lanes_let_go_total",
                &["route", "peer"],
                "Lanes that were let go because the others would have had to wait for them",
            )?,
            buffered: r.gauges(
                "buffered_bytes",
                &["route", "peer"],
                "About how much memory changes take that were read for a peer and are not done, or for which room is kept",
            )?,
            rate_limit: r.gauge_vec(
                "rate_limit",
                &["route", "peer"],
                "Limit on a peer's writes a second: the configured one, or a lower one that follows throttling; +Inf without any",
            )?,
            stamps_disbelieved: r.counter(
                "stamps_disbelieved_total",
                &["route"],
                "Stamps further ahead of their record's creation than max_clock_drift",
            )?,
            clock_skew: r.gauge_vec(
                "clock_skew_seconds",
                &["route"],
                "How far the clock of the source's stream is off, at least, by the records read last: ahead of this machine's, or (below 0) behind the versions that the records carry",
            )?,
            guard_trips: r.counter(
                "guard_trips_total",
                &["route"],
                "Times at which a route paused itself because too much was deleted at its source",
            )?,
            paused: r.gauges("paused", &["route", "peer"], "1 while an operator or the guard pauses a peer, or its items have another shape than the route")?,
            time_to_loss: r.gauge_vec(
                "time_to_loss_seconds",
                &["route", "peer"],
                "Until the oldest record that this worker has not applied leaves the stream, 24 h after its creation",
            )?,
            backfill_items: r.counter(
                "backfill_items_total",
                &["route", "peer", "outcome"],
                "Items that this backfill process copied, by what became of them at a peer",
            )?,
            backfill_read_units: r.counter_vec(
                "backfill_read_units_total",
                &["route"],
                "Read units that this backfill process spent at the source",
            )?,
            backfill_write_units: r.counter(
                "backfill_write_units_total",
                &["route", "peer"],
                "Write units that this backfill process spent at a peer, by the sizes of items",
            )?,
            backfill_segments: r.gauges(
                "backfill_segments",
                &["route"],
                "Segments of the backfill that are not done, whoever works on them",
            )?,
            feed_bytes: r.counter(
                "feed_bytes_total",
                &["route", "feed"],
                "Bytes written to a feed, compressed",
            )?,
            feed_files: r.counter(
                "feed_files_total",
                &["route", "feed", "reason"],
                "Files written to a feed, by why they were closed",
            )?,
            feed_watermark: r.gauge_vec(
                "feed_watermark_seconds",
                &["route", "feed"],
                "Watermark of a feed, in seconds since 1970, on the worker that lists the stream: all that was created before is in it",
            )?,
            healthy: r.gauge("healthy", "1 while the work goes on, 0 when /healthz fails")?,
            registry: r.registry,
            descriptions: r.descriptions.into(),
        };
        #[cfg(target_os = "linux")]
        metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// The metrics of one route and peer.
    #[must_use]
    pub fn lane(&self, route: &str, peer: &str) -> LaneMetrics {
        let outcome = |outcome| self.writes.with_label_values(&[route, peer, outcome]);
        let labels = [route, peer];
        LaneMetrics {
            applied: outcome("applied"),
            superseded: outcome("superseded"),
            folded: outcome("folded"),
            skipped: outcome("skipped"),
            echoes: outcome("echo"),
            dead: outcome("dead"),
            lag: self.lag.with_label_values(&labels),
            in_flight: self.in_flight.with_label_values(&labels),
            rate_limit: self.rate_limit.with_label_values(&labels),
        }
    }

    /// What is registered, in order, for the documentation's test.
    #[must_use]
    pub fn descriptions(&self) -> &[Description] {
        &self.descriptions
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string fails only on an inconsistent family, which the registry excludes.
        if let Err(error) = prometheus::TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be written out");
        }
        text
    }

    /// Counts a failure that is tried again.
    pub fn retried(&self, route: &str, at: &str, class: Class) {
        self.retries.with_label_values(&[route, at, class.name()]).inc();
    }
}

struct Registrar {
    registry: Registry,
    descriptions: Vec<Description>,
}

impl Registrar {
    fn opts(&mut self, kind: &'static str, name: &str, labels: &[&str], help: &str) -> Opts {
        let labels = labels.iter().map(|l| (*l).to_owned()).collect();
        let description =
            Description { name: format!("shardwalker_{name}"), kind, labels, help: help.to_owned() };
        self.descriptions.push(description);
        Opts::new(name, help).namespace("shardwalker")
    }

    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, prometheus::Error> {
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(
        &mut self,
        name: &str,
        labels: &[&str],
        help: &str,
    ) -> Result<IntCounterVec, prometheus::Error> {
        let opts = self.opts("counter", name, labels, help);
        self.add(IntCounterVec::new(opts, labels)?)
    }

    fn counter_vec(
        &mut self,
        name: &str,
        labels: &[&str],
        help: &str,
    ) -> Result<CounterVec, prometheus::Error> {
        let opts = self.opts("counter", name, labels, help);
        self.add(CounterVec::new(opts, labels)?)
    }

    fn gauges(&mut self, name: &str, labels: &[&str], help: &str) -> Result<IntGaugeVec, prometheus::Error> {
        let opts = self.opts("gauge", name, labels, help);
        self.add(IntGaugeVec::new(opts, labels)?)
    }

    fn gauge_vec(&mut self, name: &str, labels: &[&str], help: &str) -> Result<GaugeVec, prometheus::Error> {
        let opts = self.opts("gauge", name, labels, help);
        self.add(GaugeVec::new(opts, labels)?)
    }

    fn gauge(&mut self, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
        let opts = self.opts("gauge", name, &[], help);
        self.add(Gauge::with_opts(opts)?)
    }

    fn histogram(
        &mut self,
        name: &str,
        labels: &[&str],
        help: &str,
    ) -> Result<HistogramVec, prometheus::Error> {
        let opts = self.opts("histogram", name, labels, help);
        self.add(HistogramVec::new(HistogramOpts::from(opts).buckets(LAG_BUCKETS.to_vec()), labels)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_every_metric_and_no_other() {
        let document = std::fs::read_to_string("docs/METRICS.md").unwrap();
        let written: Vec<(String, String, String, String)> = document
            .lines()
            .filter(|line| line.starts_with("| `shardwalker_"))
            .map(|line| {
                let cells: Vec<_> = line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect();
                (cells[0].replace('`', ""), cells[1].clone(), cells[2].replace('`', ""), cells[3].clone())
            })
            .collect();
        let expected: Vec<_> = Metrics::new()
            .unwrap()
            .descriptions()
            .iter()
            .map(|d| (d.name.clone(), d.kind.to_owned(), d.labels.join(", "), d.help.clone()))
            .collect();
        assert_eq!(written, expected);
    }

    #[test]
    fn alerts_are_about_metrics_that_exist() {
        let alerts = std::fs::read_to_string("deploy/prometheus/alerts.yml").unwrap();
        let metrics = Metrics::new().unwrap();
        let known = |name: &str| {
            metrics.descriptions().iter().any(|d| match d.kind {
                "histogram" => {
                    ["_bucket", "_sum", "_count"].iter().any(|end| name == format!("{}{end}", d.name))
                }
                _ => name == d.name,
            })
        };
        let words = alerts.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named: Vec<&str> = words.filter(|word| word.starts_with("shardwalker_")).collect();
        assert!(named.len() > 8, "{named:?}");
        for name in named {
            assert!(known(name), "{name}");
        }
        assert!(alerts.contains("shardwalker_time_to_loss_seconds"));
    }

    #[test]
    fn the_process_is_measured_too() {
        assert!(Metrics::new().unwrap().text().contains("process_resident_memory_bytes"));
    }
}
