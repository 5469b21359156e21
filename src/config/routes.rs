//! Members and routes together: names are unique and known, and the routes make sense with each other.
//!
//! Refused, because no run of them could converge: one table twice, loops of one-way routes, versions that
//! could tie, stamps of different names on one table, or none for two routes, one pair of members served twice, a one-way route into a
//! group. What holds within a group is in [`groups`](super::groups).

use super::feeds::{self, FeedDraft};
use super::groups::{GroupDraft, Seats};
use super::report::Place;
use super::section::{Located, Reader};
use super::values::{Fault, Rates, shown};
use super::{Access, Feed, Group, Guard, Member, OnGap, Route, Shape, Start, State, TableArn};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A member as read; what is `None` was reported.
pub(super) struct MemberDraft {
    pub(super) name: Option<Located<String>>,
    pub(super) arn: Option<Located<TableArn>>,
    pub(super) number: Option<Located<u8>>,
    pub(super) access: Option<Access>,
    /// Where the endpoint is set that serves tables and not streams, when there is none for streams.
    pub(super) no_streams_at: Option<Place>,
}

/// A route as read; what is `None` was reported.
pub(super) struct RouteDraft {
    pub(super) name: Option<Located<String>>,
    pub(super) from: Option<Located<String>>,
    pub(super) to: Option<Vec<Located<String>>>,
    /// Whether there is a way back.
    pub(super) reversible: Option<Located<bool>>,
    /// Whether the peers get no attribute of ours.
    pub(super) pristine: Option<Located<bool>>,
    pub(super) settings: Settings,
    /// `None` when it is faulty; `Some(None)` when there is none.
    pub(super) shape: Option<Option<Shape>>,
}

impl RouteDraft {
    /// Whether its peers get no attribute of ours, as far as is known.
    fn is_pristine(&self) -> bool {
        self.pristine.as_ref().is_some_and(|pristine| pristine.value)
    }

    /// Where it says that there is a way back, when it does.
    pub(super) fn reversed_at(&self) -> Option<Place> {
        self.reversible.as_ref().filter(|reversible| reversible.value).map(|reversible| reversible.place)
    }
}

/// What a one-way route and a group are both told; what is `None` was reported.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) ttl_deletes: Option<Located<bool>>,
    pub(super) stamp: Option<Located<String>>,
    pub(super) start: Option<Located<Start>>,
    pub(super) on_gap: Option<Located<OnGap>>,
    pub(super) max_clock_drift: Option<Located<Duration>>,
    pub(super) max_writes: Option<Located<Rates>>,
    /// `None` when it is faulty; `Some(None)` when there is none.
    pub(super) guard: Option<Option<Guard>>,
}

impl Settings {
    /// The one-way route from one member to others; `rates` are by the peers' indices.
    pub(super) fn route(
        self,
        name: String,
        from: usize,
        to: Vec<usize>,
        max_writes: BTreeMap<usize, u32>,
    ) -> Option<Route> {
        Some(Route {
            name,
            from,
            to,
            feeds: Vec::new(),
            ttl_deletes: self.ttl_deletes?.value,
            stamp: self.stamp?.value,
            start: self.start?.value,
            on_gap: self.on_gap?.value,
            max_clock_drift: self.max_clock_drift?.value,
            max_writes,
            guard: self.guard?,
            shape: None,
            group: None,
            reversible: false,
            back_of: None,
            pristine: false,
        })
    }
}

/// The members, by index, as routes and groups refer to them.
pub(super) struct Members<'d> {
    pub(super) reader: &'d Reader<'d>,
    pub(super) drafts: &'d [MemberDraft],
}

/// One peer of a route: an edge between two members.
struct Edge {
    /// Index of the route.
    route: usize,
    /// Index of the member whose changes are copied.
    from: usize,
    /// Index of the peer.
    to: usize,
    /// Where the peer is named.
    place: Place,
    /// Whether it is the way back of that route.
    back: bool,
}

/// What follows a route's name in that of its way back; no name in the file has a `/`.
const BACK: &str = "back";

