//! Kinds of values: how each is written, how it is read, and how much of it is shown.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use image_builder_actors::model::secret::Secret;
use lapin::uri::AMQPUri;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tracing_subscriber::EnvFilter;

use crate::broker::rabbitmq::topology::LONGEST_TTL;
use crate::credentials::AppKey;
use crate::engine::docker::Tenancy;
use crate::engine::docker::disk::size::{Size, Watermark};
use crate::engine::settings::{CacheMode, Compression, Provenance};
use crate::net::address::{MISREAD, is_misread};
use crate::net::networks::Networks;
use crate::net::proxy::ProxyUrl;
use crate::net::signature::SigningKeys;
use crate::registry::RegistryUrl;
use crate::telemetry;
use crate::telemetry::LogFormat;

/// A kind of value.
pub(super) struct Kind<T> {
    /// How it is written, in a word or two of Markdown.
    pub form: &'static str,
    /// The value of a text. An error says what is wrong and how it would be right; it follows the
    /// variable's name and a colon, and repeats nothing that may hold a credential.
    pub read: fn(&str) -> Result<T, String>,
    pub shown: Shown,
}

/// How much of a value `image-builder config` shows. A secret's is hidden, unless it is an address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    Whole,
    /// An address, without what may be a credential in it.
    Address,
}

impl<T> Kind<T> {
    const fn new(form: &'static str, read: fn(&str) -> Result<T, String>) -> Self {
        Self { form, read, shown: Shown::Whole }
    }

    const fn address(form: &'static str, read: fn(&str) -> Result<T, String>) -> Self {
        Self { form, read, shown: Shown::Address }
    }
}

pub(super) const TEXT: Kind<String> = Kind::new("text", |text| Ok(text.to_owned()));
pub(super) const SECRET: Kind<Secret> = Kind::new("text", |text| Ok(Secret::new(text)));
/// A secret that nobody guesses from what is made with it.
pub(super) const LONG_SECRET: Kind<Secret> = Kind::new("text", |text| match text.len() {
    ..16 => Err("must have at least 16 characters".into()),
    _ => Ok(Secret::new(text)),
});
/// A token that an HTTP header can hold.
pub(super) const TOKEN: Kind<Secret> =
    Kind::new("text", |text| match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(Secret::new(text)),
        false => {
            Err("must have letters, digits and marks of ASCII alone, and no white space".into())
        }
    });
pub(super) const PATH: Kind<PathBuf> = Kind::new("path", |text| Ok(text.into()));
/// Certificates, one or more, that can be read.
pub(super) const CERTIFICATES: Kind<PathBuf> = Kind::new("path", |text| {
    let found = CertificateDer::pem_file_iter(text)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| format!("cannot read {text}: {error}"))?;
    if found.is_empty() {
        return Err(format!("{text} holds no certificate in PEM (`-----BEGIN CERTIFICATE-----`)"));
    }
    Ok(text.into())
});

/// How long something takes or is waited for, from 50 ms to 31 days: what is less or more is a slip.
pub(super) const DURATION: Kind<Duration> = Kind::new("duration", |text| match duration(text)? {
    short if short < Duration::from_millis(50) => {
        let number = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        Err(format!("`{text}` is hardly any time; perhaps {number}s or {number}m is meant"))
    }
    long if long > Duration::from_secs(31 * 24 * 60 * 60) => {
        Err(format!("`{text}` is longer than 31 days; write it like 30s, 5m or 2h"))
    }
    duration => Ok(duration),
});
pub(super) const TTL: Kind<Duration> = Kind::new("duration", ttl);
/// None of it, however it is written, is `None`.
pub(super) const TTL_OR_NONE: Kind<Option<Duration>> = Kind::new("duration", |text| {
    let none = text == "0" || humantime::parse_duration(text).is_ok_and(|ttl| ttl.is_zero());
    if none { Ok(None) } else { ttl(text).map(Some) }
});
pub(super) const SIZE: Kind<Size> = Kind::new("size", size);
/// `0` is `None`.
pub(super) const SIZE_OR_NONE: Kind<Option<Size>> =
    Kind::new("size", |text| if text == "0" { Ok(None) } else { size(text).map(Some) });
pub(super) const WATERMARK: Kind<Watermark> = Kind::new("share, size or both", watermark);

