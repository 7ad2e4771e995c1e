//! In-memory builder.
