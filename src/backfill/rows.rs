//! The rows of a backfill in the state table: what it is, and how far each segment is.
//!
//! Every change of a segment is one conditional write, on the owner and the epoch of whoever holds it. What a segment
//! was about to create is written down before, so that whoever goes on after a crash can see to it
//! ([`Held::earlier_keys`]).
//!
//! Rows: `backfill#<route>` / `<scope>#job` and `<scope>#segment#<run>#<number>`, where the scope is a peer's name or `*`
//! for all of the route's; and `backfill-keys#<route>` / `<scope>#<run>#<number>#<epoch>`.

mod held;

pub use held::{Held, HeldError};

use super::counts::Totals;
use crate::failure::{Class, Failure};
use crate::item::{Item, Key};
use crate::json::{Spelling, write_fields, write_list};
use crate::peer::OnExisting;
use crate::state::{Row, SK, StateTable, get_number, get_text, key, number, text};
use crate::view::Fields;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// In place of a peer: all of the route's.
const ALL: &str = "*";
/// The rest of a job's sort key.
const JOB: &str = "job";
const OWNER: &str = "owner";
const EPOCH: &str = "epoch";
const CURSOR: &str = "cursor";
const DONE: &str = "done";
const TOTALS: &str = "totals";
const RUN: &str = "run";
const PEERS: &str = "peers";
/// Keys compress well at any level; they are written once for each page.
const LEVEL: i32 = 1;

/// What a backfill is, and what it has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Counts backfills of the same route and peers.
    pub run: u64,
    /// What is read: `scan`, or an export's ARN.
    pub source: String,
    /// The source table's id, which another table of the same name does not have.
    pub table: String,
    /// The peers' names, each with its table's id.
    pub peers: BTreeMap<String, String>,
    /// The label of the stream that was pinned before anything was read.
    pub stream: String,
    /// The route's shape; empty for none.
    pub shape: String,
    /// How many parts the source is read in.
    pub segments: u32,
    /// What becomes of items that we did not write.
    pub existing: OnExisting,
    /// About how many items there are, as DynamoDB said at the beginning.
    pub items: u64,
    /// And their bytes.
    pub bytes: u64,
    /// When it began.
    pub begun: SystemTime,
    /// What it has come to.
    pub state: State,
    /// When it came to that.
    pub since: SystemTime,
}

/// What a backfill has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It goes on while somebody works on it.
    Running,
    /// It met something that an operator must decide.
    Stopped(String),
    /// Every item is done.
    Done,
}

impl State {
    const fn name(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped(_) => "stopped",
            Self::Done => "done",
        }
    }
}

/// How far the reading of a segment is: the attribute that its next page begins after.
pub type Cursor = AttributeValue;

/// A segment, as its row shows it. One that nobody has begun has no row.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Its number, from 0.
    pub number: u32,
    /// Who works on it.
    pub owner: Option<String>,
    /// Rises each time it is taken.
    pub epoch: u64,
    /// How far it is: everything before is durable at every peer.
    pub cursor: Option<Cursor>,
    /// Whether it is done.
    pub done: bool,
    /// What became of it so far.
    pub totals: Totals,
}

/// A backfill with its segments.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// The only peer that it is for; `None` for all of the route's.
    pub peer: Option<String>,
    /// What it is.
    pub job: Job,
    /// The segments that were begun, in order.
    pub segments: Vec<Segment>,
}

impl Known {
    /// All segments together.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.segments.iter().for_each(|segment| totals.merge(&segment.totals));
        totals
    }

    /// Whether every segment is done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.segments.iter().filter(|segment| segment.done).count() == self.job.segments as usize
    }
}

/// The rows of the backfills of one route, for one peer or all. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rows {
    state: StateTable,
    route: Arc<str>,
    scope: Arc<str>,
    worker: Arc<str>,
}

