//! Any text at all, and any sound configuration, through the parser. A failing case is shrunk and printed with
//! its seed, and kept under `proptest-regressions/`.

use super::SOUND;
use crate::config::{
    Access, Admin, AssumeRole, Config, Conflicts, DeadLetters, Group, Guard, Lease, Member, OnGap, Place,
    Read, Route, Start, State, TableArn, Write,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

/// Parses, and checks what holds for every report.
fn check(text: &str, env: &str) -> Result<(), TestCaseError> {
    let lookup = |_: &str| Some(env.to_owned());
    let Err(report) = Config::parse(text, "f.toml", &lookup) else { return Ok(()) };
    prop_assert!(!report.problems.is_empty());
    prop_assert!(report.problems.is_sorted_by_key(|problem| problem.place));
    prop_assert_eq!(report.to_string().split('\n').count(), report.problems.len(), "{}", report);
    let lines: Vec<&str> = text.split('\n').collect();
    for problem in &report.problems {
        if let Place::At { line, column } = problem.place {
            prop_assert!((1..=lines.len()).contains(&line), "{:?}", problem);
            prop_assert!(column >= 1 && column <= lines[line - 1].chars().count() + 1, "{:?}", problem);
        }
    }
    Ok(())
}

/// Values that are right somewhere and wrong elsewhere.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("\"old\"".to_owned()),
        Just("[\"new\", \"old\"]".to_owned()),
        Just("{ role = 1 }".to_owned()),
        Just("2026-01-01T00:00:00Z".to_owned()),
        Just("\"arn:aws:dynamodb:eu-west-1:111111111111:table/orders\"".to_owned()),
        any::<i128>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| number.to_string()),
        "[0-9]{1,20}(ns|ms|s|min|h|y| )[0-9]{0,20}(ms)?".prop_map(|text| format!("\"{text}\"")),
        "[0-9:TZ+. -]{0,30}".prop_map(|text| format!("\"{text}\"")),
        "https?://[a-z0-9.:@\\[\\]/?#%-]{0,20}".prop_map(|text| format!("\"{text}\"")),
        "(arn|aws|dynamodb|iam|:|/|table|role|[0-9]){0,12}".prop_map(|text| format!("\"{text}\"")),
        ".{0,12}",
    ]
}

/// Lines of a configuration file in any order.
fn line() -> impl Strategy<Value = String> {
    let section = prop::sample::select(vec![
        "[state]",
        "[[member]]",
        "[member.assume_role]",
        "[[route]]",
        "[[group]]",
        "[read]",
        "[write]",
        "[lease]",
        "[admin]",
    ]);
    let key = prop::sample::select(vec![
        "endpoint",
        "table",
        "region",
        "name",
        "number",
        "role",
        "duration",
        "from",
        "to",
        "members",
        "conflicts",
        "conflicts_file",
        "stamp",
        "start",
        "grace",
        "on_gap",
        "listen",
        "in_flight",
        "assume_role",
        "member",
        "tombstone_retention",
        "sts_endpoint",
        "worker",
    ]);
    prop_oneof![
        1 => section.prop_map(str::to_owned),
        4 => (key, value()).prop_map(|(key, value)| format!("{key} = {value}")),
        1 => ".{0,20}",
    ]
}

