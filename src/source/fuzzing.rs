//! What fuzz targets (`tests/fuzz`) call: the readers of what git servers send.

pub use super::git::fuzzing::{Git, advertisement, answer};
