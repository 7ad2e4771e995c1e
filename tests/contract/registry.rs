//! The registry port.
