//! What was told of one build.

use std::collections::BTreeSet;

use super::{Asked, Finding, Violation};
use crate::requests::Request;
use crate::support::managers::Notification;
use crate::support::request::{Ending, Sort};

/// How a build ended, in the words that the figures have for it.
pub fn ending(told: &Notification) -> String {
    match told.kind() {
        "build.failed" => format!("build.failed {}", told.text("/reason")),
        kind => kind.to_owned(),
    }
}

/// What is wrong with all that was told of a build.
pub fn judge(id: &str, asked: &Asked, told: &[&Notification]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut wrong = |finding, text: String| violations.push(Violation::of(finding, id, text));
    let kinds: BTreeSet<&str> = told.iter().map(|told| told.kind()).collect();
    if kinds.len() > 1 {
        wrong(Finding::Contradictory, format!("told as {kinds:?}"));
    }
    let images = told.iter().filter(|told| told.kind() == "image.ready");
    let digests: BTreeSet<&str> = images.map(|told| told.text("/image/digest")).collect();
    // Who publishes a request twice may have it built twice.
    if asked.copies == 1 && digests.len() > 1 {
        wrong(Finding::TwoDigests, format!("told with {digests:?}"));
    }
    for told in told {
        if told.webhook_id != told.own_id() {
            wrong(Finding::OtherWebhookId, format!("told under `{}`", told.webhook_id));
        }
        let manager = if told.kind() == "image.ready" { "/container" } else { "/connector" };
        if !told.to.ends_with(manager) {
            wrong(Finding::OtherManager, format!("{} was told to {}", told.kind(), told.to));
        }
        if let Err((finding, text)) = judge_one(&asked.request, told) {
            wrong(finding, format!("{text}: {}", told.raw));
        }
    }
    violations
}

type Judgement = Result<(), (Finding, String)>;

/// Whether this is a way in which the request may end.
fn judge_one(request: &Request, told: &Notification) -> Judgement {
    let other = |text: String| Err((Finding::OtherEnding, text));
    if told.text("/userID") != request.user {
        return other("told of another user".to_owned());
    }
    if request.sort == Sort::Fresh
        && (told.kind(), &told.data()["attempts"]) != ("image.ready", &1.into())
    {
        let text = "all was well, and it has no image after one attempt".to_owned();
        return Err((Finding::FreshNotPassed, text));
    }
    if told.text("/reason") == "crashed" {
        // Workers are killed, but by no request: none may be taken for one that kills.
        return other("taken for a request that kills its workers".to_owned());
    }
    if told.kind() == "build.failed" && told.text("/fault") == "service" {
        return Ok(());
    }
    match (request.sort.ending(), told.kind()) {
        (Ending::Image | Ending::ImageOrCancelled, "image.ready") => judge_image(request, told),
        (Ending::ImageOrCancelled | Ending::Cancelled, "build.cancelled") => Ok(()),
        (_, "build.cancelled") => {
            let text = "its user has not cancelled it".to_owned();
            Err((Finding::CancelledUnasked, text))
        }
        (Ending::Failed(reason), "build.failed") if told.text("/reason") == reason => Ok(()),
        (ending, _) => {
            other(format!("a request of the sort {:?} has to end in {ending:?}", request.sort))
        }
    }
}

fn judge_image(request: &Request, told: &Notification) -> Judgement {
    let other = |text: String| Err((Finding::OtherEnding, text));
    if request.commit != told.text("/commit") {
        return other(format!("the image is not of {:?}", request.commit));
    }
    if told.text("/image/tag") != told.text("/commit") {
        return other("the tag is not the commit".to_owned());
    }
    let path = format!("/{}/{}", request.user, request.application);
    if !told.text("/image/repository").ends_with(&path) {
        return other(format!("the image is not {path}"));
    }
    if request.sort == Sort::Forced && told.data()["reused"] == true {
        return other("what was to be built in any case was reused".to_owned());
    }
    Ok(())
}