/// All backfills of a route, strongly consistent; in the order of their peers' names, that for all of them first.
///
/// # Errors
/// The failure of the call.
pub async fn list(state: &StateTable, route: &str) -> Result<Vec<Known>, Failure> {
    let rows = state.rows(&partition(route), "", &[]).await?;
    let mut found = Vec::new();
    for row in &rows {
        let Some((scope, JOB)) = get_text(row, SK).and_then(|sort| sort.split_once('#')) else { continue };
        let job = job(row)?;
        let prefix = segments(scope, job.run);
        let of_job = rows.iter().filter_map(|row| Some((get_text(row, SK)?.strip_prefix(&*prefix)?, row)));
        let segments = of_job.map(|(sort, row)| segment(sort, row)).collect::<Result<_, _>>()?;
        found.push(Known { peer: (scope != ALL).then(|| scope.to_owned()), job, segments });
    }
    Ok(found)
}

impl Rows {
    /// The rows of the backfills of `route` to one peer or all, as `worker` sees and takes them.
    #[must_use]
    pub fn new(state: StateTable, route: &str, peer: Option<&str>, worker: Arc<str>) -> Self {
        Self { state, route: route.into(), scope: peer.unwrap_or(ALL).into(), worker }
    }

    /// The backfill with its segments; `None` when there was none. Strongly consistent.
    ///
    /// # Errors
    /// The failure of the call, or of a row that makes no sense.
    pub async fn load(&self) -> Result<Option<Known>, Failure> {
        let peer = (&*self.scope != ALL).then_some(&*self.scope);
        Ok(list(&self.state, &self.route).await?.into_iter().find(|known| known.peer.as_deref() == peer))
    }

    /// Begins a backfill in place of the one of run `before`, or of none; `false` when another process was faster.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn begin(&self, job: &Job, before: Option<u64>) -> Result<bool, Failure> {
        let mut row = self.job_key();
        row.extend(job_row(job));
        let put = self.state.call("PutItem").put_item().table_name(self.state.name()).set_item(Some(row));
        let put = put.expression_attribute_names("#run", RUN);
        let put = match before {
            None => put.condition_expression("attribute_not_exists(#run)"),
            Some(before) => put
                .condition_expression("#run = :before")
                .expression_attribute_values(":before", number(before)),
        };
        held(put.send().await.map_err(Failure::from))
    }

    /// Notes what a run has come to; `false` when it is not the current one any more.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn set(&self, job: &Job) -> Result<bool, Failure> {
        self.begin(job, Some(job.run)).await
    }

    /// Takes a segment, as it was `seen` or when it has no row; `None` when another process was faster.
    ///
    /// # Errors
    /// The failure of the call, after which it may be this worker's.
    pub async fn take(&self, run: u64, number: u32, seen: Option<&Segment>) -> Result<Option<Held>, Failure> {
        let epoch = seen.map_or(0, |seen| seen.epoch) + 1;
        let sort = format!("{}{number:05}", segments(&self.scope, run));
        let update = self
            .update(&sort)
            .update_expression("SET #owner = :me, #epoch = :epoch")
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#epoch", EPOCH)
            .expression_attribute_values(":me", text(&*self.worker))
            .expression_attribute_values(":epoch", crate::state::number(epoch))
            .return_values(ReturnValue::AllNew);
        let update = match seen {
            None => update.condition_expression("attribute_not_exists(#epoch)"),
            Some(seen) => update
                .condition_expression("#epoch = :seen AND attribute_not_exists(#done)")
                .expression_attribute_names("#done", DONE)
                .expression_attribute_values(":seen", crate::state::number(seen.epoch)),
        };
        let row = match update.send().await.map_err(Failure::from) {
            Ok(answer) => answer.attributes.unwrap_or_default(),
            Err(failure) if failure.class == Class::Condition => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let segment = segment(&format!("{number:05}"), &row)?;
        Ok(Some(Held { rows: self.clone(), run, sort, segment }))
    }

    /// The segments of the runs before one: who holds each, and what [`Rows::forget`] takes. Strongly consistent.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn earlier(&self, run: u64) -> Result<Vec<(String, Option<String>)>, Failure> {
        let prefix = format!("{}#segment#", self.scope);
        let mut rows = self.state.rows(&partition(&self.route), &prefix, &[]).await?;
        let end = segments(&self.scope, run);
        rows.retain(|row| get_text(row, SK).is_some_and(|sort| sort < &*end));
        let held = |row: &Row| Some((get_text(row, SK)?.to_owned(), get_text(row, OWNER).map(str::to_owned)));
        Ok(rows.iter().filter_map(held).collect())
    }

    /// Removes the row of a segment of an earlier run.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn forget(&self, sort: &str) -> Result<(), Failure> {
        self.state.delete(key(&partition(&self.route), sort)).await
    }

    /// What was about to be created in the runs before one: the keys, and what [`Rows::forget_keys`] takes.
    ///
    /// # Errors
    /// The failure of the call, or of a row that makes no sense.
    pub async fn earlier_keys(&self, run: u64) -> Result<Vec<(String, Vec<Key>)>, Failure> {
        self.keys(&format!("{}#", self.scope), &format!("{}#{run:06}#", self.scope)).await
    }

    async fn keys(&self, prefix: &str, end: &str) -> Result<Vec<(String, Vec<Key>)>, Failure> {
        let mut rows = self.state.rows(&keys_partition(&self.route), prefix, &[]).await?;
        rows.retain(|row| get_text(row, SK).is_some_and(|sort| sort < end));
        let decoded =
            |row: &Row| Some((get_text(row, SK)?.to_owned(), decode(row.get("data")?.as_b().ok()?)?));
        rows.iter().map(|row| decoded(row).ok_or_else(|| bad("keys"))).collect()
    }

    /// Removes a row of keys.
    ///
    /// # Errors
    /// The failure of the call.
    pub async fn forget_keys(&self, sort: &str) -> Result<(), Failure> {
        self.state.delete(key(&keys_partition(&self.route), sort)).await
    }

    fn job_key(&self) -> Row {
        key(&partition(&self.route), &format!("{}#{JOB}", self.scope))
    }

    fn update(&self, sort: &str) -> UpdateItemFluentBuilder {
        let key = key(&partition(&self.route), sort);
        self.state.call("UpdateItem").update_item().table_name(self.state.name()).set_key(Some(key))
    }
}

