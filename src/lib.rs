//! image-builder: builds container images from Git repositories.
//!
//! This crate is the outside: one room an adapter, plus configuration and wiring. The inside, which
//! decides what happens to a job, is [`image_builder_actors`]. Adapters know the inside, [`net`], `blocking`,
//! `child` and `exposure`, and never each other: only [`wiring`] knows them all.
//!
//! | room | what is in it |
//! |---|---|
//! | [`cli`] | one module a command |
//! | [`config`], [`data_dir`] | settings, and the worker's own directory |
//! | [`exit`], [`signals`] | how the program ends, and who asks it to |
//! | [`wiring`] | the worker, put together from the settings: adapters and pipeline |
//! | [`broker`] | the queues |
//! | [`source`] | from a request to a tree of files |
//! | [`planner`] | from a tree of files to a plan |
//! | [`engine`] | from a plan to an image; the engine's disk |
//! | [`registry`] | where images are stored |
//! | [`notify`] | who is told |
//! | [`store`] | what is known of builds, for whoever asks |
//! | `dead_letters` | which are meant, and what requests are made of them |
//! | [`hooks`] | what forges send, and which builds come of it |
//! | [`api`] | what the worker tells over HTTP |
//! | [`telemetry`] | logs and traces |
//! | `exposure` | whether an image shows a secret |
//! | [`net`] | what every client of somebody else's server needs |

pub mod api;
mod blocking;
pub mod broker;
mod child;
pub mod cli;
pub mod config;
pub mod credentials;
pub mod data_dir;
mod dead_letters;
pub mod engine;
pub mod exit;
mod exposure;
pub mod hooks;
#[cfg(feature = "failpoints")]
pub mod kill_points;
pub mod memory;
pub mod net;
pub mod notify;
pub mod planner;
pub mod registry;
pub mod signals;
pub mod source;
pub mod store;
pub mod telemetry;
mod text;
pub mod wiring;
