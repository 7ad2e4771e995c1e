//! One deployment of its own: queues, users, managers and a forge that nobody else has.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lapin::BasicProperties;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::broker::{Broker, BrokerAt, Fetched};
use super::canary::{MARK, forms};
use super::git_server::{self, GitRepo};
use super::managers::{Managers, Notification};
use super::stand_in::{Answer, StandIn};
use super::turnstile::Steps;
use super::worker::{Settings, Worker};
use super::{PATIENCE, engine, registry, runtime, setting, unique, until};

/// A deployment. Dropping it removes its queues from the shared broker; its workers must be dropped
/// before.
pub struct World {
    /// What all of its names begin with; also the id of its user.
    pub user: String,
    pub broker: Broker,
    pub managers: Managers,
    pub settings: Settings,
    releases: Arc<Mutex<HashMap<String, Value>>>,
    _forge_api: StandIn,
    data: TempDir,
    secrets: Mutex<Vec<String>>,
}

/// The settings whose defaults would cost tests time.
const SHORTENED: [&str; 5] = [
    "BUILDER_NETWORK",
    "LISTENER_CONCURRENCY",
    "RETRY_INITIAL_DELAY",
    "RETRY_MULTIPLIER",
    "RETRY_MAX_DELAY",
];

impl World {
    /// A deployment on the broker that all tests share.
    pub fn new() -> Self {
        Self::on(BrokerAt::shared())
    }

    /// A deployment on this broker.
    pub fn on(at: BrokerAt) -> Self {
        let user = unique("it");
        let managers = Managers::start();
        let releases: Arc<Mutex<HashMap<String, Value>>> = Arc::default();
        let answers = releases.clone();
        let forge_api = runtime().block_on(StandIn::start(move |asked| {
            match answers.lock().expect("no answer panics").get(&asked.path) {
                Some(release) => Answer::json(release),
                None => Answer::status(404),
            }
        }));
        let settings = [
            ("RABBITMQ_URI", at.uri.clone()),
            ("BUILD_QUEUE", format!("{user}.build")),
            ("FAIL_QUEUE", format!("{user}.fail")),
            ("OUTCOME_QUEUE", format!("{user}.outcome")),
            ("DEAD_QUEUE", format!("{user}.dead")),
            ("CANCEL_EXCHANGE", format!("{user}.cancel")),
            ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
            ("GITHUB_URL", git_server::server_url()),
            ("GITHUB_API_URL", forge_api.url()),
            ("REGISTRY_URL", registry::open()),
            ("TENANCY", setting("TENANCY", "trusted")),
            // Some steps go through the turnstile, and to give each of the others a network takes longer than it runs.
            ("BUILDER_NETWORK", "host".to_owned()),
            ("CONTAINER_MANAGER_URL", managers.container_url()),
            ("CONNECTOR_MANAGER_URL", managers.connector_url()),
            ("NOTIFIER_SECRET", managers.secret()),
            ("LISTENER_CONCURRENCY", "8".to_owned()),
            ("RETRY_INITIAL_DELAY", "200ms".to_owned()),
            ("RETRY_MULTIPLIER", "3".to_owned()),
            ("RETRY_MAX_DELAY", "600ms".to_owned()),
        ];
        let mut settings: Settings =
            settings.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
        settings.extend(std::env::var("DOCKER_HOST").map(|host| ("DOCKER_HOST".to_owned(), host)));
        Self {
            broker: Broker::connect_to(at),
            releases,
            _forge_api: forge_api,
            data: tempfile::tempdir().expect("a temporary directory can be made"),
            secrets: Mutex::new(vec![managers.secret(), MARK.to_owned()]),
            user,
            managers,
            settings,
        }
    }

    /// What tests shorten or spare is as it is where nothing is set, for what is measured.
    pub fn with_defaults(mut self) -> Self {
        self.settings.retain(|name, _| !SHORTENED.contains(&name.as_str()));
        self
    }

    /// The same with another setting.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The settings of one more worker, with a directory of its own.
    pub fn settings(&self) -> Settings {
        let mut settings = self.settings.clone();
        let data = self.data.path().join(unique("data")).display().to_string();
        settings.entry("DATA_DIR".to_owned()).or_insert(data);
        settings
    }

    /// A worker at work.
    pub fn worker(&self) -> Worker {
        Worker::start(&self.settings())
    }

    // ---- requests -----------------------------------------------------------------------------

    /// A request of this repository's default branch, with an id of its own.
    pub fn request(&self, repo: &GitRepo) -> Value {
        json!({"userID": self.user, "repo": full_name(repo), "uuid": unique("build")})
    }

