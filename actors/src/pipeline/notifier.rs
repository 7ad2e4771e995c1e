//! Notifier: consumes the outcome queue and notifies the managers. A manager that does not answer costs
//! nothing but time: the outcome waits on a ladder of its own, and nothing is ever rebuilt for it.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler};
use serde::Deserialize;
use time::OffsetDateTime;
use tracing::Instrument;

use crate::delivery::envelope::Envelope;
use crate::delivery::lease::{Lease, Phase};
use crate::delivery::settlement::{Settlement, decides, settle};
use crate::model::build_log;
use crate::model::fault::Reason;
use crate::model::identity::BuildIdentity;
use crate::model::notification::{Notification, NotificationHead, notified_build};
use crate::pipeline::consumer::Delivered;
use crate::pipeline::pool::{Pool, Slot};
use crate::ports::build_store::Change;
use crate::ports::{
    Message, Notifier as NotifierPort, NotifyError, OutcomeCopy, Queue, Recorded, Verdict,
};
use crate::scheduling::retry_policy::RetryPolicy;

/// How long a manager is still listened to once the worker hands back what it has: what it was about
/// to take need not be said again by the next worker.
const LAST_WORD: Duration = Duration::from_secs(5);

/// What the notifier works with. Cheap to clone.
#[derive(Clone)]
pub struct Notifier {
    pub pool: Pool,
    pub settlement: Settlement,
    pub managers: Arc<dyn NotifierPort>,
    /// The outcome queue's delays.
    pub policy: RetryPolicy,
    pub timeout: Duration,
}

impl Actor for Notifier {
    type Context = Context<Self>;
}

impl Handler<Delivered> for Notifier {
    type Result = ();

    fn handle(&mut self, delivery: Delivered, _: &mut Self::Context) {
        fail::fail_point!("notifier::handle");
        delivery.lease.set_phase(Phase::Waiting);
        self.pool.run(tracing::Span::current(), self.clone().work(delivery));
    }
}

impl Notifier {
    async fn work(self, delivery: Delivered) {
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
        // What cannot be read is only passed on.
        let build = notified_build(&lease.message().body);
        let build = build.unwrap_or_else(|| BuildIdentity::new(None, &id));
        lease.observe(self.settlement.observer.notification(&build, lease.message()));
        let tries = lease.envelope().tries.saturating_add(1).try_into().unwrap_or(u32::MAX);
        let span = build_log::span(&build.build_id, "notifier", tries);
        let copy = lease.envelope().outcome_copy(&build, lease.delivery());
        self.take_up(lease, copy, slot).instrument(span).await;
    }

    async fn take_up(&self, lease: Lease, copy: OutcomeCopy, slot: Slot) {
        let claim = self.settlement.ledger.claim(&copy).await;
        // It may have taken a while.
        if !decides(&lease) {
            return;
        }
        let copy = &copy;
        let claimed = match claim {
            Ok(Verdict::Notify) => true,
            Ok(Verdict::PassOn) => {
                slot.done();
                // That is recorded already.
                let (envelope, delay) = self.postponed(&lease, None);
                return self.publish_next(lease, Some(copy), envelope, delay).await;
            }
            Ok(Verdict::Drop) => {
                slot.done();
                return self.settlement.repeated(lease).await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot claim a build: it is notified, be it once more");
                false
            }
        };
        let claim = Claim { copy, claimed };
        let Some(notification) = notification(&lease) else {
            return self.leave_unread(lease, Some(claim), slot).await;
        };
        tracing::Span::current().record("application_id", application(&notification));
        self.ended(&notification).await;
        if let Some(wait) = remaining(lease.envelope()) {
            slot.done();
            let delay = self.policy.delay(1, Some(wait));
            let envelope = lease.envelope().clone();
            return self.pass_on(lease, Some(claim), envelope, delay).await;
        }
        self.notify(lease, &notification, claim, slot).await;
    }

    /// The build has ended so: no other outcome of it is sent. That is stored before anybody is notified, since
    /// nobody says it again once the outcome has left its queue.
    async fn ended(&self, notification: &Notification) {
        let head = serde_json::from_slice::<NotificationHead<'_>>(&notification.body);
        if let (Ok(head), Some(build)) = (head, notified_build(&notification.body)) {
            let change = Change::Ended { kind: head.kind, data: head.data.get().to_owned() };
            self.settlement.observer.history.tell_and_wait(&build, change).await;
        }
    }

    async fn leave_unread(&self, lease: Lease, claim: Option<Claim<'_>>, slot: Slot) {
        let message = lease.message();
        tracing::error!(
            message_id = message.message_id,
            bytes = message.body.len(),
            "an outcome that this version cannot read waits for one that can"
        );
        slot.failed(Reason::Unsupported);
        let envelope = lease.envelope().clone();
        self.pass_on(lease, claim, envelope, self.policy.delay(u32::MAX, None)).await;
    }

