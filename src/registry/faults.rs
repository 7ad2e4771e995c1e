//! What a failure of the registry means for the job.

use std::error::Error;
use std::io;
use std::time::Duration;

use image_builder_actors::model::fault::{Fault, Reason, StageName};
use reqwest::StatusCode;

use crate::net::http::{causes, excerpt};
use crate::net::refusal::{advice, reason_of};

/// A pusher's fault.
pub(super) fn fault(reason: Reason, message: impl Into<String>) -> Fault {
    Fault::new(StageName::Pusher, reason, message)
}

/// What an answer that is no success means. `what` is what was asked, as a clause: "the registry …".
pub(super) fn of_status(
    what: &str,
    status: StatusCode,
    retry_after: Option<Duration>,
    detail: &str,
) -> Fault {
    let mut message = format!("{what}: it answered {status}");
    if !detail.is_empty() {
        message = format!("{message} ({})", excerpt(detail));
    }
    let status = status.as_u16();
    if let Some(advice) = advice(Some(status), detail) {
        message = format!("{message}; {advice}");
    }
    fault(reason_of(status), message).retry_after(retry_after)
}

/// What a request to the registry's API that got no answer means.
pub(super) fn of_transport(what: &str, error: reqwest::Error) -> Fault {
    let reason = if is_tls(&error) {
        // The two ends do not agree on how to speak: only an operator can mend that.
        Reason::RegistryRefused
    } else if error.is_connect() {
        Reason::RegistryDown
    } else if error.is_timeout() {
        Reason::Timeout
    } else {
        Reason::RegistryFailed
    };
    let mut message = format!("{what}: {}", causes(error));
    if reason == Reason::RegistryRefused {
        message.push_str(
            "; trust the registry's certificate on this machine, or begin REGISTRY_URL with http:// \
             if it speaks no TLS",
        );
    }
    fault(reason, message)
}

/// Whether an error comes from TLS. An I/O error hides what it wraps from `source`.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|inner| is_tls(inner))
        || error.source().is_some_and(is_tls)
}
