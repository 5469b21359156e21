//! What the process shows of itself: metrics, health, logs.

pub mod metrics;
