//! The deployment under test: three workers, a broker and an engine of its own, and a gate before each
//! service that the workers use.

use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tempfile::TempDir;

use crate::disk;
use crate::gate::{Cutting, Gate, Way};
use crate::support::broker::BrokerAt;
use crate::support::managers::Managers;
use crate::support::node::Node;
use crate::support::own_engine::OwnEngine;
use crate::support::worker::Settings;
use crate::support::{engine, git_server, registry, runtime, until};
use crate::workers::Worker;

pub const WORKERS: usize = 3;

/// Seconds between two signs of life on a connection to the broker.
const HEARTBEAT: u64 = 3;

/// Longest time for anything that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct World {
    /// What all names of this run begin with.
    pub run: String,
    pub managers: Managers,
    pub build_queue: String,
    pub dead_queue: String,
    pub cancel_exchange: String,
    // End before the services do.
    pub workers: Vec<Site>,
    pub broker_at: BrokerAt,
    broker: Mutex<Node>,
    pub engine: Mutex<OwnEngine>,
    /// Shared by the workers and their engine, which pushes through it.
    pub registry: Mutex<Gate>,
    pub registry_name: String,
    pub forge: Mutex<Gate>,
    pub manager: Mutex<Gate>,
    client: reqwest::Client,
    _home: TempDir,
}

/// One worker and its own ways to the broker and the engine. Whoever does something to one of them
/// holds its lock until that is over.
pub struct Site {
    // Ends before its gates do.
    pub worker: Mutex<Worker>,
    pub broker: Mutex<Gate>,
    pub engine: Mutex<Gate>,
}

impl World {
    pub fn start(run: &str, logs: &Path) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let (node, own_engine) = std::thread::scope(|scope| {
            let node = scope.spawn(|| Node::new(&[]));
            let own_engine = OwnEngine::new();
            own_engine.load(engine::BASE);
            (node.join().expect("the broker starts"), own_engine)
        });
        let managers = Managers::start();
        let manager = Gate::tcp(&host(&managers.container_url()), Cutting::BetweenRequests);
        let registry = Gate::tcp(&registry::open(), Cutting::Anywhere);
        let forge = Gate::tcp(&host(&git_server::server_url()), Cutting::Anywhere);
        let queue = |name: &str| format!("{run}.{name}");
        let shared: Settings = [
            ("BUILD_QUEUE", queue("build")),
            ("FAIL_QUEUE", queue("fail")),
            ("OUTCOME_QUEUE", queue("outcome")),
            ("DEAD_QUEUE", queue("dead")),
            ("CANCEL_EXCHANGE", queue("cancel")),
            ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
            ("GITHUB_URL", format!("http://{}", forge.address())),
            ("REGISTRY_URL", registry.address()),
            ("NOTIFIER_SECRET", managers.secret()),
            ("LISTENER_CONCURRENCY", "6".to_owned()),
            ("BUILDER_CONCURRENCY", "2".to_owned()),
            ("BUILDER_PER_USER", "1".to_owned()),
            ("BUILD_LANES", "4".to_owned()),
            ("CONNECTOR_TIMEOUT", "20s".to_owned()),
            ("BUILDER_TIMEOUT", "60s".to_owned()),
            ("PUSHER_TIMEOUT", "30s".to_owned()),
            ("NOTIFIER_TIMEOUT", "5s".to_owned()),
            ("DRAIN_TIMEOUT", "3s".to_owned()),
            ("RETRY_MAX_ATTEMPTS", "15".to_owned()),
            ("RETRY_INITIAL_DELAY", "300ms".to_owned()),
            ("RETRY_MULTIPLIER", "2".to_owned()),
            ("RETRY_MAX_DELAY", "3s".to_owned()),
            ("DISK_LOW_WATERMARK", disk::LOW.to_owned()),
            ("DISK_HIGH_WATERMARK", disk::HIGH.to_owned()),
            ("LOG_FORMAT", "json".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let site = |number: usize| {
            let name = format!("worker{number}");
            let broker = Gate::tcp(&node.address(), Cutting::Anywhere);
            let engine = Gate::unix(home.path().join(format!("{name}.sock")), own_engine.socket());
            // So each notification tells which worker it is from.
            let manager_url = |path| format!("http://{}/{name}/{path}", manager.address());
            let own = [
                ("RABBITMQ_URI", uri_through(&broker.address())),
                ("DOCKER_HOST", format!("unix://{}", engine.address())),
                ("CONTAINER_MANAGER_URL", manager_url("container")),
                ("CONNECTOR_MANAGER_URL", manager_url("connector")),
            ];
            let mut settings = shared.clone();
            settings.extend(own.map(|(name, value)| (name.to_owned(), value)));
            let log = logs.join(format!("{name}.log"));
            Site {
                worker: Mutex::new(Worker::start(&name, home.path(), log, settings)),
                broker: Mutex::new(broker),
                engine: Mutex::new(engine),
            }
        };
        Self {
            run: run.to_owned(),
            build_queue: queue("build"),
            dead_queue: queue("dead"),
            cancel_exchange: queue("cancel"),
            workers: (1..=WORKERS).map(site).collect(),
            broker_at: node.at(),
            broker: Mutex::new(node),
            engine: Mutex::new(own_engine),
            managers,
            registry_name: registry.address(),
            registry: Mutex::new(registry),
            forge: Mutex::new(forge),
            manager: Mutex::new(manager),
            client: reqwest::Client::new(),
            _home: home,
        }
    }

    /// Closes the connections of a worker to the broker, as an operator would; returns how many.
    pub fn close_connections(&self, worker: usize) -> usize {
        let gate = lock(&self.workers[worker].broker);
        let closed = |port: &&u16| {
            let name = format!("127.0.0.1:{port}%20-%3E%20{}", gate.leads_to());
            self.management(reqwest::Method::DELETE, &format!("/api/connections/{name}")).is_ok()
        };
        gate.ports().iter().filter(closed).count()
    }

    /// Cuts all workers off from the broker until what is returned is dropped.
    pub fn cut_off(&self) -> CutOff<'_> {
        let gates: Vec<_> = self.workers.iter().map(|site| lock(&site.broker)).collect();
        gates.iter().for_each(|gate| gate.set(Way::Refused));
        until("no worker is connected", || {
            gates.iter().all(|gate| gate.ports().is_empty()).then_some(())
        });
        CutOff(gates)
    }

