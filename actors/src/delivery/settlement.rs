//! Where deliveries are settled: each way out makes the next durable fact, and only then acks.
//!
//! | way out | durable facts, in this order |
//! |---|---|
//! | [`Settlement::ready`] | outcome |
//! | [`Settlement::fail`], as [`RetryPolicy::dispose`] says | fail queue; build queue after a delay; or dead letter, outcome |
//! | [`Settlement::end`], of a job that is handed back | build queue, unless it has waited for too long |
//! | [`Settlement::wait`] | build queue after a delay, unless it has waited for too long |
//! | [`Settlement::set_aside`] | dead letter |
//! | [`Settlement::repeated`] | none: an outcome of the build is claimed |
//!
//! A delivery that the broker is known to have taken back is not decided on any more: its next holder
//! does, who finds an image that was pushed on its account.
//!
//! Where a fact cannot be made the delivery is released, and the broker delivers it again.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::dead_letter::DeadLetter;
use crate::delivery::artifacts::{Images, Ready};
use crate::delivery::envelope;
use crate::delivery::envelope::Envelope;
use crate::delivery::job::{Job, StageError, Timings};
use crate::delivery::lease::{Lease, Phase};
use crate::model::build_log;
use crate::model::fault::{Fault, Kind, Reason, StageName};
use crate::model::history::History;
use crate::model::identity::BuildIdentity;
use crate::model::notification::{
    BuildFailed, Culprit, Image, ImageReady, NotificationBody, NotificationType, Seconds, Subject,
    notification_id,
};
use crate::model::request::BuildRequest;
use crate::model::scope::Scope;
use crate::ports::build_store::Change;
use crate::ports::{
    Broker, BrokerError, DeadLetters, Message, OutcomeCopy, OutcomeLedger, Probe, Queue,
    StatusState, request_name,
};
use crate::scheduling::capacity::Capacity;
use crate::scheduling::holds::Holds;
use crate::scheduling::retry_policy;
use crate::scheduling::retry_policy::{Disposition, FailedIn, RetryPolicy};
use crate::telemetry::delivery_span::Observer;
use crate::telemetry::metrics::BuildResult;

/// The worker's own look at what is said to be lacking takes this long at the most: what does not answer
/// by then is lacking.
const LOOK: Duration = Duration::from_secs(10);

/// Settles deliveries. Cheap to clone.
#[derive(Clone)]
pub struct Settlement {
    pub broker: Arc<dyn Broker>,
    /// Knows the requests whose outcome is notified.
    pub ledger: Arc<dyn OutcomeLedger>,
    pub dead_letters: Arc<dyn DeadLetters>,
    /// Decides on failed tries.
    pub policy: RetryPolicy,
    /// Asked before a build is given up: no build is notified both as failed and as ready.
    pub images: Images,
    /// Set when there is no room to work.
    pub capacity: Capacity,
    /// What the worker itself sees of a lack that it was told of.
    pub probe: Arc<dyn Probe>,
    /// Set when there is no room for some.
    pub holds: Holds,
    pub observer: Observer,
}

/// A request whose last try failed.
pub struct FailedTry {
    /// Of one that cannot be read, what is known of it.
    pub request: Result<BuildRequest, Subject>,
    /// Its last attempt is the failure.
    pub history: History,
    /// The failure in full.
    pub fault: Fault,
}

impl FailedTry {
    fn subject(&self) -> Subject {
        match &self.request {
            Ok(request) => Subject::of(request),
            Err(subject) => subject.clone(),
        }
    }
}

impl Settlement {
    /// The job's image is in the registry.
    pub async fn ready(&self, job: Job, ready: Ready) {
        let attempts = match job.begun {
            true => job.attempt(),
            false => tries_of_image(&job.history),
        };
        let Job { request, history, timings, lease, .. } = job;
        self.image_ready(lease, &request, &history, attempts, timings, ready).await;
    }

