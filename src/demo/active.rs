//! The active-active demo: a group of three members, each written by an application of its own, all to the same keys.
//!
//! One member is cut off for the middle third and goes on for itself. In the end every item of every table is compared,
//! as the sandbox has them, without the stamp.

use super::figures::Place;
use super::stage::{KEY, REPLICATOR, Stage};
use super::{DemoError, Options, joined, place, tenths};
use crate::clock::Clock;
use crate::config::Member;
use crate::failure::Failure;
use crate::sandbox::faults::{Effect, Rule};
use crate::service::{self, Service};
use crate::task::Tasks;
use aws_sdk_dynamodb::types::AttributeValue;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// The config that it runs with.
pub const CONFIG: &str = include_str!("active.toml");
/// Few, so that members often change the same item.
const KEYS: usize = 100;
const WRITER: [&str; 3] = ["dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem"];
/// The pause between two pictures.
const SHOW: Duration = Duration::from_millis(250);
/// All is done when the members are equal and nobody has written for this long.
const QUIET: Duration = Duration::from_secs(2);
/// When that does not come within this, something is stuck.
const STUCK: Duration = Duration::from_secs(120);

/// What it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Everybody writes and sees the others.
    Together,
    /// One member is cut off.
    Apart,
    /// Nobody writes any more.
    Settling,
}

/// A picture of the run.
#[derive(Debug, Clone)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Since the applications began.
    pub elapsed: Duration,
    /// Each member, how much its application has written, and how many of its items differ from the first member's.
    pub members: Vec<(String, u64, usize)>,
    /// Writes that lost to another member's.
    pub conflicts: u64,
}

/// The member that was cut off.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cut {
    /// Its name.
    pub member: String,
    /// For how long.
    pub seconds: f64,
    /// Keys that differed when it came back.
    pub differed: usize,
}

/// A member in the end.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// Which one.
    #[serde(flatten)]
    pub place: Place,
    /// What its application wrote.
    pub writes: u64,
    /// Keys whose items differ from the first member's.
    pub different: Vec<String>,
}

/// What a run came to.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Repeats the run.
    pub seed: u64,
    /// All members hold the same items.
    pub agree: bool,
    /// Nobody wrote any more.
    pub quiet: bool,
    /// How long the applications wrote.
    pub load_seconds: f64,
    /// How long it took from then until all were equal.
    pub settle_seconds: f64,
    /// The member that was cut off; `None` when the run was stopped before.
    pub cut: Option<Cut>,
    /// Writes that lost to another member's which had not seen them.
    pub conflicts: u64,
    /// Those that the journal holds.
    pub kept: usize,
    /// The members.
    pub members: Vec<Part>,
}

