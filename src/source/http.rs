//! HTTP as a fetch needs it: no silence without an end, no byte uncounted, no redirect to another
//! server, and every failure as a fault with a reason.
//!
//! The forge that a request names is trusted with the request's credential and may be anywhere. Every
//! other server is named by a stranger's repository: it gets no credential, and must be at a public
//! address.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use image_builder_actors::model::fault::{Fault, Reason};
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Client, Request, RequestBuilder, Response, StatusCode, Url};

use super::fault;
use super::session::{Session, cancelled};
use crate::net::http::{chain, client, excerpt, retry_after, was_hung_up};
use crate::net::networks::Networks;
use crate::net::proxy::Proxies;
use crate::net::public::{NotPublic, PublicOnly, check_literal, check_resolved};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How many redirects are followed.
const REDIRECTS: usize = 5;
/// Longest wait for a forge's answer to a ping.
const PING: Duration = Duration::from_secs(10);
/// Longest error text that is read of an answer, in bytes.
const LONGEST_REFUSAL: usize = 8 << 10;

/// The connections to the forge, and those to servers that strangers name.
#[derive(Clone)]
pub(super) struct Clients {
    forge: Client,
    foreign: Client,
    /// What a stranger may name though it is not public.
    allowed: Networks,
    /// Whether there is a proxy, which connects to names that it resolves beyond our sight.
    behind_proxy: bool,
}

impl Clients {
    pub(super) fn new(proxies: &Proxies, allowed: &Networks) -> anyhow::Result<Self> {
        let builder = || {
            let builder = client()?
                .user_agent(concat!("git/2 (image-builder ", env!("CARGO_PKG_VERSION"), ")"))
                .connect_timeout(CONNECT)
                .redirect(reqwest::redirect::Policy::none())
                .referer(false);
            Ok::<_, rustls::Error>(builder)
        };
        Ok(Self {
            forge: proxies.apply(builder()?)?.build()?,
            foreign: proxies
                .apply(builder()?.dns_resolver(PublicOnly {
                    proxies: proxies.hosts().map(str::to_owned).collect(),
                    allowed: allowed.clone(),
                }))?
                .build()?,
            allowed: allowed.clone(),
            behind_proxy: !proxies.is_empty(),
        })
    }

    /// A request that tells a forge something.
    pub(super) fn post(&self, forge: Url) -> RequestBuilder {
        self.forge.post(forge)
    }

    /// Whether a forge answers at all.
    ///
    /// # Errors
    /// `forge_down`, or `forge_failed` while it answers with a server's error.
    pub(super) async fn ping(&self, forge: &Url) -> Result<(), Fault> {
        match self.forge.get(forge.clone()).timeout(PING).send().await {
            Ok(response) if response.status().is_server_error() => {
                let message = format!("The forge answers {}.", response.status());
                Err(fault(Reason::ForgeFailed, message))
            }
            Ok(_) => Ok(()),
            Err(_) => Err(fault(Reason::ForgeDown, "The forge cannot be reached.")),
        }
    }
}

/// Where something is fetched from.
#[derive(Debug, Clone)]
pub(super) struct Address {
    /// Holds no credential.
    pub(super) url: Url,
    /// Whether it is at the forge that the request names: anywhere, and with the credential.
    pub(super) is_trusted: bool,
    /// Whether it is the forge's API, which counts the requests of whoever asks.
    pub(super) is_api: bool,
    /// How messages name what is there.
    pub(super) label: String,
}

/// The names of the headers in which a forge states its limit on requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct RateLimitHeaders {
    /// How many requests are left.
    pub(super) remaining: &'static str,
    /// When there are more of them, in seconds since 1970.
    pub(super) reset: &'static str,
}

impl RateLimitHeaders {
    fn is_exhausted(self, headers: &HeaderMap) -> bool {
        headers.get(self.remaining).is_some_and(|left| left == "0")
    }

