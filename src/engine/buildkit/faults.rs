//! What a build failed with, as a fault with a reason.

use std::error::Error;
use std::fmt::Display;
use std::sync::LazyLock;

use bollard_buildkit_proto::google;
use image_builder_actors::model::build_log::cut;
use image_builder_actors::model::fault::{Fault, Reason};
use prost::Message;
use regex::Regex;
use tonic::{Code, Status};

use crate::engine::docker::disk::size::Size;
use crate::engine::docker::push::faults::of_words;
use crate::engine::faults::{SHOWN_BYTES, engine_broke, fault, pattern, scrub};
use crate::exposure::shown_step;

/// A step that failed, as the engine reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FailedStep {
    pub(super) name: String,
    pub(super) error: String,
}

/// The engine failed.
pub(super) fn broke(error: &dyn Display) -> Fault {
    engine_broke("building", error)
}

/// A build that failed with `status`. `failed` tells of the step that failed, by its digest where the engine
/// names one; `reads_dockerfile` = the engine has the Dockerfile, and has begun none of its steps.
pub(super) fn of_build(
    status: &Status,
    failed: impl FnOnce(Option<&str>) -> Option<FailedStep>,
    reads_dockerfile: bool,
) -> Fault {
    // What the engine itself answers has no source: that is a connection that broke.
    if status.source().is_some() || matches!(status.code(), Code::Unavailable | Code::Cancelled) {
        return broke(&status.message());
    }
    let failed = failed(failed_vertex(status.details()).as_deref());
    of_error(status.message(), failed.as_ref(), reads_dockerfile)
}

/// Whether the engine lost its place in a step that several builds share, when one of them was stopped.
pub(super) fn is_lost(
    status: &Status,
    failed: impl FnOnce(Option<&str>) -> Option<FailedStep>,
) -> bool {
    static LOST: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"^(?:failed to get state for index \d+ on |(?:failed to get edge: )?inconsistent graph state)",
        )
    });
    let step = failed(failed_vertex(status.details()).as_deref()).map(|step| step.error);
    let error = step.filter(|error| !error.is_empty());
    LOST.is_match(&cause(error.as_deref().unwrap_or(status.message())))
}

/// Whether a command failed of which the engine told another build: it does what several share once, and tells
/// one of them.
pub(super) fn is_unheard(
    status: &Status,
    failed: impl FnOnce(Option<&str>) -> Option<FailedStep>,
) -> bool {
    shared_command(status.message()).is_some()
        && failed(failed_vertex(status.details()).as_deref()).is_none()
}

/// The digest of the step that failed, of engines that say it with the error.
pub(super) fn failed_vertex(details: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Vertex {
        digest: String,
    }
    let status = google::rpc::Status::decode(details).ok()?;
    let of_vertex = |detail: &&google::protobuf::Any| detail.type_url.contains("errdefs.Vertex");
    let vertex = status.details.iter().find(of_vertex)?;
    Some(serde_json::from_slice::<Vertex>(&vertex.value).ok()?.digest)
}

/// `error` is what the engine said last, `failed` the step that failed; `reads_dockerfile` = the engine has
/// the Dockerfile, and has begun none of its steps.
fn of_error(error: &str, failed: Option<&FailedStep>, reads_dockerfile: bool) -> Fault {
    // Of a command that failed the engine says how it ended; what it wrote is not in it.
    if let Some(denied) = of_policy(error).filter(|_| exit_code(error).is_none()) {
        return denied;
    }
    if let Some(step) = failed {
        return of_step(error, step).at_step(step.name.clone());
    }
    // A step that two builds share is shown to one of them.
    if let Some((command, code)) = shared_command(error) {
        return failed_command(&shown_step(command), code);
    }
    let cause = cause(error);
    if is_engines_own(error, &cause) {
        return broke(&cause);
    }
    if is_disk_full(&cause) {
        return disk_full();
    }
    if reads_dockerfile {
        // The Dockerfile stays what it is: to try again is pointless.
        return fault(Reason::InvalidPlan, format!("The Dockerfile cannot be built: {cause}."));
    }
    broke(&cause)
}

