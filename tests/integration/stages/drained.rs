//! The worker is asked to end while it has a job at each stage.
//!
//! | the stage | where there is time | where there is none |
//! |---|---|---|
//! | listener, with a request that was read | it is put in its lane, for the next worker | the same |
//! | listener, connector, pusher | the job is finished and told | it is handed back, and the next worker tells of it as of a first try |
//! | builder | see [`crate::lifecycle`] | see there |
//! | notifier | the outcome is told | it stays in its queue, and the next worker tells it |
//! | retry | the failed try goes to the ladder, for the next worker | the same |

use serde_json::json;

use super::finish;
use crate::support::marked::Marked;
use crate::support::turnstile::Steps;
use crate::support::worker::Worker;
use crate::support::world::{World, held_repository, with};
use crate::support::{Door, git_server, registry, until};

/// What keeps a job at a stage.
enum Keeper {
    /// A service that does not answer until it is asked to, and its address.
    Silence(Door, String),
    /// A failpoint, for as long as it says.
    Failpoint,
}

/// A worker that has a job at a stage.
struct Held {
    world: World,
    source: Marked,
    build_id: String,
    worker: Worker,
    keeper: Keeper,
}

/// Starts a worker, and has it hold a job at this stage.
#[track_caller]
fn held_at(stage: &str, drain_timeout: &str) -> Held {
    let world = World::new();
    let mut settings = world.settings();
    settings.insert("DRAIN_TIMEOUT".to_owned(), drain_timeout.to_owned());
    let mut set = |name: &str, value: String| settings.insert(name.to_owned(), value);
    let door = Door::deaf();
    let url = format!("http://127.0.0.1:{}", door.port);
    let keeper = match stage {
        "connector" => {
            set("GITHUB_URL", url);
            Keeper::Silence(door, server(&git_server::server_url()))
        }
        "pusher" => {
            set("REGISTRY_URL", format!("localhost:{}", door.port));
            Keeper::Silence(door, registry::open())
        }
        "notifier" => {
            set("CONTAINER_MANAGER_URL", format!("{url}/container"));
            Keeper::Silence(door, server(&world.managers.container_url()))
        }
        // The first time it puts the request in the backlog.
        "listener" => {
            set("FAILPOINTS", "listener::work=1*off->1*sleep(2000)".to_owned());
            Keeper::Failpoint
        }
        _ => {
            set("FAILPOINTS", format!("{stage}::work=1*sleep(2000)"));
            Keeper::Failpoint
        }
    };
    let worker = Worker::start(&settings);
    let source = if stage == "retry" { Marked::failing() } else { Marked::good() };
    // Nothing is looked up in the registry before it is pushed.
    let request = with(world.request(&source.repo), json!({"force": true}));
    let build_id = world.publish(&request);
    let in_hand = format!("image_builder_actor_in_hand{{actor=\"{stage}\"}}");
    let taken = || stage != "listener" || worker.metric(LISTENED) as u64 == 1;
    until("the job is at its stage", || {
        (taken() && worker.metric(&in_hand) as u64 == 1).then_some(())
    });
    Held { world, source, build_id, worker, keeper }
}

/// How often the listener was done with a request.
const LISTENED: &str = "image_builder_actor_done_total{actor=\"listener\"}";

/// Host and port of an address.
fn server(url: &str) -> String {
    let rest = url.trim_start_matches("http://");
    rest.split('/').next().unwrap_or_default().to_owned()
}

/// Ends the worker at this stage, with time enough for the job.
#[track_caller]
fn finishes(stage: &str) {
    let Held { world, source, build_id, worker, keeper } = held_at(stage, "60s");
    worker.terminate();
    worker.wait_for_line("draining");
    assert!(world.managers.all().is_empty(), "the job is at its stage");
    if let Keeper::Silence(door, service) = keeper {
        door.open(&service);
    }
    assert_eq!(worker.wait(), 0);
    let (told, _) = finish(&world, &[]);
    let [told] = &told[..] else { panic!("one outcome: {told:?}") };
    assert_eq!(told.clone().ready().build_id(), build_id);
    assert_eq!(told.data()["attempts"], 1, "{}", told.raw);
    assert_eq!(source.builds(&[&worker]), 1);
}

/// What the next worker knows of the job.
#[derive(PartialEq, Eq)]
enum Known {
    /// No more than its request.
    Nothing,
    Commit,
}

