//! The ports in memory, for tests. Each passes the same conformance suite as its real adapter.

pub mod broker;
pub mod build_store;
pub mod builder;
pub mod commit_statuses;
pub mod conformance;
pub mod credentials;
pub mod dead_letters;
pub mod draw;
pub mod notifier;
pub mod outcome_ledger;
pub mod planner;
pub mod probe;
pub mod registry;
pub mod script;
pub mod source;
pub mod world;
