//! A request that kills its worker every time.

use serde_json::json;

use crate::rule::quick;
use crate::support::until;
use crate::support::worker::Worker;
use crate::support::world::{World, dockerfile, repository, with};

/// Deliveries that a limit of twenty lets through.
const DELIVERIES: usize = 21;

#[test]
fn a_request_that_kills_every_worker_is_given_up_and_costs_nobody_else_anything() {
    let world = World::new();
    let settings = world.settings();
    let mut worker = Worker::start(&settings);
    let repo = repository("killer", &[("Dockerfile", &dockerfile("RUN sleep 100"))]);
    let killer = world.publish(&world.request(&repo));
    let repo = quick();
    let others: Vec<String> = (0..6)
        .map(|n| {
            let user = json!({"userID": format!("{}-{n}", world.user)});
            world.publish(&with(world.request(&repo), user))
        })
        .collect();

    // Whenever the killer is about to be built, its worker dies, and is started again.
    let mut kills = 0;
    while until("the killer is worked on, or given up", || {
        let at_work = |line: &String| line.contains("build planned") && line.contains(&killer);
        if worker.lines().iter().any(at_work) {
            return Some(true);
        }
        (!world.managers.of(&killer).is_empty()).then_some(false)
    }) {
        worker.kill();
        worker.wait();
        kills += 1;
        worker = Worker::start(&settings);
    }
    assert_eq!(kills, DELIVERIES);

    world.outcome(&killer).failed("crashed");
    for id in &others {
        world.outcome(id).ready().after(1);
    }
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!(told.len(), 1 + others.len(), "each is told once: {told:?}");
    let [letter] = &letters[..] else { panic!("one dead letter: {letters:?}") };
    assert!(letter.text.contains(&killer) && letter.text.contains("crashed"), "{letter:?}");
}
