//! The source port over git. What only the adapter can do is tested in the modules beside.

#[path = "../support/forward_proxy.rs"]
mod forward_proxy;
#[path = "../support/git_server.rs"]
pub(crate) mod git_server;
use crate::stand_in;

#[path = "source/bounds.rs"]
mod bounds;
#[path = "source/cancelling.rs"]
mod cancelling;
#[path = "source/commits.rs"]
mod commits;
#[path = "source/forge_faults.rs"]
mod forge_faults;
#[path = "source/forges.rs"]
mod forges;
#[path = "source/git.rs"]
mod git;
#[path = "source/kept.rs"]
mod kept;
#[path = "source/lfs.rs"]
mod lfs;
#[path = "source/proxies.rs"]
mod proxies;
#[path = "source/releases.rs"]
mod releases;
#[path = "source/submodules.rs"]
mod submodules;
#[path = "source/trees.rs"]
mod trees;

pub(crate) use image_builder_actors::testing::conformance::source::{
    branch, commit, empties, fetch, fetch_into, fetched, list, refused, request, scratch,
};

mod over_git {
    image_builder_actors::source_conformance!(super::git::GitServer::start().await);
}
