//! `demo`: the service on the embedded sandbox, watched, and judged in the end.
//!
//! The figures go to stdout. Progress goes to stderr: lines that move on a terminal, a line every second
//! elsewhere.

use super::{FOUND, answer, complain};
use crate::demo::figures::{Figures, Peer, Phase, Place, Progress};
use crate::demo::{self, Options};
use crate::shutdown;
use crate::task::Tasks;
use anyhow::Context;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How long to write
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    length: Duration,
    /// Writes a second, at most
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Repeats the writes of an earlier run
    #[arg(long)]
    seed: Option<u64>,
    /// Print the figures as one JSON object
    #[arg(long)]
    json: bool,
    /// A group of three members, each written by its own application, one of them cut off and back
    #[arg(long)]
    active_active: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    // A seed that a person can copy.
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let stop = CancellationToken::new();
    let mut signals = Tasks::new();
    signals.spawn(shutdown::on_signals(stop.clone())?);
    complain(&format!(
        "Three tables in three AWS accounts of the embedded sandbox, the replicator in a fourth. Seed {seed}."
    ));
    let options = Options { length: args.length, rate: args.rate, seed };
    if args.active_active {
        return super::demo_active::run(options, args.json, &stop).await;
    }
    let figures = if std::io::stderr().is_terminal() {
        let mut bars = Bars::new(args.length);
        let figures = Box::pin(demo::run(options, &stop, &mut |progress| bars.show(progress))).await;
        bars.clear();
        figures
    } else {
        let mut lines = Lines::default();
        Box::pin(demo::run(options, &stop, &mut |progress| lines.show(progress))).await
    };
    let figures = figures.with_context(|| format!("demo with seed {seed}"))?;
    if args.json {
        answer(&serde_json::to_string(&figures)?);
    } else {
        answer(&summary(&figures));
        answer(&painted(&verdict(&figures), figures.agree));
    }
    Ok(if figures.agree { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::CatchingUp => "catching up",
        Phase::Load => "writing",
        Phase::Settling => "settling",
    }
}

/// What moves on a terminal: one bar for the time, and a line for each peer.
struct Bars {
    screen: MultiProgress,
    time: ProgressBar,
    peers: Vec<ProgressBar>,
    style: ProgressStyle,
}

