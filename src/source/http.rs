//! HTTP as the connector needs it: no silence without an end, no byte uncounted, no redirect to
//! another server, no credential to a stranger, and every failure as a fault of the contract.

use std::future::Future;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::secret::Secret;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER,
};
use reqwest::{Client, Request, Response, StatusCode, Url};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::address::{self, Address};
use super::advertisement::Advertisement;
use super::fault;
use super::session::{Session, cancelled};
use crate::net::http::was_hung_up;
use crate::net::public::{NotPublic, PublicOnly, check_literal};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How many redirects are followed.
const REDIRECTS: usize = 5;
/// Longest list of refs that is read, in bytes: room for half a million refs.
const LONGEST_ADVERTISEMENT: usize = 64 << 20;
/// Longest error text that is read of an answer, in bytes.
const LONGEST_REFUSAL: usize = 8 << 10;

/// The connections to the forge, and those to servers that strangers name.
#[derive(Clone)]
pub(super) struct Clients {
    forge: Client,
    foreign: Client,
}

impl Clients {
    pub(super) fn new() -> reqwest::Result<Self> {
        let builder = || {
            Client::builder()
                .user_agent(concat!("git/2 (image-builder ", env!("CARGO_PKG_VERSION"), ")"))
                .connect_timeout(CONNECT)
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
        };
        Ok(Self {
            forge: builder().build()?,
            // Without a proxy, which would resolve names beyond our sight.
            foreign: builder().no_proxy().dns_resolver(PublicOnly).build()?,
        })
    }

    pub(super) fn get(&self, is_forge: bool) -> &Client {
        if is_forge { &self.forge } else { &self.foreign }
    }
}

/// A repository that has answered: where it really is, and as whom it is asked.
pub(super) struct Connection {
    pub(super) address: Address,
    /// Where the repository is, after redirects.
    pub(super) url: Url,
    /// The credential that the server took; `None` = asked as nobody.
    pub(super) authorization: Option<HeaderValue>,
}

/// An answer's body, read piece by piece, each within the limits and deadlines.
pub(super) struct Body {
    response: Response,
    address: Address,
}

impl Body {
    pub(super) fn new(response: Response, address: Address) -> Self {
        Self { response, address }
    }

    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self, session: &Session) -> Result<Option<Bytes>, Fault> {
        let chunk = guarded(session, &self.address, self.response.chunk()).await?;
        if let Some(chunk) = &chunk {
            session.count_transferred(chunk.len() as u64)?;
        }
        Ok(chunk)
    }

    /// The whole of it; `None` when it is longer than `longest` bytes.
    pub(super) async fn all(
        mut self,
        session: &Session,
        longest: usize,
    ) -> Result<Option<Vec<u8>>, Fault> {
        let mut all = Vec::new();
        while let Some(chunk) = self.next(session).await? {
            if all.len() + chunk.len() > longest {
                return Ok(None);
            }
            all.extend_from_slice(&chunk);
        }
        Ok(Some(all))
    }
}

/// Asks a repository for its refs: the first request of each fetch, which finds out where the
/// repository is and whether the credential reaches it.
///
/// The token is sent at once, since forges limit anonymous requests far more. Where it is refused,
/// the request is made again without it: a public repository needs none.
pub(super) fn discover(
    session: &Session,
    address: &Address,
) -> Result<(Connection, Advertisement), Fault> {
    session.runtime.block_on(async {
        let authorization = session.token_for(address).map(basic);
        match discover_as(session, address, authorization.clone()).await {
            Err(fault) if fault.reason == Reason::Unauthorized && authorization.is_some() => {
                // What the anonymous request is refused with says less than the token's refusal.
                discover_as(session, address, None).await.map_err(|anonymous| {
                    if anonymous.reason.kind() == fault.kind() { fault } else { anonymous }
                })
            }
            result => result,
        }
    })
}

