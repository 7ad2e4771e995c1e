//! Users share the builders of all workers: nothing waits while one is free, and what one user floods the
//! queue with does not hold up another.

use std::collections::BTreeSet;

use crate::support::git_server::GitRepo;
use crate::support::turnstile::Steps;
use crate::support::worker::Worker;
use crate::support::world::{World, held_repository};

const FLOOD: usize = 50;

/// A world of builds that are held on the engine.
struct Shared {
    world: World,
    steps: Steps,
    repo: GitRepo,
}

impl Shared {
    /// Of workers that have so many builders each.
    fn new(builders: usize) -> Self {
        let world = World::new()
            .with("BUILDER_CONCURRENCY", &builders.to_string())
            // On a slow machine none is taken for the builder of one whose source takes long to fetch.
            .with("LISTENER_CONCURRENCY", &builders.to_string());
        let steps = Steps::start();
        let repo = held_repository(&steps);
        Self { world, steps, repo }
    }

    fn user(&self, name: &str) -> String {
        format!("{}-{name}", self.world.user)
    }

    fn publish(&self, user: &str, builds: usize) -> Vec<String> {
        let user = self.user(user);
        let publish = |_| self.world.publish(&self.world.held_request(&self.repo, &user));
        (0..builds).map(publish).collect()
    }

    #[track_caller]
    fn until_inside(&self, builds: usize) {
        self.steps.turnstile.until("all builders have one", |count| count.inside().len() == builds);
    }

    /// Lets one of those go that are built; returns the one that is begun in its place.
    #[track_caller]
    fn next(&self) -> String {
        let before = self.steps.turnstile.count();
        let gone = before.inside().pop_first().expect("one is built");
        self.steps.turnstile.let_go(&gone);
        let next = |came: &[String]| came.len() > before.came.len();
        let after = self.steps.turnstile.until("the next one builds", |count| next(&count.came));
        after.came[before.came.len()].clone()
    }

    /// Cancels what is left of a user's flood, and checks that each of these builds had its one end.
    #[track_caller]
    fn end(&self, workers: &[&Worker], all: &[String], flood: (&str, &[String])) {
        let built = self.steps.turnstile.count().came;
        let left: Vec<_> = flood.1.iter().filter(|id| !built.contains(id)).collect();
        for build_id in &left {
            self.world.cancel_of(&self.user(flood.0), build_id);
        }
        let last = left.last().expect("some of the flood are left");
        for worker in workers {
            worker.wait_for_line_where("it hears of the last one", |line| {
                line.contains("asked to cancel") && line.contains(last.as_str())
            });
        }
        self.steps.turnstile.let_all_go();
        for build_id in all.iter().chain(flood.1) {
            let told = self.world.outcome(build_id);
            match left.contains(&build_id) {
                true => told.cancelled("cancelled").after(0),
                false => told.ready().after(1),
            };
        }
        let (told, letters) = self.world.finish(workers);
        assert_eq!((told.len(), letters.len()), (all.len() + flood.1.len(), left.len()));
    }
}

/// A user floods the workers; of another one's build no more is needed than that it waits, and the next
/// builder that comes free is theirs, however many of the flood's have waited for longer.
#[track_caller]
fn anothers_first_build_is_the_next(builders: usize, workers: usize) {
    let shared = Shared::new(builders);
    let all = builders * workers;
    let workers: Vec<Worker> = (0..workers).map(|_| shared.world.worker()).collect();
    let flood = shared.publish("flood", FLOOD);
    shared.until_inside(all);
    shared.world.until_in_lanes(FLOOD - all);

    let others = ["other", "another"].map(|other| {
        let build_id = shared.publish(other, 1).remove(0);
        shared.world.until_in_lanes(shared.world.in_lanes().max(FLOOD - all + 1));
        assert_eq!(shared.next(), build_id);
        // The flood goes on behind it.
        shared.world.until_in_lanes(FLOOD - all);
        build_id
    });
    let workers: Vec<&Worker> = workers.iter().collect();
    shared.end(&workers, &others, ("flood", &flood));
}

#[test]
fn a_flood_starts_no_further_build_before_anothers_first_on_two_builders() {
    anothers_first_build_is_the_next(2, 1);
}