    /// Messages that are anywhere in the queues, unacked ones included, by queue; the dead letters and
    /// the streams are not counted. The broker's figures lag.
    pub fn waiting(&self) -> Result<Vec<(String, u64)>, String> {
        let all = self.management(reqwest::Method::GET, "/api/queues/%2f?columns=name,messages")?;
        let queues = all.as_array().into_iter().flatten();
        let queues = queues
            .filter_map(|queue| Some((queue["name"].as_str()?, queue["messages"].as_u64()?)))
            .filter(|(name, _)| *name != self.dead_queue && !is_stream(name));
        let queues: Vec<_> = queues.map(|(name, count)| (name.to_owned(), count)).collect();
        match queues.iter().any(|(name, _)| *name == self.build_queue) {
            true => Ok(queues),
            false => Err("the broker does not tell of the queues".to_owned()),
        }
    }

    fn management(&self, method: reqwest::Method, path: &str) -> Result<serde_json::Value, String> {
        runtime().block_on(async {
            let url = format!("{}{path}", self.broker_at.management);
            let request = self.client.request(method, url).timeout(Duration::from_secs(20));
            let response = request.send().await.and_then(reqwest::Response::error_for_status);
            let text = response.map_err(|error| error.to_string())?.text().await;
            Ok(serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default())
        })
    }

    /// Ends a service, by a kill or as an operator would, and starts it again on its data.
    pub fn restart(&self, service: Service, kill: bool) {
        match service {
            Service::Broker => {
                let broker = lock(&self.broker);
                if kill {
                    broker.kill();
                } else {
                    broker.stop();
                }
                broker.start();
            }
            Service::Engine => {
                let engine = lock(&self.engine);
                if kill {
                    engine.kill();
                } else {
                    engine.stop();
                }
                engine.start();
            }
        }
    }
}

/// All workers' ways to the broker, barred.
pub struct CutOff<'a>(Vec<MutexGuard<'a, Gate>>);

impl Drop for CutOff<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|gate| gate.set(Way::Open));
    }
}

/// A service of the deployment's own, which can be restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Broker,
    Engine,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with it")
}

/// Host and port of an HTTP address.
fn host(url: &str) -> String {
    let rest = url.trim_start_matches("http://");
    rest.split('/').next().unwrap_or_default().to_owned()
}

fn uri_through(gate: &str) -> String {
    format!("amqp://guest:guest@{gate}/%2f?heartbeat={HEARTBEAT}")
}

/// Whether a queue is one that keeps what it has: the outcome ledger, or what was cancelled.
fn is_stream(queue: &str) -> bool {
    ["told.", "cancelled."].iter().any(|prefix| queue.starts_with(prefix))
}
