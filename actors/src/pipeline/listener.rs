//! Listener: reads requests. Each that was published is put in the backlog, or told what is wrong with it;
//! each that was taken out of the backlog becomes a job that holds its delivery's lease.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler};
use tracing::Instrument;
use uuid::Uuid;

use crate::delivery::artifacts::{Artifact, Images, Ready};
use crate::delivery::envelope;
use crate::delivery::envelope::Envelope;
use crate::delivery::job::{Job, Timings};
use crate::delivery::lease::{Lease, Phase};
use crate::delivery::settlement::{FailedTry, Settlement, decides, settle};
use crate::model::build_log;
use crate::model::build_log::BuildLog;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::history::{History, Planned};
use crate::model::identity::BuildIdentity;
use crate::model::image::ImageLocation;
use crate::model::notification::Subject;
use crate::model::request::BuildRequest;
use crate::model::secret::Secret;
use crate::parse;
use crate::parse::Rules;
use crate::pipeline::consumer::Delivered;
use crate::pipeline::pool::Pool;
use crate::pipeline::stage::Work;
use crate::ports::{ImageBuilder, Message, Place, Queue, SourceConnector, StatusState};
use crate::scheduling::admission::{Admission, Ticket, withdrawn};
use crate::scheduling::retry_policy::FailedIn;
use crate::supervision::Mailbox;
use crate::telemetry::health::InHand;

/// What the listener works with. Cheap to clone.
#[derive(Clone)]
pub struct Listener {
    pub pool: Pool,
    pub settlement: Settlement,
    pub rules: Arc<Rules>,
    /// The service's own credentials that builds come to see.
    pub service: Vec<Secret>,
    pub admission: Admission,
    /// From delivery to settled, waiting included.
    pub job_timeout: Duration,
    /// Asked for the image of an earlier try, of which then only the outcome is left.
    pub images: Images,
    /// Asked whom a build would concern, before it is begun.
    pub forge: Arc<dyn SourceConnector>,
    /// Asked for the image of an earlier try, which then only needs to be pushed.
    pub engine: Arc<dyn ImageBuilder>,
    pub next: Mailbox<Work<()>>,
    /// The way of a job whose image is built.
    pub shortcut: Mailbox<Work<Artifact>>,
}

/// What earlier deliveries of a job made.
enum Earlier {
    /// The image is in the registry.
    Pushed(Ready),
    /// The image is on this worker's engine.
    Built(Artifact),
    Nothing,
}

/// A request that was read.
struct Read {
    lease: Lease,
    /// Whether its message brought an id; else it was given one.
    has_id: bool,
    request: BuildRequest,
    history: History,
}

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<Delivered> for Listener {
    type Result = ();

    fn handle(&mut self, delivery: Delivered, _: &mut Self::Context) {
        fail::fail_point!("listener::handle");
        let listener = self.clone();
        let in_hand = self.pool.health().in_hand();
        self.pool.run(tracing::Span::current(), listener.work(delivery, in_hand));
    }
}

impl Listener {
    async fn work(self, delivery: Delivered, in_hand: InHand) {
        let Delivered { lease, ticket, received } = delivery;
        lease.set_phase(Phase::Working(StageName::Listener));
        fail::fail_point!("listener::work");
        let Some(read) = self.read(lease).await else { return in_hand.done() };
        match ticket {
            Some(ticket) => self.begin(read, ticket, received, in_hand).await,
            None => self.enqueue(read, in_hand).await,
        }
    }

    /// Reads a request; one that is settled by that is gone.
    async fn read(&self, lease: Lease) -> Option<Read> {
        let message = lease.message();
        let mut history = lease.envelope().history(message);
        let own = envelope::identity(message);
        let has_id = own.is_some();
        // One without an id is given one when it is put in the backlog.
        let new_id = Uuid::new_v4().to_string();
        let build = own.or_else(|| parse::identity(&message.body, Some(&new_id)));
        let build = build.unwrap_or_else(|| BuildIdentity::new(None, &new_id));
        self.settlement.remember(&lease, &build, &mut history).await;
        if self.settlement.is_repeated(&lease, &build, &history).await {
            let span = build_log::span(
                &build.build_id,
                StageName::Listener.as_str(),
                history.counted() + 1,
            );
            self.settlement.repeated(lease).instrument(span).await;
            return None;
        }
        match parse::parse(&message.body, &build.build_id, &self.rules) {
            Ok(request) => Some(Read { lease, has_id, request, history }),
            // Whoever is told of it knows it by its id, so it has to have one that stays.
            Err(rejected) if !has_id && rejected.subject.user_id.is_some() => {
                self.give_id(lease, build.build_id).await;
                None
            }
            Err(rejected) => {
                let request = Err(rejected.subject);
                self.fail(lease, request, &build.build_id, history, rejected.fault).await;
                None
            }
        }
    }