/// A source that the policy keeps from the build.
fn of_policy(error: &str) -> Option<Fault> {
    static DENIED: LazyLock<Regex> =
        LazyLock::new(|| pattern(r#"source "([^"]*)" denied by policy[^"]*$"#));
    let source = DENIED.captures(error)?.get(1)?.as_str();
    let image = source.strip_prefix("docker-image://");
    let shown = cut(image.unwrap_or(source).to_owned(), SHOWN_BYTES);
    let why = match image {
        Some(_) => "it is not public, or somebody else's",
        None => "its host is none of those that the operator lists (BUILDER_ALLOW_HOSTS)",
    };
    Some(fault(
        Reason::ForbiddenSource,
        format!("The Dockerfile takes `{shown}`, which a build must not reach here: {why}."),
    ))
}

/// Whether an error says no more than that others had failed.
pub(super) fn is_cancelled(error: &str) -> bool {
    cause(error) == "context canceled"
}

fn of_step(error: &str, step: &FailedStep) -> Fault {
    // The step's own error, where it has one, is nearer to the cause than the build's.
    let error = if step.error.is_empty() { error } else { &step.error };
    let shown = shown_step(&step.name);
    if is_out_of_memory(error) {
        return fault(
            Reason::OutOfMemory,
            format!(
                "Step `{shown}` used up the memory that a step may have: let it need less, for example \
                 with fewer processes at once."
            ),
        );
    }
    if let Some(code) = exit_code(error) {
        return failed_command(&shown, code);
    }
    let cause = cause(error);
    if step.name.starts_with("exporting to ") {
        if let Some((image, why)) = failed_push(&cause) {
            return of_words(&format!("cannot push to `{image}`"), why);
        }
        return if is_disk_full(&cause) { disk_full() } else { broke(&cause) };
    }
    if let Some(fault) = base_image(&step.name).and_then(|image| of_its_registry(image, &cause)) {
        return fault;
    }
    if let Some(image) = step.name.strip_prefix("resolve image config for ") {
        let why = why_not_pulled(&cause);
        return fault(
            Reason::BuildFailed,
            format!(
                "The Dockerfile's `# syntax=` line asks for the front end `{}`, {why}. Without that \
                 line the engine's own front end is used.",
                image_name(image)
            ),
        );
    }
    if let Some(image) = step.name.strip_prefix("[internal] load metadata for ") {
        let why = why_not_pulled(&cause);
        return fault(Reason::BuildFailed, format!("Base image `{}`, {why}.", image_name(image)));
    }
    if let Some(secret) = missing_secret(&cause) {
        return fault(
            Reason::InvalidPlan,
            format!("Step `{shown}` needs the secret `{secret}`, which the request does not have."),
        );
    }
    if is_disk_full(&cause) {
        return disk_full();
    }
    if step.name.starts_with("[internal] ") || is_engines_own(error, &cause) {
        return engine_broke(&format!("running step `{shown}`"), &cause);
    }
    fault(Reason::BuildFailed, format!("Step `{shown}` failed: {cause}."))
}

/// The name and the cause of a push that failed.
fn failed_push(cause: &str) -> Option<(&str, &str)> {
    static PUSH: LazyLock<Regex> = LazyLock::new(|| pattern(r"^failed to push (\S+): ((?s:.*))$"));
    let found = PUSH.captures(cause)?;
    Some((found.get(1)?.as_str(), found.get(2)?.as_str()))
}

/// The image that a step gets from its registry: what is known of it, or its layers.
fn base_image(step: &str) -> Option<&str> {
    static LAYERS: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\[[^\]]*\] FROM (\S+)"));
    let known = ["[internal] load metadata for ", "resolve image config for "];
    known
        .iter()
        .find_map(|start| step.strip_prefix(start))
        .or_else(|| Some(LAYERS.captures(step)?.get(1)?.as_str()))
}

/// The fault of a base image's registry that does not answer, or answers that it cannot: nothing of the user's
/// build is wrong. Read of where the engine says how a request ended: behind the address, at the end of the error.
/// Nobody else waits for it, since a stranger names it.
fn of_its_registry(image: &str, cause: &str) -> Option<Fault> {
    static UNANSWERED: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r#"failed to do request: \w+ "[^"]*": (?:.*: )?(connection refused|connection reset by peer|broken pipe|no route to host|network is unreachable|i/o timeout|(?:unexpected )?EOF|net/http: TLS handshake timeout|context deadline exceeded(?: \(Client\.Timeout exceeded while awaiting headers\))?)$"#,
        )
    });
    static STATUS: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"(?:unexpected status\b|failed with status code\b).*: ((?:408|429|5\d\d) [A-Z][A-Za-z ]*)$",
        )
    });
    let said = UNANSWERED.captures(cause).map(|found| ("does not answer", found));
    let said = said.or_else(|| Some(("answers that it cannot", STATUS.captures(cause)?)));
    let (what, found) = said?;
    Some(fault(
        Reason::RegistryFailed,
        format!(
            "Base image `{}` cannot be pulled, since its registry {what}: {}.",
            image_name(image),
            &found[1]
        ),
    ))
}

