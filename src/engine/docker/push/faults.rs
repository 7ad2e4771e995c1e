//! What a failure of a push means: the engine's own, or one that it hands on from the registry.

use std::io;
use std::sync::LazyLock;

use bollard::errors::Error as EngineError;
use hyper::StatusCode;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::secret::Redactor;
use regex::Regex;

use crate::net::http::excerpt;
use crate::net::refusal::{advice, reason_of, says_immutable};

/// A pusher's fault.
pub(super) fn fault(reason: Reason, message: impl Into<String>) -> Fault {
    Fault::new(StageName::Pusher, reason, message)
}

/// What an error of the engine means, its own or one that it hands on from the registry.
pub(super) fn of_push(what: &str, error: EngineError, redactor: &Redactor) -> Fault {
    let (by_default, text) = match &error {
        // In the stream of a push: mostly what the registry said to the engine.
        EngineError::DockerStreamError { error } => (Reason::RegistryFailed, error),
        EngineError::DockerResponseServerError { message, .. } => (Reason::EngineFailed, message),
        // The engine did not speak of the registry.
        EngineError::IOError { err } if is_out_of_reach(err.kind()) => {
            return fault(Reason::EngineDown, told(what, &err.to_string(), redactor));
        }
        EngineError::RequestTimeoutError => {
            return fault(
                Reason::Timeout,
                told(what, "the engine did not answer in time", redactor),
            );
        }
        // A connection that broke in the middle, or an answer that makes no sense. Should the engine
        // be gone for good, the next try cannot even connect to it.
        _ => return fault(Reason::EngineFailed, told(what, &error.to_string(), redactor)),
    };
    of_text(what, text, by_default, redactor)
}

/// What a BuildKit means that pushed by itself, in its own words or those of the registry.
pub(in crate::engine) fn of_words(what: &str, text: &str) -> Fault {
    of_text(what, text, Reason::RegistryFailed, &Redactor::default())
}

fn of_text(what: &str, text: &str, by_default: Reason, redactor: &Redactor) -> Fault {
    let Some(answer) = Answer::read(text).or_else(|| Answer::of_page(text)) else {
        let reason = reason_of_words(text).unwrap_or(by_default);
        let advice = (reason == Reason::RegistryRefused).then(|| advice(None, text)).flatten();
        return fault(reason, with_advice(told(what, text, redactor), advice));
    };
    let status = answer.status.as_u16();
    let mut message = format!("{what}: the registry answered {}", answer.status);
    if let Some(detail) = answer.detail {
        message = format!("{message} ({})", presentable(detail, redactor));
    }
    fault(reason_of(status), with_advice(message, advice(Some(status), text)))
}

fn told(what: &str, text: &str, redactor: &Redactor) -> String {
    format!("{what}: {}", presentable(text, redactor))
}

fn with_advice(message: String, advice: Option<&str>) -> String {
    match advice {
        Some(advice) => format!("{message}; {advice}"),
        None => message,
    }
}

/// An answer of the registry that the engine could make nothing of, in its words.
struct Answer<'a> {
    status: StatusCode,
    /// Its body, unless that is a web page.
    detail: Option<&'a str>,
}

impl<'a> Answer<'a> {
    /// Reads `error parsing HTTP 413 response body: <why>: "<body>"`, `received unexpected HTTP status:
    /// 502 Bad Gateway` and `unexpected status from PUT request to <address>: 413 <words>: <body>`.
    fn read(text: &'a str) -> Option<Self> {
        static ANSWER: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(
                r#"(?x) error\ parsing\ HTTP\ (?<parsed>\d{3})\ response\ body: [^"]* (?<quoted>(?s:.*))
                | unexpected\ (?:HTTP\ )?status(?:\ code|\ from)?[^"<{]*?[:\ ]\ (?<plain>\d{3})\b
                  [^:]* :? (?<rest>(?s:.*))"#,
            )
            .expect("valid")
        });
        let found = ANSWER.captures(text)?;
        let status = found.name("parsed").or(found.name("plain"))?;
        let body = found.name("quoted").or(found.name("rest"))?.as_str();
        let body = body.trim_matches(|c: char| c == '"' || c.is_whitespace());
        let says_something = !body.is_empty() && !body.starts_with('<');
        Some(Self {
            status: StatusCode::from_bytes(status.as_str().as_bytes()).ok()?,
            detail: says_something.then_some(body),
        })
    }
}

