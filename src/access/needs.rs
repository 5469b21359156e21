//! What each feature asks of AWS: the one table from which policies are written and permissions are probed.
//!
//! Owns which action is needed on which table for what, so that what `policy` writes and what `check` tries cannot
//! drift apart. Pure. How a statement looks is left to [`statement`](super::statement), where it goes to
//! [`policy`](super::policy), how an action is tried without changing anything to [`probe`](super::probe).

use crate::config::Config;
use std::collections::BTreeSet;

/// One action of DynamoDB, in the order in which statements list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Finding a table, its keys and its stream.
    DescribeTable,
    /// Listing a stream's shards.
    DescribeStream,
    /// Reading a page of a shard.
    GetRecords,
    /// Finding a position in a shard.
    GetShardIterator,
    /// Reading an item.
    GetItem,
    /// Reading several.
    BatchGetItem,
    /// Reading the items of a partition.
    Query,
    /// Reading all items.
    Scan,
    /// Writing a whole item.
    PutItem,
    /// Writing a part of one.
    UpdateItem,
    /// Deleting one.
    DeleteItem,
    /// Making a table.
    CreateTable,
    /// Whether items expire.
    DescribeTimeToLive,
    /// Having items expire.
    UpdateTimeToLive,
}

use Action::{
    BatchGetItem, CreateTable, DeleteItem, DescribeStream, DescribeTable, DescribeTimeToLive, GetItem,
    GetRecords, GetShardIterator, PutItem, Query, Scan, UpdateItem, UpdateTimeToLive,
};

/// The actions that reading a stream takes.
pub const READ_STREAM: [Action; 3] = [DescribeStream, GetRecords, GetShardIterator];

impl Action {
    /// The API call, such as `GetItem`.
    #[must_use]
    pub const fn call(self) -> &'static str {
        match self {
            DescribeTable => "DescribeTable",
            DescribeStream => "DescribeStream",
            GetRecords => "GetRecords",
            GetShardIterator => "GetShardIterator",
            GetItem => "GetItem",
            BatchGetItem => "BatchGetItem",
            Query => "Query",
            Scan => "Scan",
            PutItem => "PutItem",
            UpdateItem => "UpdateItem",
            DeleteItem => "DeleteItem",
            CreateTable => "CreateTable",
            DescribeTimeToLive => "DescribeTimeToLive",
            UpdateTimeToLive => "UpdateTimeToLive",
        }
    }

    /// As policies name it, such as `dynamodb:GetItem`.
    #[must_use]
    pub fn name(self) -> String {
        format!("dynamodb:{}", self.call())
    }

    /// Whether a resource policy can allow it to another account.
    #[must_use]
    pub const fn shareable(self) -> bool {
        !matches!(self, CreateTable | DescribeTimeToLive | UpdateTimeToLive)
    }

    /// Whether it is done on the table's stream, which has an ARN and a resource policy of its own.
    #[must_use]
    pub fn on_stream(self) -> bool {
        READ_STREAM.contains(&self)
    }
}

/// The part that a table plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// One-way routes lead from it.
    Source,
    /// One-way routes lead to it.
    Peer,
    /// It is in a group.
    Member,
    /// Routes of any kind lead from it.
    Origin,
    /// It is one end of a route between members, which can be compared.
    Compared,
    /// One-way routes lead to it that stamp what they write.
    Stamped,
    /// Routes lead from it to peers, and their backfills look at single items of it: those with a shape, or with pristine
    /// peers.
    Looked,
    /// It is one end of a route that has a way back.
    Turning,
    /// The state table.
    State,
}

/// What is used. Replication needs no naming; the others are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Routes and groups, as the config has them.
    Replicate,
    /// The initial copy.
    Backfill,
    /// Comparing members.
    Verify,
    /// Mending what a comparison found.
    Repair,
    /// Taking the stamps off after a migration.
    Strip,
    /// Moving the writers of a route with a way back.
    Cutover,
    /// `run --create-state-table`.
    CreateStateTable,
}

/// Feature, part of the table, actions, and what they are for.
type Row = (Feature, Part, &'static [Action], &'static str);

use Feature::{Backfill, CreateStateTable, Cutover, Repair, Replicate, Strip, Verify};

