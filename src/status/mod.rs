//! What is going on in all workers together, as the state table alone shows it.
//!
//! [`progress`] is what each worker publishes of itself with every beat.

pub mod progress;
