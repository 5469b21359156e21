//! The sections of the file: which keys each has, their ranges and defaults, and the checks within a section.
//!
//! Checks across members and routes are in [`routes`](super::routes), credentials and endpoints in
//! [`access`](super::access).

use super::access::{AccessDraft, Defaults, Target, access, check_region};
use super::endpoint::endpoint;
use super::feeds::{self, FeedDraft};
use super::groups::GroupDraft;
use super::report::Place;
use super::routes::{self, MemberDraft, RouteDraft, Settings};
use super::section::{Located, Reader, Section};
use super::shape;
use super::values::{self, Fault, TableRef, boolean, brief, duration, integer};
use super::{Admin, Config, Conflicts, DeadLetters, Guard, Lease, OnGap, Read, Start, State, Write};
use std::collections::BTreeMap;
use std::time::Duration;

const MILLIS_100: Duration = Duration::from_millis(100);

/// Reads the whole file; `None` when a problem was reported.
pub(super) fn config(reader: &Reader<'_>, mut root: Section<'_>) -> Option<Config> {
    // A faulty allow_http is reported once, not again for each endpoint.
    let allow_http = root.or("allow_http", false, boolean).is_none_or(|allow| allow.value);
    let defaults = Defaults { endpoint: root.optional("endpoint", endpoint(allow_http)), allow_http };
    let grace = root.or("grace", Duration::from_secs(25), duration(Duration::ZERO..=Duration::from_hours(1)));
    let patience = root.or(
        "access_patience",
        Duration::from_secs(30),
        duration(Duration::ZERO..=Duration::from_mins(15)),
    );
    let state = root.table("state", "[state]").and_then(|section| state(section, &defaults));
    let members = root.tables("member", "[[member]]", "name each table that routes copy from or to");
    let members: Vec<MemberDraft> = members.into_iter().map(|section| member(section, &defaults)).collect();
    let routes = root.optional_tables("route", "[[route]]", "say which member is copied to which");
    let groups = root.optional_tables("group", "[[group]]", "say which members hold the same items");
    if routes.is_none() && groups.is_none() {
        let remedy = "say which member is copied to which, or which members hold the same items";
        reader.report_missing(Place::File, Fault::new("missing [[route]] or [[group]]").remedy(remedy));
    }
    let feeds = root.optional_tables("feed", "[[feed]]", "name each destination that takes changes as files");
    let feeds: Vec<FeedDraft> = feeds.into_iter().flatten().map(feeds::feed).collect();
    let routes: Vec<RouteDraft> = routes.into_iter().flatten().map(route).collect();
    let groups: Vec<GroupDraft> = groups.into_iter().flatten().map(group).collect();
    let read = root.table("read", "[read]").and_then(read);
    let lease = root.table("lease", "[lease]").map(lease);
    let write = root.table("write", "[write]").and_then(|section| write(section, lease.as_ref()));
    let dead_letters = root.table("dead_letters", "[dead_letters]").and_then(dead_letters);
    let admin = root.table("admin", "[admin]").and_then(|section| admin(section, read.as_ref()));
    root.finish();

    let resolved = routes::resolve(reader, state.as_ref(), members, routes, groups, feeds)?;
    Some(Config {
        state: state?,
        members: resolved.members,
        routes: resolved.routes,
        groups: resolved.groups,
        feeds: resolved.feeds,
        read: read?,
        write: write?,
        lease: lease?.build()?,
        dead_letters: dead_letters?,
        admin: admin?,
        grace: grace?.value,
        access_patience: patience?.value,
    })
}