#[test]
fn a_flood_starts_no_further_build_before_anothers_first_on_one_builder() {
    anothers_first_build_is_the_next(1, 1);
}

#[test]
fn a_flood_starts_no_further_build_before_anothers_first_on_three_replicas() {
    anothers_first_build_is_the_next(1, 3);
}

#[test]
fn nothing_waits_in_one_replica_while_another_has_a_free_builder() {
    let shared = Shared::new(2);
    let workers = [(); 3].map(|()| shared.world.worker());
    let mut published = Vec::new();
    for builds in [1, 3, 2] {
        published.extend(shared.publish("few", builds));
        shared.until_inside(published.len());
    }
    // All are taken: what comes now waits on the broker, and goes to whichever comes free first.
    let late = shared.publish("few", 1).remove(0);
    shared.world.until_in_lanes(1);
    assert_eq!(shared.next(), late);
    shared.steps.turnstile.let_all_go();
    for build_id in published.iter().chain([&late]) {
        shared.world.outcome(build_id).ready().after(1);
    }
    let (told, letters) = shared.world.finish(&workers.each_ref());
    assert_eq!((told.len(), letters.len()), (7, 0));
}

#[test]
fn more_users_than_lanes_flood_the_workers_and_one_beside_them_is_the_next() {
    const USERS: usize = 5;
    const BUILDS: usize = 6;
    let mut shared = Shared::new(USERS);
    shared.world = shared.world.with("BUILD_LANES", "2");
    let worker = shared.world.worker();
    let name = |user: usize| format!("flood{user}");
    let mut floods = vec![Vec::new(); USERS];
    for _ in 0..BUILDS {
        for (user, flood) in floods.iter_mut().enumerate() {
            flood.extend(shared.publish(&name(user), 1));
        }
    }
    shared.until_inside(USERS);
    shared.world.until_in_lanes(USERS * (BUILDS - 1));
    let users: BTreeSet<usize> = shared
        .steps
        .turnstile
        .count()
        .inside()
        .iter()
        .filter_map(|build_id| floods.iter().position(|flood| flood.contains(build_id)))
        .collect();
    assert_eq!(users.len(), USERS, "each of them has a builder");

    let other = shared.publish("other", 1).remove(0);
    shared.world.until_in_lanes(USERS * (BUILDS - 1) + 1);
    assert_eq!(shared.next(), other);
    let mut all = vec![other];
    for flood in &floods[1..] {
        all.extend(flood.iter().cloned());
    }
    shared.steps.turnstile.let_all_go();
    for build_id in all.iter().chain(&floods[0]) {
        shared.world.outcome(build_id).ready().after(1);
    }
    let (told, _) = shared.world.finish(&[&worker]);
    assert_eq!(told.len(), USERS * BUILDS + 1);
}

#[test]
fn one_user_never_has_more_builders_than_their_share_though_one_is_free() {
    let mut shared = Shared::new(2);
    shared.world = shared.world.with("BUILDER_PER_USER", "1");
    let worker = shared.world.worker();
    let turnstile = &shared.steps.turnstile;
    let alices = shared.publish("alice", 8);
    shared.until_inside(1);
    shared.world.until_in_lanes(7);
    assert_eq!(turnstile.count().inside().len(), 1);

    // All that wait before them may not be had: they have the builder that is free, one after the other.
    let bobs = shared.publish("bob", 3);
    shared.until_inside(2);
    shared.world.until_in_lanes(9);
    let alice = turnstile.count().came.remove(0);
    for built in 1..=3 {
        let now = turnstile.until("one each builds", |count| count.came.len() == 1 + built);
        assert!(bobs.contains(&now.came[built]), "{now:?}");
        assert!(now.inside().contains(&alice));
        turnstile.let_go(&now.came[built]);
    }
    turnstile.let_all_go();
    for build_id in alices.iter().chain(&bobs) {
        shared.world.outcome(build_id).ready();
    }
    for moment in turnstile.count().moments {
        for user in [&alices, &bobs] {
            let builds = moment.iter().filter(|id| user.contains(id)).count();
            assert!(builds <= 1, "{moment:?}");
        }
    }
    let (told, _) = shared.world.finish(&[&worker]);
    assert_eq!(told.len(), alices.len() + bobs.len());
}
