//! Git's smart HTTP protocol: asking a repository for its refs, and for a pack.

use std::sync::Arc;

use image_builder_actors::model::fault::{Fault, Reason};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request, Url};

use super::advertisement::Advertisement;
use crate::source::fault;
use crate::source::http::{Address, Body, Http};

/// Longest list of refs that is read, in bytes: room for half a million refs.
const LONGEST_ADVERTISEMENT: usize = 64 << 20;

/// A repository that has answered: where it really is, and as whom it is asked.
pub(super) struct Connection {
    pub(super) http: Arc<Http>,
    pub(super) address: Address,
    /// Where the repository is, after redirects.
    pub(super) url: Url,
    /// The credential that the server took; `None` = asked as nobody.
    pub(super) authorization: Option<HeaderValue>,
}

/// Asks a repository for its refs: the first request of each fetch, which finds out where the
/// repository is and whether the credential reaches it.
///
/// The credential is sent at once, since forges limit anonymous requests far more. Where it is
/// refused, the request is made again without it: a public repository needs none.
pub(super) fn discover(
    http: &Arc<Http>,
    address: &Address,
    authorization: Option<&HeaderValue>,
) -> Result<(Connection, Advertisement), Fault> {
    http.session.runtime.block_on(async {
        match discover_as(http, address, authorization.cloned()).await {
            Err(fault) if fault.reason == Reason::Unauthorized && authorization.is_some() => {
                // What the anonymous request is refused with says less than the token's refusal.
                discover_as(http, address, None).await.map_err(|anonymous| {
                    if anonymous.reason.kind() == fault.kind() { fault } else { anonymous }
                })
            }
            result => result,
        }
    })
}

async fn discover_as(
    http: &Arc<Http>,
    address: &Address,
    authorization: Option<HeaderValue>,
) -> Result<(Connection, Advertisement), Fault> {
    let suffix = "/info/refs";
    let mut url = address.url.clone();
    url.set_path(&format!("{}{suffix}", url.path().trim_end_matches('/')));
    url.set_query(Some("service=git-upload-pack"));
    let mut request = Request::new(Method::GET, url);
    if let Some(authorization) = &authorization {
        request.headers_mut().insert(AUTHORIZATION, authorization.clone());
    }

    let (response, mut url) = http.send(address, request).await?;
    let content_type = response.headers().get(CONTENT_TYPE).cloned();
    let body = http.accepted(address, response, authorization.is_some()).await?;
    let Some(path) = url.path().strip_suffix(suffix).map(str::to_owned) else {
        return Err(not_a_repository(address));
    };
    url.set_path(&path);
    url.set_query(None);
    if content_type.is_none_or(|kind| kind != "application/x-git-upload-pack-advertisement") {
        return Err(not_a_repository(address));
    }

    let bytes = body.all(LONGEST_ADVERTISEMENT).await?.ok_or_else(|| {
        fault(Reason::TooLarge, format!("The {} has too many refs.", address.label))
    })?;
    let advertisement = Advertisement::parse(&bytes).map_err(|problem| {
        fault(
            Reason::ForgeFailed,
            format!("The {} lists its refs in a way that git does not: {problem}.", address.label),
        )
    })?;
    if advertisement.is_sha_256() {
        let message =
            format!("The {} names its objects by SHA-256, which is not supported.", address.label);
        return Err(fault(Reason::Unsupported, message));
    }
    let connection =
        Connection { http: http.clone(), address: address.clone(), url, authorization };
    Ok((connection, advertisement))
}

fn not_a_repository(address: &Address) -> Fault {
    fault(
        Reason::RepositoryNotFound,
        format!("There is no git repository at the address of the {}.", address.label),
    )
}

/// Sends the body of a fetch request, and returns the answer's.
pub(super) async fn upload_pack(connection: &Connection, body: Vec<u8>) -> Result<Body, Fault> {
    let Connection { http, address, url, authorization } = connection;
    let mut url = url.clone();
    url.set_path(&format!("{}/git-upload-pack", url.path()));
    let mut request = Request::new(Method::POST, url);
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-git-upload-pack-request"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/x-git-upload-pack-result"));
    if let Some(authorization) = authorization {
        headers.insert(AUTHORIZATION, authorization.clone());
    }
    *request.body_mut() = Some(body.into());

    let response = http.send_once(address, request).await?;
    http.accepted(address, response, authorization.is_some()).await
}
