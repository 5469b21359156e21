//! Integration tests, one binary: a module for each subject.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and says so"
)]

#[cfg(feature = "sandbox")]
mod demo;
#[cfg(feature = "sandbox")]
mod leases;
mod model;
#[cfg(feature = "sandbox")]
mod peer;
#[cfg(feature = "sandbox")]
mod preflight;
#[cfg(feature = "sandbox")]
mod process;
#[cfg(feature = "sandbox")]
mod readme;
#[cfg(feature = "sandbox")]
mod replicate;
#[cfg(feature = "sandbox")]
mod sandbox_access;
#[cfg(feature = "sandbox")]
mod sandbox_clients;
#[cfg(feature = "sandbox")]
mod sandbox_faults;
#[cfg(feature = "sandbox")]
mod sandbox_streams;
#[cfg(feature = "sandbox")]
mod sandbox_support;
#[cfg(feature = "sandbox")]
mod sandbox_tables;
#[cfg(feature = "sandbox")]
mod slow_pages;
#[cfg(feature = "sandbox")]
mod world;
