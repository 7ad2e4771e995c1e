//! In-memory broker.