async fn discover_as(
    session: &Session,
    address: &Address,
    authorization: Option<HeaderValue>,
) -> Result<(Connection, Advertisement), Fault> {
    let suffix = "/info/refs";
    let mut url = address.url.clone();
    url.set_path(&format!("{}{suffix}", url.path().trim_end_matches('/')));
    url.set_query(Some("service=git-upload-pack"));
    let mut request = Request::new(reqwest::Method::GET, url);
    if let Some(authorization) = &authorization {
        request.headers_mut().insert(AUTHORIZATION, authorization.clone());
    }

    let (response, mut url) = send(session, address, request).await?;
    let response = accepted(session, address, response, authorization.is_some()).await?;
    let Some(path) = url.path().strip_suffix(suffix).map(str::to_owned) else {
        return Err(not_a_repository(address));
    };
    url.set_path(&path);
    url.set_query(None);
    if response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes)
        != Some(b"application/x-git-upload-pack-advertisement")
    {
        return Err(not_a_repository(address));
    }

    let body = Body::new(response, address.clone());
    let bytes = body.all(session, LONGEST_ADVERTISEMENT).await?.ok_or_else(|| {
        fault(Reason::TooLarge, format!("The {} has too many refs.", address.label))
    })?;
    let advertisement = Advertisement::parse(&bytes).map_err(|problem| {
        fault(
            Reason::ForgeFailed,
            format!("The {} lists its refs in a way that git does not: {problem}.", address.label),
        )
    })?;
    Ok((Connection { address: address.clone(), url, authorization }, advertisement))
}

fn not_a_repository(address: &Address) -> Fault {
    fault(
        Reason::RepositoryNotFound,
        format!("There is no git repository at the address of the {}.", address.label),
    )
}

/// Sends the body of a fetch request, and returns the answer's.
pub(super) fn upload_pack(
    session: &Session,
    connection: &Connection,
    body: Vec<u8>,
) -> Result<Body, Fault> {
    let mut url = connection.url.clone();
    url.set_path(&format!("{}/git-upload-pack", url.path()));
    let mut request = Request::new(reqwest::Method::POST, url);
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-git-upload-pack-request"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/x-git-upload-pack-result"));
    if let Some(authorization) = &connection.authorization {
        headers.insert(AUTHORIZATION, authorization.clone());
    }
    *request.body_mut() = Some(body.into());

    session.runtime.block_on(async {
        let address = &connection.address;
        let response = send_once(session, address, request).await?;
        let with_token = connection.authorization.is_some();
        let response = accepted(session, address, response, with_token).await?;
        Ok(Body::new(response, address.clone()))
    })
}

/// Sends a request; a redirect is an answer like others.
///
/// No request here changes anything, so one that was hung up on is sent once more.
pub(super) async fn send_once(
    session: &Session,
    address: &Address,
    request: Request,
) -> Result<Response, Fault> {
    check_address(address, request.url())?;
    let client = session.clients.get(address.is_forge);
    let again = request.try_clone();
    let answered = async {
        match (client.execute(request).await, again) {
            (Err(error), Some(again)) if was_hung_up(&error) => client.execute(again).await,
            (result, _) => result,
        }
    };
    guarded(session, address, answered).await
}

