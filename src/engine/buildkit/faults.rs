//! What a build failed with, as a fault with a reason.

use std::fmt::Display;
use std::sync::LazyLock;

use image_builder_actors::model::build_log::cut;
use image_builder_actors::model::fault::{Fault, Reason};
use regex::Regex;
use tonic::Status;

use super::events::Follower;
use crate::engine::docker::faults::{SHOWN_BYTES, engine_broke, fault, pattern, scrub, shown_step};

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

/// A build that failed with `status`.
pub(super) fn of_build(status: &Status, follower: &Follower<'_>) -> Fault {
    eprintln!(
        "STATUS {:?} {:?} {:?}",
        status.code(),
        status.message(),
        String::from_utf8_lossy(status.details())
    );
    of_error(status.message(), follower.failed.as_ref())
}

fn of_error(error: &str, failed: Option<&FailedStep>) -> Fault {
    match failed {
        Some(step) => of_step(error, step).at_step(step.name.clone()),
        None => of_dockerfile(error),
    }
}

fn of_step(error: &str, step: &FailedStep) -> Fault {
    // The step's own error, where it has one, is nearer to the cause than the build's.
    let error = if step.error.is_empty() { error } else { &step.error };
    let shown = shown_step(&step.name);
    if let Some(code) = exit_code(error) {
        let why = match code {
            // 128 + SIGKILL: nobody else than the kernel kills a step.
            137 => " (killed: it most likely ran out of memory)",
            127 => " (command not found)",
            _ => "",
        };
        let message = format!("Step `{shown}` failed with exit code {code}{why}.");
        return fault(Reason::BuildFailed, message);
    }
    let cause = cause(error);
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
    // The context can be fetched once; somebody pruned the engine's build cache in between.
    let lost_context =
        step.name == "[internal] load remote build context" && cause.ends_with("context not found");
    if lost_context || is_engines_own(&cause) {
        return engine_broke(&format!("running step `{shown}`"), &cause);
    }
    fault(Reason::BuildFailed, format!("Step `{shown}` failed: {cause}."))
}

/// An error of no step: the Dockerfile cannot be used, or the engine itself failed.
fn of_dockerfile(error: &str) -> Fault {
    const DOCKERFILE: [&str; 7] = [
        "dockerfile parse error",
        "failed to create LLB definition",
        "failed to read dockerfile",
        "Dockerfile cannot be empty",
        "failed to parse stage name",
        "target stage",
        "should not be blank",
    ];
    let cause = cause(error);
    if is_engines_own(&cause) {
        return engine_broke("building", &cause);
    }
    // The Dockerfile stays what it is: to try again is pointless.
    if DOCKERFILE.iter().any(|sign| error.contains(sign)) {
        return fault(Reason::InvalidPlan, format!("The Dockerfile cannot be built: {cause}."));
    }
    if is_disk_full(&cause) {
        return disk_full();
    }
    engine_broke("building", &cause)
}

fn why_not_pulled(cause: &str) -> String {
    let has = |signs: &[&str]| signs.iter().any(|sign| cause.contains(sign));
    if has(&["toomanyrequests", "429 Too Many"]) {
        return "whose registry asks for patience (too many requests)".to_owned();
    }
    if has(&[
        "access denied",
        "insufficient_scope",
        "authorization",
        "nauthorized",
        "403 Forbidden",
    ]) {
        return "which does not exist or may not be pulled by this service".to_owned();
    }
    if has(&["failed to do request", "dial tcp", "i/o timeout", "TLS handshake timeout", "x509"]) {
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
fn exit_code(error: &str) -> Option<u32> {
    static CODE: LazyLock<Regex> = LazyLock::new(|| pattern(r"exit code: (\d+)\s*$"));
    CODE.captures(error)?.get(1)?.as_str().parse().ok()
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

/// Whether the engine's own machinery failed: it restarts, or lost the client's session.
fn is_engines_own(cause: &str) -> bool {
    [
        "no active session",
        "context canceled",
        "transport is closing",
        "error reading from server",
        "code = Unavailable",
        "graceful shutdown",
    ]
    .iter()
    .any(|sign| cause.contains(sign))
}

fn disk_full() -> Fault {
    fault(Reason::DiskLow, "The container engine has no space left on its disk.".to_owned())
}

/// The part of an engine's error that is of use to a person: without the layers it came through.
fn cause(error: &str) -> String {
    static LAYERS: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"^(?:failed to solve(?: with frontend [\w.]+)?|failed to create LLB definition|failed to (?:load|compute) cache key|rpc error: code = \w+ desc =|(?:executor failed running|process) (?s:.*)(?:\]|did not complete successfully)):?\s+",
        )
    });
    let scrubbed = scrub(error);
    let mut text = scrubbed.trim();
    while let Some(layer) = LAYERS.find(text) {
        text = &text[layer.end()..];
    }
    let text =
        text.strip_suffix(": not found").filter(|t| t.ends_with("not found")).unwrap_or(text);
    cut(text.trim_end_matches('.').to_owned(), SHOWN_BYTES)
}

#[cfg(test)]
mod tests {
    use image_builder_actors::model::fault::Kind;

    use super::*;

    fn step(name: &str, error: &str) -> Fault {
        of_error(error, Some(&FailedStep { name: name.to_owned(), error: error.to_owned() }))
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
                None,
                "dockerfile parse error line 2: unknown instruction: RUNN",
                Reason::InvalidPlan,
                "RUNN",
            ),
            (
                None,
                "failed to solve: dockerfile parse error on line 2: x",
                Reason::InvalidPlan,
                "line 2",
            ),
            (None, "target stage zz could not be found", Reason::InvalidPlan, "zz"),
            (None, "the Dockerfile cannot be empty", Reason::InvalidPlan, "empty"),
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
                Reason::BuildFailed,
                "patience",
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
            (None, "no space left on device", Reason::DiskLow, "disk"),
            (None, "something new", Reason::EngineFailed, "something new"),
        ];
        for (name, error, reason, message) in table {
            for prefix in ["", llb].iter().filter(|p| p.is_empty() || name.is_some()) {
                let error = format!("{prefix}{error}");
                let fault = match name {
                    Some(name) => step(name, &error),
                    None => of_error(&error, None),
                };
                assert_eq!(fault.reason, *reason, "{error}");
                assert!(fault.message.contains(message), "{error}: {}", fault.message);
            }
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
