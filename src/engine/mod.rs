//! The container engine: it builds the images, and its disk is looked after.

mod buildkit;
pub mod docker;
