//! Several workers on one queue.

use std::collections::BTreeSet;

use crate::concurrency::before;
use crate::support::git_server;
use crate::support::turnstile::{Steps, Turnstile};
use crate::support::until;
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
    let world = World::new().with("BUILDER_CONCURRENCY", "1").with("LISTENER_CONCURRENCY", "1");
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
    // Only what was begun is charged.
    let charged: BTreeSet<String> = [&one, &other]
        .into_iter()
        .flat_map(Worker::lines)
        .filter(|line| line.contains("\"job accepted\"") && !line.contains("\"redeliveries\":0"))
        .collect();
    let inside = count.inside();
    assert_eq!(charged.len(), 1, "{charged:?}");
    assert!(charged.iter().all(|line| inside.iter().any(|id| line.contains(id))), "{charged:?}");
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

#[test]
fn a_build_that_waits_in_one_replica_is_done_by_another_that_has_nothing_to_do() {
    let forge = Turnstile::new();
    let server = before(git_server::server_url(), &forge, |asked| asked.path.split('/').nth(2));
    let world = World::new().with("BUILDER_CONCURRENCY", "1").with("GITHUB_URL", &server.url());
    let steps = Steps::start();
    let busy = world.worker();
    // While a source takes long to fetch, its builder is another one's.
    let repos = [(); 2].map(|()| held_repository(&steps));
    let published = [0, 1].map(|n| {
        let user = format!("{}-{n}", world.user);
        let build_id = world.publish(&world.held_request(&repos[n], &user));
        busy.wait_for_line_where("it is taken", |line| {
            line.contains("job accepted") && line.contains(&build_id)
        });
        build_id
    });
    forge.let_all_go();
    steps.turnstile.until("one is built", |count| count.inside().len() == 1);
    until("the other waits", || (busy.waiting("builder") == 1).then_some(()));

    let idle = world.worker();
    steps.turnstile.until("both are built", |count| count.inside().len() == 2);
    steps.turnstile.let_all_go();
    for build_id in &published {
        world.outcome(build_id).ready().after(1);
    }
    let (told, letters) = world.finish(&[&busy, &idle]);
    assert_eq!((told.len(), letters.len()), (2, 0));
}
