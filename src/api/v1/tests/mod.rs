//! The API over a real socket, on a broker, a store and dead letters in memory.

mod hooks;
mod schema;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http_body_util::BodyExt;
use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::history::History;
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::notification::NotificationType;
use image_builder_actors::model::request::ForgeName;
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
        let fault = Fault::new(StageName::Builder, Reason::EngineFailed, "It failed.");
        let history = History::new(OffsetDateTime::now_utc());
        let letter = DeadLetter::new(id, request.to_string().as_bytes(), &history, &fault);
        self.letters.keep(&letter).await.expect("it is kept");
    }
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

// ---- asking for builds

#[tokio::test]
async fn a_request_is_in_the_queue_and_known_before_it_is_answered() {
    let world = World::start().await;
    let answer = world.submit(&json!({"userID": "u", "repo": "o/n", "token": "hunter2"})).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert!(!answer.body.contains("hunter2"));
    let submitted = answer.json();
    let id = submitted["buildID"].as_str().expect("an id");
    assert_eq!(submitted["status"], "queued");
    assert_eq!(submitted["url"], format!("http://{}/v1/builds/{id}", world.address));
    assert_eq!(answer.header("location"), submitted["url"].as_str());
    let [message] = &world.broker.messages(Queue::Build)[..] else { panic!("one message") };
    assert_eq!(message.message_id.as_deref(), Some(id));
    assert_eq!(message.envelope, None);
    let body: Value = serde_json::from_slice(&message.body).expect("JSON");
    assert_eq!(body["token"], "hunter2", "as it was sent");
    let build = world.get(&format!("/v1/builds/{id}")).await;
    assert_eq!(build.status, 200);
    assert_eq!(build.json()["state"], "queued");
    assert_eq!(build.json()["applicationID"], "n");
}