/// Runs it; `show` is called some times a second. Cancelling `stop` ends the writing early.
///
/// # Errors
/// [`DemoError`]. That the members differ is none: the figures tell.
pub async fn run(
    options: Options,
    stop: &CancellationToken,
    show: &mut (dyn FnMut(&Progress) + Send),
) -> Result<Figures, DemoError> {
    let Options { length, rate, seed } = options;
    let stage = Box::pin(Stage::of(CONFIG, seed)).await?;
    stage.let_in()?;
    let drain = CancellationToken::new();
    let built = service::Options {
        base: stage.base.clone(),
        create_state_table: false,
        clock: Clock::system(),
        seed,
    };
    let service = Box::pin(Service::build(stage.config.clone(), built, drain.clone())).await?;
    let metrics = service.metrics().clone();
    let mut serving = Tasks::new();
    serving.spawn(service.run());

    let (mut writing, enough) = (Tasks::new(), CancellationToken::new());
    let mut writes = Vec::new();
    let each = f64::from(rate) / stage.config.members.len() as f64;
    for (number, member) in stage.config.members.iter().enumerate() {
        let client = stage.local(member, "application", &WRITER)?;
        let (count, table) = (Arc::new(AtomicU64::new(0)), member.arn.table.clone());
        writes.push(Arc::clone(&count));
        let application = Application { client, table, member: member.name.clone(), count };
        let pace = Duration::from_secs_f64(1.0 / each.max(0.1));
        writing.spawn(application.run(seed ^ (number as u64 + 1), pace, enough.clone()));
    }
    let mut watched = Watched { stage: &stage, metrics: &metrics, writes: &writes, began: Instant::now() };
    let parts = [(Phase::Together, false), (Phase::Apart, true), (Phase::Together, false)];
    let mut cut = None;
    for (number, (phase, apart)) in parts.into_iter().enumerate() {
        if stop.is_cancelled() {
            break;
        }
        let (last, faults) = (&stage.config.members[2], stage.sandbox.faults());
        if apart {
            let away = Rule::new(Effect::Unavailable).caller(REPLICATOR).account(&last.arn.account);
            faults.add(away);
        }
        let until = length * (number as u32 + 1) / parts.len() as u32;
        let since = watched.began.elapsed();
        while watched.began.elapsed() < until && !stop.is_cancelled() {
            show(&watched.picture(phase)?);
            tokio::select! {
                ended = joined(&mut writing, "an application") => {
                    ended??;
                    return Err(DemoError::Ended("an application"));
                }
                ended = joined(&mut serving, "the service") => {
                    ended??;
                    return Err(DemoError::Ended("the service"));
                }
                () = stop.cancelled() => {}
                () = tokio::time::sleep(SHOW) => {}
            }
        }
        if apart {
            faults.clear();
            cut = Some(Cut {
                member: last.name.clone(),
                seconds: tenths((watched.began.elapsed() - since).as_secs_f64()),
                differed: watched
                    .picture(phase)?
                    .members
                    .iter()
                    .map(|(.., differ)| *differ)
                    .max()
                    .unwrap_or(0),
            });
        }
    }
    let load_seconds = tenths(watched.began.elapsed().as_secs_f64());
    enough.cancel();
    while !writing.is_empty() {
        joined(&mut writing, "an application").await??;
    }
    let silent = Instant::now();
    let (quiet, settled) = watched.until_quiet(show).await?;
    drain.cancel();
    joined(&mut serving, "the service").await??;

    let tables = watched.tables()?;
    let counts = writes.iter().map(|count| count.load(Ordering::Relaxed));
    let members = stage.config.members.iter().zip(&tables).zip(counts);
    let members: Vec<Part> = members
        .map(|((member, items), writes)| Part {
            place: place(member, items.len()),
            writes,
            different: differences(&tables[0], items),
        })
        .collect();
    Ok(Figures {
        seed,
        agree: members.iter().all(|member| member.different.is_empty()),
        quiet,
        load_seconds,
        settle_seconds: tenths((settled - silent).as_secs_f64()),
        cut,
        conflicts: watched.conflicts(),
        kept: watched.kept()?,
        members,
    })
}

/// What is looked at while it runs.
struct Watched<'a> {
    stage: &'a Stage,
    metrics: &'a crate::telemetry::metrics::Metrics,
    writes: &'a [Arc<AtomicU64>],
    began: Instant,
}

/// Items by key, without the stamp.
type Items = BTreeMap<String, Value>;