/// Whether a condition held.
fn held<T>(answer: Result<T, Failure>) -> Result<bool, Failure> {
    match answer {
        Ok(_) => Ok(true),
        Err(failure) if failure.class == Class::Condition => Ok(false),
        Err(failure) => Err(failure),
    }
}

fn partition(route: &str) -> String {
    format!("backfill#{route}")
}

fn keys_partition(route: &str) -> String {
    format!("backfill-keys#{route}")
}

fn segments(scope: &str, run: u64) -> String {
    format!("{scope}#segment#{run:06}#")
}

fn seconds(time: SystemTime) -> AttributeValue {
    number(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

fn job_row(job: &Job) -> Row {
    let peers = job.peers.iter().map(|(name, table)| (name.clone(), text(table))).collect();
    let mut row = Row::from([
        (RUN.to_owned(), number(job.run)),
        ("source".to_owned(), text(&job.source)),
        ("table".to_owned(), text(&job.table)),
        ("stream".to_owned(), text(&job.stream)),
        ("shape".to_owned(), text(&job.shape)),
        (PEERS.to_owned(), AttributeValue::M(peers)),
        ("segments".to_owned(), number(job.segments)),
        ("on_existing".to_owned(), text(job.existing.name())),
        ("items".to_owned(), number(job.items)),
        ("bytes".to_owned(), number(job.bytes)),
        ("begun".to_owned(), seconds(job.begun)),
        ("state".to_owned(), text(job.state.name())),
        ("since".to_owned(), seconds(job.since)),
    ]);
    if let State::Stopped(why) = &job.state {
        row.insert("why".to_owned(), text(why));
    }
    row
}

fn job(row: &Row) -> Result<Job, Failure> {
    let words = |name| get_text(row, name).ok_or_else(|| bad(name));
    let count = |name| get_number::<u64>(row, name).ok_or_else(|| bad(name));
    let time = |name| count(name).map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
    let existing = words("on_existing")?;
    Ok(Job {
        run: count(RUN)?,
        source: words("source")?.to_owned(),
        table: words("table")?.to_owned(),
        stream: words("stream")?.to_owned(),
        shape: get_text(row, "shape").unwrap_or_default().to_owned(),
        peers: row.get(PEERS).and_then(peers).ok_or_else(|| bad(PEERS))?,
        segments: get_number(row, "segments").ok_or_else(|| bad("segments"))?,
        existing: OnExisting::ALL
            .into_iter()
            .find(|choice| choice.name() == existing)
            .ok_or_else(|| bad("on_existing"))?,
        items: count("items")?,
        bytes: count("bytes")?,
        begun: time("begun")?,
        state: match words("state")? {
            "running" => State::Running,
            "done" => State::Done,
            "stopped" => State::Stopped(get_text(row, "why").unwrap_or_default().to_owned()),
            _ => return Err(bad("state")),
        },
        since: time("since")?,
    })
}

fn peers(value: &AttributeValue) -> Option<BTreeMap<String, String>> {
    let peer = |(name, table): (&String, &AttributeValue)| Some((name.clone(), table.as_s().ok()?.clone()));
    value.as_m().ok()?.iter().map(peer).collect()
}

/// A segment's row; `sort` is the end of its sort key.
fn segment(sort: &str, row: &Row) -> Result<Segment, Failure> {
    Ok(Segment {
        number: sort.parse().map_err(|_| bad("number"))?,
        owner: get_text(row, OWNER).map(str::to_owned),
        epoch: get_number(row, EPOCH).ok_or_else(|| bad(EPOCH))?,
        cursor: row.get(CURSOR).cloned(),
        done: row.contains_key(DONE),
        totals: row.get(TOTALS).map(Totals::from_value).unwrap_or_default(),
    })
}

fn bad(what: &str) -> Failure {
    Failure::new(Class::Unrecognised, "BadBackfill", format!("a row of a backfill has no {what}"))
}

fn encode(keys: &[&Key]) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    write_list(keys, &mut text, |key, out| {
        write_fields(&Fields::of(&key.attributes().0), Spelling::Typed, out);
    });
    zstd::bulk::compress(&text, LEVEL)
        .map_err(|error| Failure::new(Class::Unrecognised, "Compression", error.to_string()))
}

fn decode(data: &Blob) -> Option<Vec<Key>> {
    let text = zstd::stream::decode_all(data.as_ref()).ok()?;
    let keys: Vec<Item> = serde_json::from_slice(&text).ok()?;
    Some(keys.into_iter().map(Key::new).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_survives_the_table() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        for state in [State::Running, State::Done, State::Stopped("an item".to_owned())] {
            let word = |text: &str| text.to_owned();
            let job = Job {
                run: 3,
                source: word("scan"),
                table: word("id"),
                stream: word("label"),
                shape: "5a".to_owned(),
                peers: BTreeMap::from([(word("b"), word("id of b")), (word("c"), String::new())]),
                segments: 8,
                existing: OnExisting::Keep,
                items: 5,
                bytes: 6,
                begun: at(7),
                state,
                since: at(8),
            };
            assert_eq!(super::job(&job_row(&job)), Ok(job));
        }
        assert_eq!(super::job(&Row::new()).unwrap_err().code, "BadBackfill");
    }

    #[test]
    fn keys_come_back_as_they_were() {
        let key = |n: u8| {
            let attributes = [
                ("pk".to_owned(), AttributeValue::B(Blob::new([n, 0, 255]))),
                ("sk".to_owned(), AttributeValue::N("1.5".to_owned())),
            ];
            Key::new(Item(attributes.into_iter().collect()))
        };
        let keys: Vec<Key> = (0..100).map(key).collect();
        let data = Blob::new(encode(&keys.iter().collect::<Vec<_>>()).unwrap());
        assert!(data.as_ref().len() < 1500, "{} bytes", data.as_ref().len());
        assert_eq!(decode(&data).unwrap(), keys);
    }
}
