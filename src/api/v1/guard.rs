//! Who is served. With an `API_TOKEN` whoever shows it; without one whoever asks from this machine, but no web
//! page that a browser on it has opened.

use std::net::IpAddr;

use axum::http::header::{AUTHORIZATION, FORWARDED, HOST, ORIGIN, VIA};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Method, Request, Uri, Version};
use image_builder_actors::model::secret::Secret;

use super::problem::Problem;
use crate::api::rate::Guesses;
use crate::net::signature::is_same;

/// What a browser says of whose page wants something.
pub(in crate::api) const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// What a reverse proxy says of whom it asks for, or of how it was asked: one of them, where it says anything.
const OF_PROXIES: [HeaderName; 6] = [
    FORWARDED,
    VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
];

/// Whether a service without a token serves a request.
///
/// # Errors
///
/// Why not.
pub(in crate::api) fn is_own<B>(peer: IpAddr, request: &Request<B>) -> Result<(), Problem> {
    is_local(peer, request)?;
    is_no_foreign_page(request.uri(), request.headers())
}

/// Whether a request shows the token.
///
/// # Errors
///
/// It does not, or too many from there did not.
pub(in crate::api) fn bears(
    token: &Secret,
    peer: IpAddr,
    headers: &HeaderMap,
    guesses: &Guesses,
) -> Result<(), Problem> {
    let shown = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, shown) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| shown.trim())
    });
    match shown {
        Some(shown) if guesses.is_right(peer, || is_same(shown, token.expose()))? => Ok(()),
        Some(_) => Err(Problem::unauthorized("The token is not the one of this service.")),
        None => Err(Problem::unauthorized(
            "This service has an API_TOKEN: send it as `Authorization: Bearer …`.",
        )),
    }
}

/// Whether this machine itself asks, as far as that is seen: a proxy that says nothing of itself is not told from its
/// clients, but for the HTTP/1.0 that nginx speaks where nobody says otherwise.
fn is_local<B>(peer: IpAddr, request: &Request<B>) -> Result<(), Problem> {
    if !peer.to_canonical().is_loopback() {
        return Err(Problem::forbidden(
            "Without an API_TOKEN only this machine is served: set one to be served from elsewhere.",
        ));
    }
    let is_proxied = OF_PROXIES.iter().any(|name| request.headers().contains_key(name));
    if is_proxied || request.version() < Version::HTTP_11 {
        return Err(Problem::forbidden(
            "Without an API_TOKEN no proxy is served, nor is HTTP/1.0, which proxies speak: set one to be served through it.",
        ));
    }
    Ok(())
}

/// A page of somebody else's site can make the browser ask here: it says so itself, or the name that it asked
/// for is one that somebody else has made lead here.
fn is_no_foreign_page(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let host = uri.authority().cloned().or_else(|| {
        let host = headers.get(HOST)?.to_str().ok()?;
        host.parse::<Authority>().ok()
    });
    let Some(host) = host.filter(|host| is_loopback(host.host())) else {
        return Err(Problem::forbidden(
            "Without an API_TOKEN this service is asked as localhost, 127.0.0.1 or [::1] alone.",
        ));
    };
    let foreign = || Problem::forbidden("Pages of other sites may not ask this service.");
    if let Some(origin) = headers.get(ORIGIN) {
        let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
        if origin.as_ref().and_then(Uri::authority) != Some(&host) {
            return Err(foreign());
        }
    }
    match headers.get(SEC_FETCH_SITE).map(|site| site.as_bytes()) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => Err(foreign()),
    }
}

fn is_loopback(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost"
        || name.ends_with(".localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Whether a method changes something.
pub(in crate::api) fn writes(method: &Method) -> bool {
    !method.is_safe()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "127.0.0.1";

    fn asked(token: Option<&str>, peer: &str, headers: &[(&str, &str)]) -> u16 {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                let name: HeaderName = name.parse().expect("a header's name");
                (name, value.parse().expect("a header's value"))
            })
            .collect();
        let peer = peer.parse().expect("an address");
        let admitted = match token.map(Secret::new) {
            Some(token) => bears(&token, peer, &headers, &Guesses::default()),
            None => {
                let mut request = Request::get("/v1/builds").body(()).expect("a request");
                *request.headers_mut() = headers;
                is_own(peer, &request)
            }
        };
        admitted.map_or_else(|problem| problem.status().as_u16(), |()| 200)
    }

    #[test]
    fn whoever_shows_the_token_is_served_from_anywhere_and_nobody_else() {
        let with = |peer, headers: &[_]| asked(Some("s3cret"), peer, headers);
        assert_eq!(with("192.0.2.7", &[("authorization", "Bearer s3cret")]), 200);
        assert_eq!(with("192.0.2.7", &[("authorization", "bearer  s3cret")]), 200);
        for wrong in ["Bearer s3cre", "Bearer s3crets", "Bearer ", "Basic s3cret", "s3cret"] {
            assert_eq!(
                with(HERE, &[("authorization", wrong), ("host", "localhost")]),
                401,
                "{wrong}"
            );
        }
        assert_eq!(with(HERE, &[("host", "localhost")]), 401);
    }

    #[test]
    fn without_a_token_this_machine_is_served_under_its_own_names() {
        let of = |peer, host| asked(None, peer, &[("host", host)]);
        for host in ["localhost:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080", "a.localhost"] {
            assert_eq!(of(HERE, host), 200, "{host}");
            assert_eq!(of("::1", host), 200, "{host}");
            assert_eq!(of("::ffff:127.0.0.1", host), 200, "{host}");
            assert_eq!(of("192.0.2.7", host), 403, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "192.0.2.7", "0.0.0.0:8080", ""] {
            assert_eq!(of(HERE, host), 403, "{host}");
        }
        assert_eq!(asked(None, HERE, &[]), 403);
    }

    #[test]
    fn without_a_token_nothing_is_served_through_a_proxy_that_can_be_told() {
        for name in OF_PROXIES {
            let proxied = [("host", "localhost"), (name.as_str(), "x")];
            assert_eq!(asked(None, HERE, &proxied), 403, "{name}");
        }
        let peer = HERE.parse().expect("an address");
        for (version, is_served) in [(Version::HTTP_10, false), (Version::HTTP_11, true)] {
            let request = Request::get("/v1/builds").version(version).header(HOST, "localhost");
            let request = request.body(()).expect("a request");
            assert_eq!(is_own(peer, &request).is_ok(), is_served, "{version:?}");
        }
    }

    #[test]
    fn without_a_token_no_page_of_another_site_is_served() {
        let of = |name, value| asked(None, HERE, &[("host", "localhost:8080"), (name, value)]);
        assert_eq!(of("origin", "http://localhost:8080"), 200);
        for origin in ["http://evil.example", "http://localhost:3000", "null", "file://"] {
            assert_eq!(of("origin", origin), 403, "{origin}");
        }
        for (site, status) in
            [("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)]
        {
            assert_eq!(of("sec-fetch-site", site), status, "{site}");
        }
    }
}
