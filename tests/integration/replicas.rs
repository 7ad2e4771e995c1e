//! Several workers on one queue.

use std::collections::BTreeSet;

use crate::support::world::{World, dockerfile, repository};

#[test]
fn three_replicas_share_one_queue_and_each_build_is_done_once() {
    let world = World::new().with("LISTENER_CONCURRENCY", "2").with("BUILDER_CONCURRENCY", "1");
    let repo = repository("shared-work", &[("Dockerfile", &dockerfile("COPY . /src"))]);
    let settings = [world.settings(), world.settings(), world.settings()];
    let workers = settings.map(|settings| crate::support::worker::Worker::spawn(&settings));
    for worker in &workers {
        worker.wait_for_line("at work");
    }
    let published: BTreeSet<String> = world.publish_many(&repo, 30).into_iter().collect();
    for build_id in &published {
        world.outcome(build_id).ready();
    }
    for worker in &workers {
        let pushed = "image_builder_actor_done_total{actor=\"pusher\"}";
        assert!(worker.metric(pushed) >= 1.0, "every replica has its share");
    }
    let (told, letters) = world.finish(&workers.each_ref());
    let ids: BTreeSet<String> = told.iter().map(|told| told.build_id().to_owned()).collect();
    assert_eq!(ids, published);
    assert_eq!(told.len(), 30, "none was told twice");
    assert!(letters.is_empty());
    let built = workers.iter().flat_map(|worker| worker.lines());
    assert_eq!(
        built.filter(|line| line.contains("\"image built\"")).count(),
        30,
        "none was built twice"
    );
}
