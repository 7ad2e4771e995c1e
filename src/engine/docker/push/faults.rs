//! What a failure of a push means: the engine's own, or one that it hands on from the registry.

use std::io;
use std::sync::LazyLock;

use bollard::errors::Error as EngineError;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::secret::Redactor;
use regex::Regex;

use crate::net::http::excerpt;

/// A pusher's fault.
pub(super) fn fault(reason: Reason, message: impl Into<String>) -> Fault {
    Fault::new(StageName::Pusher, reason, message)
}

/// What an error of the engine means, its own or one that it hands on from the registry.
pub(super) fn of_push(what: &str, error: EngineError, redactor: &Redactor) -> Fault {
    let (reason, text) = match &error {
        // In the stream of a push: mostly what the registry said to the engine.
        EngineError::DockerStreamError { error } => {
            (reason_of_push_error(error).unwrap_or(Reason::RegistryFailed), error.clone())
        }
        EngineError::DockerResponseServerError { message, .. } => {
            (reason_of_push_error(message).unwrap_or(Reason::EngineFailed), message.clone())
        }
        EngineError::IOError { err } if is_out_of_reach(err.kind()) => {
            (Reason::EngineDown, err.to_string())
        }
        EngineError::RequestTimeoutError => {
            (Reason::Timeout, "the engine did not answer in time".to_owned())
        }
        // A connection that broke in the middle, or an answer that makes no sense. Should the engine
        // be gone for good, the next try cannot even connect to it.
        _ => (Reason::EngineFailed, error.to_string()),
    };
    fault(reason, format!("{what}: {}", presentable(&text, redactor)))
}

fn is_out_of_reach(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    matches!(kind, ConnectionRefused | NotFound | PermissionDenied)
}

/// An engine's error for a person: one line, without credentials and without the long state that
/// upload addresses carry behind their `?`.
fn presentable(text: &str, redactor: &Redactor) -> String {
    static QUERY: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"\?[^\s"']+"#).expect("valid"));
    excerpt(&QUERY.replace_all(&redactor.redact(text), "?…"))
}

/// What the engine says of a push comes as text alone: its own words, the registry's error codes, or
/// a status line.
fn reason_of_push_error(text: &str) -> Option<Reason> {
    let text = text.to_ascii_lowercase();
    for (reason, phrases) in PHRASES {
        if phrases.iter().any(|phrase| text.contains(phrase)) {
            return Some(*reason);
        }
    }
    static STATUS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?:http|status|code|:):? ([45]\d\d)\b").expect("valid"));
    let status = STATUS.captures(&text)?[1].parse().ok()?;
    Some(reason_of_status(status))
}

fn reason_of_status(status: u16) -> Reason {
    match status {
        408 => Reason::Timeout,
        429 => Reason::RateLimited,
        400..500 => Reason::RegistryRefused,
        _ => Reason::RegistryFailed,
    }
}

