//! The notifier port: signed webhooks.

mod webhook;

pub use self::webhook::{WebhookNotifier, WebhookSettings};
