//! Releases by a forge's REST API: what those that have them have in common.

use image_builder_actors::model::fault::{Fault, Reason};
use reqwest::header::{HeaderMap, LINK};
use reqwest::{Method, Request, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::source::fault;
use crate::source::http::{Address, Http, below};

/// Longest answer that is read, in bytes: a hundred releases with the longest texts.
const LONGEST_ANSWER: usize = 32 << 20;
/// How many pages of releases are looked through.
const PAGES: usize = 20;

/// A release, as all of them describe it.
#[derive(Debug, Deserialize)]
pub(super) struct Release {
    pub(super) tag_name: String,
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
    pub(super) fn is_out(&self) -> bool {
        !self.draft && !self.is_upcoming
    }
}

/// The releases of one repository.
pub(super) struct Releases<'a> {
    pub(super) http: &'a Http,
    /// What the API is asked with beside the address; with a token, its credential among it.
    pub(super) headers: HeaderMap,
    pub(super) with_token: bool,
    /// The list of them.
    pub(super) url: Url,
    /// The query that lists them, newest first, as many as one page can have.
    pub(super) listing: &'static str,
    pub(super) label: String,
}

impl Releases<'_> {
    /// The release below the list's address.
    pub(super) async fn get(&self, segments: &[&str]) -> Result<Option<Release>, Fault> {
        let url = below(&self.url, segments.iter().copied());
        Ok(self.page(url).await?.map(|(release, _)| release))
    }

    /// The newest release that is out and meant.
    pub(super) async fn newest(
        &self,
        is_meant: impl Fn(&Release) -> bool,
    ) -> Result<Option<Release>, Fault> {
        let mut url = self.url.clone();
        url.set_query(Some(self.listing));
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
    pub(super) async fn named(&self, name: &str) -> Result<Option<Release>, Fault> {
        self.newest(|release| release.name.as_deref() == Some(name)).await
    }

    /// What is at an address, with the next page's address; `None` where nothing is.
    async fn page<T: DeserializeOwned>(&self, url: Url) -> Result<Option<(T, Option<Url>)>, Fault> {
        let (is_trusted, label) = (true, self.label.clone());
        let address = Address { url: url.clone(), is_trusted, is_api: true, label };
        let mut request = Request::new(Method::GET, url);
        *request.headers_mut() = self.headers.clone();

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

/// A token has characters that no header holds.
pub(super) fn unusable_token() -> Fault {
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
