//! Hooks: the corpus of payloads in `tests/fixtures/hooks`, and what no payload alone can show.
//!
//! A case of the corpus is one hook: its `event` and `payload` (or another `body`), which is signed as its forge
//! does it unless it says otherwise, and what is to come of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::*;
use crate::net::signature::SigningKeys;

const SECRET: &str = "it's a secret to everybody";
const GITLAB_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hooks").join(name)
}

fn settings(file: std::path::PathBuf) -> ApplicationsSettings {
    let secrets = BTreeMap::from([
        (ForgeName::Github, Secret::new(SECRET)),
        (ForgeName::Gitlab, Secret::new(GITLAB_SECRET)),
        (ForgeName::Gitea, Secret::new(SECRET)),
    ]);
    ApplicationsSettings { file: Some(file), secrets }
}

/// A service with an `API_TOKEN`, which no forge has.
async fn service(file: std::path::PathBuf) -> World {
    let mut world =
        World::of(with_applications(Some("t0ken"), settings(file)), None, Bounds::default()).await;
    world.connect();
    world.token = None;
    world
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hmac(secret: &str, body: &[u8]) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any key will do");
    hex(&mac.chain_update(body).finalize().into_bytes())
}

/// A hook as its forge sends it: the headers, and the body.
struct Hook {
    forge: &'static str,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Hook {
    fn of(forge: &'static str, delivery: &str, case: &Value) -> Self {
        let text = |name: &str| case[name].as_str();
        let mut body = match (text("body"), case["repeat"].as_array()) {
            (Some(body), _) => body.as_bytes().to_vec(),
            (None, Some(repeat)) => {
                let times = repeat[1].as_u64().expect("a number").try_into().expect("not so many");
                repeat[0].as_str().expect("a text").repeat(times).into_bytes()
            }
            (None, None) => case["payload"].to_string().into_bytes(),
        };
        for (mark, byte) in case["hex"].as_object().into_iter().flatten() {
            let at = body.windows(mark.len()).position(|part| part == mark.as_bytes());
            let at = at.expect("the mark is there");
            let byte = u8::from_str_radix(byte.as_str().expect("digits"), 16).expect("digits");
            body.splice(at..at + mark.len(), [byte]);
        }
        let event = text("event").expect("an event");
        let usual = if forge == "gitlab" { GITLAB_SECRET } else { SECRET };
        let secret = text("secret").unwrap_or(usual);
        let signature = hmac(secret, text("signed").map_or(&body, str::as_bytes));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
        let at = now - case["age"].as_u64().unwrap_or(0);
        let headers: Vec<(&str, String)> = match (forge, text("proof")) {
            ("github", _) => vec![
                ("x-github-event", event.to_owned()),
                ("x-github-delivery", delivery.to_owned()),
                ("x-hub-signature-256", format!("sha256={signature}")),
            ],
            ("gitlab", Some("standard")) => {
                let keys = SigningKeys::parse(&Secret::new(secret)).expect("keys");
                vec![
                    ("x-gitlab-event", event.to_owned()),
                    ("webhook-id", delivery.to_owned()),
                    ("webhook-timestamp", at.to_string()),
                    ("webhook-signature", keys.sign(delivery, at, &body)),
                ]
            }
            ("gitlab", _) => vec![
                ("x-gitlab-event", event.to_owned()),
                ("x-gitlab-event-uuid", delivery.to_owned()),
                ("x-gitlab-token", secret.to_owned()),
            ],
            (_, Some("forgejo")) => vec![
                ("x-forgejo-event", event.to_owned()),
                ("x-forgejo-delivery", delivery.to_owned()),
                ("x-forgejo-signature", signature),
            ],
            (_, proof) => vec![
                ("x-gitea-event", event.to_owned()),
                ("x-gitea-delivery", delivery.to_owned()),
                ("x-gitea-signature", signature),
                ("x-forgejo-signature", proof.map_or(String::new(), |_| hmac("wrong", &body))),
            ],
        };
        let kind = ("content-type", "application/json".to_owned());
        let mut headers: BTreeMap<_, _> = headers
            .into_iter()
            .chain([kind])
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        for (name, value) in case["headers"].as_object().into_iter().flatten() {
            headers.insert(name.clone(), value.as_str().expect("a text").to_owned());
        }
        for name in case["without"].as_array().into_iter().flatten() {
            headers.remove(name.as_str().expect("a name"));
        }
        Self { forge, headers, body }
    }

    async fn send(&self, world: &World) -> Answer {
        let headers: Vec<_> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        world.ask("POST", &format!("/v1/hooks/{}", self.forge), &headers, &self.body).await
    }
}

/// What a request in the queue asks for, as the corpus has it.
fn asked(message: &Message) -> Value {
    let body: Value = serde_json::from_slice(&message.body).expect("JSON");
    let source = if body["pullInfo"].is_object() { &body["pullInfo"] } else { &body };
    let mut asked = json!({"applicationID": body["applicationID"], "userID": source["userID"]});
    for name in ["branch", "commit", "type", "tag", "release"] {
        if let Some(value) = source.get(name) {
            asked[name] = value.clone();
        }
    }
    if source["connector"] != "github" {
        asked["connector"] = source["connector"].clone();
    }
    asked
}

