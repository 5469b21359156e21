//! Integration tests, one binary: a module for each subject.

#[cfg(feature = "sandbox")]
mod demo;
#[cfg(feature = "sandbox")]
mod readme;
#[cfg(feature = "sandbox")]
mod sandbox_support;
#[cfg(feature = "sandbox")]
mod sandbox_tables;
