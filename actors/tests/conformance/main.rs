//! The ports in memory keep what each port promises.

mod broker;
mod build_store;
mod builder;
mod commit_statuses;
mod credentials;
mod dead_letters;
mod notifier;
mod outcome_ledger;
mod planner;
mod registry;
mod source;
