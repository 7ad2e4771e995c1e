//! How cost grows.

use std::collections::HashSet;
use std::time::Instant;

use serde_json::{Value, json};

use crate::plot::{Line, Plot};
use crate::sides::{Commands, worker};
use crate::support::PATIENCE;
use crate::support::buildkit_bridge::BuildkitBridge;
use crate::support::git_server::GitRepo;
use crate::support::own_engine::OwnEngine;
use crate::support::world::{World, with};
use crate::support::{setting, unique};
use crate::{trees, world};

/// What they build on.
const BASE: &str = "debian:bookworm-slim";
/// Builds that several workers share.
const SHARED: usize = 40;

/// Seconds a build, with so many that wait when the first begins.
pub(crate) fn waiting() {
    let world = world(2);
    let a_worker = world.worker();
    let repo = trees::small();
    // An engine's first build pays for what later ones find.
    all_of(&world, &repo, 1);
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
pub(crate) fn sizes() {
    let world = world(2);
    let a_worker = world.worker();
    let commands = Commands::new();
    // A first build pays for what later ones find.
    commands.build(&trees::small());
    worker(&world, &trees::small());
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
pub(crate) fn workers() {
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

/// Seconds of many builds, by the number of hosts of BuildKit's own. Engines stand in for them, all on this machine, so
/// this shows what it costs to share builds out, and not what more machines bring.
pub(crate) fn hosts() {
    if setting("ENGINE_STORE", "") != "containerd" {
        println!(
            "hosts: left out, it needs ENGINE_ROOT and ENGINE_STORE=containerd as tests/fleet does"
        );
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut points = Vec::new();
    for count in [1, 2, 4] {
        let engines: Vec<_> = (0..count).map(|_| OwnEngine::new()).collect();
        engines.iter().for_each(|engine| engine.load(BASE));
        let mut bridges = Vec::new();
        for engine in &engines {
            bridges.push(runtime.block_on(BuildkitBridge::start(&engine.socket())));
        }
        let addresses: Vec<_> = bridges.iter().map(BuildkitBridge::host).collect();
        let world = world(4)
            .with("BUILDKIT_HOST", &addresses.join(","))
            .with("BUILDKIT_BUILDS_PER_HOST", "2")
            // What stands in does not say of which version its BuildKit is.
            .with("TENANCY", "trusted");
        let worker = world.worker();
        points.push((f64::from(count), all_of(&world, &trees::small(), SHARED)));
        worker.stop();
    }
    show(Plot {
        file: "growth-hosts.svg",
        title: "Seconds of 40 small builds, by stand-ins for BuildKit hosts on one machine",
        x: "hosts",
        lines: vec![Line { name: "two builds each", points }],
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