/// Phrases and the reason that each means, the surest first. The engine's own are from its sources
/// (20.10 to 28), the registry's are the error codes of the distribution specification as the engine
/// prints them.
const PHRASES: &[(Reason, &[&str])] = &[
    // The engine also says "no such image" of a name that it does not accept.
    (Reason::RegistryRefused, &["invalid reference format"]),
    (Reason::DiskLow, &["no space left on device"]),
    (
        Reason::EngineFailed,
        &["no such image", "does not exist locally", "tag does not exist", "image not known"],
    ),
    (
        Reason::RegistryDown,
        &[
            "connection refused",
            "no such host",
            "no route to host",
            "host is unreachable",
            "network is unreachable",
            "failure in name resolution",
            "server misbehaving",
            "dial tcp",
        ],
    ),
    (
        Reason::RegistryRefused,
        &[
            "x509:",
            "tls: ",
            "server gave http response to https client",
            "unauthorized",
            "denied",
            "no basic auth credentials",
            "authentication required",
            "insufficient_scope",
            "name invalid",
            "name unknown",
            "manifest invalid",
            "tag invalid",
            "unsupported: ",
            "invalid repository name",
        ],
    ),
    (Reason::RateLimited, &["toomanyrequests", "too many requests", "rate limit"]),
    (
        Reason::Timeout,
        &["timeout", "deadline exceeded", "timed out", "request canceled while waiting"],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use image_builder_actors::model::secret::Secret;

    #[test]
    fn the_reason_is_read_from_what_the_engine_says_of_a_push() {
        use Reason::{
            DiskLow, EngineFailed, RateLimited, RegistryDown, RegistryFailed, RegistryRefused,
            Timeout,
        };
        for (text, reason) in [
            ("no basic auth credentials", RegistryRefused),
            ("unauthorized: authentication required", RegistryRefused),
            ("denied: requested access to the resource is denied", RegistryRefused),
            ("error parsing HTTP 403 response body: unexpected end of JSON input", RegistryRefused),
            ("error parsing HTTP 400 response body: no error details found", RegistryRefused),
            ("error parsing HTTP 429 response body: no error details found", RateLimited),
            ("error parsing HTTP 408 response body: no error details found", Timeout),
            ("unexpected status from PUT request to https://x/v2/: 403 Forbidden", RegistryRefused),
            (
                "unexpected status from PUT request to https://x/v2/: 502 Bad Gateway",
                RegistryFailed,
            ),
            ("name invalid: invalid repository name", RegistryRefused),
            ("manifest invalid: manifest invalid", RegistryRefused),
            ("manifest blob unknown: blob unknown to registry", RegistryFailed),
            (
                "Get \"https://x/v2/\": x509: certificate signed by unknown authority",
                RegistryRefused,
            ),
            ("http: server gave HTTP response to HTTPS client", RegistryRefused),
            ("toomanyrequests: slow down", RateLimited),
            ("received unexpected HTTP status: 500 Internal Server Error", RegistryFailed),
            ("received unexpected HTTP status: 503 Service Unavailable", RegistryFailed),
            ("Put \"http://x/v2/a/blobs/uploads/1?_state=abc\": EOF", RegistryFailed),
            ("write tcp 127.0.0.1:1->127.0.0.1:2: write: broken pipe", RegistryFailed),
            ("read tcp 10.0.0.1:1->10.0.0.2:443: read: connection reset by peer", RegistryFailed),
            ("dial tcp 127.0.0.1:5999: connect: connection refused", RegistryDown),
            ("dial tcp: lookup nosuch.invalid on 10.0.0.53:53: no such host", RegistryDown),
            ("dial tcp 10.9.9.9:443: i/o timeout", RegistryDown),
            ("net/http: TLS handshake timeout", Timeout),
            (
                "net/http: request canceled (Client.Timeout exceeded while awaiting headers)",
                Timeout,
            ),
            ("context deadline exceeded", Timeout),
            ("write /var/lib/docker/tmp/x: no space left on device", DiskLow),
            ("An image does not exist locally with the tag: x", EngineFailed),
            ("No such image: sha256:0", EngineFailed),
            ("no such image: x/A: invalid reference format: must be lowercase", RegistryRefused),
        ] {
            let error = EngineError::DockerStreamError { error: text.to_owned() };
            assert_eq!(of_push("", error, &Redactor::default()).reason, reason, "{text}");
        }
    }

    #[test]
    fn an_engine_that_cannot_be_reached_is_down() {
        use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
        for kind in [ConnectionRefused, NotFound, PermissionDenied] {
            let error = EngineError::IOError { err: io::Error::from(kind) };
            let fault = of_push("cannot push", error, &Redactor::default());
            assert_eq!(fault.reason, Reason::EngineDown);
        }
    }

    #[test]
    fn an_engines_error_is_shown_without_credentials_and_upload_state() {
        let error = EngineError::DockerStreamError {
            error: "Put \"http://x/v2/a?_state=hush\": hunter2\n EOF".to_owned(),
        };
        let redactor = Redactor::new([Secret::new("hunter2")]);
        let fault = of_push("cannot push `x`", error, &redactor);
        assert_eq!(fault.message, "cannot push `x`: Put \"http://x/v2/a?…\": [secret] EOF");
    }
}
