//! Each actor dies in each way that it can, with a job in its hands: the job ends in its one outcome,
//! the deaths are counted exactly, the siblings notice nothing. A job that panics is no death.
//!
//! | the actor | deaths | the job |
//! |---|---|---|
//! | panics in its handler | 1 `panic` | was only on its way: handed back, no try counted |
//! | has a job that panics | none | one try counted |
//! | hangs in its handler | 1 `hung` | taken away from it: one try counted |
//! | is stopped | 1 `stopped` | goes on |

use std::sync::{Mutex, mpsc};
use std::time::Duration;

use fail::FailScenario;
use image_builder_actors::model::fault::{Reason, StageName};
use image_builder_actors::telemetry::health::ActorName;
use image_builder_actors::testing::world::{
    World, fault, request, request_with, settings, with_pipeline,
};

fn only(name: ActorName, restarts: u64) -> [u64; 6] {
    ActorName::ALL.map(|actor| if actor == name { restarts } else { 0 })
}

/// Runs a job while a failpoint does something, once.
fn with_failpoint(
    name: &str,
    action: &str,
    health_interval: Duration,
    check: impl AsyncFnOnce(World),
) {
    in_scenario(health_interval, async |world| {
        fail::cfg(name, action).expect("a failpoint's action");
        world.request(&request("b1")).await;
        check(world).await;
    });
}

/// Runs a test that sets failpoints. They belong to the process: one test at a time has them.
fn in_scenario(health_interval: Duration, test: impl AsyncFnOnce(World)) {
    let scenario = FailScenario::setup();
    let mut settings = settings();
    settings.intensity.health_interval = health_interval;
    with_pipeline(settings, async |world| test(world).await);
    scenario.teardown();
}

const CALM: Duration = Duration::from_secs(30);
/// Long enough for an actor that lives to answer on a busy machine.
const SOON: Duration = Duration::from_millis(500);

/// Attempts that the outcome names when a job of this actor's crashes: stages count a try, the others
/// have nothing to count.
fn counted(name: ActorName) -> u64 {
    match name {
        ActorName::Notifier | ActorName::Retry => 1,
        _ => 2,
    }
}

/// The job ends well, and this actor died once, or had a job that crashed.
async fn ends_well(world: World, name: ActorName, died: Option<&str>, attempts: u64) {
    let (id, body) = world.notified_once().await;
    assert_eq!(id, "b1.image.ready");
    assert_eq!(body["data"]["attempts"], attempts, "{name}: {body}");
    let (deaths, crashes) = if died.is_some() { (1, 0) } else { (0, 1) };
    if let Some(cause) = died {
        assert_eq!(world.deaths(cause), only(name, 1), "{name}");
    }
    assert_eq!(world.restarts(), only(name, deaths), "{name}");
    world.until(|world| world.crashed() == only(name, crashes)).await;
    assert_eq!(world.engine.built(), 1, "{name}");
    assert_eq!(world.workspaces_left().await, 0, "{name}");
}

/// The actors that have every job in hand; retry only has those that failed.
const ON_THE_WAY: [ActorName; 5] = [
    ActorName::Listener,
    ActorName::Connector,
    ActorName::Builder,
    ActorName::Pusher,
    ActorName::Notifier,
];

#[test]
fn a_panic_in_a_handler_costs_no_try() {
    for name in ON_THE_WAY {
        with_failpoint(&format!("{name}::handle"), "1*panic", CALM, async |world| {
            ends_well(world, name, Some("panic"), 1).await;
        });
    }
}

#[test]
fn a_panic_in_a_job_costs_one_try() {
    for name in ON_THE_WAY {
        with_failpoint(&format!("{name}::work"), "1*panic", CALM, async |world| {
            ends_well(world, name, None, counted(name)).await;
        });
    }
}

/// Has the next thread that comes to a failpoint blocked until the answer is sent something or dropped.
fn block_next(point: &str) -> mpsc::Sender<()> {
    let (open, opened) = mpsc::channel();
    let next = Mutex::new(Some(opened));
    let block = move || {
        let opened = next.lock().expect("no panic at the point").take();
        if let Some(opened) = opened {
            let _ = opened.recv();
        }
    };
    fail::cfg_callback(point, block).expect("a failpoint's action");
    open
}

