//! `/metrics`: the worker's figures in the Prometheus text format.

use std::sync::Arc;

use image_builder_actors::model::fault::Reason;
use image_builder_actors::telemetry::health::{ActorState, Death, Health};
use image_builder_actors::telemetry::metrics::{Metrics, options};
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Registry, TextEncoder};

use crate::api::readiness::Readiness;

/// The page's `Content-Type`.
pub(super) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The whole page.
///
/// # Errors
///
/// Two families have one name, or a name or label is none that Prometheus takes.
pub(super) fn page(
    metrics: &Metrics,
    actors: &[Arc<Health>],
    readiness: &Readiness,
) -> prometheus::Result<String> {
    let mut families = metrics.gather();
    families.extend(of_actors(actors)?);
    families.extend(of_worker(readiness)?);
    families.sort_by(|a, b| a.name().cmp(b.name()));
    TextEncoder::new().encode_to_string(&families)
}

/// The actors count for themselves; each scrape takes their figures as they stand.
fn of_actors(actors: &[Arc<Health>]) -> prometheus::Result<Vec<MetricFamily>> {
    let gauges = |name, help| IntGaugeVec::new(options(name, help), &["actor"]);
    let counters = |name, help| IntCounterVec::new(options(name, help), &["actor"]);
    let running = gauges("actor_running", "Whether the actor is alive and at work.")?;
    let in_hand = gauges("actor_in_hand", "Jobs that the actor works on.")?;
    let waiting = gauges("actor_waiting", "Jobs that wait for a slot of the actor.")?;
    let done = counters("actor_done_total", "Jobs that the actor did well.")?;
    let restarts = counters("actor_restarts_total", "Deaths of the actor.")?;
    let deaths = IntCounterVec::new(
        options("actor_deaths_total", "Deaths of the actor, by cause."),
        &["actor", "cause"],
    )?;
    let oldest = GaugeVec::new(
        options("actor_oldest_seconds", "Age of the actor's oldest job in hand."),
        &["actor"],
    )?;
    let failed = IntCounterVec::new(
        options("actor_failed_total", "Jobs that failed with the actor, by reason."),
        &["actor", "reason"],
    )?;
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
    gather(vec![
        Box::new(running),
        Box::new(in_hand),
        Box::new(waiting),
        Box::new(done),
        Box::new(restarts),
        Box::new(deaths),
        Box::new(oldest),
        Box::new(failed),
    ])
}

fn of_worker(readiness: &Readiness) -> prometheus::Result<Vec<MetricFamily>> {
    let ready = IntGaugeVec::new(
        options("need_ready", "Whether something that the worker needs is there."),
        &["need"],
    )?;
    for (need, is_ready) in readiness.states() {
        ready.with_label_values(&[need]).set(is_ready.into());
    }
    let info = IntGaugeVec::new(
        options("build_info", "Always 1; the labels tell what runs."),
        &["version"],
    )?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    gather(vec![Box::new(ready), Box::new(info)])
}

fn gather(families: Vec<Box<dyn Collector>>) -> prometheus::Result<Vec<MetricFamily>> {
    let registry = Registry::new();
    for family in families {
        registry.register(family)?;
    }
    Ok(registry.gather())
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
