//! Access across accounts: what is needed, the policies that give it, and what is missing.

mod dated;
pub mod finding;
pub mod needs;
pub mod policy;
pub mod preflight;
pub mod probe;
pub mod render;
pub mod statement;
