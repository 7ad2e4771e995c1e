//! The ports in memory keep what each port promises.

mod notifier;
mod source;
