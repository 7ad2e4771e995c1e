//! Faults of a build, told to the person who asked for it.

use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::notification::Culprit;
use serde_json::{Value, json};

pub(super) use super::wanted::in_options;
use crate::text::plain;

/// One sentence on what failed, and one on what to do about it where that is known; on one line.
pub(super) fn sentence(fault: &Fault) -> String {
    // A stranger's words, in part.
    let message = plain(&in_options(&fault.message));
    let message = message.trim_end_matches('.');
    match remedy(fault) {
        Some(remedy) => format!("{message}. {remedy}."),
        None => format!("{message}."),
    }
}

/// What to do about a fault, where its own message does not say so.
pub(super) fn remedy(fault: &Fault) -> Option<&'static str> {
    Some(match fault.reason {
        // It answers, and the message says what to do.
        Reason::EngineDown if fault.message.contains("TENANCY") => return None,
        Reason::EngineDown => "Start Docker, or set DOCKER_HOST to where it listens",
        Reason::RegistryDown => "Start the registry, or set REGISTRY_URL to where it is",
        Reason::ForgeDown => "Check the network, and GITHUB_URL",
        Reason::RateLimited => "Wait, or use a token (GITHUB_TOKEN)",
        Reason::DiskLow => "Make room: `docker system df` shows what takes it",
        Reason::RepositoryNotFound | Reason::Unauthorized => {
            "A private repository needs a token that may read it (GITHUB_TOKEN or --token-file)"
        }
        Reason::RegistryRefused if fault.message.contains("REGISTRY_") => return None,
        Reason::RegistryRefused => {
            "Check REGISTRY_URL, REGISTRY_USERNAME, REGISTRY_PASSWORD and what they may do"
        }
        Reason::EngineFailed | Reason::ForgeFailed | Reason::RegistryFailed | Reason::Timeout => {
            "Try it again; `image-builder doctor` looks for the cause"
        }
        _ => return None,
    })
}

/// The same for programs.
pub(super) fn of_json(fault: &Fault, log: &[String]) -> Value {
    json!({
        "fault": Culprit::of(fault.reason),
        "stage": fault.stage,
        "reason": fault.reason,
        "message": in_options(&fault.message),
        "remedy": remedy(fault),
        "step": fault.step,
        "log": log,
    })
}

#[cfg(test)]
mod tests {
    use image_builder_actors::model::fault::StageName;

    use super::*;

    #[test]
    fn a_strangers_words_move_nothing_on_a_terminal() {
        let message = "Step `RUN \u{1b}[2J\u{202e}x` failed.\nIt said so.";
        let fault = Fault::new(StageName::Builder, Reason::BuildFailed, message);
        let escaped = "Step `RUN \\u{1b}[2J\\u{202e}x` failed.\\nIt said so.";
        assert_eq!(sentence(&fault), escaped);
    }
}
