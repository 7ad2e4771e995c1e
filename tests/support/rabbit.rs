//! A real RabbitMQ for tests: queues of one's own, and what its management API can do.

use std::sync::Arc;
use std::time::Duration;

use image_builder::broker::rabbitmq::topology::{Topology, TopologySettings};
use image_builder::broker::rabbitmq::{RabbitMq, RabbitSettings};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::{Broker, Queue};
use lapin::{Connection, ConnectionProperties};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

/// How long the broker is given to do what a test asks of it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The broker's address.
pub(crate) fn uri() -> String {
    std::env::var("RABBITMQ_URI")
        .unwrap_or_else(|_| "amqp://guest:guest@localhost:5672/%2f".to_owned())
}

/// A name that no other test uses.
pub(crate) fn unique(what: &str) -> String {
    format!("test.{what}.{}", uuid::Uuid::new_v4().simple())
}

/// Names of one's own, with short delays.
pub(crate) fn topology_settings() -> TopologySettings {
    let name = unique("broker");
    TopologySettings {
        build_queue: format!("{name}.build"),
        fail_queue: format!("{name}.fail"),
        outcome_queue: format!("{name}.outcome"),
        dead_queue: format!("{name}.dead"),
        result_queue: Some(format!("{name}.result")),
        cancel_exchange: format!("{name}.cancel"),
        build_lanes: 2,
        build_rungs: vec![Duration::from_millis(400), Duration::from_secs(1)],
        outcome_rungs: vec![Duration::from_millis(400)],
    }
}

/// Settings for these queues; the connections are named for them.
pub(crate) fn settings(uri: &str, topology: TopologySettings) -> RabbitSettings {
    let connection_name = format!("test {}", topology.build_queue);
    let topology = Topology::new(topology).expect("good names");
    let settings = RabbitSettings::new(Secret::new(uri), topology);
    RabbitSettings { publish_timeout: PATIENCE, connection_name, ..settings }
}

/// A worker's broker on queues of its own, which [`Rabbit::tear_down`] deletes.
pub(crate) struct Rabbit {
    pub(crate) broker: Arc<RabbitMq>,
    pub(crate) settings: RabbitSettings,
}

impl Rabbit {
    pub(crate) async fn start() -> Self {
        Self::start_with(settings(&uri(), topology_settings())).await
    }

    pub(crate) async fn start_with(settings: RabbitSettings) -> Self {
        let connecting = RabbitMq::connect(settings.clone());
        let broker = tokio::time::timeout(PATIENCE, connecting)
            .await
            .expect("these tests need a RabbitMQ at RABBITMQ_URI: is `stack.sh up` running?")
            .expect("the broker takes us");
        Self { broker: Arc::new(broker), settings }
    }

    pub(crate) async fn tear_down(&self) {
        self.broker.close().await;
        delete_topology(&self.settings.topology).await;
    }

    /// Deletes a queue behind the worker's back.
    pub(crate) async fn delete_queue(&self, queue: Queue) {
        let name = self.name(queue).into();
        let (connection, channel) = plain_channel().await;
        channel.queue_delete(name, Default::default()).await.expect("it can be deleted");
        connection.close(200, "done".into()).await.expect("it can be closed");
    }

    pub(crate) fn name(&self, queue: Queue) -> &str {
        self.settings.topology.queue(queue).expect("it is set")
    }

    /// Closes the connections of this broker that are of this side, as an operator would, and waits
    /// until the worker has noticed.
    pub(crate) async fn kill(&self, side: &str) {
        let mut state = self.broker.connected();
        let before = state.borrow_and_update().since;
        self.close_connections(side).await;
        let noticed = state.wait_for(|state| state.since > before);
        let noticed = tokio::time::timeout(PATIENCE, noticed).await;
        noticed.expect("a killed connection is noticed").expect("the broker lives");
    }

