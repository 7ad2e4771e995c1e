//! Retry: consumes the fail queue and decides what becomes of each failed try: back to the build
//! queue by the delay ladder, or given up.

use std::sync::Arc;

use actix::{Actor, Context, Handler};

use crate::desk::{Desk, crashed, settle};
use crate::fault::{Fault, Stage};
use crate::history;
use crate::intake::Delivery;
use crate::job::{Attempt, History};
use crate::lease::Lease;
use crate::outcome::Subject;
use crate::policy::{Decision, RetryPolicy};
use crate::pool::Pool;
use crate::ports::Route;
use crate::request::{self, Rules};

/// What the retry actor works with. Cheap to clone.
#[derive(Clone)]
pub struct Retry {
    pub pool: Pool,
    pub desk: Desk,
    pub rules: Arc<Rules>,
    pub policy: RetryPolicy,
}

impl Actor for Retry {
    type Context = Context<Self>;
}

crate::stoppable!(Retry);

impl Handler<Delivery> for Retry {
    type Result = ();

    fn handle(&mut self, delivery: Delivery, _: &mut Self::Context) {
        fail::fail_point!("retry::handle");
        self.pool.run(tracing::Span::current(), self.clone().work(delivery));
    }
}

impl Retry {
    async fn work(self, delivery: Delivery) {
        let Ok(slot) = self.pool.slot(None).await else {
            // The worker stops: the failed try stays where it is.
            return delivery.lease.release();
        };
        fail::fail_point!("retry::work");
        let over_limit = delivery.over_delivery_limit;
        let lease = delivery.lease;
        let mut history = history::of(lease.message());
        // What the broker moved here took its worker down each time it was delivered.
        if over_limit || history.attempts.is_empty() {
            history.record(&crashed(Stage::Listener), true);
        }
        let decision = if over_limit { Decision::GiveUp } else { self.policy.decide(&history) };
        match decision {
            Decision::Retry(delay) | Decision::Wait(delay) => {
                let build_id = request::build_id(lease.message());
                tracing::info!(
                    build_id,
                    delay_seconds = delay.as_secs_f64(),
                    attempts = history.counted(),
                    "to be tried again"
                );
                history.log.clear();
                let message = history::with(lease.message(), &history);
                let published = self.desk.broker.publish(Route::BuildAfter(delay), message).await;
                settle(lease, published).await;
            }
            Decision::GiveUp => self.give_up(lease, history).await,
        }
        slot.done();
    }

    async fn give_up(&self, lease: Lease, history: History) {
        let message = lease.message();
        let build_id = request::build_id(message).unwrap_or_else(|| "unknown".to_owned());
        let subject = match request::parse(&message.body, &build_id, &self.rules) {
            Ok(request) => Subject::of(&request),
            Err(rejected) => Subject::of_rejected(&build_id, rejected.known),
        };
        let fault = history.attempts.last().map_or_else(|| crashed(Stage::Listener), fault);
        self.desk.give_up(lease, subject, history, fault).await;
    }
}

fn fault(attempt: &Attempt) -> Fault {
    Fault::new(attempt.stage, attempt.reason, &attempt.message)
}
