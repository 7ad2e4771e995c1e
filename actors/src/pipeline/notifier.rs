//! Notifier: consumes the outcome queue and tells the managers. A manager that does not answer costs
//! nothing but time: the outcome waits on a ladder of its own, and nothing is ever rebuilt for it.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::Instrument;

use crate::delivery::dedup::passed_on;
use crate::delivery::lease::{Lease, Phase};
use crate::delivery::outcome_ledger;
use crate::delivery::outcome_ledger::{OutcomeCopy, Verdict};
use crate::delivery::settlement::{Settlement, decides, settle};
use crate::model::build_log;
use crate::model::fault::Reason;
use crate::model::notification::{Notification, NotificationHead};
use crate::pipeline::consumer::Delivery;
use crate::pipeline::pool::{Pool, Slot};
use crate::ports::{Message, Notifier as NotifierPort, NotifyError, Route};
use crate::scheduling::retry_policy::RetryPolicy;
use crate::telemetry::delivery_span;
use crate::telemetry::trace::TRACEPARENT;

/// How often a notification has been tried.
const TRIES: &str = "x-image-builder-tries";
/// The moment before which the receiver asked not to be tried again.
const NOT_BEFORE: &str = "x-image-builder-not-before";

/// What the notifier works with. Cheap to clone.
#[derive(Clone)]
pub struct Notifier {
    pub pool: Pool,
    pub settlement: Settlement,
    pub managers: Arc<dyn NotifierPort>,
    /// The outcome queue's ladder.
    pub policy: RetryPolicy,
    pub timeout: Duration,
    /// Whether outcomes are published to the result queue as well.
    pub results: bool,
}

impl Actor for Notifier {
    type Context = Context<Self>;
}

impl Handler<Delivery> for Notifier {
    type Result = ();

    fn handle(&mut self, delivery: Delivery, _: &mut Self::Context) {
        fail::fail_point!("notifier::handle");
        delivery.lease.set_phase(Phase::Waiting);
        self.pool.run(tracing::Span::current(), self.clone().work(delivery));
    }
}

impl Notifier {
    async fn work(self, delivery: Delivery) {
        let Ok(slot) = self.pool.slot().await else {
            // The worker stops: the outcome stays where it is.
            return delivery.lease.release();
        };
        fail::fail_point!("notifier::work");
        let lease = delivery.lease;
        if !decides(&lease) {
            return;
        }
        let Some(id) = lease.message().message_id.clone() else {
            // Nobody can claim what has no name, and nobody else made it.
            return self.leave_unread(lease, None, slot).await;
        };
        let build_id = delivery_span::build_of(&id);
        lease.observe(self.settlement.observer.notification(build_id, lease.message()));
        let span = build_log::span(build_id, "notifier", tries(lease.message()) + 1);
        let copy = OutcomeCopy::of(build_id, lease.message());
        self.take_up(lease, copy, slot).instrument(span).await;
    }

    async fn take_up(&self, lease: Lease, copy: OutcomeCopy, slot: Slot) {
        let claim = self.settlement.told.claim(&copy).await;
        // It may have taken a while.
        if !decides(&lease) {
            return;
        }
        let claimed = match claim {
            Ok(Verdict::Tell) => Some(&copy),
            Ok(Verdict::PassOn) => {
                slot.done();
                // That is noted already.
                let (route, later) = self.postponed(lease.message(), None);
                return self.pass_on(lease, None, route, later).await;
            }
            Ok(Verdict::Drop) => {
                slot.done();
                return self.settlement.repeated(lease).await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot claim a build: it is told, be it once more");
                None
            }
        };
        let Some(notification) = notification(&lease) else {
            return self.leave_unread(lease, claimed, slot).await;
        };
        if let Some(wait) = remaining(lease.message()) {
            slot.done();
            let route = Route::OutcomeAfter(self.policy.delay(1, Some(wait)));
            let later = passed_on(lease.message());
            return self.pass_on(lease, claimed, route, later).await;
        }
        self.tell(lease, &notification, claimed, slot).await;
    }

    async fn leave_unread(&self, lease: Lease, claimed: Option<&OutcomeCopy>, slot: Slot) {
        let message = lease.message();
        tracing::error!(
            message_id = message.message_id,
            bytes = message.body.len(),
            "an outcome that this version cannot read waits for one that can"
        );
        slot.failed(Reason::Unsupported);
        let (route, later) = (self.last_rung(), passed_on(message));
        self.pass_on(lease, claimed, route, later).await;
    }

