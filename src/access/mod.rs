//! Access across accounts: what is needed, and what is missing.

pub mod preflight;
pub mod statement;
