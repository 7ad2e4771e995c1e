//! The worker's life: it starts before its broker, serves its endpoints, drains, and hands back.

use crate::support::slow::Slow;
use crate::support::worker::Worker;
use crate::support::world::{World, dockerfile, repository};
use crate::support::{Door, broker, until};

#[test]
fn the_first_sigterm_finishes_what_is_in_hand_and_tells_of_it() {
    let world = World::new();
    let worker = world.worker();
    let slow = Slow::begin(3, &world, &worker);

    let (told, _) = world.finish(&[&worker]);
    let [told] = &told[..] else { panic!("one outcome: {told:?}") };
    assert_eq!(told.clone().ready().build_id(), slow.build_id);
    assert_eq!(told.data()["attempts"], 1);
}

#[test]
fn what_cannot_be_finished_in_time_is_handed_back_uncounted() {
    let world = World::new().with("DRAIN_TIMEOUT", "500ms");
    let first = world.worker();
    let slow = Slow::begin(8, &world, &first);
    let commit = slow.repo.git(&["rev-parse", "HEAD"]);
    first.stop();
    assert!(world.managers.of(&slow.build_id).is_empty());

    // The commit is pinned: what is pushed meanwhile is not built.
    slow.repo.commit(&[("more", "than before")]);
    let second = world.worker();
    slow.wait_until_begun(&second);
    let told = world.outcome(&slow.build_id).ready().after(1);
    assert_eq!(told.text("/commit"), commit);
    let (told, _) = world.finish(&[&second]);
    assert_eq!(told.len(), 1);
}

#[test]
fn a_second_sigterm_leaves_at_once_and_nothing_is_lost() {
    let world = World::new();
    let first = world.worker();
    let slow = Slow::begin(6, &world, &first);

    first.terminate();
    first.wait_for_line("draining");
    first.terminate();
    assert_eq!(first.wait(), 75);
    let second = world.worker();
    world.outcome(&slow.build_id).ready();
    let (told, _) = world.finish(&[&second]);
    assert_eq!(told.len(), 1);
}

#[test]
fn a_killed_workers_build_is_done_by_the_next_one() {
    let world = World::new();
    let first = world.worker();
    let slow = Slow::begin(6, &world, &first);

    first.kill();
    assert_eq!(first.wait(), -1);
    let second = world.worker();
    world.outcome(&slow.build_id).ready();
    let (told, _) = world.finish(&[&second]);
    assert_eq!(told.len(), 1);
}

#[test]
fn a_connection_that_is_closed_in_the_middle_of_a_job_costs_no_outcome() {
    let world = World::new();
    let worker = world.worker();
    let slow = Slow::begin(3, &world, &worker);

    // One that consumes, one that publishes, and one each that reads the outcome ledger and what was cancelled.
    let connections = until("the broker lists all connections", || {
        Some(broker::connections_of(worker.pid())).filter(|connections| connections.len() == 4)
    });
    broker::close_connections(&connections);
    worker.wait_for_line("lost the broker");
    world.outcome(&slow.build_id).ready();
    assert_eq!(worker.restarts(), [0; 6]);
    let (told, letters) = world.finish(&[&worker]);
    assert!(told.iter().all(|told| told.kind() == "image.ready"), "{told:?}");
    assert!(told.iter().all(|told| told.webhook_id == told.own_id()));
    assert!(letters.is_empty(), "{letters:?}");
}

#[test]
fn a_worker_waits_for_its_broker_and_says_so() {
    let door = Door::closed();
    let uri = broker::uri();
    let (login, rest) = uri.split_once('@').expect("the address has a login");
    let (address, vhost) = rest.split_once('/').unwrap_or((rest, "%2f"));
    let world =
        World::new().with("RABBITMQ_URI", &format!("{login}@127.0.0.1:{}/{vhost}", door.port));
    let worker = Worker::spawn(&world.settings());
    worker.wait_for_line("\"starting\"");
    let (status, report) = worker.get("/readyz");
    assert_eq!(status, 503, "{report}");
    assert_eq!(worker.get("/livez").0, 200);

    door.open(address);
    worker.wait_for_line("at work");
    let repo = repository("patient", &[("Dockerfile", &dockerfile("RUN true"))]);
    world.build(&world.request(&repo)).ready();
    until("it is ready", || (worker.get("/readyz").0 == 200).then_some(()));
    world.finish(&[&worker]);
}

#[test]
fn a_worker_that_still_waits_for_its_broker_ends_when_it_is_asked_to() {
    let world = World::new().with("RABBITMQ_URI", "amqp://guest:guest@127.0.0.1:1/%2f");
    let worker = Worker::spawn(&world.settings());
    worker.wait_for_line("\"starting\"");
    worker.stop();
}

#[test]
fn the_endpoints_tell_an_operator_how_the_worker_is() {
    let world = World::new();
    let worker = world.worker();
    assert_eq!(worker.get("/livez").0, 200);
    let report = until("it is ready", || {
        let (status, report) = worker.get("/readyz");
        (status == 200).then_some(report)
    });
    for need in ["broker", "engine", "registry"] {
        assert!(report.contains(need), "{report}");
    }
    assert_eq!(worker.get("/elsewhere").0, 404);
    let (_, metrics) = worker.get("/metrics");
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("image_builder_"), "{line}");
        assert!(
            line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<f64>().is_ok()),
            "{line}"
        );
    }
    for family in ["in_hand", "waiting", "done_total", "restarts_total", "failed_total"] {
        let declared = format!("# TYPE image_builder_actor_{family} ");
        assert!(metrics.contains(&declared), "{family} is there from the start");
    }

    let repo = repository("counted", &[("Dockerfile", &dockerfile("RUN true"))]);
    world.build(&world.request(&repo)).ready();
    // The listener reads a request twice: as it was published, and when its turn has come.
    for (actor, times) in [("listener", 2), ("connector", 1), ("builder", 1), ("pusher", 1)] {
        let done = format!("image_builder_actor_done_total{{actor=\"{actor}\"}}");
        assert_eq!(worker.metric(&done) as u64, times, "{actor}");
    }
    world.finish(&[&worker]);
}
