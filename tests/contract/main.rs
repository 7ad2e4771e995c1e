//! One conformance suite a port, run on the port in memory and on the real adapter.

mod broker;
mod builder;
mod credentials;
mod embedded;
mod engine;
mod http_server;
mod notifier;
mod planner;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/proxy.rs"]
mod proxy;
mod publishing;
mod registry;
mod source;
#[path = "../support/stand_in.rs"]
mod stand_in;
mod statuses;
mod store;