pub(super) const COUNT: Kind<u16> = Kind::new("number", |text| match text.parse() {
    Ok(count @ 1..=10_000) => Ok(count),
    _ => Err(format!("`{text}` is no whole number from 1 to 10000")),
});
pub(super) const MULTIPLIER: Kind<f64> = Kind::new("number", |text| match text.parse() {
    Ok(multiplier) if (1.0..=100.0).contains(&multiplier) => Ok(multiplier),
    _ => Err(format!("`{text}` is no number from 1 to 100")),
});
pub(super) const FLAG: Kind<bool> = Kind::new("`true` or `false`", |text| match text {
    "false" | "0" | "no" => Ok(false),
    "true" | "1" | "yes" => Ok(true),
    _ => Err(format!("`{text}` is neither true nor false")),
});

/// A queue or an exchange. The names of the ladders' queues begin with a queue's, and AMQP has 255
/// bytes for those.
pub(super) const QUEUE: Kind<String> = Kind::new("name", |name| {
    if name.len() > 200 || name.starts_with("amq.") || name.chars().any(char::is_control) {
        return Err(
            "must have at most 200 bytes, no control characters, and not start with `amq.`".into(),
        );
    }
    Ok(name.to_owned())
});
pub(super) const AMQP_URI: Kind<Secret> =
    Kind::address("`amqp://` or `amqps://` URI", |text| match text.parse::<AMQPUri>() {
        Ok(_) if is_misread(text) => Err(MISREAD.into()),
        Ok(uri) if !uri.authority.host.is_empty() => Ok(Secret::new(text)),
        _ => Err("must look like amqp://user:password@host:5672/%2f".into()),
    });
pub(super) const POSTGRES: Kind<Secret> = Kind::address("`postgres://` URL", |text| {
    let is_good = |url: &Url| {
        ["postgres", "postgresql"].contains(&url.scheme())
            && url.host_str().is_some_and(|host| !host.is_empty())
    };
    match text.parse::<Url>() {
        Ok(_) if is_misread(text) => Err(MISREAD.into()),
        Ok(url) if is_good(&url) => Ok(Secret::new(text)),
        _ => Err("must look like postgres://user:password@host:5432/database".into()),
    }
});
pub(super) const APP_KEY: Kind<AppKey> =
    Kind::new("PEM", |text| AppKey::parse(&Secret::new(text)).map_err(|error| error.to_string()));
pub(super) const PROXY: Kind<ProxyUrl> =
    Kind::address("address", |text| text.parse().map_err(str::to_owned));
/// An engine; the adapter says what is wrong with one.
pub(super) const ENGINE: Kind<String> = Kind::address("address", |text| Ok(text.to_owned()));
/// Several of BuildKit's, which have room for no credential.
pub(super) const BUILDKITS: Kind<Vec<String>> = Kind::new("`address,…`", |text| {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let hosts: Vec<_> = parts.map(|part| part.trim_end_matches('/').to_owned()).collect();
    let is_good = |host: &String| {
        let is_known = ["unix:///", "tcp://"].iter().any(|scheme| host.starts_with(scheme));
        is_known && !host.contains(['@', '?', '#', '%'])
    };
    match hosts.is_empty() || !hosts.iter().all(is_good) {
        true => Err("must be addresses, like tcp://buildkit:1234,unix:///run/buildkit.sock".into()),
        false => Ok(hosts),
    }
});
pub(super) const CACHE_MODE: Kind<CacheMode> = Kind::new("`min` or `max`", |text| {
    one_of(text, &["min", "max"]).map(|text| match text.as_str() {
        "max" => CacheMode::AllSteps,
        _ => CacheMode::Image,
    })
});
pub(super) const COMPRESSION: Kind<Compression> = Kind::new("`gzip` or `zstd`", |text| {
    one_of(text, &["gzip", "zstd"]).map(|text| match text.as_str() {
        "zstd" => Compression::Zstd,
        _ => Compression::Gzip,
    })
});
pub(super) const PROVENANCE: Kind<Provenance> = Kind::new("`min` or `max`", |text| {
    one_of(text, &["min", "max"]).map(|text| match text.as_str() {
        "max" => Provenance::All,
        _ => Provenance::Sources,
    })
});
/// It is written into a list separated by commas.
pub(super) const IMAGE: Kind<String> = Kind::new("image reference", |text| {
    let may_be = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/@".contains(&byte);
    match text.bytes().all(may_be) && text.starts_with(|first: char| first.is_ascii_alphanumeric())
    {
        true => Ok(text.to_owned()),
        false => Err(format!("`{text}` is no image reference")),
    }
});
pub(super) const NETWORK: Kind<String> =
    Kind::new("`host` or `none`", |text| one_of(text, &["host", "none"]));
