//! What IAM policies mean: reading documents, conditions, and AWS's evaluation as a pure function.
//!
//! Used by `policy simulate` and by the sandbox, which plays AWS. The replicator itself never evaluates a policy: it
//! asks AWS by making the calls.

pub mod condition;
pub mod evaluate;
mod pattern;
pub mod policy;
