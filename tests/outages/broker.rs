//! The broker goes away, and comes back.

use crate::rule::{all_ended_in_their_image, fresh_request_passes, quick};
use crate::support::node::Node;
use crate::support::proxy::{Network, Proxy};
use crate::support::slow::Slow;
use crate::support::world::World;
use crate::support::{runtime, until};

/// With one job at work, one waiting in the worker, and more in the queue.
fn goes_away(end: impl FnOnce(&Node)) {
    let node = Node::new(&[]);
    let world =
        World::on(node.at()).with("LISTENER_CONCURRENCY", "2").with("BUILDER_CONCURRENCY", "1");
    let worker = world.worker();
    let slow = Slow::begin(&world, &worker);
    let mut ids = vec![slow.build_id.clone()];
    let quick = quick();
    ids.extend(world.publish_many(&quick, 6));

    end(&node);
    worker.wait_for_line("lost the broker");
    until("it is not ready", || (worker.get("/readyz").0 == 503).then_some(()));
    // The build goes on, so that whoever gets the job next finds its image.
    slow.let_go();
    worker.wait_for_line("image built");
    assert!(world.managers.all().is_empty());
    node.start();

    for id in &ids {
        world.outcome(id).ready().after(1);
    }
    ids.push(fresh_request_passes(&world));
    assert_eq!(worker.restarts(), [0; 6]);
    let again = all_ended_in_their_image(&world, &[&worker], &ids);
    assert!(again <= 2, "{again} were told again, and two were in hand");
}

#[test]
fn a_restart_of_the_broker_loses_nothing() {
    goes_away(Node::stop);
}

#[test]
fn a_broker_that_is_killed_loses_nothing_that_it_has_confirmed() {
    goes_away(Node::kill);
}

#[test]
fn a_broker_that_falls_silent_is_noticed_and_waited_for() {
    let node = Node::new(&[]);
    let uri = format!("{}?heartbeat=2", node.at().uri);
    let world = World::on(node.at()).with("RABBITMQ_URI", &uri);
    let worker = world.worker();
    let slow = Slow::begin(&world, &worker);
    let mut ids = vec![slow.build_id.clone()];

    node.freeze();
    worker.wait_for_line("lost the broker");
    worker.wait_for_line("cannot reach the broker yet");
    assert_eq!(worker.get("/readyz").0, 503);
    slow.let_go();
    worker.wait_for_line("image built");
    assert!(world.managers.all().is_empty());
    node.thaw();

    world.outcome(&ids[0]).ready().after(1);
    ids.push(fresh_request_passes(&world));
    assert_eq!(worker.restarts(), [0; 6]);
    let again = all_ended_in_their_image(&world, &[&worker], &ids);
    assert!(again <= 1, "{again} were told again, and one was in hand");
}

#[test]
fn a_job_whose_worker_has_lost_its_way_to_the_broker_is_done_by_another_and_told_as_one() {
    let node = Node::new(&[]);
    let way = runtime().block_on(Proxy::start(&node.address(), Network::Up)).expect("a port");
    let world = World::on(node.at());
    let cut_off = format!("amqp://guest:guest@{}/%2f?heartbeat=2", way.address);
    let mut settings = world.settings();
    settings.insert("RABBITMQ_URI".to_owned(), cut_off);
    let first = crate::support::worker::Worker::start(&settings);
    let slow = Slow::begin(&world, &first);
    let mut ids = vec![slow.build_id.clone()];

    way.set(Network::BlackHole);
    let second = world.worker();
    // The broker has noticed as well: the job is delivered again while it is at work.
    second.wait_for_line("source fetched");
    first.wait_for_line("lost the broker");
    way.set(Network::Up);
    slow.let_go();

    world.outcome(&ids[0]).ready().after(1);
    ids.push(fresh_request_passes(&world));
    let again = all_ended_in_their_image(&world, &[&first, &second], &ids);
    assert!(again <= 1, "{again} were told again, and one was done twice");
}
