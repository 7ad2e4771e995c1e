//! Credentials for registries that base images are pulled from.

use crate::model::secret::Secret;

/// The name of Docker Hub among registries.
pub const DOCKER_HUB: &str = "docker.io";

/// A user and a password at a registry. Without a user, the password is a token that others are bought with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryLogin {
    pub username: String,
    pub password: Secret,
}

/// The one name of a registry, `host` or `host:port` in lower case, in whichever way it is written: as an
/// address, and for Docker Hub as any of its hosts.
pub fn registry_host(text: &str) -> String {
    let text = text.trim().to_ascii_lowercase();
    let host = text.trim_start_matches("https://").trim_start_matches("http://");
    match host.split('/').next().unwrap_or(host) {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        host => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_has_one_name_however_it_is_written() {
        for (text, host) in [
            ("registry.example:5000", "registry.example:5000"),
            ("https://Registry.Example/v2/", "registry.example"),
            ("docker.io", DOCKER_HUB),
            ("https://index.docker.io/v1/", DOCKER_HUB),
            ("registry-1.docker.io", DOCKER_HUB),
            ("evil.example/docker.io", "evil.example"),
            ("docker.io.evil.example", "docker.io.evil.example"),
        ] {
            assert_eq!(registry_host(text), host, "{text}");
        }
    }
}