#[tokio::test]
async fn the_same_request_under_its_uuid_is_taken_once_and_another_one_is_refused() {
    let world = World::start().await;
    assert_eq!(world.submit(&request("a")).await.status, 202);
    let again = world.submit(&request("a")).await;
    assert_eq!((again.status, &again.json()["buildID"]), (200, &json!("a")));
    let other = world.submit(&json!({"userID": "u", "repo": "o/m", "uuid": "a"})).await;
    assert_eq!(other.status, 409, "{other:?}");
    // Another user's is another build.
    let others = world.submit(&json!({"userID": "v", "repo": "o/n", "uuid": "a"})).await;
    assert_eq!(others.status, 202);
    assert_eq!(world.broker.messages(Queue::Build).len(), 2);
    let url = others.json()["url"].as_str().expect("an address").to_owned();
    assert!(url.ends_with("/v1/builds/a?user=v"), "{url}");
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_and_nothing_is_published() {
    let world = World::start().await;
    for (body, reason, word) in [
        (json!({"repo": "o/n"}), "invalid_request", "`userID` is required"),
        (json!({"userID": "u", "repo": "o/n", "connector": "x"}), "unsupported", "`connector`"),
        (json!({"userID": "u", "repo": "https://a.example/o/n"}), "forbidden_source", "`repo`"),
        (json!([]), "invalid_request", "must be a JSON object"),
    ] {
        let answer = world.submit(&body).await;
        assert_eq!((answer.status, &answer.json()["reason"]), (400, &json!(reason)), "{answer:?}");
        assert!(answer.body.contains(word), "{word}: {}", answer.body);
    }
    for (headers, body, status) in [
        (&JSON[..], "{\"a\": ", 400),
        (&JSON, "", 400),
        (&[], "{}", 415),
        (&[("Content-Type", "text/plain")], "{}", 415),
    ] {
        let answer = world.ask("POST", "/v1/builds", headers, body).await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    let long = json!({"userID": "u", "repo": "o/n", "x": "x".repeat(512 * 1024)});
    assert_eq!(world.submit(&long).await.status, 413);
    assert!(world.broker.published().is_empty());
}

#[tokio::test]
async fn what_cannot_be_made_durable_is_not_taken() {
    let world = World::with(None, Bounds::default()).await;
    let answer = world.submit(&request("a")).await;
    assert_eq!(answer.status, 503, "the queue is not connected");
    assert_eq!(world.get("/v1/builds/a").await.status, 404);
    world.connect();
    world.store.set_away(true);
    let answer = world.submit(&request("a")).await;
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some());
    assert!(world.broker.published().is_empty(), "nothing is half taken");
    world.store.set_away(false);
    world.broker.down();
    assert_eq!(world.submit(&request("a")).await.status, 503);
    assert_eq!(world.get("/v1/builds/a").await.status, 404, "it is in no queue");
    world.broker.up();
    assert_eq!(world.submit(&request("a")).await.status, 202);
}

// ---- what is known of builds

#[tokio::test]
async fn builds_are_listed_in_pages_and_by_filters() {
    let world = World::start().await;
    for id in ["a", "b", "c"] {
        world.submit(&request(id)).await;
    }
    world.submit(&json!({"userID": "v", "repo": "o/n", "uuid": "d"})).await;
    let ids = |page: &Value| -> Vec<String> {
        let builds = page["builds"].as_array().expect("builds");
        builds.iter().map(|build| build["buildID"].as_str().expect("an id").to_owned()).collect()
    };
    let first = world.get("/v1/builds?limit=3").await.json();
    assert_eq!(ids(&first), ["d", "c", "b"]);
    let next = first["next"].as_str().expect("there is more");
    let second = world.get(&format!("/v1/builds?limit=3&cursor={next}")).await.json();
    assert_eq!((ids(&second), second.get("next")), (vec!["a".to_owned()], None));
    assert_eq!(ids(&world.get("/v1/builds?user=v&state=queued").await.json()), ["d"]);
    assert_eq!(ids(&world.get("/v1/builds?state=ready").await.json()), [""; 0]);
    for wrong in ["state=done", "state=", "limit=0", "limit=201", "limit=x"] {
        assert_eq!(world.get(&format!("/v1/builds?{wrong}")).await.status, 400, "{wrong}");
    }
    assert_eq!(world.get("/v1/builds?cursor=x").await.status, 404);
}

#[tokio::test]
async fn of_a_build_that_ended_there_are_its_attempts_and_its_notifications_data() {
    let world = World::start().await;
    world.submit(&request("a")).await;
    let data = json!({"buildID": "a", "image": {"digest": "sha256:1"}});
    let changes = [stage(StageName::Builder), ended(NotificationType::ImageReady, &data)];
    world.record("u", "a", changes).await;
    let build = world.get("/v1/builds/a").await.json();
    assert_eq!((&build["state"], &build["type"]), (&json!("ready"), &json!("image.ready")));
    assert_eq!(build["data"], data);
    assert_eq!(build["attempts"][0]["stages"][0]["stage"], "builder");
    assert_eq!(world.get("/v1/builds/b").await.status, 404);
}

#[tokio::test]
async fn where_two_users_chose_one_id_it_has_to_be_said_whose_is_meant() {
    let world = World::start().await;
    for user in ["u", "v"] {
        world.submit(&json!({"userID": user, "repo": "o/n", "uuid": "a"})).await;
    }
    for path in ["/v1/builds/a", "/v1/builds/a/log"] {
        let answer = world.get(path).await;
        assert_eq!(answer.status, 409);
        assert!(answer.body.contains("?user="), "{}", answer.body);
        assert_eq!(world.get(&format!("{path}?user=v")).await.status, 200);
        assert_eq!(world.get(&format!("{path}?user=w")).await.status, 404);
    }
    assert_eq!(world.ask("DELETE", "/v1/builds/a", &[], "").await.status, 409);
}

#[tokio::test]
async fn a_build_is_cancelled_by_the_broker_unless_it_has_ended() {
    let world = World::start().await;
    let mut heard = world.broker.cancellations();
    world.submit(&request("a")).await;
    let delete = |path: &'static str| world.ask("DELETE", path, &[], "");
    assert_eq!(delete("/v1/builds/a").await.status, 202);
    let mut body = async || -> Value {
        let heard = heard.recv().await.expect("it is sent");
        serde_json::from_slice(&heard.body).expect("JSON")
    };
    assert_eq!(body().await, json!({"buildID": "a", "userID": "u"}));
    assert_eq!(delete("/v1/builds/b").await.status, 404);
    assert_eq!(delete("/v1/builds/b?user=w").await.status, 202, "no worker has read it yet");
    assert_eq!(body().await, json!({"buildID": "b", "userID": "w"}));
    world.record("u", "a", [ended(NotificationType::BuildCancelled, &json!({}))]).await;
    assert_eq!(delete("/v1/builds/a").await.status, 409);
}

// ---- logs

#[tokio::test]
async fn a_log_is_read_as_a_whole_or_in_parts() {
    let world = World::start().await;
    world.submit(&request("a")).await;
    assert_eq!(world.get("/v1/builds/a/log").await.body, "");
    world.record("u", "a", [output("one\n"), output("two\n")]).await;
    let whole = world.get("/v1/builds/a/log").await;
    assert_eq!((whole.status, whole.body.as_str()), (200, "one\ntwo\n"));
    assert_eq!(whole.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(world.get("/v1/builds/a/log?offset=4").await.body, "two\n");
    assert_eq!(world.get("/v1/builds/a/log?offset=8").await.body, "");
    assert_eq!(world.get("/v1/builds/a/log?offset=9").await.status, 416);
    assert_eq!(world.get("/v1/builds/a/log?offset=-1").await.status, 400);
    let range = world.ask("GET", "/v1/builds/a/log", &[("Range", "bytes=2-4")], "").await;
    assert_eq!((range.status, range.body.as_str()), (206, "e\nt"));
    assert_eq!(range.header("content-range"), Some("bytes 2-4/8"));
    let behind = world.ask("GET", "/v1/builds/a/log", &[("Range", "bytes=8-")], "").await;
    assert_eq!((behind.status, behind.header("content-range")), (416, Some("bytes */8")));
    let head = world.ask("HEAD", "/v1/builds/a/log", &[], "").await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("8")));
}

