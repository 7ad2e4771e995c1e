//! The planner port.
