//! `BUILDKIT_HOST`, and what only a BuildKit can do that pushes by itself: on engines of the test's own.
//!
//! No `buildkitd` runs here. What stands in for one is a bridge before the BuildKit within a Docker Engine
//! ([`support::buildkit_bridge`]), which has to have containerd's image store: `ENGINE_ROOT` and
//! `ENGINE_STORE=containerd`, as `make newer` sets them. These tests need root and the registry.

mod caches;
mod hosts;
mod straight;
#[path = "../support/mod.rs"]
mod support;
mod world;
