//! What a worker does with builds, and what it tells of them.

use std::time::Duration;

use image_builder_actors::model::secret::Secret;
use image_builder_actors::parse::Rules;
use image_builder_actors::pipeline::{PipelineSettings, StageSettings};
use image_builder_actors::scheduling::capacity::FIRST_LOOK;
use image_builder_actors::scheduling::retry_policy::RetryPolicy;
use image_builder_actors::supervision::RestartIntensity;
use reqwest::Url;
use tracing_subscriber::EnvFilter;

use super::reader::Reader;
use super::traces;
use crate::engine::docker::disk::size::Size;
use crate::net::signature::SigningKeys;
use crate::telemetry::LogFormat;
use crate::telemetry::traces::TraceSettings;

/// How the pipeline works, for requests by these rules, whose builds come to see these credentials of the service.
pub(super) fn pipeline(
    read: &mut Reader<'_>,
    cores: usize,
    rules: Rules,
    service: Vec<Secret>,
) -> PipelineSettings {
    let cores = u16::try_from(cores).unwrap_or(u16::MAX);
    let ((job_timeout, consumer_timeout), good) =
        read.good(|read| (read.job_timeout(), read.rabbitmq_consumer_timeout()));
    if good && job_timeout >= consumer_timeout {
        read.bad(
            "JOB_TIMEOUT",
            "must be below RABBITMQ_CONSUMER_TIMEOUT, or the broker takes deliveries away from under running jobs",
        );
    }
    let builders = read.builder_concurrency(cores);
    let connectors = read.connector_concurrency(cores.max(2));
    let pushers = read.pusher_concurrency(cores.max(2));
    let stage =
        |concurrency: u16, timeout| StageSettings { concurrency: concurrency.into(), timeout };
    PipelineSettings {
        rules,
        service,
        // As many as all stages work on at once, and one more for whoever has none in hand.
        most_in_hand: read.listener_concurrency(
            connectors.saturating_add(builders).saturating_add(pushers).saturating_add(1),
        ),
        job_timeout,
        connector: stage(connectors, read.connector_timeout()),
        builder: stage(builders, read.builder_timeout()),
        pusher: stage(pushers, read.pusher_timeout()),
        notifier: stage(read.notifier_concurrency(cores.max(4)), read.notifier_timeout()),
        builds_per_user: read.builder_per_user(builders).into(),
        supersede: read.listener_supersede(),
        retry_concurrency: read.retry_concurrency(cores.max(4)).into(),
        retry: RetryPolicy {
            max_attempts: read.retry_max_attempts().into(),
            initial_delay: read.retry_initial_delay(),
            multiplier: read.retry_multiplier(),
            max_delay: read.retry_max_delay(),
            max_age: read.job_max_age(),
        },
        first_look: FIRST_LOOK,
        intensity: RestartIntensity {
            max_restarts: read.supervisor_max_restarts().into(),
            window: read.supervisor_window(),
            health_interval: read.supervisor_health_interval(),
        },
    }
}

#[derive(Debug, Clone)]
pub struct HistoryConfig {
    /// The PostgreSQL that has it; `None` = a file in the data directory.
    pub database: Option<Secret>,
    /// How long a build is kept after the last that happened to it.
    pub ttl: Duration,
    /// What all builds may hold.
    pub budget: Size,
}

impl HistoryConfig {
    pub(super) fn read(read: &mut Reader<'_>) -> Self {
        Self {
            database: read.database_url(),
            ttl: read.history_ttl(),
            budget: read.history_budget(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct NotifyConfig {
    /// `None` = the notification is only logged. May hold a credential.
    pub container_manager: Option<Url>,
    pub connector_manager: Option<Url>,
    /// `None` = notifications are not signed.
    pub keys: Option<SigningKeys>,
}

impl NotifyConfig {
    pub(super) fn read(read: &mut Reader<'_>) -> Self {
        Self {
            container_manager: read.container_manager_url(),
            connector_manager: read.connector_manager_url(),
            keys: read.notifier_secret(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// `host:port` of the HTTP server.
    pub address: String,
    /// `None` = the API is served to this machine alone.
    pub token: Option<Secret>,
    /// Where the commands ask; `None` = at the address of this machine's own server.
    pub url: Option<Url>,
}

impl ApiConfig {
    pub(super) fn read(read: &mut Reader<'_>) -> Self {
        Self { address: read.http_addr(), token: read.api_token(), url: read.image_builder_url() }
    }
}

#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    pub filter: EnvFilter,
    pub format: LogFormat,
    /// Where traces go; `None` = there are none.
    pub traces: Option<TraceSettings>,
}

impl TelemetryConfig {
    pub(super) fn read(read: &mut Reader<'_>) -> Self {
        Self {
            filter: read.rust_log(),
            format: read.log_format().unwrap_or_else(LogFormat::of_stream),
            traces: traces::read(read),
        }
    }
}
