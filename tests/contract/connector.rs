//! The connector port.
