//! Brokers and engines that go away while the real program works: restarted, killed and frozen for real.
//!
//! Each is a node or an engine of the tests' own, which needs root, `rabbitmq-server` and `dockerd`;
//! the other services are the development ones: `.devcontainer/stack.sh up` and `images`.

#[path = "../support/mod.rs"]
mod support;

mod own;
