//! Where submodules are, as git reads their addresses, as far as a build may go there.

use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::source::http::{Address, below};

/// The server at which a fetch begins, and the credential that it alone is shown.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) url: Url,
    pub(crate) authorization: Option<HeaderValue>,
    /// What the credential was made of for this fetch; `None` = it is the request's own.
    pub(crate) reference: Option<String>,
}

impl Home {
    /// What a server is shown for an address.
    pub(super) fn authorization_for(&self, address: &Address) -> Option<&HeaderValue> {
        self.authorization.as_ref().filter(|_| address.is_trusted)
    }

    /// What a credential is known by from one fetch to the next. One that is made for each is another one
    /// each time; what it was made of stays.
    pub(super) fn known_as<'a>(&'a self, authorization: &'a HeaderValue) -> &'a [u8] {
        self.reference.as_ref().map_or(authorization.as_bytes(), String::as_bytes)
    }

    /// Whether an address is at the server's own scheme, host and port.
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
                // The server is reached by HTTP with the request's token, not by a key.
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

    /// `http://` at a server that is at `https://` means the same repository.
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

/// `url` with a path that may have several segments added.
fn join(url: &Url, path: &str) -> Option<Url> {
    let segments = || path.split('/').filter(|segment| !segment.is_empty());
    segments().next().map(|_| below(url, segments()))
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

    fn submodule(text: &str) -> Result<String, &'static str> {
        let url = |text| Url::parse(text).expect("a valid address");
        let home = Home { url: url("https://forge.example"), authorization: None, reference: None };
        let parent = url("https://forge.example/owner/name.git");
        home.submodule_url(&parent, text).map(|url| url.to_string())
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
