//! Members and routes together: names are unique and known, and the routes make sense with each other.
//!
//! Refused, because no run of them could converge: one table twice, loops of one-way routes, versions that
//! could tie, stamps of different names on one table, one pair of members served twice.

use super::report::Place;
use super::section::{Located, Reader};
use super::values::{Fault, Rates};
use super::{Access, Guard, Member, OnGap, Route, Start, State, TableArn};
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
    pub(super) ttl_deletes: Option<Located<bool>>,
    pub(super) stamp: Option<Located<String>>,
    pub(super) start: Option<Located<Start>>,
    pub(super) on_gap: Option<Located<OnGap>>,
    pub(super) max_clock_drift: Option<Located<Duration>>,
    pub(super) max_writes: Option<Located<Rates>>,
    /// `None` when it is faulty; `Some(None)` when there is none.
    pub(super) guard: Option<Option<Guard>>,
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
}

/// Checks members and routes and resolves the names; `None` when a problem was reported.
pub(super) fn resolve(
    reader: &Reader<'_>,
    state: Option<&State>,
    members: Vec<MemberDraft>,
    routes: Vec<RouteDraft>,
) -> Option<(Vec<Member>, Vec<Route>)> {
    unique(reader, "member", members.iter().filter_map(|member| member.name.as_ref()));
    unique(reader, "route", routes.iter().filter_map(|route| route.name.as_ref()));
    check_tables(reader, state, &members);
    let edges = Graph { reader, members: &members, routes: &routes }.check();

    let mut resolved = Vec::with_capacity(routes.len());
    for (index, route) in routes.into_iter().enumerate() {
        let mut edges = edges.iter().filter(|edge| edge.route == index).peekable();
        let from = edges.peek()?.from;
        let to: Vec<usize> = edges.map(|edge| edge.to).collect();
        resolved.push(Route {
            name: route.name?.value,
            from,
            max_writes: max_writes(reader, route.max_writes?, &to, &members)?,
            guard: route.guard?,
            group: None,
            to,
            ttl_deletes: route.ttl_deletes?.value,
            stamp: route.stamp?.value,
            start: route.start?.value,
            on_gap: route.on_gap?.value,
            max_clock_drift: route.max_clock_drift?.value,
        });
    }
    let members = members.into_iter().map(|member| {
        Some(Member {
            name: member.name?.value,
            arn: member.arn?.value,
            access: member.access?,
            number: member.number?.value,
        })
    });
    Some((members.collect::<Option<_>>()?, resolved))
}

/// The rates by the peers' indices; `None` when one is for nobody of the route, which is reported.
fn max_writes(
    reader: &Reader<'_>,
    rates: Located<Rates>,
    to: &[usize],
    members: &[MemberDraft],
) -> Option<BTreeMap<usize, u32>> {
    let rates_by_name = match rates.value {
        Rates::Each(rate) => return Some(to.iter().map(|peer| (*peer, rate)).collect()),
        Rates::Of(rates) => rates,
    };
    let named = |peer: usize, name: &str| {
        members.get(peer).and_then(|member| member.name.as_ref()).is_some_and(|known| known.value == name)
    };
    let mut found = BTreeMap::new();
    for (name, rate) in &rates_by_name {
        match to.iter().find(|peer| named(**peer, name)) {
            Some(peer) => {
                found.insert(*peer, *rate);
            }
            None => {
                let what = format!("\"max_writes_per_second\" names {}", super::values::shown(name));
                let fault = Fault::new(what).remedy("it must be one of the route's peers, as in \"to\"");
                reader.report(rates.place, fault);
            }
        }
    }
    (found.len() == rates_by_name.len()).then_some(found)
}