    /// How long it is until there are requests again, where there are none left.
    pub(super) fn wait(self, headers: &HeaderMap) -> Option<Duration> {
        if !self.is_exhausted(headers) {
            return None;
        }
        let reset = headers.get(self.reset)?.to_str().ok()?.trim().parse().ok()?;
        let reset = UNIX_EPOCH.checked_add(Duration::from_secs(reset))?;
        Some(reset.duration_since(SystemTime::now()).unwrap_or_default())
    }
}

/// The network, as one fetch may use it.
pub(super) struct Http {
    pub(super) session: Arc<Session>,
    pub(super) clients: Clients,
    pub(super) rate_limit: RateLimitHeaders,
}

impl Http {
    /// Refuses an address that a stranger names and that is not public.
    ///
    /// # Errors
    /// `forbidden_source`.
    pub(super) fn check(&self, address: &Address, url: &Url) -> Result<(), Fault> {
        self.check_as(address, url, address.is_trusted)
    }

    fn check_as(&self, address: &Address, url: &Url, is_trusted: bool) -> Result<(), Fault> {
        if is_trusted {
            return Ok(());
        }
        check_literal(url, &self.clients.allowed).map_err(|refused| forbidden(address, &refused))
    }

    /// Sends a request; a redirect is an answer like others.
    ///
    /// No request here changes anything, so one that was hung up on is sent once more.
    pub(super) async fn send_once(
        &self,
        address: &Address,
        request: Request,
    ) -> Result<Response, Fault> {
        self.send_as(address, request, address.is_trusted).await
    }

    /// The same, for a request to a server that `address` sends to: only to a public one, whoever says so.
    pub(super) async fn send_elsewhere(
        &self,
        address: &Address,
        request: Request,
    ) -> Result<Response, Fault> {
        self.send_as(address, request, false).await
    }

    async fn send_as(
        &self,
        address: &Address,
        request: Request,
        is_trusted: bool,
    ) -> Result<Response, Fault> {
        self.check_as(address, request.url(), is_trusted)?;
        let client = if is_trusted { &self.clients.forge } else { &self.clients.foreign };
        if !is_trusted && self.clients.behind_proxy {
            let looked = check_resolved(request.url(), &self.clients.allowed).await;
            looked.map_err(|refused| forbidden(address, &refused))?;
        }
        let again = request.try_clone();
        let answered = async {
            match (client.execute(request).await, again) {
                (Err(error), Some(again)) if was_hung_up(&error) => client.execute(again).await,
                (result, _) => result,
            }
        };
        guarded(&self.session, address, answered).await
    }

    /// Sends a request, follows its redirects as far as they stay with the same server, and returns
    /// the answer with the address that gave it. Not for requests with a body.
    pub(super) async fn send(
        &self,
        address: &Address,
        request: Request,
    ) -> Result<(Response, Url), Fault> {
        let mut request = request;
        for _ in 0..=REDIRECTS {
            let url = request.url().clone();
            let mut again = Request::new(request.method().clone(), url.clone());
            *again.headers_mut() = request.headers().clone();

            let response = self.send_once(address, request).await?;
            let Some(next) = redirect(&response) else { return Ok((response, url)) };
            if !is_same_server(&url, &next, address.is_trusted) {
                return Err(fault(
                    Reason::ForbiddenSource,
                    format!(
                        "The {} redirects to another server, `{}`.",
                        address.label,
                        next.host_str().unwrap_or_default()
                    ),
                ));
            }
            *again.url_mut() = next;
            request = again;
        }
        Err(fault(Reason::ForgeFailed, format!("The {} redirects again and again.", address.label)))
    }

