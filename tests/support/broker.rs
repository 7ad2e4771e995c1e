//! The real RabbitMQ, as a publisher and an operator use it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lapin::Confirmation;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{client, runtime, setting, unique};

/// How long a broker is given to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// The shared broker's address.
pub fn uri() -> String {
    setting("RABBITMQ_URI", "amqp://guest:guest@localhost:5672/%2f")
}

/// Where a broker is.
#[derive(Debug, Clone)]
pub struct BrokerAt {
    pub uri: String,
    /// The management API, with name and password.
    pub management: String,
}

impl BrokerAt {
    /// The one that all tests share.
    pub fn shared() -> Self {
        Self {
            uri: uri(),
            management: setting("RABBITMQ_MANAGEMENT_URL", "http://guest:guest@localhost:15672"),
        }
    }

    /// The names of all queues that begin with this.
    pub fn queues(&self, prefix: &str) -> Vec<String> {
        self.names("queues", prefix)
    }

    /// The memory of all queues that begin with this, in bytes. The figures are up to five seconds old.
    pub fn memory_of_queues(&self, prefix: &str) -> u64 {
        let all = self.ask(Method::GET, "/api/queues/%2f?columns=name,memory", None);
        let own = all.as_array().into_iter().flatten();
        let own = own.filter(|one| one["name"].as_str().is_some_and(|it| it.starts_with(prefix)));
        own.filter_map(|one| one["memory"].as_u64()).sum()
    }

    fn names(&self, what: &str, prefix: &str) -> Vec<String> {
        let all = self.ask(Method::GET, &format!("/api/{what}/%2f?columns=name"), None);
        let names = all.as_array().into_iter().flatten();
        let names = names.filter_map(|one| one["name"].as_str());
        names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
    }

    /// Makes a user of the test's own, who may do everything.
    pub fn user(&self) -> User {
        let user = User { at: self.clone(), name: unique("user") };
        let account = json!({"password": user.name, "tags": ""});
        self.ask(Method::PUT, &user.path("users"), Some(account));
        user.permit([".*"; 3]);
        user
    }

    /// What the management API answers.
    pub fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let ask = || {
            let request = client()
                .request(method.clone(), format!("{}{path}", self.management))
                .timeout(Duration::from_secs(20));
            match &body {
                Some(body) => request.json(body),
                None => request,
            }
        };
        runtime().block_on(async {
            let up = "RabbitMQ's management API is up: start it with .devcontainer/stack.sh up";
            let mut response = ask().send().await.expect(up);
            // It fails while a stream is being made: it lists queues, and that one is on no node yet.
            for _ in 0..10 {
                if response.status() != StatusCode::INTERNAL_SERVER_ERROR {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                response = ask().send().await.expect(up);
            }
            assert!(response.status().is_success(), "{path}: {}", response.status());
            let text = response.text().await.expect("the answer is whole");
            serde_json::from_str(&text).unwrap_or(Value::Null)
        })
    }
}

/// A user of a broker, whose password is the name. It is gone with this value.
pub struct User {
    at: BrokerAt,
    name: String,
}

impl User {
    /// From now on the user may configure (declare), write and read what matches, and nothing else.
    pub fn permit(&self, [configure, write, read]: [&str; 3]) {
        let permissions = json!({"configure": configure, "write": write, "read": read});
        let path = self.path("permissions/%2f");
        self.at.ask(Method::PUT, &path, Some(permissions));
    }

    /// Where the broker is for this user.
    pub fn uri(&self) -> String {
        let (_, host) = self.at.uri.split_once('@').expect("name and password are in it");
        format!("amqp://{0}:{0}@{host}", self.name)
    }

    fn path(&self, kind: &str) -> String {
        format!("/api/{kind}/{}", self.name)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // A second panic would hide the first.
        if !std::thread::panicking() {
            self.at.ask(Method::DELETE, &self.path("users"), None);
        }
    }
}

/// A connection to a broker. It is made anew when it was lost.
pub struct Broker {
    at: BrokerAt,
    open: Mutex<Open>,
}

struct Open {
    connection: Connection,
    channel: Channel,
}