fn unique<'d>(reader: &Reader<'_>, what: &str, names: impl Iterator<Item = &'d Located<String>>) {
    let mut first = BTreeMap::new();
    for name in names {
        let earlier = *first.entry(&name.value).or_insert(name.place);
        if earlier != name.place {
            let fault = Fault::new(format!("{what} \"{}\" exists already, on {earlier}", name.value));
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

/// The members as nodes, the routes' peers as edges.
struct Graph<'d> {
    reader: &'d Reader<'d>,
    members: &'d [MemberDraft],
    routes: &'d [RouteDraft],
}

impl Graph<'_> {
    /// Checks the routes with each other; gives the sound edges, in the order of the file.
    fn check(&self) -> Vec<Edge> {
        let mut edges: Vec<Edge> = Vec::new();
        for (index, route) in self.routes.iter().enumerate() {
            let from = route.from.as_ref().and_then(|from| self.find("from", from));
            if let Some(from) = from {
                self.check_source(route, from);
            }
            let peers = route.to.iter().flatten().filter_map(|to| Some((self.find("to", to)?, to.place)));
            let peers: Vec<(usize, Place)> = peers.collect();
            let Some(from) = from else { continue };
            for (to, place) in peers {
                let edge = Edge { route: index, from, to, place };
                if let Some(fault) = self.fault(&edges, &edge) {
                    self.reader.report(place, fault);
                } else {
                    edges.push(edge);
                }
            }
        }
        edges
    }

    /// The member of this name.
    fn find(&self, key: &str, name: &Located<String>) -> Option<usize> {
        let named =
            |member: &MemberDraft| member.name.as_ref().is_some_and(|other| other.value == name.value);
        let found = self.members.iter().position(named);
        // When a member or its name could not be read, it may be the one that is meant.
        let all_read = self.reader.is_sound()
            && !self.members.is_empty()
            && self.members.iter().all(|member| member.name.is_some());
        if found.is_none() && all_read {
            let fault = Fault::new(format!(
                "\"{key}\" names member {}, which does not exist",
                super::values::shown(&name.value)
            ));
            let names: Vec<&str> =
                self.members.iter().filter_map(|member| Some(member.name.as_ref()?.value.as_str())).collect();
            let remedy = match super::section::nearest(&names, &name.value) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("the members are {}", names.join(", ")),
            };
            self.reader.report(name.place, fault.remedy(remedy));
        }
        found
    }

    /// A source's streams must be reachable.
    fn check_source(&self, route: &RouteDraft, from: usize) {
        let member = self.members.get(from);
        if let (Some(member), Some(source)) = (member, &route.from)
            && let Some(endpoint) = member.no_streams_at
        {
            let region = member.access.as_ref().map_or("REGION", |access| &access.region);
            let fault = Fault::new(format!(
                "member \"{}\" has AWS's endpoint for tables ({endpoint}) and none for streams",
                source.value
            ));
            self.reader.report(
                source.place,
                fault.remedy(format!(
                    "add streams_endpoint = \"https://streams.dynamodb.{region}.amazonaws.com\" to the member"
                )),
            );
        }
    }

    /// What is wrong with one more edge.
    fn fault(&self, edges: &[Edge], edge: &Edge) -> Option<Fault> {
        let (from, to) = (self.member(edge.from), self.member(edge.to));
        if edge.from == edge.to {
            return Some(Fault::new(format!("\"to\" names {from}, from which the route comes")));
        }
        if let Some(twin) = edges.iter().find(|other| (other.from, other.to) == (edge.from, edge.to)) {
            return Some(if twin.route == edge.route {
                Fault::new(format!("\"to\" names {to} twice"))
            } else {
                Fault::new(format!("{} copies {from} to {to} already", self.route(twin)))
            });
        }
        if let Some(path) = path(edges, edge.to, edge.from) {
            let mut names: Vec<String> = path.iter().map(|member| self.member(*member)).collect();
            names.push(to);
            return Some(
                Fault::new(format!("this closes a loop of one-way routes: {}", names.join(" -> ")))
                    .remedy("a change would go round for ever; remove one of the routes"),
            );
        }
        let mut others = edges.iter().filter(|other| other.to == edge.to && other.from != edge.from);
        if let Some(number) = self.number(edge.from)
            && let Some(other) = others.find(|other| self.number(other.from) == Some(number))
        {
            let first = self.member(other.from);
            return Some(
                Fault::new(format!(
                    "{first} and {from} both write to {to} and both have number {number}, their versions could tie"
                ))
                .remedy(format!("give {from} another number")),
            );
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

    fn number(&self, member: usize) -> Option<u8> {
        Some(self.members.get(member)?.number.as_ref()?.value)
    }

    fn stamp(&self, edge: &Edge) -> Option<&str> {
        Some(&self.routes.get(edge.route)?.stamp.as_ref()?.value)
    }

    /// A member's name in quotes.
    fn member(&self, index: usize) -> String {
        let name = self.members.get(index).and_then(|member| member.name.as_ref());
        name.map_or_else(String::new, |name| format!("\"{}\"", name.value))
    }

    fn route(&self, edge: &Edge) -> String {
        let name = self.routes.get(edge.route).and_then(|route| route.name.as_ref());
        name.map_or_else(
            || format!("the route of {}", edge.place),
            |name| format!("route \"{}\" ({})", name.value, edge.place),
        )
    }
}

/// The members on a way from `start` to `goal`, both included.
fn path(edges: &[Edge], start: usize, goal: usize) -> Option<Vec<usize>> {
    let mut ways = vec![vec![start]];
    let mut seen = BTreeSet::from([start]);
    while let Some(way) = ways.pop() {
        let last = way.last().copied()?;
        if last == goal {
            return Some(way);
        }
        for edge in edges.iter().filter(|edge| edge.from == last) {
            if seen.insert(edge.to) {
                ways.push(way.iter().copied().chain([edge.to]).collect());
            }
        }
    }
    None
}
