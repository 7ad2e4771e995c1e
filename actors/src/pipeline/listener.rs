//! Listener: reads requests, and turns each into a job that holds its delivery's lease.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler};
use time::OffsetDateTime;
use tracing::Instrument;
use uuid::Uuid;

use crate::delivery::artifacts::{Artifact, Images, Ready};
use crate::delivery::envelope;
use crate::delivery::job::{Job, Timings};
use crate::delivery::lease::{Lease, Phase};
use crate::delivery::settlement::{FailedTry, Settlement, decides, settle};
use crate::model::build_log;
use crate::model::build_log::BuildLog;
use crate::model::fault::{Fault, StageName};
use crate::model::history::{History, Planned};
use crate::model::image::ImageLocation;
use crate::model::notification::Subject;
use crate::model::request::BuildRequest;
use crate::parse;
use crate::parse::Rules;
use crate::pipeline::consumer::Delivered;
use crate::pipeline::pool::Pool;
use crate::pipeline::stage::Work;
use crate::ports::{ImageBuilder, Queue};
use crate::scheduling::admission::{Admission, Admittance, withdrawn};
use crate::scheduling::retry_policy::FailedIn;
use crate::supervision::Mailbox;
use crate::telemetry::health::InHand;

/// What the listener works with. Cheap to clone.
#[derive(Clone)]
pub struct Listener {
    pub pool: Pool,
    pub settlement: Settlement,
    pub rules: Arc<Rules>,
    pub admission: Admission,
    /// The delay of a job that is throttled, so that other users' come into sight.
    pub throttle_delay: Duration,
    /// From delivery to settled, waiting included.
    pub job_timeout: Duration,
    /// Asked for the image of an earlier try, of which then only the outcome is left.
    pub images: Images,
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

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<Delivered> for Listener {
    type Result = ();

    fn handle(&mut self, delivery: Delivered, _: &mut Self::Context) {
        fail::fail_point!("listener::handle");
        let listener = self.clone();
        let in_hand = self.pool.health().in_hand();
        self.pool.run(tracing::Span::current(), listener.read(delivery, in_hand));
    }
}

impl Listener {
    async fn read(self, delivery: Delivered, in_hand: InHand) {
        delivery.lease.set_phase(Phase::Working(StageName::Listener));
        fail::fail_point!("listener::work");
        let message = delivery.lease.message();
        let mut history = delivery.lease.envelope().history(message);
        let Some(build_id) = envelope::build_id(message) else {
            return self.give_id(delivery, in_hand).await;
        };
        self.settlement.remember(&delivery.lease, &build_id, &mut history).await;
        if self.settlement.is_repeated(&delivery.lease, &build_id, &history).await {
            let span =
                build_log::span(&build_id, StageName::Listener.as_str(), history.counted() + 1);
            return self.settlement.repeated(delivery.lease).instrument(span).await;
        }
        let span_of = || self.settlement.observer.build(&build_id, message, &history);
        let request = match parse::parse(&message.body, &build_id, &self.rules) {
            Ok(request) => request,
            Err(rejected) => {
                delivery.lease.observe(span_of());
                let request = Err(rejected.subject);
                return self
                    .fail(delivery.lease, request, &build_id, history, rejected.fault)
                    .await;
            }
        };
        let ticket = match self.admission.admit(&request, history.requested_at) {
            Admittance::Admitted(ticket) => ticket,
            Admittance::Throttled => return self.throttle(delivery, history, &request).await,
            Admittance::Withdrawn(reason) => {
                delivery.lease.observe(span_of());
                let fault = withdrawn(StageName::Listener, reason);
                return self.fail(delivery.lease, Ok(request), &build_id, history, fault).await;
            }
        };
        delivery.lease.observe(span_of());
        let redeliveries = delivery.lease.envelope().redeliveries_of(delivery.lease.delivery());
        let progress =
            BuildLog::new(&build_id, request.redactor()).of_application(&request.application_id);
        let mut job = Job {
            ticket,
            received: delivery.received,
            deadline: delivery.received + self.job_timeout,
            timings: Timings::default(),
            lease: delivery.lease,
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
            Earlier::Nothing => {
                self.next.deliver(Work { job, input: () }).await;
            }
        }
    }

    /// Looks for what earlier deliveries made.
    async fn earlier(&self, job: &Job) -> Earlier {
        if job.lease.is_first() {
            return Earlier::Nothing;
        }
        match self.images.of_build(&job.request).await {
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
        match self.engine.find(&image.key).await {
            Ok(Some(found)) if found.id == image.id => {
                tracing::info!(image = image.id, "built by an earlier try: only to be pushed");
                let planned = Planned { key: found.key.clone(), builder: found.builder };
                let location = ImageLocation::OnEngine(found);
                Some(Artifact { commit, planned, location, reused: false })
            }
            Ok(_) => None,
            Err(fault) => {
                tracing::debug!(%fault, "cannot ask for the image of an earlier try");
                None
            }
        }
    }

    /// A request ends here.
    async fn fail(
        self,
        lease: Lease,
        request: Result<BuildRequest, Subject>,
        build_id: &str,
        mut history: History,
        fault: Fault,
    ) {
        self.pool.health().failed(fault.reason);
        history.record(&fault, true);
        let span = build_log::span(build_id, StageName::Listener.as_str(), history.counted());
        let failed_in = FailedIn::Worker { first: lease.is_first(), readable: request.is_ok() };
        let failed = FailedTry { request, history, fault };
        self.settlement.fail(lease, failed, failed_in).instrument(span).await;
    }

    /// Delays a job of a user who has enough here, uncounted, so that those behind it come into sight.
    async fn throttle(self, delivery: Delivered, history: History, request: &BuildRequest) {
        tracing::debug!(
            build_id = request.build_id,
            user_id = request.user_id,
            "throttled: other users come first"
        );
        let delay = self.throttle_delay;
        self.settlement.publish(delivery.lease, Queue::Build, &history, delay).await;
    }

    /// Gives a request without any id one, before any work: only a crash between the publish and
    /// the ack can give it two.
    async fn give_id(self, delivery: Delivered, in_hand: InHand) {
        if !decides(&delivery.lease) {
            return;
        }
        let mut named = delivery.lease.message().clone();
        named.timestamp.get_or_insert_with(OffsetDateTime::now_utc);
        named.message_id = Some(Uuid::new_v4().to_string());
        tracing::info!(message_id = named.message_id, "a request without an id was given one");
        let published = self.settlement.broker.publish(Queue::Build, named, Duration::ZERO).await;
        settle(delivery.lease, published).await;
        in_hand.done();
    }
}
