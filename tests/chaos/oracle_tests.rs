//! The oracle finds what is wrong, and nothing else: made-up runs, each broken in one way.

use std::time::Instant;

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::evidence::{Evidence, Past};
use crate::journal::{Entry, What};
use crate::oracle::Finding::*;
use crate::oracle::{Cause, Finding, Kind, Oracle, Repeat};
use crate::requests::{Request, Sort};
use crate::support::managers::Notification;

const RUN: &str = "run-1";
const REGISTRY: &str = "registry.test:5000";
const COMMIT: &str = "c0ffee";

/// A run of three requests: one that gets its image, one whose step fails, and a fresh one.
struct Case {
    oracle: Oracle,
    evidence: Evidence,
    /// When it began.
    begun: OffsetDateTime,
}

impl Case {
    fn clean() -> Self {
        let begun = OffsetDateTime::now_utc() - Duration::HOUR;
        let evidence = Evidence {
            run: RUN.to_owned(),
            registry_name: REGISTRY.to_owned(),
            waiting: vec![("run-1.build".to_owned(), 0)],
            workers: vec![Past {
                name: "worker1".to_owned(),
                log: "{\"message\":\"at work\"}\n".to_owned(),
                odd_ends: Vec::new(),
            }],
            ..Evidence::default()
        };
        let mut case = Self { oracle: Oracle::default(), evidence, begun };
        for (sort, id) in [(Sort::Files, "a"), (Sort::Failing, "b"), (Sort::Fresh, "c")] {
            case.ask(sort, id);
        }
        case.evidence.notifications =
            vec![case.ready("a"), case.failed("b", "build_failed"), case.ready("c")];
        case.evidence.letters = vec![letter("b")];
        for id in ["a", "c"] {
            case.store(id, &digest(id));
        }
        let steps = ["/usr/sbin/dockerd --host unix:///x", "image-builder serve"];
        case.evidence.left.processes = steps.map(str::to_owned).to_vec();
        case
    }

    fn ask(&mut self, sort: Sort, id: &str) {
        self.ask_of("run-1-user0", sort, id);
    }

    fn ask_of(&mut self, user: &str, sort: Sort, id: &str) {
        self.oracle.ask(Request {
            sort,
            build_id: (sort != Sort::NoId).then(|| id.to_owned()),
            message_id: None,
            application: format!("app-{id}"),
            user: user.to_owned(),
            commit: COMMIT.to_owned(),
            body: json!({}),
            copies: if sort == Sort::Twice { 2 } else { 1 },
        });
    }

    /// Puts an image into the registry.
    fn store(&mut self, id: &str, digest: &str) {
        let repository = format!("run-1-user0/app-{id}");
        self.evidence.digests.insert((repository.clone(), digest.to_owned()));
        for tag in [COMMIT, "key-1"] {
            self.evidence.tags.insert((repository.clone(), tag.to_owned()), digest.to_owned());
        }
    }

    fn notification(&self, id: &str, kind: &str, data: Value) -> Notification {
        let path = if kind == "image.ready" { "container" } else { "connector" };
        let mut body = json!({"type": kind, "timestamp": rfc3339(self.at(60.0)), "data": {
            "buildID": id, "applicationID": format!("app-{id}"), "userID": "run-1-user0", "attempts": 1,
        }});
        body["data"].as_object_mut().expect("an object").extend(object(data));
        let mut told = Notification {
            to: format!("/worker1/{path}"),
            webhook_id: String::new(),
            timestamp: String::new(),
            raw: body.to_string(),
            body,
            answered: 204,
            at: self.instant(61.0),
        };
        told.webhook_id = told.own_id();
        told
    }

    fn ready(&self, id: &str) -> Notification {
        let image = json!({
            "repository": format!("{REGISTRY}/run-1-user0/app-{id}"), "tag": COMMIT, "digest": digest(id),
        });
        self.notification(
            id,
            "image.ready",
            json!({"commit": COMMIT, "reused": false, "image": image}),
        )
    }

    fn failed(&self, id: &str, reason: &str) -> Notification {
        let fault = if reason.ends_with("_failed") && reason != "build_failed" {
            "service"
        } else {
            "user"
        };
        self.notification(id, "build.failed", json!({"reason": reason, "fault": fault}))
    }

