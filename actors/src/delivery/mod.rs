//! From a delivery to its end: each is settled once, after the next durable fact exists.

pub mod artifacts;
pub mod claims;
pub mod dedup;
pub mod envelope;
pub mod job;
pub mod lease;
pub mod seal;
pub mod settlement;
