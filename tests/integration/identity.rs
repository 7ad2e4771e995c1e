//! Build ids: the client's own, the message's, or one that is given.

use lapin::BasicProperties;
use serde_json::json;

use crate::support::unique;
use crate::support::world::{World, dockerfile, repository, shared, with};

#[test]
fn a_build_has_the_id_that_its_request_brings() {
    let world = shared();
    let repo = repository("ids", &[("Dockerfile", &dockerfile("RUN true"))]);
    let told = world.build(&world.request(&repo)).ready();
    assert_eq!(told.webhook_id, format!("{}.image.ready", told.build_id()));

    let id = unique("message");
    let mut request = world.request(&repo);
    request.as_object_mut().expect("it is an object").remove("uuid");
    let properties = || BasicProperties::default().with_message_id(id.as_str().into());
    world.publish_raw(request.to_string().as_bytes(), properties());
    assert_eq!(world.outcome(&id).ready().webhook_id, format!("{id}.image.ready"));
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
fn a_request_that_is_published_twice_is_told_under_one_id() {
    let world = World::new();
    let worker = world.worker();
    let repo = repository("twice", &[("Dockerfile", &dockerfile("RUN true"))]);
    let request = world.request(&repo);
    world.publish(&request);
    world.publish(&request);
    // Deliveries come in order: when this one has ended the others have begun.
    let last = with(world.request(&repo), json!({"applicationID": "last"}));
    world.build(&last).ready();
    let (told, _) = world.finish(&[&worker]);
    let id = request["uuid"].as_str().expect("it has one");
    let twice: Vec<_> = told.iter().filter(|told| told.build_id() == id).collect();
    assert!(!twice.is_empty() && twice.len() <= 2, "{told:?}");
    for told in twice {
        assert_eq!(told.webhook_id, format!("{id}.image.ready"));
    }
}
