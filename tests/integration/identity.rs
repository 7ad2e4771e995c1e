//! Build ids: the client's own, the message's, or one that is given.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use lapin::BasicProperties;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::managers::Notification;
use crate::support::marked::Marked;
use crate::support::stand_in::{Answer, StandIn};
use crate::support::turnstile::Steps;
use crate::support::worker::Worker;
use crate::support::world::{World, dockerfile, full_name, repository, shared, with};
use crate::support::{registry, runtime, unique, until};

#[test]
fn a_build_has_the_id_that_its_request_brings() {
    let world = shared();
    let repo = repository("ids", &[("Dockerfile", &dockerfile("RUN true"))]);
    let told = world.build(&world.request(&repo)).ready();
    assert_eq!(told.webhook_id, told.own_id());

    let id = unique("message");
    let mut request = world.request(&repo);
    request.as_object_mut().expect("it is an object").remove("uuid");
    let properties = || BasicProperties::default().with_message_id(id.as_str().into());
    world.publish_raw(request.to_string().as_bytes(), properties());
    let told = world.outcome(&id).ready();
    assert_eq!(told.webhook_id, told.own_id());
}

#[test]
fn a_request_without_an_id_is_given_one_and_told_once() {
    let world = World::new();
    let worker = world.worker();
    let repo = repository("no-id", &[("Dockerfile", &dockerfile("RUN true"))]);
    let mut request = world.request(&repo);
    request.as_object_mut().expect("it is an object").remove("uuid");
    world.publish(&request);
    let told = world.outcome_where("the build without an id", |_| true).ready();
    assert!(!told.build_id().is_empty());
    let (all, _) = world.finish(&[&worker]);
    assert_eq!(all.len(), 1);
}

#[test]
fn two_users_who_chose_one_id_both_have_their_build() {
    let world = World::new();
    let worker = world.worker();
    let repo = repository("one-id", &[("Dockerfile", &dockerfile("RUN true"))]);
    let users = ["a", "b"].map(|name| format!("{}-{name}", world.user));
    let request = world.request(&repo);
    for user in &users {
        world.publish(&with(request.clone(), json!({"userID": user})));
    }
    let told = users.each_ref().map(|user| {
        world.outcome_where("the build of a user", |told| told.text("/userID") == user).ready()
    });
    for (told, user) in told.iter().zip(&users) {
        assert!(told.text("/image/repository").contains(user.as_str()), "{}", told.raw);
        assert_eq!((told.build_id(), &told.webhook_id), (told.build_id(), &told.own_id()));
        assert_eq!(told.data()["reused"], false);
    }
    assert_eq!(told[0].build_id(), told[1].build_id());
    assert_ne!(told[0].webhook_id, told[1].webhook_id);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (2, 0));
}

#[test]
fn an_id_that_is_used_again_for_another_repository_is_told_how_that_one_ends() {
    let world = World::new().with("RETRY_MAX_ATTEMPTS", "2");
    let worker = world.worker();
    let good = repository("first", &[("Dockerfile", &dockerfile("RUN true"))]);
    let bad = repository("second", &[("Dockerfile", &dockerfile("RUN exit 3"))]);
    let of_one = json!({"applicationID": unique("app"), "uuid": unique("again")});
    world.build(&with(world.request(&good), of_one.clone())).ready();
    world.publish(&with(world.request(&bad), of_one));
    // Retried, so that the image of the build is looked for before it is given up.
    let told = world.outcome_where("the second", |told| told.kind() == "build.failed");
    assert_eq!(told.failed("build_failed").after(2).text("/repo"), full_name(&bad));
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (2, 1));
}