    /// So many seconds after the beginning.
    fn at(&self, seconds: f64) -> OffsetDateTime {
        self.begun + Duration::seconds_f64(seconds)
    }

    fn instant(&self, seconds: f64) -> Instant {
        let ago = OffsetDateTime::now_utc() - self.at(seconds);
        Instant::now().checked_sub(ago.unsigned_abs()).expect("a clock goes back an hour")
    }

    /// Tells what was told of a build once more, `data` changed.
    fn notify_again(&mut self, index: usize, data: Value) -> &mut Notification {
        let mut again = self.evidence.notifications[index].clone();
        again.at = self.instant(70.0);
        again.body["data"].as_object_mut().expect("an object").extend(object(data));
        self.evidence.notifications.push(again);
        self.evidence.notifications.last_mut().expect("one was added")
    }

    fn happens(&mut self, seconds: f64, worker: &str, what: What) {
        let at = self.at(seconds);
        self.evidence.journal.entries.push(Entry { at, worker: worker.to_owned(), what });
    }

    fn findings(&self) -> Vec<(Finding, Option<String>)> {
        let count = self.oracle.judge(&self.evidence);
        count.violations.into_iter().map(|found| (found.finding, found.build_id)).collect()
    }

    /// This is wrong with a build, and nothing else is.
    #[track_caller]
    fn assert_found(&self, finding: Finding, build_id: &str) {
        assert_eq!(self.findings(), [(finding, Some(build_id.to_owned()))]);
    }

    /// This is wrong with the run, and nothing else is.
    #[track_caller]
    fn assert_found_generally(&self, finding: Finding) {
        assert_eq!(self.findings(), [(finding, None)]);
    }

    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(self.findings(), []);
    }

    fn repeats(&self) -> Vec<Repeat> {
        self.oracle.judge(&self.evidence).repeats
    }

    #[track_caller]
    fn assert_repeated(&self, cause: Cause) {
        let kind = Kind::NotifiedAgain(cause);
        assert_eq!(self.repeats(), [Repeat { build_id: "a".to_owned(), kind, same_id: true }]);
        self.assert_clean();
    }
}

/// The dead letter of a build of the run's user.
fn letter(id: &str) -> (String, String) {
    ("run-1-user0".to_owned(), id.to_owned())
}

fn digest(id: &str) -> String {
    format!("sha256:{id}")
}

fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).expect("it can be written")
}

fn object(value: Value) -> serde_json::Map<String, Value> {
    value.as_object().expect("an object").clone()
}

#[test]
fn clean_evidence_has_nothing_wrong_with_it() {
    let case = Case::clean();
    case.assert_clean();
    let count = case.oracle.judge(&case.evidence);
    let endings = [("build.failed build_failed".to_owned(), 1), ("image.ready".to_owned(), 2)];
    assert_eq!(count.endings, endings.into());
    assert!(count.repeats.is_empty() && count.two_ids == 0);
}

// ---- what was told ---------------------------------------------------------------------------------

#[test]
fn a_request_that_nobody_was_told_of_is_lost() {
    let mut case = Case::clean();
    case.ask(Sort::Step, "d");
    case.assert_found(Lost, "d");
}

#[test]
fn what_no_manager_has_accepted_counts_as_not_told() {
    let mut case = Case::clean();
    case.evidence.notifications[0].answered = 500;
    case.assert_found(Lost, "a");
}

#[test]
fn a_build_that_ends_in_two_ways_is_contradictory() {
    let mut case = Case::clean();
    let failed = case.failed("a", "registry_failed");
    case.evidence.notifications.push(failed);
    case.evidence.letters.push(letter("a"));
    case.happens(61.5, "worker1", What::Ended);
    case.assert_found(Contradictory, "a");
}

#[test]
fn a_contradiction_that_no_manager_has_accepted_is_one_all_the_same() {
    let mut case = Case::clean();
    let mut failed = case.failed("a", "registry_failed");
    failed.answered = 500;
    case.evidence.notifications.push(failed);
    case.evidence.letters.push(letter("a"));
    case.assert_found(Contradictory, "a");
}

