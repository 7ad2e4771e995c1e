//! Whom a lack of capacity concerns.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::model::digest::add_part;
use crate::model::secret::Secret;

/// Whom a capacity fault concerns: nobody else waits for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everybody: the worker itself lacks something that each build needs.
    #[default]
    Service,
    /// Those who need this host (`host` or `host:port`), which does not answer.
    Host(String),
    /// Those who ask this host without a credential.
    Anonymous(String),
    /// Those who show this credential.
    Token(Fingerprint),
    /// Those who build this repository, by its address for people.
    Repository(String),
}

impl Scope {
    /// The kinds of all scopes but the service, as they stand in metrics.
    pub const HELD: [&'static str; 4] = ["host", "anonymous", "token", "repository"];

    /// The scope's kind, as it stands in metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Scope::Service => "service",
            Scope::Host(_) => Self::HELD[0],
            Scope::Anonymous(_) => Self::HELD[1],
            Scope::Token(_) => Self::HELD[2],
            Scope::Repository(_) => Self::HELD[3],
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Service => f.write_str("every build"),
            Scope::Host(host) => write!(f, "builds that need {host}"),
            Scope::Anonymous(host) => write!(f, "builds that ask {host} without a token"),
            Scope::Token(_) => f.write_str("builds with one user's token"),
            Scope::Repository(url) => write!(f, "builds of {url}"),
        }
    }
}

/// By what a credential is known without being kept. It is never printed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// Of a credential at a host.
    pub fn of(host: &str, token: &Secret) -> Self {
        let mut hash = Sha256::new();
        add_part(&mut hash, host);
        add_part(&mut hash, token.expose());
        let mut short = [0; 16];
        short.copy_from_slice(&hash.finalize()[..16]);
        Self(short)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[fingerprint]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_known_again_at_its_host_alone_and_never_shown() {
        let token = Secret::new("hunter2");
        let fingerprint = Fingerprint::of("forge.test", &token);
        assert_eq!(fingerprint, Fingerprint::of("forge.test", &token));
        assert_ne!(fingerprint, Fingerprint::of("other.test", &token));
        assert_ne!(fingerprint, Fingerprint::of("forge.test", &Secret::new("hunter3")));
        let shown = format!("{:?} {}", Scope::Token(fingerprint), Scope::Token(fingerprint));
        assert_eq!(shown, "Token([fingerprint]) builds with one user's token");
    }
}