/// Sends a request, follows its redirects as far as they stay with the same server, and returns the
/// answer with the address that gave it. Not for requests with a body.
pub(super) async fn send(
    session: &Session,
    address: &Address,
    request: Request,
) -> Result<(Response, Url), Fault> {
    let mut request = request;
    for _ in 0..=REDIRECTS {
        let url = request.url().clone();
        let mut again = Request::new(request.method().clone(), url.clone());
        *again.headers_mut() = request.headers().clone();

        let response = send_once(session, address, request).await?;
        let Some(next) = redirect(&response) else { return Ok((response, url)) };
        if !address::same_server(&url, &next, address.is_forge) {
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

/// Where an answer redirects to.
pub(super) fn redirect(response: &Response) -> Option<Url> {
    if !response.status().is_redirection() {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    response.url().join(location).ok()
}

/// An error when an address that a stranger names is not public.
pub(super) fn check_address(address: &Address, url: &Url) -> Result<(), Fault> {
    if address.is_forge {
        return Ok(());
    }
    check_literal(url).map_err(|refused| forbidden(address, &refused))
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
            Ok(Err(error)) => Err(broken(address, &error)),
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
fn broken(address: &Address, error: &reqwest::Error) -> Fault {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    loop {
        if let Some(refused) = cause.downcast_ref::<NotPublic>() {
            return forbidden(address, refused);
        }
        match cause.source() {
            Some(deeper) => cause = deeper,
            None => break,
        }
    }
    let label = &address.label;
    if error.is_connect() {
        // A server that a stranger names must not pause this worker.
        let reason = if address.is_forge { Reason::ForgeDown } else { Reason::ForgeFailed };
        return fault(reason, format!("The server of the {label} cannot be reached: {cause}."));
    }
    fault(
        Reason::ForgeFailed,
        format!("The connection to the server of the {label} broke: {cause}."),
    )
}

/// The answer, if it is a good one; else the fault that its status means.
pub(super) async fn accepted(
    session: &Session,
    address: &Address,
    response: Response,
    with_token: bool,
) -> Result<Response, Fault> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let mut fault = refusal(address, status, response.headers(), with_token);
    let body = Body::new(response, address.clone()).all(session, LONGEST_REFUSAL).await;
    if let Ok(Some(body)) = body
        && let Some(said) = said(&body, fault.reason)
    {
        fault.message.push_str(&format!(" It said: {said}"));
    }
    Err(fault)
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
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    (!text.is_empty() && !text.starts_with('<')).then_some(text)
}

/// The fault that an answer's status means.
pub(super) fn refusal(
    address: &Address,
    status: StatusCode,
    headers: &HeaderMap,
    with_token: bool,
) -> Fault {
    let label = &address.label;
    let wait = retry_after(headers);
    let exhausted = headers.get("x-ratelimit-remaining").is_some_and(|left| left == "0");
    if status == StatusCode::TOO_MANY_REQUESTS
        || (status == StatusCode::FORBIDDEN && (exhausted || headers.contains_key(RETRY_AFTER)))
    {
        // A server that a stranger names must not pause this worker.
        let reason = if address.is_forge { Reason::RateLimited } else { Reason::ForgeFailed };
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

/// How long an answer asks to be left alone: `Retry-After` in seconds or as a date, else the
/// moment at which GitHub's `X-RateLimit-Reset` says that requests are free again.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let until = |moment: OffsetDateTime| {
        let left = (moment - OffsetDateTime::now_utc()).whole_seconds();
        Duration::from_secs(u64::try_from(left).unwrap_or(0).max(1))
    };
    if let Some(after) = text(RETRY_AFTER.as_str()) {
        return match after.parse() {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => OffsetDateTime::parse(after, &Rfc2822).ok().map(until),
        };
    }
    if text("x-ratelimit-remaining").is_none_or(|left| left != "0") {
        return None;
    }
    let reset = text("x-ratelimit-reset")?.parse().ok()?;
    OffsetDateTime::from_unix_timestamp(reset).ok().map(until)
}

/// The credential as git sends it.
pub(super) fn basic(token: &Secret) -> HeaderValue {
    let pair = BASE64.encode(format!("x-access-token:{}", token.expose()));
    // Base64 is always a valid header.
    let mut value = HeaderValue::try_from(format!("Basic {pair}"))
        .unwrap_or_else(|_| HeaderValue::from_static("Basic"));
    value.set_sensitive(true);
    value
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

    #[test]
    fn the_wait_is_read_in_seconds_as_a_date_and_from_the_rate_limit() {
        assert_eq!(retry_after(&headers(&[("retry-after", "7")])), Some(Duration::from_secs(7)));
        let past = headers(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        assert_eq!(retry_after(&past), Some(Duration::from_secs(1)));
        let reset = (OffsetDateTime::now_utc().unix_timestamp() + 100).to_string();
        let limited = headers(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &reset)]);
        assert!(retry_after(&limited).is_some_and(|wait| (90..=100).contains(&wait.as_secs())));
        let free = headers(&[("x-ratelimit-remaining", "9"), ("x-ratelimit-reset", &reset)]);
        assert_eq!(retry_after(&free), None);
        assert_eq!(retry_after(&headers(&[("retry-after", "soon")])), None);
    }

    #[test]
    fn a_strangers_server_never_pauses_the_worker() {
        let url = Url::parse("https://else.example/a").expect("a valid address");
        let address = |is_forge| Address { url: url.clone(), is_forge, label: "x".to_owned() };
        let status = StatusCode::TOO_MANY_REQUESTS;
        let reason = |is_forge| refusal(&address(is_forge), status, &headers(&[]), false).reason;
        assert_eq!((reason(true), reason(false)), (Reason::RateLimited, Reason::ForgeFailed));
    }
}
