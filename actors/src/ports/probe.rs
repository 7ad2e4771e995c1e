//! The probe port: what the worker itself sees of what it needs.

use futures_util::future::BoxFuture;

use crate::model::fault::Reason;

/// Looks whether there is room to work, whatever others say of it.
pub trait Probe: Send + Sync + 'static {
    /// Whether what a capacity fault named is there; the error says what is missing. Changes nothing.
    fn look(&self, reason: Reason) -> BoxFuture<'_, Result<(), String>>;

    /// The same, after all that the worker itself can do for it: a full disk is pruned.
    fn probe(&self, reason: Reason) -> BoxFuture<'_, Result<(), String>>;
}