    /// A request of a repository whose build goes through the turnstile under the request's `uuid`.
    pub fn held_request(&self, repo: &GitRepo, user: &str) -> Value {
        let request = self.request(repo);
        let id = request["uuid"].clone();
        let plan = json!({"buildArgs": {"STEP": id}});
        with(request, json!({"userID": user, "applicationID": id, "buildPlan": plan}))
    }

    /// Publishes a request as the plainest of publishers would; returns its `uuid`.
    pub fn publish(&self, request: &Value) -> String {
        self.publish_raw(request.to_string().as_bytes(), BasicProperties::default());
        request["uuid"].as_str().unwrap_or_default().to_owned()
    }

    /// Publishes so many requests, each for an application of its own, and so with an image of its own.
    pub fn publish_many(&self, repo: &GitRepo, count: usize) -> Vec<String> {
        let publish = |_| {
            let application = json!({"applicationID": unique("app")});
            self.publish(&with(self.request(repo), application))
        };
        (0..count).map(publish).collect()
    }

    pub fn publish_raw(&self, body: &[u8], properties: BasicProperties) {
        self.broker.publish(&self.settings["BUILD_QUEUE"], body, properties);
    }

    /// Asks all workers to stop a build of this world's user.
    pub fn cancel(&self, build_id: &str) {
        self.cancel_of(&self.user, build_id);
    }

    /// Asks all workers to stop a build of this user.
    pub fn cancel_of(&self, user: &str, build_id: &str) {
        self.cancel_raw(&json!({"buildID": build_id, "userID": user}));
    }

    pub fn cancel_raw(&self, body: &Value) {
        let body = body.to_string();
        self.broker.broadcast(&self.settings["CANCEL_EXCHANGE"], body.as_bytes());
    }

    /// The lanes of the backlog.
    fn lanes(&self) -> impl Iterator<Item = String> {
        let numbered = self
            .settings
            .get("BUILD_LANES")
            .map_or(4, |lanes| lanes.parse::<u16>().expect("a number of lanes"));
        let named = ["returned", "first", "few"].map(str::to_owned).into_iter();
        let lanes = named.chain((1..=numbered).map(|number| number.to_string()));
        lanes.map(|lane| format!("{}.lane.{lane}", self.settings["BUILD_QUEUE"]))
    }

    /// How many requests are in the lanes and in nobody's hand.
    pub fn in_lanes(&self) -> usize {
        self.lanes().map(|lane| self.broker.ready(&lane)).sum()
    }

    /// Waits until so many requests are in the lanes and in nobody's hand.
    #[track_caller]
    pub fn until_in_lanes(&self, requests: usize) {
        until("requests wait in the lanes", || (self.in_lanes() == requests).then_some(()));
    }

    /// How a build ends.
    #[track_caller]
    pub fn outcome(&self, build_id: &str) -> Notification {
        self.outcome_where(build_id, |told| told.build_id() == build_id)
    }

    /// How the build ends whose notification is like this.
    #[track_caller]
    pub fn outcome_where(
        &self,
        what: &str,
        wanted: impl Fn(&Notification) -> bool,
    ) -> Notification {
        match self.managers.wait_for(what, PATIENCE, wanted) {
            Ok(told) => told,
            Err(error) => panic!("{error}; {:?}", self.managers.faults()),
        }
    }

    /// Publishes a request, and waits until its build has ended.
    #[track_caller]
    pub fn build(&self, request: &Value) -> Notification {
        let build_id = self.publish(request);
        self.outcome(&build_id)
    }

    /// What the forge's API answers for this repository's release.
    pub fn release(&self, repo: &GitRepo, path: &str, answer: Value) {
        let path = format!("/repos/{}/releases/{path}", full_name(repo));
        self.releases.lock().expect("no answer panics").insert(path, answer);
    }

    // ---- what must hold of all that happened ---------------------------------------------------

    /// Remembers a text that must turn up nowhere.
    pub fn keep_secret(&self, secret: &str) {
        self.secrets.lock().expect("nobody panics with it").push(secret.to_owned());
    }

    /// The dead letters, taken out of their queue.
    pub fn dead_letters(&self) -> Vec<Fetched> {
        self.broker.drain(&self.settings["DEAD_QUEUE"])
    }

