//! The container engine: it builds the images, and its disk is looked after.

pub mod address;
mod buildkit;
mod cgroups;
mod credentials;
pub mod docker;
mod faults;
pub mod fleet;
mod platforms;
pub mod settings;
mod wire;
