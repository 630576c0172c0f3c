//! Who calls, and what they may do.
//!
//! - [`directory`]: workspaces with their users, groups and service principals, and their tokens, all in memory; a token
//!   becomes a [`Principal`] without the store.
//! - [`identity`]: the records of users, groups and service principals.
//! - [`tokens`]: personal access tokens and client secrets: made once, shown once, kept as a keyed hash.
//! - [`oauth`]: access tokens, which are not kept at all.
//! - [`workspace`]: the tenants and their quotas; [`quota`] counts what they use of them.
//! - [`authorize`]: the one place that decides who may do what.
//!
//! Invariants: everything belongs to one workspace, and a principal sees nothing of another; a change is in the store
//! before it is in memory, and in memory before it is acknowledged, so that a revoked token is refused at once.

pub mod authorize;
pub mod directory;
pub mod identity;
pub mod oauth;
pub mod quota;
pub mod tokens;
pub mod workspace;

pub use self::authorize::{Action, Grant, Level, Object, authorize, level_of};
pub use self::directory::Directory;
pub use self::identity::{Identity, IdentityKind, Principal};
pub use self::quota::{Limits, Reserved, Resource, Tallies, Tally};
pub use self::workspace::{Quotas, Workspace};