    /// Drains the workers, and checks what holds of every deployment: nothing is left in a queue,
    /// every notification was signed, each was accepted once, and no secret got out, not even to a file. Returns the
    /// accepted notifications and the dead letters.
    #[track_caller]
    pub fn finish(&self, workers: &[&Worker]) -> (Vec<Notification>, Vec<Fetched>) {
        if !workers.is_empty() {
            // What a worker had that was killed comes back for somebody to find that it is done.
            until("no request waits in a lane", || (self.in_lanes() == 0).then_some(()));
        }
        for worker in workers {
            worker.stop();
        }
        for queue in ["BUILD_QUEUE", "FAIL_QUEUE", "OUTCOME_QUEUE"] {
            let left = self.broker.drain(&self.settings[queue]);
            assert!(left.is_empty(), "{queue}: {left:?}");
        }
        assert_eq!(self.in_lanes(), 0, "no request is left in a lane");
        assert_eq!(self.managers.faults(), [""; 0], "notifications are signed JSON");
        let letters = self.dead_letters();
        self.assert_no_secret_in("a dead letter", letters.iter().map(|letter| &letter.text));
        let told = self.managers.all();
        self.assert_no_secret_in("a notification", told.iter().map(|told| &told.raw));
        for worker in workers {
            self.assert_no_secret_in("the log", &worker.lines());
        }
        // The history, and whatever else workers keep.
        for (path, content) in files_below(self.data.path()) {
            self.assert_no_secret_in(&path.display().to_string(), [&content]);
        }
        let accepted: Vec<Notification> =
            told.into_iter().filter(|told| told.answered < 300).collect();
        (accepted, letters)
    }

    #[track_caller]
    fn assert_no_secret_in<'a>(&self, what: &str, texts: impl IntoIterator<Item = &'a String>) {
        let secrets = self.secrets.lock().expect("nobody panics with it").clone();
        let forms: Vec<String> = secrets.iter().flat_map(|secret| forms(secret)).collect();
        for text in texts {
            for form in &forms {
                assert!(!text.contains(form), "a secret is in {what}, as `{form}`: {text}");
            }
        }
    }
}

/// All files below a directory, as far as they are text.
fn files_below(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("it is there") {
            let path = entry.expect("it can be read").path();
            if path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
            } else if path.is_file() {
                let content = std::fs::read(&path).expect("it can be read");
                found.push((path, String::from_utf8_lossy(&content).into_owned()));
            }
        }
    }
    found
}

impl Drop for World {
    fn drop(&mut self) {
        // A node of the test's own takes its queues with it, and may have gone already.
        if self.broker.is_shared() {
            // With the dot: the next world's name may begin with all of this one's.
            self.broker.delete(&format!("{}.", self.user), &self.settings["CANCEL_EXCHANGE"]);
        }
        engine::forget(&self.user);
    }
}

/// `owner/name`.
pub fn full_name(repo: &GitRepo) -> String {
    format!("{}/{}", repo.owner, repo.name)
}

/// The request with these fields.
pub fn with(mut request: Value, fields: Value) -> Value {
    let fields = fields.as_object().expect("fields are an object").clone();
    request.as_object_mut().expect("a request is an object").extend(fields);
    request
}

/// A repository of these files.
pub fn repository(hint: &str, files: &[(&str, &str)]) -> GitRepo {
    let repo = GitRepo::create("it", hint);
    repo.commit(files);
    repo
}

/// A repository whose build is one step that goes through the turnstile.
pub fn held_repository(steps: &Steps) -> GitRepo {
    repository("held", &[("Dockerfile", &steps.dockerfile())])
}

/// A Dockerfile of these steps on the base image.
pub fn dockerfile(steps: &str) -> String {
    format!("FROM {}\n{steps}\n", engine::BASE)
}

/// A world with one worker, for all tests that need no other settings.
pub struct Shared {
    // Dropped in this order: the worker has to be gone before its queues are.
    pub worker: Worker,
    pub world: World,
}

impl std::ops::Deref for Shared {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

/// The shared world: made by the first test that asks, ended after the last one that has it.
pub fn shared() -> Arc<Shared> {
    static SHARED: Mutex<Weak<Shared>> = Mutex::new(Weak::new());
    let mut slot = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(shared) = slot.upgrade() {
        return shared;
    }
    let world = World::new();
    let shared = Arc::new(Shared { worker: world.worker(), world });
    *slot = Arc::downgrade(&shared);
    shared
}

impl Drop for Shared {
    /// The last test checks what holds of all of them.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let restarts = self.worker.restarts();
        let (told, _) = self.world.finish(&[&self.worker]);
        assert_eq!(restarts, [0; 6], "no actor died");
        let mut ids: Vec<&str> = told.iter().map(|told| told.webhook_id.as_str()).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all, "every build is told once");
    }
}
