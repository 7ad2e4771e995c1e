//! The figures that an operator watches, counted where things happen. Every family, with every value
//! that its labels can have, is there from the start, so that a rate never misses its first event.
//!
//! The figures of the single actors are counted in [`crate::telemetry::health`].

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use time::OffsetDateTime;

use crate::model::fault::{Kind, Reason, StageName};
use crate::model::notification::{Culprit, NotificationType};
use crate::model::request::ForgeName;
use crate::model::scope::Scope;
use crate::scheduling::capacity::Capacity;
use crate::scheduling::holds::Holds;

/// Upper bounds of the histograms' buckets, in seconds: from a reused image to the longest build.
const SECONDS: [f64; 16] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0,
    3600.0,
];

/// Publishers set a request's time, and some set nonsense: no age is taken to be above this.
const LONGEST_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What stands for the reason of what has none.
const NO_REASON: &str = "none";

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildResult {
    /// An image was built and pushed.
    Ready,
    /// An image of the same inputs was in the registry.
    Reused,
    Failed(Reason),
    Cancelled(Reason),
}

impl BuildResult {
    /// The end of what is given up for this reason.
    pub fn given_up(reason: Reason) -> Self {
        match reason.kind() {
            Kind::Withdrawn => BuildResult::Cancelled(reason),
            _ => BuildResult::Failed(reason),
        }
    }

    /// The name of the result, as it stands in metrics and traces.
    pub fn result(self) -> &'static str {
        match self {
            BuildResult::Ready => "ready",
            BuildResult::Reused => "reused",
            BuildResult::Failed(_) => "failed",
            BuildResult::Cancelled(_) => "cancelled",
        }
    }

    /// The labels `result`, `fault` and `reason`.
    fn labels(self) -> [&'static str; 3] {
        match self {
            BuildResult::Ready | BuildResult::Reused => [self.result(), NO_REASON, NO_REASON],
            BuildResult::Failed(reason) => {
                let culprit = Culprit::of(reason).map_or(NO_REASON, Culprit::as_str);
                [self.result(), culprit, reason.as_str()]
            }
            BuildResult::Cancelled(reason) => [self.result(), NO_REASON, reason.as_str()],
        }
    }

    /// Every end that there is. Capacity faults are no end: they only make a build wait.
    fn all() -> impl Iterator<Item = Self> {
        let reasons = Reason::ALL.iter().filter(|reason| reason.kind() != Kind::Capacity);
        [BuildResult::Ready, BuildResult::Reused]
            .into_iter()
            .chain(reasons.map(|r| BuildResult::given_up(*r)))
    }
}

/// What came of a hook that a forge sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookOutcome {
    /// It asked for builds.
    Built,
    /// Nothing is built of it, or all of it was taken before.
    Nothing,
    /// It is not signed with the secret, or there is none.
    Unsigned,
    /// It is none that can be read.
    Refused,
    /// It could not be taken at the moment.
    Failed,
}

impl HookOutcome {
    const ALL: [HookOutcome; 5] = [
        HookOutcome::Built,
        HookOutcome::Nothing,
        HookOutcome::Unsigned,
        HookOutcome::Refused,
        HookOutcome::Failed,
    ];

    fn as_str(self) -> &'static str {
        match self {
            HookOutcome::Built => "built",
            HookOutcome::Nothing => "nothing",
            HookOutcome::Unsigned => "unsigned",
            HookOutcome::Refused => "refused",
            HookOutcome::Failed => "failed",
        }
    }
}

/// The worker's figures. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Figures>);

