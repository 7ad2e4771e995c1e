//! Where deliveries are settled: each way out makes the next durable fact, and only then acks.
//!
//! | way out | durable facts, in this order |
//! |---|---|
//! | [`Settlement::ready`] | outcome |
//! | [`Settlement::failed`], may be tried again | fail queue |
//! | [`Settlement::failed`] and [`Settlement::refuse`], final | dead copy, outcome; fail queue where an earlier delivery may have made an image |
//! | [`Settlement::give_up`] | dead copy, outcome |
//! | [`Settlement::hand_back`] | build queue |
//! | [`Settlement::repeated`] | none: an outcome of the build is told |
//!
//! A delivery that the broker is known to have taken back is not decided on any more: its next holder
//! does, who finds an image that was pushed on its account.
//!
//! Where a fact cannot be made the delivery is released, and the broker delivers it again.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

use crate::dead_letter::DeadLetter;
use crate::delivery::artifacts::Ready;
use crate::delivery::envelope;
use crate::delivery::job::StageError;
use crate::delivery::job::{Job, Timings};
use crate::delivery::lease::Lease;
use crate::delivery::outcome_ledger;
use crate::delivery::outcome_ledger::OutcomeLedger;
use crate::model::fault::{Fault, Kind, Reason};
use crate::model::history::History;
use crate::model::notification::{
    BuildFailed, Culprit, Image, ImageReady, NotificationBody, NotificationType, Seconds, Subject,
    notification_id,
};
use crate::model::request::BuildRequest;
use crate::ports::{Broker, BrokerError, Message, Route};
use crate::scheduling::capacity::Capacity;
use crate::scheduling::retry_policy;
use crate::telemetry::delivery_span::Observer;
use crate::telemetry::metrics::BuildResult;
use crate::telemetry::trace::TRACEPARENT;

/// Settles deliveries. Cheap to clone.
#[derive(Clone)]
pub struct Settlement {
    pub broker: Arc<dyn Broker>,
    /// Knows the builds whose outcome is told.
    pub told: OutcomeLedger,
    /// How long the dead queue keeps a copy; `None` = no copies at all.
    pub dead_ttl: Option<Duration>,
    /// OutcomeLedger when there is no room to work.
    pub capacity: Capacity,
    pub observer: Observer,
}

impl Settlement {
    /// The job's image is in the registry.
    pub async fn ready(&self, job: Job, ready: Ready) {
        let attempts = job.attempt();
        let Job { request, history, timings, lease, .. } = job;
        self.image_ready(lease, &request, &history, attempts, timings, ready).await;
    }

    /// The image of a request is in the registry, whichever way that is known.
    pub async fn image_ready(
        &self,
        lease: Lease,
        request: &BuildRequest,
        history: &History,
        attempts: u32,
        timings: Timings,
        ready: Ready,
    ) {
        let now = OffsetDateTime::now_utc();
        let total = (now - history.requested_at).as_seconds_f64().max(0.0);
        let [connector, builder, pusher] =
            [timings.connector, timings.builder, timings.pusher].map(|time| time.as_secs_f64());
        let data = ImageReady {
            build_id: request.build_id.clone(),
            application_id: request.application_id.clone(),
            user_id: request.user_id.clone(),
            connector: request.forge.as_str().to_owned(),
            repo: request.repo.to_string(),
            commit: ready.commit,
            builder: ready.builder.as_str().to_owned(),
            attempts,
            reused: ready.reused,
            requested_at: history.requested_at,
            image: Image {
                reference: ready.reference.to_string(),
                repository: ready.reference.name(),
                tag: ready.reference.tag.clone(),
                digest: ready.image.digest,
                image_id: ready.image.image_id,
                size_bytes: ready.image.size_bytes,
            },
            seconds: Seconds {
                queue: millis((total - connector - builder - pusher).max(0.0)),
                connector: millis(connector),
                builder: millis(builder),
                pusher: millis(pusher),
                total: millis(total),
            },
        };
        tracing::info!(
            reference = data.image.reference,
            digest = data.image.digest,
            reused = data.reused,
            seconds = data.seconds.total,
            "image is ready"
        );
        if !decides(&lease) {
            return;
        }
        let ended = if ready.reused { BuildResult::Reused } else { BuildResult::Ready };
        lease.span(|span| span.leave().about(request).result(ended.result()));
        let told =
            self.tell(&request.build_id, NotificationType::ImageReady, &data, history, &lease);
        let told = told.await;
        if told.is_ok() {
            self.observer.metrics.ended(ended, history.requested_at);
        }
        settle(lease, told).await;
    }