    /// Closes the connections of this broker that are for this, as an operator would.
    pub(crate) async fn close_connections(&self, purpose: &str) {
        let name = format!("{} {purpose}", self.settings.connection_name);
        let management = Management::new();
        tokio::time::timeout(PATIENCE, async {
            while management.close_connections(&name).await == 0 {
                // The management database hears of a new connection a little later.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await
        .expect("there is such a connection");
    }
}

/// Deletes the queues and the exchange of a topology.
pub(crate) async fn delete_topology(topology: &Topology) {
    let (connection, channel) = plain_channel().await;
    let streams = [topology.ledger(), topology.cancellations()];
    for queue in topology.queues().iter().chain(streams) {
        // Deleting what is not there is no error.
        let deleted = channel.queue_delete(queue.name.as_str().into(), Default::default()).await;
        deleted.expect("the queue can be deleted");
    }
    for exchange in [topology.cancel_exchange(), topology.bell()] {
        let deleted = channel.exchange_delete(exchange.into(), Default::default());
        deleted.await.expect("it can be deleted");
    }
    connection.close(200, "done".into()).await.expect("it can be closed");
}

/// A connection of the test itself, as a publisher or an operator would have one.
pub(crate) async fn plain_channel() -> (Connection, lapin::Channel) {
    let connection = Connection::connect(&uri(), ConnectionProperties::default())
        .await
        .expect("these tests need a RabbitMQ at RABBITMQ_URI: is `stack.sh up` running?");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}

/// The management API.
pub(crate) struct Management {
    client: Client,
    base: String,
}

impl Management {
    pub(crate) fn new() -> Self {
        // An error means that another test was faster.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let base = std::env::var("RABBITMQ_MANAGEMENT_URL")
            .unwrap_or_else(|_| "http://guest:guest@localhost:15672".to_owned());
        let client = Client::builder().no_proxy().tls_certs_only([]).build().expect("a client");
        Self { client, base }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = self.client.request(method, format!("{}/api/{path}", self.base));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request
            .send()
            .await
            .expect("these tests need RabbitMQ's management API: is `stack.sh up` running?");
        let status = response.status();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    /// Closes the connections of this name; returns how many there were.
    async fn close_connections(&self, name: &str) -> usize {
        let (_, connections) = self.call(Method::GET, "connections", None).await;
        let mut closed = 0;
        for connection in connections.as_array().into_iter().flatten() {
            if connection["client_properties"]["connection_name"] != name {
                continue;
            }
            let id = connection["name"].as_str().expect("a connection has a name");
            let id = id.replace(' ', "%20").replace('>', "%3E").replace('/', "%2F");
            let (status, _) = self.call(Method::DELETE, &format!("connections/{id}"), None).await;
            closed += usize::from(status.is_success());
        }
        closed
    }

    /// Makes a user who may configure (declare) what matches, and read and write everything.
    pub(crate) async fn put_user(&self, name: &str, password: &str, configure: &str) {
        self.put_user_with(name, password, [configure, ".*", ".*"]).await;
    }

    /// Makes a user who may configure, write and read what matches.
    pub(crate) async fn put_user_with(&self, name: &str, password: &str, rights: [&str; 3]) {
        let [configure, write, read] = rights;
        let user = json!({"password": password, "tags": ""});
        let (status, _) = self.call(Method::PUT, &format!("users/{name}"), Some(user)).await;
        assert!(status.is_success(), "a user can be made: {status}");
        let permissions = json!({"configure": configure, "write": write, "read": read});
        let path = format!("permissions/%2F/{name}");
        let (status, _) = self.call(Method::PUT, &path, Some(permissions)).await;
        assert!(status.is_success(), "permissions can be set: {status}");
    }

    pub(crate) async fn delete_user(&self, name: &str) {
        self.call(Method::DELETE, &format!("users/{name}"), None).await;
    }

    /// Lets a queue hold at most so many messages; returns the name of the policy that says so.
    pub(crate) async fn limit_length(&self, queue: &str, length: u32) -> String {
        let policy = unique("policy");
        let body = json!({
            "pattern": format!("^{}$", queue.replace('.', "\\.")),
            "definition": {"max-length": length},
            "apply-to": "queues",
        });
        let path = format!("policies/%2F/{policy}");
        let (status, _) = self.call(Method::PUT, &path, Some(body)).await;
        assert!(status.is_success(), "a policy can be set: {status}");
        policy
    }

    pub(crate) async fn delete_policy(&self, policy: &str) {
        self.call(Method::DELETE, &format!("policies/%2F/{policy}"), None).await;
    }
}