#[tokio::test]
async fn a_long_log_comes_as_a_whole() {
    let world = World::start().await;
    world.submit(&request("a")).await;
    let long = "a line of a long log\n".repeat(20_000);
    world.record("u", "a", [output(&long)]).await;
    assert!(world.get("/v1/builds/a/log").await.body == long);
    world.record("u", "a", [ended(NotificationType::ImageReady, &json!({}))]).await;
    let events = follow(&world, "a", &[]).await;
    let lines = events.lines().filter_map(|line| line.strip_prefix("data: "));
    let lines: Vec<_> = lines.filter(|line| !line.starts_with('{')).collect();
    assert_eq!(lines.len(), 20_000);
    assert!(lines.iter().all(|line| *line == "a line of a long log"));
}

/// All events of a build's log, to their end.
async fn follow(world: &World, id: &str, headers: &[(&str, &str)]) -> String {
    let headers = [&[("Accept", "text/event-stream")], headers].concat();
    world.ask("GET", &format!("/v1/builds/{id}/log"), &headers, "").await.body
}

/// Reads until this text has come.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut buffer).await.expect("it can be read");
        read.extend_from_slice(&buffer[..count]);
        let all = String::from_utf8_lossy(&read);
        if all.contains(text) {
            return all.into_owned();
        }
        assert!(count > 0, "it ended without {text}: {all}");
    }
}

#[tokio::test]
async fn a_log_is_followed_live_and_ends_with_the_outcome() {
    let world = World::start().await;
    world.submit(&request("a")).await;
    world.record("u", "a", [output("one\n")]).await;
    let accept = [("Accept", "text/event-stream")];
    let mut stream = world.open("GET", "/v1/builds/a/log", &accept, b"").await;
    let begun = read_until(&mut stream, "id: 4\ndata: one\n\n").await;
    assert!(begun.contains(": queued\n\n") && begun.contains("text/event-stream"), "{begun}");
    world.record("u", "a", [stage(StageName::Builder), output("half a")]).await;
    read_until(&mut stream, ": building\n\n").await;
    world.record("u", "a", [output(" line\nrest")]).await;
    read_until(&mut stream, "id: 16\ndata: half a line\n\n").await;
    let data = json!({"fault": "user"});
    world.record("u", "a", [ended(NotificationType::BuildFailed, &data)]).await;
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("it ends");
    let events = unchunked(rest.trim_start());
    assert!(events.contains("id: 20\ndata: rest\n\n"), "{events}");
    let (_, end) = events.split_once("event: end\nid: 20\ndata: ").expect("it ends");
    let end: Value = serde_json::from_str(end.trim()).expect("JSON");
    let outcome = json!({"buildID": "a", "state": "failed", "type": "build.failed", "data": data});
    assert_eq!(end, outcome);
}

