//! Where a repository is, and whether a build may reach there.
//!
//! The forge of the settings is trusted with the request's credential and may be anywhere. Every
//! other server is named by a stranger's repository: it gets no credential, and it must have a
//! public address, so that a build cannot read what only this machine's network can reach.

use image_builder_actors::model::request::RepoName;
use reqwest::Url;

use super::GitSetupError;

/// The forge of the settings.
#[derive(Debug)]
pub(super) struct Forge {
    url: Url,
    api: Url,
}

/// A repository's address.
#[derive(Debug, Clone)]
pub(super) struct Address {
    /// Where it is cloned from; holds no credential.
    pub(super) url: Url,
    /// Whether it is at the forge's own origin, which is trusted and gets the credential.
    pub(super) is_forge: bool,
    /// How messages name it.
    pub(super) label: String,
}

impl Forge {
    pub(super) fn new(url: &str, api: &str) -> Result<Self, GitSetupError> {
        Ok(Self { url: base("GITHUB_URL", url)?, api: base("GITHUB_API_URL", api)? })
    }

    /// Its own address.
    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// The clone address of one of its repositories.
    pub(super) fn repository(&self, repo: &RepoName) -> Address {
        Address {
            url: below(&self.url, &[&repo.owner, &format!("{}.git", repo.name)]),
            is_forge: true,
            label: format!("repository `{repo}`"),
        }
    }

    /// A repository's address for people.
    pub(super) fn people_url(&self, repo: &RepoName) -> String {
        below(&self.url, &[&repo.owner, &repo.name]).to_string()
    }

    /// An address below the API's.
    pub(super) fn api(&self, segments: &[&str]) -> Url {
        below(&self.api, segments)
    }

    /// Whether an address is at the forge's own scheme, host and port.
    pub(super) fn owns(&self, url: &Url) -> bool {
        url.origin() == self.url.origin()
    }

    /// What a submodule's `url` means in the repository at `parent`, as git reads it, as far as a
    /// build may follow it. The error says why it may not.
    pub(super) fn submodule_url(&self, parent: &Url, text: &str) -> Result<Url, &'static str> {
        let text = text.trim();
        let url = if text.starts_with("./") || text.starts_with("../") {
            relative(parent, text)?
        } else if let Some((scheme, _)) = text.split_once("://") {
            let url = Url::parse(text).map_err(|_| "it is not an address")?;
            match scheme.to_ascii_lowercase().as_str() {
                "http" | "https" => url,
                // The forge is reached by HTTPS with the request's token, not by a key.
                "ssh" | "git+ssh" | "ssh+git" if self.has_host(url.host_str().unwrap_or("")) => {
                    join(&self.url, url.path()).ok_or("it is not an address")?
                }
                _ => return Err("only http and https addresses can be fetched"),
            }
        } else if let Some((host, path)) = scp_like(text) {
            if !self.has_host(host) {
                return Err("only http and https addresses can be fetched");
            }
            join(&self.url, path).ok_or("it is not an address")?
        } else {
            return Err("only http and https addresses can be fetched");
        };
        Ok(self.canonical(without_credential(url)))
    }

    /// `http://` at a forge that is at `https://` means the same repository.
    fn canonical(&self, url: Url) -> Url {
        let upgraded = url.scheme() == "http"
            && self.url.scheme() == "https"
            && url.port().is_none()
            && self.url.port().is_none()
            && url.host_str() == self.url.host_str();
        if upgraded { upgrade(url) } else { url }
    }

    fn has_host(&self, host: &str) -> bool {
        self.url.host_str().is_some_and(|own| own.eq_ignore_ascii_case(host))
    }
}

/// `url` over https, at the default port.
fn upgrade(mut url: Url) -> Url {
    let done = url.set_scheme("https").is_ok() && url.set_port(None).is_ok();
    debug_assert!(done, "http and https can be exchanged");
    url
}

