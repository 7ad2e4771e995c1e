//! Retry: consumes the fail queue and decides what becomes of each failed try: back to the build
//! queue by the delay ladder, or given up.

use std::sync::Arc;

use actix::{Actor, Context, Handler};
use tracing::Instrument;
use uuid::Uuid;

use crate::delivery::artifacts::Images;
use crate::delivery::envelope;
use crate::delivery::job::Timings;
use crate::delivery::lease::{Lease, Phase};
use crate::delivery::settlement::{Settlement, crashed, decides, settle};
use crate::model::build_log;
use crate::model::fault::{Fault, Kind, Reason, StageName};
use crate::model::history::{Attempt, History};
use crate::model::notification::Subject;
use crate::parse;
use crate::parse::Rules;
use crate::pipeline::consumer::Delivery;
use crate::pipeline::pool::Pool;
use crate::ports::Route;
use crate::scheduling::retry_policy::{Decision, RetryPolicy};

/// What the retry actor works with. Cheap to clone.
#[derive(Clone)]
pub struct Retry {
    pub pool: Pool,
    pub settlement: Settlement,
    pub rules: Arc<Rules>,
    pub policy: RetryPolicy,
    /// Asked before a build is given up: no build is ever told both.
    pub images: Images,
}

impl Actor for Retry {
    type Context = Context<Self>;
}

impl Handler<Delivery> for Retry {
    type Result = ();

    fn handle(&mut self, delivery: Delivery, _: &mut Self::Context) {
        fail::fail_point!("retry::handle");
        delivery.lease.set_phase(Phase::Waiting);
        self.pool.run(tracing::Span::current(), self.clone().work(delivery));
    }
}

impl Retry {
    async fn work(self, delivery: Delivery) {
        let Ok(slot) = self.pool.slot().await else {
            // The worker stops: the failed try stays where it is.
            return delivery.lease.release();
        };
        fail::fail_point!("retry::work");
        let lease = delivery.lease;
        if !decides(&lease) {
            return;
        }
        let mut history = envelope::of(lease.message());
        // Without any id it never got as far as to be given one.
        let build_id =
            envelope::build_id(lease.message()).unwrap_or_else(|| Uuid::new_v4().to_string());
        lease.observe(self.settlement.observer.retry(&build_id, lease.message()));
        self.settlement.remember(&lease, &build_id, &mut history).await;
        // The number of the try that failed, whether or not it was counted.
        let uncounted = history.attempts.last().is_none_or(|last| !last.counted);
        let span = build_log::span(&build_id, "retry", history.counted() + u32::from(uncounted));
        if self.settlement.is_repeated(&lease, &build_id, &history) {
            self.settlement.repeated(lease).instrument(span).await;
        } else {
            let over_limit = delivery.over_delivery_limit;
            self.decide(lease, &build_id, history, over_limit).instrument(span).await;
        }
        slot.done();
    }

    async fn decide(&self, lease: Lease, build_id: &str, mut history: History, over_limit: bool) {
        // What the broker moved here took its worker down each time it was delivered.
        if over_limit || history.attempts.is_empty() {
            history.record(&crashed(StageName::Listener), true);
        }
        let last = history.attempts.last().cloned();
        if let Some(Attempt { stage, reason: Reason::Crashed, counted: true, .. }) = last {
            self.settlement.observer.metrics.crash(stage);
        }
        let decision = if over_limit { Decision::GiveUp } else { self.policy.decide(&history) };
        match decision {
            Decision::Retry(delay) | Decision::Wait(delay) => {
                tracing::info!(
                    delay_seconds = delay.as_secs_f64(),
                    attempts = history.counted(),
                    "to be tried again"
                );
                history.log.clear();
                let message = envelope::with(lease.message(), &history);
                let published =
                    self.settlement.broker.publish(Route::BuildAfter(delay), message).await;
                if let (Ok(()), Some(last)) = (&published, last) {
                    self.settlement.observer.metrics.retry(last.reason);
                }
                settle(lease, published).await;
            }
            Decision::GiveUp => self.give_up(lease, build_id, history).await,
        }
    }

    async fn give_up(&self, lease: Lease, build_id: &str, history: History) {
        let message = lease.message();
        let subject = match parse::parse(&message.body, build_id, &self.rules) {
            Ok(request) => match self.images.of_build(&request).await {
                Ok(None) => Subject::of(&request),
                Ok(Some(ready)) => {
                    tracing::info!("the registry has the image after all");
                    let (attempts, timings) = (history.counted(), Timings::default());
                    return self
                        .settlement
                        .image_ready(lease, &request, &history, attempts, timings, ready)
                        .await;
                }
                // Both outcomes are still possible: neither is told until that is known.
                Err(fault) if fault.kind() == Kind::Capacity => {
                    tracing::warn!(%fault, "cannot ask for the image of a failed build");
                    if !decides(&lease) {
                        return;
                    }
                    let delay = self.policy.delay(1, fault.retry_after);
                    let later = envelope::with(message, &history);
                    let published =
                        self.settlement.broker.publish(Route::BuildAfter(delay), later).await;
                    return settle(lease, published).await;
                }
                // A registry that answers with errors may do so for ever, and the tries are used up.
                Err(fault) => {
                    tracing::warn!(%fault, "cannot ask for the image of a failed build");
                    Subject::of(&request)
                }
            },
            Err(rejected) => rejected.subject,
        };
        let fault = history.attempts.last().map_or_else(|| crashed(StageName::Listener), fault);
        self.settlement.give_up(lease, subject, history, fault).await;
    }
}

fn fault(attempt: &Attempt) -> Fault {
    Fault::new(attempt.stage, attempt.reason, &attempt.message)
}
