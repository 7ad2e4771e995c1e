//! In-memory planner.
