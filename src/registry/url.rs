//! Where the registry is: `REGISTRY_URL`, read into what the engine and the HTTP API need of it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use image_builder_actors::model::reference::is_component;

/// What Docker Hub is called in `REGISTRY_URL`; the engine knows it by the first of these names.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// The host that serves Docker Hub's API.
const DOCKER_HUB_API: &str = "registry-1.docker.io";
/// What the engine calls Docker Hub when it is handed credentials to push with.
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// The address of a registry: `host[:port][/prefix]`, and whether it speaks TLS.
///
/// Prints as the engine names the registry, which is what stands first in an image's reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryUrl {
    tls: bool,
    /// Host and, where given, port; an IPv6 address is in brackets.
    host: String,
    /// Path below the host, without slashes at its ends; empty = none.
    prefix: String,
}

/// Why a text is not the address of a registry. Never repeats a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryUrlError {
    #[error("it is empty; write host[:port][/prefix], such as localhost:5000")]
    Empty,
    #[error(
        "it holds a credential, or an `@`, `?`, `#` or `%`; take that out, and set REGISTRY_USERNAME and \
         REGISTRY_PASSWORD instead"
    )]
    Credential,
    #[error("`{0}://` is not a registry's scheme; write http://, https:// or none")]
    Scheme(String),
    #[error("`{0}` is not a host; write host[:port][/prefix], such as localhost:5000")]
    Host(String),
    // Not quoted: it is a password where somebody left out what follows it.
    #[error("what stands behind the host's `:` is not a port; a port is a number from 1 to 65535")]
    Port,
    #[error(
        "Docker takes `{0}` for an account on Docker Hub, since it has neither a dot nor a port; \
         write it with its port, such as {0}:5000"
    )]
    Ambiguous(String),
    #[error(
        "`{0}` is not a path that images can lie under; each part is of lower-case letters, digits \
         and single `.`, `_` or `-` between them"
    )]
    Prefix(String),
}

impl RegistryUrl {
    /// Reads `host[:port][/prefix]`, with or without `http://` or `https://` before it. Without a
    /// scheme, the machine itself (`localhost`, 127.0.0.0/8, `::1`) is spoken to in plain HTTP and
    /// every other host over TLS: the engine's own rule.
    pub fn parse(text: &str) -> Result<Self, RegistryUrlError> {
        let text = text.trim();
        // First, so that no later error can repeat it.
        if text.contains(['@', '?', '#', '%']) {
            return Err(RegistryUrlError::Credential);
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, text),
        };
        let rest = rest.trim_end_matches('/');
        if rest.is_empty() {
            return Err(RegistryUrlError::Empty);
        }
        let (address, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let address = address.to_ascii_lowercase();
        let (host, port) = split_port(&address)?;
        let tls = match scheme.as_deref() {
            Some("https") => true,
            Some("http") => false,
            Some(other) => return Err(RegistryUrlError::Scheme(other.to_owned())),
            None => !is_this_machine(host),
        };

        if DOCKER_HUB.contains(&host) && matches!(port, None | Some(443)) {
            // `https://index.docker.io/v1/` is how Docker's own configuration writes it.
            let prefix = if matches!(prefix, "v1" | "v2") { "" } else { prefix };
            let host = DOCKER_HUB[0].to_owned();
            return Ok(Self { tls: true, host, prefix: checked_prefix(prefix)? });
        }
        let named_as_a_host = host == "localhost" || host.contains(['.', ':']) || port.is_some();
        if !named_as_a_host {
            return Err(RegistryUrlError::Ambiguous(host.to_owned()));
        }
        Ok(Self { tls, host: address, prefix: checked_prefix(prefix)? })
    }

    /// Where the registry's HTTP API is, without a slash at its end: `https://host:port`.
    pub fn api_base(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let host = if self.is_docker_hub() { DOCKER_HUB_API } else { &self.host };
        format!("{scheme}://{host}")
    }

    /// Whether it is spoken to in plain HTTP, although it is not on this machine.
    pub fn is_plain_http(&self) -> bool {
        let host = split_port(&self.host).map_or(self.host.as_str(), |(host, _)| host);
        !self.tls && !is_this_machine(host)
    }

    /// What the engine calls this registry in the credentials of a push.
    pub fn server_address(&self) -> &str {
        if self.is_docker_hub() { DOCKER_HUB_SERVER } else { &self.host }
    }

    /// The name that the registry's API has for a repository below this address.
    pub fn api_repository(&self, repository: &str) -> String {
        if self.prefix.is_empty() {
            repository.to_owned()
        } else {
            format!("{}/{repository}", self.prefix)
        }
    }

    fn is_docker_hub(&self) -> bool {
        self.host == DOCKER_HUB[0]
    }
}

