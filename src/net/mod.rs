//! What every client of somebody else's server needs.

pub mod address;
pub mod http;
pub mod networks;
pub mod proxy;
pub(crate) mod public;
pub(crate) mod refusal;
pub mod signature;