#[test]
fn a_build_has_one_digest() {
    let mut case = Case::clean();
    let image = json!({"image": {
        "repository": format!("{REGISTRY}/run-1-user0/app-a"), "tag": COMMIT, "digest": "sha256:other",
    }});
    case.notify_again(0, image);
    case.store("a", "sha256:other");
    case.happens(61.5, "worker1", What::Ended);
    case.assert_found(TwoDigests, "a");
}

#[test]
fn a_build_that_was_asked_for_twice_may_have_two_digests() {
    let mut case = Case::clean();
    case.ask(Sort::Twice, "d");
    case.store("d", &digest("d"));
    case.store("d", "sha256:other");
    let outcomes = [(digest("d"), 60.0), ("sha256:other".to_owned(), 62.0)];
    let told = outcomes.map(|(digest, made)| {
        let mut told = case.ready("d");
        told.body["timestamp"] = rfc3339(case.at(made)).into();
        told.body["data"]["image"]["digest"] = digest.into();
        told
    });
    case.evidence.notifications.extend(told);
    case.assert_clean();
}

#[test]
fn a_build_that_nobody_asked_for_is_found() {
    let mut case = Case::clean();
    let told = case.ready("x");
    case.evidence.notifications.push(told);
    case.store("x", &digest("x"));
    case.assert_found(NotAskedFor, "x");
}

#[test]
fn a_repetition_under_another_webhook_id_is_found() {
    let mut case = Case::clean();
    case.notify_again(0, json!({})).webhook_id = "a.image.ready.2".to_owned();
    case.happens(61.5, "worker1", What::Ended);
    case.assert_found(OtherWebhookId, "a");
    let same_id: Vec<bool> = case.repeats().iter().map(|repeat| repeat.same_id).collect();
    assert_eq!(same_id, [false]);
}

#[test]
fn an_outcome_that_the_other_manager_was_told_is_found() {
    let mut case = Case::clean();
    case.evidence.notifications[0].to = "/worker1/connector".to_owned();
    case.assert_found(OtherManager, "a");
}

#[test]
fn a_request_may_end_only_as_its_sort_says() {
    for (index, id, data) in [
        (0, "a", json!({"commit": "another"})),
        (0, "a", json!({"userID": "run-1-user1"})),
        (1, "b", json!({"reason": "build_timeout"})),
        (1, "b", json!({"reason": "crashed", "fault": "service"})),
    ] {
        let mut case = Case::clean();
        let told = &mut case.evidence.notifications[index];
        told.body["data"].as_object_mut().expect("an object").extend(object(data));
        told.webhook_id = told.own_id();
        case.assert_found(OtherEnding, id);
    }
}

#[test]
fn a_fault_of_the_service_is_an_ending_of_any_request_but_a_fresh_one() {
    let mut case = Case::clean();
    case.ask(Sort::Step, "d");
    let failed = case.failed("d", "registry_failed");
    case.evidence.notifications.push(failed);
    case.evidence.letters.push(letter("d"));
    case.assert_clean();

    let mut case = Case::clean();
    case.evidence.notifications[2] = case.failed("c", "registry_failed");
    case.evidence.letters.push(letter("c"));
    case.evidence.tags.retain(|(repository, _), _| !repository.ends_with("app-c"));
    case.assert_found(FreshNotPassed, "c");
}

#[test]
fn a_fresh_request_needs_one_attempt() {
    let mut case = Case::clean();
    case.evidence.notifications[2].body["data"]["attempts"] = 2.into();
    case.assert_found(FreshNotPassed, "c");
}

#[test]
fn what_was_to_be_built_in_any_case_is_not_reused() {
    let mut case = Case::clean();
    case.ask(Sort::Forced, "d");
    case.store("d", &digest("d"));
    let mut told = case.ready("d");
    told.body["data"]["reused"] = true.into();
    case.evidence.notifications.push(told);
    case.assert_found(OtherEnding, "d");
}

#[test]
fn a_request_without_an_id_that_got_two_is_counted() {
    let mut case = Case::clean();
    case.ask(Sort::NoId, "d");
    case.store("d", &digest("d"));
    for id in ["made-up-1", "made-up-2"] {
        let mut told = case.ready("d");
        told.body["data"]["buildID"] = id.into();
        told.webhook_id = told.own_id();
        case.evidence.notifications.push(told);
    }
    case.assert_clean();
    assert_eq!(case.oracle.judge(&case.evidence).two_ids, 1);
}

