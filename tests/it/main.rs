//! Integration tests, one binary: a module for each subject.

#![cfg(feature = "sandbox")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and says so"
)]

mod access;
mod access_guide;
mod backfill;
mod commands;
mod demo;
mod group_model;
mod groups;
mod groups_config;
mod lanes;
mod leases;
mod mixed;
mod model;
mod operator;
mod peer;
mod policy;
mod preflight;
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
mod sim;
mod slow_pages;
mod world;
