//! The ports in memory, for tests. Each passes the same conformance suite as its real adapter.

pub mod broker;
pub mod builder;
pub mod conformance;
pub mod connector;
pub mod notifier;
pub mod planner;
pub mod probe;
pub mod registry;
pub mod script;
pub mod world;
