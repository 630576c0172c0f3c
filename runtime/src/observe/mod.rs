//! What can be seen from outside: logs, metrics, and what guests and deploys wrote.

pub mod log;
pub mod log_ring;
pub mod metrics;
