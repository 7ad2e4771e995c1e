//! How much is done at once, counted where it is done: on the engine, at the forge, at the registry
//! and at the broker.

use std::collections::BTreeSet;

use crate::support::git_server::{self, GitRepo};
use crate::support::stand_in::{Answer, Asked, StandIn};
use crate::support::turnstile::{Steps, Turnstile};
use crate::support::until;
use crate::support::worker::Worker;
use crate::support::world::{World, held_repository, repository, with};
use crate::support::{registry, runtime};
use serde_json::{Value, json};

/// Waits until exactly so many jobs wait for a slot of this actor.
#[track_caller]
fn until_waiting(worker: &Worker, actor: &str, jobs: usize) {
    until("the others wait", || (worker.waiting(actor) == jobs).then_some(()));
}

/// Lets jobs go one by one that an actor has `most` of at once, while all others wait as `wait` sees it: it is
/// never more, and as many as that for as long as there are as many left.
#[track_caller]
fn never_more_than(most: usize, turnstile: &Turnstile, jobs: usize, wait: impl Fn(usize)) {
    for gone in 0..jobs {
        let left = jobs - gone;
        let wanted = most.min(left);
        let now = turnstile.until("all slots are taken", |count| {
            count.came.len() == gone + wanted && count.inside().len() == wanted
        });
        wait(left - wanted);
        assert_eq!(turnstile.count().inside(), now.inside(), "those who wait do wait");
        let next = now.inside().pop_first().expect("somebody is inside");
        turnstile.let_go(&next);
        turnstile.until("it is gone", |count| !count.inside().contains(&next));
    }
    assert_eq!(turnstile.count().most(), most);
}

/// A world whose one stage of interest has `n` slots, with room for all jobs of a test.
fn world(stage: &str, n: usize, jobs: usize) -> World {
    World::new()
        .with("LISTENER_CONCURRENCY", &jobs.to_string())
        .with(&format!("{stage}_CONCURRENCY"), &n.to_string())
}

/// Publishes jobs of different users: none of them is throttled for another.
fn publish(world: &World, jobs: usize, request: impl Fn(&str) -> Value) -> BTreeSet<String> {
    let user = |n| format!("{}-{n}", world.user);
    (0..jobs).map(|n| world.publish(&request(&user(n)))).collect()
}

#[track_caller]
fn all_end_well(world: &World, worker: &Worker, published: &BTreeSet<String>) {
    for build_id in published {
        world.outcome(build_id).ready().after(1);
    }
    let (told, letters) = world.finish(&[worker]);
    assert_eq!((told.len(), letters.len()), (published.len(), 0));
}

#[track_caller]
fn builders(n: usize) {
    let jobs = 2 * n + 2;
    let world = world("BUILDER", n, n);
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let worker = world.worker();
    let published = publish(&world, jobs, |user| world.held_request(&repo, user));
    // Nothing is taken ahead: others have no builder, and are in no worker.
    never_more_than(n, &steps.turnstile, jobs, |others| world.until_in_lanes(others));
    all_end_well(&world, &worker, &published);
}

#[test]
fn one_build_at_once_where_there_is_one_builder() {
    builders(1);
}

#[test]
fn two_builds_at_once_where_there_are_two_builders() {
    builders(2);
}

#[test]
fn three_builds_at_once_where_there_are_three_builders() {
    builders(3);
}

/// A server before another one, where what has a name is held.
pub(crate) fn before(
    server: String,
    turnstile: &Turnstile,
    name: fn(&Asked) -> Option<&str>,
) -> StandIn {
    let turnstile = turnstile.clone();
    runtime().block_on(StandIn::start(move |asked| {
        let passed_on = Answer::From(server.clone());
        let Some(name) = name(asked) else { return passed_on };
        let inside = turnstile.enter(name);
        Answer::Later(Box::pin(async move {
            inside.held().await;
            passed_on
        }))
    }))
}

#[test]
fn no_more_repositories_are_cloned_at_once_than_there_are_connectors() {
    const JOBS: usize = 5;
    let turnstile = Turnstile::new();
    // The repository's name: `/owner/name.git/info/refs`.
    let forge = before(git_server::server_url(), &turnstile, |asked| asked.path.split('/').nth(2));
    let world = world("CONNECTOR", 2, JOBS).with("GITHUB_URL", &forge.url());
    let worker = world.worker();
    let repos: Vec<GitRepo> =
        (0..JOBS).map(|_| repository("cloned", &[("Dockerfile", FROM_NOTHING)])).collect();
    let mut next = repos.iter();
    let published: BTreeSet<String> = std::iter::from_fn(|| next.next())
        .enumerate()
        .map(|(n, repo)| {
            let user = json!({"userID": format!("{}-{n}", world.user)});
            world.publish(&with(world.request(repo), user))
        })
        .collect();
    never_more_than(2, &turnstile, JOBS, |others| until_waiting(&worker, "connector", others));
    all_end_well(&world, &worker, &published);
}

/// An image that is small enough to be pushed through anything.
const FROM_NOTHING: &str = "FROM scratch\nCOPY . /\n";

#[test]
fn no_more_images_are_pushed_at_once_than_there_are_pushers() {
    const JOBS: usize = 5;
    let turnstile = Turnstile::new();
    // Of what writes, the repository's name: `/v2/user/application/manifests/tag`.
    let registry = before(format!("http://{}", registry::open()), &turnstile, |asked| {
        let writes = ["POST", "PATCH", "PUT"].contains(&asked.method.as_str());
        asked.path.split('/').nth(3).filter(|_| writes)
    });
    let world = world("PUSHER", 2, JOBS)
        .with("BUILDER_CONCURRENCY", "3")
        .with("REGISTRY_URL", &registry.address.to_string());
    let worker = world.worker();
    let repo = repository("pushed", &[("Dockerfile", FROM_NOTHING)]);
    let published = publish(&world, JOBS, |user| world.held_request(&repo, user));
    never_more_than(2, &turnstile, JOBS, |others| until_waiting(&worker, "pusher", others));
    all_end_well(&world, &worker, &published);
}

#[test]
fn no_more_builds_are_in_hand_than_the_worker_has_room_for_though_a_builder_is_free() {
    const JOBS: usize = 6;
    const ROOM: usize = 3;
    let turnstile = Turnstile::new();
    let registry = before(format!("http://{}", registry::open()), &turnstile, |asked| {
        let writes = ["POST", "PATCH", "PUT"].contains(&asked.method.as_str());
        asked.path.split('/').nth(3).filter(|_| writes)
    });
    let world = world("PUSHER", 1, ROOM).with("REGISTRY_URL", &registry.address.to_string());
    let worker = world.worker();
    let repo = repository("roomy", &[("Dockerfile", FROM_NOTHING)]);
    let published = publish(&world, JOBS, |user| world.held_request(&repo, user));
    for gone in 0..=JOBS - ROOM {
        until_waiting(&worker, "pusher", ROOM - 1);
        let now = turnstile.until("one is pushed", |count| count.came.len() == gone + 1);
        world.until_in_lanes(JOBS - gone - ROOM);
        turnstile.let_go(now.came.last().expect("one is pushed"));
    }
    turnstile.let_all_go();
    all_end_well(&world, &worker, &published);
}
