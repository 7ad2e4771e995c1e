//! A broker that is there, and that the worker cannot work with, or not in every way.

use std::time::Duration;

use serde_json::Value;

use crate::rule::{all_ended_in_their_image, fresh_request_passes};
use crate::support::broker::BrokerAt;
use crate::support::node::Node;
use crate::support::slow::Slow;
use crate::support::until;
use crate::support::worker::Worker;
use crate::support::world::World;

/// What the worker says of its broker, once it answers with this status and, if it is not ready, this.
fn broker_need(worker: &Worker, status: u16, says: &str) -> Value {
    until("it is ready, or no longer", || {
        let (answered, report) = worker.get("/readyz");
        let report: Value = serde_json::from_str(&report).expect("JSON");
        let needs = report["needs"].as_array().expect("a list");
        let broker = needs.iter().find(|need| need["name"] == "broker").expect("one").clone();
        let said = broker["detail"].as_str().unwrap_or_default().contains(says);
        (answered == status && said).then_some(broker)
    })
}

/// An idle one: nobody publishes, and so nobody hears of it by publishing.
#[test]
fn a_worker_is_not_ready_while_the_broker_takes_no_messages_and_goes_on_when_it_does() {
    let node = Node::new(&[]);
    let world = World::on(node.at());
    let worker = world.worker();
    let ready = broker_need(&worker, 200, "");
    node.ctl(&["set_vm_memory_high_watermark", "0"]);
    let blocked = broker_need(&worker, 503, "takes no messages for now: low on memory");
    assert!(blocked["since"].as_str() > ready["since"].as_str(), "{blocked}");
    node.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    let again = broker_need(&worker, 200, "");
    assert!(again["since"].as_str() > blocked["since"].as_str(), "{again}");
    let ids = [fresh_request_passes(&world)];
    assert_eq!(all_ended_in_their_image(&world, &[&worker], &ids), 0);
}

#[test]
fn while_the_broker_takes_no_messages_a_job_is_not_delivered_again_and_again() {
    /// Longer than the pause before a delivery that could not be settled comes again.
    const QUIET: Duration = Duration::from_secs(8);
    let node = Node::new(&[]);
    let world = World::on(node.at());
    let worker = world.worker();
    let slow = Slow::begin(&world, &worker);
    node.ctl(&["set_vm_memory_high_watermark", "0"]);
    broker_need(&worker, 503, "takes no messages for now");
    slow.let_go();
    worker.wait_for_line("cannot publish: the delivery goes back to its queue");
    std::thread::sleep(QUIET);
    let accepted = |worker: &Worker| {
        worker.lines().iter().filter(|line| line.contains("\"job accepted\"")).count()
    };
    assert_eq!(accepted(&worker), 1);
    node.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    world.outcome(&slow.build_id).ready().after(1);
    let ids = [slow.build_id, fresh_request_passes(&world)];
    assert_eq!(all_ended_in_their_image(&world, &[&worker], &ids), 0);
}

#[test]
fn a_user_without_the_right_to_declare_works_with_queues_that_are_there() {
    let mut world = World::new();
    let owner = world.worker();
    let mut ids = vec![fresh_request_passes(&world)];
    owner.stop();

    let user = BrokerAt::shared().user();
    let name = &world.user;
    let read = format!(r"^({name}\.(build(\.lane\..+)?|fail|outcome)|told\.{name}\.outcome)$");
    user.permit(["^$", r"^amq\.default$", &read]);
    world.settings.insert("RABBITMQ_URI".to_owned(), user.uri());
    let worker = world.worker();
    broker_need(&worker, 200, "");
    worker.wait_for_line("reading the outcome ledger");
    worker.wait_for_line("cannot listen for cancellations");
    ids.push(fresh_request_passes(&world));
    assert_eq!(worker.restarts(), [0; 6]);
    assert_eq!(all_ended_in_their_image(&world, &[&worker], &ids), 0);
}

#[test]
fn a_user_who_may_not_read_is_told_by_the_readiness_and_goes_on_once_he_may() {
    let mut world = World::new();
    let owner = world.worker();
    owner.stop();
    let user = BrokerAt::shared().user();
    user.permit([".*", ".*", r"^(amq\.gen-.*|.*\.(cancel|retry\..*))$"]);
    world.settings.insert("RABBITMQ_URI".to_owned(), user.uri());
    let worker = world.worker();
    worker.wait_for_line("cannot subscribe");
    broker_need(&worker, 503, "ACCESS_REFUSED");
    user.permit([".*"; 3]);
    broker_need(&worker, 200, "");
    let ids = [fresh_request_passes(&world)];
    assert_eq!(all_ended_in_their_image(&world, &[&worker], &ids), 0);
}