proptest! {
    #[test]
    fn any_text_gives_a_configuration_or_a_report(text in any::<String>(), env in any::<String>()) {
        check(&text, &env)?;
    }

    #[test]
    fn any_lines_give_a_configuration_or_a_report(lines in vec(line(), 0..30), env in value()) {
        check(&lines.join("\n"), env.trim_matches('"'))?;
    }

    #[test]
    fn a_sound_file_that_was_damaged_gives_a_configuration_or_a_report(
        start in 0..SOUND.len(),
        length in 0..40_usize,
        patch in prop_oneof![any::<String>(), value(), line()],
    ) {
        let text = format!("{}{patch}{}", &SOUND[..start], &SOUND[(start + length).min(SOUND.len())..]);
        check(&text, "")?;
    }

    #[test]
    fn a_sound_configuration_comes_back_as_it_was(config in config()) {
        let text = render(&config);
        let parsed = Config::parse(&text, "f.toml", &|_| None);
        let parsed = parsed.map_err(|report| TestCaseError::fail(format!("{report}\n{text}")))?;
        prop_assert_eq!(parsed, config, "{}", text);
    }
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow() {
    for open in ["[", "{a=", "x."] {
        let text = format!("a = {}", open.repeat(100_000));
        check(&text, "").unwrap();
        assert!(Config::parse(&text, "f.toml", &|_| None).is_err());
    }
}

fn millis(range: std::ops::RangeInclusive<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn endpoint() -> impl Strategy<Value = String> {
    prop_oneof![
        (1..=65535_u16).prop_map(|port| format!("http://127.0.0.1:{port}")),
        "https://[a-z]{1,10}\\.example\\.com",
    ]
}

fn region() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["eu-west-1", "us-gov-east-1", "cn-north-1", "ddblocal"]).prop_map(str::to_owned)
}

fn arn() -> impl Strategy<Value = TableArn> {
    ("aws(-cn|-us-gov)?", region(), "[0-9]{12}", "[a-zA-Z0-9_.-]{3,30}")
        .prop_map(|(partition, region, account, table)| TableArn { partition, region, account, table })
}

prop_compose! {
    /// How a table is reached. `owner` is its partition and account, where a role may be assumed.
    fn access(region: String, owner: Option<(String, String)>, streams: bool)(
        endpoint in option::of(endpoint()),
        streams_endpoint in option::of(endpoint()),
        profile in option::of("[a-z ]{1,20}"),
        role in option::of("(team/)?[a-zA-Z0-9+=,.@_-]{1,20}"),
        external_id in option::of("[a-zA-Z0-9+=,.@:/_-]{2,40}"),
        session_name in "[a-zA-Z0-9+=,.@_-]{2,20}",
        duration in (900..=43_200_u64).prop_map(Duration::from_secs),
        sts in option::of(self::endpoint()),
    ) -> Access {
        let assume_role = role.zip(owner.clone()).map(|(role, (partition, account))| AssumeRole {
            role_arn: format!("arn:{partition}:iam::{account}:role/{role}"),
            external_id: external_id.clone(),
            session_name: session_name.clone(),
            duration,
            sts_endpoint: sts.clone().or(endpoint.clone()),
        });
        let streams_endpoint = streams_endpoint.clone().filter(|_| streams);
        Access { region: region.clone(), endpoint: endpoint.clone(), streams_endpoint, profile: profile.clone(), assume_role }
    }
}

fn state() -> impl Strategy<Value = State> {
    let table = prop_oneof![
        arn().prop_map(|mut arn| {
            arn.table.push_str(".state");
            let owner = Some((arn.partition.clone(), arn.account.clone()));
            (arn.to_string(), arn.region, owner)
        }),
        ("[a-zA-Z0-9_.-]{3,30}", region()).prop_map(|(name, region)| (name, region, None)),
    ];
    (table, millis(90_000_000..=31_536_000_000)).prop_flat_map(
        |((table, region, owner), tombstone_retention)| {
            access(region, owner, false).prop_map(move |access| State {
                table: table.clone(),
                access,
                tombstone_retention,
            })
        },
    )
}

fn member(index: usize) -> impl Strategy<Value = Member> {
    (arn(), "[a-zA-Z0-9_.-]{1,20}", 0..16_u8).prop_flat_map(move |(mut arn, name, number)| {
        // The index keeps tables, names and numbers apart.
        arn.table.push_str(&index.to_string());
        let owner = Some((arn.partition.clone(), arn.account.clone()));
        access(arn.region.clone(), owner, true).prop_map(move |access| Member {
            name: format!("{name}{index}"),
            arn: arn.clone(),
            access,
            number: number * 16 + u8::try_from(index).unwrap(),
        })
    })
}