/// At least a hundredth of one.
pub(super) const CPUS: Kind<f64> = Kind::new("number", |text| match text.parse() {
    Ok(count) if (0.01..=10_000.0).contains(&count) => Ok(count),
    _ => Err(format!("`{text}` is no number from 0.01 to 10000")),
});
pub(super) type Cgroups = Vec<String>;
pub(super) const CGROUPS: Kind<Cgroups> = Kind::new("`/path,…`", |text| {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let is_odd = |part: &str| part.is_empty() || part == "." || part == "..";
    parts
        .map(|part| match part.strip_prefix('/') {
            Some(inner) if !inner.split('/').any(is_odd) => Ok(part.to_owned()),
            _ => Err(format!("`{part}` is no path of a control group, like /builds/1")),
        })
        .collect()
});
pub(super) const CIDRS: Kind<Networks> = Kind::new("`10.1.0.0/16,…`", str::parse);
pub(super) const HOSTS: Kind<Vec<String>> = Kind::new("`host,*.domain,…`", |text| {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let host = |part: &str| {
        let name = part.strip_prefix("*.").unwrap_or(part);
        match name.split('.').all(is_label) && name.parse::<IpAddr>().is_err() {
            true => Ok(part.to_ascii_lowercase()),
            false => Err(format!("`{part}` is no host; write it like github.com or *.example.com")),
        }
    };
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(host).collect()
});
pub(super) const TENANCY: Kind<Tenancy> = Kind::new("`strict` or `trusted`", |text| {
    one_of(text, &["strict", "trusted"]).map(|text| match text.as_str() {
        "trusted" => Tenancy::Trusted,
        _ => Tenancy::Strict,
    })
});
pub(super) const PROTOCOL: Kind<String> =
    Kind::new("`http/protobuf`", |text| one_of(text, &["http/protobuf"]));
pub(super) const REGISTRY: Kind<RegistryUrl> = Kind::new("`host:port/path`", |text| {
    RegistryUrl::parse(text).map_err(|error| error.to_string())
});
pub(super) const SIGNING_KEYS: Kind<SigningKeys> = Kind::new("`whsec_…`", |text| {
    SigningKeys::parse(&Secret::new(text)).map_err(|error| error.to_string())
});
pub(super) const ADDRESS: Kind<String> =
    Kind::new("`address:port`", |text| match text.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty()
                && !host.contains(['@', '/', '?'])
                && port.parse::<u16>().is_ok() =>
        {
            Ok(text.to_owned())
        }
        // Not quoted: somebody may have put the address of something else here, with its login.
        _ => Err("must be an address and a port, like 127.0.0.1:8080 or 0.0.0.0:8080".to_owned()),
    });
pub(super) const HTTP_URL: Kind<Url> = Kind::address("URL", http_url);
/// Without a trailing slash.
pub(super) const FORGE_URL: Kind<String> = Kind::address("URL", |text| {
    let url = http_url(text)?;
    if is_misread(text) {
        return Err(MISREAD.into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must hold no credential; each request brings its own token".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must hold no query (`?`) and no fragment (`#`)".into());
    }
    Ok(text.trim_end_matches('/').to_owned())
});

