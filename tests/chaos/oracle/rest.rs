//! What is there after a run beside what was told: images, dead letters, leavings.

use std::collections::BTreeSet;

use super::{Finding, Violation};
use crate::evidence::{Evidence, Left};

/// What is wrong with all but the notifications.
pub fn judge(evidence: &Evidence) -> Vec<Violation> {
    let mut violations = judge_registry(evidence);
    violations.extend(judge_letters(evidence));
    violations.extend(judge_left(&evidence.run, &evidence.left));
    violations.extend(judge_waiting(&evidence.waiting));
    let messages = evidence.messages.iter();
    violations.extend(messages.map(|(queue, body)| {
        Violation::general(Finding::MessageLeft, format!("left in {queue}: {body}"))
    }));
    for worker in &evidence.workers {
        let odd = worker.odd_ends.iter();
        violations.extend(odd.map(|text| Violation::general(Finding::OddEnd, text)));
        let died = |line: &&str| line.contains("panicked") || line.contains("an actor died");
        violations.extend(worker.log.lines().filter(died).map(|line| {
            Violation::general(Finding::ActorDied, format!("{}: {line}", worker.name))
        }));
    }
    let bad = evidence.bad_notifications.iter();
    violations.extend(bad.map(|text| Violation::general(Finding::BadNotification, text)));
    let faults = evidence.failed_faults.iter();
    violations.extend(faults.map(|text| Violation::general(Finding::FaultWentWrong, text)));
    violations
}

/// Digests and tags that were told and are not in the registry, and images there that nobody was told of.
fn judge_registry(evidence: &Evidence) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut judged = BTreeSet::new();
    for told in evidence.notifications.iter().filter(|told| told.kind() == "image.ready") {
        let mut wrong =
            |finding, text| violations.push(Violation::of(finding, told.build_id(), text));
        let image = evidence.image(told);
        let tag = (image.0.clone(), told.text("/image/tag").to_owned());
        if !judged.insert(image.clone()) {
            continue;
        }
        if !evidence.digests.contains(&image) {
            wrong(Finding::DigestNotThere, format!("the registry has no {}@{}", image.0, image.1));
        }
        if !evidence.tags.contains_key(&tag) {
            wrong(Finding::TagNotThere, format!("the registry has no {}:{}", tag.0, tag.1));
        }
    }
    // One that was taken back while it was pushed may be there.
    let cancelled = evidence.notifications.iter().filter(|told| told.kind() == "build.cancelled");
    let cancelled: BTreeSet<String> = cancelled
        .map(|told| format!("{}/{}", told.text("/userID"), told.text("/applicationID")))
        .collect();
    for ((repository, tag), digest) in &evidence.tags {
        let told = judged.contains(&(repository.clone(), digest.clone()));
        if !told && !cancelled.contains(repository) {
            let text = format!("nobody was told of {repository}:{tag}, {digest}");
            violations.push(Violation::general(Finding::UnknownImage, text));
        }
    }
    violations
}

/// Every build that was given up has a dead letter, and no other has.
fn judge_letters(evidence: &Evidence) -> Vec<Violation> {
    let failed = evidence.notifications.iter().filter(|told| told.kind() != "image.ready");
    let failed: BTreeSet<_> = failed.map(super::build).collect();
    let dead: BTreeSet<_> = evidence.letters.iter().cloned().collect();
    let missing = failed
        .difference(&dead)
        .map(|(_, id)| Violation::of(Finding::NoLetter, id, "given up without a dead letter"));
    let odd = dead.difference(&failed).map(|(_, id)| {
        Violation::of(Finding::OddLetter, id, "has a dead letter and was not given up")
    });
    missing.chain(odd).collect()
}

/// What builds have left behind on the machine and in the engine.
pub fn judge_left(run: &str, left: &Left) -> Vec<Violation> {
    let spaces = left.workspaces.iter().map(|path| {
        Violation::general(Finding::WorkspaceLeft, format!("a workspace is left: {path}"))
    });
    // All steps of a run have its name in their command.
    let steps = left.processes.iter().filter(|command| command.contains(run)).map(|command| {
        Violation::general(Finding::StepLeft, format!("a step still runs: {command}"))
    });
    let containers = left.containers.iter().map(|container| {
        Violation::general(Finding::ContainerLeft, format!("a container is left: {container}"))
    });
    spaces.chain(steps).chain(containers).collect()
}

/// Messages in the queues when all was told.
pub fn judge_waiting(waiting: &[(String, u64)]) -> Vec<Violation> {
    let busy = waiting.iter().filter(|(_, messages)| *messages > 0);
    busy.map(|(queue, messages)| {
        let text = format!("{queue} does not get empty: {messages} are waiting or unacked");
        Violation::general(Finding::Waiting, text)
    })
    .collect()
}
