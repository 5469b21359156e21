//! Groups: members that are each written by applications of their own, and hold the same items.
//!
//! Owns what is refused within a group and between groups, and how a group becomes routes: one for each member, to
//! all the others. A route's name is `GROUP/MEMBER`; no name in the file has a `/`, so it is nobody else's.

use super::report::Place;
use super::routes::{Members, Settings};
use super::section::Located;
use super::values::Fault;
use super::{Conflicts, Group, Route};
use std::collections::BTreeMap;

/// A group as read; what is `None` was reported.
pub(super) struct GroupDraft {
    pub(super) name: Option<Located<String>>,
    pub(super) members: Option<Vec<Located<String>>>,
    pub(super) conflicts: Option<Located<Conflicts>>,
    pub(super) conflicts_file: Option<Located<String>>,
    /// Of each of its routes.
    pub(super) settings: Settings,
}

/// Where a member is named as one of a group.
struct Seat {
    /// Index of the group.
    group: usize,
    place: Place,
}

/// Which members are in which group.
pub(super) struct Seats {
    /// How messages call the groups.
    titles: Vec<String>,
    /// By the member's index.
    taken: BTreeMap<usize, Seat>,
    /// By the group's index, in its order.
    members: Vec<Vec<usize>>,
}

impl Seats {
    /// Checks the members of all groups and gives them their seats.
    pub(super) fn check(members: &Members<'_>, groups: &[GroupDraft]) -> Self {
        let title = |group: &GroupDraft| {
            group.name.as_ref().map_or_else(String::new, |name| format!("\"{}\"", name.value))
        };
        let titles = groups.iter().map(title).collect();
        let mut seats = Self { titles, taken: BTreeMap::new(), members: Vec::with_capacity(groups.len()) };
        for (index, group) in groups.iter().enumerate() {
            let names = group.members.as_deref().unwrap_or_default();
            if let [only] = names {
                let fault = Fault::new("\"members\" must be at least two");
                members.reader.report(only.place, fault.remedy("one table alone has nothing to agree with"));
            }
            let mut seated = Vec::with_capacity(names.len());
            for name in names {
                let Some(member) = members.find("members", name) else { continue };
                members.check_source(member, name.place);
                if let Some(fault) = seats.fault(members, index, &seated, member) {
                    members.reader.report(name.place, fault);
                } else {
                    seats.taken.insert(member, Seat { group: index, place: name.place });
                    seated.push(member);
                }
            }
            seats.members.push(seated);
        }
        seats
    }

    /// What is wrong with one more member of a group that holds those in `seated`.
    fn fault(&self, members: &Members<'_>, group: usize, seated: &[usize], member: usize) -> Option<Fault> {
        let name = members.quoted(member);
        if let Some(seat) = self.taken.get(&member) {
            if seat.group == group {
                return Some(Fault::new(format!("\"members\" names {name} twice")));
            }
            let what = format!("{name} is a member of group {} already, on {}", self.title(seat), seat.place);
            return Some(Fault::new(what).remedy(
                "what one group writes would not go on to the other: make one group of both, or take it out of one",
            ));
        }
        let number = members.number(member)?;
        let first = seated.iter().find(|other| members.number(**other) == Some(number))?;
        let what = format!(
            "{} and {name} are in group {} and both have number {number}, their versions could tie",
            members.quoted(*first),
            self.titles.get(group).map_or("", String::as_str)
        );
        Some(Fault::new(what).remedy("give each member a number of its own, which it keeps for ever"))
    }

    /// The group of a member, as messages call it.
    pub(super) fn of(&self, member: usize) -> Option<String> {
        let seat = self.taken.get(&member)?;
        Some(format!("{} ({})", self.title(seat), seat.place))
    }

    /// Whether two members are in the same group.
    pub(super) fn together(&self, one: usize, other: usize) -> bool {
        let group = |member| self.taken.get(member).map(|seat| seat.group);
        group(&one).is_some_and(|of_one| group(&other) == Some(of_one))
    }

    fn title(&self, seat: &Seat) -> &str {
        self.titles.get(seat.group).map_or("", String::as_str)
    }

    /// The groups, and the routes that they are made of, in their order; `None` when a problem was reported.
    pub(super) fn resolve(
        &self,
        members: &Members<'_>,
        drafts: Vec<GroupDraft>,
    ) -> Option<(Vec<Group>, Vec<Route>)> {
        let resolved = drafts.into_iter().zip(&self.members).enumerate();
        // Each is looked at, so that what is wrong with the second is reported too.
        let resolved: Vec<_> =
            resolved.map(|(index, (draft, seated))| draft.resolve(index, members, seated)).collect();
        let mut groups = Vec::with_capacity(resolved.len());
        let mut routes = Vec::new();
        for group in resolved {
            let (group, of_group) = group?;
            groups.push(group);
            routes.extend(of_group);
        }
        Some((groups, routes))
    }
}

impl GroupDraft {
    fn resolve(self, index: usize, members: &Members<'_>, seated: &[usize]) -> Option<(Group, Vec<Route>)> {
        // Where a member was refused, its rate is not to blame.
        let rates = self
            .settings
            .max_writes
            .as_ref()
            .filter(|_| Some(seated.len()) == self.members.as_ref().map(Vec::len))?;
        let rates =
            members.rates(rates, seated, "it must be one of the group's members, as in \"members\"")?;
        let name = self.name?.value;
        let route = |from: usize| {
            let member = members.drafts.get(from)?.name.as_ref()?;
            let to: Vec<usize> = seated.iter().copied().filter(|to| *to != from).collect();
            let rates = rates.iter().filter(|(to, _)| **to != from).map(|(to, rate)| (*to, *rate)).collect();
            let name = format!("{name}/{}", member.value);
            let route = self.settings.clone().route(name, from, to, rates)?;
            Some(Route { group: Some(index), ..route })
        };
        let routes = seated.iter().map(|from| route(*from)).collect::<Option<_>>()?;
        let conflicts_file = self.conflicts_file.map(|file| file.value.into());
        let (members, conflicts) = (seated.to_vec(), self.conflicts?.value);
        Some((Group { name, members, conflicts, conflicts_file }, routes))
    }
}
