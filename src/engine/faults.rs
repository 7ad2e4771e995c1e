//! What the engine's errors mean, as faults with a reason.

use std::fmt::Display;
use std::sync::LazyLock;
use std::time::Duration;

use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use regex::Regex;

use super::address::Address;

/// A step's name and an error are cut to this many bytes in a message.
pub(super) const SHOWN_BYTES: usize = 300;

/// A short question to the engine is answered within this time.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The engine takes no connection.
pub(super) fn engine_down(address: &Address, error: &dyn Display) -> Fault {
    fault(
        Reason::EngineDown,
        format!("The container engine at {address} is out of reach: {error}."),
    )
}

/// The engine took a connection and then did not answer in time.
fn engine_silent(what: &str) -> Fault {
    fault(Reason::Timeout, format!("The container engine did not answer in time while {what}."))
}

/// Waits for the engine's answer, but not for longer than `limit`.
pub(super) async fn in_time<T>(
    limit: Duration,
    what: &str,
    answer: impl Future<Output = T>,
) -> Result<T, Fault> {
    tokio::time::timeout(limit, answer).await.map_err(|_| engine_silent(what))
}

/// The engine answered with an error of its own, or the connection broke.
pub(super) fn engine_broke(what: &str, error: &dyn Display) -> Fault {
    let error = scrub(&error.to_string());
    fault(Reason::EngineFailed, format!("The container engine failed while {what}: {error}."))
}

/// What bollard could not do.
pub(super) fn of_client(address: &Address, what: &str, error: &bollard::errors::Error) -> Fault {
    use bollard::errors::Error;
    match error {
        Error::IOError { .. } => engine_down(address, error),
        Error::RequestTimeoutError => engine_silent(what),
        _ => engine_broke(what, error),
    }
}

/// `text` without what gives away the engine's machine: its data directory, its own addresses.
pub(super) fn scrub(text: &str) -> String {
    static SCRUB: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        [
            // Where the engine mounts a build's own files: what is below is the stranger's path.
            (
                pattern(
                    r"(?:/[\w.+-]+)*/(?:buildkit-mount\d+|overlay2/\w+/(?:diff|merged|work)|snapshots/\d+/fs)\b",
                ),
                "",
            ),
            (pattern(r"/var/lib/(?:docker|containerd)\b[^\s\x22':,]*"), "[engine]"),
            (pattern(r"/(?:var/)?run/(?:docker|containerd)\b[^\s\x22':,]*"), "[engine]"),
            // `lookup x on 10.0.0.2:53`, `read tcp 172.17.0.2:4321->1.2.3.4:443`
            (pattern(r" on \S+:53\b|(?:read|write) (?:tcp|udp) \S+->\S+: "), ""),
        ]
    });
    SCRUB
        .iter()
        .fold(text.to_owned(), |text, (regex, with)| regex.replace_all(&text, *with).into_owned())
}

pub(super) fn fault(reason: Reason, message: String) -> Fault {
    Fault::new(StageName::Builder, reason, message)
}

/// A fault without what is secret to this build: message and step hold what others wrote.
pub(super) fn redacted(fault: Fault, progress: &BuildLog) -> Fault {
    Fault {
        message: progress.redact(&fault.message),
        step: fault.step.as_deref().map(|step| progress.redact(step)),
        ..fault
    }
}

pub(super) fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is a constant, and a test uses it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_gives_nothing_away_of_the_engines_machine() {
        for (error, clean) in [
            ("open /var/lib/docker/tmp/buildkit-mount1177/no/file: x", "open /no/file: x"),
            ("stat /data/docker/overlay2/0af9/merged/etc/x: y", "stat /etc/x: y"),
            ("open /var/lib/docker/image/x: y", "open [engine]: y"),
            ("read tcp 172.17.0.2:45678->10.0.0.1:443: i/o timeout", "i/o timeout"),
            ("dial unix /run/containerd/c.sock: x", "dial unix [engine]: x"),
        ] {
            assert_eq!(scrub(error), clean);
        }
    }
}
