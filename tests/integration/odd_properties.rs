//! AMQP properties that no library sends: in another encoding, too long, without a bottom.

use image_builder_actors::model::digest::hex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::broker::uri;
use crate::support::marked::Marked;
use crate::support::raw_amqp::{
    LONGEST_PAYLOAD, Properties, RawPublisher, TEXTS, nested_entry, text_entry,
};
use crate::support::until;
use crate::support::world::World;

#[test]
fn a_message_in_another_encoding_is_set_aside_and_costs_no_other_build_a_try() {
    let world = World::new();
    let worker = world.worker();
    let mut raw = RawPublisher::connect(&uri());
    let good = Marked::good();
    let odd = world.request(&good.repo).to_string();
    // The broker takes only its own users' names for `user_id`, and numbers for `expiration`.
    let texts: Vec<_> = TEXTS
        .iter()
        .filter(|(name, _)| !["user_id", "expiration"].contains(name))
        .map(|(name, _)| (name, Marked::good()))
        .collect();
    let mut built = Vec::new();
    for (name, marked) in &texts {
        let latin_1 = Properties::default().text(name, b"caf\xe9");
        raw.publish(&world.settings["BUILD_QUEUE"], &latin_1, odd.as_bytes());
        built.push(world.publish(&world.request(&marked.repo)));
    }
    for queue in ["FAIL_QUEUE", "OUTCOME_QUEUE"] {
        let latin_1 = Properties::default().text("app_id", b"caf\xe9");
        raw.publish(&world.settings[queue], &latin_1, odd.as_bytes());
    }
    for id in &built {
        world.outcome(id).ready().after(1);
    }
    let aside = texts.len() + 2;
    until("all are set aside", || {
        let lines = worker.lines();
        (lines.iter().filter(|line| line.contains("set aside")).count() == aside).then_some(())
    });
    assert_eq!(worker.restarts(), [0; 6]);
    assert!(!worker.lines().iter().any(|line| line.contains("lost the broker")));
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (built.len(), aside));
    for letter in letters {
        let letter: Value = serde_json::from_slice(&letter.body).expect("JSON");
        let sha256 = hex(&Sha256::digest(odd.as_bytes()));
        assert_eq!(letter["request"], json!({"bytes": odd.len(), "sha256": sha256}));
    }
}

#[test]
fn headers_of_any_length_and_depth_cost_nothing() {
    let world = World::new();
    let worker = world.worker();
    let mut raw = RawPublisher::connect(&uri());
    let good = Marked::good();
    let room = LONGEST_PAYLOAD - 100;
    let long = |name: &str| text_entry(name.as_bytes(), &vec![b'x'; room]);
    let envelope = format!(r#"{{"history": {{"log": ["{}"]}}}}"#, "x".repeat(129_000));
    let entries = [
        long("traceparent"),
        long("x-image-builder-envelope"),
        long("x-image-builder-history"),
        long("other"),
        text_entry(b"x-image-builder-envelope", envelope.as_bytes()),
        nested_entry(b"deep", 20_000),
    ];
    let failing = Marked::failing();
    for entries in entries {
        for (repo, is_good) in [(&good.repo, true), (&failing.repo, false)] {
            let request = world.request(repo);
            let properties = Properties::default().headers(&entries);
            raw.publish(
                &world.settings["BUILD_QUEUE"],
                &properties,
                request.to_string().as_bytes(),
            );
            let told = world.outcome(request["uuid"].as_str().expect("an id"));
            if is_good {
                told.ready().after(1);
            } else {
                told.failed("build_failed");
            }
        }
    }
    assert_eq!(worker.restarts(), [0; 6]);
    world.finish(&[&worker]);
}