    /// The image of a request is in the registry, whichever way that is known.
    async fn image_ready(
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
        let (build, kind) = (request.identity(), NotificationType::ImageReady);
        let published = self.outcome(&build, kind, &data, history, &lease).await;
        if published.is_ok() {
            let found = if ready.reused {
                "An image of the same inputs was there"
            } else {
                "The image is ready"
            };
            let line = format!("{found} after {:.0} s.", data.seconds.total);
            let statuses = &self.observer.statuses;
            statuses.tell(request, Some(&data.commit), StatusState::Success, &line);
            self.observer.metrics.ended(ended, history.requested_at);
        }
        settle(lease, published).await;
    }

    /// A stage ended without its result.
    pub async fn end(&self, job: Job, ended: StageError) {
        match ended {
            StageError::Fault(fault) => self.failed(job, fault).await,
            StageError::HandBack => self.hand_back(job).await,
        }
    }

    /// The job failed: for good, or to be tried again, as the fault's kind says.
    async fn failed(&self, job: Job, fault: Fault) {
        let Job { request, mut history, begun, progress, lease, .. } = job;
        let fault = Fault { message: progress.presentable(&fault.message), ..fault };
        let fault = self.weighed(fault, &history).await;
        lease.span(|span| span.about(&request).fail(&fault).leave());
        history.record(&fault, begun && retry_policy::counts(fault.kind()));
        self.failed_try(&request.identity(), &history);
        history.log = progress.tail();
        let failed_in = FailedIn::Worker { first: lease.is_first(), readable: true };
        // What is given up at once is told of once.
        if !matches!(self.policy.dispose(&history, failed_in), Disposition::GiveUp) {
            tracing::warn!(
                stage = fault.stage.as_str(),
                reason = fault.reason.as_str(),
                step = fault.step,
                "{}",
                fault.message
            );
        }
        self.fail(lease, FailedTry { request: Ok(request), history, fault }, failed_in).await;
    }

    /// Records how the last try ended.
    fn failed_try(&self, build: &BuildIdentity, history: &History) {
        if let Some(last) = history.attempts.last() {
            self.observer.history.failed(build, last);
        }
    }

    /// Makes a lack of capacity known to those whom it concerns. Only what the worker itself sees pauses
    /// it: a lack that it sees nothing of makes the job wait once, and is the job's own failure when it
    /// meets the same again.
    async fn weighed(&self, fault: Fault, history: &History) -> Fault {
        if fault.kind() != Kind::Capacity {
            return fault;
        }
        if fault.scope != Scope::Service {
            let backoff = |found| self.policy.delay(found, None);
            self.holds.hold(&fault.scope, fault.reason, fault.retry_after, backoff);
            return fault;
        }
        if fault.engine_died {
            // What it died of is known by who had it in hand, and not by whether it is back already.
            if self.sees(fault.reason).await {
                self.capacity.lacks(fault.reason, fault.retry_after);
            }
            return retry_policy::of_engine_death(fault, history);
        }
        // Patience that was asked for with a time is all that there is to see of it.
        let asked_for = fault.reason == Reason::RateLimited && fault.retry_after.is_some();
        if asked_for || self.sees(fault.reason).await {
            self.capacity.lacks(fault.reason, fault.retry_after);
            return fault;
        }
        let failure = retry_policy::as_service(fault.clone());
        let same = [fault.reason, failure.reason];
        let met_before = history.attempts.last().is_some_and(|last| same.contains(&last.reason));
        tracing::info!(
            reason = fault.reason.as_str(),
            met_before,
            "a job met a lack that the worker does not see: nothing pauses"
        );
        match fault.reason {
            // Some limits are on one repository of the registry, or on uploads alone.
            Reason::RateLimited => fault,
            _ if met_before => failure,
            _ => fault,
        }
    }

    /// Whether the worker itself sees that this is lacking.
    async fn sees(&self, reason: Reason) -> bool {
        if self.capacity.lacking().is_some_and(|lack| lack.reason == reason) {
            return true;
        }
        !matches!(tokio::time::timeout(LOOK, self.probe.look(reason)).await, Ok(Ok(())))
    }

