//! Every way in which an actor can die, on an actor that does what its messages say: one test a
//! row of the supervisor's table. And that a job which panics is none of them.
//!
//! Each test counts what the row says: what became of the message in the actor's hands and of the one
//! behind it, how often the actor was made, what its deaths were counted as, and that its sibling was
//! neither made again nor lost the job that it had in hand all the while.

use std::collections::BTreeMap;
use std::time::Duration;

use actix_rt::System;
use image_builder_actors::model::shutdown::Shutdown;
use image_builder_actors::supervision::{RestartIntensity, Supervisor};
use image_builder_actors::telemetry::health::ActorName;
use image_builder_actors::testing::world::PATIENCE;
use tokio::time::timeout;

use crate::ward::{Act, Deliveries, Fate, Start, Ward};

const CALM: Duration = Duration::from_secs(60);
/// Long enough for an actor that lives to answer on a busy machine.
const SOON: Duration = Duration::from_secs(1);
/// Deaths that are borne.
const BORNE: usize = 3;

fn intensity(health_interval: Duration) -> RestartIntensity {
    RestartIntensity { max_restarts: BORNE, window: Duration::from_secs(60), health_interval }
}

fn run(test: impl Future<Output = ()>) {
    let system = System::with_tokio_rt(|| {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(2).enable_all().build().expect("a runtime")
    });
    let within = async { timeout(3 * PATIENCE, test).await };
    system.block_on(within).expect("the test ends in time");
}

/// An actor dies of what it is ordered to do, with one more message in its mailbox.
fn dies(act: Act, health_interval: Duration, cause: &'static str, hands: Fate, behind: Fate) {
    run(async {
        let supervisor = Supervisor::new(intensity(health_interval), Shutdown::default());
        let ward = Ward::new(&supervisor, ActorName::Builder, |_| Start::Well);
        let sibling = Ward::new(&supervisor, ActorName::Pusher, |_| Start::Well);
        let mut deliveries = Deliveries::start().await;
        deliveries.order(&sibling, "elsewhere", Act::Work).await;
        sibling.gate.reached.notified().await;

        deliveries.order(&ward, "hands", act).await;
        if act != Act::WaitForEver {
            ward.gate.reached.notified().await;
        }
        deliveries.order(&ward, "behind", Act::Settle).await;
        if !matches!(act, Act::BlockThread | Act::WaitForEver) {
            ward.gate.open();
        }
        ward.until_died(1).await;
        assert_eq!(deliveries.fate("hands", 1).await, hands, "in its hands");
        assert_eq!(deliveries.fate("behind", 1).await, behind, "behind that");

        // The way to it leads to the next one.
        deliveries.order(&ward, "after", Act::Settle).await;
        assert_eq!(deliveries.fate("after", 1).await, Fate::Settled);
        assert_eq!(ward.made(), 2);

        sibling.gate.open();
        assert_eq!(deliveries.fate("elsewhere", 0).await, Fate::Settled);
        deliveries.order(&sibling, "next", Act::Settle).await;
        assert_eq!(deliveries.fate("next", 0).await, Fate::Settled);
        assert_eq!(sibling.made(), 1);
        assert_eq!(sibling.deaths(), BTreeMap::new());

        // Nothing comes of a thread that goes on after all.
        ward.gate.open();
        deliveries.order(&ward, "last", Act::Settle).await;
        assert_eq!(deliveries.fate("last", 0).await, Fate::Settled);
        assert_eq!((ward.made(), ward.deaths()), (2, BTreeMap::from([(cause, 1)])));
    });
}

#[test]
fn a_panic_in_a_handler() {
    dies(Act::Panic, CALM, "panic", Fate::HandedBack(0), Fate::HandedBack(0));
}

#[test]
fn a_panic_in_a_future_of_the_context() {
    dies(Act::PanicInContext, CALM, "panic", Fate::Settled, Fate::HandedBack(0));
}

#[test]
fn a_stop() {
    dies(Act::Stop, CALM, "stopped", Fate::HandedBack(0), Fate::HandedBack(0));
}

#[test]
fn a_blocked_thread() {
    dies(Act::BlockThread, SOON, "hung", Fate::HandedBack(1), Fate::HandedBack(0));
}

#[test]
fn a_wait_that_does_not_end() {
    dies(Act::WaitForEver, SOON, "hung", Fate::HandedBack(1), Fate::HandedBack(0));
}

#[test]
fn the_end_of_the_thread() {
    dies(Act::EndThread, CALM, "lost", Fate::HandedBack(0), Fate::HandedBack(0));
}