// ---- what is there ---------------------------------------------------------------------------------

#[test]
fn a_digest_or_a_tag_that_does_not_resolve_is_found() {
    let mut case = Case::clean();
    case.evidence.digests.retain(|(_, there)| *there != digest("a"));
    case.assert_found(DigestNotThere, "a");

    let mut case = Case::clean();
    case.evidence.tags.retain(|(repository, _), _| !repository.ends_with("app-a"));
    case.assert_found(TagNotThere, "a");
}

#[test]
fn an_image_that_no_outcome_knows_is_found() {
    let image = |name: &str, tag: &str| (format!("run-1-user0/app-{name}"), tag.to_owned());
    let mut case = Case::clean();
    case.evidence.tags.insert(image("z", COMMIT), digest("z"));
    case.assert_found_generally(UnknownImage);

    // Whatever it is called.
    let mut case = Case::clean();
    case.evidence.tags.insert(image("a", "key-1"), digest("z"));
    case.assert_found_generally(UnknownImage);
}

#[test]
fn the_image_of_a_build_that_was_cancelled_may_be_there() {
    let mut case = Case::clean();
    case.ask(Sort::Cancelled, "d");
    let cancelled = case.notification("d", "build.cancelled", json!({"reason": "cancelled"}));
    case.evidence.notifications.push(cancelled);
    case.evidence.letters.push(letter("d"));
    case.store("d", &digest("d"));
    case.assert_clean();
}

#[test]
fn a_build_that_was_cancelled_by_another_user_is_found() {
    let mut case = Case::clean();
    case.ask(Sort::Cancelled, "d");
    case.ask_of("run-1-user1", Sort::SameId, "d");
    let cancelled = case.notification("d", "build.cancelled", json!({"reason": "cancelled"}));
    let mut of_other = cancelled.clone();
    of_other.body["data"]["userID"] = "run-1-user1".into();
    of_other.webhook_id = of_other.own_id();
    case.evidence.notifications.extend([cancelled, of_other]);
    let letters = ["run-1-user0", "run-1-user1"].map(|user| (user.to_owned(), "d".to_owned()));
    case.evidence.letters.extend(letters);
    case.assert_found(CancelledUnasked, "d");
}

#[test]
fn what_was_cancelled_before_a_worker_came_is_not_built() {
    let mut case = Case::clean();
    case.ask(Sort::CancelledUnheard, "d");
    let told = case.ready("d");
    case.evidence.notifications.push(told);
    case.store("d", &digest("d"));
    case.assert_found(OtherEnding, "d");
}

#[test]
fn a_build_that_was_given_up_has_a_dead_letter_and_no_other_has() {
    let mut case = Case::clean();
    case.evidence.letters.clear();
    case.assert_found(NoLetter, "b");

    let mut case = Case::clean();
    case.evidence.letters.push(letter("a"));
    case.assert_found(OddLetter, "a");
}

#[test]
fn a_message_that_was_never_acked_is_found() {
    let mut case = Case::clean();
    case.evidence.waiting.push(("run-1.outcome".to_owned(), 1));
    case.assert_found_generally(Waiting);
}

#[test]
fn a_message_that_was_left_over_is_found() {
    let mut case = Case::clean();
    case.evidence.messages.push(("run-1.fail".to_owned(), "{}".to_owned()));
    case.assert_found_generally(MessageLeft);
}

#[test]
fn leavings_of_builds_are_found() {
    let mut case = Case::clean();
    case.evidence.left.workspaces.push("/tmp/worker1/work/job".to_owned());
    case.assert_found_generally(WorkspaceLeft);

    let mut case = Case::clean();
    case.evidence.left.processes.push(format!("/bin/sh -c echo \"a of {RUN}\"; sleep 1"));
    case.assert_found_generally(StepLeft);

    let mut case = Case::clean();
    case.evidence.left.containers.push("debian:bookworm-slim sleep".to_owned());
    case.assert_found_generally(ContainerLeft);
}