prop_compose! {
    fn guard()(
        window in millis(10_000..=3_600_000),
        max_deletes in option::of(0..=1_000_000_000_u32),
        share in 0.001..=1.0,
        both in any::<bool>(),
        min_changes in 1..=1_000_000_u32,
    ) -> Guard {
        let max_delete_share = (both || max_deletes.is_none()).then_some(share);
        Guard { window, max_deletes, max_delete_share, min_changes }
    }
}

prop_compose! {
    /// A route without its peers; a rate is under index 0.
    fn route()(
        name in "[a-zA-Z0-9_.-]{1,20}",
        ttl_deletes in any::<bool>(),
        start in prop_oneof![
            Just(Start::TrimHorizon),
            Just(Start::Latest),
            millis(0..=4_000_000_000_000).prop_map(|since| Start::At(SystemTime::UNIX_EPOCH + since)),
        ],
        on_gap in prop_oneof![Just(OnGap::Stop), Just(OnGap::Continue)],
        max_clock_drift in millis(1_000..=3_600_000),
        rate in option::of(1..=1_000_000_u32),
        guard in option::of(guard()),
    ) -> Route {
        let max_writes = rate.into_iter().map(|rate| (0, rate)).collect();
        Route {
            name, from: 0, to: Vec::new(), feeds: Vec::new(), ttl_deletes, stamp: String::new(), start, on_gap, max_clock_drift, max_writes, reversible: false, back_of: None, pristine: false,
            guard, shape: None,
            group: None,
        }
    }
}

/// Members, routes and groups. The members of groups come first, and no route leads to them; the other routes lead
/// from earlier members to later ones: no loops. Each member has one route of the file at most.
fn members_routes_and_groups() -> impl Strategy<Value = (Vec<Member>, Vec<Route>, Vec<Group>)> {
    (vec(2..=3_usize, 0..=2), 0..=4_usize).prop_flat_map(|(groups, others)| {
        let grouped: usize = groups.iter().sum();
        let count = grouped + if groups.is_empty() { others.max(2) } else { others };
        let members: Vec<_> = (0..count).map(member).collect();
        let routes: Vec<_> = (1..count)
            .filter(|first| (*first).max(grouped) < count)
            .map(|first| {
                let peers: Vec<usize> = (first.max(grouped)..count).collect();
                let most = peers.len();
                (route(), prop::sample::subsequence(peers, 1..=most).prop_shuffle())
            })
            .collect();
        let mut first = 0;
        let groups: Vec<_> = (groups.into_iter())
            .map(|size| {
                first += size;
                (route(), Just((first - size..first).collect::<Vec<_>>()).prop_shuffle(), conflicts(), file())
            })
            .collect();
        (members, routes, groups, ".{1,60}").prop_map(|(members, routes, drafts, stamp)| {
            let mut routes: Vec<Route> = (routes.into_iter().enumerate())
                .map(|(from, (route, to))| Route {
                    name: format!("{}{from}", route.name),
                    from,
                    max_writes: route.max_writes.into_values().map(|rate| (to[0], rate)).collect(),
                    to,
                    stamp: stamp.clone(),
                    ..route
                })
                .collect();
            let mut groups = Vec::new();
            for (index, (route, seated, conflicts, conflicts_file)) in drafts.into_iter().enumerate() {
                let name = format!("{}.{index}", route.name);
                for from in &seated {
                    // The rate is for the group's first member.
                    let rate = route.max_writes.values().filter(|_| *from != seated[0]);
                    routes.push(Route {
                        name: format!("{name}/{}", members[*from].name),
                        from: *from,
                        to: seated.iter().copied().filter(|to| to != from).collect(),
                        max_writes: rate.map(|rate| (seated[0], *rate)).collect(),
                        stamp: stamp.clone(),
                        group: Some(index),
                        ..route.clone()
                    });
                }
                groups.push(Group { name, members: seated, conflicts, conflicts_file });
            }
            (members, routes, groups)
        })
    })
}

fn file() -> impl Strategy<Value = Option<std::path::PathBuf>> {
    prop::option::of("[^\0]{1,60}").prop_map(|file| file.map(Into::into))
}