fn state(mut section: Section<'_>, defaults: &Defaults) -> Option<State> {
    let table = section.required("table", "the state table's name or ARN", values::table_ref);
    let region = section.or("region", None, |value| values::region(value).map(Some));
    let retention = section.or(
        "tombstone_retention",
        Duration::from_hours(7 * 24),
        duration(Duration::from_hours(25)..=Duration::from_hours(365 * 24)),
    );
    let arn = match table.as_ref().map(|table| &table.value) {
        Some(TableRef::Arn(arn)) => Some(arn),
        Some(TableRef::Name(_)) | None => None,
    };
    match (arn, &region) {
        (Some(arn), Some(Located { value: Some(found), place, .. })) if *found != arn.region => {
            let fault = Fault::new(format!("is {found}, but the table's ARN is of {}", arn.region));
            section.report("region", *place, fault.remedy("leave the key out"));
        }
        (None, Some(Located { value: None, .. })) if table.is_some() => {
            section
                .missing("region", "a table's name does not tell its Region: write region = \"eu-west-1\"");
        }
        _ => {}
    }
    let target = Target {
        whose: "the state table".to_owned(),
        region: arn.map(|arn| arn.region.clone()).or(region.and_then(|region| region.value)),
        owner: arn.map(|arn| (arn.partition.clone(), arn.account.clone())),
    };
    let access = access(&mut section, "[state.assume_role]", defaults, &target).access;
    section.finish();
    let table = match table?.value {
        TableRef::Arn(arn) => arn.to_string(),
        TableRef::Name(name) => name,
    };
    Some(State { table, access: access?, tombstone_retention: retention?.value })
}

fn member(mut section: Section<'_>, defaults: &Defaults) -> MemberDraft {
    let name = section.required("name", "a name of your choice for the table", values::name);
    let hint = "the table's ARN, \"arn:aws:dynamodb:REGION:ACCOUNT:table/NAME\"";
    let arn = section.required("table", hint, values::table_arn);
    let number = section.or("number", 0, integer(0..=255));
    let table = arn.as_ref().map(|arn| &arn.value);
    let target = Target {
        whose: name.as_ref().map_or("this member".to_owned(), |name| format!("member \"{}\"", name.value)),
        region: table.map(|arn| arn.region.clone()),
        owner: table.map(|arn| (arn.partition.clone(), arn.account.clone())),
    };
    let AccessDraft { mut access, aws_endpoint } =
        access(&mut section, "[member.assume_role]", defaults, &target);
    let streams = section.optional("streams_endpoint", endpoint(defaults.allow_http));
    if let Some(streams) = &streams {
        check_region(&section, "streams_endpoint", streams, &target);
    }
    // AWS serves streams at another host than tables.
    let no_streams_at = aws_endpoint.filter(|_| streams.is_none());
    if let Some(access) = &mut access {
        access.streams_endpoint = streams.map(|streams| streams.value.url);
    }
    section.finish();
    MemberDraft { name, arn, number, access, no_streams_at }
}

fn route(mut section: Section<'_>) -> RouteDraft {
    let (name, from) = (
        section.required("name", "a name of your choice for the route", values::name),
        section.required("from", "the name of the member whose changes are copied", values::string),
    );
    let to = section.strings("to", "write to = [\"MEMBER\", ...]");
    let reversible = section.or("reversible", false, boolean);
    let settings = settings(&mut section, true, "[route.guard]");
    let stamp = settings.stamp.as_ref().map(|stamp| stamp.value.as_str());
    let shape = section.optional_table("shape", "[route.shape]");
    let shape = shape.map_or(Some(None), |section| shape::shape(section, stamp).map(Some));
    if let (Some(reversible), Some(Some(_))) = (reversible.as_ref().filter(|it| it.value), &shape) {
        let fault =
            Fault::new("is for peers that hold the source's items as they are, and this route has a shape");
        section.report("reversible", reversible.place, fault.remedy("remove one of the two"));
    }
    let pristine = section.or("pristine", false, boolean);
    if let (Some(reversible), Some(pristine)) = (&reversible, &pristine)
        && reversible.value
        && pristine.value
    {
        let fault =
            Fault::new("makes no sense with \"reversible\": a way back rests on the stamps of both sides");
        section.report(
            "pristine",
            pristine.place,
            fault.remedy("remove one of the two; strip takes stamps off in the end"),
        );
    }
    let draft = RouteDraft { name, from, to, reversible, pristine, settings, shape };
    section.finish();
    draft
}

