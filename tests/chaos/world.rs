//! The deployment under test: three workers, and a gate of its own before each service that they use.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::gate::{Cutting, Gate};
use crate::support::managers::Managers;
use crate::support::worker::Settings;
use crate::support::{broker, git_server, registry, runtime, setting};
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
    pub workers: Vec<Site>,
    /// Shared by the workers and their engine, which pushes through it.
    pub registry: Mutex<Gate>,
    pub registry_name: String,
    pub forge: Mutex<Gate>,
    pub forge_url: String,
    pub manager: Mutex<Gate>,
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
        let managers = Managers::start();
        let manager = Gate::tcp(&host(&managers.container_url()), Cutting::BetweenRequests);
        let registry = Gate::tcp(&registry::open(), Cutting::Anywhere);
        let forge = Gate::tcp(&host(&git_server::server_url()), Cutting::Anywhere);
        let forge_url = format!("http://{}", forge.address());
        let queue = |name: &str| format!("{run}.{name}");
        let shared: Settings = [
            ("BUILD_QUEUE", queue("build")),
            ("FAIL_QUEUE", queue("fail")),
            ("OUTCOME_QUEUE", queue("outcome")),
            ("DEAD_QUEUE", queue("dead")),
            ("CANCEL_EXCHANGE", queue("cancel")),
            ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
            ("GITHUB_URL", forge_url.clone()),
            ("REGISTRY_URL", registry.address()),
            ("CONTAINER_MANAGER_URL", format!("http://{}/container", manager.address())),
            ("CONNECTOR_MANAGER_URL", format!("http://{}/connector", manager.address())),
            ("NOTIFIER_SECRET", managers.secret()),
            ("LISTENER_CONCURRENCY", "6".to_owned()),
            ("BUILDER_CONCURRENCY", "2".to_owned()),
            ("CONNECTOR_TIMEOUT", "20s".to_owned()),
            ("BUILDER_TIMEOUT", "60s".to_owned()),
            ("PUSHER_TIMEOUT", "30s".to_owned()),
            ("NOTIFIER_TIMEOUT", "5s".to_owned()),
            ("DRAIN_TIMEOUT", "3s".to_owned()),
            ("RETRY_MAX_ATTEMPTS", "15".to_owned()),
            ("RETRY_INITIAL_DELAY", "300ms".to_owned()),
            ("RETRY_MULTIPLIER", "2".to_owned()),
            ("RETRY_MAX_DELAY", "3s".to_owned()),
            ("LOG_FORMAT", "json".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let site = |number: usize| {
            let name = format!("worker{number}");
            let broker = Gate::tcp(&broker_address(), Cutting::Anywhere);
            let engine = Gate::unix(home.path().join(format!("{name}.sock")), engine_socket());
            let mut settings = shared.clone();
            settings.insert("RABBITMQ_URI".to_owned(), uri_through(&broker.address()));
            settings.insert("DOCKER_HOST".to_owned(), format!("unix://{}", engine.address()));
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
            managers,
            registry_name: registry.address(),
            registry: Mutex::new(registry),
            forge: Mutex::new(forge),
            forge_url,
            manager: Mutex::new(manager),
            _home: home,
        }
    }

    /// Closes the connections of a worker to the broker, as an operator would; returns how many.
    pub fn close_connections(&self, worker: usize) -> usize {
        let ports = lock(&self.workers[worker].broker).ports();
        let broker = broker_address();
        let closed = |port: &&u16| {
            let name = format!("127.0.0.1:{port}%20-%3E%20{broker}");
            management(reqwest::Method::DELETE, &format!("/api/connections/{name}")).is_ok()
        };
        ports.iter().filter(closed).count()
    }

    /// Messages that are anywhere in this run's queues, unacked ones included, by queue; the dead
    /// letters are not counted. The broker's figures lag.
    pub fn waiting(&self) -> Result<Vec<(String, u64)>, String> {
        let path = "/api/queues/%2f?columns=name,messages";
        let all = management(reqwest::Method::GET, path)?;
        let prefix = format!("{}.", self.run);
        Ok(all
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|queue| Some((queue["name"].as_str()?, queue["messages"].as_u64()?)))
            .filter(|(name, _)| name.starts_with(&prefix) && *name != self.dead_queue)
            .map(|(name, messages)| (name.to_owned(), messages))
            .collect())
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with it")
}

fn management(method: reqwest::Method, path: &str) -> Result<serde_json::Value, String> {
    let base = setting("RABBITMQ_MANAGEMENT_URL", "http://guest:guest@localhost:15672");
    runtime().block_on(async {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build();
        let request = client.map_err(|error| error.to_string())?.request(method, base + path);
        let response = request.send().await.and_then(reqwest::Response::error_for_status);
        let text = response.map_err(|error| error.to_string())?.text().await;
        Ok(serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default())
    })
}

/// Host and port of an HTTP address.
fn host(url: &str) -> String {
    let rest = url.trim_start_matches("http://");
    rest.split('/').next().unwrap_or_default().to_owned()
}

/// Host and port, in digits: so the broker names its connections.
fn broker_address() -> String {
    let uri = broker::uri();
    let host = uri.rsplit('@').next().and_then(|rest| rest.split('/').next()).unwrap_or_default();
    host.replace("localhost", "127.0.0.1")
}

fn uri_through(gate: &str) -> String {
    let uri = broker::uri();
    let (login, rest) = uri.split_once('@').expect("the broker's address has a login");
    let vhost = rest.split_once('/').map_or("%2f", |(_, vhost)| vhost);
    format!("{login}@{gate}/{vhost}?heartbeat={HEARTBEAT}")
}

fn engine_socket() -> PathBuf {
    let host = setting("DOCKER_HOST", "unix:///var/run/docker.sock");
    let path = host.strip_prefix("unix://").expect("the chaos run needs an engine on a socket");
    path.into()
}

/// A service of the development stack, to be restarted for real.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    RabbitMq,
    Docker,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Service::RabbitMq => "rabbitmq",
            Service::Docker => "docker",
        }
    }

    /// Ends the service, by a kill or as `stack.sh down` does, and starts it again.
    pub fn restart(self, kill: bool) -> Result<(), String> {
        if kill {
            let state = setting("IMAGE_BUILDER_STATE", "/var/lib/image-builder-dev");
            let file = format!("{state}/run/{}.pid", self.name());
            let pid = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
            run(Command::new("kill").args(["-9", pid.trim()]))?;
            await_death(pid.trim())?;
        } else {
            run(Command::new(stack()).args(["down", self.name()]))?;
        }
        run(Command::new(stack()).args(["up", self.name()]))
    }
}

/// The script that the services are run by.
fn stack() -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/.devcontainer/stack.sh");
    setting("CHAOS_STACK", script)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
    }
}

fn await_death(pid: &str) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    // One that nobody waits for stays as a zombie.
    let alive = || {
        let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    while alive() {
        if Instant::now() > deadline {
            return Err(format!("process {pid} outlives a kill"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
