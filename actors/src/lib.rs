//! The inside of image-builder.

#[cfg(feature = "testing")]
pub mod fakes;
pub mod fault;
pub mod history;
pub mod job;
pub mod lease;
pub mod limits;
pub mod outcome;
pub mod ports;
pub mod progress;
pub mod reference;
pub mod secret;
pub mod workspace;