/// Whether a redirect from one place to another stays with the same server: the same scheme, host
/// and port, or for a server without a credential the same host, now over https.
pub(super) fn same_server(from: &Url, to: &Url, is_forge: bool) -> bool {
    from.origin() == to.origin()
        || (!is_forge
            && from.host_str() == to.host_str()
            && from.scheme() == "http"
            && to.scheme() == "https")
}

fn base(variable: &'static str, text: &str) -> Result<Url, GitSetupError> {
    let bad = |problem: &str| GitSetupError::BadUrl { variable, problem: problem.to_owned() };
    let url = Url::parse(text.trim()).map_err(|error| bad(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(bad("it does not begin with http:// or https:// and a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("it holds a credential, which belongs into the request"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it has a query or a fragment"));
    }
    Ok(url)
}

/// `url` with path segments added, each encoded.
fn below(url: &Url, segments: &[&str]) -> Url {
    let mut url = url.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

/// `url` with a path that may have several segments added.
fn join(url: &Url, path: &str) -> Option<Url> {
    let segments: Vec<_> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    (!segments.is_empty()).then(|| below(url, &segments))
}

/// `[user@]host:path`, git's short form of an ssh address.
fn scp_like(text: &str) -> Option<(&str, &str)> {
    let (host, path) = text.split_once(':')?;
    if host.is_empty() || host.contains('/') {
        return None;
    }
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    Some((host, path))
}

/// A relative address, as `git submodule` resolves it: each `../` takes one segment off.
fn relative(parent: &Url, text: &str) -> Result<Url, &'static str> {
    let mut segments: Vec<&str> = parent.path().split('/').filter(|s| !s.is_empty()).collect();
    let mut rest = text;
    loop {
        if let Some(after) = rest.strip_prefix("./") {
            rest = after;
        } else if let Some(after) = rest.strip_prefix("../") {
            segments.pop().ok_or("it leads out of the server")?;
            rest = after;
        } else {
            break;
        }
    }
    segments.extend(rest.split('/').filter(|segment| !segment.is_empty()));
    if segments.iter().any(|segment| matches!(*segment, "." | "..")) {
        return Err("it leads out of the server");
    }
    let mut url = parent.clone();
    url.set_path(&segments.join("/"));
    Ok(url)
}

/// `url` without user, password, query and fragment.
fn without_credential(mut url: Url) -> Url {
    // Both only fail on addresses without a host, which http and https do not have.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forge() -> Forge {
        Forge::new("https://forge.example", "https://api.forge.example").expect("valid addresses")
    }

    fn submodule(text: &str) -> Result<String, &'static str> {
        let parent = Url::parse("https://forge.example/owner/name.git").expect("a valid address");
        forge().submodule_url(&parent, text).map(|url| url.to_string())
    }

    #[test]
    fn a_submodule_address_is_read_as_git_reads_it() {
        let cases = [
            ("../other.git", "https://forge.example/owner/other.git"),
            ("./../other", "https://forge.example/owner/other"),
            ("../../who/other", "https://forge.example/who/other"),
            ("./nested.git", "https://forge.example/owner/name.git/nested.git"),
            ("https://else.example:8443/a/b.git", "https://else.example:8443/a/b.git"),
            ("http://forge.example/a/b", "https://forge.example/a/b"),
            ("git@forge.example:a/b.git", "https://forge.example/a/b.git"),
            ("ssh://git@FORGE.example:22/a/b.git", "https://forge.example/a/b.git"),
            ("https://user:word@else.example/a?x#y", "https://else.example/a"),
        ];
        for (text, url) in cases {
            assert_eq!(submodule(text).as_deref(), Ok(url), "{text}");
        }
    }

    #[test]
    fn a_submodule_address_that_is_not_http_or_leads_out_is_refused() {
        for text in [
            "git@else.example:a/b.git",
            "ssh://git@else.example/a/b",
            "git://forge.example/a/b",
            "file:///etc",
            "/etc",
            "../../../../etc",
            "../a/../../../b",
            "ext::sh -c id",
            "-u./payload:x",
            "",
        ] {
            assert!(submodule(text).is_err(), "{text} became {:?}", submodule(text));
        }
    }
}
