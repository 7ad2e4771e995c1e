//! From texts to typed values, collecting one line for each that is bad.

use std::collections::HashMap;
use std::time::Duration;

use image_builder_actors::secret::Secret;
use reqwest::Url;
use serde::Deserialize;

use super::{ConfigErrors, DiskConfig, StageConfig};
use crate::topology::LONGEST_TTL;

/// The variables as texts: envy stops at the first value of a wrong type, so none has one.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Raw {
    pub rabbitmq_uri: Option<String>,
    pub rabbitmq_uri_file: Option<String>,
    pub amqp_url: Option<String>,
    pub amqp_url_file: Option<String>,
    pub rabbitmq_consumer_timeout: Option<String>,
    pub build_queue: Option<String>,
    pub fail_queue: Option<String>,
    pub outcome_queue: Option<String>,
    pub dead_queue: Option<String>,
    pub dead_queue_ttl: Option<String>,
    pub result_queue: Option<String>,
    pub cancel_exchange: Option<String>,
    pub data_dir: Option<String>,
    pub docker_host: Option<String>,
    pub docker_cert_path: Option<String>,
    pub docker_tls_verify: Option<String>,
    pub builder_network: Option<String>,
    pub disk_low_watermark: Option<String>,
    pub disk_high_watermark: Option<String>,
    pub cache_budget: Option<String>,
    pub registry_url: Option<String>,
    pub registry_username: Option<String>,
    pub registry_password: Option<String>,
    pub registry_password_file: Option<String>,
    pub container_manager_url: Option<String>,
    pub connector_manager_url: Option<String>,
    pub notifier_secret: Option<String>,
    pub notifier_secret_file: Option<String>,
    pub github_url: Option<String>,
    pub github_api_url: Option<String>,
    pub listener_concurrency: Option<String>,
    pub connector_concurrency: Option<String>,
    pub builder_concurrency: Option<String>,
    pub pusher_concurrency: Option<String>,
    pub notifier_concurrency: Option<String>,
    pub retry_concurrency: Option<String>,
    pub builder_per_user: Option<String>,
    pub listener_supersede: Option<String>,
    pub connector_timeout: Option<String>,
    pub builder_timeout: Option<String>,
    pub pusher_timeout: Option<String>,
    pub notifier_timeout: Option<String>,
    pub job_timeout: Option<String>,
    pub retry_max_attempts: Option<String>,
    pub retry_initial_delay: Option<String>,
    pub retry_multiplier: Option<String>,
    pub retry_max_delay: Option<String>,
    pub supervisor_max_restarts: Option<String>,
    pub supervisor_window: Option<String>,
    pub supervisor_health_interval: Option<String>,
    pub drain_timeout: Option<String>,
    pub http_addr: Option<String>,
    pub otel_exporter_otlp_endpoint: Option<String>,
    pub otel_exporter_otlp_headers: Option<String>,
    pub otel_exporter_otlp_headers_file: Option<String>,
    pub otel_exporter_otlp_protocol: Option<String>,
    pub otel_service_name: Option<String>,
    pub otel_resource_attributes: Option<String>,
}

impl Raw {
    /// An empty value counts as unset, as compose files and `.env` files mean it.
    pub(super) fn from_vars(vars: HashMap<String, String>) -> Result<Self, ConfigErrors> {
        let vars = vars
            .into_iter()
            .map(|(name, value)| (name, value.trim().to_owned()))
            .filter(|(_, value)| !value.is_empty());
        envy::from_iter(vars).map_err(|error| ConfigErrors(vec![error.to_string()]))
    }
}

pub(super) struct Reader {
    pub raw: Raw,
    pub errors: Vec<String>,
}

impl Reader {
    pub(super) fn new(raw: Raw) -> Self {
        Self { raw, errors: Vec::new() }
    }

    pub(super) fn bad(&mut self, name: &str, what: impl std::fmt::Display) {
        self.errors.push(format!("{name}: {what}"));
    }