fn why_not_pulled(cause: &str) -> String {
    let has = |signs: &[&str]| signs.iter().any(|sign| cause.contains(sign));
    if has(&[
        "access denied",
        "insufficient_scope",
        "authorization",
        "nauthorized",
        "403 Forbidden",
    ]) {
        return "which does not exist or may not be pulled by this service".to_owned();
    }
    if has(&["failed to do request", "dial tcp", "x509"]) {
        return format!("whose registry cannot be reached: {cause}");
    }
    if has(&["not found", "manifest unknown"]) {
        return "which was not found in its registry".to_owned();
    }
    format!("which cannot be pulled: {cause}")
}

/// `docker-image://docker.io/library/x:1` is the engine's longer name for an image.
fn image_name(name: &str) -> &str {
    name.trim_start_matches("docker-image://")
}

/// The exit code at the end of an error; before it stands the stranger's own command.
pub(super) fn exit_code(error: &str) -> Option<u32> {
    static CODE: LazyLock<Regex> = LazyLock::new(|| pattern(r"exit code: (\d+)\s*$"));
    CODE.captures(error)?.get(1)?.as_str().parse().ok()
}

fn failed_command(command: &str, code: u32) -> Fault {
    let why = match code {
        // 128 + SIGKILL: nobody else than the kernel kills a step.
        137 => " (killed: it most likely ran out of memory)",
        127 => " (command not found)",
        _ => "",
    };
    let message = format!("Step `{command}` failed with exit code {code}{why}.");
    fault(Reason::BuildFailed, message)
}

/// Whether the engine says that the kernel killed a process of the step for want of memory. Newer ones look for that
/// where the machine has cgroup v2, and then tell no exit code; what a stranger wrote stands in the quotes.
fn is_out_of_memory(error: &str) -> bool {
    static KILLED: LazyLock<Regex> = LazyLock::new(|| {
        pattern(r#"^process "(?s:.*)" did not complete successfully: cannot allocate memory\s*$"#)
    });
    KILLED.is_match(error)
}

/// A step failed when memory ran out: a fault that says so, of one that does not.
pub(super) fn out_of_memory(fault: Fault, limit: Option<Size>) -> Fault {
    let limit = limit.map(|limit| format!(" ({limit})")).unwrap_or_default();
    let step = fault.step.as_deref().map(shown_step).unwrap_or_default();
    let message = format!(
        "Step `{step}` failed because the memory was used up that this user's builds may have{limit}: \
         let it need less, for example with fewer processes at once."
    );
    Fault { reason: Reason::OutOfMemory, message, ..fault }
}

/// The command that an error of no step is about.
fn shared_command(error: &str) -> Option<(&str, u32)> {
    static COMMAND: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r#"^(?s:executor failed running \[(.*)\]|process "(.*)" did not complete successfully): exit code: \d+\s*$"#,
        )
    });
    let found = COMMAND.captures(error)?;
    Some((found.get(1).or(found.get(2))?.as_str(), exit_code(error)?))
}

fn missing_secret(cause: &str) -> Option<&str> {
    static SECRET: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"^(?:.*: )?secret ([^\s:]+):? not found"));
    Some(SECRET.captures(cause)?.get(1)?.as_str())
}

/// Whether the engine's own disk is full. System calls end an error; what a registry or another
/// server of the stranger's choice says has an address or the word `server` before it.
fn is_disk_full(cause: &str) -> bool {
    cause.to_ascii_lowercase().ends_with("no space left on device")
        && !cause.contains("://")
        && !cause.contains("erver message")
}