pub(super) type Servers = Vec<String>;
/// As addresses with a scheme, and without a slash at the end.
pub(super) const SERVERS: Kind<Servers> = Kind::new("`host,…`", |text| {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let server = |part: &str| {
        let text = if part.contains("://") { part.to_owned() } else { format!("https://{part}") };
        let bad = || "must be hosts, like git.example.com,code.example.org:8443".to_owned();
        if is_misread(&text) {
            return Err(bad());
        }
        let url = http_url(&text).map_err(|_| bad())?;
        let is_bare = url.path() == "/" && url.username().is_empty() && url.password().is_none();
        if !is_bare || url.query().is_some() || url.fragment().is_some() {
            return Err(bad());
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    };
    parts.map(server).collect()
});

pub(super) const LOG_FILTER: Kind<EnvFilter> = Kind::new("filter", telemetry::filter);
pub(super) const LOG_FORMAT: Kind<LogFormat> = Kind::new("`text` or `json`", |text| match text {
    "text" => Ok(LogFormat::Text),
    "json" => Ok(LogFormat::Json),
    other => Err(format!("`{other}` is not one of text, json")),
});

pub(super) type Pairs = Vec<(String, String)>;
pub(super) const PAIRS: Kind<Pairs> = Kind::new("`name=value,…`", pairs);
pub(super) const HEADERS: Kind<HeaderMap> = Kind::new("`name=value,…`", |text| {
    let header = |(name, value): &(String, String)| {
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
    };
    let headers = pairs(text)?.iter().map(header).collect::<Option<_>>();
    headers.ok_or_else(|| "holds a name or a value that no HTTP header can have".into())
});

fn duration(text: &str) -> Result<Duration, String> {
    // The library's months; who writes them in settings means minutes.
    if text.contains('M') && humantime::parse_duration(text).is_ok() {
        let minutes = text.replace('M', "m");
        return Err(format!("the M in `{text}` is months; perhaps {minutes} is meant, minutes"));
    }
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err("must be more than zero".into()),
        Err(_) => {
            let guesses = [text.to_lowercase(), format!("{text}s")];
            let good = |guess: &&String| humantime::parse_duration(guess).is_ok();
            let perhaps =
                guesses.iter().find(good).map(|guess| format!("; perhaps {guess} is meant"));
            let perhaps = perhaps.unwrap_or_default();
            Err(format!("`{text}` is no duration; write it like 500ms, 30s, 5m, 2h or 7d{perhaps}"))
        }
    }
}

/// A duration that a queue can keep a message for: RabbitMQ counts whole milliseconds.
fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration(text)?;
    if ttl > LONGEST_TTL {
        return Err(format!("must be at most {} days", LONGEST_TTL.as_secs() / 86_400));
    }
    if !ttl.subsec_nanos().is_multiple_of(1_000_000) {
        return Err("must be whole milliseconds".into());
    }
    Ok(ttl)
}

/// Sizes of disks and of what is on them below this are slips, in bytes.
const SMALLEST: u64 = 1_000_000;

fn size(text: &str) -> Result<Size, String> {
    let number = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    match parsed::<Size>(text) {
        Ok(Size(bytes @ 1..SMALLEST)) => {
            Err(format!("`{text}` is {bytes} bytes; perhaps {number}GB is meant"))
        }
        Err(what) if format!("{text}B").parse::<Size>().is_ok() => {
            Err(format!("{what}; perhaps {text}B is meant"))
        }
        size => size,
    }
}

fn watermark(text: &str) -> Result<Watermark, String> {
    for part in text.split(',').map(str::trim) {
        match part.strip_suffix('%').map(|percent| percent.trim().parse::<f64>()) {
            Some(Ok(percent)) if percent > 80.0 && percent < 100.0 => {
                let used = 100.0 - percent;
                return Err(format!(
                    "`{part}` of the disk would have to be free, not used; perhaps {used}% is meant"
                ));
            }
            None if part.parse::<f64>().is_ok_and(|number| number > 0.0 && number < 100.0) => {
                return Err(format!(
                    "`{part}` is {part} bytes; perhaps {part}% or {part}GB is meant"
                ));
            }
            None => drop(size(part).map_err(|what| {
                let form = "a share of a disk is written like 5%";
                format!("{what}; {form}")
            })?),
            Some(_) => {}
        }
    }
    parsed(text)
}

/// A value of a type that can tell what is wrong with a text.
fn parsed<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("`{text}` {error}"))
}

fn one_of(text: &str, allowed: &[&str]) -> Result<String, String> {
    if allowed.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` is not one of {}", allowed.join(", ")))
}

fn http_url(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err("must be an http:// or https:// URL".into()),
    }
}

/// `name=value,name=value`, percent-encoded.
fn pairs(text: &str) -> Result<Pairs, String> {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8().ok()?;
        let name = name.trim();
        (!name.is_empty()).then(|| (name.to_owned(), value.into_owned()))
    };
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let pairs: Option<_> = parts.map(pair).collect();
    pairs.ok_or_else(|| "must look like name=value,name=value".into())
}