    /// The lease was dropped by a crash, which counts as a try if the request was worked on.
    pub async fn crashed(&self, lease: Lease) {
        let (stage, counted) = match lease.phase() {
            Some(Phase::Working(stage)) => (stage, true),
            Some(Phase::InMailbox | Phase::Waiting) | None => (StageName::Listener, false),
        };
        let fault = crashed(stage);
        let mut history = lease.envelope().history(lease.message());
        history.since = history.since.or(lease.since());
        let build = envelope::identity(lease.message());
        let build = build.unwrap_or_else(|| BuildIdentity::new(None, ""));
        build_log::span(&build.build_id, stage.as_str(), history.counted() + 1).in_scope(|| {
            tracing::warn!(counted, "a job was dropped by a crash: it goes to the fail queue");
        });
        history.record(&fault, counted);
        self.failed_try(&build, &history);
        // Nobody has read it here, and nobody needs to: a crash is never final.
        let request = Err(Subject::unread(build));
        let failed_in = FailedIn::Worker { first: lease.is_first(), readable: false };
        self.fail(lease, FailedTry { request, history, fault }, failed_in).await;
    }

    /// Does with a failed try what the policy says.
    pub async fn fail(&self, lease: Lease, failed: FailedTry, failed_in: FailedIn) {
        if !decides(&lease) {
            return;
        }
        match self.policy.dispose(&failed.history, failed_in) {
            Disposition::FailQueue => {
                self.publish(lease, Queue::Fail, &failed.history, Duration::ZERO).await;
            }
            Disposition::TryAgain(delay) => self.try_again(lease, failed.history, delay).await,
            Disposition::LookFirst => self.look_first(lease, failed).await,
            Disposition::GiveUp => self.give_up(lease, failed).await,
            Disposition::TooOld => self.too_old(lease, failed.request, failed.history).await,
        }
    }

    /// A request that nothing can be done for at the moment waits for so long, uncounted.
    pub async fn wait(
        &self,
        lease: Lease,
        request: BuildRequest,
        history: History,
        delay: Duration,
    ) {
        if self.policy.is_too_old(&history) {
            return self.too_old(lease, Ok(request), history).await;
        }
        self.observer.history.tell(&request.identity(), Change::Waiting);
        self.publish(lease, Queue::Build, &history, delay).await;
    }

    /// The same, of a request that nobody has read: it is back before long.
    pub async fn wait_unread(&self, lease: Lease) {
        let history = lease.envelope().history(lease.message());
        let delay = self.policy.wait(&history, 1, None);
        self.give_back_unread(lease, delay).await;
    }

    /// A request that nobody has read goes back for so long, with all that was counted of it.
    pub async fn give_back_unread(&self, lease: Lease, delay: Duration) {
        if !decides(&lease) {
            return;
        }
        let (envelope, message) = (lease.envelope(), lease.message());
        let envelope = Envelope {
            history: Some(envelope.history(message)),
            redeliveries: envelope.redeliveries_of(lease.delivery()),
            fresh: false,
            ..envelope.clone()
        };
        let message = envelope.pass_on(message);
        let published = self.broker.publish(Queue::Build, message, delay).await;
        settle(lease, published).await;
    }

    /// The request has waited for too long without a try that counts.
    async fn too_old(
        &self,
        lease: Lease,
        request: Result<BuildRequest, Subject>,
        mut history: History,
    ) {
        let fault = self.policy.too_old(&history);
        history.record(&fault, true);
        self.look_first(lease, FailedTry { request, history, fault }).await;
    }

    async fn try_again(&self, lease: Lease, mut history: History, delay: Duration) {
        tracing::info!(
            delay_seconds = delay.as_secs_f64(),
            attempts = history.counted(),
            "to be tried again"
        );
        history.log.clear();
        let published = self.publish(lease, Queue::Build, &history, delay).await;
        if let (true, Some(last)) = (published, history.attempts.last()) {
            self.observer.metrics.retry(last.reason);
        }
    }

