//! Shardwalker replicates DynamoDB tables across AWS accounts by walking the shards of their streams.
//!
//! # The story of one change
//!
//! A [`service`] is built from a [`config`] and owns one [`replicator`] for each route. The replicator lists the
//! shards of the source's [`stream`], and takes [`lease`]s on those whose parents are done. For each lease a
//! [`walker`] reads its shard, page by page, and decodes every record into a [`change`]. Each page goes to one
//! [`lane`] for each peer. The lane gives every change a [`version`], lets [`apply`] decide what to do, keeps the
//! changes of one key in order, and has the [`peer`] write: one conditional request, which takes effect only where
//! nothing newer is. Deletes are remembered in the [`ledger`]; what a peer refuses for good goes to the
//! [`dead_letters`], and what the stream dropped unread to the [`gaps`]. The walker writes how far each lane is to
//! its lease, and there the next worker goes on.
//!
//! # What the rooms stand on
//!
//! [`item`], [`content`], [`view`], [`json`] and [`version`] are the data. [`state`] is the table in which everything is remembered;
//! [`starts`] the time when a route began. [`access`] finds out what is allowed, and names the statement that is
//! missing. [`aws`] makes the clients, [`failure`] says what an error means, [`retry`] tries again, [`limit`] keeps
//! to a rate. [`clock`], [`task`] and [`shutdown`] are the only places that touch time, tasks and signals.
//! [`telemetry`] shows what goes on in a process, [`status`] in all of them. [`cli`] is the command line.
#![cfg_attr(
    feature = "sandbox",
    doc = "\nWith the feature `sandbox` (on by default) there are also AWS accounts within the process, [`sandbox`], and the [`demo`] on them."
)]
//!
//! `ARCHITECTURE.md` has the protocol, the invariants and a map of every file.

pub mod access;
pub mod apply;
pub mod aws;
pub mod backfill;
pub mod change;
pub mod cli;
pub mod clock;
pub mod config;
pub mod conflicts;
pub mod connect;
pub mod content;
pub mod control;
pub mod cutover;
pub mod dead_letters;
pub mod failure;
pub mod feed;
pub mod gaps;
pub mod group;
pub mod guard;
pub mod iam;
pub mod invariants;
pub mod item;
pub mod json;
pub mod lane;
pub mod lease;
pub mod ledger;
pub mod limit;
pub mod loss;
pub mod members;
pub mod memory;
pub mod numbers;
pub mod obeyed;
pub mod peer;
pub mod replicator;
pub mod retry;
pub mod route;
#[cfg(feature = "sandbox")]
pub mod sandbox;
pub mod service;
pub mod shape;
pub mod shutdown;
pub mod starts;
pub mod state;
pub mod status;
pub mod stream;
pub mod strip;
pub mod tables;
pub mod task;
pub mod telemetry;
mod transact;
pub mod verify;
pub mod version;
pub mod view;
pub mod walker;
pub mod wire;

#[cfg(feature = "sandbox")]
pub mod demo;