fn group(mut section: Section<'_>) -> GroupDraft {
    let draft = GroupDraft {
        name: section.required("name", "a name of your choice for the group", values::name),
        members: section.strings("members", "write members = [\"MEMBER\", \"MEMBER\", ...]"),
        conflicts: section.or("conflicts", Conflicts::Sampled, values::conflicts),
        conflicts_file: section.optional("conflicts_file", values::path),
        settings: settings(&mut section, false, "[group.guard]"),
    };
    section.refuse(
        "shape",
        "is for one-way routes: the members of a group hold the same items, and each of them is a source of all the others",
        "copy to the shaped table by a [[route]] from one of the members",
    );
    section.refuse(
        "pristine",
        "is for one-way routes: the members of a group know their writes from the applications' by the stamp",
        "leave the key out",
    );
    section.finish();
    draft
}

/// What a route and a group are both told. In a group every table expires its own items.
fn settings(section: &mut Section<'_>, ttl_deletes: bool, guard_title: &'static str) -> Settings {
    Settings {
        ttl_deletes: section.or("ttl_deletes", ttl_deletes, boolean),
        stamp: section.or("stamp", "shardwalker".to_owned(), values::attribute),
        start: section.or("start", Start::TrimHorizon, values::start),
        on_gap: section.or("on_gap", OnGap::Stop, values::on_gap),
        max_clock_drift: section.or(
            "max_clock_drift",
            Duration::from_mins(1),
            duration(Duration::from_secs(1)..=Duration::from_hours(1)),
        ),
        max_writes: section.or("max_writes_per_second", values::Rates::Of(BTreeMap::new()), values::rates),
        guard: section.optional_table("guard", guard_title).map_or(Some(None), |s| guard(s).map(Some)),
    }
}

/// What is wrong gives `None`, after it was reported.
fn guard(mut section: Section<'_>) -> Option<Guard> {
    let window = section.or(
        "window",
        Duration::from_mins(1),
        duration(Duration::from_secs(10)..=Duration::from_hours(1)),
    );
    let deletes = section.or("max_deletes", None, |value| integer(0..=1_000_000_000)(value).map(Some));
    let share = section.or("max_delete_share", None, |value| values::share(value).map(Some));
    let changes = section.or("min_changes", 100, integer(1..=1_000_000));
    if let (Some(Located { given: false, .. }), Some(Located { given: false, .. })) = (&deletes, &share) {
        section.missing("max_deletes", "or \"max_delete_share\": a guard needs something to guard against");
    }
    section.finish();
    Some(Guard {
        window: window?.value,
        max_deletes: deletes?.value,
        max_delete_share: share?.value,
        min_changes: changes?.value,
    })
}

fn read(mut section: Section<'_>) -> Option<Read> {
    let defaults = Read::default();
    let fastest = Duration::from_millis(200);
    let slowest = Duration::from_mins(1);
    let min = section.or("min_interval", defaults.min_interval, duration(fastest..=slowest));
    let idle = section.or("idle_interval", defaults.idle_interval, duration(fastest..=slowest));
    let list = section.or(
        "list_interval",
        defaults.list_interval,
        duration(Duration::from_secs(1)..=Duration::from_mins(10)),
    );
    let describe_rate = section.or("describe_rate", defaults.describe_rate, integer(1..=10));
    let memory_mb = section.or("memory_mb", defaults.memory_mb, integer(16..=65_536));
    if let (Some(min), Some(idle)) = (&min, &idle)
        && idle.value < min.value
    {
        let (idle_is, min_is) = (brief(idle.value), brief(min.value));
        let fault = Fault::new(format!("is {idle_is}, less than \"min_interval\", which is {min_is}"));
        section.report("idle_interval", if idle.given { idle.place } else { min.place }, fault);
    }
    section.finish();
    Some(Read {
        idle_interval: idle?.value,
        min_interval: min?.value,
        list_interval: list?.value,
        describe_rate: describe_rate?.value,
        memory_mb: memory_mb?.value,
    })
}