#[tokio::test]
async fn whoever_comes_back_goes_on_behind_the_last_event() {
    let world = World::start().await;
    world.submit(&request("a")).await;
    let changes = [output("one\ntwo\n"), ended(NotificationType::ImageReady, &json!({}))];
    world.record("u", "a", changes).await;
    let events = follow(&world, "a", &[("Last-Event-ID", "4")]).await;
    assert!(events.contains("id: 8\ndata: two\n\n") && !events.contains("one"), "{events}");
    let events = follow(&world, "a", &[("Last-Event-ID", "8")]).await;
    assert!(!events.contains("data: two") && events.contains("event: end\nid: 8\n"), "{events}");
    // The log was begun anew meanwhile.
    let events = follow(&world, "a", &[("Last-Event-ID", "99")]).await;
    assert!(events.contains("data: one\ndata: two\n"), "{events}");
}

#[tokio::test]
async fn whoever_follows_a_silent_build_hears_that_the_service_is_there() {
    let (backend, parts) = backend(None);
    let build = BuildIdentity::new(Some("u"), "a");
    let request = parse::parse(request("a").to_string().as_bytes(), "a", &backend.rules);
    let requested = builds::requested(&request.expect("a good request"), b"");
    let change = Change::Requested(requested);
    let recorded = Recorded { build: build.clone(), at: OffsetDateTime::now_utc(), change };
    parts.store.record(&[recorded]).await.expect("it is up");
    let keep_alive = Duration::from_millis(200);
    let api = Arc::new(Api { keep_alive, ..Api::new(backend, observed()) });
    let connection = Connection::of(([127, 0, 0, 1], 1).into());
    let reader = api.reader(&connection).expect("there is room");
    let mut body = events::answer(api, reader, build, 0).into_body();
    let begun = std::time::Instant::now();
    for expected in ["retry: 1000\n\n", ": queued\n\n", ": queued\n\n", ": queued\n\n"] {
        let frame = body.frame().await.expect("it goes on").expect("it cannot fail");
        assert_eq!(frame.into_data().expect("data"), expected);
    }
    assert!(begun.elapsed() >= 2 * keep_alive);
}

// ---- dead letters

#[tokio::test]
async fn dead_letters_are_listed_shown_and_dropped() {
    let world = World::start().await;
    for (id, user) in [("a", "u"), ("b", "v"), ("c", "u")] {
        world.keep_letter(id, &json!({"userID": user, "repo": "o/n"})).await;
    }
    let ids = |page: &Value| -> Vec<String> {
        let letters = page["letters"].as_array().expect("letters");
        letters.iter().map(|letter| letter["buildID"].as_str().expect("an id").to_owned()).collect()
    };
    let first = world.get("/v1/dead?limit=2").await.json();
    assert_eq!(ids(&first), ["a", "b"]);
    let cursor = first["next"].as_str().expect("there is more");
    assert_eq!(ids(&world.get(&format!("/v1/dead?cursor={cursor}")).await.json()), ["c"]);
    assert_eq!(ids(&world.get("/v1/dead?user=u&fault=service").await.json()), ["a", "c"]);
    assert_eq!(ids(&world.get("/v1/dead?fault=build_failed").await.json()), [""; 0]);
    for wrong in ["fault=x", "limit=0"] {
        assert_eq!(world.get(&format!("/v1/dead?{wrong}")).await.status, 400, "{wrong}");
    }
    assert_eq!(world.get("/v1/dead?cursor=x").await.status, 404);
    let letter = world.get("/v1/dead/a").await.json();
    assert_eq!(letter["letter"]["reason"], "engine_failed");
    assert_eq!(world.get("/v1/dead/x").await.status, 404);
    assert_eq!(world.ask("DELETE", "/v1/dead/a", &[], "").await.status, 204);
    assert_eq!(world.ask("DELETE", "/v1/dead/a", &[], "").await.status, 404);
    assert_eq!(world.letters.letters().len(), 2);
}

