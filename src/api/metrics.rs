//! `/metrics`: the worker's figures in the Prometheus text format.

use std::sync::Arc;

use image_builder_actors::model::fault::Reason;
use image_builder_actors::telemetry::health::{ActorState, Death, Health};
use image_builder_actors::telemetry::metrics::{options, register};
use prometheus::{
    GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};

use super::Observed;
use crate::telemetry::stream::dropped_lines;

/// The page's `Content-Type`.
pub(super) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The whole page.
///
/// # Errors
///
/// A family cannot be written down.
pub(super) fn page(observed: &Observed) -> prometheus::Result<String> {
    let mut families = observed.metrics.gather();
    let registry = Registry::new();
    of_actors(&registry, &observed.actors);
    of_worker(&registry, observed);
    families.extend(registry.gather());
    families.sort_by(|a, b| a.name().cmp(b.name()));
    TextEncoder::new().encode_to_string(&families)
}

/// The actors count for themselves; each scrape takes their figures as they stand.
fn of_actors(registry: &Registry, actors: &[Arc<Health>]) {
    let gauges = |name, help| register(registry, IntGaugeVec::new(options(name, help), &["actor"]));
    let counters = |name, help, labels: &[&str]| {
        register(registry, IntCounterVec::new(options(name, help), labels))
    };
    let running = gauges("actor_running", "Whether the actor is alive and at work.");
    let in_hand = gauges("actor_in_hand", "Jobs that the actor works on.");
    let waiting = gauges("actor_waiting", "Jobs that wait for a slot of the actor.");
    let done = counters("actor_done_total", "Jobs that the actor did well.", &["actor"]);
    let restarts = counters("actor_restarts_total", "Deaths of the actor.", &["actor"]);
    let deaths =
        counters("actor_deaths_total", "Deaths of the actor, by cause.", &["actor", "cause"]);
    let failed = counters(
        "actor_failed_total",
        "Jobs that failed with the actor, by reason.",
        &["actor", "reason"],
    );
    let oldest = options("actor_oldest_seconds", "Age of the actor's oldest job in hand.");
    let oldest = register(registry, GaugeVec::new(oldest, &["actor"]));
    for actor in actors {
        let (name, now) = (actor.name().as_str(), actor.snapshot());
        running.with_label_values(&[name]).set((now.state == ActorState::Running).into());
        in_hand.with_label_values(&[name]).set(number(now.in_hand));
        waiting.with_label_values(&[name]).set(number(now.waiting));
        done.with_label_values(&[name]).inc_by(now.done);
        restarts.with_label_values(&[name]).inc_by(now.restarts());
        oldest.with_label_values(&[name]).set(now.oldest.unwrap_or_default().as_secs_f64());
        for cause in Death::CAUSES {
            let count = now.deaths.get(cause).copied().unwrap_or_default();
            deaths.with_label_values(&[name, cause]).inc_by(count);
        }
        for reason in Reason::ALL {
            let count = now.failed.get(reason.as_str()).copied().unwrap_or_default();
            failed.with_label_values(&[name, reason.as_str()]).inc_by(count);
        }
    }
}

fn of_worker(registry: &Registry, observed: &Observed) {
    let ready = options("need_ready", "Whether something that the worker needs is there.");
    let ready = register(registry, IntGaugeVec::new(ready, &["need"]));
    for (need, is_ready) in observed.readiness.states() {
        ready.with_label_values(&[need]).set(is_ready.into());
    }
    let draining = options("draining", "Whether the worker takes no new work any more.");
    register(registry, IntGauge::with_opts(draining)).set(observed.draining().into());
    let dropped = options("log_lines_dropped_total", "Log lines that nobody read in time.");
    register(registry, IntCounter::with_opts(dropped)).inc_by(dropped_lines());
    let info = options("build_info", "Always 1; the labels say what runs.");
    let info = register(registry, IntGaugeVec::new(info, &["version"]));
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
