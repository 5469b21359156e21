//! Integration tests, one binary: a module for each subject.

#![cfg(feature = "sandbox")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and says so"
)]

/// The service's own: tests take less time with it, too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

mod access;
mod access_guide;
mod backfill;
mod commands;
mod costs;
mod cutover;
mod demo;
mod feed;
mod group_model;
mod groups;
mod groups_config;
mod lanes;
mod leases;
mod logs;
mod mixed;
mod model;
mod operator;
mod peer;
mod policy;
mod preflight;
mod pristine;
mod process;
mod properties;
mod readme;
mod replicate;
mod sandbox_access;
mod sandbox_clients;
mod sandbox_faults;
mod sandbox_streams;
mod sandbox_support;
mod sandbox_tables;
mod shape;
mod sim;
mod slow_pages;
mod starts;
mod strip;
mod verify;
mod world;
