//! Who keeps the actors alive, and how messages reach the one that lives.

mod mailbox;
mod supervisor;

pub use self::mailbox::Mailbox;
pub use self::supervisor::{RestartIntensity, Supervisor};
