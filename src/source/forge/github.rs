//! From a release to its tag, by GitHub's REST API.

use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::request::RepoName;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderName, HeaderValue, LINK};
use reqwest::{Method, Request, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::address::Address;
use super::client::{self, Body};
use super::fault;
use super::session::Session;

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

/// The tag of a release: the latest full one, else the one of this tag, else the newest one of this
/// name. `None` = the API knows none; it does not say whether it knows the repository.
pub(super) async fn tag_of(
    session: &Session,
    repo: &RepoName,
    name: &str,
) -> Result<Option<String>, Fault> {
    let api = Api { session, repo };
    if name == "latest" {
        let latest = api.get::<Release>(api.url(&["releases", "latest"])).await?;
        return Ok(latest.map(|(release, _)| release.tag_name));
    }
    if let Some((release, _)) = api.get::<Release>(api.url(&["releases", "tags", name])).await? {
        return Ok(Some(release.tag_name));
    }
    let mut next = Some(api.url(&["releases"]));
    if let Some(url) = &mut next {
        url.set_query(Some("per_page=100"));
    }
    for _ in 0..PAGES {
        let Some(url) = next else { break };
        let Some((releases, link)) = api.get::<Vec<Release>>(url).await? else { break };
        let named = |release: &Release| !release.draft && release.name.as_deref() == Some(name);
        if let Some(release) = releases.into_iter().find(named) {
            return Ok(Some(release.tag_name));
        }
        next = link;
    }
    Ok(None)
}

struct Api<'a> {
    session: &'a Session,
    repo: &'a RepoName,
}

impl Api<'_> {
    fn url(&self, segments: &[&str]) -> Url {
        let mut path = vec!["repos", &self.repo.owner, &self.repo.name];
        path.extend(segments);
        self.session.forge.api(&path)
    }

    /// What is at an address, with the next page's address; `None` where nothing is.
    async fn get<T: DeserializeOwned>(&self, url: Url) -> Result<Option<(T, Option<Url>)>, Fault> {
        let label = format!("repository `{}`", self.repo);
        let address = Address { url: url.clone(), is_forge: true, label };
        let mut request = Request::new(Method::GET, url);
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
        let (name, version) = API_VERSION;
        headers.insert(name, version);
        if let Some(token) = self.session.token() {
            let mut bearer =
                HeaderValue::try_from(format!("Bearer {}", token.expose())).map_err(|_| {
                    fault(Reason::Unauthorized, "The token has characters that no token has.")
                })?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }

        let (response, url) = client::send(self.session, &address, request).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let with_token = self.session.token().is_some();
        let response = client::accepted(self.session, &address, response, with_token).await?;
        let next = response
            .headers()
            .get(LINK)
            .and_then(|link| next_page(link.to_str().ok()?))
            .and_then(|link| url.join(link).ok())
            .filter(|next| next.origin() == url.origin());
        let odd = |problem: String| {
            fault(
                Reason::ForgeFailed,
                format!("The forge's API gave an answer that cannot be used: {problem}."),
            )
        };
        let body = Body::new(response, address).all(self.session, LONGEST_ANSWER).await?;
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