    /// Puts a request in the backlog, where it waits until a worker has a builder for it. One without an id
    /// gets it on the way, before any work: only a crash between the publish and the ack can give it two.
    async fn enqueue(self, read: Read, in_hand: InHand) {
        let Read { lease, has_id, request, history } = read;
        let given_id = lease.envelope().given_id || !has_id;
        if self.admission.is_cancelled(&request.identity(), given_id, history.requested_at) {
            let fault = withdrawn(StageName::Listener, Reason::Cancelled);
            let build_id = request.build_id.clone();
            return self.fail(lease, Ok(request), &build_id, history, fault).await;
        }
        if !decides(&lease) {
            return;
        }
        let (envelope, fresh) = (lease.envelope(), lease.is_first());
        // It has waited already.
        let returned = envelope::is_given_back(lease.message(), envelope);
        let envelope = Envelope { given_id, ..envelope.clone() };
        let mut message = envelope.put_in_backlog(lease.message(), &history, fresh);
        if !has_id {
            tracing::info!(build_id = request.build_id, "a request without an id was given one");
            message.message_id = Some(request.build_id.clone());
        }
        message.timestamp.get_or_insert(history.requested_at);
        let place = Place { user_id: request.user_id.clone(), returned };
        self.admission.expect(&request, given_id, history.requested_at);
        let published = self.settlement.broker.enqueue(message, place).await;
        if published.is_ok() {
            self.requested(&lease, &Subject::of(&request), &history);
            if history.attempts.is_empty() {
                let statuses = &self.settlement.observer.statuses;
                statuses.tell(&request, None, StatusState::Queued, "Waiting to be built.");
            }
        }
        settle(lease, published).await;
        in_hand.done();
    }

    /// Gives a request without any id one, by publishing it anew.
    async fn give_id(&self, lease: Lease, build_id: String) {
        if !decides(&lease) {
            return;
        }
        tracing::info!(build_id, "a request without an id was given one");
        let envelope = Envelope { given_id: true, ..lease.envelope().clone() };
        let named = Message {
            message_id: Some(build_id),
            envelope: Some(envelope.encode()),
            ..lease.message().clone()
        };
        let published = self.settlement.broker.publish(Queue::Build, named, Duration::ZERO).await;
        settle(lease, published).await;
    }

    /// Makes a job of a request that was taken out of the backlog.
    async fn begin(self, read: Read, ticket: Ticket, received: Instant, in_hand: InHand) {
        let Read { lease, request, history, .. } = read;
        let build = request.identity();
        lease.observe(self.settlement.observer.build(&build, lease.message(), &history));
        self.requested(&lease, &Subject::of(&request), &history);
        let given_id = lease.envelope().given_id;
        if let Err(reason) = ticket.read(&request, given_id, history.requested_at) {
            let (fault, build_id) =
                (withdrawn(StageName::Listener, reason), request.build_id.clone());
            return self.fail(lease, Ok(request), &build_id, history, fault).await;
        }
        if self.settlement.capacity.lacking().is_some() {
            // It came into sight only to be told, should it have waited for too long.
            return self.settlement.wait(lease, request, history, Duration::ZERO).await;
        }
        let redeliveries = lease.envelope().redeliveries_of(lease.delivery());
        let progress = BuildLog::new(&request.build_id, request.redactor_with(&self.service))
            .of_application(&request.application_id)
            .with_listener(self.settlement.observer.history.listener(build));
        let mut job = Job {
            ticket,
            received,
            deadline: received + self.job_timeout,
            timings: Timings::default(),
            begun: false,
            lease,
            progress,
            history,
            request,
        };
        job.progress.enter(StageName::Listener, job.attempt());
        let span = job.progress.span();
        span.in_scope(|| {
            tracing::info!(
                user_id = job.request.user_id,
                application_id = job.request.application_id,
                repo = %job.request.repo,
                revision = %job.request.target,
                redeliveries,
                redrive_of = job.request.redrive_of,
                "job accepted"
            );
        });
        let earlier = self.earlier(&job).instrument(span.clone()).await;
        in_hand.done();
        match earlier {
            Earlier::Pushed(ready) => self.settlement.ready(job, ready).instrument(span).await,
            Earlier::Built(artifact) => {
                self.shortcut.deliver(Work { job, input: artifact }).await;
            }
            Earlier::Nothing => match self.held(&job) {
                Some(delay) => self.wait(job, delay).instrument(span).await,
                None => self.next.deliver(Work { job, input: () }).await,
            },
        }
    }