/// Members, routes and groups with their names resolved.
pub(super) struct Resolved {
    pub(super) members: Vec<Member>,
    /// Those of the file, then those of the groups.
    pub(super) routes: Vec<Route>,
    pub(super) groups: Vec<Group>,
    pub(super) feeds: Vec<Feed>,
}

/// Checks members, routes and groups and resolves the names; `None` when a problem was reported.
pub(super) fn resolve(
    reader: &Reader<'_>,
    state: Option<&State>,
    drafts: Vec<MemberDraft>,
    mut routes: Vec<RouteDraft>,
    groups: Vec<GroupDraft>,
    feeds: Vec<FeedDraft>,
) -> Option<Resolved> {
    let member_names = drafts.iter().map(|member| ("member", member.name.as_ref()));
    unique(reader, member_names.chain(feeds.iter().map(|feed| ("feed", feed.name.as_ref()))));
    let route_names = routes.iter().map(|route| ("route", route.name.as_ref()));
    unique(reader, route_names.chain(groups.iter().map(|group| ("group", group.name.as_ref()))));
    check_tables(reader, state, &drafts);
    let named = feeds::of_routes(reader, &feeds, &mut routes);
    let members = Members { reader, drafts: &drafts };
    let seats = Seats::check(&members, &groups);
    let edges = Graph { members: &members, routes: &routes, seats: &seats }.check();

    let rates: Vec<_> = (routes.iter().enumerate())
        .map(|(index, route)| {
            let of_route = |edge: &&Edge| edge.route == index && !edge.back;
            let peers = edges.iter().filter(of_route).map(|edge| edge.to);
            let to: Vec<usize> = peers.collect();
            // Where a peer was refused, its rate is not to blame.
            let rates = route
                .settings
                .max_writes
                .as_ref()
                .filter(|_| Some(to.len()) == route.to.as_ref().map(Vec::len))?;
            let rates = members.rates(rates, &to, "it must be one of the route's peers, as in \"to\"")?;
            Some((to, rates))
        })
        .collect();
    let grouped = seats.resolve(&members, groups);
    let mut resolved = Vec::with_capacity(routes.len());
    let mut ways_back = Vec::new();
    for ((route, rates), feeds) in routes.into_iter().zip(rates).zip(named) {
        let (to, rates) = rates?;
        let from = members.position(&route.from?.value)?;
        let (name, shape) = (route.name?.value, route.shape?);
        let (reversible, pristine) = (route.reversible?.value, route.pristine?.value);
        if reversible {
            let [peer] = to.as_slice() else { return None };
            let settings = route.settings.clone();
            // A number is that of every peer, the source among them once it is one.
            let most = match &settings.max_writes {
                Some(Located { value: Rates::Each(rate), .. }) => BTreeMap::from([(from, *rate)]),
                _ => BTreeMap::new(),
            };
            let back = settings.route(format!("{name}/{BACK}"), *peer, vec![from], most)?;
            ways_back.push(Route { start: Start::Latest, back_of: Some(name.clone()), ..back });
        }
        let settings = route.settings.route(name, from, to, rates)?;
        resolved.push(Route { reversible, pristine, feeds, shape, ..settings });
    }
    resolved.extend(ways_back);
    let (groups, of_groups) = grouped?;
    resolved.extend(of_groups);
    let members = drafts.into_iter().map(|member| {
        Some(Member {
            name: member.name?.value,
            arn: member.arn?.value,
            access: member.access?,
            number: member.number?.value,
        })
    });
    let (members, feeds) = (members.collect::<Option<_>>()?, feeds::resolve(feeds)?);
    Some(Resolved { members, routes: resolved, groups, feeds })
}

/// Names of several kinds that may not be the same.
fn unique<'d>(reader: &Reader<'_>, names: impl Iterator<Item = (&'static str, Option<&'d Located<String>>)>) {
    let mut first = BTreeMap::new();
    for (kind, name) in names.filter_map(|(kind, name)| Some((kind, name?))) {
        let (earlier, place) = *first.entry(&name.value).or_insert((kind, name.place));
        if place != name.place {
            let fault = Fault::new(format!("{earlier} \"{}\" exists already, on {place}", name.value));
            reader.report(name.place, fault.remedy("names are unique"));
        }
    }
}