fn conflicts() -> impl Strategy<Value = Conflicts> {
    prop::sample::select(vec![Conflicts::Off, Conflicts::Sampled, Conflicts::Full])
}

prop_compose! {
    fn config()(
        state in state(),
        (members, routes, groups) in members_routes_and_groups(),
        min_interval in millis(200..=1_000),
        idle_interval in millis(1_000..=10_000),
        list_interval in millis(1_000..=600_000),
        describe_rate in 1..=10_u32,
        memory_mb in 16..=4096_u32,
        in_flight in 1..=1000_usize,
        request_timeout in millis(100..=1_000),
        checkpoint_interval in millis(100..=60_000),
        duration in millis(3_000..=600_000),
        renew_interval in millis(100..=1_000),
        look_interval in millis(100..=1_000),
        handoff_timeout in millis(100..=600_000),
        worker in option::of("[!-~]{1,40}"),
        listen in option::of(any::<std::net::SocketAddrV4>().prop_map(Into::into)),
        per_key in 1..=10_000_u32,
        stall_after in millis(10_000..=86_400_000),
        grace in millis(0..=3_600_000),
        access_patience in millis(0..=900_000),
    ) -> Config {
        Config {
            state,
            members,
            routes,
            groups,
            feeds: Vec::new(),
            read: Read { idle_interval, min_interval, list_interval, describe_rate, memory_mb },
            write: Write { in_flight, request_timeout, checkpoint_interval },
            lease: Lease { duration, renew_interval, look_interval, handoff_timeout, worker },
            dead_letters: DeadLetters { per_key },
            admin: Admin { listen, stall_after },
            grace,
            access_patience,
        }
    }
}

/// A configuration as a file, every key written out.
fn render(config: &Config) -> String {
    let time = |duration: Duration| quote(&humantime::format_duration(duration).to_string());
    let mut text =
        format!("grace = {}\naccess_patience = {}\n", time(config.grace), time(config.access_patience));
    let State { table, access, tombstone_retention } = &config.state;
    let _ = writeln!(
        text,
        "[state]\ntable = {}\ntombstone_retention = {}",
        quote(table),
        time(*tombstone_retention)
    );
    if !table.contains(':') {
        let _ = writeln!(text, "region = {}", quote(&access.region));
    }
    render_access(&mut text, access);
    for Member { name, arn, access, number } in &config.members {
        let _ = writeln!(text, "[[member]]\nname = \"{name}\"\ntable = \"{arn}\"\nnumber = {number}");
        render_access(&mut text, access);
    }
    let name = |index: &usize| quote(&config.members[*index].name);
    let names = |members: &[usize]| members.iter().map(name).collect::<Vec<_>>().join(", ");
    for route in config.routes.iter().filter(|route| route.group.is_none()) {
        let (route_is, from, to) = (quote(&route.name), name(&route.from), names(&route.to));
        let _ = writeln!(text, "[[route]]\nname = {route_is}\nfrom = {from}\nto = [{to}]");
        let rates = route.max_writes.iter().map(|(peer, rate)| (name(peer), *rate)).collect();
        render_settings(&mut text, route, rates, "[route.guard]");
    }
    for (index, group) in config.groups.iter().enumerate() {
        let conflicts = match group.conflicts {
            Conflicts::Off => "off",
            Conflicts::Sampled => "sampled",
            Conflicts::Full => "full",
        };
        let (group_is, members) = (quote(&group.name), names(&group.members));
        let _ =
            writeln!(text, "[[group]]\nname = {group_is}\nmembers = [{members}]\nconflicts = {conflicts:?}");
        if let Some(file) = &group.conflicts_file {
            let _ = writeln!(text, "conflicts_file = {}", quote(&file.display().to_string()));
        }
        let routes = || config.routes.iter().filter(|route| route.group == Some(index));
        let rates = routes().flat_map(|route| &route.max_writes).map(|(peer, rate)| (name(peer), *rate));
        render_settings(&mut text, routes().next().unwrap(), rates.collect(), "[group.guard]");
    }
    let Read { idle_interval, min_interval, list_interval, describe_rate, memory_mb } = &config.read;
    let _ = writeln!(
        text,
        "[read]\nidle_interval = {}\nmin_interval = {}\nlist_interval = {}\ndescribe_rate = {describe_rate}\nmemory_mb = {memory_mb}",
        time(*idle_interval),
        time(*min_interval),
        time(*list_interval),
    );
    let Write { in_flight, request_timeout, checkpoint_interval } = &config.write;
    let _ = writeln!(
        text,
        "[write]\nin_flight = {in_flight}\nrequest_timeout = {}\ncheckpoint_interval = {}",
        time(*request_timeout),
        time(*checkpoint_interval),
    );
    let Lease { duration, renew_interval, look_interval, handoff_timeout, worker } = &config.lease;
    let _ = writeln!(
        text,
        "[lease]\nduration = {}\nrenew_interval = {}\nlook_interval = {}\nhandoff_timeout = {}",
        time(*duration),
        time(*renew_interval),
        time(*look_interval),
        time(*handoff_timeout),
    );
    if let Some(worker) = worker {
        let _ = writeln!(text, "worker = {}", quote(worker));
    }
    let _ = writeln!(text, "[dead_letters]\nper_key = {}", config.dead_letters.per_key);
    let listen = config.admin.listen.map_or("off".to_owned(), |address| address.to_string());
    let _ = writeln!(
        text,
        "[admin]\nlisten = {}\nstall_after = {}",
        quote(&listen),
        time(config.admin.stall_after)
    );
    text
}