impl fmt::Display for RegistryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// Splits `host[:port]`, and checks both.
fn split_port(address: &str) -> Result<(&str, Option<u16>), RegistryUrlError> {
    let bad_host = || RegistryUrlError::Host(address.to_owned());
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (inside, after) = rest.split_once(']').ok_or_else(bad_host)?;
            inside.parse::<Ipv6Addr>().map_err(|_| bad_host())?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':').ok_or_else(bad_host)?),
            };
            (inside, port)
        }
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    if !address.starts_with('[') && !host.split('.').all(is_label) {
        return Err(bad_host());
    }
    let Some(port) = port else { return Ok((host, None)) };
    match port.parse::<u16>() {
        Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => {
            Ok((host, Some(number)))
        }
        _ => Err(RegistryUrlError::Port),
    }
}

/// One part of a host's name, by the rule for references: the engine knows no underscore there.
fn is_label(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn checked_prefix(prefix: &str) -> Result<String, RegistryUrlError> {
    if prefix.is_empty() || prefix.split('/').all(is_component) {
        return Ok(prefix.to_owned());
    }
    Err(RegistryUrlError::Prefix(prefix.to_owned()))
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost"
        || host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        || host.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> RegistryUrl {
        RegistryUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_registry_is_named_as_the_engine_names_it_and_spoken_to_as_the_engine_would() {
        for (text, name, api) in [
            ("localhost:5000", "localhost:5000", "http://localhost:5000"),
            (" http://localhost:5000/ ", "localhost:5000", "http://localhost:5000"),
            ("https://localhost:5000", "localhost:5000", "https://localhost:5000"),
            ("127.8.0.1:80", "127.8.0.1:80", "http://127.8.0.1:80"),
            ("[::1]:5000", "[::1]:5000", "http://[::1]:5000"),
            ("[2001:db8::1]", "[2001:db8::1]", "https://[2001:db8::1]"),
            ("ghcr.io", "ghcr.io", "https://ghcr.io"),
            ("GHCR.io", "ghcr.io", "https://ghcr.io"),
            ("http://10.0.0.7:5000/team", "10.0.0.7:5000/team", "http://10.0.0.7:5000"),
            ("registry:5000/a/b", "registry:5000/a/b", "https://registry:5000"),
            ("docker.io", "docker.io", "https://registry-1.docker.io"),
            ("https://index.docker.io/v1/", "docker.io", "https://registry-1.docker.io"),
            ("registry-1.docker.io/acme", "docker.io/acme", "https://registry-1.docker.io"),
        ] {
            let url = parsed(text);
            assert_eq!((url.to_string().as_str(), url.api_base().as_str()), (name, api), "{text}");
        }
    }

    #[test]
    fn only_plain_http_to_another_machine_has_to_be_asked_for() {
        for (text, plain) in [
            ("localhost:5000", false),
            ("http://127.0.0.1:5000", false),
            ("[::1]:5000", false),
            ("http://registry:5000/x", true),
            ("registry:5000", false),
        ] {
            assert_eq!(parsed(text).is_plain_http(), plain, "{text}");
        }
    }

    #[test]
    fn docker_hub_has_names_of_its_own_for_its_credentials() {
        let hub = parsed("docker.io/acme");
        assert_eq!(hub.api_base(), "https://registry-1.docker.io");
        assert_eq!(hub.server_address(), "https://index.docker.io/v1/");
        assert_eq!(hub.api_repository("alice/web"), "acme/alice/web");
        assert_eq!(parsed("ghcr.io").server_address(), "ghcr.io");
    }

    #[test]
    fn a_bad_address_is_refused_with_what_to_do() {
        for (text, part) in [
            ("", "empty"),
            ("https://", "empty"),
            ("ftp://x.io", "`ftp://`"),
            ("a b.io", "not a host"),
            ("my_registry:5000", "not a host"),
            ("x.io?a=b", "REGISTRY_PASSWORD"),
            ("[::1", "not a host"),
            ("[nonsense]:1", "not a host"),
            ("localhost:0", "is not a port"),
            ("localhost:+80", "is not a port"),
            ("localhost:99999", "is not a port"),
            ("localhost:", "is not a port"),
            ("registry", "write it with its port, such as registry:5000"),
            ("localhost:5000/Team", "`Team` is not a path"),
            ("localhost:5000/a//b", "`a//b` is not a path"),
        ] {
            let error = RegistryUrl::parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_credential_in_the_address_is_refused_and_not_repeated() {
        for text in [
            "https://joe:hunter2@ghcr.io",
            "joe:7/hunter2@ghcr.io",
            "ghcr.io/acme?token=hunter2",
            "ghcr.io#hunter2",
        ] {
            let error = RegistryUrl::parse(text).expect_err("a credential");
            assert!(error.to_string().contains("REGISTRY_PASSWORD"), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        let error = RegistryUrl::parse("joe:hunter2").expect_err("no port");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}