fn write(mut section: Section<'_>, lease: Option<&LeaseDraft>) -> Option<Write> {
    let defaults = Write::default();
    let in_flight = section.or("in_flight", defaults.in_flight, integer(1..=1000));
    let timeout = section.or(
        "request_timeout",
        defaults.request_timeout,
        duration(MILLIS_100..=Duration::from_mins(1)),
    );
    let checkpoint = section.or(
        "checkpoint_interval",
        defaults.checkpoint_interval,
        duration(MILLIS_100..=Duration::from_mins(1)),
    );
    check_third(
        &section,
        "request_timeout",
        timeout.as_ref(),
        lease.and_then(|lease| lease.duration.as_ref()),
    );
    section.finish();
    Some(Write {
        in_flight: in_flight?.value,
        request_timeout: timeout?.value,
        checkpoint_interval: checkpoint?.value,
    })
}

/// `[lease]`, with the place of the duration that other settings depend on.
struct LeaseDraft {
    duration: Option<Located<Duration>>,
    renew: Option<Located<Duration>>,
    look: Option<Located<Duration>>,
    handoff: Option<Located<Duration>>,
    worker: Option<String>,
}

impl LeaseDraft {
    fn build(self) -> Option<Lease> {
        Some(Lease {
            duration: self.duration?.value,
            renew_interval: self.renew?.value,
            look_interval: self.look?.value,
            handoff_timeout: self.handoff?.value,
            worker: self.worker,
        })
    }
}

fn lease(mut section: Section<'_>) -> LeaseDraft {
    let defaults = Lease::default();
    let longest = Duration::from_mins(10);
    let lease = section.or("duration", defaults.duration, duration(Duration::from_secs(3)..=longest));
    let sixth = lease.as_ref().map_or(defaults.renew_interval, |lease| lease.value / 6);
    let renew = section.or("renew_interval", sixth, duration(MILLIS_100..=longest));
    check_third(&section, "renew_interval", renew.as_ref(), lease.as_ref());
    let look = section.or("look_interval", defaults.look_interval, duration(MILLIS_100..=longest));
    check_third(&section, "look_interval", look.as_ref(), lease.as_ref());
    let handoff = section.or("handoff_timeout", defaults.handoff_timeout, duration(MILLIS_100..=longest));
    let worker = section.optional("worker", values::worker).map(|worker| worker.value);
    section.finish();
    LeaseDraft { duration: lease, renew, look, handoff, worker }
}

/// What a worker does within a lease must leave it time to try again before another may take the lease.
fn check_third(
    section: &Section<'_>,
    key: &str,
    value: Option<&Located<Duration>>,
    lease: Option<&Located<Duration>>,
) {
    let (Some(value), Some(lease)) = (value, lease) else { return };
    if value.value > lease.value / 3 {
        let place = if value.given { value.place } else { lease.place };
        let (value, lease) = (brief(value.value), brief(lease.value));
        let fault = Fault::new(format!("is {value}, more than a third of the lease's duration of {lease}"))
            .remedy("a worker must have time for a second try before its lease runs out");
        section.report(key, place, fault);
    }
}

fn dead_letters(mut section: Section<'_>) -> Option<DeadLetters> {
    let defaults = DeadLetters::default();
    let per_key = section.or("per_key", defaults.per_key, integer(1..=10_000));
    section.finish();
    Some(DeadLetters { per_key: per_key?.value })
}

fn admin(mut section: Section<'_>, read: Option<&Read>) -> Option<Admin> {
    let defaults = Admin::default();
    let listen = section.or("listen", defaults.listen, values::listen);
    let stall = section.or(
        "stall_after",
        defaults.stall_after,
        duration(Duration::from_secs(10)..=Duration::from_hours(24)),
    );
    if let (Some(stall), Some(read)) = (&stall, read)
        && stall.value < read.idle_interval
    {
        let (stall_is, idle_is) = (brief(stall.value), brief(read.idle_interval));
        let fault = Fault::new(format!("is {stall_is}, less than \"idle_interval\", which is {idle_is}"))
            .remedy("an idle shard would count as stalled");
        section.report("stall_after", stall.place, fault);
    }
    section.finish();
    Some(Admin { listen: listen?.value, stall_after: stall?.value })
}