    /// The body of an answer, if it is a good one; else the fault that its status means.
    pub(super) async fn accepted(
        &self,
        address: &Address,
        response: Response,
        with_token: bool,
    ) -> Result<Body, Fault> {
        let (status, headers) = (response.status(), response.headers());
        let refused = (!status.is_success()).then(|| {
            let counts_askers = address.is_api || self.rate_limit.is_exhausted(headers);
            let scope = self.session.concerns.limited(&address.url, with_token, counts_askers);
            refusal(address, status, headers, with_token, self.rate_limit).concerning(scope)
        });
        let body = Body { session: self.session.clone(), address: address.clone(), response };
        let Some(mut fault) = refused else { return Ok(body) };
        if let Ok(Some(body)) = body.all(LONGEST_REFUSAL).await
            && let Some(said) = said(&body, fault.reason)
        {
            fault.message.push_str(&format!(" It said: {said}"));
        }
        Err(fault)
    }
}

/// An answer's body, read piece by piece, each within the limits and deadlines.
pub(super) struct Body {
    session: Arc<Session>,
    address: Address,
    response: Response,
}

impl Body {
    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let chunk = guarded(&self.session, &self.address, self.response.chunk()).await?;
        if let Some(chunk) = &chunk {
            self.session.count_transferred(chunk.len() as u64)?;
        }
        Ok(chunk)
    }

    /// The whole of it; `None` when it is longer than `longest` bytes.
    pub(super) async fn all(mut self, longest: usize) -> Result<Option<Vec<u8>>, Fault> {
        let mut all = Vec::new();
        while let Some(chunk) = self.next().await? {
            if all.len() + chunk.len() > longest {
                return Ok(None);
            }
            all.extend_from_slice(&chunk);
        }
        Ok(Some(all))
    }
}

/// `url` with path segments added, each encoded.
pub(super) fn below<'a>(url: &Url, segments: impl IntoIterator<Item = &'a str>) -> Url {
    let mut url = url.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

/// Where an answer redirects to.
pub(super) fn redirect(response: &Response) -> Option<Url> {
    if !response.status().is_redirection() {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    response.url().join(location).ok()
}

/// Whether a redirect from one place to another stays with the same server: the same scheme, host
/// and port, or for a server without a credential the same host, now over https.
fn is_same_server(from: &Url, to: &Url, is_trusted: bool) -> bool {
    from.origin() == to.origin()
        || (!is_trusted
            && from.host_str() == to.host_str()
            && from.scheme() == "http"
            && to.scheme() == "https")
}

fn forbidden(address: &Address, refused: &NotPublic) -> Fault {
    fault(Reason::ForbiddenSource, format!("The {} must not be fetched: {refused}.", address.label))
}

/// Waits for the network, but neither for a silent server nor for what nobody wants any more.
async fn guarded<T>(
    session: &Session,
    address: &Address,
    work: impl Future<Output = reqwest::Result<T>>,
) -> Result<T, Fault> {
    tokio::select! {
        biased;
        () = session.cancel.cancelled() => Err(cancelled()),
        result = tokio::time::timeout(session.silence, work) => match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(broken(session, address, &error)),
            Err(_) => Err(fault(
                Reason::Timeout,
                format!(
                    "The server of the {} was silent for {} seconds.",
                    address.label,
                    session.silence.as_secs()
                ),
            )),
        },
    }
}

/// The fault of a connection that did not come about or broke.
fn broken(session: &Session, address: &Address, error: &reqwest::Error) -> Fault {
    if let Some(refused) = chain(error).find_map(|cause| cause.downcast_ref::<NotPublic>()) {
        return forbidden(address, refused);
    }
    let label = &address.label;
    let cause = chain(error).last().map(ToString::to_string).unwrap_or_default();
    if error.is_connect() {
        // Nobody waits for a server that a stranger names.
        let reason = if address.is_trusted { Reason::ForgeDown } else { Reason::ForgeFailed };
        return fault(reason, format!("The server of the {label} cannot be reached: {cause}."))
            .concerning(session.concerns.unreachable(&address.url, error.url()));
    }
    fault(
        Reason::ForgeFailed,
        format!("The connection to the server of the {label} broke: {cause}."),
    )
}

/// What a server said about its refusal, where that says more than our own words do.
fn said(body: &[u8], reason: Reason) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Refusal {
        message: String,
    }
    let text = match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => refusal.message,
        Err(_) if reason == Reason::ForgeFailed => {
            let text = String::from_utf8_lossy(body);
            text.lines().map(str::trim).find(|line| !line.is_empty())?.to_owned()
        }
        Err(_) => return None,
    };
    let text = excerpt(&text);
    (!text.is_empty() && !text.starts_with('<')).then_some(text)
}

