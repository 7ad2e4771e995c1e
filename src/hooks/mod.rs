//! Hooks: from what a forge sends after a push to the builds that it asks for. It knows no HTTP server; that is
//! `api/v1/hooks.rs`.
//!
//! | file | what it does |
//! |---|---|
//! | `delivery.rs` | the headers of a hook: which event it is, and whether its sender knows the secret |
//! | `event.rs` | what happened, in the words of no forge |
//! | `github.rs`, `gitlab.rs`, `gitea.rs` | what each forge says of it |
//! | `file.rs` | the applications file, read and checked |
//! | `applications.rs` | the same, read anew when it changes |
//! | `application.rs` | what one application wants of an event, and the request that comes of it |

mod application;
mod applications;
mod delivery;
mod event;
mod file;
mod gitea;
mod github;
mod gitlab;
#[cfg(test)]
pub(crate) mod tests;

use image_builder_actors::model::request::ForgeName;

pub use self::application::{Application, Wanted};
pub use self::applications::{Applications, ApplicationsSettings};
pub use self::delivery::{Delivery, Refusal};
pub use self::event::{Event, Happened};
pub use self::file::{DEFAULT_FILE, PLAN_FIELDS};

/// Longest body of a hook, in bytes: GitHub sends no longer ones.
pub const LONGEST_BODY: usize = 25 << 20;

/// Why a payload cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// It is not what the forge documents of this event.
    #[error("{0}")]
    Malformed(String),
    /// It is of an event that never leads to a build.
    #[error("{0}")]
    Unknown(String),
}

/// Reads the payload of a hook that is known to come from the forge.
///
/// # Errors
/// It is not what the forge documents, or of an event that is none of ours.
pub fn read(forge: ForgeName, event: &str, body: &[u8]) -> Result<Event, Unread> {
    match forge {
        ForgeName::Github => github::read(event, body),
        ForgeName::Gitlab => gitlab::read(event, body),
        ForgeName::Gitea => gitea::read(event, body),
        ForgeName::Bitbucket | ForgeName::Git => {
            Err(Unread::Unknown(format!("The forge `{}` sends no hooks here.", forge.as_str())))
        }
    }
}

/// The repository that a payload is about, before it is known who sent it: it only says whose secrets to try.
pub fn repository(forge: ForgeName, body: &[u8]) -> Option<String> {
    match forge {
        ForgeName::Gitlab => gitlab::repository(body),
        _ => github::repository(body),
    }
}

/// Reads JSON as the forge documents it.
fn payload<'a, T: serde::Deserialize<'a>>(event: &str, body: &'a [u8]) -> Result<T, Unread> {
    serde_json::from_slice(body).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => "what its forge documents of this event",
            _ => "JSON",
        };
        let (line, column) = (error.line(), error.column());
        Unread::Malformed(format!(
            "The payload of `{event}` is not {what}: line {line}, column {column}."
        ))
    })
}

/// An event that no build comes of.
fn unknown(event: &str, known: &str) -> Unread {
    let event: String = event.chars().take(60).collect();
    Unread::Unknown(format!(
        "The event `{event}` is none that leads to a build: have the hook sent for {known} alone."
    ))
}
