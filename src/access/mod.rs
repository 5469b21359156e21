//! Access across accounts: what is needed, the policies that give it, and what is missing.

mod dated;
pub mod feeds;
pub mod finding;
pub mod found;
mod keys;
pub mod needs;
pub mod policy;
pub mod preflight;
pub mod probe;
pub mod render;
pub mod statement;
