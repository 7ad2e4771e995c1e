//! Watermarks, pruning and what killed workers leave, on engines with small disks of their own.
//!
//! These tests need root, `dockerd`, `docker`, `unshare`, `mkfs.ext4` and loop devices.

mod contained;
mod engine;
mod full;
mod killed;
mod orders;
mod pipeline;
mod pruning;
#[path = "../support/mod.rs"]
mod support;
