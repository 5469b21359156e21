//! What the process shows of itself: metrics, health, logs.

pub mod board;
pub mod http;
pub mod logs;
pub mod metrics;
