//! The ports in memory keep what each port promises.

mod builder;
mod planner;
mod registry;