    /// Looks for the image of an earlier delivery before the request is given up.
    async fn look_first(&self, lease: Lease, failed: FailedTry) {
        let Ok(request) = &failed.request else { return self.give_up(lease, failed).await };
        let commit = failed.history.checkpoint.commit.as_deref();
        match self.images.of_build(request, commit).await {
            Ok(None) => self.give_up(lease, failed).await,
            Ok(Some(ready)) => {
                tracing::info!("the registry has the image after all");
                let (attempts, timings) = (tries_of_image(&failed.history), Timings::default());
                self.image_ready(lease, request, &failed.history, attempts, timings, ready).await;
            }
            Err(fault) => {
                tracing::warn!(%fault, "cannot ask for the image of a failed build");
                match fault.kind() {
                    Kind::Capacity if !self.policy.is_too_old(&failed.history) => {
                        let delay = self.policy.wait(&failed.history, 1, fault.retry_after);
                        self.publish(lease, Queue::Build, &failed.history, delay).await;
                    }
                    _ => self.give_up(lease, failed).await,
                }
            }
        }
    }

    /// Publishes the request with this history, and settles its delivery; says whether it was published.
    pub async fn publish(
        &self,
        lease: Lease,
        queue: Queue,
        history: &History,
        delay: Duration,
    ) -> bool {
        if !decides(&lease) {
            return false;
        }
        let pass_on = |history: &History| {
            let message = lease.envelope().clone().pass_on_with(lease.message(), history);
            self.broker.publish(queue, message, delay)
        };
        let mut published = pass_on(history).await;
        if let Err(BrokerError::Refused(reason)) = &published {
            // Perhaps for its length alone: how much a message may carry is for the broker to say.
            tracing::warn!(reason, "refused: publishing with a shorter history");
            let mut shorter = history.clone();
            shorter.forget_log();
            published = pass_on(&shorter).await;
        }
        let is_published = published.is_ok();
        settle(lease, published).await;
        is_published
    }

    /// The request failed for good and has no image: a dead letter is kept, and its owner is notified.
    async fn give_up(&self, lease: Lease, failed: FailedTry) {
        if !decides(&lease) {
            return;
        }
        let ended = BuildResult::given_up(failed.fault.reason);
        lease.span(|span| span.fail(&failed.fault).result(ended.result()));
        let given_up = self.publish_failure(&lease, &failed).await;
        if let (Ok(()), Ok(request)) = (&given_up, &failed.request) {
            let state = match (failed.fault.kind(), Culprit::of(failed.fault.reason)) {
                (Kind::Withdrawn, _) => StatusState::Cancelled,
                (_, Some(Culprit::User)) => StatusState::Failure,
                _ => StatusState::Error,
            };
            let commit = failed.history.checkpoint.commit.as_deref();
            self.observer.statuses.tell(request, commit, state, &failed.fault.message);
        }
        if given_up.is_ok() {
            self.observer.metrics.ended(ended, failed.history.requested_at);
        }
        settle(lease, given_up).await;
    }

