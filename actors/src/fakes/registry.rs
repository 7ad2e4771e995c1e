//! In-memory registry.