    /// A stage ended with something else than its result.
    pub async fn end(&self, job: Job, ended: StageError) {
        match ended {
            StageError::Fault(fault) => self.failed(job, fault).await,
            StageError::HandBack => self.hand_back(job).await,
        }
    }

    /// The job failed: for good, or to be tried again, as the fault's kind says.
    pub async fn failed(&self, job: Job, fault: Fault) {
        let Job { request, mut history, progress, lease, .. } = job;
        let fault = Fault { message: progress.redact(&fault.message), ..fault };
        lease.span(|span| span.about(&request).fail(&fault).leave());
        if retry_policy::pauses(&fault, request.token.is_some()) {
            self.capacity.lacks(fault.reason, fault.retry_after);
        }
        history.record(&fault, retry_policy::counts(fault.kind()));
        history.log = progress.tail();
        tracing::warn!(
            stage = fault.stage.as_str(),
            reason = fault.reason.as_str(),
            step = fault.step,
            "{}",
            fault.message
        );
        if retry_policy::is_final(fault.kind()) {
            return self.refuse(lease, &request, history, fault).await;
        }
        self.to_be_decided(lease, &history).await;
    }

    /// The request failed for good. Where an earlier delivery of it may have made an image, that is
    /// looked for first, by the retry actor: no build is ever told both.
    pub async fn refuse(
        &self,
        lease: Lease,
        request: &BuildRequest,
        history: History,
        fault: Fault,
    ) {
        match lease.is_first() {
            true => self.give_up(lease, Subject::of(request), history, fault).await,
            false => self.to_be_decided(lease, &history).await,
        }
    }

    /// The last try of this history failed: the retry actor decides what becomes of the request.
    async fn to_be_decided(&self, lease: Lease, history: &History) {
        if !decides(&lease) {
            return;
        }
        let message = envelope::with(lease.message(), history);
        let published = self.broker.publish(Route::Fail, message).await;
        settle(lease, published).await;
    }

    /// The request failed for good and has no image: its owner is told, and a copy is kept.
    pub async fn give_up(&self, lease: Lease, subject: Subject, history: History, fault: Fault) {
        if !decides(&lease) {
            return;
        }
        let ended = BuildResult::given_up(fault.reason);
        lease.span(|span| span.fail(&fault).result(ended.result()));
        let given_up = self.tell_failure(&lease, subject, &history, &fault).await;
        if given_up.is_ok() {
            self.observer.metrics.ended(ended, history.requested_at);
        }
        settle(lease, given_up).await;
    }

    async fn tell_failure(
        &self,
        lease: &Lease,
        subject: Subject,
        history: &History,
        fault: &Fault,
    ) -> Result<(), BrokerError> {
        let kind = match fault.kind() {
            Kind::Withdrawn => NotificationType::BuildCancelled,
            _ => NotificationType::BuildFailed,
        };
        tracing::warn!(
            build_id = subject.build_id,
            user_id = subject.user_id,
            stage = fault.stage.as_str(),
            reason = fault.reason.as_str(),
            attempts = history.counted(),
            "given up: {}",
            fault.message
        );
        let build_id = subject.build_id.clone();
        // First the copy: once the outcome is told, nobody takes the delivery up again.
        self.dead_letter(&build_id, &lease.message().body, history, fault).await?;
        if let Some(user_id) = subject.user_id {
            let data = BuildFailed {
                build_id: subject.build_id,
                application_id: subject.application_id,
                user_id,
                connector: subject.connector,
                repo: subject.repo,
                commit: history.checkpoint.commit.clone(),
                requested_at: history.requested_at,
                fault: Culprit::of(fault.reason),
                stage: fault.stage,
                reason: fault.reason,
                message: fault.message.clone(),
                attempts: history.counted(),
                log: history.log.clone(),
            };
            self.tell(&build_id, kind, &data, history, lease).await?;
        }
        Ok(())
    }

    /// Keeps a copy of what was given up.
    pub async fn dead_letter(
        &self,
        build_id: &str,
        body: &[u8],
        history: &History,
        fault: &Fault,
    ) -> Result<(), BrokerError> {
        let Some(ttl) = self.dead_ttl else { return Ok(()) };
        let letter = Message {
            body: DeadLetter::new(build_id, body, history, fault).to_json(),
            message_id: Some(build_id.to_owned()),
            timestamp: Some(OffsetDateTime::now_utc()),
            expires_after: Some(ttl),
            ..Message::default()
        };
        self.broker.publish(Route::Dead, letter).await
    }

