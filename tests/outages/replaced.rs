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
    let mut replaced = Vec::new();
    let mut ids = Vec::new();
    for replica in &mut replicas {
        ids.extend(world.publish_many(&repo, 10));
        // In the middle of something.
        replica.wait_for_line("build planned");
        let old = std::mem::replace(replica, world.worker());
        old.stop();
        replaced.push(old);
    }
    for id in &ids {
        world.outcome(id).ready().after(1);
    }
    assert_eq!(all_ended_in_their_image(&world, &replicas.each_ref(), &ids), 0);
}
