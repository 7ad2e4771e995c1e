//! In-memory connector.