impl Bars {
    fn new(length: Duration) -> Self {
        let style = |template: &str| {
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        let screen = MultiProgress::new();
        let millis = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let time = screen.add(ProgressBar::new(millis));
        time.set_style(style("{spinner:.cyan} {prefix:<11} {bar:30.cyan/dim} {msg}").progress_chars("━━─"));
        Self { screen, time, peers: Vec::new(), style: style("  {prefix:<11.bold} {msg}") }
    }

    fn show(&mut self, progress: &Progress) {
        let length = self.time.length().unwrap_or_default();
        let at = u64::try_from(progress.elapsed.as_millis()).unwrap_or(u64::MAX);
        self.time.set_position(match progress.phase {
            Phase::CatchingUp => 0,
            Phase::Load => at.min(length),
            Phase::Settling => length,
        });
        self.time.set_prefix(phase(progress.phase));
        let shards = progress.shards;
        self.time.set_message(format!(
            "{} writes, {} open shards, {} closed",
            thousands(progress.writes),
            shards.open,
            shards.closed
        ));
        self.time.tick();
        while self.peers.len() < progress.peers.len() {
            let line = self.screen.add(ProgressBar::new_spinner());
            line.set_style(self.style.clone());
            self.peers.push(line);
        }
        for (line, peer) in self.peers.iter().zip(&progress.peers) {
            line.set_prefix(peer.name.clone());
            line.set_message(format!(
                "{:>7} done   superseded {}   lag p50 {} p99 {}",
                thousands(peer.changes.total()),
                thousands(peer.changes.superseded),
                millis(peer.lag.p50_ms),
                millis(peer.lag.p99_ms),
            ));
        }
    }

    fn clear(&self) {
        // A terminal that is gone needs no clearing.
        let _ = self.screen.clear();
    }
}

/// A line every second.
#[derive(Default)]
struct Lines {
    last: Option<(Phase, u64)>,
}

impl Lines {
    fn show(&mut self, progress: &Progress) {
        let now = Some((progress.phase, progress.elapsed.as_secs()));
        if self.last == now {
            return;
        }
        self.last = now;
        let mut line = format!(
            "{:>5.1} s  {}: {} writes, {} open shards",
            progress.elapsed.as_secs_f64(),
            phase(progress.phase),
            progress.writes,
            progress.shards.open
        );
        for peer in &progress.peers {
            let (changes, lag) = (peer.changes, peer.lag);
            let _ = write!(
                line,
                "; {} {} done, {} superseded, lag p50 {} p99 {}",
                peer.name,
                changes.total(),
                changes.superseded,
                millis(lag.p50_ms),
                millis(lag.p99_ms)
            );
        }
        complain(&line);
    }
}

fn summary(figures: &Figures) -> String {
    let mut text = members(figures);
    let writes = figures.writes;
    let _ = write!(
        text,
        "\n{} writes: {} inserts, {} updates, {} deletes; {} of them before the service started.\n",
        thousands(writes.total()),
        thousands(writes.inserts),
        thousands(writes.updates),
        thousands(writes.deletes),
        thousands(figures.backlog),
    );
    let _ = writeln!(
        text,
        "{} s of load{}, then {} s until the last change was done.",
        figures.load_seconds,
        if figures.interrupted { " (interrupted)" } else { "" },
        figures.settle_seconds
    );
    if let Some(split) = figures.split {
        let _ = writeln!(
            text,
            "At {} s the stream's shards were split: {} became {}.",
            split.at_seconds, split.from, split.to
        );
    }
    let _ = writeln!(
        text,
        "The replicator ran as {}; before the policies were attached, {} of {} tables denied it.",
        figures.role,
        figures.denied_before_policies,
        1 + figures.peers.len()
    );
    text + "Lag: from a write's answer at the source until a reader saw it at the peer, looking every 20 ms.\n"
}

/// A table with a line for each member.
fn members(figures: &Figures) -> String {
    let head = [
        "member",
        "account",
        "Region",
        "table",
        "items",
        "applied",
        "folded",
        "superseded",
        "lag p50",
        "p99",
    ];
    let place = |place: &Place| {
        let Place { name, account, region, table, items } = place;
        vec![name.clone(), account.clone(), region.clone(), table.clone(), items.to_string()]
    };
    let peer = |peer: &Peer| {
        let (changes, lag) = (peer.changes, peer.lag);
        let numbers = [changes.applied, changes.folded, changes.superseded].map(thousands);
        let mut row = place(&peer.place);
        row.extend(numbers);
        row.extend([millis(lag.p50_ms), millis(lag.p99_ms)]);
        row
    };
    let mut rows = vec![head.map(str::to_owned).to_vec(), place(&figures.source)];
    rows.extend(figures.peers.iter().map(peer));
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..head.len()).filter_map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            // Names to the left, numbers to the right.
            let _ =
                if column < 4 { write!(line, "{cell:<width$}  ") } else { write!(line, "{cell:>width$}  ") };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn verdict(figures: &Figures) -> String {
    if figures.agree {
        return format!(
            "AGREE: all {} tables hold the same {} items.",
            1 + figures.peers.len(),
            figures.source.items
        );
    }
    let mut text = format!("DIFFER (seed {}):", figures.seed);
    for peer in figures.peers.iter().filter(|peer| !peer.difference.is_empty()) {
        let difference = &peer.difference;
        for (what, keys) in [
            ("missing", &difference.missing),
            ("too many", &difference.extra),
            ("different", &difference.different),
        ] {
            if !keys.is_empty() {
                let some = keys.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
                let more = if keys.len() > 5 { ", ..." } else { "" };
                let _ = write!(text, "\n  {}: {} {what}: {some}{more}", peer.place.name, keys.len());
            }
        }
    }
    if !figures.caught_up {
        text += "\n  not all changes were done in time";
    }
    text
}

/// Green or red on a terminal, unless the user wants no colours.
pub(super) fn painted(text: &str, good: bool) -> String {
    if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
    {
        return text.to_owned();
    }
    let colour = if good { 32 } else { 31 };
    format!("\x1b[1;{colour}m{text}\x1b[0m")
}

/// Milliseconds for a person; a dash where nothing was measured.
fn millis(value: f64) -> String {
    if value > 0.0 { format!("{value:.0} ms") } else { "-".to_owned() }
}

/// A number with its thousands apart.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::compare::Difference;
    use crate::demo::figures::{Changes, Shards, Split};
    use crate::demo::load::Tally;
    use crate::demo::observer::Lag;

    fn figures(difference: Difference) -> Figures {
        let place = |name: &str| Place {
            name: name.into(),
            account: "222222222222".into(),
            region: "eu-west-1".into(),
            table: "airports".into(),
            items: 151,
        };
        let peer = Peer {
            place: place("near"),
            changes: Changes { applied: 1999, folded: 31, ..Changes::default() },
            requests: 2000,
            lag: Lag { writes: 1850, p50_ms: 131.2, p99_ms: 260.7, max_ms: 300.0 },
            difference,
        };
        Figures {
            seed: 7,
            agree: peer.difference.is_empty(),
            caught_up: true,
            interrupted: false,
            load_seconds: 10.0,
            settle_seconds: 0.3,
            backlog: 150,
            writes: Tally { inserts: 550, updates: 1200, deletes: 280 },
            records_read: 2030,
            shards: Shards { open: 8, closed: 4 },
            split: Some(Split { from: 4, to: 8, at_seconds: 5.1 }),
            denied_before_policies: 2,
            role: "arn:aws:iam::444444444444:role/shardwalker".into(),
            source: place("source"),
            peers: vec![peer],
        }
    }

    #[test]
    fn the_summary_says_where_and_how_much_and_the_verdict_that_all_agree() {
        let text = summary(&figures(Difference::default()));
        for part in [
            "member  account       Region     table     items  applied  folded  superseded  lag p50     p99",
            "near    222222222222  eu-west-1  airports    151    1,999      31           0   131 ms  261 ms",
            "2,030 writes: 550 inserts, 1,200 updates, 280 deletes",
            "4 became 8",
            "role/shardwalker; before the policies were attached, 2 of 2 tables denied it",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert_eq!(verdict(&figures(Difference::default())), "AGREE: all 2 tables hold the same 151 items.");
    }

    #[test]
    fn a_difference_is_named_with_its_keys_and_the_seed() {
        let keys = ["A", "B", "C", "D", "E", "F"].map(str::to_owned).to_vec();
        let text = verdict(&figures(Difference { missing: keys, ..Difference::default() }));
        assert!(text.contains("DIFFER (seed 7):\n  near: 6 missing: A, B, C, D, E, ..."), "{text}");
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