/// A job panics as its actor is ordered to have it do, with one of its neighbours in hand and one more
/// message in the mailbox.
fn ends_alone(act: Act) {
    run(async {
        let supervisor = Supervisor::new(intensity(CALM), Shutdown::default());
        let ward = Ward::new(&supervisor, ActorName::Builder, |_| Start::Well);
        let mut deliveries = Deliveries::start().await;
        deliveries.order(&ward, "neighbour", Act::Work).await;
        ward.gate.reached.notified().await;
        deliveries.order(&ward, "panics", act).await;
        ward.gate.reached.notified().await;
        deliveries.order(&ward, "behind", Act::Settle).await;
        ward.gate.open();
        assert_eq!(deliveries.fate("panics", 0).await, Fate::HandedBack(1));
        assert_eq!(deliveries.fate("neighbour", 0).await, Fate::Settled);
        assert_eq!(deliveries.fate("behind", 0).await, Fate::Settled);
        ward.until_failed(1).await;
        assert_eq!(ward.failed(), BTreeMap::from([("crashed", 1)]));
        assert_eq!((ward.made(), ward.deaths()), (1, BTreeMap::new()));
    });
}

#[test]
fn a_panic_in_a_job_ends_that_job_alone() {
    ends_alone(Act::PanicInPool);
}

#[test]
fn a_panic_in_a_blocking_thread_of_a_job_ends_that_job_alone() {
    ends_alone(Act::PanicInBlockingThread);
}

/// An actor whose first instances do not come to life, with a message on its way.
fn starts_late(bad: Start, times: usize, health_interval: Duration, cause: &'static str) {
    run(async {
        let supervisor = Supervisor::new(intensity(health_interval), Shutdown::default());
        let ward = Ward::new(&supervisor, ActorName::Builder, move |number| match number {
            number if number <= times => bad,
            _ => Start::Well,
        });
        let mut deliveries = Deliveries::start().await;
        let deaths = BTreeMap::from([(cause, times as u64)]);
        if bad == Start::PanicWhenStarted {
            // It had an address already: what came in then is handed back.
            ward.until_died(times as u64).await;
        }
        deliveries.order(&ward, "early", Act::Settle).await;
        assert_eq!(deliveries.fate("early", 0).await, Fate::Settled);
        assert_eq!((ward.made(), ward.deaths()), (times + 1, deaths.clone()));

        // One that was given up and is made after all stays unknown.
        ward.gate.open();
        deliveries.order(&ward, "late", Act::Settle).await;
        assert_eq!(deliveries.fate("late", 0).await, Fate::Settled);
        assert_eq!((ward.made(), ward.deaths()), (times + 1, deaths));
    });
}

#[test]
fn a_factory_that_panics_is_tried_again_and_its_mail_waits() {
    starts_late(Start::PanicWhenMade, BORNE, CALM, "panic");
}

#[test]
fn a_start_that_panics_is_tried_again() {
    starts_late(Start::PanicWhenStarted, BORNE, CALM, "panic");
}

#[test]
fn a_factory_that_does_not_return_is_tried_again_and_its_mail_waits() {
    starts_late(Start::HangWhenMade, 1, SOON, "hung");
}

#[test]
fn one_death_over_the_budget_escalates_and_nothing_is_made_any_more() {
    run(async {
        let supervisor = Supervisor::new(intensity(CALM), Shutdown::default());
        let hopeless = Ward::new(&supervisor, ActorName::Builder, |_| Start::PanicWhenMade);
        let sibling = Ward::new(&supervisor, ActorName::Pusher, |_| Start::Well);
        let cause = supervisor.escalated().await;
        assert_eq!(cause, "builder: panic: asked to panic when made");
        assert_eq!(hopeless.deaths(), BTreeMap::from([("panic", 1 + BORNE as u64)]));
        assert_eq!(hopeless.made(), 1 + BORNE, "once, and as often again as is borne");
        // Whoever drains still has the others.
        let mut deliveries = Deliveries::start().await;
        deliveries.order(&sibling, "drained", Act::Settle).await;
        assert_eq!(deliveries.fate("drained", 0).await, Fate::Settled);
        assert_eq!((sibling.made(), sibling.deaths()), (1, BTreeMap::new()));
    });
}

#[test]
fn deaths_that_are_further_apart_than_the_window_never_escalate() {
    // The shortest pause before a restart is longer than this window.
    let window = Duration::from_millis(1);
    let intensity = RestartIntensity { max_restarts: 1, window, health_interval: CALM };
    run(async {
        let supervisor = Supervisor::new(intensity, Shutdown::default());
        let ward = Ward::new(&supervisor, ActorName::Builder, |number| match number {
            1..=4 => Start::PanicWhenMade,
            _ => Start::Well,
        });
        let mut deliveries = Deliveries::start().await;
        deliveries.order(&ward, "patient", Act::Settle).await;
        assert_eq!(deliveries.fate("patient", 0).await, Fate::Settled);
        assert_eq!((ward.made(), ward.deaths()), (5, BTreeMap::from([("panic", 4)])));
    });
}
