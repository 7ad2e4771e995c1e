//! Floods: one request behind one, and several replicas that share one.

use std::time::{Duration, Instant};

use serde_json::json;
use time::OffsetDateTime;

use crate::events::{self, Event};
use crate::support::git_server::GitRepo;
use crate::support::unique;
use crate::support::worker::Worker;
use crate::support::world::{World, full_name};
use crate::{PATIENCE, median, number, one_file, world};

/// Longer than a fetch takes: what is free for longer than this idles.
const FETCH: f64 = 2.0;

pub(crate) fn run() {
    behind_a_flood();
    println!();
    replicas();
}

fn request(repo: &GitRepo, user: &str, uuid: &str) -> String {
    json!({"userID": user, "repo": full_name(repo), "applicationID": uuid, "uuid": uuid})
        .to_string()
}

fn requests(repo: &GitRepo, user: &str, count: usize) -> Vec<String> {
    (0..count).map(|_| request(repo, user, &unique("build"))).collect()
}

/// How one request came through behind a flood. Seconds.
struct Behind {
    seen: f64,
    begun: f64,
    /// Which one of the builds that were begun since it was seen.
    place: usize,
}

fn behind_a_flood() {
    let (count, trials) = (number("FLOOD", "10000"), number("ROUNDS", "7").div_ceil(3));
    let repo = one_file();
    let trials: Vec<Behind> = (0..trials).map(|_| single(&repo, count)).collect();
    let all = |of: fn(&Behind) -> f64| -> Vec<f64> { trials.iter().map(of).collect() };
    println!("one request behind another user's {count}, {} times\n", trials.len());
    println!("{:<40} {:>8} {:>8}", "", "median", "worst");
    let worst = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    for (name, values) in [
        ("put in the backlog after, seconds", all(|it| it.seen)),
        ("begun after, seconds", all(|it| it.begun)),
        ("which build since it was in the backlog", all(|it| it.place as f64)),
    ] {
        println!("{name:<40} {:>8.2} {:>8.2}", median(&values), worst(&values));
    }
}

fn single(repo: &GitRepo, count: usize) -> Behind {
    let world = world();
    let worker = world.worker();
    let queue = &world.settings["BUILD_QUEUE"];
    world.broker.publish_all(queue, &requests(repo, "flood", count));
    let uuid = unique("single");
    let published = OffsetDateTime::now_utc();
    world.broker.publish_all(queue, &[request(repo, "single", &uuid)]);
    let seen = seen(&world, &worker, &uuid);
    world.managers.wait_for_many("its image", 1, PATIENCE, |told| told.build_id() == uuid);
    let events = events::of(&worker);
    let begun = taken(&events, &uuid).expect("what is built was begun").at;
    let since = events.iter().filter(|it| it.taken && it.at > seen && it.at <= begun);
    worker.kill();
    worker.wait();
    Behind {
        seen: (seen - published).as_seconds_f64(),
        begun: (begun - published).as_seconds_f64(),
        // One that was begun before anybody could see it wait was the next.
        place: since.count().max(1),
    }
}

fn taken<'a>(events: &'a [Event], build_id: &str) -> Option<&'a Event> {
    events.iter().find(|it| it.taken && it.build_id == build_id)
}

/// When the request was put in the lane of those who have nothing else, or begun.
fn seen(world: &World, worker: &Worker, uuid: &str) -> OffsetDateTime {
    let lane = format!("{}.lane.first", world.settings["BUILD_QUEUE"]);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = OffsetDateTime::now_utc();
        if world.broker.ready(&lane) > 0 {
            return now;
        }
        if let Some(event) = taken(&events::of(worker), uuid) {
            return event.at;
        }
        assert!(Instant::now() < deadline, "the request is never seen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn replicas() {
    let (world, repo) = (world(), one_file());
    let workers: Vec<Worker> = (0..3).map(|_| world.worker()).collect();
    let users = [("of the first user", 90), ("of the second", 12), ("of the third", 3)];
    let bodies: Vec<String> =
        users.iter().flat_map(|(user, count)| requests(&repo, user, *count)).collect();
    world.broker.publish_all(&world.settings["BUILD_QUEUE"], &bodies);
    world
        .managers
        .wait_for_many("all images", bodies.len(), PATIENCE, |told| told.kind() == "image.ready");
    let events: Vec<Vec<Event>> = workers.iter().map(events::of).collect();
    let taken = || events.iter().flatten().filter(|it| it.taken).map(|it| it.at);
    let (begin, end) = (taken().min().expect("builds"), taken().max().expect("builds"));
    println!(
        "three replicas, {} requests of three users (90, 12, 3): {:.1} s in which requests waited\n",
        bodies.len(),
        (end - begin).as_seconds_f64()
    );
    println!(
        "{:<12} {:>7} {:>16} {:>16} {:>16} {:>7}",
        "", "builds", "a builder free", "longest of it", "all free", "idled"
    );
    for (number, events) in events.iter().enumerate() {
        let free = events::free(events, 2, begin, end);
        let idled = if free.longest > FETCH { "yes" } else { "no" };
        println!(
            "replica {:<4} {:>7} {:>14.2} s {:>14.2} s {:>14.2} s {:>7}",
            number + 1,
            free.builds,
            free.one,
            free.longest,
            free.all,
            idled
        );
    }
    world.finish(&workers.iter().collect::<Vec<_>>());
}