#[test]
fn an_actor_whose_thread_is_blocked_is_replaced_and_its_mail_handed_back() {
    for name in ON_THE_WAY {
        in_scenario(SOON, async |world| {
            let blocked = block_next(&format!("{name}::handle"));
            world.request(&request("b1")).await;
            world.notified(1).await;
            // What it has in its hands it lets go of then.
            drop(blocked);
            ends_well(world, name, Some("hung"), counted(name)).await;
        });
    }
}

#[test]
fn a_thread_that_was_blocked_and_comes_back_is_asked_nothing_any_more() {
    in_scenario(SOON, async |world| {
        let blocked = block_next("pusher::handle");
        world.request(&request("b1")).await;
        world.notified(1).await;
        fail::cfg("pusher::beat", "1*return").expect("a failpoint's action");
        // In its mailbox is the question that it was too late for. The next one is for its successor.
        drop(blocked);
        world.until(|world| world.deaths("stopped") == only(ActorName::Pusher, 1)).await;
        assert_eq!(world.deaths("hung"), only(ActorName::Pusher, 1));
    });
}

#[test]
fn an_actor_that_is_stopped_is_replaced_and_the_job_in_hand_goes_on() {
    for name in ActorName::ALL {
        in_scenario(SOON, async |world| {
            world.hold_build(&request("b1")).await;
            fail::cfg(format!("{name}::beat"), "1*return").expect("a failpoint's action");
            world.until(|world| world.deaths("stopped") == only(name, 1)).await;
            world.engine.release();
            ends_well(world, name, Some("stopped"), 1).await;
        });
    }
}

#[test]
fn a_retry_actor_that_dies_loses_no_failed_job() {
    for (point, action, interval, cause, deaths, crashes) in [
        ("retry::handle", "1*panic", CALM, "panic", 1, 0),
        ("retry::work", "1*panic", CALM, "panic", 0, 1),
        ("retry::handle", "1*sleep(2000)", SOON, "hung", 1, 0),
    ] {
        with_failpoint(point, action, interval, async |world| {
            world.registry.pushes.fail(1, fault(StageName::Pusher, Reason::RegistryFailed));
            let (id, body) = world.notified_once().await;
            assert_eq!(id, "b1.image.ready", "{point} {action}");
            assert_eq!(body["data"]["attempts"], 2, "{point} {action}");
            assert_eq!(world.deaths(cause), only(ActorName::Retry, deaths), "{point} {action}");
            assert_eq!(world.restarts(), only(ActorName::Retry, deaths), "{point} {action}");
            world.until(|world| world.crashed() == only(ActorName::Retry, crashes)).await;
        });
    }
}

#[test]
fn an_actor_that_dies_too_often_escalates() {
    let scenario = FailScenario::setup();
    fail::cfg("builder::handle", "panic").expect("a failpoint's action");
    let mut settings = settings();
    settings.intensity.max_restarts = 1;
    with_pipeline(settings, async |world| {
        world.request(&request("b1")).await;
        let cause = world.pipeline.escalated().await;
        assert!(cause.starts_with("builder: panic: "), "{cause}");
        assert_eq!(world.deaths("panic"), only(ActorName::Builder, 2));
    });
    scenario.teardown();
}

#[test]
fn two_hundred_jobs_that_panic_at_random_all_end_well() {
    const JOBS: usize = 200;
    let scenario = FailScenario::setup();
    // One in fifty of each, and never the same twice in a row for long.
    for name in ON_THE_WAY {
        fail::cfg(format!("{name}::work"), "2%panic").expect("a failpoint's action");
    }
    let mut settings = settings();
    settings.intensity.max_restarts = 0;
    settings.retry.max_attempts = 50;
    settings.most_in_hand = 16;
    with_pipeline(settings, async |world| {
        for number in 0..JOBS {
            let body = request_with(&format!("b{number}"), "userID", format!("user-{number}"));
            world.request(&body).await;
        }
        let notified = world.notified(JOBS).await;
        let mut ids: Vec<_> = notified.iter().map(|(id, _)| id.clone()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), JOBS);
        assert!(ids.iter().all(|id| id.ends_with(".image.ready")));
        world.quiet().await;
        // Every counted try that failed is a panic of a stage, and no panic a death.
        let tries: u64 = notified
            .iter()
            .map(|(_, body)| body["data"]["attempts"].as_u64().expect("a number") - 1)
            .sum();
        assert!(tries > 0, "the dice never fell");
        world.until(|world| world.crashed()[..4].iter().sum::<u64>() == tries).await;
        assert_eq!(world.restarts(), [0; 6]);
    });
    scenario.teardown();
}
