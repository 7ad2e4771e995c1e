//! What an operator sees.

pub mod delivery_span;
pub mod health;
pub mod history;
pub mod metrics;
pub mod statuses;
pub mod trace;
