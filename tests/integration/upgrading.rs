//! What an older version, which knew no lanes, left on the broker.

use image_builder_actors::delivery::envelope::Envelope;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::history::History;
use image_builder_actors::ports::Message;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::broker;
use crate::support::unique;
use crate::support::world::{World, dockerfile, repository, with};

/// The properties of a request that failed once.
fn failed_once(request: &Value) -> BasicProperties {
    let mut history = History::new(OffsetDateTime::now_utc());
    history.record(&Fault::new(StageName::Builder, Reason::EngineFailed, "no"), true);
    let message = Message { body: request.to_string().into_bytes(), ..Message::default() };
    let message = Envelope::default().pass_on_with(&message, &history);
    let mut headers = FieldTable::default();
    let envelope = message.envelope.expect("it has one");
    headers.insert("x-image-builder-envelope".into(), AMQPValue::LongString(envelope.into()));
    BasicProperties::default().with_delivery_mode(2).with_headers(headers)
}

#[test]
fn requests_on_the_build_queue_and_on_its_ladder_are_built() {
    let world = World::new();
    world.worker().stop();
    let build_queue = &world.settings["BUILD_QUEUE"];
    for lane in broker::queues(&format!("{build_queue}.lane.")) {
        world.broker.delete_queue(&lane);
    }
    let repo = repository("older", &[("Dockerfile", &dockerfile("COPY . /src"))]);
    let publish = |queue: &str, attempts: u64| {
        // Each with an image of its own: none is reused.
        let application = json!({"applicationID": unique("app")});
        let request = with(world.request(&repo), application);
        let properties = match attempts {
            1 => BasicProperties::default(),
            _ => failed_once(&request),
        };
        world.broker.publish(queue, request.to_string().as_bytes(), properties);
        (request["uuid"].as_str().expect("it has an id").to_owned(), attempts)
    };
    let ladder = broker::queues(&format!("{build_queue}.retry."));
    assert_eq!(ladder.len(), 2, "{ladder:?}");
    let mut published = vec![publish(build_queue, 1), publish(build_queue, 2)];
    published.extend(ladder.iter().map(|rung| publish(rung, 2)));

    let worker = world.worker();
    for (build_id, attempts) in &published {
        world.outcome(build_id).ready().after(*attempts);
    }
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (4, 0));
}
