//! What stands between a caller and an endpoint: how much may be asked for, by whom.
//!
//! - [`gate`]: which limits a request meets.
//! - [`limits`]: rate limits of endpoints and quotas of workspaces, checked without a lock.
//! - [`window`]: how many in the last minute, the counter under both.

pub mod gate;
pub mod limits;
pub mod window;
