//! The broker takes a subscription away, and keeps the connection.

use crate::rule::{all_ended_in_their_image, fresh_request_passes};
use crate::support::node::Node;
use crate::support::slow::Slow;
use crate::support::until;
use crate::support::worker::Worker;
use crate::support::world::World;

fn lines_with(worker: &Worker, text: &str) -> usize {
    worker.lines().iter().filter(|line| line.contains(text)).count()
}

/// The worker is told nothing of it: by its own settings it has half an hour.
#[test]
fn a_job_that_is_held_for_longer_than_the_broker_grants_ends_in_one_outcome() {
    let node = Node::new(&["consumer_timeout = 15000"]);
    let world = World::on(node.at());
    let worker = world.worker();
    let slow = Slow::begin(&world, &worker);
    let mut ids = vec![slow.build_id.clone()];
    worker.wait_for_line("the backlog was closed");
    slow.let_go();
    world.outcome(&ids[0]).ready().after(1);
    ids.push(fresh_request_passes(&world));
    assert_eq!(worker.restarts(), [0; 6]);
    assert_eq!(lines_with(&worker, "lost the broker"), 0);
    assert_eq!(slow.times_begun(&worker), 1, "what is delivered again waits for the first build");
    all_ended_in_their_image(&world, &[&worker], &ids);
}

#[test]
fn a_worker_whose_queue_is_deleted_makes_it_anew_and_goes_on() {
    let world = World::new().with("RUST_LOG", "info,image_builder_actors=debug");
    let worker = world.worker();
    let mut ids = vec![fresh_request_passes(&world)];
    let subscribed = lines_with(&worker, "\"subscribed\"");
    world.broker.delete_queue(&world.settings["BUILD_QUEUE"]);
    let told = worker.wait_for_line("the broker ended a subscription");
    assert!(told.contains("RABBITMQ_CONSUMER_TIMEOUT"), "{told}");
    until("it subscribes again", || {
        (lines_with(&worker, "\"subscribed\"") > subscribed).then_some(())
    });
    ids.push(fresh_request_passes(&world));
    assert_eq!(worker.restarts(), [0; 6]);
    assert_eq!(all_ended_in_their_image(&world, &[&worker], &ids), 0);
}

#[test]
fn a_log_that_is_deleted_is_made_anew() {
    const READ: &str = "reading the outcome ledger";
    let world = World::new();
    let worker = world.worker();
    let mut ids = vec![fresh_request_passes(&world)];
    let read = lines_with(&worker, READ);
    world.broker.delete_queue(&format!("told.{}", world.settings["OUTCOME_QUEUE"]));
    until("it reads it again", || (lines_with(&worker, READ) > read).then_some(()));
    ids.push(fresh_request_passes(&world));
    assert_eq!(lines_with(&worker, "cannot claim"), 0);
    assert_eq!(all_ended_in_their_image(&world, &[&worker], &ids), 0);
}
