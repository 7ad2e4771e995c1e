//! Each actor dies in each way that it can, with a job in its hands: the job ends in its one outcome,
//! the deaths are counted exactly, the siblings notice nothing.
//!
//! | the actor | deaths | the job |
//! |---|---|---|
//! | panics in its handler | 1 `panic` | was only on its way: handed back, no try counted |
//! | panics in a job of its pool | 1 `panic` | one try counted |
//! | hangs in its handler | 1 `hung` | taken away from it: one try counted |
//! | is stopped | 1 `stopped` | goes on |

use std::time::Duration;

use fail::FailScenario;
use image_builder_actors::telemetry::health::ActorName;
use image_builder_actors::testing::world::{World, request, settings, with_pipeline};

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
    // Failpoints belong to the process: the scenario lets one test at a time have them.
    let scenario = FailScenario::setup();
    fail::cfg(name, action).expect("a failpoint's action");
    let mut settings = settings();
    settings.intensity.health_interval = health_interval;
    with_pipeline(settings, async |world| {
        world.request(&request("b1")).await;
        check(world).await;
    });
    scenario.teardown();
}

const CALM: Duration = Duration::from_secs(30);

/// Attempts that the outcome tells when a job of this actor's crashes: stages count a try, the others
/// have nothing to count.
fn counted(name: ActorName) -> u64 {
    match name {
        ActorName::Notifier | ActorName::Retry => 1,
        _ => 2,
    }
}

async fn ends_well(world: World, name: ActorName, cause: &str, attempts: u64) {
    let (id, body) = world.told_once().await;
    assert_eq!(id, "b1.image.ready");
    assert_eq!(body["data"]["attempts"], attempts, "{name}: {body}");
    assert_eq!(world.deaths(cause), only(name, 1), "{name}");
    assert_eq!(world.restarts(), only(name, 1), "{name}");
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
            ends_well(world, name, "panic", 1).await;
        });
    }
}

#[test]
fn a_panic_in_a_job_costs_one_try() {
    for name in ON_THE_WAY {
        with_failpoint(&format!("{name}::work"), "1*panic", CALM, async |world| {
            ends_well(world, name, "panic", counted(name)).await;
        });
    }
}

#[test]
fn an_actor_whose_thread_is_blocked_is_replaced_and_its_mail_handed_back() {
    let soon = Duration::from_millis(150);
    for name in ON_THE_WAY {
        with_failpoint(&format!("{name}::handle"), "1*sleep(1500)", soon, async |world| {
            ends_well(world, name, "hung", counted(name)).await;
        });
    }
}

/// Every actor, as the points in what all of them share are named.
const NAMES: [&str; 6] = ["Listener", "Connector", "Builder", "Pusher", "Notifier", "Retry"];

#[test]
fn an_actor_that_is_stopped_is_replaced_and_the_job_in_hand_goes_on() {
    for (name, point) in ActorName::ALL.into_iter().zip(NAMES) {
        let soon = Duration::from_secs(1);
        with_failpoint(&format!("{point}::beat"), "1*return", soon, async |world| {
            world.engine.hold();
            world.engine.until_running("b1").await;
            world.until(|world| world.deaths("stopped") == only(name, 1)).await;
            world.engine.release();
            ends_well(world, name, "stopped", 1).await;
        });
    }
}

#[test]
fn a_retry_actor_that_dies_loses_no_failed_job() {
    for (point, action, interval, cause) in [
        ("retry::handle", "1*panic", CALM, "panic"),
        ("retry::work", "1*panic", CALM, "panic"),
        ("retry::handle", "1*sleep(1500)", Duration::from_millis(150), "hung"),
    ] {
        with_failpoint(point, action, interval, async |world| {
            use image_builder_actors::model::fault::{Fault, Reason, StageName};
            let fault =
                Fault::new(StageName::Pusher, Reason::RegistryFailed, "the test wants it so");
            world.registry.fail_pushes(1, fault);
            let (id, body) = world.told_once().await;
            assert_eq!(id, "b1.image.ready", "{point} {action}");
            assert_eq!(body["data"]["attempts"], 2, "{point} {action}");
            assert_eq!(world.deaths(cause), only(ActorName::Retry, 1), "{point} {action}");
            assert_eq!(world.restarts(), only(ActorName::Retry, 1), "{point} {action}");
        });
    }
}

#[test]
fn two_hundred_jobs_with_panics_in_random_actors_all_end_well() {
    const JOBS: usize = 200;
    let scenario = FailScenario::setup();
    // One in fifty of each, and never the same twice in a row for long.
    for name in ON_THE_WAY {
        fail::cfg(format!("{name}::work"), "2%panic").expect("a failpoint's action");
    }
    let mut settings = settings();
    settings.intensity.max_restarts = 10_000;
    settings.intensity.window = Duration::from_millis(100);
    settings.retry.max_attempts = 50;
    settings.prefetch = 16;
    with_pipeline(settings, async |world| {
        for number in 0..JOBS {
            let mut body = request(&format!("b{number}"));
            body["userID"] = format!("user-{number}").into();
            world.request(&body).await;
        }
        let told = world.told(JOBS).await;
        let mut ids: Vec<_> = told.iter().map(|(id, _)| id.clone()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), JOBS);
        assert!(ids.iter().all(|id| id.ends_with(".image.ready")));
        world.quiet().await;
        // Every counted try that failed is a panic of a stage, and every panic a restart.
        let tries: u64 = told
            .iter()
            .map(|(_, body)| body["data"]["attempts"].as_u64().expect("a number") - 1)
            .sum();
        assert!(tries > 0, "the dice never fell");
        // A death is counted when its actor is about to be started again, which takes a moment.
        let deaths = |world: &World| world.restarts()[..4].iter().sum::<u64>();
        world.until(|world| deaths(world) >= tries).await;
        assert_eq!(deaths(&world), tries);
    });
    scenario.teardown();
}
