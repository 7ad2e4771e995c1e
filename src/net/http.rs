//! What every client of somebody else's HTTP server needs: bounds, credentials as headers, patience on
//! request, and errors that name their causes.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image_builder_actors::model::build_log::cut;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{ClientBuilder, Response};
use rustls::ClientConfig;
use rustls::crypto::CryptoProvider;
use rustls_platform_verifier::Verifier;

/// No server is given more patience than this, whatever it asks for.
const LONGEST_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// No server that asks for patience is given less.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(1);

/// How this program names itself to servers.
pub const USER_AGENT: &str = concat!("image-builder/", env!("CARGO_PKG_VERSION"));

/// A client that trusts the authorities of the system. They are read once: that takes as long as all else of a start.
///
/// # Errors
/// There are none, or no two protocol versions that could be spoken.
pub fn client() -> Result<ClientBuilder, rustls::Error> {
    static AUTHORITIES: OnceLock<Arc<Verifier>> = OnceLock::new();
    let provider = CryptoProvider::get_default().cloned();
    let provider = provider.unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()));
    let authorities = match AUTHORITIES.get() {
        Some(authorities) => authorities.clone(),
        None => {
            let read = Arc::new(Verifier::new(provider.clone())?);
            AUTHORITIES.get_or_init(|| read).clone()
        }
    };
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(authorities)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(ClientBuilder::new().tls_backend_preconfigured(tls))
}

/// How long a server asks to be left alone: `Retry-After`, in seconds or as a date in any of HTTP's
/// three notations. At least a second, since a date that is over is told by a server that was just asked;
/// at most a day.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let delay = if is_number {
        // One with too many digits is longer than any patience.
        text.parse().map_or(LONGEST_PATIENCE, Duration::from_secs)
    } else {
        let until = httpdate::parse_http_date(text).ok()?;
        until.duration_since(SystemTime::now()).unwrap_or_default()
    };
    Some(delay.clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE))
}

/// The first `longest` bytes of a response's body, and whether that is all of it.
pub async fn read_at_most(
    response: &mut Response,
    longest: usize,
) -> Result<(Vec<u8>, bool), reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = longest - body.len();
        if chunk.len() > room {
            body.extend_from_slice(&chunk[..room]);
            return Ok((body, false));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body, true))
}

/// What a server wrote, fit for one line of a log: without control characters, and short.
pub fn excerpt(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    cut(words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "), 300)
}

/// A name and a password as a header shows them.
pub(crate) fn basic(user: &str, password: &str) -> HeaderValue {
    let pair = STANDARD.encode(format!("{user}:{password}"));
    credential(format!("Basic {pair}")).expect("base64 is always a good header")
}

/// A token as a header shows it. `None` = it has characters that no header holds.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    authorization("Bearer", token)
}

/// A token as a header of this scheme shows it. `None` = it has characters that no header holds.
pub(crate) fn authorization(scheme: &str, token: &str) -> Option<HeaderValue> {
    credential(format!("{scheme} {token}"))
}

fn credential(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// An error and what caused it, outermost first.
pub(crate) fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Whether the connection ended after the request and before the answer: a server may close one that
/// was idle just when the next request goes out on it.
pub fn was_hung_up(error: &reqwest::Error) -> bool {
    let hung_up = chain(error).find_map(|cause| {
        if cause.downcast_ref().is_some_and(hyper::Error::is_incomplete_message) {
            return Some(true);
        }
        let error = cause.downcast_ref::<io::Error>()?;
        Some(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
    });
    hung_up.unwrap_or(false)
}

/// What the layers of the HTTP library call an error of those below.
const LAYERS: [&str; 7] = [
    "error sending request",
    "client error (Connect)",
    "client error (SendRequest)",
    "tcp connect error",
    "connection error",
    "dns error",
    "error resolving DNS",
];

/// The causes of an error, outermost first, without the address that it was about: an address may
/// hold a credential.
pub fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = String::new();
    for cause in chain(&error) {
        let cause = match cause.downcast_ref() {
            Some(error) => in_short(error),
            None => cause.to_string(),
        };
        // What the library was doing when it happened is no cause, unless nothing else is known.
        if text.is_empty() || LAYERS.contains(&&*text) {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    excerpt(&text)
}

/// An error of the operating system, without its number.
pub(crate) fn in_short(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" (os error ") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(value: &str) -> Option<Duration> {
        let value = HeaderValue::from_str(value).expect("a header's value");
        retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]))
    }

    #[test]
    fn patience_is_asked_for_in_seconds_or_until_a_date_and_is_bounded() {
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), Some(SHORTEST_PATIENCE));
        assert_eq!(asked("Fri, 06 Nov 2893 08:49:37 GMT"), Some(LONGEST_PATIENCE));
        assert_eq!(asked("Sunday, 06-Nov-94 08:49:37 GMT"), Some(SHORTEST_PATIENCE));
        assert_eq!(asked("Sun Nov  6 08:49:37 1994"), Some(SHORTEST_PATIENCE));
        assert_eq!(asked("Fri Nov  6 08:49:37 2893"), Some(LONGEST_PATIENCE));
        assert_eq!(asked("18446744073709551615"), Some(LONGEST_PATIENCE));
        assert_eq!(asked("99999999999999999999999"), Some(LONGEST_PATIENCE));
        assert_eq!(asked("0"), Some(SHORTEST_PATIENCE));
        assert_eq!(asked("+7"), None);
        assert_eq!(asked("soon"), None);
        assert_eq!(asked("-3"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn an_excerpt_is_one_short_line() {
        assert_eq!(excerpt("a\r\n\tb\u{1b}[0m  c\n"), "a b [0m c");
        assert!(excerpt(&"é".repeat(10_000)).len() < 320);
    }
}
