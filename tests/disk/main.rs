//! Watermarks, pruning and what killed workers leave, on engines with small disks of their own; and what build steps
//! reach, on one with a network of its own.
//!
//! These tests need root, `dockerd`, `docker`, `unshare`, `nft`, `ip`, `mkfs.ext4` and loop devices.

mod contained;
mod engine;
mod filling;
mod full;
mod killed;
mod network;
mod orders;
mod pipeline;
mod pruning;
#[path = "../support/mod.rs"]
mod support;
