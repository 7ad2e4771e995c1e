//! The probe port: what the worker itself sees of what it needs.

use async_trait::async_trait;

use crate::model::fault::Reason;

/// Looks whether there is room to work, whatever others say of it.
#[async_trait]
pub trait Probe: Send + Sync + 'static {
    /// Whether what a capacity fault named is there; the error says what is missing. Changes nothing.
    async fn look(&self, reason: Reason) -> Result<(), String>;

    /// The same, after all that the worker itself can do for it: a full disk is pruned.
    async fn probe(&self, reason: Reason) -> Result<(), String>;
}
