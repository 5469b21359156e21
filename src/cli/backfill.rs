//! `backfill`: the initial copy of a route's source to its peers, while the service streams.

use super::{ConfigArg, FOUND, answer, complain};
use crate::backfill::counts::Fate;
use crate::backfill::{Backfill, BackfillError, Ended, Picture, Request};
use crate::config::flag::{self, Location};
use crate::peer::OnExisting;
use crate::shutdown;
use crate::task::Tasks;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Arguments of `backfill`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// The route; GROUP/MEMBER for a member of a group to the others
    route: String,
    /// One of its peers only
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// What becomes of items at a peer that this replicator did not write and that differ from the source's
    ///
    /// [default: fail]
    #[arg(long, value_enum, value_name = "CHOICE")]
    on_existing: Option<Existing>,
    /// Parts in which the source is read [default: by its size, 8 to 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    segments: Option<u32>,
    /// Parts that this process works on at a time [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: Option<u16>,
    /// Read units that this process may spend in a second at the source
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    read_units: Option<u32>,
    /// Write units that this process may spend in a second at each peer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    write_units: Option<u32>,
    /// Read eventually consistent, for half of the cost
    #[arg(long)]
    eventually_consistent: bool,
    /// An export to S3, to be read instead of the source: s3://BUCKET/PREFIX or a folder, of manifest-summary.json
    #[arg(long, value_name = "PLACE", value_parser = Location::parse)]
    #[arg(conflicts_with_all = ["segments", "read_units", "eventually_consistent"])]
    from_export: Option<Location>,
    /// The Region of the export's bucket [default: the source's]
    #[arg(long, value_name = "REGION", value_parser = flag::region, requires = "from_export")]
    export_region: Option<String>,
    /// Another endpoint than AWS's for the export's bucket
    #[arg(long, value_name = "URL", value_parser = flag::endpoint, requires = "from_export")]
    export_endpoint: Option<String>,
    /// Begin anew, also when an earlier one is done
    #[arg(long)]
    restart: bool,
    /// Make the state table when it does not exist (on-demand, with time-to-live)
    #[arg(long)]
    create_state_table: bool,
    /// Serve /metrics here while it runs [default: not at all]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Print JSON at the end
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Existing {
    /// It stays
    Keep,
    /// The source's takes its place
    Overwrite,
    /// It stays, and the backfill stops
    Fail,
}

