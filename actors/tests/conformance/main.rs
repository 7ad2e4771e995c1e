//! The ports in memory keep what each port promises.

mod broker;
mod dead_letters;
mod notifier;
mod outcome_ledger;
mod source;
