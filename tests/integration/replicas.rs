//! Several workers on one queue.

use std::collections::BTreeSet;

use crate::support::turnstile::Steps;
use crate::support::worker::Worker;
use crate::support::world::{World, dockerfile, held_repository, repository};

#[test]
fn three_replicas_share_one_queue_and_each_build_is_done_once() {
    let world = World::new().with("BUILDER_CONCURRENCY", "1");
    let repo = repository("shared-work", &[("Dockerfile", &dockerfile("COPY . /src"))]);
    let settings = [world.settings(), world.settings(), world.settings()];
    let workers = settings.map(|settings| Worker::spawn(&settings));
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

#[test]
fn one_of_three_replicas_is_killed_in_the_middle_of_an_uneven_flood_and_nothing_is_lost() {
    let world = World::new().with("BUILDER_NETWORK", "host").with("BUILDER_CONCURRENCY", "1");
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let [killed, one, other] = [(); 3].map(|()| world.worker());
    let mut published = Vec::new();
    for (user, builds) in [("flood", 20), ("some", 4), ("single", 1)] {
        let user = format!("{}-{user}", world.user);
        published.extend((0..builds).map(|_| world.publish(&world.held_request(&repo, &user))));
    }
    let count = steps.turnstile.until("each builds one", |count| count.inside().len() == 3);
    world.until_in_lanes(published.len() - 3);
    killed.kill();
    assert_eq!(killed.wait(), -1);
    steps.turnstile.let_all_go();
    for build_id in &published {
        world.outcome(build_id).ready();
    }
    let (told, letters) = world.finish(&[&one, &other]);
    let ids: BTreeSet<&str> = told.iter().map(|told| told.build_id()).collect();
    assert_eq!((ids.len(), told.len(), letters.len()), (25, 25, 0));
    let rebuilt = count.inside().into_iter().filter(|build_id| {
        let begun = |worker: &Worker| {
            worker
                .lines()
                .iter()
                .any(|line| line.contains("job accepted") && line.contains(build_id))
        };
        begun(&killed) && (begun(&one) || begun(&other))
    });
    assert_eq!(rebuilt.count(), 1, "what the killed one had is done by another");
}
