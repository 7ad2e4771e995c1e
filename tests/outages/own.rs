//! The nodes and engines of one's own are what the other tests take them for.

use crate::support::broker::Broker;
use crate::support::engine::BASE;
use crate::support::node::Node;
use crate::support::own_engine::OwnEngine;

#[test]
fn a_node_is_what_it_was_after_it_was_stopped_killed_and_frozen() {
    let node = Node::new(&[]);
    let broker = Broker::connect_to(node.at());
    drop(broker);
    node.stop();
    node.start();
    node.kill();
    node.start();
    node.freeze();
    node.thaw();
}

#[test]
fn an_engine_has_its_images_after_it_was_stopped_and_killed() {
    let engine = OwnEngine::new();
    engine.load(BASE);
    let images = engine.docker(&["image", "ls", "--quiet"]);
    engine.stop();
    engine.start();
    assert_eq!(engine.docker(&["image", "ls", "--quiet"]), images);
    engine.kill();
    engine.start();
    assert_eq!(engine.docker(&["image", "ls", "--quiet"]), images);
}
