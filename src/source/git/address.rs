//! Where a repository is, and whether a build may reach there.
//!
//! The forge of the settings is trusted with the request's credential and may be anywhere. Every
//! other server is named by a stranger's repository: it gets no credential, and it must have a
//! public address, so that a build cannot read what only this machine's network can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use image_builder_actors::model::request::RepoName;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

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

/// The server has an address that a stranger's repository must not lead to.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not at a public address")]
pub(super) struct NotPublic(String);

/// Refuses an address that is written as numbers; names are looked at when they are resolved.
pub(super) fn check_literal(url: &Url) -> Result<(), NotPublic> {
    let host = url.host_str().unwrap_or_default();
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) if !is_public(ip) => Err(NotPublic(host.to_owned())),
        _ => Ok(()),
    }
}

/// Resolves names to public addresses only. It is the resolver of the connection itself, so a name
/// cannot show a public address to a check and another one to the connection.
pub(super) struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if found.iter().any(|address| !is_public(address.ip())) {
                return Err(NotPublic(name.as_str().to_owned()).into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether an address belongs to the public internet (IANA's special-purpose registries).
pub(super) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = matches!(
        (a, b, c),
        (0 | 10 | 127, ..)
            | (100, 64..=127, _) // shared by carriers, and metadata of some clouds
            | (169, 254, _) // link-local, and metadata of most clouds
            | (172, 16..=31, _)
            | (192, 168, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (198, 18..=19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (224..=255, ..)
    );
    // The address of Azure's own services lies in an ordinary range.
    !special && ip != Ipv4Addr::new(168, 63, 129, 16)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    if let Some(v4) = ip.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match (a, b) {
        // NAT64 and 6to4 carry an IPv4 address.
        (0x64, 0xff9b) => [c, d, e, f] == [0; 4] && is_public_v4(v4(g, h)),
        (0x2002, _) => is_public_v4(v4(b, c)),
        // Teredo and other protocol assignments, and documentation.
        (0x2001, 0..=0x1ff | 0xdb8) | (0x3fff, 0..=0xfff) => false,
        _ => (0x2000..=0x3fff).contains(&a),
    }
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

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for ip in ["140.82.121.4", "2606:50c0:8000::153", "64:ff9b::8c52:7904"] {
            assert!(is_public(ip.parse().expect("an address")), "{ip}");
        }
        for ip in [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "0.0.0.0",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "fe80::1",
            "fd00:ec2::254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "ff02::1",
        ] {
            assert!(!is_public(ip.parse().expect("an address")), "{ip}");
        }
    }

    #[test]
    fn an_address_in_any_notation_of_numbers_is_looked_at() {
        for text in ["http://127.0.0.1/", "http://2130706433/", "http://0x7f.1/", "http://[::1]/"] {
            let url = Url::parse(text).expect("a valid address");
            assert!(check_literal(&url).is_err(), "{text}");
        }
    }
}
