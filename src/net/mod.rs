//! What every client of somebody else's server needs.

pub mod address;
pub mod http;
pub(crate) mod public;
pub(crate) mod refusal;