    /// Publishes the next copy of an outcome, to be told later.
    async fn pass_on(
        &self,
        lease: Lease,
        claimed: Option<&OutcomeCopy>,
        route: Route,
        mut later: Message,
    ) {
        outcome_ledger::stand_in(&mut later);
        if let Some(copy) = claimed
            && let Err(error) = self.settlement.told.passes_on(copy).await
        {
            tracing::debug!(%error, "cannot note that an outcome is passed on");
        }
        settle(lease, self.settlement.broker.publish(route, later).await).await;
    }

    async fn tell(
        &self,
        lease: Lease,
        notification: &Notification,
        claimed: Option<&OutcomeCopy>,
        slot: Slot,
    ) {
        if self.results && tries(lease.message()) == 0 {
            let result = result(lease.message());
            if let Err(error) = self.settlement.broker.publish(Route::Result, result).await {
                slot.failed(Reason::Timeout);
                return settle(lease, Err(error)).await;
            }
        }
        let notify = tokio::time::timeout(self.timeout, self.managers.notify(notification));
        let told = tokio::select! {
            biased;
            told = notify => told,
            // Whether the manager has heard it is not known: it hears it again, under the same id.
            () = slot.handing_back() => return lease.release(),
        };
        let told = told.unwrap_or_else(|_| {
            let seconds = self.timeout.as_secs_f32();
            let message = format!("no answer within {seconds:.0} s");
            Err(NotifyError { message, retry_after: None })
        });
        match told {
            Ok(()) => {
                fail::fail_point!("notifier::told");
                self.settlement.observer.metrics.notification(notification.kind, true);
                tracing::info!(webhook_id = notification.id, "notified");
                if let Some(copy) = claimed
                    && let Err(error) = self.settlement.told.told(copy).await
                {
                    tracing::warn!(%error, "cannot note that the receiver has it");
                }
                slot.done();
                settle(lease, Ok(())).await;
            }
            Err(error) => {
                self.settlement.observer.metrics.notification(notification.kind, false);
                let (route, later) = self.postponed(lease.message(), error.retry_after);
                tracing::warn!(webhook_id = notification.id, %error, route = ?route, "cannot notify: trying again later");
                lease.span(|span| span.broke_off(&error.message));
                slot.failed(Reason::Timeout);
                self.pass_on(lease, claimed, route, later).await;
            }
        }
    }

    fn last_rung(&self) -> Route {
        Route::OutcomeAfter(self.policy.delay(u32::MAX, None))
    }

    fn postponed(&self, message: &Message, retry_after: Option<Duration>) -> (Route, Message) {
        let tries = tries(message) + 1;
        let mut later = passed_on(message);
        later.headers.insert(TRIES.to_owned(), tries.to_string());
        later.headers.remove(NOT_BEFORE);
        if let Some(delay) = retry_after
            && let Ok(until) = (OffsetDateTime::now_utc() + delay).format(&Rfc3339)
        {
            later.headers.insert(NOT_BEFORE.to_owned(), until);
        }
        (Route::OutcomeAfter(self.policy.delay(tries, retry_after)), later)
    }
}

/// How often the notification has been tried.
fn tries(message: &Message) -> u32 {
    message.headers.get(TRIES).and_then(|tries| tries.parse().ok()).unwrap_or(0)
}

/// What the result queue gets of an outcome.
fn result(message: &Message) -> Message {
    let mut result = message.clone();
    result.headers.retain(|name, _| name == TRACEPARENT);
    result
}

fn notification(lease: &Lease) -> Option<Notification> {
    let message = lease.message();
    let envelope: NotificationHead<'_> = serde_json::from_slice(&message.body).ok()?;
    Some(Notification {
        id: message.message_id.clone()?,
        kind: envelope.kind,
        body: message.body.clone(),
        traceparent: lease.traceparent(),
    })
}

/// How long the receiver still wants to be left alone.
fn remaining(message: &Message) -> Option<Duration> {
    let until = OffsetDateTime::parse(message.headers.get(NOT_BEFORE)?, &Rfc3339).ok()?;
    (until - OffsetDateTime::now_utc()).try_into().ok().filter(|left: &Duration| !left.is_zero())
}
