//! The config of the benchmarks: the defaults of a config file, one route from member `a` to `b`, `c`, ...

use shardwalker::config::{
    Access, Admin, Config, Conflicts, DeadLetters, Group, Lease, Member, OnGap, Read, Route, Start, State,
    TableArn, Write,
};
use std::time::Duration;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Where everything is.
pub(crate) const REGION: &str = "eu-west-1";
/// The state table's name.
pub(crate) const STATE: &str = "state";
/// The stamp attribute.
pub(crate) const STAMP: &str = "shardwalker";

/// A member's table, in an account of its own; 0 is the source.
pub(crate) fn table(member: usize) -> TableArn {
    TableArn {
        partition: "aws".to_owned(),
        region: REGION.to_owned(),
        account: format!("{:012}", 111_111_111_111 * (member as u64 + 1)),
        table: "orders".to_owned(),
    }
}

/// A member's name; 0 is the source.
pub(crate) fn name(member: usize) -> String {
    char::from(b'a' + u8::try_from(member).unwrap_or_default()).to_string()
}

/// The access of every table.
pub(crate) fn access() -> Access {
    Access {
        region: REGION.to_owned(),
        endpoint: None,
        streams_endpoint: None,
        profile: None,
        assume_role: None,
    }
}

/// A config with so many members in a group, each with its index and 1 as its number.
#[allow(dead_code, reason = "the benchmarks share it, and each uses a part")]
pub(crate) fn mesh(members: usize, read: Read, in_flight: usize) -> Config {
    let mut config = config(members - 1, read, in_flight);
    for (index, member) in config.members.iter_mut().enumerate() {
        member.number = index as u8 + 1;
    }
    let one_way = config.routes.remove(0);
    let all = 0..members;
    config.routes = (all.clone())
        .map(|from| Route {
            name: format!("orders/{}", name(from)),
            from,
            to: all.clone().filter(|to| *to != from).collect(),
            ttl_deletes: false,
            group: Some(0),
            ..one_way.clone()
        })
        .collect();
    config.groups = vec![Group {
        name: "orders".to_owned(),
        members: all.collect(),
        conflicts: Conflicts::Sampled,
        conflicts_file: None,
    }];
    config
}

/// A config with so many peers.
pub(crate) fn config(peers: usize, read: Read, in_flight: usize) -> Config {
    let member = |index| Member { name: name(index), arn: table(index), access: access(), number: 0 };
    let route = Route {
        name: "orders".to_owned(),
        from: 0,
        to: (1..=peers).collect(),
        feeds: Vec::new(),
        ttl_deletes: true,
        stamp: STAMP.to_owned(),
        start: Start::TrimHorizon,
        on_gap: OnGap::Stop,
        max_clock_drift: Duration::from_secs(60),
        max_writes: std::collections::BTreeMap::new(),
        guard: None,
        shape: None,
        group: None,
        reversible: false,
        back_of: None,
        pristine: false,
    };
    Config {
        state: State {
            table: STATE.to_owned(),
            access: access(),
            tombstone_retention: Duration::from_secs(7 * 24 * 3600),
        },
        members: (0..=peers).map(member).collect(),
        routes: vec![route],
        groups: Vec::new(),
        feeds: Vec::new(),
        read,
        write: Write { in_flight, ..Write::default() },
        lease: Lease::default(),
        dead_letters: DeadLetters::default(),
        admin: Admin { listen: None, ..Admin::default() },
        grace: Duration::from_secs(25),
        access_patience: Duration::from_secs(30),
    }
}
