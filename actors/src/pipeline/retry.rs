//! Retry: consumes the fail queue, and has each failed try settled with all that is known of it.

use std::sync::Arc;

use actix::{Actor, Context, Handler};
use tracing::Instrument;
use uuid::Uuid;

use crate::delivery::envelope;
use crate::delivery::lease::Phase;
use crate::delivery::settlement::{FailedTry, Settlement, crashed, decides};
use crate::model::build_log;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::history::Attempt;
use crate::model::identity::BuildIdentity;
use crate::parse;
use crate::parse::Rules;
use crate::pipeline::consumer::Delivered;
use crate::pipeline::pool::Pool;
use crate::scheduling::retry_policy::FailedIn;

/// What the retry actor works with. Cheap to clone.
#[derive(Clone)]
pub struct Retry {
    pub pool: Pool,
    pub settlement: Settlement,
    pub rules: Arc<Rules>,
}

impl Actor for Retry {
    type Context = Context<Self>;
}

impl Handler<Delivered> for Retry {
    type Result = ();

    fn handle(&mut self, delivery: Delivered, _: &mut Self::Context) {
        fail::fail_point!("retry::handle");
        delivery.lease.set_phase(Phase::Waiting);
        self.pool.run(tracing::Span::current(), self.clone().work(delivery));
    }
}

impl Retry {
    async fn work(self, delivery: Delivered) {
        let Ok(slot) = self.pool.slot().await else {
            // The worker stops: the failed try stays where it is.
            return delivery.lease.release();
        };
        fail::fail_point!("retry::work");
        let lease = delivery.lease;
        if !decides(&lease) {
            return;
        }
        let message = lease.message();
        let mut history = lease.envelope().history(message);
        // Without any id it never got as far as to be given one.
        let build = envelope::identity(message)
            .unwrap_or_else(|| BuildIdentity::new(None, &Uuid::new_v4().to_string()));
        lease.observe(self.settlement.observer.retry(&build, message));
        self.settlement.remember(&lease, &build, &mut history).await;
        // The number of the try that failed, whether or not it was counted.
        let uncounted = history.attempts.last().is_none_or(|last| !last.counted);
        let span =
            build_log::span(&build.build_id, "retry", history.counted() + u32::from(uncounted));
        if self.settlement.is_repeated(&lease, &build, &history).await {
            self.settlement.repeated(lease).instrument(span).await;
            return slot.done();
        }
        let given_up = lease.delivery().given_up;
        // What the broker moved here took its worker down each time it was delivered.
        if given_up || history.attempts.is_empty() {
            history.record(&crashed(StageName::Listener), true);
        }
        let last = history.attempts.last();
        if let Some(Attempt { stage, reason: Reason::Crashed, counted: true, .. }) = last {
            self.settlement.observer.metrics.crash(*stage);
        }
        let fault = last.map_or_else(
            || crashed(StageName::Listener),
            |last| Fault::new(last.stage, last.reason, &last.message),
        );
        let request = parse::parse(&message.body, &build.build_id, &self.rules);
        let failed_in = FailedIn::FailQueue { given_up, readable: request.is_ok() };
        if let Ok(request) = &request {
            span.record("application_id", &request.application_id);
        }
        let request = request.map_err(|rejected| rejected.subject);
        let failed = FailedTry { request, history, fault };
        self.settlement.fail(lease, failed, failed_in).instrument(span).await;
        slot.done();
    }
}
