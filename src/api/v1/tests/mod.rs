//! The API over a real socket, on a broker, a store and dead letters in memory.

mod builds;
mod hooks;
mod letters;
mod logs;
mod schema;
mod service;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::history::History;
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::notification::NotificationType;
use image_builder_actors::model::request::{BuildRequest, BuilderKind, ForgeName};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::model::shutdown::Shutdown;
use image_builder_actors::parse;
use image_builder_actors::parse::Rules;
use image_builder_actors::pipeline;
use image_builder_actors::ports::build_store::{BuildStore, Change, Recorded};
use image_builder_actors::ports::{Broker, DeadLetters, Message, Queue};
use image_builder_actors::telemetry::metrics::Metrics;
use image_builder_actors::testing::broker::FakeBroker;
use image_builder_actors::testing::build_store::FakeBuildStore;
use image_builder_actors::testing::dead_letters::FakeDeadLetters;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use self::schema::{assert_described, document};
use super::*;
use crate::api::plans::{ShownContext, ShownDockerfile, ShownPlan};
use crate::api::readiness::Readiness;
use crate::api::router;
use crate::api::server::{self, Bounds};
use crate::hooks::ApplicationsSettings;

/// A service, and what it works with.
pub(crate) struct World {
    pub(crate) broker: FakeBroker,
    letters: FakeDeadLetters,
    pub(crate) store: FakeBuildStore,
    queues: Arc<OnceLock<Queues>>,
    pub(crate) address: String,
    token: Option<&'static str>,
}

/// What a service works with.
struct Parts {
    broker: FakeBroker,
    letters: FakeDeadLetters,
    store: FakeBuildStore,
    queues: Arc<OnceLock<Queues>>,
}

/// Plans by what a repository is called.
struct Planner;

impl Planning for Planner {
    fn plan(&self, request: BuildRequest) -> BoxFuture<'_, Result<ShownPlan, Fault>> {
        Box::pin(async move {
            let failed =
                |reason, message: &str| Err(Fault::new(StageName::Connector, reason, message));
            match request.repo.name.as_str() {
                "nothing" => failed(Reason::NoBuildPlan, "there is no `Dockerfile`"),
                "limited" => failed(Reason::RateLimited, "The forge asks for patience."),
                _ => Ok(ShownPlan {
                    commit: Some("7e94453020bf1111111111111111111111111111".to_owned()),
                    builder: BuilderKind::Dockerfile,
                    because: "there is a `Dockerfile`".to_owned(),
                    provider: None,
                    dockerfile: ShownDockerfile {
                        path: "Dockerfile".to_owned(),
                        text: "FROM scratch\n# <script>alert(1)</script>\u{1b}[31m\n".to_owned(),
                    },
                    base_images: vec!["golang:1.22".to_owned()],
                    target: request.plan.target,
                    root_directory: request.plan.root_directory,
                    platforms: vec!["linux/arm64"],
                    context: ShownContext { files: 3, bytes: 1_500_000 },
                    build_args: request.plan.build_args.into_keys().collect(),
                    secrets: request.plan.secrets.into_keys().collect(),
                    warnings: vec![
                        "`envs.HTTP_PROXY` is not used: the build service sets it".to_owned(),
                    ],
                    nixpacks: None,
                }),
            }
        })
    }
}

fn backend(token: Option<&str>) -> (Backend, Parts) {
    with_applications(token, ApplicationsSettings::default())
}

fn with_applications(token: Option<&str>, settings: ApplicationsSettings) -> (Backend, Parts) {
    let broker = FakeBroker::default();
    let letters = FakeDeadLetters::new(broker.clone());
    let (store, queues) = (FakeBuildStore::default(), Arc::<OnceLock<Queues>>::default());
    let rules = Rules::new("https://github.com", Limits::default())
        .with(ForgeName::Gitlab, "https://gitlab.com")
        .with(ForgeName::Gitea, "https://git.example.com");
    let applications = Applications::open(settings, rules.clone()).expect("the file is good");
    let backend = Backend {
        store: Arc::new(store.clone()),
        queues: queues.clone(),
        rules: Arc::new(rules),
        token: token.map(Secret::new),
        worker: "here".to_owned(),
        applications: Arc::new(applications),
        planning: Arc::new(Planner),
    };
    (backend, Parts { broker, letters, store, queues })
}

fn observed() -> Observed {
    Observed {
        readiness: Readiness::of(&[]),
        actors: pipeline::health(),
        metrics: Metrics::new(),
        shutdown: Shutdown::default(),
    }
}

