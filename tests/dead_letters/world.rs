//! Queues of one's own on the real broker, and the real program on them.

use std::process::Child;
use std::time::{Duration, Instant};

use image_builder::broker::rabbitmq::topology::{Topology, TopologySettings};
use image_builder::broker::rabbitmq::{RabbitMq, RabbitSettings};
use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::history::History;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::Broker as _;
use lapin::BasicProperties;
use serde_json::Value;
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::support::broker::{self, Broker};
use crate::support::raw_amqp::{Properties, RawPublisher};
use crate::support::worker::{self, Ended, Settings};
use crate::support::{PATIENCE, runtime, unique};

/// Queues that are deleted in the end.
pub struct World {
    prefix: String,
    names: TopologySettings,
    /// The worker's, which declares the queues.
    rabbit: RabbitMq,
    broker: Broker,
    directory: TempDir,
}

impl World {
    pub fn new() -> Self {
        Self::after(|_, _| {})
    }

    /// With something done to the broker before any queue is declared.
    pub fn after(prepare: impl FnOnce(&Broker, &TopologySettings)) -> Self {
        let prefix = unique("test.dead") + ".";
        let name = |role: &str| format!("{prefix}{role}");
        let names = TopologySettings {
            build_queue: name("build"),
            fail_queue: name("fail"),
            outcome_queue: name("outcome"),
            dead_queue: name("dead"),
            result_queue: None,
            cancel_exchange: name("cancel"),
            build_lanes: 1,
            build_rungs: vec![Duration::from_secs(1)],
            outcome_rungs: vec![Duration::from_secs(1)],
        };
        let broker = Broker::connect();
        prepare(&broker, &names);
        let topology = Topology::new(names.clone()).expect("good names");
        let connecting =
            RabbitMq::connect(RabbitSettings::new(Secret::new(broker::uri()), topology));
        let rabbit = runtime()
            .block_on(async { tokio::time::timeout(PATIENCE, connecting).await })
            .expect("the broker answers")
            .expect("the broker takes us");
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        Self { prefix, names, rabbit, broker, directory }
    }

    /// The program's settings for these queues.
    fn settings(&self) -> Settings {
        [
            ("RABBITMQ_URI", &broker::uri()),
            ("BUILD_QUEUE", &self.names.build_queue),
            ("FAIL_QUEUE", &self.names.fail_queue),
            ("OUTCOME_QUEUE", &self.names.outcome_queue),
            ("DEAD_QUEUE", &self.names.dead_queue),
            ("CANCEL_EXCHANGE", &self.names.cancel_exchange),
            ("BUILD_LANES", &self.names.build_lanes.to_string()),
            // No service of this machine has these queues.
            ("HTTP_ADDR", &"127.0.0.1:1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .into()
    }

    /// Runs `image-builder dead` to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        worker::run(&dead(arguments), &self.settings())
    }

    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Ended {
        worker::run_with_input(&dead(arguments), &self.settings(), input)
    }

    pub fn run_with_variable(&self, arguments: &[&str], name: &str, value: &str) -> Ended {
        let mut settings = self.settings();
        settings.insert(name.to_owned(), value.to_owned());
        worker::run(&dead(arguments), &settings)
    }

    /// Starts `image-builder dead`.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = worker::command(&dead(arguments), &self.settings(), &self.directory);
        command.spawn().expect("the program starts")
    }

    /// Runs `image-builder queue` to its end.
    pub fn run_queue(&self, arguments: &[&str]) -> Ended {
        worker::run(&[&["queue"], arguments].concat(), &self.settings())
    }

    /// Starts `image-builder queue`.
    pub fn spawn_queue(&self, arguments: &[&str]) -> Child {
        let arguments = [&["queue"], arguments].concat();
        let mut command = worker::command(&arguments, &self.settings(), &self.directory);
        command.spawn().expect("the program starts")
    }

    /// Puts a request in a lane.
    pub fn put_in_lane(&self, lane: &str, id: &str) {
        let properties = BasicProperties::default().with_message_id(id.into());
        let queue = format!("{}.lane.{lane}", self.names.build_queue);
        self.broker.publish(&queue, b"{}", properties);
    }

    /// Requests that are in the build queue and in nobody's hand.
    pub fn waiting_in_build(&self) -> usize {
        self.broker.ready(&self.names.build_queue)
    }

    /// Runs it, and expects that it goes well.
    #[track_caller]
    pub fn good(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.stdout
    }

    /// Puts a message on the dead queue that no library could send.
    pub fn put_raw(&self, properties: &Properties, body: &[u8]) {
        RawPublisher::connect(&broker::uri()).publish(&self.names.dead_queue, properties, body);
    }

    /// Puts a dead letter of a build on the queue, as the worker does.
    pub fn dead_letter(&self, id: &str, reason: Reason, request: &Value) -> DeadLetter {
        let letter = letter(id, reason, request.to_string().as_bytes());
        self.put(id, letter.to_json(), Duration::from_secs(3600));
        letter
    }

    /// Puts a message on the dead queue.
    pub fn put(&self, id: &str, body: Vec<u8>, expires_after: Duration) {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(id.into())
            .with_timestamp(OffsetDateTime::now_utc().unix_timestamp() as u64)
            .with_expiration(expires_after.as_millis().to_string().into());
        self.broker.publish(&self.names.dead_queue, &body, properties);
    }

    /// Puts many letters on the dead queue, in this order.
    pub fn put_many(&self, ids: &[String], message: &str) {
        for id in ids {
            let fault = Fault::new(StageName::Builder, Reason::EngineFailed, message);
            let request = serde_json::json!({"userID": "u", "repo": "o/n"}).to_string();
            let history = History::new(OffsetDateTime::now_utc());
            let letter = DeadLetter::new(id, request.as_bytes(), &history, &fault);
            self.put(id, letter.to_json(), Duration::from_secs(3600));
        }
    }

    /// Letters that are in the dead queue and in nobody's hand.
    pub fn ready(&self) -> usize {
        self.broker.ready(&self.names.dead_queue)
    }

    #[track_caller]
    pub fn wait_until_ready(&self, count: usize) {
        let begun = Instant::now();
        while self.ready() != count {
            assert!(begun.elapsed() < PATIENCE, "{} of {count} letters are there", self.ready());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Takes all letters out of the dead queue: their ids, in the queue's order.
    pub fn take_dead(&self) -> Vec<String> {
        let letters = self.broker.drain(&self.names.dead_queue);
        letters.into_iter().map(|letter| letter.message_id).collect()
    }

    /// Takes all requests out of the build queue, each with its message id.
    pub fn take_requests(&self) -> Vec<(String, Value)> {
        let requests = self.broker.drain(&self.names.build_queue).into_iter();
        requests
            .map(|message| {
                let body = serde_json::from_slice(&message.body).unwrap_or_default();
                (message.message_id, body)
            })
            .collect()
    }

    pub fn delete_build_queue(&self) {
        self.broker.delete_queue(&self.names.build_queue);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        runtime().block_on(self.rabbit.close());
        self.broker.delete(&self.prefix, &self.names.cancel_exchange);
    }
}

/// The arguments of `image-builder dead`.
fn dead<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["dead"], arguments].concat()
}

/// A letter with one failed try.
pub fn letter(id: &str, reason: Reason, request: &[u8]) -> DeadLetter {
    let fault = Fault::new(StageName::Builder, reason, format!("The story of {id}."));
    let mut history = History::new(OffsetDateTime::now_utc());
    history.record(&fault.clone().at_step("RUN make"), true);
    history.log = vec!["the last line".to_owned()];
    DeadLetter::new(id, request, &history, &fault)
}