#[derive(Debug)]
struct Figures {
    registry: Registry,
    builds: IntCounterVec,
    build_seconds: HistogramVec,
    stage_seconds: HistogramVec,
    queue_wait: Histogram,
    retries: IntCounterVec,
    crashes: IntCounterVec,
    notifications: IntCounterVec,
    hooks: IntCounterVec,
    capacity_paused: IntGaugeVec,
    capacity_holds: IntGaugeVec,
    cache_bytes: IntGauge,
    host_builds: IntGaugeVec,
    requests_waiting: IntGauge,
    /// Asked at each scrape; empty until the pipeline works.
    capacity: OnceLock<(Capacity, Holds)>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let counters = |name, help, labels: &[&str]| {
            register(&registry, IntCounterVec::new(options(name, help), labels))
        };
        let histograms = |name, help, labels: &[&str]| {
            register(&registry, HistogramVec::new(histogram(name, help), labels))
        };
        let figures = Figures {
            builds: counters(
                "builds_total",
                "Builds that ended, by result, whose fault it was, and why.",
                &["result", "fault", "reason"],
            ),
            build_seconds: histograms(
                "build_duration_seconds",
                "From the request to its outcome, all attempts and waits included.",
                &["result"],
            ),
            stage_seconds: histograms(
                "stage_duration_seconds",
                "How long a stage had a job in hand, waiting for its turn not included.",
                &["stage"],
            ),
            queue_wait: register(
                &registry,
                Histogram::with_opts(histogram(
                    "queue_wait_seconds",
                    "From a request's timestamp to its first delivery to a worker.",
                )),
            ),
            retries: counters(
                "retries_total",
                "Failed attempts that were put on the retry ladder, by the kind and reason of their fault.",
                &["kind", "reason"],
            ),
            crashes: counters(
                "crashes_total",
                "Attempts that were cut short by a panic or by the death of the worker.",
                &["stage"],
            ),
            notifications: counters(
                "notifications_total",
                "Attempts to notify a manager, by type and result.",
                &["type", "result"],
            ),
            hooks: counters(
                "hooks_total",
                "Hooks that forges sent, by forge and what came of them.",
                &["forge", "outcome"],
            ),
            capacity_paused: register(
                &registry,
                IntGaugeVec::new(
                    options("capacity_paused", "Whether the listener pauses, by what is lacking."),
                    &["reason"],
                ),
            ),
            capacity_holds: register(
                &registry,
                IntGaugeVec::new(
                    options(
                        "capacity_holds",
                        "What only some builds wait for, by whom it concerns; nothing pauses for it.",
                    ),
                    &["scope"],
                ),
            ),
            requests_waiting: register(
                &registry,
                IntGauge::with_opts(options(
                    "requests_waiting",
                    "Requests that no worker has in hand. All workers report the same number.",
                )),
            ),
            cache_bytes: register(
                &registry,
                IntGauge::with_opts(options(
                    "cache_bytes",
                    "What images made here and the build cache hold on disk.",
                )),
            ),
            host_builds: register(
                &registry,
                IntGaugeVec::new(
                    options("host_builds", "Builds of this worker on a host of BUILDKIT_HOST."),
                    &["host"],
                ),
            ),
            capacity: OnceLock::new(),
            registry,
        };
        figures.begin_all();
        Self(Arc::new(figures))
    }

    /// A build ended, and its outcome is safe.
    pub fn ended(&self, ended: BuildResult, requested_at: OffsetDateTime) {
        self.0.builds.with_label_values(&ended.labels()).inc();
        self.0.build_seconds.with_label_values(&[ended.result()]).observe(age(requested_at));
    }

    /// A request was delivered to a worker for the first time.
    pub fn delivered(&self, requested_at: OffsetDateTime) {
        self.0.queue_wait.observe(age(requested_at));
    }

    /// A stage has done with a job, well or not.
    pub fn stage(&self, stage: StageName, took: Duration) {
        self.0.stage_seconds.with_label_values(&[stage.as_str()]).observe(took.as_secs_f64());
    }

    /// A failed attempt was put on the retry ladder.
    pub fn retry(&self, reason: Reason) {
        let labels = [reason.kind().as_str(), reason.as_str()];
        self.0.retries.with_label_values(&labels).inc();
    }

    /// An attempt was cut short by a crash.
    pub fn crash(&self, stage: StageName) {
        self.0.crashes.with_label_values(&[stage.as_str()]).inc();
    }

    /// A manager was notified, or could not be.
    pub fn notification(&self, kind: NotificationType, delivered: bool) {
        let result = if delivered { DELIVERED } else { FAILED };
        self.0.notifications.with_label_values(&[kind.as_str(), result]).inc();
    }

    /// A forge sent a hook.
    pub fn hook(&self, forge: ForgeName, outcome: HookOutcome) {
        self.0.hooks.with_label_values(&[forge.as_str(), outcome.as_str()]).inc();
    }

    /// How many requests wait on the broker now.
    pub fn requests_waiting(&self, requests: u64) {
        self.0.requests_waiting.set(i64::try_from(requests).unwrap_or(i64::MAX));
    }

    /// How much the caches hold on disk now.
    pub fn cache_bytes(&self, bytes: u64) {
        self.0.cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// How many builds a build host has in hand now.
    pub fn host_builds(&self, host: &str, builds: usize) {
        let builds = i64::try_from(builds).unwrap_or(i64::MAX);
        self.0.host_builds.with_label_values(&[host]).set(builds);
    }

    /// Shows this capacity, and these holds, from now on.
    pub fn show(&self, capacity: &Capacity, holds: &Holds) {
        let _ = self.0.capacity.set((capacity.clone(), holds.clone()));
    }

    /// All families as they stand now, in the order of their names.
    pub fn gather(&self) -> Vec<MetricFamily> {
        let (lacking, holds) = match self.0.capacity.get() {
            Some((capacity, holds)) => (capacity.lacking(), holds.counts()),
            None => (None, Scope::HELD.map(|kind| (kind, 0))),
        };
        let lacking = lacking.map(|lack| lack.reason);
        for reason in of_kind(Kind::Capacity) {
            let gauge = self.0.capacity_paused.with_label_values(&[reason.as_str()]);
            gauge.set((lacking == Some(reason)).into());
        }
        for (kind, count) in holds {
            let gauge = self.0.capacity_holds.with_label_values(&[kind]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.0.registry.gather()
    }
}

const DELIVERED: &str = "delivered";
const FAILED: &str = "failed";

impl Figures {
    /// A series is there once its labels were asked for.
    fn begin_all(&self) {
        for ended in BuildResult::all() {
            self.builds.with_label_values(&ended.labels());
            self.build_seconds.with_label_values(&[ended.result()]);
        }
        for stage in StageName::ALL {
            self.stage_seconds.with_label_values(&[stage.as_str()]);
            self.crashes.with_label_values(&[stage.as_str()]);
        }
        for kind in [Kind::Build, Kind::Service, Kind::Capacity, Kind::Crash] {
            for reason in of_kind(kind) {
                self.retries.with_label_values(&[kind.as_str(), reason.as_str()]);
            }
        }
        for kind in NotificationType::ALL {
            for result in [DELIVERED, FAILED] {
                self.notifications.with_label_values(&[kind.as_str(), result]);
            }
        }
        for forge in ForgeName::WITH_HOOKS {
            for outcome in HookOutcome::ALL {
                self.hooks.with_label_values(&[forge.as_str(), outcome.as_str()]);
            }
        }
    }
}

fn of_kind(kind: Kind) -> impl Iterator<Item = Reason> {
    Reason::ALL.iter().copied().filter(move |reason| reason.kind() == kind)
}

/// Seconds since then, and never an age that nothing has.
fn age(since: OffsetDateTime) -> f64 {
    let age = (OffsetDateTime::now_utc() - since).as_seconds_f64();
    age.clamp(0.0, LONGEST_AGE.as_secs_f64())
}

/// The options of the family `image_builder_<name>`.
pub fn options(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("image_builder")
}

fn histogram(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts { common_opts: options(name, help), buckets: SECONDS.to_vec() }
}

/// Adds a family that was just made.
///
/// # Panics
///
/// Its name, labels or buckets are none that Prometheus takes, or its name is taken. They are constants:
/// what is good once is good always.
pub fn register<F>(registry: &Registry, family: prometheus::Result<F>) -> F
where
    F: Collector + Clone + 'static,
{
    let family = family.expect("a family's name, labels and buckets are good");
    registry.register(Box::new(family.clone())).expect("a family is registered once");
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_a_request_with_a_nonsensical_time_is_bounded() {
        assert_eq!(age(OffsetDateTime::UNIX_EPOCH), LONGEST_AGE.as_secs_f64());
        assert_eq!(age(OffsetDateTime::now_utc() + time::Duration::days(1000)), 0.0);
    }

    #[test]
    fn every_series_that_can_be_counted_is_there_from_the_start() {
        let metrics = Metrics::new();
        let series = |metrics: &Metrics| {
            let families = metrics.gather();
            families.iter().map(|family| family.get_metric().len()).sum::<usize>()
        };
        let before = series(&metrics);
        let now = OffsetDateTime::now_utc();
        for ended in BuildResult::all() {
            metrics.ended(ended, now);
        }
        metrics.delivered(now);
        for stage in StageName::ALL {
            metrics.stage(stage, Duration::ZERO);
            metrics.crash(stage);
        }
        for reason in Reason::ALL {
            if !matches!(reason.kind(), Kind::User | Kind::Refused | Kind::Withdrawn) {
                metrics.retry(*reason);
            }
        }
        for kind in NotificationType::ALL {
            metrics.notification(kind, true);
            metrics.notification(kind, false);
        }
        for forge in ForgeName::WITH_HOOKS {
            HookOutcome::ALL.into_iter().for_each(|outcome| metrics.hook(forge, outcome));
        }
        assert_eq!(series(&metrics), before);
    }

    #[test]
    fn a_lack_of_room_is_shown_for_as_long_as_it_stands() {
        let (metrics, capacity, holds) = (Metrics::new(), Capacity::default(), Holds::default());
        metrics.show(&capacity, &holds);
        let sum = |name: &str| {
            let families = metrics.gather();
            let family = families.iter().find(|family| family.name() == name);
            let samples = family.expect("the family is there").get_metric();
            samples.iter().map(|sample| sample.get_gauge().get_value()).sum::<f64>()
        };
        let (paused, held) = ("image_builder_capacity_paused", "image_builder_capacity_holds");
        assert_eq!((sum(paused), sum(held)), (0.0, 0.0));
        let scope = Scope::Host("forge.test".to_owned());
        holds.hold(&scope, Reason::ForgeDown, None, |_| Duration::from_secs(60));
        assert_eq!((sum(paused), sum(held)), (0.0, 1.0));
        capacity.lacks(Reason::DiskLow, None);
        assert_eq!((sum(paused), sum(held)), (1.0, 1.0));
    }
}