    pub(super) fn duration(
        &mut self,
        name: &str,
        value: Option<String>,
        default: &str,
    ) -> Duration {
        let text = value.as_deref().unwrap_or(default);
        match humantime::parse_duration(text) {
            Ok(duration) if !duration.is_zero() => duration,
            Ok(_) => {
                self.bad(name, "must be more than zero");
                Duration::from_secs(1)
            }
            Err(_) => {
                self.bad(
                    name,
                    format!("`{text}` is no duration; write it like 500ms, 30s, 5m, 2h or 7d"),
                );
                Duration::from_secs(1)
            }
        }
    }

    /// A duration that a queue can keep a message for.
    pub(super) fn ttl(&mut self, name: &str, value: Option<String>, default: &str) -> Duration {
        let ttl = self.duration(name, value, default);
        if ttl > LONGEST_TTL {
            self.bad(name, format!("must be at most {} days", LONGEST_TTL.as_secs() / 86_400));
        }
        ttl
    }

    pub(super) fn count(&mut self, name: &str, value: Option<String>, default: usize) -> usize {
        let Some(text) = value else { return default };
        match text.parse() {
            Ok(count @ 1..=10_000) => count,
            _ => {
                self.bad(name, format!("`{text}` is no whole number from 1 to 10000"));
                default
            }
        }
    }

    pub(super) fn flag(&mut self, name: &str, value: Option<String>) -> bool {
        match value.as_deref() {
            None | Some("false" | "0" | "no") => false,
            Some("true" | "1" | "yes") => true,
            Some(text) => {
                self.bad(name, format!("`{text}` is neither true nor false"));
                false
            }
        }
    }

    pub(super) fn disk(&mut self) -> DiskConfig {
        let raw = self.raw.clone();
        let errors = self.errors.len();
        let low = self.parsed("DISK_LOW_WATERMARK", raw.disk_low_watermark, "5%,2GB");
        let high = self.parsed("DISK_HIGH_WATERMARK", raw.disk_high_watermark, "10%,4GB");
        let budget = self.parsed("CACHE_BUDGET", raw.cache_budget, "20GB");
        let disk = DiskConfig { low, high, budget };
        if self.errors.len() == errors && !disk.low.may_be_below(&disk.high) {
            self.bad(
                "DISK_LOW_WATERMARK",
                format!("`{}` must be below DISK_HIGH_WATERMARK, `{}`", disk.low, disk.high),
            );
        }
        disk
    }