/// No table has two roles.
fn check_tables(reader: &Reader<'_>, state: Option<&State>, members: &[MemberDraft]) {
    let mut first = BTreeMap::new();
    for member in members {
        let Some(arn) = &member.arn else { continue };
        let earlier = *first.entry(&arn.value).or_insert(arn.place);
        if earlier != arn.place {
            let fault = Fault::new(format!("table {} is a member already, on {earlier}", arn.value));
            reader.report(arn.place, fault.remedy("a table is one member; routes may share it"));
        }
        if state.is_some_and(|state| state.table == arn.value.to_string()) {
            let fault = Fault::new(format!("table {} is the state table", arn.value));
            reader.report(arn.place, fault.remedy("the state table cannot be a member"));
        }
    }
}

impl Members<'_> {
    fn position(&self, name: &str) -> Option<usize> {
        let named = |member: &MemberDraft| member.name.as_ref().is_some_and(|other| other.value == name);
        self.drafts.iter().position(named)
    }

    /// The member that `key` names; that there is none is reported.
    pub(super) fn find(&self, key: &str, name: &Located<String>) -> Option<usize> {
        let found = self.position(&name.value);
        // When a member or its name could not be read, it may be the one that is meant.
        let all_read = self.reader.is_sound()
            && !self.drafts.is_empty()
            && self.drafts.iter().all(|member| member.name.is_some());
        if found.is_none() && all_read {
            let what = format!("\"{key}\" names member {}, which does not exist", shown(&name.value));
            let names: Vec<&str> =
                self.drafts.iter().filter_map(|member| Some(member.name.as_ref()?.value.as_str())).collect();
            let remedy = match super::section::nearest(&names, &name.value) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("the members are {}", names.join(", ")),
            };
            self.reader.report(name.place, Fault::new(what).remedy(remedy));
        }
        found
    }

    /// A source's streams must be reachable; `place` is where it is named as one.
    pub(super) fn check_source(&self, index: usize, place: Place) {
        let Some(member) = self.drafts.get(index) else { return };
        let Some(endpoint) = member.no_streams_at else { return };
        let region = member.access.as_ref().map_or("REGION", |access| &access.region);
        let fault = Fault::new(format!(
            "member {} has AWS's endpoint for tables ({endpoint}) and none for streams",
            self.quoted(index)
        ));
        self.reader.report(
            place,
            fault.remedy(format!(
                "add streams_endpoint = \"https://streams.dynamodb.{region}.amazonaws.com\" to the member"
            )),
        );
    }

    pub(super) fn number(&self, index: usize) -> Option<u8> {
        Some(self.drafts.get(index)?.number.as_ref()?.value)
    }

    /// A member's name in quotes.
    pub(super) fn quoted(&self, index: usize) -> String {
        let name = self.drafts.get(index).and_then(|member| member.name.as_ref());
        name.map_or_else(String::new, |name| format!("\"{}\"", name.value))
    }

    /// The rates by the members' indices; `None` when one is for nobody `among` these, which is reported with
    /// `remedy`.
    pub(super) fn rates(
        &self,
        rates: &Located<Rates>,
        among: &[usize],
        remedy: &str,
    ) -> Option<BTreeMap<usize, u32>> {
        let by_name = match &rates.value {
            Rates::Each(rate) => return Some(among.iter().map(|member| (*member, *rate)).collect()),
            Rates::Of(by_name) => by_name,
        };
        let mut found = BTreeMap::new();
        for (name, rate) in by_name {
            match self.position(name).filter(|member| among.contains(member)) {
                Some(member) => {
                    found.insert(member, *rate);
                }
                None => {
                    let what = format!("\"max_writes_per_second\" names {}", shown(name));
                    self.reader.report(rates.place, Fault::new(what).remedy(remedy));
                }
            }
        }
        (found.len() == by_name.len()).then_some(found)
    }
}

