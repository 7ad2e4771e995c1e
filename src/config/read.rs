//! From texts to typed values, collecting one line for each that is bad.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::scheduling::retry_policy::RetryPolicy;
use lapin::uri::AMQPUri;
use reqwest::Url;
use serde::Deserialize;

use super::{BrokerConfig, ConfigErrors, DiskConfig, RegistryConfig, StageConfig};
use crate::broker::rabbitmq::topology::{LONGEST_TTL, Topology, TopologySettings};
use crate::engine::docker::{DockerEngine, DockerSettings};
use crate::notify::SigningKeys;
use crate::registry::{RegistryCredentials, RegistryUrl};

/// The variables as texts: envy stops at the first value of a wrong type, so none has one.
macro_rules! variables {
    ($($name:ident,)*) => {
        #[derive(Clone, Default, Deserialize)]
        #[serde(default)]
        pub(super) struct Raw {
            $(pub $name: Option<String>,)*
        }

        /// The names of all variables that [`Raw`] takes, in lower case.
        pub(super) const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

variables! {
    rabbitmq_uri,
    rabbitmq_uri_file,
    amqp_url,
    amqp_url_file,
    rabbitmq_consumer_timeout,
    build_queue,
    fail_queue,
    outcome_queue,
    dead_queue,
    dead_queue_ttl,
    result_queue,
    cancel_exchange,
    data_dir,
    docker_host,
    docker_cert_path,
    docker_tls_verify,
    builder_network,
    disk_low_watermark,
    disk_high_watermark,
    cache_budget,
    registry_url,
    registry_username,
    registry_password,
    registry_password_file,
    container_manager_url,
    connector_manager_url,
    notifier_secret,
    notifier_secret_file,
    github_url,
    github_api_url,
    listener_concurrency,
    connector_concurrency,
    builder_concurrency,
    pusher_concurrency,
    notifier_concurrency,
    retry_concurrency,
    builder_per_user,
    listener_supersede,
    connector_timeout,
    builder_timeout,
    pusher_timeout,
    notifier_timeout,
    job_timeout,
    retry_max_attempts,
    retry_initial_delay,
    retry_multiplier,
    retry_max_delay,
    supervisor_max_restarts,
    supervisor_window,
    supervisor_health_interval,
    drain_timeout,
    http_addr,
    otel_exporter_otlp_endpoint,
    otel_exporter_otlp_headers,
    otel_exporter_otlp_headers_file,
    otel_exporter_otlp_protocol,
    otel_service_name,
    otel_resource_attributes,
}

impl Raw {
    /// An empty value counts as unset, as compose files and `.env` files mean it.
    fn from_vars(vars: HashMap<String, String>) -> Result<Self, ConfigErrors> {
        let vars = vars
            .into_iter()
            .filter(|(name, _)| is_ours(name))
            .map(|(name, value)| (name, value.trim().to_owned()))
            .filter(|(_, value)| !value.is_empty());
        envy::from_iter(vars).map_err(|error| ConfigErrors(vec![error.to_string()]))
    }
}

/// Whether the worker reads a variable of this name.
pub(super) fn is_ours(name: &str) -> bool {
    let known = |lower: &str| NAMES.contains(&lower) || matches!(lower, "rust_log" | "log_format");
    known(&name.to_ascii_lowercase()) && !name.contains(|c: char| c.is_ascii_lowercase())
}

/// A secret, and the variable that brought it.
pub(super) struct Found {
    pub variable: String,
    pub secret: Secret,
}

pub(super) struct Reader {
    pub raw: Raw,
    pub errors: Vec<String>,
    /// The directory of the user that the worker runs as.
    home: Option<PathBuf>,
}

impl Reader {
    pub(super) fn new(vars: HashMap<String, String>) -> Result<Self, ConfigErrors> {
        let home = vars.get("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        Ok(Self { raw: Raw::from_vars(vars)?, errors: Vec::new(), home })
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

    /// A duration that a queue can keep a message for: RabbitMQ counts whole milliseconds.
    pub(super) fn ttl(&mut self, name: &str, value: Option<String>, default: &str) -> Duration {
        let ttl = self.duration(name, value, default);
        if ttl > LONGEST_TTL {
            self.bad(name, format!("must be at most {} days", LONGEST_TTL.as_secs() / 86_400));
        } else if !ttl.subsec_nanos().is_multiple_of(1_000_000) {
            self.bad(name, "must be whole milliseconds");
        } else {
            return ttl;
        }
        Duration::from_secs(1)
    }

    /// The same; none of it, however written, is `None`.
    pub(super) fn ttl_or_none(
        &mut self,
        name: &str,
        value: Option<String>,
        default: &str,
    ) -> Option<Duration> {
        let text = value.as_deref().unwrap_or(default);
        let none = text == "0" || humantime::parse_duration(text).is_ok_and(|ttl| ttl.is_zero());
        (!none).then(|| self.ttl(name, value, default))
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
            return None;
        }
        Some(value)
    }

    /// A secret's value, or the content of the file that `<NAME>_FILE` names. Never quoted.
    pub(super) fn secret(
        &mut self,
        name: &str,
        value: Option<String>,
        file: Option<String>,
    ) -> Option<Found> {
        match (value, file) {
            (Some(_), Some(_)) => {
                self.bad(name, format!("set either {name} or {name}_FILE, not both"));
                None
            }
            (Some(value), None) => {
                Some(Found { variable: name.to_owned(), secret: Secret::new(value) })
            }
            (None, Some(file)) => {
                let variable = format!("{name}_FILE");
                match std::fs::read_to_string(&file) {
                    Ok(text) if !text.trim().is_empty() => {
                        return Some(Found { variable, secret: Secret::new(text.trim()) });
                    }
                    Ok(_) => self.bad(&variable, format!("{file} is empty")),
                    Err(error) => self.bad(&variable, format!("cannot read {file}: {error}")),
                }
                None
            }
            (None, None) => None,
        }
    }

    pub(super) fn broker(&mut self, retry: &RetryPolicy) -> Option<BrokerConfig> {
        let raw = self.raw.clone();
        let uri = self.broker_uri();
        let dead_ttl = self.ttl_or_none("DEAD_QUEUE_TTL", raw.dead_queue_ttl, "7d");
        let topology = self.topology(retry)?;
        Some(BrokerConfig { uri: uri.secret, uri_variable: uri.variable, topology, dead_ttl })
    }

    fn broker_uri(&mut self) -> Found {
        let raw = self.raw.clone();
        let before = self.errors.len();
        let uri = self.secret("RABBITMQ_URI", raw.rabbitmq_uri, raw.rabbitmq_uri_file);
        let alias = self.secret("AMQP_URL", raw.amqp_url, raw.amqp_url_file);
        let Some(uri) = uri.or(alias) else {
            let variable = "RABBITMQ_URI".to_owned();
            if self.errors.len() == before {
                self.bad(
                    &variable,
                    "is required, for example amqp://guest:guest@localhost:5672/%2f",
                );
            }
            return Found { variable, secret: Secret::new("") };
        };
        let parsed = uri.secret.expose().parse::<AMQPUri>();
        if !parsed.is_ok_and(|parsed| !parsed.authority.host.is_empty()) {
            self.bad(&uri.variable, "must look like amqp://user:password@host:5672/%2f");
        }
        uri
    }

    fn topology(&mut self, retry: &RetryPolicy) -> Option<Topology> {
        let raw = self.raw.clone();
        let rungs = retry.rungs();
        let settings = TopologySettings {
            build_queue: self.queue("BUILD_QUEUE", raw.build_queue, "image-builder.build"),
            fail_queue: self.queue("FAIL_QUEUE", raw.fail_queue, "image-builder.fail"),
            outcome_queue: self.queue("OUTCOME_QUEUE", raw.outcome_queue, "image-builder.outcome"),
            dead_queue: self.queue("DEAD_QUEUE", raw.dead_queue, "image-builder.dead"),
            result_queue: raw.result_queue.map(|name| self.queue("RESULT_QUEUE", Some(name), "")),
            cancel_exchange: self.queue(
                "CANCEL_EXCHANGE",
                raw.cancel_exchange,
                "image-builder.cancel",
            ),
            build_rungs: rungs.clone(),
            outcome_rungs: rungs,
        };
        Topology::new(settings)
            .map_err(|errors| self.errors.extend(errors.iter().map(ToString::to_string)))
            .ok()
    }

    pub(super) fn registry(&mut self) -> Option<RegistryConfig> {
        let raw = self.raw.clone();
        let url = raw.registry_url.as_deref().unwrap_or("localhost:5000");
        let url = RegistryUrl::parse(url).map_err(|error| self.bad("REGISTRY_URL", error));
        let has_password = raw.registry_password.is_some() || raw.registry_password_file.is_some();
        let password =
            self.secret("REGISTRY_PASSWORD", raw.registry_password, raw.registry_password_file);
        match (&raw.registry_username, has_password) {
            (Some(_), false) => {
                self.bad("REGISTRY_PASSWORD", "is missing beside REGISTRY_USERNAME");
            }
            (None, true) => self.bad("REGISTRY_USERNAME", "is missing beside REGISTRY_PASSWORD"),
            _ => {}
        }
        let credentials = raw.registry_username.zip(password).map(|(username, password)| {
            RegistryCredentials { username, password: password.secret }
        });
        Some(RegistryConfig { url: url.ok()?, credentials })
    }

    pub(super) fn signing_keys(&mut self) -> Option<SigningKeys> {
        let raw = self.raw.clone();
        let found =
            self.secret("NOTIFIER_SECRET", raw.notifier_secret, raw.notifier_secret_file)?;
        SigningKeys::parse(&found.secret).map_err(|error| self.bad(&found.variable, error)).ok()
    }

    /// The engine, as Docker's own client would find it.
    pub(super) fn engine(&mut self, limits: Limits) -> DockerSettings {
        let raw = self.raw.clone();
        let defaults = DockerSettings::default();
        let docker = self.home.as_deref().map(|home| home.join(".docker"));
        let settings = DockerSettings {
            host: raw.docker_host.unwrap_or(defaults.host),
            cert_path: raw.docker_cert_path.map(PathBuf::from).or(docker),
            tls_verify: raw.docker_tls_verify.is_some(),
            network: self.one_of("BUILDER_NETWORK", raw.builder_network, &["host", "none"]),
            // The registry's credential opens every tenant's images, and a build could pull any of them.
            registry_auth: None,
            limits,
        };
        if let Err(error) = DockerEngine::connect(settings.clone()) {
            // It names the variable itself.
            self.errors.push(error.to_string());
        }
        settings
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
            Ok(url) if url.query().is_some() || url.fragment().is_some() => {
                self.bad(name, "must hold no query (`?`) and no fragment (`#`)");
            }
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {}
            _ => self.bad(name, "must be an http:// or https:// URL"),
        }
        text.trim_end_matches('/').to_owned()
    }

    pub(super) fn address(&mut self, name: &str, value: Option<String>, default: &str) -> String {
        let address = value.unwrap_or_else(|| default.to_owned());
        let parts = address.rsplit_once(':');
        if !parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
            self.bad(
                name,
                format!(
                    "`{address}` must be an address and a port, like 127.0.0.1:8080 or 0.0.0.0:8080"
                ),
            );
        }
        address
    }
}