#[test]
fn what_is_wrong_with_workers_managers_and_faults_is_found() {
    let mut case = Case::clean();
    case.evidence.workers[0].odd_ends.push("process 2 of worker1 ended with 1".to_owned());
    case.assert_found_generally(OddEnd);

    for line in ["{\"message\":\"thread panicked\"}\n", "{\"message\":\"an actor died\"}\n"] {
        let mut case = Case::clean();
        case.evidence.workers[0].log += line;
        case.assert_found_generally(ActorDied);
    }

    let mut case = Case::clean();
    case.evidence.bad_notifications.push("the signature is wrong".to_owned());
    case.assert_found_generally(BadNotification);

    let mut case = Case::clean();
    case.evidence.failed_faults.push("SIGTERM: worker1 did not end".to_owned());
    case.assert_found_generally(FaultWentWrong);
}

// ---- repeats ---------------------------------------------------------------------------------------

fn notified_twice() -> Case {
    let mut case = Case::clean();
    case.notify_again(0, json!({}));
    case
}

#[test]
fn an_outcome_is_told_again_after_whoever_told_it_crashed_or_lost_the_broker_or_the_answer() {
    let mut case = notified_twice();
    case.happens(61.5, "worker1", What::Ended);
    case.happens(63.0, "worker1", What::LostBroker);
    case.assert_repeated(Cause::Crash);

    // It was lost before, and noticed meanwhile.
    let mut case = notified_twice();
    case.happens(60.5, "worker1", What::LostBroker);
    case.happens(65.0, "worker1", What::Ended);
    case.assert_repeated(Cause::Connection);

    let mut case = notified_twice();
    case.happens(65.0, "worker1", What::CannotNotify("a".to_owned()));
    case.assert_repeated(Cause::Answer);
}

#[test]
fn an_outcome_that_is_told_again_for_no_reason_is_found() {
    let mut case = notified_twice();
    case.happens(61.5, "worker2", What::Ended);
    case.happens(30.0, "worker1", What::LostBroker);
    case.happens(65.0, "worker1", What::CannotNotify("b".to_owned()));
    case.happens(90.0, "worker1", What::Ended);
    case.assert_found(NotifiedAgain, "a");
}

#[test]
fn an_outcome_that_is_made_again_and_told_is_found() {
    let mut case = Case::clean();
    let made_again = rfc3339(case.at(65.0));
    case.notify_again(0, json!({})).body["timestamp"] = made_again.into();
    case.happens(61.5, "worker1", What::Ended);
    case.assert_found(MadeAgain, "a");
}

#[test]
fn a_request_of_which_a_crash_made_two_is_told_once() {
    let mut case = Case::clean();
    // Another worker had the other one.
    let made_again = rfc3339(case.at(65.0));
    let again = case.notify_again(0, json!({"reused": true}));
    again.body["timestamp"] = made_again.into();
    again.to = "/worker2/container".to_owned();
    case.happens(40.0, "worker3", What::Ended);
    case.assert_found(MadeAgain, "a");
}

#[test]
fn what_was_published_twice_may_be_told_twice_and_no_more() {
    let mut case = Case::clean();
    case.ask(Sort::Twice, "d");
    case.store("d", &digest("d"));
    for seconds in [60.0, 62.0] {
        let mut told = case.ready("d");
        told.body["timestamp"] = rfc3339(case.at(seconds)).into();
        case.evidence.notifications.push(told);
    }
    case.assert_clean();
    let mut told = case.ready("d");
    told.body["timestamp"] = rfc3339(case.at(64.0)).into();
    case.evidence.notifications.push(told);
    case.assert_found(MadeAgain, "d");
    let kinds: Vec<Kind> = case.repeats().iter().map(|repeat| repeat.kind).collect();
    assert_eq!(kinds, [Kind::PublishedTwice, Kind::MadeAgain]);
}

#[test]
fn what_was_refused_before_it_was_accepted_is_no_repeat() {
    let mut case = Case::clean();
    let mut refused = case.evidence.notifications[0].clone();
    refused.answered = 500;
    case.evidence.notifications.insert(0, refused);
    case.assert_clean();
    assert_eq!(case.repeats(), []);
}