/// Whether the engine's own machinery failed: it restarts, or lost the client's session. What a stranger
/// wrote stands in quotes, or behind words of the engine's.
fn is_engines_own(error: &str, cause: &str) -> bool {
    cause == "context canceled"
        || error.starts_with("rpc error: code = Unavailable")
        || ["no active session", "transport is closing", "error reading from server", "graceful"]
            .iter()
            .any(|start| cause.starts_with(start))
}

fn disk_full() -> Fault {
    fault(Reason::DiskLow, "The container engine has no space left on its disk.".to_owned())
}

/// The part of an engine's error that is of use to a person: without the layers it came through.
fn cause(error: &str) -> String {
    static LAYERS: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"^(?:failed to solve(?: with frontend [\w.]+)?|failed to create LLB definition|failed to (?:load|compute) cache key|failed to calculate checksum of ref \S+:|rpc error: code = \w+ desc =|(?:executor failed running|process) (?s:.*)(?:\]|did not complete successfully)):?\s+",
        )
    });
    let scrubbed = scrub(error);
    let mut text = scrubbed.trim();
    while let Some(layer) = LAYERS.find(text) {
        text = &text[layer.end()..];
    }
    let text =
        text.strip_suffix(": not found").filter(|t| t.ends_with("not found")).unwrap_or(text);
    static QUOTED: LazyLock<Regex> = LazyLock::new(|| pattern(r#"^("[^"]*"): not found$"#));
    let text = &QUOTED.replace(text, "$1 not found");
    cut(text.trim_end_matches('.').to_owned(), SHOWN_BYTES)
}

#[cfg(test)]
mod tests {
    use image_builder_actors::model::fault::Kind;

    use super::*;

    fn step(name: &str, error: &str) -> Fault {
        of_error(error, Some(&FailedStep { name: name.to_owned(), error: error.to_owned() }), false)
    }

    #[test]
    fn a_step_that_the_engine_lost_is_told_from_one_that_failed() {
        let lost = |error: &str, step: Option<&str>| {
            let step = step.map(|error| FailedStep {
                name: "[3/3] RUN x".to_owned(),
                error: error.to_owned(),
            });
            is_lost(&Status::unknown(error), |_| step)
        };
        let state = "failed to get state for index 0 on [3/3] RUN x";
        assert!(lost(&format!("failed to solve: failed to compute cache key: {state}"), None));
        assert!(lost(&format!("failed to solve: {state}"), Some("")));
        assert!(lost("failed to solve", Some(state)));
        assert!(lost("failed to solve: failed to get edge: inconsistent graph state", None));
        let failed = format!("process \"{state}\" did not complete successfully: exit code: 1");
        assert!(!lost(&failed, None));
        assert!(!lost(state, Some(&failed)));
        assert!(!lost(&format!("\"/{state}\" not found: not found"), None));
    }

    #[test]
    fn a_failed_command_is_reported_with_its_exit_code_on_old_and_new_engines() {
        for error in [
            "executor failed running [/bin/sh -c npm ci]: exit code: 1",
            "process \"/bin/sh -c npm ci\" did not complete successfully: exit code: 1",
        ] {
            let fault = step("[build 2/7] RUN npm ci", error);
            assert_eq!(fault.reason, Reason::BuildFailed);
            assert_eq!(fault.message, "Step `RUN npm ci` failed with exit code 1.");
            assert_eq!(fault.step.as_deref(), Some("[build 2/7] RUN npm ci"));
        }
        let killed = step("[2/2] RUN x", "executor failed running [/bin/sh -c x]: exit code: 137");
        assert!(killed.message.contains("memory"), "{}", killed.message);
    }

    #[test]
    fn errors_are_sorted_by_what_can_be_done_about_them() {
        let metadata = "[internal] load metadata for docker.io/library/x:1";
        let llb = "failed to solve with frontend dockerfile.v0: failed to create LLB definition: ";
        let table: &[(Option<&str>, &str, Reason, &str)] = &[
            (
                Some(metadata),
                "docker.io/library/x:1: not found",
                Reason::BuildFailed,
                "`docker.io/library/x:1`, which was not found",
            ),
            (
                Some(metadata),
                "pull access denied, repository does not exist or may require authorization",
                Reason::BuildFailed,
                "may not be pulled",
            ),
            (
                Some(metadata),
                "failed to do request: Head \"https://x/\": dial tcp: lookup x on 10.1.1.1:53: no such host",
                Reason::BuildFailed,
                "lookup x: no such host",
            ),
            (
                Some(metadata),
                "unexpected status code [manifests 1]: 429 Too Many Requests",
                Reason::RegistryFailed,
                "its registry answers that it cannot: 429 Too Many Requests.",
            ),
            (
                Some("resolve image config for docker.io/docker/dockerfile:1"),
                "failed to do request: dial tcp",
                Reason::BuildFailed,
                "# syntax=",
            ),
            (
                Some("[2/2] COPY nothere /x"),
                "failed to compute cache key: \"/nothere\" not found: not found",
                Reason::BuildFailed,
                "failed: \"/nothere\" not found.",
            ),
            (
                Some("exporting to image"),
                "failed to push r:1/a/b: failed to do request: Head \"http://r:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
                Reason::RegistryDown,
                "cannot push to `r:1/a/b`",
            ),
            (
                Some("exporting to image"),
                "failed to push r:1/a/b: unexpected status from POST request to http://r:1/v2/a/b/blobs/uploads/: 401 Unauthorized",
                Reason::RegistryRefused,
                "401",
            ),
            (Some("[2/2] RUN x"), "secret npmrc not found", Reason::InvalidPlan, "secret `npmrc`"),
            (Some("[2/2] RUN x"), "secret npmrc: not found", Reason::InvalidPlan, "secret `npmrc`"),
            (
                Some("[2/2] COPY a b"),
                "write /var/lib/docker/overlay2/0ab/diff/b: no space left on device",
                Reason::DiskLow,
                "disk",
            ),
            (
                Some("[2/2] RUN x"),
                "no active session for xyz: context deadline exceeded",
                Reason::EngineFailed,
                "session",
            ),
            (
                Some("[internal] load remote build context"),
                "Get \"http://build-context-w732\": context not found",
                Reason::EngineFailed,
                "context not found",
            ),
            (
                Some("[internal] load build context"),
                "transferring context: broken pipe",
                Reason::EngineFailed,
                "broken pipe",
            ),
            (
                Some("exporting to image"),
                "failed to commit: already exists",
                Reason::EngineFailed,
                "already exists",
            ),
            (
                Some("[2/2] COPY nothere /x"),
                "failed to compute cache key: failed to calculate checksum of ref 1-2::3x: \"/nothere\": not found",
                Reason::BuildFailed,
                "failed: \"/nothere\" not found.",
            ),
            (None, "no space left on device", Reason::DiskLow, "disk"),
            (None, "something new", Reason::EngineFailed, "something new"),
        ];
        for (name, error, reason, message) in table {
            for prefix in ["", llb].iter().filter(|p| p.is_empty() || name.is_some()) {
                let error = format!("{prefix}{error}");
                let fault = match name {
                    Some(name) => step(name, &error),
                    None => of_error(&error, None, false),
                };
                assert_eq!(fault.reason, *reason, "{error}");
                assert!(fault.message.contains(message), "{error}: {}", fault.message);
            }
        }
    }

    #[test]
    fn a_base_image_s_registry_that_does_not_answer_is_no_fault_of_the_build() {
        let head = "failed to do request: Head \"https://r.example/v2/a/manifests/1\": ";
        let token = "failed to authorize: rpc error: code = Unknown desc = failed to fetch anonymous token: ";
        for (error, told) in [
            (format!("{head}dial tcp 192.0.2.1:443: connect: connection refused"), "refused"),
            (format!("{head}dial tcp 192.0.2.1:443: i/o timeout"), "i/o timeout"),
            (format!("{head}net/http: TLS handshake timeout"), "handshake"),
            (format!("{head}read tcp 10.0.0.1:5->192.0.2.1:443: connection reset by peer"), "reset"),
            (format!("{head}EOF"), "EOF"),
            (format!("{head}context deadline exceeded"), "deadline"),
            (
                "unexpected status from HEAD request to https://r.example/v2/: 503 Service Unavailable"
                    .to_owned(),
                "503 Service Unavailable",
            ),
            ("unexpected status code [manifests 1]: 500 Internal Server Error".to_owned(), "500"),
            (format!("{token}unexpected status: 502 Bad Gateway"), "502"),
        ] {
            for name in ["[internal] load metadata for r.example/a:1", "[a 1/2] FROM r.example/a:1"]
            {
                let fault = step(name, &error);
                assert_eq!(fault.reason, Reason::RegistryFailed, "{error}: {fault}");
                assert!(fault.message.contains(told), "{fault}");
                assert!(fault.message.starts_with("Base image `r.example/a:1` cannot"), "{fault}");
            }
        }
        for (name, error) in [
            ("[internal] load metadata for r.example/a:1", "r.example/a:1: not found"),
            (
                "[internal] load metadata for r.example/a:1",
                "failed to do request: Head \"https://r.example/connection refused\": x509: unknown",
            ),
            (
                "[2/2] RUN : unexpected status: 503 Service Unavailable",
                "process \"x\" did not complete successfully: exit code: 1",
            ),
            ("[2/2] ADD https://r.example/x /", "invalid response status 503"),
        ] {
            assert_eq!(step(name, error).kind(), Kind::Build, "{error}");
        }
    }

    #[test]
    fn what_fails_while_the_dockerfile_is_read_is_its_own_whatever_the_words() {
        for (error, reason, message) in [
            ("failed to solve: dockerfile parse error on line 2: x", Reason::InvalidPlan, "line 2"),
            ("target stage zz could not be found", Reason::InvalidPlan, "zz"),
            ("something new", Reason::InvalidPlan, "something new"),
            ("target stage \"context canceled\" could not be found", Reason::InvalidPlan, "stage"),
            ("failed to solve: context canceled", Reason::EngineFailed, "context canceled"),
            ("write /x: no space left on device", Reason::DiskLow, "disk"),
        ] {
            let fault = of_error(error, None, true);
            assert_eq!(fault.reason, reason, "{error}");
            assert!(fault.message.contains(message), "{}", fault.message);
        }
    }

    #[test]
    fn memory_that_ran_out_is_told_by_what_the_engine_says_and_not_by_a_strangers_words() {
        let error =
            "process \"/bin/sh -c make\" did not complete successfully: cannot allocate memory";
        let fault = step("[2/2] RUN make", error);
        assert_eq!(fault.reason, Reason::OutOfMemory);
        assert!(fault.message.starts_with("Step `RUN make` used up the memory"), "{fault}");
        for error in [
            "process \"/bin/sh -c cannot allocate memory\" did not complete successfully: exit code: 1",
            "failed to copy files: cannot allocate memory",
            "\"/process did not complete successfully: cannot allocate memory\": not found",
        ] {
            assert_ne!(step("[2/2] COPY a b", error).reason, Reason::OutOfMemory, "{error}");
        }
    }

    #[test]
    fn a_command_that_is_shown_to_another_build_is_told_all_the_same() {
        for error in [
            "executor failed running [/bin/sh -c exit 7]: exit code: 7",
            "process \"/bin/sh -c exit 7\" did not complete successfully: exit code: 7",
        ] {
            let fault = of_error(error, None, false);
            assert_eq!(fault.reason, Reason::BuildFailed);
            assert_eq!(fault.message, "Step `/bin/sh -c exit 7` failed with exit code 7.");
        }
    }

    #[test]
    fn words_that_a_stranger_wrote_make_no_fault_of_the_service() {
        for (name, error) in [
            ("[2/2] COPY a b", "\"/context canceled\" not found: not found"),
            ("[2/2] COPY a b", "\"/no active session\": not found"),
            ("[2/2] COPY a b", "failed to walk /x/code = Unavailable: no such file or directory"),
            (
                "[2/2] RUN exporting to image",
                "process \"x\" did not complete successfully: exit code: 1",
            ),
            ("[internal 2/2] COPY a b", "\"/a\": not found"),
        ] {
            assert_eq!(step(name, error).kind(), Kind::Build, "{name} {error}");
        }
    }

    #[test]
    fn a_stranger_cannot_write_a_fault_that_pauses_the_worker() {
        for (name, error) in [
            (
                "[2/2] RUN echo no space left on device",
                "executor failed running [/bin/sh -c echo no space left on device]: exit code: 1",
            ),
            ("[2/2] COPY x y", "\"/no space left on device\" not found: not found"),
            ("FROM evil.example/x", "server message: no space left on device"),
            ("[2/2] ADD x", "Get \"http://x\": no space left on device"),
            ("[internal] load metadata for x", "no space left on device"),
        ] {
            assert_eq!(step(name, error).kind(), Kind::Build, "{error}");
        }
    }
}