/// What a route and a group are both told; the rates are by the names of members.
fn render_settings(text: &mut String, route: &Route, rates: BTreeMap<String, u32>, guard: &str) {
    let time = |duration: Duration| quote(&humantime::format_duration(duration).to_string());
    let start = match route.start {
        Start::TrimHorizon => quote("trim-horizon"),
        Start::Latest => quote("latest"),
        Start::At(time) => humantime::format_rfc3339(time).to_string(),
    };
    let on_gap = if route.on_gap == OnGap::Stop { "stop" } else { "continue" };
    let _ = writeln!(
        text,
        "ttl_deletes = {}\nstamp = {}\nstart = {start}\non_gap = {on_gap:?}\nmax_clock_drift = {}",
        route.ttl_deletes,
        quote(&route.stamp),
        time(route.max_clock_drift),
    );
    let rates: Vec<String> = rates.iter().map(|(member, rate)| format!("{member} = {rate}")).collect();
    let _ = writeln!(text, "max_writes_per_second = {{ {} }}", rates.join(", "));
    if let Some(Guard { window, max_deletes, max_delete_share, min_changes }) = &route.guard {
        let _ = writeln!(text, "{guard}\nwindow = {}\nmin_changes = {min_changes}", time(*window));
        if let Some(deletes) = max_deletes {
            let _ = writeln!(text, "max_deletes = {deletes}");
        }
        if let Some(share) = max_delete_share {
            let _ = writeln!(text, "max_delete_share = {share:?}");
        }
    }
}

fn render_access(text: &mut String, access: &Access) {
    let Access { region: _, endpoint, streams_endpoint, profile, assume_role } = access;
    let keys = [("endpoint", endpoint), ("streams_endpoint", streams_endpoint), ("profile", profile)];
    for (key, value) in keys {
        if let Some(value) = value {
            let _ = writeln!(text, "{key} = {}", quote(value));
        }
    }
    let Some(AssumeRole { role_arn, external_id, session_name, duration, sts_endpoint }) = assume_role else {
        return;
    };
    let mut inline = format!(
        "role = {}, session_name = {}, duration = {}",
        quote(role_arn),
        quote(session_name),
        quote(&humantime::format_duration(*duration).to_string())
    );
    for (key, value) in [("external_id", external_id), ("sts_endpoint", sts_endpoint)] {
        if let Some(value) = value {
            let _ = write!(inline, ", {key} = {}", quote(value));
        }
    }
    let _ = writeln!(text, "assume_role = {{ {inline} }}");
}

/// A TOML string.
fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
