//! The ports in memory keep what each port promises.

mod broker;
mod build_store;
mod builder;
mod credentials;
mod dead_letters;
mod notifier;
mod outcome_ledger;
mod planner;
mod registry;
mod source;
