//! The container engine: it builds the images, and its disk is looked after.

mod address;
mod buildkit;
mod credentials;
pub mod docker;
mod faults;
mod platforms;
mod wire;