/// The members as nodes, the one-way routes' peers as edges.
struct Graph<'d> {
    members: &'d Members<'d>,
    routes: &'d [RouteDraft],
    seats: &'d Seats,
}

impl Graph<'_> {
    /// Checks the routes with each other; gives the sound edges, in the order of the file.
    fn check(&self) -> Vec<Edge> {
        let mut edges: Vec<Edge> = Vec::new();
        for (index, route) in self.routes.iter().enumerate() {
            let from = route.from.as_ref().and_then(|from| {
                let found = self.members.find("from", from)?;
                self.members.check_source(found, from.place);
                Some(found)
            });
            let peers = route.to.iter().flatten();
            let peers: Vec<(usize, Place)> =
                peers.filter_map(|to| Some((self.members.find("to", to)?, to.place))).collect();
            let Some(from) = from else { continue };
            for &(to, place) in &peers {
                let edge = Edge { route: index, from, to, place, back: false };
                if let Some(fault) = self.fault(&edges, &edge) {
                    self.members.reader.report(place, fault);
                } else {
                    edges.push(edge);
                }
            }
            if let Some(place) = route.reversed_at() {
                self.way_back(&mut edges, index, place, from, &peers);
            }
        }
        self.check_chains(&edges);
        edges
    }

    /// What a route copies on has the stamps of the routes into its source, which it must know from attributes.
    fn check_chains(&self, edges: &[Edge]) {
        for route in self.routes {
            let (Some(from), Some(stamp)) = (&route.from, &route.settings.stamp) else { continue };
            let source = self.members.position(&from.value);
            let into = edges.iter().find(|edge| {
                Some(edge.to) == source && self.stamp(edge).is_some_and(|other| other != stamp.value)
            });
            let Some(into) = into else { continue };
            let what = format!(
                "{} writes to {} with another stamp, {}",
                self.route(into),
                self.members.quoted(into.to),
                shown(self.stamp(into).unwrap_or_default())
            );
            let remedy = "its stamps would be copied on as attributes of the items: give both the same stamp";
            self.members.reader.report(from.place, Fault::new(what).remedy(remedy));
        }
    }

    /// Adds the edge of a way back.
    fn way_back(
        &self,
        edges: &mut Vec<Edge>,
        route: usize,
        place: Place,
        from: usize,
        peers: &[(usize, Place)],
    ) {
        let reader = self.members.reader;
        let [(peer, _)] = peers else {
            if peers.len() > 1 {
                let fault = Fault::new("a route with a way back has one peer");
                reader.report(place, fault.remedy("give each of the others a route of its own"));
            }
            return;
        };
        if let Some(seat) = self.seats.of(from) {
            let from = self.members.quoted(from);
            let fault =
                Fault::new(format!("{from} is a member of group {seat}, which no way back may enter"));
            reader.report(place, fault.remedy("leave \"reversible\" out"));
            return;
        }
        self.members.check_source(*peer, place);
        let edge = Edge { route, from: *peer, to: from, place, back: true };
        // Where the route itself was refused, its way back is not to blame.
        if edges.iter().any(|forth| forth.route == route) {
            match self.fault(edges, &edge) {
                Some(fault) => reader.report(place, fault),
                None => edges.push(edge),
            }
        }
    }

    /// What is wrong with one more edge.
    fn fault(&self, edges: &[Edge], edge: &Edge) -> Option<Fault> {
        let (from, to) = (self.members.quoted(edge.from), self.members.quoted(edge.to));
        if edge.from == edge.to {
            return Some(Fault::new(format!("\"to\" names {from}, from which the route comes")));
        }
        if let Some(seat) = self.seats.of(edge.to) {
            let fault =
                Fault::new(format!("{to} is a member of group {seat}, which no one-way route may enter"));
            return Some(fault.remedy(if self.seats.together(edge.from, edge.to) {
                format!("remove the route: the group copies {from} to {to} already")
            } else {
                format!(
                    "its copies would stay on {to}: let the applications write to the group, or make {from} a member of it"
                )
            }));
        }
        if let Some(twin) = edges.iter().find(|other| (other.from, other.to) == (edge.from, edge.to)) {
            return Some(if twin.route == edge.route {
                Fault::new(format!("\"to\" names {to} twice"))
            } else {
                Fault::new(format!("{} copies {from} to {to} already", self.route(twin)))
            });
        }
        if let Some(path) = path(edges, edge.to, edge.from, edge.back.then_some(edge.route)) {
            let mut names: Vec<String> = path.iter().map(|member| self.members.quoted(*member)).collect();
            names.push(to);
            return Some(
                Fault::new(format!("this closes a loop of one-way routes: {}", names.join(" -> ")))
                    .remedy("a change would go round for ever; remove one of the routes"),
            );
        }
        let mut others = edges.iter().filter(|other| other.to == edge.to && other.from != edge.from);
        if let Some(number) = self.members.number(edge.from)
            && let Some(other) = others.find(|other| self.members.number(other.from) == Some(number))
        {
            let first = self.members.quoted(other.from);
            return Some(
                Fault::new(format!(
                    "{first} and {from} both write to {to} and both have number {number}, their versions could tie"
                ))
                .remedy(format!("give {from} another number")),
            );
        }
        // Without versions at the peer nothing orders what two routes write there.
        let pristine = |edge: &Edge| self.routes.get(edge.route).is_some_and(RouteDraft::is_pristine);
        if let Some(other) =
            edges.iter().find(|other| other.to == edge.to && (pristine(other) || pristine(edge)))
        {
            return Some(
                Fault::new(format!(
                    "{} writes to {to} too, and one of the two is pristine",
                    self.route(other)
                ))
                .remedy(
                    "only stamps order what two routes write: leave \"pristine\" out, or one of the routes",
                ),
            );
        }
        // After a cutover what another route writes to either end would not come to the other.
        let turns = |edge: &Edge| self.routes.get(edge.route).is_some_and(|it| it.reversed_at().is_some());
        let beside =
            |other: &&Edge| other.to == edge.to && other.route != edge.route && (turns(other) || turns(edge));
        if let Some(other) = edges.iter().find(beside) {
            let what = format!("{} writes to {to} too, and one of the two has a way back", self.route(other));
            return Some(Fault::new(what).remedy(
                "after a cutover what the other route writes there would not come to the other side: leave \"reversible\" \
                 out, or one of the routes",
            ));
        }
        let stamp = self.stamp(edge)?;
        let differs =
            |other: &&Edge| other.to == edge.to && self.stamp(other).is_some_and(|other| other != stamp);
        let other = edges.iter().find(differs)?;
        Some(
            Fault::new(format!("{} writes to {to} too, with another stamp", self.route(other)))
                .remedy("routes to one member need the same stamp to see each other's versions"),
        )
    }

    fn stamp(&self, edge: &Edge) -> Option<&str> {
        Some(&self.routes.get(edge.route)?.settings.stamp.as_ref()?.value)
    }

    fn route(&self, edge: &Edge) -> String {
        let name = self.routes.get(edge.route).and_then(|route| route.name.as_ref());
        name.map_or_else(
            || format!("the route of {}", edge.place),
            |name| format!("route \"{}\" ({})", name.value, edge.place),
        )
    }
}

/// The members on a way from `start` to `goal`, both included. A way back closes no loop with its own route: only one
/// of the two is walked.
fn path(edges: &[Edge], start: usize, goal: usize, without: Option<usize>) -> Option<Vec<usize>> {
    let mut ways = vec![vec![start]];
    let mut seen = BTreeSet::from([start]);
    while let Some(way) = ways.pop() {
        let last = way.last().copied()?;
        if last == goal {
            return Some(way);
        }
        for edge in edges.iter().filter(|edge| edge.from == last && Some(edge.route) != without) {
            if seen.insert(edge.to) {
                ways.push(way.iter().copied().chain([edge.to]).collect());
            }
        }
    }
    None
}
