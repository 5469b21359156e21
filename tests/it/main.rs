//! Integration tests, one binary: a module for each subject.

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
