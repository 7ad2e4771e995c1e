//! The program from end to end: the real binary between the real RabbitMQ, git server, container
//! engine and registry, through nothing but what its users see.
//!
//! All of it needs the development services: `.devcontainer/stack.sh up` and `images`.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod builds;
mod cancelling;
mod concurrency;
mod embedded;
mod failures;
mod history;
mod hooks;
mod identity;
mod images;
mod lifecycle;
mod networks;
mod notifications;
mod odd_properties;
mod over_http;
#[cfg(feature = "failpoints")]
mod panics;
mod redriving;
mod registry_faults;
mod replicas;
mod requests;
mod secrets;
mod settings;
mod sharing;
#[cfg(feature = "failpoints")]
mod stages;
mod strange_input;
mod upgrading;