    /// The job goes back to the build queue with what is known of it, and no try is counted.
    pub async fn hand_back(&self, job: Job) {
        if !decides(&job.lease) {
            return;
        }
        job.lease.span(|span| span.leave().about(&job.request).result("handed back"));
        tracing::info!("handed back to the build queue");
        let message = envelope::with(job.lease.message(), &job.history);
        let published = self.broker.publish(Route::Build, message).await;
        settle(job.lease, published).await;
    }

    /// Puts an outcome on its queue.
    async fn tell<T: Serialize>(
        &self,
        build_id: &str,
        kind: NotificationType,
        data: &T,
        history: &History,
        cause: &Lease,
    ) -> Result<(), BrokerError> {
        let timestamp = OffsetDateTime::now_utc();
        let mut message = Message {
            body: NotificationBody { kind, timestamp, data }.to_json(),
            message_id: Some(notification_id(build_id, kind)),
            timestamp: Some(timestamp),
            ..Message::default()
        };
        if let Some(trace) = cause.traceparent() {
            message.headers.insert(TRACEPARENT.to_owned(), trace);
        }
        let request = outcome_ledger::request(build_id, &cause.message().body);
        outcome_ledger::stamp(&mut message, request, history.since);
        self.broker.publish(Route::Outcome, message).await
    }

    /// Makes known when the request was first in hand: writes it down if nobody had it before, and looks it
    /// up where nothing says so.
    pub async fn remember(&self, lease: &Lease, build_id: &str, history: &mut History) {
        if history.since.is_some() {
            return;
        }
        let request = outcome_ledger::request(build_id, &lease.message().body);
        history.since = lease.since();
        if let Some(since) = history.since {
            return self.told.begins(request, since);
        }
        match self.told.begun(&request).await {
            Ok(since) => history.since = since,
            Err(error) => {
                tracing::warn!(%error, "cannot tell when a request was first in hand");
                // Of its own: better told twice than taken for what was told.
                history.since = Some(OffsetDateTime::now_utc());
            }
        }
        lease.is_since(history.since);
    }

    /// Whether an outcome of the request is told already, or about to be. Then the delivery is one that was
    /// made again after it was done with, and is to go to [`Settlement::repeated`].
    pub fn is_repeated(&self, lease: &Lease, build_id: &str, history: &History) -> bool {
        self.told.knows(&outcome_ledger::request(build_id, &lease.message().body), history.since)
    }

    /// Nothing is left to do for the delivery.
    pub async fn repeated(&self, lease: Lease) {
        tracing::info!("an outcome of this build is told already: the repetition is dropped");
        lease.span(|span| span.leave().result("repeated"));
        settle(lease, Ok(())).await;
    }
}

/// Seconds to the millisecond: what is past it is noise.
fn millis(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// Whether the lease's holder may still decide what becomes of the delivery. What the broker has taken
/// back is decided on by whoever gets it next, and what was found stuck has gone another way: two that
/// decide would make two jobs of one, or tell of one build two things.
pub(crate) fn decides(lease: &Lease) -> bool {
    if lease.is_stale() {
        tracing::warn!(
            "the broker has taken the delivery back: it is left to whoever gets it next"
        );
        return false;
    }
    let stands = lease.stands();
    if !stands {
        tracing::warn!("a job came back after it was given up for stuck: its result is dropped");
    }
    stands
}

/// Acks where the durable fact was made, releases where it was not.
pub(crate) async fn settle(lease: Lease, made: Result<(), BrokerError>) {
    match made {
        Ok(()) => {
            fail::fail_point!("settlement::settle");
            if let Err(error) = lease.ack().await {
                // The broker delivers it again, and the repetition is told under the same id.
                tracing::warn!(%error, "cannot ack a delivery that is done");
            }
        }
        Err(error) => {
            tracing::warn!(%error, "cannot publish: the delivery goes back to its queue");
            lease.release();
        }
    }
}

/// What a crash looks like to the policy and to the user.
pub(crate) fn crashed(stage: crate::model::fault::StageName) -> Fault {
    Fault::new(stage, Reason::Crashed, crate::delivery::lease::CRASH_MESSAGE)
}