#[test]
fn a_request_that_may_be_read_in_two_ways_builds_nothing_for_anybody() {
    let world = World::new();
    let worker = world.worker();
    let repo = repository("two-ways", &[("Dockerfile", &dockerfile("RUN true"))]);
    let (user, repo) = (&world.user, full_name(&repo));
    // Nobody can tell whose these are.
    for body in [
        format!(r#"{{"userID":"{user}","userID":"{user}-2","repo":"{repo}"}}"#),
        format!(r#"{{"userID":"{user}-2","\u0075serID":"{user}","repo":"{repo}"}}"#),
        format!(r#"{{"userID":"{user}-2","pullInfo":{{"userID":"{user}","repo":"{repo}"}}}}"#),
    ] {
        world.publish_raw(body.as_bytes(), BasicProperties::default());
    }
    let whose = [
        (user.clone(), format!(r#","repo":"{repo}","repo":"o/n""#)),
        (
            user.clone(),
            format!(r#","repo":"{repo}","buildPlan":{{"buildArgs":{{"A":"1","A":"2"}}}}"#),
        ),
        (format!("{user}\n"), format!(r#","repo":"{repo}""#)),
        (format!("\u{2003}{user}"), format!(r#","repo":"{repo}""#)),
        (format!("{user} "), format!(r#","repo":"{repo}""#)),
    ];
    let published = whose.map(|(user, rest)| {
        let id = unique("ambiguous");
        let body = format!(r#"{{"uuid":"{id}","userID":{}{rest}}}"#, json!(user));
        world.publish_raw(body.as_bytes(), BasicProperties::default());
        (id, user)
    });
    for (id, user) in &published {
        let told = world.outcome(id).failed("invalid_request").after(1);
        assert_eq!(told.text("/userID"), user, "{}", told.raw);
    }
    until("all are given up", || {
        let given_up = worker.lines().iter().filter(|line| line.contains("given up")).count();
        (given_up == published.len() + 3).then_some(())
    });
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (published.len(), published.len() + 3));
}

/// A request that is published twice, and of which nothing is built before these workers have both copies
/// in hand.
struct Twice {
    source: Marked,
    told: Vec<Notification>,
}

impl Twice {
    #[track_caller]
    fn published(world: &World, workers: &[&Worker]) -> Self {
        let steps = Steps::start();
        let source = Marked::held(&steps);
        let request = world.request(&source.repo);
        let id = world.publish(&request);
        world.publish(&request);
        until("both are in hand", || {
            let in_hand: usize = workers.iter().map(|worker| accepted(worker)).sum();
            (in_hand == 2).then_some(())
        });
        steps.turnstile.let_all_go();
        until("both are told", || (world.managers.of(&id).len() == 2).then_some(()));
        let (told, letters) = world.finish(workers);
        assert_eq!((told.len(), letters.len()), (2, 0), "{told:?}");
        for told in &told {
            let told = told.clone().ready();
            assert_eq!((told.build_id(), &told.webhook_id), (&*id, &told.own_id()));
            assert_eq!(told.data()["attempts"], 1, "{}", told.raw);
        }
        Self { source, told }
    }
}

/// How many jobs a worker has, or had, in hand.
fn accepted(worker: &Worker) -> usize {
    worker.lines().iter().filter(|line| line.contains("\"job accepted\"")).count()
}

#[test]
fn a_request_that_is_published_twice_is_built_once_and_told_under_one_id() {
    let world = World::new();
    let worker = world.worker();
    let Twice { source, told } = Twice::published(&world, &[&worker]);
    assert_eq!(source.builds(&[&worker]), 1);
    let image = |told: &Notification| told.data()["image"].clone();
    assert_eq!(image(&told[0]), image(&told[1]));
}

#[test]
fn a_request_that_two_replicas_get_is_told_under_one_id_and_both_images_are_there() {
    // Neither has room for the other copy.
    let world = World::new().with("LISTENER_CONCURRENCY", "1");
    let workers = [world.worker(), world.worker()];
    let Twice { told, .. } = Twice::published(&world, &workers.each_ref());
    for told in told {
        let repository = told.text("/image/repository");
        let (_, repository) = repository.split_once('/').expect("the registry, and a path");
        let digest = told.text("/image/digest");
        // Whoever deploys uses the digest.
        assert_eq!(registry::digest(repository, digest).as_deref(), Some(digest), "{}", told.raw);
    }
}

#[test]
fn an_older_request_that_is_told_late_is_known_by_its_time_and_its_commit() {
    let late = Arc::new(AtomicBool::new(true));
    let (key, is_late) = (Mutex::new(None), late.clone());
    // Fails for the first image that is looked up, and for no other.
    let failing = runtime().block_on(StandIn::start(move |asked| {
        if let Some((_, tag)) = asked.path.split_once("/manifests/key-") {
            let mut first = key.lock().expect("no answer panics");
            let first = first.get_or_insert_with(|| tag.to_owned());
            if first == tag && is_late.load(Ordering::Relaxed) {
                return Answer::status(500);
            }
        }
        Answer::From(format!("http://{}", registry::open()))
    }));
    let world = World::new()
        .with("REGISTRY_URL", failing.url().trim_start_matches("http://"))
        .with("RETRY_MAX_ATTEMPTS", "1000");
    let worker = world.worker();
    let repo =
        repository("moving", &[("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", "1")]);
    let commit = repo.git(&["rev-parse", "HEAD"]);
    let older = world.publish(&world.request(&repo));
    worker.wait_for_line("to be tried again");

    let newer_commit = repo.commit(&[("file", "2")]);
    let newer = world.build(&world.request(&repo)).ready();
    assert_eq!(newer.text("/commit"), newer_commit);
    assert!(world.managers.of(&older).is_empty(), "the older one still fails");
    late.store(false, Ordering::Relaxed);
    let older = world.outcome(&older).ready();
    assert_eq!(older.text("/commit"), commit, "the commit was pinned at the first try");
    assert!(older.data()["attempts"].as_u64() >= Some(2), "{}", older.raw);
    let requested = |told: &Notification| {
        OffsetDateTime::parse(told.text("/requestedAt"), &Rfc3339).expect("a moment")
    };
    assert!(requested(&older) < requested(&newer), "{} {}", older.raw, newer.raw);
    assert_ne!(older.text("/image/digest"), newer.text("/image/digest"));
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (2, 0), "{told:?}");
}