    /// Has the next copy of an outcome notified later.
    async fn pass_on(
        &self,
        lease: Lease,
        claim: Option<Claim<'_>>,
        envelope: Envelope,
        delay: Duration,
    ) {
        if let Some(Claim { copy, claimed: true }) = claim
            && let Err(error) = self.settlement.ledger.record(copy, Recorded::PassedOn).await
        {
            tracing::debug!(%error, "cannot record that an outcome is passed on");
        }
        self.publish_next(lease, claim.map(|claim| claim.copy), envelope, delay).await;
    }

    async fn publish_next(
        &self,
        lease: Lease,
        copy: Option<&OutcomeCopy>,
        mut envelope: Envelope,
        delay: Duration,
    ) {
        envelope.outcome = copy.map(OutcomeCopy::next_generation);
        let later = envelope.pass_on(lease.message());
        settle(lease, self.settlement.broker.publish(Queue::Outcome, later, delay).await).await;
    }

    async fn notify(
        &self,
        lease: Lease,
        notification: &Notification,
        claim: Claim<'_>,
        slot: Slot,
    ) {
        if lease.envelope().tries == 0 {
            let result = Message { envelope: None, ..lease.message().clone() };
            let published =
                self.settlement.broker.publish(Queue::Result, result, Duration::ZERO).await;
            if let Err(error) = published {
                slot.failed(Reason::Timeout);
                return settle(lease, Err(error)).await;
            }
        }
        let notify = tokio::time::timeout(self.timeout, self.managers.notify(notification));
        let notified = tokio::select! {
            biased;
            notified = notify => notified,
            // Whether the manager has heard it is not known: it hears it again, under the same id.
            () = last_word(&slot) => return lease.release(),
        };
        let notified = notified.unwrap_or_else(|_| {
            let seconds = self.timeout.as_secs_f32();
            let message = format!("no answer within {seconds:.0} s");
            Err(NotifyError { message, retry_after: None })
        });
        match notified {
            Ok(()) => {
                fail::fail_point!("notifier::told");
                self.settlement.observer.metrics.notification(notification.kind, true);
                if let Claim { copy, claimed: true } = claim
                    && let Err(error) =
                        self.settlement.ledger.record(copy, Recorded::Notified).await
                {
                    tracing::warn!(%error, "cannot record that the receiver has it");
                }
                slot.done();
                settle(lease, Ok(())).await;
            }
            Err(error) => {
                self.settlement.observer.metrics.notification(notification.kind, false);
                let (envelope, delay) = self.postponed(&lease, error.retry_after);
                tracing::warn!(
                    webhook_id = notification.id,
                    %error,
                    delay_seconds = delay.as_secs_f64(),
                    "cannot notify: trying again later"
                );
                lease.span(|span| span.broke_off(&error.message));
                slot.failed(Reason::Timeout);
                self.pass_on(lease, Some(claim), envelope, delay).await;
            }
        }
    }

    /// The envelope of an outcome after one more try, and how long the next one is to wait.
    fn postponed(&self, lease: &Lease, retry_after: Option<Duration>) -> (Envelope, Duration) {
        let tries = lease.envelope().tries.saturating_add(1);
        let not_before = retry_after.map(|delay| OffsetDateTime::now_utc() + delay);
        let delay = self.policy.delay(tries.try_into().unwrap_or(u32::MAX), retry_after);
        (Envelope { tries, not_before, ..lease.envelope().clone() }, delay)
    }
}

/// A copy of an outcome that is in hand.
#[derive(Clone, Copy)]
struct Claim<'a> {
    copy: &'a OutcomeCopy,
    /// Whether the ledger is known to have it.
    claimed: bool,
}

fn notification(lease: &Lease) -> Option<Notification> {
    let message = lease.message();
    let head: NotificationHead<'_> = serde_json::from_slice(&message.body).ok()?;
    Some(Notification {
        id: message.message_id.clone()?,
        kind: head.kind,
        body: message.body.clone(),
        traceparent: lease.traceparent(),
    })
}

fn application(notification: &Notification) -> Option<String> {
    #[derive(Deserialize)]
    struct About {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        #[serde(rename = "applicationID")]
        application_id: Option<String>,
    }
    let About { data } = serde_json::from_slice(&notification.body).ok()?;
    data.application_id
}

/// How long the receiver still wants to be left alone.
fn remaining(envelope: &Envelope) -> Option<Duration> {
    let left = envelope.not_before? - OffsetDateTime::now_utc();
    left.try_into().ok().filter(|left: &Duration| !left.is_zero())
}

/// Waits until the worker has handed back what it has but for a last answer.
async fn last_word(slot: &Slot) {
    slot.handing_back().await;
    tokio::time::sleep(LAST_WORD).await;
}
