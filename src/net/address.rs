//! Addresses of settings: how much of one may be shown, and what in one is a mistake.
//!
//! An address may hold a credential as user and password, in its query, in its fragment, and as a long
//! random part of its path. Somebody who forgets to percent-encode a password moves parts of it to where
//! a parser sees a port, a path or a host.

use std::net::Ipv6Addr;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Url;

/// What is shown in place of an address of which nothing may be.
pub const HIDDEN: &str = "[secret]";

/// The schemes that settings have. What stands before another one's colon may be anything.
const SCHEMES: [&str; 5] = ["amqp", "amqps", "http", "https", "tcp"];

/// An address without user, password, query and fragment, and without parts of a path that may be keys.
/// Nothing of it where it cannot be told what in it may be a credential.
pub fn without_credentials(text: &str) -> String {
    let text = text.trim();
    if text.starts_with("unix://") {
        // A path on this machine.
        return text.to_owned();
    }
    public_part(text).unwrap_or_else(|| HIDDEN.to_owned())
}

/// A part of a path or a query, as it stands in an address.
pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
        .to_string()
        // What no part of an address takes for anything else stays readable.
        .replace("%2D", "-")
        .replace("%2E", ".")
        .replace("%5F", "_")
        .replace("%7E", "~")
}

/// What is wrong with an address that [`is_misread`].
pub const MISREAD: &str = "a `/`, `?`, `#`, `%` or `@` in a user, a password or a path must be percent-encoded \
                           (`%2F`, `%3F`, `%23`, `%25`, `%40`), and a host is a name or a number";

/// Whether a password was most likely not percent-encoded, so that its beginning is taken for the host:
/// an `@` stands behind the host, or the host is none. A whole encoded login makes such a host, too.
pub fn is_misread(text: &str) -> bool {
    let Some((_, rest)) = text.split_once("://") else { return text.contains('@') };
    let end = rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or(authority);
    behind.contains('@') || !is_host(host)
}

/// Whether this is a name or a number, with or without a port.
fn is_host(text: &str) -> bool {
    if let Some((address, _)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let host = text.split_once(':').map_or(text, |(host, _)| host);
    host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

fn public_part(text: &str) -> Option<String> {
    let scheme = text.split_once("://")?.0.to_ascii_lowercase();
    if !SCHEMES.contains(&scheme.as_str()) || is_misread(text) {
        return None;
    }
    // An encoded `@` in a path may belong to a login of which only a part is encoded.
    let good = |url: &Url| url.has_host() && !url.path().contains("%40");
    let mut url = Url::parse(text).ok().filter(good)?;
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    url.set_query(None);
    url.set_fragment(None);
    let is_http = scheme.starts_with("http");
    if is_http && url.path().split('/').any(may_be_a_key) {
        let path: Vec<_> =
            url.path().split('/').map(|part| if may_be_a_key(part) { "-" } else { part }).collect();
        let path = path.join("/");
        url.set_path(&path);
    }
    Some(url.to_string())
}

/// Whether a part of a path may be the key of a receiver that has no other: long, and with digits in it.
fn may_be_a_key(part: &str) -> bool {
    part.len() >= 12 && part.bytes().any(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passwords that addresses are often written with as they are.
    const PASSWORDS: [&str; 14] = [
        "hunter2",
        "7/hunter2",
        "7#hunter2",
        "7?hunter2",
        "7\\hunter2",
        "/hunter2",
        "#hunter2",
        "hunter2@x",
        "a@7/hunter2",
        "a@b:7/hunter2",
        "hunter2%",
        "[hunter2]",
        "hun:hunter2",
        "7/x@hunter2/y",
    ];

    #[test]
    fn nothing_of_a_password_is_shown_wherever_a_parser_sees_it() {
        for scheme in ["amqp://", "amqps://", "http://", "https://", "tcp://", "http:", "", "x://"]
        {
            for password in PASSWORDS {
                for rest in
                    ["@host/%2f", "@host", "@host:5672/v?a=b", "@[::1]:80/", "@", "%40host/"]
                {
                    for text in [
                        format!("{scheme}joe:{password}{rest}"),
                        format!("{scheme}{password}{rest}"),
                        format!("{scheme}:{password}{rest}"),
                        format!("{scheme}joe%3A{password}{rest}"),
                        format!(" {scheme}host/path?token={password}"),
                        format!("{scheme}host/?a=b#{password}{rest}"),
                    ] {
                        let shown = without_credentials(&text);
                        assert!(!shown.contains("hunter2"), "{text} is shown as {shown}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_credential_is_shown() {
        for (text, shown) in [
            ("amqp://broker:5672/%2f", "amqp://broker:5672/%2f"),
            ("amqp://me:hunter2@broker/%2f?auth=hunter2", "amqp://broker/%2f"),
            ("amqp://me:hun@ter2@broker/team", "amqp://broker/team"),
            ("amqp://me:hun%40ter2@broker/team", "amqp://broker/team"),
            ("amqp://broker/team%40prod", HIDDEN),
            ("tcp://10.0.0.7:2375", "tcp://10.0.0.7:2375"),
            ("unix:///run/user@1000/docker.sock", "unix:///run/user@1000/docker.sock"),
            ("https://[2001:db8::1]:4318/v1", "https://[2001:db8::1]:4318/v1"),
            (
                "https://manager.example/hooks/image-builder",
                "https://manager.example/hooks/image-builder",
            ),
            ("https://hooks.example/T0/B0/XXXX1234XXXX", "https://hooks.example/T0/B0/-"),
            ("hunter2", HIDDEN),
            ("me:hunter2@broker", HIDDEN),
        ] {
            assert_eq!(without_credentials(text), shown, "{text}");
        }
    }

    #[test]
    fn an_at_sign_behind_the_host_is_a_mistake() {
        for text in ["amqp://joe:7/abc@host/%2f", "amqp://u:p@h/x@y", "http://u:7\\x@h", "u:p@h"]
            .into_iter()
            .chain(["amqp://joe%3Apassword%40host/"])
        {
            assert!(is_misread(text), "{text}");
        }
        for text in ["amqp://joe:a@b@host/%2f", "amqp://host/team%40prod", "amqp://host", "host"] {
            assert!(!is_misread(text), "{text}");
        }
    }
}
