//! GitHub, and GitHub Enterprise: what is its own beside git, and its REST API.

use async_trait::async_trait;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::request::RepoName;
use image_builder_actors::model::secret::Secret;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderName, HeaderValue, LINK};
use reqwest::{Method, Request, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Forge, base};
use crate::net::http::bearer;
use crate::source::http::{Address, Http, RateLimitHeaders, below};
use crate::source::{GitSetupError, fault};

const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.github+json");
const API_VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-github-api-version"), HeaderValue::from_static("2022-11-28"));
/// Longest answer that is read, in bytes: a hundred releases with the longest texts.
const LONGEST_ANSWER: usize = 32 << 20;
/// How many pages of a hundred releases are looked through.
const PAGES: usize = 20;

#[derive(Debug, Deserialize)]
struct Release {
    tag_name: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    draft: bool,
}

/// Where GitHub is.
#[derive(Debug, Clone)]
pub struct GithubSettings {
    /// Its address for people and for git (`GITHUB_URL`), http or https.
    pub url: String,
    /// The address of its REST API (`GITHUB_API_URL`), http or https; used for releases alone.
    pub api_url: String,
}

impl Default for GithubSettings {
    fn default() -> Self {
        Self { url: "https://github.com".to_owned(), api_url: "https://api.github.com".to_owned() }
    }
}

pub(super) struct Github {
    url: Url,
    api: Url,
}

impl Github {
    pub(super) fn new(settings: &GithubSettings) -> Result<Self, GitSetupError> {
        let GithubSettings { url, api_url } = settings;
        Ok(Self { url: base("GITHUB_URL", url)?, api: base("GITHUB_API_URL", api_url)? })
    }
}

#[async_trait]
impl Forge for Github {
    fn url(&self) -> &Url {
        &self.url
    }

    fn api(&self) -> &Url {
        &self.api
    }

    fn git_user(&self) -> &'static str {
        "x-access-token"
    }

    fn rate_limit(&self) -> RateLimitHeaders {
        RateLimitHeaders { remaining: "x-ratelimit-remaining", reset: "x-ratelimit-reset" }
    }

    async fn release_tag(
        &self,
        http: &Http,
        token: Option<&Secret>,
        repo: &RepoName,
        release: &str,
    ) -> Result<Option<String>, Fault> {
        let releases = Releases {
            http,
            token,
            url: below(&self.api, ["repos", &repo.owner, &repo.name, "releases"]),
            label: format!("repository `{repo}`"),
        };
        match release {
            "latest" => Ok(releases.get(&["latest"]).await?.map(|found| found.tag_name)),
            tag => match releases.get(&["tags", tag]).await? {
                Some(found) => Ok(Some(found.tag_name)),
                None => releases.named(release).await,
            },
        }
    }
}

/// The releases of one repository.
struct Releases<'a> {
    http: &'a Http,
    token: Option<&'a Secret>,
    url: Url,
    label: String,
}

impl Releases<'_> {
    async fn get(&self, segments: &[&str]) -> Result<Option<Release>, Fault> {
        let url = below(&self.url, segments.iter().copied());
        Ok(self.page(url).await?.map(|(release, _)| release))
    }

    /// The tag of the newest release of this name.
    async fn named(&self, name: &str) -> Result<Option<String>, Fault> {
        let mut url = self.url.clone();
        url.set_query(Some("per_page=100"));
        let mut next = Some(url);
        for _ in 0..PAGES {
            let Some(url) = next else { break };
            let Some((releases, link)) = self.page::<Vec<Release>>(url).await? else { break };
            let is_meant =
                |release: &Release| !release.draft && release.name.as_deref() == Some(name);
            if let Some(release) = releases.into_iter().find(is_meant) {
                return Ok(Some(release.tag_name));
            }
            next = link;
        }
        Ok(None)
    }

    /// What is at an address, with the next page's address; `None` where nothing is.
    async fn page<T: DeserializeOwned>(&self, url: Url) -> Result<Option<(T, Option<Url>)>, Fault> {
        let (is_trusted, label) = (true, self.label.clone());
        let address = Address { url: url.clone(), is_trusted, is_api: true, label };
        let mut request = Request::new(Method::GET, url);
        let headers = request.headers_mut();
        headers.insert(ACCEPT, MEDIA_TYPE);
        let (name, version) = API_VERSION;
        headers.insert(name, version);
        if let Some(token) = self.token {
            let unusable =
                || fault(Reason::Unauthorized, "The token has characters that no token has.");
            headers.insert(AUTHORIZATION, bearer(token.expose()).ok_or_else(unusable)?);
        }

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
        let body = self.http.accepted(&address, response, self.token.is_some()).await?;
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