#[tokio::test]
async fn a_dead_letter_is_redriven_with_what_it_lacks() {
    let world = World::start().await;
    world.keep_letter("old", &json!({"userID": "u", "repo": "o/n", "token": "t0"})).await;
    let lacking = world.ask("POST", "/v1/dead/old/redrive", &[], "").await;
    assert_eq!(lacking.status, 409);
    assert!(lacking.body.contains("`token`"), "{}", lacking.body);
    let redrive = |body| world.ask("POST", "/v1/dead/old/redrive", &JSON, body);
    assert_eq!(redrive(r#"{"tokn": "hunter2"}"#).await.status, 400);
    let answer = redrive(r#"{"token": "t1"}"#).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let redriven = answer.json();
    assert_eq!(redriven["redriveOf"], "old");
    let [message] = &world.broker.messages(Queue::Build)[..] else { panic!("one message") };
    let body: Value = serde_json::from_slice(&message.body).expect("JSON");
    assert_eq!((&body["token"], &body["uuid"]), (&json!("t1"), &redriven["buildID"]));
    assert!(world.letters.letters().is_empty());
    let id = redriven["buildID"].as_str().expect("an id");
    assert_eq!(world.get(&format!("/v1/builds/{id}")).await.json()["state"], "queued");
    assert_eq!(redrive("{}").await.status, 404);
}

#[tokio::test]
async fn where_two_users_have_a_dead_letter_of_one_id_it_has_to_be_said_whose_is_meant() {
    let world = World::start().await;
    for user in ["u", "v"] {
        world.keep_letter("a", &json!({"userID": user, "repo": "o/n"})).await;
    }
    assert_eq!(world.get("/v1/dead/a").await.status, 409);
    assert_eq!(world.ask("DELETE", "/v1/dead/a", &[], "").await.status, 409);
    assert_eq!(world.ask("DELETE", "/v1/dead/a?user=u", &[], "").await.status, 204);
    assert_eq!(world.get("/v1/dead/a").await.json()["userID"], "v");
}

// ---- the rest

#[tokio::test]
async fn the_workers_actors_are_shown() {
    let world = World::start().await;
    let workers = world.get("/v1/workers").await.json();
    let worker = &workers["workers"][0];
    assert_eq!((&worker["name"], &worker["draining"]), (&json!("here"), &json!(false)));
    assert_eq!(worker["actors"].as_array().map(Vec::len), Some(6));
    assert_eq!(worker["actors"][0]["name"], "listener");
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_as_well() {
    let world = World::start().await;
    for (method, path, status) in [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/builds/a/b/c", 404),
        ("PUT", "/v1/builds", 405),
        ("PATCH", "/v1/builds/a", 405),
        ("POST", "/v1/workers", 405),
        ("DELETE", "/v1/openapi.json", 405),
    ] {
        let answer = world.ask(method, path, &[], "").await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.header("allow").is_some(), status == 405);
    }
}

#[tokio::test]
async fn whoever_may_not_ask_gets_a_problem_wherever_it_asks() {
    let world = World::with(Some("s3cret"), Bounds::default()).await;
    world.connect();
    assert_eq!(world.get("/v1/builds").await.status, 200);
    let nobody = World { token: None, ..world };
    let answer = nobody.get("/v1/builds").await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(nobody.ask("POST", "/v1/builds", &JSON, "{}").await.status, 401);
    let open = World::start().await;
    let foreign = [("Origin", "http://evil.example")];
    assert_eq!(open.ask("GET", "/v1/builds", &foreign, "").await.status, 403);
}

#[tokio::test]
async fn the_description_has_every_route_and_no_other() {
    let routes: Vec<(String, Vec<String>)> = include_str!("../mod.rs")
        .lines()
        .filter_map(|line| line.trim().strip_prefix(".route(\""))
        .map(|route| {
            let (path, handlers) = route.split_once('"').expect("a path");
            let methods = ["get", "post", "delete", "put", "patch"];
            let methods = methods.map(str::to_owned).into_iter();
            let methods = methods.filter(|method| handlers.contains(&format!("{method}(")));
            (format!("{PREFIX}{path}"), methods.collect())
        })
        .collect();
    assert!(routes.len() > 6, "the routes were read");
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let mut described: Vec<(String, Vec<String>)> = document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .map(|(path, operations)| {
            let operations = operations.as_object().expect("operations");
            (path.clone(), operations.keys().cloned().collect())
        })
        .collect();
    let sorted = |mut routes: Vec<(String, Vec<String>)>| {
        routes.iter_mut().for_each(|(_, methods)| methods.sort());
        routes.sort();
        routes
    };
    described = sorted(described);
    assert_eq!(described, sorted(routes));
}

#[tokio::test]
async fn so_many_readers_leave_room_for_others() {
    let world = World::start().await;
    world.submit(&request("a")).await;
    let accept = [("Accept", "text/event-stream")];
    let mut readers = Vec::new();
    for _ in 0..MOST_READERS {
        let mut stream = world.open("GET", "/v1/builds/a/log", &accept, b"").await;
        read_until(&mut stream, ": queued").await;
        readers.push(stream);
    }
    let refused = world.ask("GET", "/v1/builds/a/log", &accept, b"").await;
    assert_eq!(refused.status, 503);
    assert_eq!(world.get("/v1/builds/a").await.status, 200);
    // Whoever leaves makes room: the service notices it when it has something to send.
    readers.truncate(MOST_READERS - 1);
    world.record("u", "a", [output("one\n")]).await;
    let found = async {
        while world.ask("GET", "/v1/builds/a/log", &[], "").await.status == 503 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.expect("there is room again");
}

#[tokio::test]
async fn a_stream_of_events_outlives_the_age_of_its_connection_and_other_answers_do_not() {
    let bounds = Bounds {
        connection: Duration::from_millis(200),
        last_answer: Duration::from_millis(200),
        ..Bounds::default()
    };
    let world = World::with(None, bounds).await;
    world.connect();
    world.submit(&request("a")).await;
    let accept = [("Accept", "text/event-stream")];
    let mut stream = world.open("GET", "/v1/builds/a/log", &accept, b"").await;
    read_until(&mut stream, ": queued").await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    world.record("u", "a", [output("one\n")]).await;
    read_until(&mut stream, "data: one\n\n").await;
    // A body that never comes.
    let mut slow = TcpStream::connect(&world.address).await.expect("it listens");
    let head = format!(
        "POST /v1/builds HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n",
        world.address
    );
    slow.write_all(head.as_bytes()).await.expect("it reads");
    let mut rest = Vec::new();
    let gone = tokio::time::timeout(Duration::from_secs(5), slow.read_to_end(&mut rest)).await;
    assert!(gone.is_ok(), "it is sent away");
}

#[tokio::test]
async fn whoever_reads_nothing_of_a_log_is_sent_away() {
    let unread = Duration::from_millis(500);
    let world = World::with(None, Bounds { unread, connections: 1, ..Bounds::default() }).await;
    world.connect();
    world.submit(&request("a")).await;
    // More than the system's buffers take.
    world.record("u", "a", [output(&"x".repeat(64 << 20))]).await;
    let _stream = world.open("GET", "/v1/builds/a/log", &[], b"").await;
    let next = tokio::time::timeout(Duration::from_secs(20), world.get("/v1/workers")).await;
    assert_eq!(next.expect("there is room again").status, 200);
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let world = World::start().await;
    let mut stream = TcpStream::connect(&world.address).await.expect("it listens");
    let head =
        format!("GET /v1/builds HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(64 * 1024));
    // It may hang up before all of it is sent.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn builds_are_counted_by_state_and_by_user() {
    let world = World::start().await;
    for (user, id) in [("ann", "a"), ("ann", "b"), ("bob", "c")] {
        let body = json!({"userID": user, "repo": "o/n", "uuid": id});
        assert_eq!(world.submit(&body).await.status, 202);
    }
    world.record("ann", "a", [stage(StageName::Builder)]).await;
    world.record("bob", "c", [ended(NotificationType::ImageReady, &json!({}))]).await;
    let summary = world.get("/v1/summary").await.json();
    assert_eq!(summary["states"]["queued"], 1);
    assert_eq!(summary["states"]["building"], 1);
    assert_eq!(summary["states"]["ready"], 1);
    assert_eq!(summary["states"]["failed"], 0);
    assert_eq!(summary["users"], json!([{"userID": "ann", "waiting": 1, "inHand": 1}]));
    let found = world.get("/v1/builds?search=ann").await.json();
    assert_eq!(found["builds"].as_array().map(Vec::len), Some(2));
    world.store.set_away(true);
    assert_eq!(world.get("/v1/summary").await.status, 503);
}
