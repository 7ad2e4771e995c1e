//! `image-builder queue …` on a real RabbitMQ.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::until;
use crate::world::World;

#[test]
fn what_waits_is_shown_queue_by_queue() {
    let world = World::new();
    world.put_in_lane("first", "one");
    world.put_in_lane("1", "two");
    let ended = world.run_queue(&["--json"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let lines: Vec<Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let ready = |end: &str| {
        let of = |line: &&Value| line["name"].as_str().is_some_and(|name| name.ends_with(end));
        lines.iter().find(of).unwrap_or_else(|| panic!("{end}: {lines:?}"))["ready"].clone()
    };
    for (queue, count) in [(".lane.first", 1), (".lane.1", 1), (".lane.few", 0), ("build", 0)] {
        assert_eq!(ready(queue), count, "{queue}");
    }
    world.delete_build_queue();
    let ended = world.run_queue(&[]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("there is no such queue"), "{ended:?}");
}

#[test]
fn a_move_that_is_killed_loses_nothing_and_can_be_run_again() {
    const REQUESTS: usize = 600;
    let world = World::new();
    let ids: BTreeSet<String> = (0..REQUESTS).map(|number| format!("r{number}")).collect();
    for id in &ids {
        world.put_in_lane("1", id);
    }
    let mut child = world.spawn_queue(&["move"]);
    until("the move begins", || (world.waiting_in_build() > 0).then_some(()));
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    let ended = world.run_queue(&["move", "--json"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    // What the killed one had in hand comes back a little later.
    until("all are moved", || {
        let ended = world.run_queue(&["move"]);
        (ended.stdout == "moved 0\n").then_some(())
    });
    let moved: BTreeSet<String> = world.take_requests().into_iter().map(|(id, _)| id).collect();
    assert_eq!(moved, ids);
}