    /// How long the job has to wait for those that its source is fetched from.
    fn held(&self, job: &Job) -> Option<Duration> {
        let scopes = self.forge.scopes(&job.request, job.history.checkpoint.commit.as_deref());
        let held = self.settlement.holds.held(&scopes)?;
        let delay = self.settlement.policy.wait(&job.history, 1, Some(held.wait));
        tracing::info!(
            reason = held.reason.as_str(),
            delay_seconds = delay.as_secs_f64(),
            "held up: {}",
            held.scope
        );
        Some(delay)
    }

    /// The job goes back to the queue for so long, uncounted.
    async fn wait(&self, job: Job, delay: Duration) {
        let Job { request, history, lease, .. } = job;
        lease.span(|span| span.leave().about(&request).result("held up"));
        self.settlement.wait(lease, request, history, delay).await;
    }

    /// Looks for what earlier deliveries made.
    async fn earlier(&self, job: &Job) -> Earlier {
        if job.lease.is_first() {
            return Earlier::Nothing;
        }
        let commit = job.history.checkpoint.commit.as_deref();
        match self.images.of_build(&job.request, commit).await {
            Ok(Some(ready)) => {
                tracing::info!("pushed by an earlier try: only its outcome is left");
                return Earlier::Pushed(ready);
            }
            Ok(None) => {}
            // Whoever pushes, or gives the build up, has to ask again.
            Err(fault) => tracing::debug!(%fault, "cannot ask for the image of an earlier try"),
        }
        match self.built_earlier(job).await {
            Some(artifact) => Earlier::Built(artifact),
            None => Earlier::Nothing,
        }
    }

    /// The image that an earlier try built, where this worker's engine has it.
    async fn built_earlier(&self, job: &Job) -> Option<Artifact> {
        let checkpoint = &job.history.checkpoint;
        let (commit, image) = (checkpoint.commit.clone()?, checkpoint.image.as_ref()?);
        let reference = self.images.reference(&job.request, &commit);
        match self.engine.find(&image.key, &reference).await {
            Ok(Some(found)) if found.id == image.id => {
                tracing::info!(image = image.id, "built by an earlier try: only to be pushed");
                let planned = Planned { key: found.key.clone(), builder: found.builder };
                let location = ImageLocation::OnEngine(found);
                Some(Artifact { commit, planned, location, reused: false, labelled: false })
            }
            Ok(_) => None,
            Err(fault) => {
                tracing::debug!(%fault, "cannot ask for the image of an earlier try");
                None
            }
        }
    }

    /// The request is known from here on.
    fn requested(&self, lease: &Lease, subject: &Subject, history: &History) {
        let recorder = &self.settlement.observer.history;
        recorder.requested(subject, &lease.message().body, history.requested_at);
    }

    /// A request ends here.
    async fn fail(
        &self,
        lease: Lease,
        request: Result<BuildRequest, Subject>,
        build_id: &str,
        mut history: History,
        fault: Fault,
    ) {
        let subject = request.as_ref().map_or_else(Subject::clone, Subject::of);
        self.requested(&lease, &subject, &history);
        self.pool.health().failed(fault.reason);
        // Reading a request is its first try, unless there was one. What waited for one was not tried.
        let counted = request.is_err() && history.counted() == 0;
        let span = build_log::span(build_id, StageName::Listener.as_str(), history.counted() + 1);
        history.record(&fault, counted);
        let failed_in = FailedIn::Worker { first: lease.is_first(), readable: request.is_ok() };
        let failed = FailedTry { request, history, fault };
        self.settlement.fail(lease, failed, failed_in).instrument(span).await;
    }
}
