//! The broker's address: read from a URI, and printed without the password.

use std::fmt;
use std::time::Duration;

use lapin::uri::AMQPUri;

use super::ConnectError;
use crate::net::address::{HIDDEN, MISREAD, is_misread};

/// Where the broker is and who we are there.
#[derive(Clone)]
pub(super) struct Address {
    uri: AMQPUri,
    /// The user, as far as it may be shown.
    user: Option<String>,
}

impl Address {
    /// Reads a URI; `heartbeat` counts unless the URI names one.
    pub(super) fn parse(uri: &str, heartbeat: Duration) -> Result<Self, ConnectError> {
        // The parser's own words may quote the whole URI, the password included.
        let unreadable = ConnectError::Address { reason: "it is not an amqp:// or amqps:// URI" };
        let mut parsed: AMQPUri = uri.trim().parse().map_err(|_| unreadable)?;
        if let Some(host) = ipv6_host(uri) {
            // The parser knows names only, and takes `localhost` for a bracketed address.
            parsed.authority.host = host.to_owned();
        }
        if parsed.authority.host.is_empty() {
            return Err(ConnectError::Address { reason: "it names no host" });
        }
        if is_misread(uri) {
            return Err(ConnectError::Address { reason: MISREAD });
        }
        let seconds = heartbeat.as_secs().clamp(1, u16::MAX.into()) as u16;
        parsed.query.heartbeat.get_or_insert(seconds);
        Ok(Self { uri: parsed, user: user(uri).map(str::to_owned) })
    }

    pub(super) fn uri(&self) -> &AMQPUri {
        &self.uri
    }

    /// What often is the matter with the virtual host that this address names.
    pub(super) fn vhost_hint(&self) -> &'static str {
        if self.uri.vhost.is_empty() {
            "; the address ends in `/`, which names a virtual host without a name: the default one is \
             written `/%2f`"
        } else {
            ""
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.uri;
        // Perhaps the rest of a login that a parser took for something else.
        if vhost.contains('@') {
            return f.write_str(HIDDEN);
        }
        let vhost = if vhost == "/" { "%2f" } else { vhost };
        write!(f, "{scheme}://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        write!(f, "{}:{}/{vhost}", authority.host, authority.port)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The user, where a password stands beside it: without one it may be a token.
fn user(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let (login, _) = rest.split(['/', '?', '#']).next()?.rsplit_once('@')?;
    let (user, password) = login.split_once(':')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (!user.is_empty() && !password.is_empty() && user.chars().all(plain)).then_some(user)
}

/// The address between brackets, where the URI's host is one.
fn ipv6_host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let host = authority.rsplit('@').next()?;
    host.strip_prefix('[')?.split_once(']').map(|(address, _)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_secs(10);

    fn read(uri: &str) -> Address {
        Address::parse(uri, BEAT).expect("a good URI")
    }

    #[test]
    fn an_address_is_printed_without_its_password() {
        let address = read("amqp://user:hunter2@broker.example:5673/%2f");
        assert_eq!(address.to_string(), "amqp://user@broker.example:5673/%2f");
        assert_eq!(format!("{address:?}"), address.to_string());
        assert_eq!(address.uri().authority.userinfo.password, "hunter2");
        for uri in [
            "amqp://hunter2@h:1/v",
            "amqp://hunter2:@h:1/v",
            "amqp://:hunter2@h:1/v",
            "amqp://h:1/v",
        ] {
            let shown = read(uri).to_string();
            assert!(!shown.contains("hunter2") && shown.ends_with("h:1/v"), "{shown}");
        }
    }

    #[test]
    fn an_address_that_cannot_be_read_is_not_quoted() {
        for uri in
            ["", "broker", "amqp:user:hunter2@h", "http://user:hunter2@h/", "amqp://u:hunter2@h:x"]
        {
            let error = Address::parse(uri, BEAT).expect_err(uri).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_password_that_is_not_percent_encoded_is_named_as_that_and_not_quoted() {
        for uri in [
            "amqp://joe:7/hunter2@host/%2f",
            "amqp://joe:7#hunter2@host/%2f",
            "amqp://joe:7?hunter2@host/%2f",
            "amqp://joe:a@7/hunter2@host/%2f",
            "amqp://joe%3Ahunter2%40host/%2f",
        ] {
            let error = Address::parse(uri, BEAT).expect_err(uri).to_string();
            assert!(error.contains("percent-encoded"), "{uri}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_uris_own_heartbeat_wins() {
        assert_eq!(read("amqp://h").uri().query.heartbeat, Some(10));
        assert_eq!(read("amqp://h/%2f?heartbeat=3").uri().query.heartbeat, Some(3));
    }

    #[test]
    fn numeric_hosts_are_kept() {
        assert_eq!(read("amqp://u:p@[::1]:5673/%2f").uri().authority.host, "::1");
        assert_eq!(read("amqp://u:p@127.0.0.1:5673/%2f").uri().authority.host, "127.0.0.1");
        assert_eq!(read("amqp://h").uri().authority.host, "h");
    }
}
