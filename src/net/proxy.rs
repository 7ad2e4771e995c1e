//! Proxies between this network and others: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, as curl and Go read
//! them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use image_builder_actors::model::secret::Secret;
use percent_encoding::percent_decode_str;
use reqwest::{ClientBuilder, NoProxy, Url};

use super::address::{MISREAD, is_misread};

/// The variables by which programs know their proxies, in upper case; most are known in lower case, too.
pub const VARIABLES: [&str; 5] =
    ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// What is on this machine is never reached by a proxy, as in Go's programs.
const HERE: &str = "localhost,127.0.0.0/8,::1";

/// Whether a name is that of a variable for a proxy, in either case.
pub fn is_variable(name: &str) -> bool {
    VARIABLES.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// The address of a proxy. It may hold a user and a password, so it is never shown.
#[derive(Clone)]
pub struct ProxyUrl {
    /// As it was given, with its scheme.
    text: Secret,
    url: Url,
}

impl FromStr for ProxyUrl {
    type Err = &'static str;

    /// Reads `http://user:password@host:port`. Without a scheme it is `http`, as for curl.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "must look like http://proxy.example:3128";
        let text = match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        if is_misread(&text) {
            return Err(MISREAD);
        }
        let url = Url::parse(&text).map_err(|_| FORM)?;
        match url.scheme() {
            "http" | "https" if url.has_host() => Ok(Self { text: Secret::new(text), url }),
            "http" | "https" => Err(FORM),
            _ => Err("must be a proxy that speaks HTTP, like http://proxy.example:3128"),
        }
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Which proxies there are, and what is reached without them.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// For `http://` addresses.
    pub http: Option<ProxyUrl>,
    /// For `https://` addresses.
    pub https: Option<ProxyUrl>,
    /// `NO_PROXY`: names, with all below them, addresses and networks, separated by commas.
    pub exempt: Option<String>,
}

impl Proxies {
    /// The variables by which other programs learn of them, in both cases.
    pub fn variables(&self) -> BTreeMap<String, String> {
        let address =
            |proxy: &Option<ProxyUrl>| proxy.as_ref().map(|proxy| proxy.text.expose().to_owned());
        let pairs = [
            ("HTTP_PROXY", address(&self.http)),
            ("HTTPS_PROXY", address(&self.https)),
            ("NO_PROXY", self.exempt.clone()),
        ];
        let set = pairs.into_iter().filter_map(|(name, value)| Some((name, value?)));
        set.flat_map(|(name, value)| {
            [(name.to_owned(), value.clone()), (name.to_ascii_lowercase(), value)]
        })
        .collect()
    }

    /// The same, with what is on this machine exempted.
    pub fn with_this_machine_exempt(mut self) -> Self {
        if !self.is_empty() {
            let exempt = self.exempt.iter().map(String::as_str).chain([HERE]);
            self.exempt = Some(exempt.collect::<Vec<_>>().join(","));
        }
        self
    }

    /// Their passwords, as they are and as they stand in an address.
    pub fn secrets(&self) -> Vec<Secret> {
        let passwords = self.all().filter_map(|proxy| proxy.url.password());
        let both = passwords.flat_map(|password| {
            let plain = percent_decode_str(password).decode_utf8_lossy().into_owned();
            [Secret::new(password), Secret::new(plain)]
        });
        both.collect()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    /// A client that uses them, in place of those that it would find by itself.
    pub(crate) fn apply(&self, client: ClientBuilder) -> reqwest::Result<ClientBuilder> {
        let exempt = || self.exempt.as_deref().and_then(NoProxy::from_string);
        let mut client = client.no_proxy();
        if let Some(proxy) = &self.http {
            client = client.proxy(reqwest::Proxy::http(proxy.text.expose())?.no_proxy(exempt()));
        }
        if let Some(proxy) = &self.https {
            client = client.proxy(reqwest::Proxy::https(proxy.text.expose())?.no_proxy(exempt()));
        }
        Ok(client)
    }

    /// The hosts that they are on.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &str> {
        self.all().filter_map(|proxy| proxy.url.host_str())
    }

    /// Their hosts and ports.
    pub(crate) fn places(&self) -> impl Iterator<Item = (String, u16)> {
        let port = |url: &Url| url.port_or_known_default().unwrap_or(80);
        self.all().filter_map(move |proxy| {
            let host = proxy.url.host_str()?.trim_start_matches('[').trim_end_matches(']');
            Some((host.to_owned(), port(&proxy.url)))
        })
    }

    fn all(&self) -> impl Iterator<Item = &ProxyUrl> {
        self.http.iter().chain(&self.https)
    }
}

#[cfg(test)]
mod tests {
    use image_builder_actors::model::secret::Redactor;

    use super::*;

    fn proxies(exempt: Option<&str>) -> Proxies {
        Proxies {
            http: Some("http://joe:hunt%40er2@proxy:3128".parse().expect("a good address")),
            https: None,
            exempt: exempt.map(str::to_owned),
        }
    }

    #[test]
    fn programs_are_told_in_both_cases_and_of_what_is_set_alone() {
        let told = proxies(Some(".corp")).variables();
        let told: Vec<_> = told.iter().map(|(name, value)| (&**name, &**value)).collect();
        let address = "http://joe:hunt%40er2@proxy:3128";
        assert_eq!(
            told,
            [
                ("HTTP_PROXY", address),
                ("NO_PROXY", ".corp"),
                ("http_proxy", address),
                ("no_proxy", ".corp")
            ]
        );
    }

    #[test]
    fn this_machine_is_reached_without_a_proxy() {
        let exempt = |proxies: Proxies| proxies.with_this_machine_exempt().exempt;
        assert_eq!(exempt(proxies(None)).as_deref(), Some(HERE));
        assert_eq!(exempt(proxies(Some(".corp"))), Some(format!(".corp,{HERE}")));
        assert_eq!(exempt(Proxies::default()), None);
    }

    #[test]
    fn no_password_of_a_proxy_is_shown() {
        let proxies = proxies(None);
        let shown = Redactor::new(proxies.secrets()).redact("a hunt%40er2 b hunt@er2 c");
        assert_eq!(shown, "a [secret] b [secret] c");
        assert!(!format!("{proxies:?}").contains("er2"));
    }

    #[test]
    fn a_proxy_speaks_http_and_has_a_host() {
        for good in ["http://proxy:3128", "https://joe:hunter2@proxy.example", "proxy:3128"] {
            assert!(good.parse::<ProxyUrl>().is_ok(), "{good}");
        }
        for bad in ["socks5://proxy:1080", "http://", "", "http://joe:7/hunter2@proxy", "://x"] {
            let what = bad.parse::<ProxyUrl>().expect_err(bad);
            assert!(!what.contains("hunter2"), "{what}");
        }
    }
}
