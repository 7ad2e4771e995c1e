//! Releases by a forge's REST API: what those that have them have in common.

use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::request::RepoName;
use image_builder_actors::model::secret::Secret;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LINK};
use reqwest::{Method, Request, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::net::http::authorization;
use crate::source::fault;
use crate::source::http::{Address, Http, below};

/// Longest answer that is read, in bytes: a hundred releases with the longest texts.
const LONGEST_ANSWER: usize = 32 << 20;
/// How many pages of releases are looked through.
const PAGES: usize = 20;

/// A release, as all of them describe it.
#[derive(Debug, Deserialize)]
struct Release {
    tag_name: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    draft: bool,
    /// GitLab's, of one that has a date in the future.
    #[serde(default, rename = "upcoming_release")]
    is_upcoming: bool,
}

impl Release {
    /// Whether it is out.
    fn is_out(&self) -> bool {
        !self.draft && !self.is_upcoming
    }
}

/// Where a forge's API has the releases of a repository, and how it is asked.
pub(in crate::source) struct ReleaseApi {
    /// The list of them.
    pub(super) url: Url,
    /// The query that lists them, newest first, as many as one page can have.
    pub(super) listing: &'static str,
    /// Where the newest one is below the list; `None` = it is the list's first.
    pub(super) latest: Option<&'static str>,
    /// Below what of the list a release is by its tag; `None` = below the list itself.
    pub(super) by_tag: Option<&'static str>,
    /// What is sent along, a credential apart.
    pub(super) headers: HeaderMap,
    /// The scheme in which a token is shown.
    pub(super) scheme: &'static str,
}

impl ReleaseApi {
    /// The tag of a release; see [`Forge::release_tag`](super::Forge::release_tag).
    pub(super) async fn tag(
        mut self,
        http: &Http,
        token: Option<&Secret>,
        repo: &RepoName,
        release: &str,
    ) -> Result<Option<String>, Fault> {
        if let Some(token) = token {
            let token = authorization(self.scheme, token.expose()).ok_or_else(unusable_token)?;
            self.headers.insert(AUTHORIZATION, token);
        }
        let label = format!("repository `{repo}`");
        let releases = Releases { api: &self, http, with_token: token.is_some(), label };
        let found = match (release, self.latest) {
            ("latest", Some(latest)) => releases.get(&[latest]).await?,
            ("latest", None) => releases.newest(|_| true).await?,
            (tag, _) => {
                let segments: Vec<_> = self.by_tag.into_iter().chain([tag]).collect();
                match releases.get(&segments).await? {
                    Some(found) => Some(found),
                    None => releases.named(release).await?,
                }
            }
        };
        Ok(found.map(|release| release.tag_name))
    }
}

/// The releases of one repository.
struct Releases<'a> {
    api: &'a ReleaseApi,
    http: &'a Http,
    /// Whether a credential is shown.
    with_token: bool,
    label: String,
}

impl Releases<'_> {
    /// The release below the list's address.
    async fn get(&self, segments: &[&str]) -> Result<Option<Release>, Fault> {
        let url = below(&self.api.url, segments.iter().copied());
        Ok(self.page(url).await?.map(|(release, _)| release))
    }

    /// The newest release that is out and meant.
    async fn newest(&self, is_meant: impl Fn(&Release) -> bool) -> Result<Option<Release>, Fault> {
        let mut url = self.api.url.clone();
        url.set_query(Some(self.api.listing));
        let mut next = Some(url);
        for _ in 0..PAGES {
            let Some(url) = next else { break };
            let Some((releases, link)) = self.page::<Vec<Release>>(url).await? else { break };
            let found = releases.into_iter().find(|release| release.is_out() && is_meant(release));
            if found.is_some() {
                return Ok(found);
            }
            next = link;
        }
        Ok(None)
    }

    /// The newest release of this name.
    async fn named(&self, name: &str) -> Result<Option<Release>, Fault> {
        self.newest(|release| release.name.as_deref() == Some(name)).await
    }

    /// What is at an address, with the next page's address; `None` where nothing is.
    async fn page<T: DeserializeOwned>(&self, url: Url) -> Result<Option<(T, Option<Url>)>, Fault> {
        let (is_trusted, label) = (true, self.label.clone());
        let address = Address { url: url.clone(), is_trusted, is_api: true, label };
        let mut request = Request::new(Method::GET, url);
        *request.headers_mut() = self.api.headers.clone();

        let (response, url) = self.http.send(&address, request).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let next = response
            .headers()
            .get(LINK)
            .and_then(|link| next_page(link.to_str().ok()?))
            .and_then(|link| url.join(link).ok())
            .filter(|next| next.origin() == url.origin());
        let body = self.http.accepted(&address, response, self.with_token).await?;
        let odd = |problem: String| {
            fault(
                Reason::ForgeFailed,
                format!("The forge's API gave an answer that cannot be used: {problem}."),
            )
        };
        let body = body.all(LONGEST_ANSWER).await?;
        let body = body.ok_or_else(|| odd("it is too long".to_owned()))?;
        let found = serde_json::from_slice(&body).map_err(|error| odd(error.to_string()))?;
        Ok(Some((found, next)))
    }
}

/// What forges are told that have no media type of their own.
pub(super) fn accept_json() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))])
}

/// A token has characters that no header holds.
fn unusable_token() -> Fault {
    fault(Reason::Unauthorized, "The token has characters that no token has.")
}

/// The address with `rel="next"` in a `Link` header (RFC 8288).
fn next_page(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters
            .split(';')
            .any(|parameter| matches!(parameter.trim(), "rel=\"next\"" | "rel=next"));
        is_next.then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_the_links() {
        let header = "<https://x/?page=1>; rel=\"prev\", <https://x/?page=3>; rel=\"next\"";
        assert_eq!(next_page(header), Some("https://x/?page=3"));
        assert_eq!(next_page("<https://x/?page=1>; rel=\"last\""), None);
    }
}