/// The fault that an answer's status means.
fn refusal(
    address: &Address,
    status: StatusCode,
    headers: &HeaderMap,
    with_token: bool,
    rate_limit: RateLimitHeaders,
) -> Fault {
    let label = &address.label;
    let wait = patience(headers, rate_limit);
    let asks_for_patience = rate_limit.is_exhausted(headers) || headers.contains_key(RETRY_AFTER);
    if status == StatusCode::TOO_MANY_REQUESTS
        || (status == StatusCode::FORBIDDEN && asks_for_patience)
    {
        // Nobody waits for a server that a stranger names.
        let reason = if address.is_trusted { Reason::RateLimited } else { Reason::ForgeFailed };
        let message = format!("The server of the {label} asks for fewer requests.");
        return fault(reason, message).retry_after(wait);
    }
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if with_token => fault(
            Reason::Unauthorized,
            format!("The token was refused, or does not reach the {label}."),
        ),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => fault(
            Reason::Unauthorized,
            format!("The {label} is private or does not exist: give a token that reaches it."),
        ),
        StatusCode::NOT_FOUND | StatusCode::GONE if with_token => fault(
            Reason::RepositoryNotFound,
            format!("The {label} does not exist, or the token does not reach it."),
        ),
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            fault(Reason::RepositoryNotFound, format!("The {label} does not exist."))
        }
        _ => fault(
            Reason::ForgeFailed,
            format!("The server of the {label} answered with status {}.", status.as_u16()),
        )
        .retry_after(wait),
    }
}

/// How long an answer asks to be left alone: until its `Retry-After`, else until there are requests
/// again. At least a second: one that is over already was asked for a moment ago.
fn patience(headers: &HeaderMap, rate_limit: RateLimitHeaders) -> Option<Duration> {
    let wait = retry_after(headers).or_else(|| rate_limit.wait(headers))?;
    Some(wait.max(Duration::from_secs(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().expect("a valid value"));
        }
        headers
    }

    const RATE_LIMIT: RateLimitHeaders = RateLimitHeaders { remaining: "left", reset: "again-at" };

    #[test]
    fn the_wait_is_read_in_seconds_as_a_date_and_from_the_rate_limit() {
        let wait = |pairs: &[(&'static str, &str)]| patience(&headers(pairs), RATE_LIMIT);
        assert_eq!(wait(&[("retry-after", "7")]), Some(Duration::from_secs(7)));
        for past in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(wait(&[("retry-after", past)]), Some(Duration::from_secs(1)));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
        let reset = (now.as_secs() + 100).to_string();
        let limited = wait(&[("left", "0"), ("again-at", &reset)]);
        assert!(limited.is_some_and(|wait| (90..=100).contains(&wait.as_secs())));
        assert_eq!(wait(&[("left", "9"), ("again-at", &reset)]), None);
        assert_eq!(wait(&[("retry-after", "soon")]), None);
    }

    #[test]
    fn nobody_waits_for_a_strangers_server() {
        let url = Url::parse("https://else.example/a").expect("a valid address");
        let address = |is_trusted| Address {
            url: url.clone(),
            is_trusted,
            is_api: false,
            label: "x".to_owned(),
        };
        let status = StatusCode::TOO_MANY_REQUESTS;
        let reason = |is_trusted| {
            refusal(&address(is_trusted), status, &headers(&[]), false, RATE_LIMIT).reason
        };
        assert_eq!((reason(true), reason(false)), (Reason::RateLimited, Reason::ForgeFailed));
    }
}
