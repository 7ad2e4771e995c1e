//! How a build ended, for whoever waited for it.

use image_builder_actors::model::fault::{Kind, Reason};
use serde_json::Value;

use crate::exit::Exit;
use crate::text::plain;

/// How the program ends where the build has ended so: with an object that has its `state` and the `data` of its
/// notification.
pub(in crate::cli) fn exit(ended: &Value) -> Exit {
    match ended["state"].as_str() {
        Some("ready") => Exit::Ok,
        Some("failed") if ended["data"]["fault"] == "service" => {
            of_service(&ended["data"]["reason"])
        }
        Some("failed" | "cancelled") => Exit::Failed,
        // It has not ended.
        _ => Exit::Temporary,
    }
}

/// What is refused or broken stays so until somebody mends it; other faults of a service pass.
fn of_service(reason: &Value) -> Exit {
    let reason = Reason::ALL.iter().find(|known| Some(known.as_str()) == reason.as_str());
    match reason.map(|reason| (*reason, reason.kind())) {
        Some((Reason::Timeout, _) | (_, Kind::Capacity | Kind::Crash)) => Exit::Temporary,
        _ => Exit::Unavailable,
    }
}

/// How it ended, in one line.
pub(in crate::cli) fn sentence(ended: &Value) -> String {
    let data = &ended["data"];
    let text = |value: &Value| value.as_str().map(plain);
    match ended["state"].as_str() {
        Some("ready") => {
            image(ended).map_or_else(|| "ready".to_owned(), |it| format!("ready: {it}"))
        }
        state => {
            let state = plain(state.unwrap_or("not known"));
            let reason = text(&data["reason"]).map_or_else(String::new, |it| format!(" ({it})"));
            let message = text(&data["message"]).map_or_else(String::new, |it| format!(": {it}"));
            format!("{state}{reason}{message}")
        }
    }
}

/// The image, as it is to be deployed.
pub(in crate::cli) fn image(ended: &Value) -> Option<String> {
    let image = &ended["data"]["image"];
    let (repository, digest) = (image["repository"].as_str()?, image["digest"].as_str()?);
    Some(plain(&format!("{repository}@{digest}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_exit_code_says_whose_fault_it_was() {
        let failed = |fault: &str, reason: &str| {
            exit(&json!({"state": "failed", "data": {"fault": fault, "reason": reason}}))
        };
        assert_eq!(exit(&json!({"state": "ready"})), Exit::Ok);
        assert_eq!(exit(&json!({"state": "cancelled"})), Exit::Failed);
        assert_eq!(exit(&json!({"state": "building"})), Exit::Temporary);
        assert_eq!(failed("user", "build_failed"), Exit::Failed);
        assert_eq!(failed("service", "registry_refused"), Exit::Unavailable);
        assert_eq!(failed("service", "engine_failed"), Exit::Unavailable);
        assert_eq!(failed("service", "crashed"), Exit::Temporary);
        assert_eq!(failed("service", "timeout"), Exit::Temporary);
    }

    #[test]
    fn a_sentence_says_how_it_ended() {
        let image = json!({"repository": "r/u/a", "digest": "sha256:1"});
        let ready = json!({"state": "ready", "data": {"image": image}});
        assert_eq!(sentence(&ready), "ready: r/u/a@sha256:1");
        let data = json!({"reason": "build_failed", "message": "RUN\u{1b} failed."});
        let failed = json!({"state": "failed", "data": data});
        assert_eq!(sentence(&failed), "failed (build_failed): RUN\\u{1b} failed.");
    }
}