/// A message that was fetched from a queue.
#[derive(Clone)]
pub struct Fetched {
    pub body: Vec<u8>,
    /// Empty where there is none.
    pub message_id: String,
    /// Body, properties and headers, as text to be searched.
    pub text: String,
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Broker {
    /// Connects to the broker that all tests share.
    pub fn connect() -> Self {
        Self::connect_to(BrokerAt::shared())
    }

    pub fn connect_to(at: BrokerAt) -> Self {
        Self { open: Mutex::new(Open::at(&at)), at }
    }

    /// Whether this is the broker that all tests share.
    pub fn is_shared(&self) -> bool {
        self.at.uri == uri()
    }

    fn channel(&self) -> Channel {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !open.channel.status().connected() {
            *open = Open::at(&self.at);
        }
        open.channel.clone()
    }

    /// Publishes to a queue, and waits until the broker has it.
    pub fn publish(&self, queue: &str, body: &[u8], properties: BasicProperties) {
        self.publish_to("", queue, body, properties);
    }

    /// Publishes all of these to a queue, none waiting for the one before, and waits until the broker has them.
    pub fn publish_all(&self, queue: &str, bodies: &[String]) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let channel = self.channel();
        runtime().block_on(async {
            let mut confirms = Vec::with_capacity(bodies.len());
            for body in bodies {
                let (body, properties) = (body.as_bytes(), BasicProperties::default());
                let confirm =
                    channel.basic_publish("".into(), queue.into(), options, body, properties).await;
                confirms.push(confirm.expect("the broker takes the message"));
            }
            for confirm in confirms {
                let confirmed = confirm.await.expect("the broker confirms");
                assert!(
                    matches!(confirmed, Confirmation::Ack(None)),
                    "`{queue}` takes messages: {confirmed:?}"
                );
            }
        });
    }

    /// Publishes to a fanout exchange that somebody listens to, and waits until the broker has it. A nack says that the
    /// queue of a worker has just gone with it.
    pub fn broadcast(&self, exchange: &str, body: &[u8]) {
        loop {
            match self.answer_to(exchange, "", body, BasicProperties::default()) {
                Confirmation::Ack(None) => return,
                Confirmation::Nack(None) => {}
                other => panic!("`{exchange}` takes messages: {other:?}"),
            }
        }
    }

    fn publish_to(&self, exchange: &str, key: &str, body: &[u8], properties: BasicProperties) {
        let confirmed = self.answer_to(exchange, key, body, properties);
        assert!(
            matches!(confirmed, Confirmation::Ack(None)),
            "`{exchange}` `{key}` takes messages: {confirmed:?}"
        );
    }