/// An answer as a whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .into_iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        let world = Self::with(None, Bounds::default()).await;
        world.connect();
        world
    }

    /// A service whose queue is not connected yet.
    pub(crate) async fn with(token: Option<&'static str>, bounds: Bounds) -> Self {
        Self::of(backend(token), token, bounds).await
    }

    async fn of(
        (backend, parts): (Backend, Parts),
        token: Option<&'static str>,
        bounds: Bounds,
    ) -> Self {
        let Parts { broker, letters, store, queues } = parts;
        let observed = observed();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        tokio::spawn(server::serve(listener, router(observed, backend), bounds));
        Self { broker, letters, store, queues, address, token }
    }

    pub(crate) fn connect(&self) {
        let (broker, dead_letters) = (self.broker.clone(), self.letters.clone());
        let queues = Queues { broker: Arc::new(broker), dead_letters: Arc::new(dead_letters) };
        assert!(self.queues.set(queues).is_ok(), "it is connected once");
    }

    async fn plan(&self, body: &Value) -> Answer {
        self.ask("POST", "/v1/plan", &JSON, body.to_string()).await
    }

    async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).await.expect("it listens");
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        // A test that shows something else does not bear the token.
        let is_shown = headers.iter().any(|(name, _)| *name == "Cookie");
        if let Some(token) = self.token.filter(|_| !is_shown) {
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.expect("it reads");
        stream.write_all(body).await.expect("it reads");
        stream
    }

    /// Asks for whatever it is.
    pub(crate) async fn fetch(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Answer {
        let mut stream = self.open(method, path, headers, body.as_ref()).await;
        let mut whole = Vec::new();
        stream.read_to_end(&mut whole).await.expect("it answers");
        let whole = String::from_utf8(whole).expect("text");
        let (head, body) =
            whole.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {whole}"));
        let status = head[9..12].parse().expect("a status");
        let body = match head.to_lowercase().contains("transfer-encoding: chunked") {
            true => unchunked(body),
            false => body.to_owned(),
        };
        Answer { status, head: head.to_owned(), body }
    }

    /// Asks, and checks that the answer is one that is described.
    #[track_caller]
    fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> impl Future<Output = Answer> {
        let at = std::panic::Location::caller();
        async move {
            let answer = self.fetch(method, path, headers, body.as_ref()).await;
            let status = answer.status;
            let kind = if answer.body.is_empty() {
                ""
            } else {
                answer.header("content-type").unwrap_or("")
            };
            if status >= 400 {
                assert_eq!(
                    answer.header("content-type"),
                    Some("application/problem+json"),
                    "{at}: {answer:?}"
                );
            }
            assert_described(method, path, status, kind, &answer.body);
            answer
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").await
    }

    pub(crate) async fn submit(&self, body: &Value) -> Answer {
        self.ask("POST", "/v1/builds", &JSON, &body.to_string()).await
    }

    pub(crate) async fn record(
        &self,
        user: &str,
        id: &str,
        changes: impl IntoIterator<Item = Change>,
    ) {
        let build = BuildIdentity::new(Some(user), id);
        let recorded =
            |change| Recorded { build: build.clone(), at: OffsetDateTime::now_utc(), change };
        let changes: Vec<_> = changes.into_iter().map(recorded).collect();
        self.store.record(&changes).await.expect("it is up");
    }

    /// The letters' bodies, oldest first.
    pub(crate) fn letters(&self) -> Vec<Vec<u8>> {
        self.letters.letters()
    }

    /// The requests in the build queue.
    pub(crate) fn requests(&self) -> Vec<Message> {
        self.broker.messages(Queue::Build)
    }

    pub(crate) async fn keep_letter(&self, id: &str, request: &Value) {
        self.letters.keep(&letter(id, request)).await.expect("it is kept");
    }
}

fn letter(id: &str, request: &Value) -> DeadLetter {
    let fault = Fault::new(StageName::Builder, Reason::EngineFailed, "It failed.");
    let history = History::new(OffsetDateTime::now_utc());
    DeadLetter::new(id, request.to_string().as_bytes(), &history, &fault)
}

const JSON: [(&str, &str); 1] = [("Content-Type", "application/json")];

fn unchunked(body: &str) -> String {
    let (mut whole, mut rest) = (String::new(), body);
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        whole += &more[..size];
        rest = more[size..].trim_start_matches("\r\n");
    }
    whole
}

pub(crate) fn output(text: &str) -> Change {
    Change::Output(text.to_owned())
}

pub(crate) fn ended(kind: NotificationType, data: &Value) -> Change {
    Change::Ended { kind, data: data.to_string() }
}

pub(crate) fn stage(stage: StageName) -> Change {
    Change::Stage { attempt: 1, stage, worker: "here".to_owned() }
}

pub(crate) fn request(id: &str) -> Value {
    json!({"userID": "u", "repo": "o/n", "uuid": id})
}
