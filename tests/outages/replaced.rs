//! Replicas are replaced one after another.

use crate::rule::all_ended_in_their_image;
use crate::support::world::{World, dockerfile, repository};

#[test]
fn replicas_that_are_replaced_one_after_another_lose_nothing_and_tell_nothing_twice() {
    let world = World::new()
        .with("LISTENER_CONCURRENCY", "3")
        .with("BUILDER_CONCURRENCY", "1")
        .with("DRAIN_TIMEOUT", "1s");
    let repo = repository("rolling", &[("Dockerfile", &dockerfile("COPY . /src\nRUN sleep 1"))]);
    let mut replicas = [world.worker(), world.worker(), world.worker()];
    let mut ids = Vec::new();
    for replica in 0..replicas.len() {
        let publish = |n| {
            let application = serde_json::json!({"applicationID": format!("app-{replica}-{n}")});
            world.publish(&crate::support::world::with(world.request(&repo), application))
        };
        ids.extend((0..10).map(publish));
        // In the middle of something.
        replicas[replica].wait_for_line("build planned");
        let new = world.worker();
        replicas[replica].stop();
        replicas[replica] = new;
    }
    for id in &ids {
        world.outcome(id).ready();
    }
    assert_eq!(all_ended_in_their_image(&world, &replicas.each_ref(), &ids), 0);
}
