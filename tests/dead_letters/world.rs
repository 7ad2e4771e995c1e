//! Queues of one's own on the real broker, and the real program on them.

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use image_builder::broker::rabbitmq::topology::{Topology, TopologySettings};
use image_builder::broker::rabbitmq::{RabbitMq, RabbitSettings};
use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::history::History;
use image_builder_actors::model::secret::Secret;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::runtime::Runtime;

/// How long anything may take that takes a second.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The broker's address.
pub(crate) fn uri() -> String {
    std::env::var("RABBITMQ_URI")
        .unwrap_or_else(|_| "amqp://guest:guest@localhost:5672/%2f".to_owned())
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("a test may have threads"))
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The program with these arguments, settings and nothing else.
pub(crate) fn command(settings: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_image-builder"));
    command
        .args(arguments)
        .current_dir(std::env::temp_dir())
        .env_clear()
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Queues that are deleted in the end.
pub(crate) struct World {
    names: TopologySettings,
    broker: RabbitMq,
    connection: Connection,
    channel: Channel,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::after(|_, _| {})
    }

    /// With something done to the broker before any queue is declared.
    pub(crate) fn after(prepare: impl FnOnce(&Channel, &TopologySettings)) -> Self {
        let prefix = format!("test.dead.{}", uuid::Uuid::new_v4().simple());
        let name = |role: &str| format!("{prefix}.{role}");
        let names = TopologySettings {
            build_queue: name("build"),
            fail_queue: name("fail"),
            outcome_queue: name("outcome"),
            dead_queue: name("dead"),
            result_queue: None,
            cancel_exchange: name("cancel"),
            build_rungs: vec![Duration::from_secs(1)],
            outcome_rungs: vec![Duration::from_secs(1)],
        };
        let needs = "these tests need a RabbitMQ at RABBITMQ_URI: is `stack.sh up` running?";
        let connecting = async {
            let uri = uri();
            let connecting = Connection::connect(&uri, ConnectionProperties::default());
            let connection = connecting.await.expect(needs);
            let channel = connection.create_channel().await.expect("a channel");
            (connection, channel)
        };
        let (connection, channel) = runtime().block_on(connecting);
        runtime()
            .block_on(channel.confirm_select(ConfirmSelectOptions::default()))
            .expect("publishes can be confirmed");
        prepare(&channel, &names);
        let topology = Topology::new(names.clone()).expect("good names");
        let broker = RabbitMq::connect(RabbitSettings::new(Secret::new(uri()), topology));
        let broker = runtime()
            .block_on(async { tokio::time::timeout(PATIENCE, broker).await })
            .expect(needs)
            .expect("the broker takes us");
        Self { names, broker, connection, channel }
    }

    pub(crate) fn dead_queue(&self) -> &str {
        &self.names.dead_queue
    }

    pub(crate) fn build_queue(&self) -> &str {
        &self.names.build_queue
    }

    /// The program's settings for these queues.
    fn command(&self, arguments: &[&str]) -> Command {
        let uri = uri();
        let names = &self.names;
        let settings = [
            ("RABBITMQ_URI", uri.as_str()),
            ("BUILD_QUEUE", &names.build_queue),
            ("FAIL_QUEUE", &names.fail_queue),
            ("OUTCOME_QUEUE", &names.outcome_queue),
            ("DEAD_QUEUE", &names.dead_queue),
            ("CANCEL_EXCHANGE", &names.cancel_exchange),
        ];
        let arguments: Vec<_> = ["dead"].into_iter().chain(arguments.iter().copied()).collect();
        command(&settings, &arguments)
    }

    /// Runs `image-builder dead` to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().expect("the program starts").into()
    }

    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &str) -> Ended {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("it is a pipe");
        stdin.write_all(input.as_bytes()).expect("it reads");
        drop(stdin);
        child.wait_with_output().expect("it ends").into()
    }

    pub(crate) fn run_with_variable(&self, arguments: &[&str], name: &str, value: &str) -> Ended {
        self.command(arguments).env(name, value).output().expect("the program starts").into()
    }

    /// Starts `image-builder dead`.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().expect("the program starts")
    }

    /// Runs it, and expects that it goes well.
    #[track_caller]
    pub(crate) fn good(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.stdout
    }

    /// Puts a dead letter of a build on the queue, as the worker does.
    pub(crate) fn dead_letter(&self, id: &str, reason: Reason, request: &Value) -> DeadLetter {
        let letter = letter(id, reason, request.to_string().as_bytes());
        self.put(id, letter.to_json(), Duration::from_secs(3600));
        letter
    }

    /// Puts a message on the dead queue.
    pub(crate) fn put(&self, id: &str, body: Vec<u8>, expires_after: Duration) {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(id.into())
            .with_timestamp(OffsetDateTime::now_utc().unix_timestamp() as u64)
            .with_expiration(expires_after.as_millis().to_string().into());
        let queue = self.dead_queue().into();
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publish = async {
            self.channel.basic_publish("".into(), queue, options, &body, properties).await?.await
        };
        let confirmed = runtime().block_on(publish).expect("it is taken");
        assert!(matches!(confirmed, Confirmation::Ack(None)), "{confirmed:?}");
    }

    /// Puts many letters on the dead queue, in this order.
    pub(crate) fn put_many(&self, ids: &[String], message: &str) {
        for id in ids {
            let fault = Fault::new(StageName::Builder, Reason::EngineFailed, message);
            let request = serde_json::json!({"userID": "u", "repo": "o/n"}).to_string();
            let history = History::new(OffsetDateTime::now_utc());
            let letter = DeadLetter::new(id, request.as_bytes(), &history, &fault);
            self.put(id, letter.to_json(), Duration::from_secs(3600));
        }
    }

    /// Letters that are in the dead queue and in nobody's hand.
    pub(crate) fn ready(&self) -> usize {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = self.dead_queue().into();
        let asked = self.channel.queue_declare(queue, options, FieldTable::default());
        runtime().block_on(asked).expect("the queue is there").message_count() as usize
    }

    #[track_caller]
    pub(crate) fn wait_until_ready(&self, count: usize) {
        let begun = Instant::now();
        while self.ready() != count {
            assert!(begun.elapsed() < PATIENCE, "{} of {count} letters are there", self.ready());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Takes everything out of a queue: message ids and bodies.
    fn drain(&self, queue: &str) -> Vec<(String, Value)> {
        let options = BasicGetOptions { no_ack: true };
        let mut drained = Vec::new();
        while let Some(message) =
            runtime().block_on(self.channel.basic_get(queue.into(), options)).expect("readable")
        {
            let id = message.delivery.properties.message_id().as_ref().map(ToString::to_string);
            let body = serde_json::from_slice(&message.delivery.data).unwrap_or_default();
            drained.push((id.unwrap_or_default(), body));
        }
        drained
    }

    /// Takes all letters out of the dead queue: their ids, in the queue's order.
    pub(crate) fn take_dead(&self) -> Vec<String> {
        self.drain(self.dead_queue()).into_iter().map(|(id, _)| id).collect()
    }

    /// Takes all requests out of the build queue, each with its message id.
    pub(crate) fn take_requests(&self) -> Vec<(String, Value)> {
        self.drain(self.build_queue())
    }

    pub(crate) fn delete_build_queue(&self) {
        let queue = self.build_queue().into();
        let deleted = self.channel.queue_delete(queue, QueueDeleteOptions::default());
        runtime().block_on(deleted).expect("it can be deleted");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let topology = Topology::new(self.names.clone()).expect("good names");
        runtime().block_on(async {
            self.broker.close().await;
            // Whatever fails here leaves queues with names of their own behind, and hides no failure.
            for queue in topology.queues() {
                let options = QueueDeleteOptions::default();
                let _ = self.channel.queue_delete(queue.name.as_str().into(), options).await;
            }
            let exchange = topology.cancel_exchange().into();
            let _ = self.channel.exchange_delete(exchange, Default::default()).await;
            let _ = self.connection.close(200, "done".into()).await;
        });
    }
}

/// A letter with one failed try.
pub(crate) fn letter(id: &str, reason: Reason, request: &[u8]) -> DeadLetter {
    let fault = Fault::new(StageName::Builder, reason, format!("The story of {id}."));
    let mut history = History::new(OffsetDateTime::now_utc());
    history.record(&fault.clone().at_step("RUN make"), true);
    history.log = vec!["the last line".to_owned()];
    DeadLetter::new(id, request, &history, &fault)
}

/// Declares a queue as somebody else might have.
pub(crate) fn declare_classic(channel: &Channel, name: &str) {
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    runtime()
        .block_on(channel.queue_declare(name.into(), options, FieldTable::default()))
        .expect("a queue can be declared");
}
