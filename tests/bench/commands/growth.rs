//! How cost grows.

use std::collections::HashSet;
use std::time::Instant;

use serde_json::{Value, json};

use crate::plot::{Line, Plot};
use crate::sides::{Commands, worker};
use crate::support::PATIENCE;
use crate::support::git_server::GitRepo;
use crate::support::unique;
use crate::support::world::{World, with};
use crate::{trees, world};

/// Builds that several workers share.
const SHARED: usize = 40;

pub(crate) fn run() {
    waiting();
    sizes();
    workers();
}

/// Seconds a build, with so many that wait when the first begins.
fn waiting() {
    let world = world(2);
    let a_worker = world.worker();
    let repo = trees::small();
    let points: Vec<_> = [1, 10, 100, 1000]
        .into_iter()
        .map(|count| (count as f64, all_of(&world, &repo, count) / count as f64))
        .collect();
    a_worker.stop();
    show(Plot {
        file: "growth-waiting.svg",
        title: "Seconds a small build, by requests that wait",
        x: "requests at once",
        lines: vec![Line { name: "two builders", points }],
    });
}

/// Seconds of a first build, by what is fetched, built and pushed.
fn sizes() {
    let world = world(2);
    let a_worker = world.worker();
    let commands = Commands::new();
    let (mut plain, mut ours) = (Vec::new(), Vec::new());
    for megabytes in [1, 10, 100, 1000] {
        let [first, second] = [trees::data(megabytes), trees::data(megabytes)];
        // The same bytes: neither side may find the other's layer.
        trees::change(&first, "data/0");
        trees::change(&second, "data/0");
        plain.push((megabytes as f64, commands.build(&first).all));
        ours.push((megabytes as f64, worker(&world, &second).all));
    }
    a_worker.stop();
    show(Plot {
        file: "growth-size.svg",
        title: "Seconds of a first build, by the size of its repository",
        x: "megabytes",
        lines: vec![
            Line { name: "git clone, docker build, docker push", points: plain },
            Line { name: "image-builder", points: ours },
        ],
    });
}

/// Seconds of many builds, by the number of workers with two builders each, on one engine.
fn workers() {
    let mut points = Vec::new();
    for count in [1, 2, 4] {
        let world = world(2);
        let workers: Vec<_> = (0..count).map(|_| world.worker()).collect();
        points.push((f64::from(count), all_of(&world, &trees::small(), SHARED)));
        workers.iter().for_each(|worker| worker.stop());
    }
    show(Plot {
        file: "growth-workers.svg",
        title: "Seconds of 40 small builds, by workers on one engine",
        x: "workers",
        lines: vec![Line { name: "two builders each", points }],
    });
}

/// Seconds until so many builds of one repository, each another user's, have ended.
fn all_of(world: &World, repo: &GitRepo, count: usize) -> f64 {
    let requests: Vec<Value> =
        (0..count).map(|_| with(world.request(repo), json!({"userID": unique("user")}))).collect();
    let bodies: Vec<String> = requests.iter().map(Value::to_string).collect();
    let ids: HashSet<&str> =
        requests.iter().filter_map(|request| request["uuid"].as_str()).collect();
    let begun = Instant::now();
    world.broker.publish_all(&world.settings["BUILD_QUEUE"], &bodies);
    let ended = world.managers.wait_for_many("all images", count, PATIENCE * 10, |told| {
        told.kind() == "image.ready" && ids.contains(told.build_id())
    });
    (ended - begun).as_secs_f64()
}

fn show(plot: Plot) {
    println!("{}", plot.title);
    for line in &plot.lines {
        let points: Vec<String> = line.points.iter().map(|(x, y)| format!("{x}: {y:.3}")).collect();
        println!("  {:<38} {}", line.name, points.join("   "));
    }
    if let Ok(directory) = std::env::var("PLOTS") {
        plot.write(directory.as_ref());
    }
}
