//! The builder port.
