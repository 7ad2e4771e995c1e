//! RabbitMQ: a node of the run's own, three workers, each with a way of its own to it.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use lapin::BasicProperties;
use serde_json::json;

use super::post::Post;
use super::{Broker, Leavings, Silence, Taken};
use crate::gate::{Cutting, Gate, Way};
use crate::requests::Request;
use crate::support::broker::BrokerAt;
use crate::support::node::Node;
use crate::support::{client, runtime, until};
use crate::world::lock;

const WORKERS: usize = 3;

/// Seconds between two signs of life on a connection to the broker.
const HEARTBEAT: u64 = 3;

pub struct RabbitMq {
    run: String,
    at: BrokerAt,
    node: Mutex<Node>,
    gates: Vec<Mutex<Gate>>,
    post: Mutex<Post>,
    client: reqwest::Client,
}

impl RabbitMq {
    pub fn start(run: &str) -> Self {
        let node = Node::new(&[]);
        let gate = || Mutex::new(Gate::tcp(&node.address(), Cutting::Anywhere));
        Self {
            run: run.to_owned(),
            at: node.at(),
            gates: (0..WORKERS).map(|_| gate()).collect(),
            post: Mutex::new(Post::to(&node.at().uri)),
            node: Mutex::new(node),
            client: client(),
        }
    }

    fn queue(&self, name: &str) -> String {
        format!("{}.{name}", self.run)
    }

    fn management(&self, method: reqwest::Method, path: &str) -> Result<serde_json::Value, String> {
        runtime().block_on(async {
            let url = format!("{}{path}", self.at.management);
            let request = self.client.request(method, url).timeout(Duration::from_secs(20));
            let response = request.send().await.and_then(reqwest::Response::error_for_status);
            let text = response.map_err(|error| error.to_string())?.text().await;
            Ok(serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default())
        })
    }
}

impl Broker for RabbitMq {
    fn workers(&self) -> usize {
        WORKERS
    }

    fn settings(&self, worker: usize) -> Vec<(&'static str, String)> {
        let gate = lock(&self.gates[worker]).address();
        vec![
            ("RABBITMQ_URI", format!("amqp://guest:guest@{gate}/%2f?heartbeat={HEARTBEAT}")),
            ("BUILD_QUEUE", self.queue("build")),
            ("FAIL_QUEUE", self.queue("fail")),
            ("OUTCOME_QUEUE", self.queue("outcome")),
            ("DEAD_QUEUE", self.queue("dead")),
            ("CANCEL_EXCHANGE", self.queue("cancel")),
            ("BUILD_LANES", "4".to_owned()),
        ]
    }

    fn gates(&self, worker: Option<usize>) -> Vec<&Mutex<Gate>> {
        match worker {
            Some(number) => vec![&self.gates[number]],
            None => self.gates.iter().collect(),
        }
    }

    fn until_ready(&self) {
        until("the workers have made their queues", || {
            self.at.queues(&self.queue("build")).first().map(drop)
        });
    }

    fn publish(&self, request: &Request) -> Taken {
        let (queue, body) = (self.queue("build"), request.body.to_string());
        let properties = request.properties();
        Taken::Copies(lock(&self.post).publish("", &queue, body.as_bytes(), &properties))
    }

    fn cancel(&self, user: &str, build_id: &str) {
        let body = json!({"buildID": build_id, "userID": user}).to_string();
        let (exchange, none) = (self.queue("cancel"), BasicProperties::default());
        lock(&self.post).publish(&exchange, "", body.as_bytes(), &none);
    }

    fn cut_off(&self) -> Box<dyn Silence + '_> {
        let gates: Vec<_> = self.gates.iter().map(lock).collect();
        gates.iter().for_each(|gate| gate.set(Way::Refused));
        until("no worker is connected", || {
            gates.iter().all(|gate| gate.ports().is_empty()).then_some(())
        });
        Box::new(CutOff(gates))
    }

    fn close_connections(&self, worker: usize) -> usize {
        let gate = lock(&self.gates[worker]);
        let closed = |port: &&u16| {
            let name = format!("127.0.0.1:{port}%20-%3E%20{}", gate.leads_to());
            self.management(reqwest::Method::DELETE, &format!("/api/connections/{name}")).is_ok()
        };
        gate.ports().iter().filter(closed).count()
    }

    fn restart(&self, kill: bool) -> bool {
        let node = lock(&self.node);
        if kill {
            node.kill();
        } else {
            node.stop();
        }
        node.start();
        true
    }

    fn waiting(&self) -> Result<Vec<(String, u64)>, String> {
        let all = self.management(reqwest::Method::GET, "/api/queues/%2f?columns=name,messages")?;
        let queues = all.as_array().into_iter().flatten();
        let queues = queues
            .filter_map(|queue| Some((queue["name"].as_str()?, queue["messages"].as_u64()?)))
            .filter(|(name, _)| *name != self.queue("dead") && !is_stream(name));
        let queues: Vec<_> = queues.map(|(name, count)| (name.to_owned(), count)).collect();
        match queues.iter().any(|(name, _)| *name == self.queue("build")) {
            true => Ok(queues),
            false => Err("the broker does not tell of the queues".to_owned()),
        }
    }

    fn leavings(&self) -> Leavings {
        let mut leavings = Leavings::default();
        for queue in self.at.queues(&format!("{}.", self.run)) {
            for body in lock(&self.post).drain(&queue) {
                let body = String::from_utf8_lossy(&body).into_owned();
                if queue == self.queue("dead") {
                    leavings.letters.push(body);
                } else {
                    leavings.messages.push((queue.clone(), body));
                }
            }
        }
        leavings
    }
}

/// All workers' ways to the broker, barred.
struct CutOff<'a>(Vec<MutexGuard<'a, Gate>>);

impl Silence for CutOff<'_> {}

impl Drop for CutOff<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|gate| gate.set(Way::Open));
    }
}

/// Whether a queue is one that keeps what it has: the outcome ledger, or what was cancelled.
fn is_stream(queue: &str) -> bool {
    ["told.", "cancelled."].iter().any(|prefix| queue.starts_with(prefix))
}