    /// A value of a type that can tell what is wrong with a text. The default is a good one.
    fn parsed<T>(&mut self, name: &str, value: Option<String>, default: &str) -> T
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        let parsed = value.as_deref().map(|text| (text, text.parse()));
        match parsed {
            Some((_, Ok(value))) => return value,
            Some((text, Err(error))) => self.bad(name, format!("`{text}` {error}")),
            None => {}
        }
        match default.parse() {
            Ok(value) => value,
            Err(error) => unreachable!("{name}'s default {error}"),
        }
    }

    pub(super) fn multiplier(&mut self, name: &str, value: Option<String>, default: f64) -> f64 {
        let Some(text) = value else { return default };
        match text.parse() {
            Ok(multiplier) if (1.0..=100.0).contains(&multiplier) => multiplier,
            _ => {
                self.bad(name, format!("`{text}` is no number from 1 to 100"));
                default
            }
        }
    }

    pub(super) fn stage(
        &mut self,
        name: &str,
        concurrency: Option<String>,
        default_concurrency: usize,
        timeout: Option<String>,
        default_timeout: &str,
    ) -> StageConfig {
        StageConfig {
            concurrency: self.count(
                &format!("{name}_CONCURRENCY"),
                concurrency,
                default_concurrency,
            ),
            timeout: self.duration(&format!("{name}_TIMEOUT"), timeout, default_timeout),
        }
    }

    /// Queue names are prefixes of the ladders' names, and AMQP has 255 bytes for those.
    pub(super) fn queue(&mut self, name: &str, value: Option<String>, default: &str) -> String {
        let queue = value.unwrap_or_else(|| default.to_owned());
        if queue.len() > 200 || queue.starts_with("amq.") || queue.chars().any(char::is_control) {
            self.bad(
                name,
                "must have at most 200 bytes, no control characters, and not start with `amq.`",
            );
        }
        queue
    }

    pub(super) fn one_of(
        &mut self,
        name: &str,
        value: Option<String>,
        allowed: &[&str],
    ) -> Option<String> {
        let value = value?;
        if !allowed.contains(&value.as_str()) {
            self.bad(name, format!("`{value}` is not one of {}", allowed.join(", ")));
        }
        Some(value)
    }

    /// A secret's value, or the content of the file that `<NAME>_FILE` names. Never quoted.
    pub(super) fn secret(
        &mut self,
        name: &str,
        value: Option<String>,
        file: Option<String>,
    ) -> Option<Secret> {
        match (value, file) {
            (Some(_), Some(_)) => {
                self.bad(name, format!("set either {name} or {name}_FILE, not both"));
                None
            }
            (Some(value), None) => Some(Secret::new(value)),
            (None, Some(file)) => match std::fs::read_to_string(&file) {
                Ok(text) if !text.trim().is_empty() => Some(Secret::new(text.trim())),
                Ok(_) => {
                    self.bad(&format!("{name}_FILE"), format!("{file} is empty"));
                    None
                }
                Err(error) => {
                    self.bad(&format!("{name}_FILE"), format!("cannot read {file}: {error}"));
                    None
                }
            },
            (None, None) => None,
        }
    }

    pub(super) fn broker_uri(&mut self) -> Secret {
        let raw = self.raw.clone();
        let before = self.errors.len();
        let uri = self.secret("RABBITMQ_URI", raw.rabbitmq_uri, raw.rabbitmq_uri_file);
        let alias = self.secret("AMQP_URL", raw.amqp_url, raw.amqp_url_file);
        let Some(uri) = uri.or(alias) else {
            if self.errors.len() == before {
                self.bad(
                    "RABBITMQ_URI",
                    "is required, for example amqp://guest:guest@localhost:5672/%2f",
                );
            }
            return Secret::new("");
        };
        if !["amqp://", "amqps://"].iter().any(|scheme| uri.expose().starts_with(scheme))
            || Url::parse(uri.expose()).is_err()
        {
            self.bad("RABBITMQ_URI", "must look like amqp://user:password@host:5672/%2f");
        }
        uri
    }

    pub(super) fn docker_host(&mut self) -> Option<String> {
        let host = self.raw.docker_host.clone()?;
        let known = ["unix://", "tcp://", "http://", "https://"];
        if !known.iter().any(|scheme| host.starts_with(scheme)) {
            self.bad(
                "DOCKER_HOST",
                format!("`{host}` must start with unix://, tcp://, http:// or https://"),
            );
        }
        Some(host)
    }

    pub(super) fn optional_url(&mut self, name: &str, value: Option<String>) -> Option<Url> {
        // An address may hold a credential: it is not repeated.
        match Url::parse(&value?) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Some(url),
            _ => {
                self.bad(name, "must be an http:// or https:// URL");
                None
            }
        }
    }

    pub(super) fn forge_url(&mut self, name: &str, value: Option<String>, default: &str) -> String {
        let text = value.unwrap_or_else(|| default.to_owned());
        match Url::parse(&text) {
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                self.bad(name, "must hold no credential; each request brings its own token");
            }
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {}
            _ => self.bad(name, "must be an http:// or https:// URL"),
        }
        text.trim_end_matches('/').to_owned()
    }

    pub(super) fn address(&mut self, name: &str, value: Option<String>, default: &str) -> String {
        let address = value.unwrap_or_else(|| default.to_owned());
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() {
            self.bad(
                name,
                format!("`{address}` must be an address and a port, like 127.0.0.1:8080"),
            );
        }
        address
    }
}