/// Ends the worker at this stage, without time for the job.
#[track_caller]
fn is_handed_back(stage: &str, known: &Known) {
    let Held { world, source, build_id, worker: first, keeper: _silent } = held_at(stage, "300ms");
    let commit = source.repo.git(&["rev-parse", "HEAD"]);
    first.terminate();
    assert_eq!(first.wait(), 0);
    assert!(world.managers.all().is_empty(), "nobody is told of it");
    let lines = first.lines();
    assert!(!lines.iter().any(|line| line.contains("not all could be handed back")), "{lines:?}");

    let newer = source.repo.commit(&[("more", "than before")]);
    let second = world.worker();
    let told = world.outcome(&build_id).ready().after(1);
    let expected = if *known == Known::Commit { commit } else { newer };
    assert_eq!(told.text("/commit"), expected);
    let (told, _) = finish(&world, &[&second]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(source.builds(&[&first, &second]), 1);
}

#[test]
fn the_listener_puts_in_a_lane_what_it_has_read() {
    for drain_timeout in ["60s", "300ms"] {
        let world = World::new()
            .with("DRAIN_TIMEOUT", drain_timeout)
            .with("FAILPOINTS", "listener::work=1*sleep(2000)");
        let first = world.worker();
        let source = Marked::good();
        let build_id = world.publish(&world.request(&source.repo));
        let in_hand = "image_builder_actor_in_hand{actor=\"listener\"}";
        until("it is read", || (first.metric(in_hand) as u64 == 1).then_some(()));
        first.terminate();
        assert_eq!(first.wait(), 0);
        assert!(world.managers.all().is_empty(), "nobody is told of it");
        let second = world.worker();
        world.outcome(&build_id).ready().after(1);
        let (told, _) = finish(&world, &[&second]);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(source.builds(&[&first, &second]), 1);
    }
}

/// Whoever is handed back has waited already, and does not wait once more behind all others.
#[test]
fn what_is_handed_back_does_not_go_to_the_end_of_a_flood() {
    let world = World::new()
        .with("BUILDER_CONCURRENCY", "1")
        .with("LISTENER_CONCURRENCY", "1")
        .with("DRAIN_TIMEOUT", "300ms");
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let first = world.worker();
    let user = format!("{}-flood", world.user);
    let returned = world.publish(&world.held_request(&repo, &user));
    steps.turnstile.until("it is built", |count| count.came == [returned.clone()]);
    let others: Vec<_> =
        (0..12).map(|_| world.publish(&world.held_request(&repo, &user))).collect();
    world.until_in_lanes(others.len());
    first.terminate();
    assert_eq!(first.wait(), 0);

    let second = world.worker();
    steps.turnstile.let_all_go();
    for build_id in others.iter().chain([&returned]) {
        world.outcome(build_id).ready().after(1);
    }
    let begun: Vec<String> =
        second.lines().into_iter().filter(|line| line.contains("\"job accepted\"")).collect();
    let place = begun.iter().position(|line| line.contains(&returned));
    // Each lane may have had its turn before, and one more while it was read.
    assert!(place.is_some_and(|place| place <= 4), "{place:?}: {begun:?}");
    let (told, _) = finish(&world, &[&second]);
    assert_eq!(told.len(), others.len() + 1);
}

#[test]
fn the_listener_finishes() {
    finishes("listener");
}

#[test]
fn the_connector_finishes() {
    finishes("connector");
}

#[test]
fn the_pusher_finishes() {
    finishes("pusher");
}

#[test]
fn the_notifier_finishes() {
    finishes("notifier");
}

#[test]
fn the_listener_hands_back() {
    is_handed_back("listener", &Known::Nothing);
}

#[test]
fn the_connector_hands_back() {
    is_handed_back("connector", &Known::Nothing);
}

#[test]
fn the_pusher_hands_back_what_then_only_needs_to_be_pushed() {
    is_handed_back("pusher", &Known::Commit);
}

#[test]
fn the_notifier_leaves_the_outcome_where_it_is() {
    is_handed_back("notifier", &Known::Commit);
}

#[test]
fn retry_puts_what_it_has_on_the_ladder() {
    for drain_timeout in ["60s", "300ms"] {
        let Held { world, source, build_id, worker: first, keeper: _ } =
            held_at("retry", drain_timeout);
        first.terminate();
        assert_eq!(first.wait(), 0);
        assert!(world.managers.all().is_empty(), "nobody is told of it");
        let second = world.worker();
        world.outcome(&build_id).failed("build_failed").after(2);
        let (told, letters) = finish(&world, &[&second]);
        assert_eq!((told.len(), letters), (1, 1), "{told:?}");
        assert_eq!(source.builds(&[&first, &second]), 2);
    }
}