    async fn publish_failure(&self, lease: &Lease, failed: &FailedTry) -> Result<(), BrokerError> {
        let FailedTry { history, fault, .. } = failed;
        let subject = failed.subject();
        let kind = match fault.kind() {
            Kind::Withdrawn => NotificationType::BuildCancelled,
            _ => NotificationType::BuildFailed,
        };
        tracing::warn!(
            build_id = subject.build_id,
            application_id = subject.application_id,
            user_id = subject.user_id,
            stage = fault.stage.as_str(),
            reason = fault.reason.as_str(),
            step = fault.step,
            attempts = history.counted(),
            "given up: {}",
            fault.message
        );
        let build = subject.identity();
        // The dead letter comes first: once the outcome is published, nobody takes the delivery up again.
        let dead_letter = DeadLetter::new(&build.build_id, &lease.message().body, history, fault);
        self.dead_letters.keep(&dead_letter).await?;
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
            self.outcome(&build, kind, &data, history, lease).await?;
        }
        Ok(())
    }

    /// The message's properties cannot be read, so nobody knows whose build it is or how it got here: a dead
    /// letter is kept, and that is all.
    pub async fn set_aside(&self, lease: Lease) {
        let body = &lease.message().body;
        let fault = Fault::new(
            StageName::Listener,
            Reason::InvalidRequest,
            "The message's AMQP properties cannot be read: texts and names of headers have to be UTF-8.",
        );
        let mut history = History::new(OffsetDateTime::now_utc());
        history.record(&fault, true);
        // For an operator to call it by.
        let id = Uuid::new_v4().to_string();
        let letter = DeadLetter::of_unreadable(&id, body, &history, &fault);
        tracing::error!(build_id = id, bytes = body.len(), "set aside: {}", fault.message);
        let kept = self.dead_letters.keep(&letter).await;
        settle(lease, kept).await;
    }

    /// The job goes back to the build queue with what is known of it, and no try is counted.
    async fn hand_back(&self, job: Job) {
        if !decides(&job.lease) {
            return;
        }
        job.lease.span(|span| span.leave().about(&job.request).result("handed back"));
        tracing::info!("handed back to the build queue");
        self.wait(job.lease, job.request, job.history, Duration::ZERO).await;
    }

    /// Puts an outcome on its queue.
    async fn outcome<T: Serialize>(
        &self,
        build: &BuildIdentity,
        kind: NotificationType,
        data: &T,
        history: &History,
        cause: &Lease,
    ) -> Result<(), BrokerError> {
        let timestamp = OffsetDateTime::now_utc();
        let request = request_name(build, &cause.message().body);
        let publication = cause.envelope().publication(history);
        let outcome = Some(OutcomeCopy::first(request, publication));
        let message = Message {
            body: NotificationBody { kind, timestamp, data }.to_json(),
            message_id: Some(notification_id(build, kind)),
            timestamp: Some(timestamp),
            traceparent: cause.traceparent(),
            envelope: Some(Envelope { outcome, ..Envelope::default() }.encode()),
        };
        self.broker.publish(Queue::Outcome, message, Duration::ZERO).await
    }

    /// Makes known when the request was first in hand: records it if nobody had it before, and looks it up
    /// where nothing says so. Of a request of nobody it is not needed, since nobody is notified of its outcome; nor
    /// of one whose publication is known by when it was accepted.
    pub async fn remember(&self, lease: &Lease, build: &BuildIdentity, history: &mut History) {
        if history.since.is_some() || build.user_id.is_none() {
            return;
        }
        history.since = lease.since();
        if lease.envelope().accepted_at.is_some() {
            history.since.get_or_insert_with(OffsetDateTime::now_utc);
            return lease.is_since(history.since);
        }
        let request = request_name(build, &lease.message().body);
        if let Some(since) = history.since {
            return self.ledger.begin(request, since);
        }
        match self.ledger.begun(&request).await {
            Ok(since) => history.since = since,
            Err(error) => {
                tracing::warn!(%error, "cannot look up when a request was first in hand");
                // A time of its own: better notified twice than taken for one that was notified.
                history.since = Some(OffsetDateTime::now_utc());
            }
        }
        lease.is_since(history.since);
    }

    /// Whether an outcome of the request is claimed. Then the delivery is one that was made again after it
    /// was done with, and is to go to [`Settlement::repeated`].
    pub async fn is_repeated(
        &self,
        lease: &Lease,
        build: &BuildIdentity,
        history: &History,
    ) -> bool {
        let request = request_name(build, &lease.message().body);
        self.ledger.is_claimed(&request, lease.envelope().publication(history)).await
    }

    /// Nothing is left to do for the delivery.
    pub async fn repeated(&self, lease: Lease) {
        tracing::info!("an outcome of this build is claimed already: the repetition is dropped");
        lease.span(|span| span.leave().result("repeated"));
        settle(lease, Ok(())).await;
    }
}

/// The tries that an image took which an earlier delivery pushed: one at least, though a worker that was
/// killed may have counted none.
fn tries_of_image(history: &History) -> u32 {
    history.counted().max(1)
}

/// Seconds to the millisecond: what is past it is noise.
fn millis(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// Whether the lease's holder may still decide what becomes of the delivery. What the broker has taken
/// back is decided on by whoever gets it next, and what was found stuck has gone another way: two that
/// decide would make two jobs of one, or two outcomes.
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
                // The broker delivers it again, and the repetition has the same id.
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
pub(crate) fn crashed(stage: StageName) -> Fault {
    Fault::new(stage, Reason::Crashed, "The build service crashed while it worked on this build.")
}
