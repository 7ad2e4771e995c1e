//! The notifier port: signed webhooks.

mod signature;
mod webhook;

pub use self::signature::{SigningKeys, SigningKeysError};
pub use self::webhook::{WebhookNotifier, WebhookSettings};
