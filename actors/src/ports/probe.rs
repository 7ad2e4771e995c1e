//! The probe port: whether what was missing is back.

use async_trait::async_trait;

use crate::model::fault::Reason;

/// Looks whether there is room to work again.
#[async_trait]
pub trait Probe: Send + Sync + 'static {
    /// Whether what a capacity fault named is back; the error says what is still missing.
    async fn probe(&self, reason: Reason) -> Result<(), String>;
}
