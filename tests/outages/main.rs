//! Brokers and engines that go away while the real program works: restarted, killed and frozen for
//! real, requests that kill their workers, and workers that are replaced one after another.
//!
//! What goes away is a RabbitMQ node or a container engine of the test's own, which needs root and the
//! packages `rabbitmq-server` and `docker.io`. The rest are the development services:
//! `.devcontainer/stack.sh up` and `images`.

#![allow(unreachable_pub, reason = "a test's modules are for the test")]

#[path = "../support/mod.rs"]
mod support;

mod broker;
mod engine;
mod frames;
mod killer;
mod outcome_queue;
mod replaced;
mod rights;
mod rule;
mod subscriptions;