async fn corpus(forge: &'static str, file: &str) {
    let cases = fs::read_to_string(fixture(file)).expect("the corpus is there");
    let cases: Vec<Value> = serde_json::from_str(&cases).expect("the corpus is JSON");
    for (number, case) in cases.iter().enumerate() {
        let name = case["name"].as_str().expect("a name");
        let world = service(fixture("applications.toml")).await;
        let answer = Hook::of(forge, &format!("delivery-{number}"), case).send(&world).await;
        assert_eq!(u64::from(answer.status), case["status"], "{file}: {name}: {answer:?}");
        let says = case["says"].as_str().unwrap_or_default();
        assert!(answer.body.contains(&says.replace('"', "\\\"")), "{file}: {name}: {answer:?}");
        let queued: Vec<_> = world.requests().iter().map(asked).collect();
        let mut expected = case["builds"].as_array().expect("a list").clone();
        // Only what differs from the usual is said.
        for build in &mut expected {
            if build["tag"].is_string() || build["release"].is_string() {
                build["connector"] = match forge {
                    "github" => Value::Null,
                    other => json!(other),
                };
            }
            let build = build.as_object_mut().expect("an object");
            build.retain(|_, value| !value.is_null());
        }
        assert_eq!(queued, expected, "{file}: {name}: {answer:?}");
        if answer.status < 300 {
            let built = answer.json()["builds"].as_array().expect("a list").len();
            assert_eq!(built, expected.len(), "{file}: {name}: {answer:?}");
            assert_eq!(built == 0, answer.json()["reason"].is_string(), "{file}: {name}");
        }
        for secret in [SECRET, GITLAB_SECRET, "the-owners-own-hook-secret", "glpat-", "t0ken"] {
            assert!(!answer.body.contains(secret), "{file}: {name}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn the_corpus_of_github() {
    corpus("github", "github.json").await;
}

#[tokio::test]
async fn the_corpus_of_gitlab() {
    corpus("gitlab", "gitlab.json").await;
}

#[tokio::test]
async fn the_corpus_of_gitea_and_forgejo() {
    corpus("gitea", "gitea.json").await;
}

#[tokio::test]
async fn the_corpus_of_hostile_hooks() {
    corpus("github", "hostile.json").await;
}

/// The first hook of a corpus that builds something.
fn push(file: &str, name: &str) -> Value {
    let cases = fs::read_to_string(fixture(file)).expect("the corpus is there");
    let cases: Vec<Value> = serde_json::from_str(&cases).expect("the corpus is JSON");
    cases.into_iter().find(|case| case["name"] == name).expect("it is in the corpus")
}

#[tokio::test]
async fn a_delivery_that_comes_again_is_the_same_build_and_another_one_is_another() {
    let world = service(fixture("applications.toml")).await;
    let case = push("github.json", "two applications of one push are two builds");
    let first = Hook::of("github", "one", &case).send(&world).await;
    let again = Hook::of("github", "one", &case).send(&world).await;
    assert_eq!((first.status, again.status), (202, 200), "{again:?}");
    assert_eq!(first.json()["builds"], again.json()["builds"]);
    let ids: Vec<_> = world.requests().into_iter().map(|it| it.message_id).collect();
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1], "two applications have two builds");
    let other = Hook::of("github", "two", &case).send(&world).await;
    assert_eq!((other.status, world.requests().len()), (202, 4));
}

#[tokio::test]
async fn a_delivery_that_could_not_be_queued_is_not_said_to_be_whatever_became_of_its_application()
{
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("applications.toml");
    let with = |root: &str| {
        let text = format!(
            "[[application]]\nuserID = \"u\"\nrepo = \"alice/shop\"\n\
             [application.buildPlan]\nrootDirectory = \"{root}\"\n"
        );
        fs::write(&file, text).expect("it can be written");
    };
    with("web");
    let world = service(file.clone()).await;
    let case = push("github.json", "a push to the default branch");
    let send = async || Hook::of("github", "one", &case).send(&world).await;
    world.broker.down();
    assert_eq!(send().await.status, 503);
    world.broker.up();
    with("webshop");
    let answer = send().await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("300")), "{answer:?}");
    assert!(world.requests().is_empty());
    with("web");
    assert_eq!(send().await.status, 202);
    with("webshop");
    assert_eq!(send().await.status, 200, "it is in the queue");
}

