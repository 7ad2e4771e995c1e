//! The container engine: it builds the images, and its disk is looked after.

mod buildkit;
mod cgroups;
mod credentials;
pub mod docker;
mod platforms;
