//! Users share the engine: what one of them floods the queue with does not hold up another.

use crate::support::git_server::GitRepo;
use crate::support::turnstile::Steps;
use crate::support::until;
use crate::support::worker::Worker;
use crate::support::world::{World, held_repository};

const FLOOD: usize = 50;

/// A world of builds that are held on the engine, with a user who floods it and another one.
struct Shared {
    world: World,
    steps: Steps,
    repo: GitRepo,
}

impl Shared {
    fn new(builders: usize, listener: usize) -> Self {
        let world = World::new()
            .with("BUILDER_NETWORK", "host")
            .with("BUILDER_CONCURRENCY", &builders.to_string())
            .with("LISTENER_CONCURRENCY", &listener.to_string());
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

    /// Cancels what is left of the flood, and checks that every build of both users had its one end.
    #[track_caller]
    fn end(&self, workers: &[&Worker], flood: &[String], other: &str) {
        let built = self.steps.turnstile.count().came;
        let left: Vec<_> = flood.iter().filter(|id| !built.contains(id)).collect();
        for build_id in &left {
            self.world.cancel_of(&self.user("flood"), build_id);
        }
        for build_id in &left {
            self.world.outcome(build_id).cancelled("cancelled");
        }
        self.steps.turnstile.let_all_go();
        for build_id in &built {
            self.world.outcome(build_id).ready().after(1);
        }
        assert!(built.iter().any(|id| id == other));
        let (told, letters) = self.world.finish(workers);
        assert_eq!((told.len(), letters.len()), (flood.len() + 1, left.len()));
    }
}

/// Whether this worker has fetched the source of this build.
fn has_fetched(worker: &Worker, build_id: &str) -> bool {
    let fetched = |line: &String| line.contains("\"source fetched\"") && line.contains(build_id);
    worker.lines().iter().any(fetched)
}

/// A user floods a worker; of another one's build no more is needed than that it waits, and the next
/// builder that is free is theirs, however many of the flood's have waited for longer.
#[track_caller]
fn anothers_first_build_is_the_next(builders: usize, listener: usize) {
    let shared = Shared::new(builders, listener);
    let worker = shared.world.worker();
    let turnstile = &shared.steps.turnstile;
    let until_waiting = |jobs| {
        until("the others wait", || (worker.waiting("builder") == jobs).then_some(()));
    };
    let flood = shared.publish("flood", FLOOD);
    turnstile.until("the flood has all builders", |count| count.inside().len() == builders);
    // One place stays in sight of others.
    until_waiting(listener - 1 - builders);

    let other = shared.publish("other", 1).remove(0);
    until("the other one is in sight", || has_fetched(&worker, &other).then_some(()));
    until_waiting(listener - builders);
    let before = turnstile.count();
    assert_eq!(before.came.len(), builders, "nothing has begun meanwhile");
    turnstile.let_go(&before.came[0]);
    let after = turnstile.until("the next one builds", |count| count.came.len() > builders);
    assert_eq!(after.came[builders], other);
    shared.end(&[&worker], &flood, &other);
}

#[test]
fn a_flood_starts_no_further_build_before_anothers_first_on_two_builders() {
    anothers_first_build_is_the_next(2, 4);
}

#[test]
fn a_flood_starts_no_further_build_before_anothers_first_on_one_builder_with_a_deep_mailbox() {
    anothers_first_build_is_the_next(1, 8);
}

#[test]
fn on_three_replicas_a_flood_starts_one_further_build_a_builder_at_the_most() {
    let shared = Shared::new(1, 3);
    let workers = [(); 3].map(|()| shared.world.worker());
    let turnstile = &shared.steps.turnstile;
    let flood = shared.publish("flood", FLOOD);
    turnstile.until("the flood has all builders", |count| count.inside().len() == 3);
    let waiting = || workers.each_ref().map(|worker| worker.waiting("builder"));
    until("more of it waits everywhere", || (waiting() == [1; 3]).then_some(()));

    let other = shared.publish("other", 1).remove(0);
    until("the other one waits as well", || {
        let there = workers.iter().find(|worker| has_fetched(worker, &other));
        there.filter(|worker| worker.waiting("builder") == 2)
    });
    let before = turnstile.count();
    assert_eq!(before.came.len(), 3);
    before.came.iter().for_each(|build_id| turnstile.let_go(build_id));
    // One each: what has begun is held.
    let after = turnstile.until("the next ones build", |count| count.came.len() == 6);
    assert!(after.came[3..].contains(&other), "{after:?}");
    shared.end(&workers.each_ref(), &flood, &other);
}

#[test]
fn one_user_never_has_more_builders_than_their_share_though_one_is_free() {
    let mut shared = Shared::new(2, 8);
    shared.world = shared.world.with("BUILDER_PER_USER", "1");
    let worker = shared.world.worker();
    let turnstile = &shared.steps.turnstile;
    let alices = shared.publish("alice", 3);
    turnstile.until("one of them builds", |count| count.inside().len() == 1);
    until("the others wait", || (worker.waiting("builder") == 2).then_some(()));
    assert_eq!(turnstile.count().inside().len(), 1);

    let bobs = shared.publish("bob", 3);
    turnstile.until("one each builds", |count| count.inside().len() == 2);
    until("the others wait", || (worker.waiting("builder") == 4).then_some(()));
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
    assert_eq!(told.len(), 6);
}
