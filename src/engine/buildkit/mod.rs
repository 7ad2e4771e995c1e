//! BuildKit, spoken to by its control API: a solve with its status stream, under a session that gives
//! the engine what it asks back for (`session`): the build context, secrets, credentials.
//!
//! The API is reached through a Docker Engine, which has a BuildKit of its own, or of a `buildkitd`
//! directly (`control`).

pub(super) mod abilities;
pub(super) mod build;
mod cache;
pub(super) mod context;
pub(super) mod control;
mod events;
mod faults;
mod hints;
pub(super) mod inputs;
pub(super) mod misses;
pub(super) mod revisions;
pub(super) mod session;
pub(super) mod solve;
mod syntax;
pub(super) mod tenancy;
pub(super) mod times;