/// The table.
pub const TABLE: &[Row] = &[
    (Replicate, Part::Source, &[DescribeTable], "finds the stream and compares the keys"),
    (Replicate, Part::Source, &READ_STREAM, "reads the changes"),
    (Replicate, Part::Peer, &[DescribeTable], "compares the keys"),
    (Replicate, Part::Peer, &[PutItem, DeleteItem], "applies changes"),
    (Replicate, Part::Member, &[DescribeTable], "finds the stream and compares the keys"),
    (Replicate, Part::Member, &READ_STREAM, "reads the changes"),
    (
        Replicate,
        Part::Member,
        &[GetItem, PutItem, UpdateItem, DeleteItem],
        "applies changes, marks what it deletes, and reads what it repairs",
    ),
    (
        Replicate,
        Part::State,
        &[DescribeTable, GetItem, BatchGetItem, Query, PutItem, UpdateItem, DeleteItem],
        "keeps leases, checkpoints, tombstones and dead letters",
    ),
    (Backfill, Part::Origin, &[Scan], "reads what is there"),
    (Backfill, Part::Looked, &[GetItem], "looks at single items again"),
    (Backfill, Part::Peer, &[PutItem, DeleteItem], "writes what was there"),
    (Verify, Part::Compared, &[Scan, GetItem], "compares"),
    (Repair, Part::Peer, &[PutItem, DeleteItem], "mends differences"),
    (Strip, Part::Stamped, &[Scan, UpdateItem], "takes the stamps off"),
    (Cutover, Part::Turning, &[GetItem, PutItem, DeleteItem], "writes the final marker, and sees it arrive"),
    (
        CreateStateTable,
        Part::State,
        &[CreateTable, DescribeTimeToLive, UpdateTimeToLive],
        "makes the state table at the first start",
    ),
];

/// What is needed of one table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// The actions.
    pub actions: BTreeSet<Action>,
    /// What those on the table, and then those on its stream, are for; without repetitions.
    pub why: [Vec<&'static str>; 2],
}

impl Needs {
    /// Of the member at `index`; nothing when no route uses it.
    #[must_use]
    pub fn of_member(config: &Config, index: usize, features: &BTreeSet<Feature>) -> Self {
        let mut parts = Vec::new();
        for route in &config.routes {
            let (from, to) = (route.from == index, route.to.contains(&index));
            if from {
                parts.push(Part::Origin);
            }
            if from && !route.to.is_empty() && (route.shape.is_some() || route.pristine) {
                parts.push(Part::Looked);
            }
            if to || from && !route.to.is_empty() {
                parts.push(Part::Compared);
            }
            if to && route.group.is_none() && !route.pristine {
                parts.push(Part::Stamped);
            }
            if route.reversible && (from || to) {
                parts.push(Part::Turning);
            }
            match route.group {
                Some(_) if from || to => parts.push(Part::Member),
                Some(_) => {}
                None if from => parts.push(Part::Source),
                None if to => parts.push(Part::Peer),
                None => {}
            }
        }
        Self::of(&parts, features)
    }

    /// Of the state table.
    #[must_use]
    pub fn of_state(features: &BTreeSet<Feature>) -> Self {
        Self::of(&[Part::State], features)
    }

    fn of(parts: &[Part], features: &BTreeSet<Feature>) -> Self {
        let mut needs = Self::default();
        for (feature, part, actions, why) in TABLE {
            if parts.contains(part) && (*feature == Replicate || features.contains(feature)) {
                needs.actions.extend(*actions);
                let whys = &mut needs.why[usize::from(actions.iter().any(|action| action.on_stream()))];
                if !whys.contains(why) {
                    whys.push(why);
                }
            }
        }
        needs
    }

    /// What those on the table itself, or those on its stream, are for.
    #[must_use]
    pub fn why(&self, stream: bool) -> String {
        self.why[usize::from(stream)].join("; ")
    }

    /// What all of them are for.
    #[must_use]
    pub fn whole_why(&self) -> String {
        self.why.concat().join("; ")
    }

    /// Those on the table itself, or those on its stream.
    #[must_use]
    pub fn on(&self, stream: bool) -> Vec<Action> {
        self.actions.iter().copied().filter(|action| action.on_stream() == stream).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
        [state]
        table = "state"
        region = "eu-west-1"
        [[member]]
        name = "a"
        table = "arn:aws:dynamodb:eu-west-1:111111111111:table/one"
        [[member]]
        name = "b"
        table = "arn:aws:dynamodb:eu-west-1:222222222222:table/two"
        [[member]]
        name = "c"
        table = "arn:aws:dynamodb:eu-west-1:333333333333:table/three"
        [[route]]
        name = "r"
        from = "a"
        to = ["b"]
    "#;

    #[test]
    fn only_what_is_used_is_needed() {
        let config = Config::parse(CONFIG, "test", &|_| None).unwrap();
        let calls = |index, features: &[Feature]| {
            let needs = Needs::of_member(&config, index, &features.iter().copied().collect());
            needs.actions.into_iter().map(Action::call).collect::<Vec<_>>()
        };
        assert_eq!(calls(0, &[]), ["DescribeTable", "DescribeStream", "GetRecords", "GetShardIterator"]);
        assert_eq!(calls(1, &[]), ["DescribeTable", "PutItem", "DeleteItem"]);
        assert!(calls(2, &[Verify]).is_empty(), "no route uses it");
        assert_eq!(calls(1, &[Verify]), ["DescribeTable", "GetItem", "Scan", "PutItem", "DeleteItem"]);
        let state = |features: &[Feature]| Needs::of_state(&features.iter().copied().collect()).actions.len();
        assert_eq!((state(&[]), state(&[CreateStateTable])), (7, 10));
    }
}