impl Answer<'_> {
    /// Reads a web page, of which engines from 26 on no longer say which status it came with: proxies write it in the
    /// title, such as `unknown: <html><head><title>413 Request Entity Too Large</title>…`.
    fn of_page(text: &str) -> Option<Self> {
        static TITLE: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(r"(?i)^\w+:\s*<(?s:.*)<title>\s*(?<status>[45]\d{2})\b").expect("valid")
        });
        let status = TITLE.captures(text)?.name("status")?;
        Some(Self {
            status: StatusCode::from_bytes(status.as_str().as_bytes()).ok()?,
            detail: None,
        })
    }
}

fn is_out_of_reach(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    matches!(kind, ConnectionRefused | NotFound | PermissionDenied)
}

/// An engine's error for a person: one line, without credentials, without web pages and without the long state
/// that upload addresses carry behind their `?`.
fn presentable(text: &str, redactor: &Redactor) -> String {
    static QUERY: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"\?[^\s"']+"#).expect("valid"));
    static PAGE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?is)<(?:!doctype|html)\b.*").expect("valid"));
    let text = redactor.redact(text);
    excerpt(&QUERY.replace_all(&PAGE.replace(&text, "(a web page)"), "?…"))
}

/// What the engine says of a push without a status: its own words, or the registry's error codes.
fn reason_of_words(text: &str) -> Option<Reason> {
    let lower = text.to_ascii_lowercase();
    // The surest of all: the registry says it in words of its own.
    if says_immutable(None, text) {
        return Some(Reason::RegistryRefused);
    }
    let phrase = PHRASES.iter().find(|(_, all)| all.iter().any(|phrase| lower.contains(phrase)));
    match phrase {
        Some((reason, _)) => Some(*reason),
        // The engine reads errors out of answers from 400 to 499 alone, and says this of a code that it
        // does not know.
        None if lower.lines().any(|line| line.starts_with("unknown: ")) => {
            Some(Reason::RegistryRefused)
        }
        None => None,
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
    fn what_the_registry_answered_is_told_with_what_to_do_and_never_as_the_engines_parser_puts_it()
    {
        let page = "<html><head><title>timeout denied</title></head></html>\r\n";
        let parsing = |status: u16| {
            format!(
                "error parsing HTTP {status} response body: invalid character '<' looking for \
                 beginning of value: {page:?}"
            )
        };
        let from = "unexpected status from PUT request to https://x:5000/v2/a/manifests/b:";
        for (text, reason, parts) in [
            (parsing(413), Reason::RegistryRefused, ["413 Payload Too Large", "client_max_body_size"]),
            (parsing(405), Reason::RegistryRefused, ["405 Method Not Allowed", "takes no pushes"]),
            (parsing(403), Reason::RegistryRefused, ["403 Forbidden", "REGISTRY_PASSWORD"]),
            (parsing(412), Reason::RegistryRefused, ["412 Precondition Failed", "immutable"]),
            (
                "error parsing HTTP 400 response body: no error details found: \"{\\\"a\\\":1}\""
                    .to_owned(),
                Reason::RegistryRefused,
                ["400 Bad Request", "a"],
            ),
            (format!("{from} 413 Request Entity Too Large"), Reason::RegistryRefused, ["413", "limit"]),
            (format!("{from} 503 Service Unavailable: {page}"), Reason::RegistryFailed, ["503", "503"]),
            (
                "received unexpected HTTP status: 200 OK".to_owned(),
                Reason::RegistryFailed,
                ["200 OK", "REGISTRY_URL"],
            ),
            (
                "unknown: The image tag 'v1' already exists and cannot be overwritten because the tag \
                 is immutable."
                    .to_owned(),
                Reason::RegistryRefused,
                ["'v1'", "tags are immutable"],
            ),
            ("unknown: unknown error".to_owned(), Reason::RegistryRefused, ["unknown", "unknown"]),
            // Engines from 26 on.
            (
                "unknown: <html>\r\n<head><title>413 Request Entity Too Large</title></head>".to_owned(),
                Reason::RegistryRefused,
                ["413 Payload Too Large", "client_max_body_size"],
            ),
            (
                "denied: <!DOCTYPE html><html><head><title>403 Forbidden</title></head></html>".to_owned(),
                Reason::RegistryRefused,
                ["403 Forbidden", "REGISTRY_PASSWORD"],
            ),
            (format!("unknown: {page}"), Reason::RegistryRefused, ["unknown", "(a web page)"]),
        ] {
            let error = EngineError::DockerStreamError { error: text.clone() };
            let fault = of_push("cannot push `x`", error, &Redactor::default());
            assert_eq!(fault.reason, reason, "{text}: {fault}");
            for part in parts {
                assert!(fault.message.contains(part), "{text}: {fault}");
            }
            for noise in ["invalid character", "<html>"] {
                assert!(!fault.message.contains(noise), "{fault}");
            }
            assert!(fault.message.len() < 700, "{fault}");
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
