//! image-builder: builds container images from Git repositories.
//!
//! This crate is the outside: one adapter a file, plus configuration and wiring. The inside, which
//! decides what happens to a job, is [`image_builder_actors`].
//!
//! | to read about | see |
//! |---|---|
//! | the program's life from start to exit | [`worker`], [`outside`], [`exit`] |
//! | settings | [`config`], [`data_dir`] |
//! | RabbitMQ | [`rabbitmq`], and its queues as data in [`topology`] |
//! | the forge | [`git`] |
//! | how an image is planned and built | [`planner`], [`docker`] |
//! | room on the disk: watermarks, pruning | [`disk`] |
//! | where it goes, and who is told | [`registry`], [`webhook`] |
//! | what an operator sees | [`http`], [`metrics`], [`readiness`], [`telemetry`], [`otlp`] |
//! | what an operator does with builds that were given up | [`dead`] |

mod blocking;
pub mod config;
pub mod data_dir;
pub mod dead;
pub mod disk;
pub mod docker;
pub mod exit;
pub mod git;
pub mod http;
pub mod http_client;
#[cfg(feature = "failpoints")]
pub mod killing;
pub mod memory;
pub mod metrics;
pub mod otlp;
pub mod outside;
pub mod planner;
pub mod rabbitmq;
pub mod readiness;
pub mod registry;
pub mod telemetry;
pub mod topology;
pub mod webhook;
pub mod worker;
