//! In-memory notifier.
