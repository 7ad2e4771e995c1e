//! The broker port.