    fn answer_to(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Confirmation {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let channel = self.channel();
        runtime().block_on(async {
            channel
                .basic_publish(exchange.into(), key.into(), options, body, properties)
                .await
                .expect("the broker takes the message")
                .await
                .expect("the broker confirms")
        })
    }

    /// Takes all messages out of a queue that nobody consumes.
    pub fn drain(&self, queue: &str) -> Vec<Fetched> {
        let mut fetched = Vec::new();
        while let Some(next) = self.get(queue) {
            fetched.push(next);
        }
        fetched
    }

    /// Takes one message out of a queue.
    pub fn get(&self, queue: &str) -> Option<Fetched> {
        let options = BasicGetOptions { no_ack: true };
        let channel = self.channel();
        let message = runtime()
            .block_on(channel.basic_get(queue.into(), options))
            .expect("the queue can be read")?;
        let (body, properties) = (message.delivery.data.clone(), &message.delivery.properties);
        let message_id =
            properties.message_id().as_ref().map_or_else(String::new, ToString::to_string);
        let text = format!("{} {properties:?}", String::from_utf8_lossy(&body));
        Some(Fetched { body, message_id, text })
    }

    /// Declares a durable classic queue, as somebody else might have.
    pub fn declare_classic(&self, queue: &str) {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let channel = self.channel();
        let declared = channel.queue_declare(queue.into(), options, FieldTable::default());
        runtime().block_on(declared).expect("the queue can be declared");
    }

    /// Messages that are in a queue and in nobody's hand.
    pub fn ready(&self, queue: &str) -> usize {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let channel = self.channel();
        let declared = channel.queue_declare(queue.into(), options, FieldTable::default());
        runtime().block_on(declared).expect("the queue is there").message_count() as usize
    }

    /// Deletes a queue, with all that is in it.
    pub fn delete_queue(&self, queue: &str) {
        let channel = self.channel();
        let deleted = channel.queue_delete(queue.into(), QueueDeleteOptions::default());
        runtime().block_on(deleted).expect("the queue can be deleted");
    }

    /// Deletes all queues and exchanges whose names begin with this, their outcome ledger, the exchange of
    /// this name and the stream of what was cancelled there.
    pub fn delete(&self, prefix: &str, exchange: &str) {
        let channel = self.channel();
        let logs = self.at.queues(&format!("told.{prefix}"));
        let logs = logs.into_iter().chain([format!("cancelled.{exchange}")]);
        for name in self.at.queues(prefix).into_iter().chain(logs) {
            let deleted = channel.queue_delete(name.into(), QueueDeleteOptions::default());
            let _ = runtime().block_on(deleted);
        }
        for name in self.at.names("exchanges", prefix).into_iter().chain([exchange.to_owned()]) {
            let deleted = channel.exchange_delete(name.into(), ExchangeDeleteOptions::default());
            let _ = runtime().block_on(deleted);
        }
    }
}

impl Open {
    fn at(at: &BrokerAt) -> Self {
        runtime().block_on(async {
            let connection = Connection::connect(&at.uri, ConnectionProperties::default())
                .await
                .expect("RabbitMQ is up: start it with .devcontainer/stack.sh up");
            let channel = connection.create_channel().await.expect("a channel can be opened");
            channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms are on");
            Self { connection, channel }
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // A broker that does not answer takes no leave.
        let goodbye = self.connection.close(200, "the test is over".into());
        let _ = runtime().block_on(async { tokio::time::timeout(GOODBYE, goodbye).await });
    }
}

/// The names of all queues of the shared broker that begin with this.
pub fn queues(prefix: &str) -> Vec<String> {
    BrokerAt::shared().queues(prefix)
}

/// The broker's names for the connections that this process has to it. A new one is listed only
/// after a while.
pub fn connections_of(pid: u32) -> Vec<String> {
    let ports = tcp_ports(pid);
    let all = BrokerAt::shared().ask(Method::GET, "/api/connections?columns=name,peer_port", None);
    let own = all.as_array().into_iter().flatten().filter(|connection| {
        connection["peer_port"].as_u64().is_some_and(|port| ports.contains(&port))
    });
    own.filter_map(|connection| connection["name"].as_str()).map(str::to_owned).collect()
}

/// How many connections the broker has from this process, and how many channels on them. The figures
/// are up to five seconds old.
pub fn connections_and_channels_of(pid: u32) -> (u64, u64) {
    let ports = tcp_ports(pid);
    let all =
        BrokerAt::shared().ask(Method::GET, "/api/connections?columns=channels,peer_port", None);
    let own = all.as_array().into_iter().flatten().filter(|connection| {
        connection["peer_port"].as_u64().is_some_and(|port| ports.contains(&port))
    });
    own.fold((0, 0), |(connections, channels), connection| {
        (connections + 1, channels + connection["channels"].as_u64().unwrap_or_default())
    })
}

/// The queues whose names begin with this and that hold messages, unacked ones included. The figures
/// are up to five seconds old.
pub fn queues_in_use(prefix: &str) -> Vec<String> {
    let all = BrokerAt::shared().ask(Method::GET, "/api/queues/%2f?columns=name,messages", None);
    let in_use = all.as_array().into_iter().flatten().filter(|queue| queue["messages"] != 0);
    let names = in_use.filter_map(|queue| queue["name"].as_str());
    names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
}

/// Closes connections, as an operator would.
pub fn close_connections(names: &[String]) {
    for name in names {
        let path = format!("/api/connections/{}", name.replace(' ', "%20").replace('>', "%3E"));
        BrokerAt::shared().ask(Method::DELETE, &path, None);
    }
}

/// The local ports of a process's TCP sockets.
pub fn tcp_ports(pid: u32) -> Vec<u64> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is alive");
    let sockets: Vec<String> = fds
        .flatten()
        .filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .filter_map(|target| {
            let target = target.to_str()?;
            Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6"] {
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(inode)) = (fields.get(1), fields.get(9)) else { continue };
            if sockets.iter().any(|socket| socket == inode)
                && let Some((_, port)) = local.rsplit_once(':')
            {
                ports.extend(u64::from_str_radix(port, 16));
            }
        }
    }
    ports
}