impl From<Existing> for OnExisting {
    fn from(existing: Existing) -> Self {
        match existing {
            Existing::Keep => Self::Keep,
            Existing::Overwrite => Self::Overwrite,
            Existing::Fail => Self::Fail,
        }
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    super::pause::check(&config, &args.route, args.peer.as_deref())?;
    let request = Request {
        route: args.route,
        peer: args.peer,
        segments: args.segments,
        parallel: args.parallel.map(usize::from),
        read_units: args.read_units,
        write_units: args.write_units,
        existing: args.on_existing.map(OnExisting::from),
        restart: args.restart,
        eventual: args.eventually_consistent,
        export: args.from_export.map(|from| match from {
            Location::S3 { bucket, prefix, .. } => {
                Location::S3 { bucket, prefix, region: args.export_region, endpoint: args.export_endpoint }
            }
            folder @ Location::Files(_) => folder,
        }),
    };
    let drain = CancellationToken::new();
    let mut signals = Tasks::new();
    signals.spawn(shutdown::on_signals(drain.clone())?);
    let options = super::options(args.create_state_table);
    let built = Box::pin(Backfill::build(config, request, options, args.listen, drain)).await;
    let backfill = match built {
        Ok(backfill) => backfill,
        Err(BackfillError::Stopped) => return Ok(ExitCode::SUCCESS),
        Err(BackfillError::Access(findings)) => {
            complain(&findings.to_string());
            return Ok(ExitCode::from(FOUND));
        }
        Err(error) => return Err(error.into()),
    };
    let (pictures, seen) = watch::channel(None);
    let (ended, ()) = futures::join!(Box::pin(backfill.run(pictures)), show(seen.clone()));
    let picture = seen.borrow().clone();
    let ended = match ended {
        Err(BackfillError::Stopped) => Ended::Drained,
        ended => ended?,
    };
    Ok(tell(&ended, picture.as_ref(), args.json)?)
}

/// The answer, and the exit code.
fn tell(ended: &Ended, picture: Option<&Picture>, json: bool) -> serde_json::Result<ExitCode> {
    match (picture, json) {
        (Some(picture), true) => answer(&serde_json::to_string_pretty(picture)?),
        (Some(picture), false) => answer(&summary(picture)),
        (None, _) => {}
    }
    let (said, code) = match ended {
        Ended::Done => ("done".to_owned(), ExitCode::SUCCESS),
        Ended::Before => {
            ("this backfill was done before; --restart begins it anew".to_owned(), ExitCode::SUCCESS)
        }
        Ended::Stopped(why) => (format!("stopped: {why}"), ExitCode::from(FOUND)),
        Ended::Drained => {
            ("stopped as asked; the same command goes on where it was".to_owned(), ExitCode::SUCCESS)
        }
    };
    complain(&said);
    let refused = picture.map_or(0, |picture| picture.count(Fate::Refused));
    if refused > 0 {
        complain(&format!("{refused} items were refused: shardwalker dead-letters list"));
        return Ok(ExitCode::from(FOUND));
    }
    Ok(code)
}

fn summary(picture: &Picture) -> String {
    let totals = &picture.totals;
    let mut text = format!(
        "{}{}: {} items, {:.1} MB, {:.0} read units, {} of {} segments done, {}",
        picture.route,
        picture.peer.as_ref().map(|peer| format!(" to {peer}")).unwrap_or_default(),
        totals.items,
        totals.bytes as f64 / 1e6,
        totals.read_units,
        picture.segments.done,
        picture.segments.all,
        humantime::format_duration(Duration::from_secs(picture.seconds)),
    );
    for (peer, fates) in &totals.peers {
        let fates: Vec<String> =
            fates.iter().map(|(fate, count)| format!("{count} {}", fate.name())).collect();
        text += &format!("\n  {peer}: {}", fates.join(", "));
    }
    text
}

/// A line every so often where there is no terminal.
const LINE: Duration = Duration::from_secs(10);
/// The rate is that of so many looks.
const LOOKS: usize = 15;

/// Shows how far it is until the backfill has ended: a bar on a terminal, lines elsewhere.
async fn show(mut pictures: watch::Receiver<Option<Picture>>) {
    let bar = std::io::stderr().is_terminal().then(bar);
    let mut looks: VecDeque<(Instant, u64)> = VecDeque::new();
    let mut said: Option<Instant> = None;
    while pictures.changed().await.is_ok() {
        let Some(picture) = pictures.borrow_and_update().clone() else { continue };
        looks.push_back((Instant::now(), picture.totals.items));
        if looks.len() > LOOKS {
            looks.pop_front();
        }
        let rate = rate(&looks);
        match &bar {
            Some(bar) => {
                bar.set_position((picture.fraction() * 1000.0) as u64);
                bar.set_message(line(&picture, rate));
            }
            None if said.is_none_or(|said| said.elapsed() >= LINE) => {
                said = Some(Instant::now());
                complain(&line(&picture, rate));
            }
            None => {}
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Items a second over the looks that are remembered.
fn rate(looks: &VecDeque<(Instant, u64)>) -> f64 {
    match (looks.front(), looks.back()) {
        (Some((first, before)), Some((last, now))) if last > first => {
            now.saturating_sub(*before) as f64 / (*last - *first).as_secs_f64()
        }
        _ => 0.0,
    }
}

fn line(picture: &Picture, rate: f64) -> String {
    let left = match picture.left(rate) {
        Some(left) => format!("{} left", humantime::format_duration(Duration::from_secs(left.as_secs()))),
        None => "time left unknown".to_owned(),
    };
    format!(
        "{} items of about {}, {} of {} segments, {rate:.0} items/s, {left}",
        picture.totals.items, picture.items_expected, picture.segments.done, picture.segments.all
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backfill::rows::{Job, Known, State};
    use std::time::UNIX_EPOCH;

    fn picture(items: u64) -> Picture {
        let job = Job {
            run: 1,
            source: "scan".to_owned(),
            table: "id".to_owned(),
            peers: std::collections::BTreeMap::new(),
            stream: "label".to_owned(),
            shape: String::new(),
            segments: 8,
            existing: OnExisting::Fail,
            items,
            bytes: 100,
            begun: UNIX_EPOCH,
            state: State::Running,
            since: UNIX_EPOCH,
        };
        let known = Known { peer: None, job, segments: Vec::new() };
        Picture::of("copy", &known, UNIX_EPOCH + Duration::from_secs(61))
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_has_the_rate_and_the_time_left() {
        let begun = Instant::now();
        let looks = VecDeque::from([(begun, 100), (begun + Duration::from_secs(10), 1100)]);
        let mut picture = picture(4100);
        picture.totals.items = 1100;
        assert_eq!(
            line(&picture, rate(&looks)),
            "1100 items of about 4100, 0 of 8 segments, 100 items/s, 30s left"
        );
        assert!((picture.fraction() - 1100.0 / 4100.0).abs() < 1e-9);
        assert!(line(&picture, 0.0).ends_with("time left unknown"));
        assert_eq!(summary(&picture), "copy: 1100 items, 0.0 MB, 0 read units, 0 of 8 segments done, 1m 1s");
        picture.totals.items = 5000;
        assert!(picture.fraction() < 1.0, "DynamoDB's count is old");
    }
}
