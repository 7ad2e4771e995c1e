//! There is nowhere to put an outcome.

use crate::rule::{all_ended_in_their_image, fresh_request_passes};
use crate::support::broker::BrokerAt;
use crate::support::slow::Slow;
use crate::support::world::World;

#[test]
fn a_build_stays_in_its_queue_until_its_outcome_has_found_one() {
    let user = BrokerAt::shared().user();
    let world = World::new().with("RABBITMQ_URI", &user.uri());
    let worker = world.worker();
    let slow = Slow::begin(&world, &worker);
    let mut ids = vec![slow.build_id.clone()];

    // Nor can the worker make the queue anew.
    user.permit([r"^(?!.*\.outcome$)", ".*", ".*"]);
    world.broker.delete_queue(&world.settings["OUTCOME_QUEUE"]);
    slow.let_go();
    worker.wait_for_line("cannot publish: the delivery goes back to its queue");
    assert!(world.managers.all().is_empty());
    user.permit([".*"; 3]);

    world.outcome(&ids[0]).ready().after(1);
    ids.push(fresh_request_passes(&world));
    assert_eq!(worker.restarts(), [0; 6]);
    assert_eq!(all_ended_in_their_image(&world, &[&worker], &ids), 0);
}

#[test]
fn an_outcome_queue_that_is_deleted_is_made_anew() {
    let world = World::new();
    let worker = world.worker();
    let slow = Slow::begin(&world, &worker);
    let mut ids = vec![slow.build_id.clone()];
    world.broker.delete_queue(&world.settings["OUTCOME_QUEUE"]);
    slow.let_go();
    world.outcome(&ids[0]).ready().after(1);
    ids.push(fresh_request_passes(&world));
    assert_eq!(worker.restarts(), [0; 6]);
    assert_eq!(all_ended_in_their_image(&world, &[&worker], &ids), 0);
}