#[tokio::test]
async fn a_request_of_a_push_says_all_that_the_application_does() {
    let world = service(fixture("applications.toml")).await;
    let case = push("github.json", "a push to the default branch");
    Hook::of("github", "one", &case).send(&world).await;
    Hook::of("gitlab", "two", &push("gitlab.json", "a push")).send(&world).await;
    let bodies: Vec<Value> = world
        .requests()
        .iter()
        .map(|message| serde_json::from_slice(&message.body).expect("JSON"))
        .collect();
    let [github, gitlab] = &bodies[..] else { panic!("two requests: {bodies:?}") };
    assert_eq!(github["tokenRef"], "github-app");
    assert_eq!(github["buildPlan"], json!({"rootDirectory": "web"}));
    assert_eq!((&github["supersede"], &github["commitStatus"]), (&json!(true), &json!(true)));
    assert_eq!(gitlab["pullInfo"]["token"], "glpat-not-a-real-token");
    let id = github["uuid"].as_str().expect("an id");
    let request = parse::parse(&world.requests()[0].body, id, &world_rules()).expect("it is good");
    assert!(request.supersede && request.commit_status);
    let build = world
        .ask("GET", &format!("/v1/builds/{id}"), &[("Authorization", "Bearer t0ken")], "")
        .await;
    assert_eq!((build.status, &build.json()["applicationID"]), (200, &json!("shop")));
}

fn world_rules() -> Rules {
    Rules::new("https://github.com", Limits::default())
}

#[test]
fn a_plan_in_the_applications_file_has_the_fields_of_a_request() {
    let described = document();
    let plan = &described["components"]["schemas"]["BuildRequest"]["properties"]["buildPlan"];
    let mut of_request: Vec<_> =
        plan["properties"].as_object().expect("fields").keys().map(String::as_str).collect();
    let mut of_file = crate::hooks::PLAN_FIELDS.to_vec();
    of_request.sort_unstable();
    of_file.sort_unstable();
    assert_eq!(of_file, of_request);
}

#[tokio::test]
async fn a_hook_that_is_longer_than_any_forges_is_refused_before_it_is_sent() {
    let world = service(fixture("applications.toml")).await;
    let mut stream = TcpStream::connect(&world.address).await.expect("it listens");
    let head = format!(
        "POST /v1/hooks/github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\n\
         X-GitHub-Delivery: d\r\nX-Hub-Signature-256: sha256={}\r\nContent-Length: 26214401\r\n\r\n",
        "0".repeat(64)
    );
    stream.write_all(head.as_bytes()).await.expect("it reads");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("it answers");
    assert_eq!(&answer[..], b"HTTP/1.1 413");
}

#[tokio::test]
async fn the_file_is_read_anew_and_what_it_said_before_holds_while_it_is_bad() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("applications.toml");
    let with = |more: &str| {
        let text = format!("[[application]]\nuserID = \"u\"\nrepo = \"alice/shop\"\n{more}\n");
        fs::write(&file, text).expect("it can be written");
    };
    with("");
    let world = service(file.clone()).await;
    let case = push("github.json", "a push to the default branch");
    let reason = async |delivery: &str| {
        let answer = Hook::of("github", delivery, &case).send(&world).await;
        (answer.status, answer.json()["reason"].clone())
    };
    assert_eq!(reason("1").await, (202, Value::Null));
    with("branches = [\"other\"]");
    assert_eq!(reason("2").await, (200, json!("The branch `main` is not watched.")));
    with("branchs = [\"main\"]");
    assert_eq!(reason("3").await, (200, json!("The branch `main` is not watched.")));
    with("branches = [\"main\"]");
    assert_eq!(reason("4").await, (202, Value::Null));
}

#[tokio::test]
async fn nobody_learns_which_repositories_have_a_secret_of_their_own() {
    let without = async |file: &str| {
        let settings =
            ApplicationsSettings { file: Some(fixture(file)), ..ApplicationsSettings::default() };
        let world = World::of(with_applications(None, settings), None, Bounds::default()).await;
        world.connect();
        let mut hooks = Vec::new();
        for name in ["an application with a secret of its own", "a repository of nobody"] {
            let mut case = push("github.json", name);
            case["secret"] = json!("guessed");
            hooks.push(Hook::of("github", "one", &case).send(&world).await);
        }
        let [own, nobody] = &hooks[..] else { unreachable!("two were sent") };
        assert_eq!((own.status, &own.body), (nobody.status, &nobody.body));
        own.status
    };
    assert_eq!(without("own.toml").await, 401);
    assert_eq!(without("none.toml").await, 403, "there is no secret at all");
}

#[tokio::test]
async fn a_listener_of_hooks_has_nothing_else() {
    let (backend, parts) = with_applications(Some("t0ken"), settings(fixture("applications.toml")));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound").to_string();
    tokio::spawn(crate::api::serve_hooks(listener, observed(), backend));
    let Parts { broker, letters, store, queues } = parts;
    let world = World { broker, letters, store, queues, address, token: Some("t0ken") };
    world.connect();
    let hook = Hook::of("github", "one", &push("github.json", "a push to the default branch"));
    assert_eq!(hook.send(&world).await.status, 202);
    for path in ["/v1/builds", "/v1/dead", "/metrics", "/readyz", "/"] {
        let mut stream = world.open("GET", path, &[], b"").await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("it answers");
        assert_eq!(&answer[..], b"HTTP/1.1 404", "{path}");
    }
}
