//! image-builder: builds container images from Git repositories.
//!
//! This crate is the outside: one adapter a file, plus configuration and wiring. The inside, which
//! decides what happens to a job, is [`image_builder_actors`].

pub mod config;
pub mod docker;
pub mod git;
pub mod http;
pub mod http_client;
pub mod planner;
pub mod rabbitmq;
pub mod registry;
pub mod telemetry;
pub mod topology;
pub mod webhook;
