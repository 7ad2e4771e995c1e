//! The deployment under test: workers, a broker and an engine of its own, and a gate before each
//! service that the workers use.

use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tempfile::TempDir;

use crate::brokers::{self, Broker};
use crate::disk;
use crate::gate::{Cutting, Gate};
use crate::support::managers::Managers;
use crate::support::own_engine::OwnEngine;
use crate::support::worker::Settings;
use crate::support::{engine, git_server, registry};
use crate::workers::Worker;

/// Longest time for anything that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct World {
    /// What all names of this run begin with.
    pub run: String,
    pub managers: Managers,
    // End before the services do.
    pub workers: Vec<Site>,
    pub broker: Box<dyn Broker>,
    pub engine: Mutex<OwnEngine>,
    /// Shared by the workers and their engine, which pushes through it.
    pub registry: Mutex<Gate>,
    pub registry_name: String,
    pub forge: Mutex<Gate>,
    pub manager: Mutex<Gate>,
    _home: TempDir,
}

/// One worker and its own way to the engine. Whoever does something to one of them
/// holds its lock until that is over.
pub struct Site {
    // Ends before its gate does.
    pub worker: Mutex<Worker>,
    pub engine: Mutex<Gate>,
}

impl World {
    pub fn start(run: &str, logs: &Path) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let (broker, own_engine) = std::thread::scope(|scope| {
            let broker = scope.spawn(|| brokers::start(run, home.path()));
            let own_engine = OwnEngine::new();
            own_engine.load(engine::BASE);
            (broker.join().expect("the broker starts"), own_engine)
        });
        let managers = Managers::start();
        let manager = Gate::tcp(&host(&managers.container_url()), Cutting::BetweenRequests);
        let registry = Gate::tcp(&registry::open(), Cutting::Anywhere);
        let forge = Gate::tcp(&host(&git_server::server_url()), Cutting::Anywhere);
        let shared: Settings = [
            ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
            ("GITHUB_URL", format!("http://{}", forge.address())),
            ("REGISTRY_URL", registry.address()),
            ("TENANCY", "trusted".to_owned()),
            ("NOTIFIER_SECRET", managers.secret()),
            ("LISTENER_CONCURRENCY", "6".to_owned()),
            ("BUILDER_CONCURRENCY", "2".to_owned()),
            ("BUILDER_PER_USER", "1".to_owned()),
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
            let name = name_of_worker(number);
            let engine = Gate::unix(home.path().join(format!("{name}.sock")), own_engine.socket());
            // So each notification tells which worker it is from.
            let manager_url = |path| format!("http://{}/{name}/{path}", manager.address());
            let own = [
                ("DOCKER_HOST", format!("unix://{}", engine.address())),
                ("CONTAINER_MANAGER_URL", manager_url("container")),
                ("CONNECTOR_MANAGER_URL", manager_url("connector")),
            ];
            let mut settings = shared.clone();
            let own = own.into_iter().chain(broker.settings(number));
            settings.extend(own.map(|(name, value)| (name.to_owned(), value)));
            let log = logs.join(format!("{name}.log"));
            Site {
                worker: Mutex::new(Worker::start(&name, home.path(), log, settings)),
                engine: Mutex::new(engine),
            }
        };
        Self {
            run: run.to_owned(),
            workers: (0..broker.workers()).map(site).collect(),
            broker,
            engine: Mutex::new(own_engine),
            managers,
            registry_name: registry.address(),
            registry: Mutex::new(registry),
            forge: Mutex::new(forge),
            manager: Mutex::new(manager),
            _home: home,
        }
    }

    /// The site that a fault is drawn for: there are fewer than it may name.
    pub fn site(&self, number: usize) -> &Site {
        &self.workers[number % self.workers.len()]
    }

    /// Ends the one worker, in which the broker is.
    fn restart_worker(&self, kill: bool) -> Result<(), String> {
        let worker = lock(&self.workers[0].worker);
        match kill {
            true => worker.kill().then_some(()).ok_or_else(|| "there was no worker".to_owned()),
            false => worker.terminate(None, PATIENCE),
        }
    }

    /// Ends a service, by a kill or as an operator would, and starts it again on its data.
    ///
    /// # Errors
    /// It did not end.
    pub fn restart(&self, service: Service, kill: bool) -> Result<(), String> {
        match service {
            Service::Broker => {
                if !self.broker.restart(kill) {
                    return self.restart_worker(kill);
                }
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
        Ok(())
    }
}

/// What a worker is called.
pub fn name_of_worker(number: usize) -> String {
    format!("worker{}", number + 1)
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