impl Watched<'_> {
    fn picture(&self, phase: Phase) -> Result<Progress, DemoError> {
        let tables = self.tables()?;
        let members = self.stage.config.members.iter().zip(self.writes).zip(&tables);
        let members = members.map(|((member, count), items)| {
            let differ = differences(&tables[0], items).len();
            (member.name.clone(), count.load(Ordering::Relaxed), differ)
        });
        let (members, conflicts) = (members.collect(), self.conflicts());
        Ok(Progress { phase, elapsed: self.began.elapsed(), members, conflicts })
    }

    fn tables(&self) -> Result<Vec<Items>, DemoError> {
        let stamp = &self.stage.config.routes[0].stamp;
        let table = |member: &Member| -> Result<Items, DemoError> {
            let items = self.stage.sandbox.items(&member.arn.to_string())?;
            let plain = items.into_iter().map(|mut item| {
                if let Some(attributes) = item.as_object_mut() {
                    attributes.remove(stamp);
                }
                (item[KEY]["S"].as_str().unwrap_or_default().to_owned(), item)
            });
            Ok(plain.collect())
        };
        self.stage.config.members.iter().map(table).collect()
    }

    fn conflicts(&self) -> u64 {
        let names: Vec<&str> = self.stage.config.members.iter().map(|member| &*member.name).collect();
        let pairs = names.iter().flat_map(|loser| names.iter().map(move |winner| (loser, winner)));
        let group = &self.stage.config.groups[0].name;
        pairs
            .map(|(loser, winner)| self.metrics.conflicts.with_label_values(&[&**group, loser, winner]).get())
            .sum()
    }

    fn kept(&self) -> Result<usize, DemoError> {
        let state = &self.stage.config.state;
        let arn = format!("arn:aws:dynamodb:{}:{REPLICATOR}:table/{}", state.access.region, state.table);
        let rows = self.stage.sandbox.items(&arn)?;
        let of_journal = |row: &&Value| row["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with("conflict#"));
        Ok(rows.iter().filter(of_journal).count())
    }

    /// Waits until the members are equal and nobody writes; whether that came, and since when it was so.
    async fn until_quiet(
        &mut self,
        show: &mut (dyn FnMut(&Progress) + Send),
    ) -> Result<(bool, Instant), DemoError> {
        let begun = Instant::now();
        let mut still = (self.requests(), begun);
        while begun.elapsed() < STUCK {
            let picture = self.picture(Phase::Settling)?;
            show(&picture);
            let requests = self.requests();
            if requests != still.0 || picture.members.iter().any(|(.., differ)| *differ > 0) {
                still = (requests, Instant::now());
            } else if still.1.elapsed() >= QUIET {
                return Ok((true, still.1));
            }
            tokio::time::sleep(SHOW).await;
        }
        Ok((false, Instant::now()))
    }

    /// Requests to the members that the service has sent.
    fn requests(&self) -> u64 {
        let routes = &self.stage.config.routes;
        let members = &self.stage.config.members;
        let pairs = routes.iter().flat_map(|route| members.iter().map(move |member| (route, member)));
        let count = |(route, member): (&crate::config::Route, &Member)| {
            self.metrics.peer_requests.with_label_values(&[&route.name, &member.name]).get()
        };
        pairs.map(count).sum()
    }
}

fn differences(one: &Items, other: &Items) -> Vec<String> {
    let keys = one.keys().chain(other.keys()).collect::<std::collections::BTreeSet<_>>();
    keys.into_iter().filter(|key| one.get(*key) != other.get(*key)).cloned().collect()
}

/// The application of one member. It knows nothing of any replication.
struct Application {
    client: aws_sdk_dynamodb::Client,
    table: String,
    member: String,
    count: Arc<AtomicU64>,
}

impl Application {
    async fn run(self, seed: u64, pace: Duration, enough: CancellationToken) -> Result<(), DemoError> {
        let mut chance = StdRng::seed_from_u64(seed);
        let mut ticks = tokio::time::interval(pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = enough.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            let (key, act) = (format!("K{:02}", chance.random_range(0..KEYS)), chance.random_range(0..10));
            let failed = |failure| DemoError::Call { who: "an application", failure };
            self.write(key, act).await.map_err(failed)?;
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn write(&self, key: String, act: u32) -> Result<(), Failure> {
        let text = |text: String| AttributeValue::S(text);
        let number = AttributeValue::N(self.count.load(Ordering::Relaxed).to_string());
        match act {
            0 => {
                self.client.delete_item().table_name(&self.table).key(KEY, text(key)).send().await?;
            }
            1..=4 => {
                let update = self.client.update_item().table_name(&self.table).key(KEY, text(key));
                update
                    .update_expression("SET written_by = :member, revision = :number")
                    .expression_attribute_values(":member", text(self.member.clone()))
                    .expression_attribute_values(":number", number)
                    .send()
                    .await?;
            }
            _ => {
                let put = self.client.put_item().table_name(&self.table).item(KEY, text(key));
                put.item("written_by", text(self.member.clone())).item("revision", number).send().await?;
            }
        }
        Ok(())
    }
}
