//! The credentials port: the platform, and GitHub's API for Apps. Both are stand-ins, which answer as they are
//! documented.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use image_builder::credentials::{
    AppKey, CredentialsSettings, GithubAppSettings, ManagerSettings, TokenMaker,
};
use image_builder::net::signature::SigningKeys;
use image_builder_actors::model::fault::{Kind, Reason};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::Credentials;
use image_builder_actors::testing::conformance::credentials::{World, request};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::stand_in::{Answer, Asked, StandIn};

/// What stands for a token here, and whether the maker has failed.
#[derive(Clone, Default)]
struct State {
    token: Arc<Mutex<Option<String>>>,
    failed: Arc<AtomicBool>,
}

impl State {
    fn token(&self) -> Option<String> {
        self.token.lock().expect("no test panics with it").clone()
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }
}

fn in_minutes(minutes: i64) -> String {
    let time = OffsetDateTime::now_utc() + time::Duration::minutes(minutes);
    time.format(&Rfc3339).expect("a time has a text")
}

fn maker(settings: CredentialsSettings) -> TokenMaker {
    rustls::crypto::ring::default_provider().install_default().ok();
    TokenMaker::new(settings).expect("the settings are good")
}

/// A maker whose platform is at this address.
fn by_platform(url: &str, keys: Option<SigningKeys>) -> TokenMaker {
    let manager = ManagerSettings { url: url.parse().expect("an address"), keys };
    maker(CredentialsSettings { manager: Some(manager), ..CredentialsSettings::default() })
}

struct Platform {
    maker: TokenMaker,
    state: State,
    _server: StandIn,
}

impl Platform {
    async fn start() -> Self {
        let state = State::default();
        let known = state.clone();
        let server = StandIn::start(move |_| match known.token() {
            _ if known.has_failed() => Answer::status(503),
            Some(token) => Answer::json(&json!({"token": token, "expiresAt": in_minutes(60)})),
            None => Answer::status(404),
        })
        .await;
        Self { maker: by_platform(&server.url(), None), state, _server: server }
    }
}

impl World for Platform {
    fn credentials(&self) -> &dyn Credentials {
        &self.maker
    }

    async fn know(&self, token: &str) {
        *self.state.token.lock().expect("no test panics with it") = Some(token.to_owned());
    }

    fn reference(&self) -> &'static str {
        "team-7/deploy"
    }

    async fn fail(&self) {
        self.state.failed.store(true, Ordering::SeqCst);
    }
}

mod by_the_platform {
    image_builder_actors::credentials_conformance!(super::Platform::start().await);
}

/// A private key as GitHub gives it out, and its public half.
fn key(form: &[&str]) -> (Secret, Vec<u8>) {
    let openssl = |arguments: &[&str], input: &[u8]| {
        use std::io::Write as _;
        let mut child = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        child.stdin.take().expect("a pipe").write_all(input).expect("it is read");
        child.wait_with_output().expect("it ends").stdout
    };
    let private = openssl(&[&["genrsa"], form, &["2048"]].concat(), b"");
    let public = openssl(&["rsa", "-RSAPublicKey_out", "-outform", "DER"], &private);
    (Secret::new(String::from_utf8(private).expect("PEM is text")), public)
}

/// A maker by an App of this GitHub.
fn by_app(url: &str, key: &Secret) -> TokenMaker {
    let github_app = GithubAppSettings {
        id: "12345".to_owned(),
        key: AppKey::parse(key).expect("a good key"),
        api_url: url.parse().expect("an address"),
    };
    maker(CredentialsSettings { github_app: Some(github_app), ..CredentialsSettings::default() })
}

struct Github {
    maker: TokenMaker,
    state: State,
    _server: StandIn,
}

impl Github {
    async fn start() -> Self {
        let state = State::default();
        let known = state.clone();
        let server = StandIn::start(move |asked| github(&known, asked, &in_minutes(60))).await;
        let (key, _) = key(&[]);
        Self { maker: by_app(&server.url(), &key), state, _server: server }
    }
}

/// Stands in for the part of GitHub's REST API that is about Apps.
fn github(known: &State, asked: &Asked, expires_at: &str) -> Answer {
    if known.has_failed() {
        return Answer::status(502);
    }
    match (asked.method.as_str(), &*asked.path, known.token()) {
        ("GET", "/repos/owner/name/installation", Some(_)) => {
            Answer::json(&json!({"id": 77, "app_id": 12345}))
        }
        ("POST", "/app/installations/77/access_tokens", Some(token)) => {
            let answer = json!({"token": token, "expires_at": expires_at});
            let Answer::Text { headers, body, .. } = Answer::json(&answer) else {
                unreachable!("JSON is text")
            };
            Answer::Text { status: 201, headers, body }
        }
        _ => Answer::status(404),
    }
}

impl World for Github {
    fn credentials(&self) -> &dyn Credentials {
        &self.maker
    }

    async fn know(&self, token: &str) {
        *self.state.token.lock().expect("no test panics with it") = Some(token.to_owned());
    }

    fn reference(&self) -> &'static str {
        "github-app"
    }

    async fn fail(&self) {
        self.state.failed.store(true, Ordering::SeqCst);
    }
}

mod by_a_github_app {
    image_builder_actors::credentials_conformance!(super::Github::start().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_is_asked_with_a_signature_and_for_whom() {
    let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let keys = SigningKeys::parse(&secret).expect("a good key");
    let server = StandIn::start(|_| Answer::json(&json!({"token": "t"}))).await;
    let url = format!("{}/tokens", server.url());
    let maker = by_platform(&url, Some(keys));
    for _ in 0..2 {
        let token = maker.token(&request(), "team-7").await.expect("a token");
        assert_eq!(token.expose(), "t");
    }
    let [first, second] = &server.asked()[..] else { panic!("it is asked each time") };
    let body: Value = serde_json::from_slice(&first.body).expect("JSON");
    assert_eq!((first.method.as_str(), &*first.path), ("POST", "/tokens"));
    assert_eq!(body["type"], "token.requested");
    assert_eq!(
        body["data"],
        json!({
            "tokenRef": "team-7", "buildID": "a-build", "userID": "a-user",
            "applicationID": "an-application", "connector": "github", "repo": "owner/name",
        })
    );
    assert_ne!(first.header("webhook-id"), second.header("webhook-id"));
    assert!(first.header("webhook-signature").starts_with("v1,"));
    assert!(first.header("webhook-timestamp").parse::<i64>().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_platform_answers_has_its_reason() {
    let answers: [(fn() -> Answer, Kind); 8] = [
        (|| Answer::status(403), Kind::User),
        (|| Answer::status(410), Kind::User),
        // It does not know the worker.
        (|| Answer::status(401), Kind::Service),
        (|| Answer::status(302).with("location", "http://127.0.0.1:1/"), Kind::Service),
        (|| Answer::bytes("{\"token\": \"canary-4b7d\""), Kind::Service),
        (|| Answer::json(&json!({"token": ""})), Kind::Service),
        (
            || Answer::json(&json!({"token": "canary-4b7d", "expiresAt": in_minutes(-1)})),
            Kind::Service,
        ),
        (
            || Answer::Endless {
                headers: Vec::new(),
                first: Vec::new(),
                piece: vec![b' '; 1 << 16],
            },
            Kind::Service,
        ),
    ];
    for (number, (answer, kind)) in answers.into_iter().enumerate() {
        let server = StandIn::start(move |_| answer()).await;
        let maker = by_platform(&server.url(), None);
        let fault = maker.token(&request(), "a-reference").await.expect_err("no token");
        assert_eq!(fault.kind(), kind, "{number}: {fault}");
        assert!(!fault.message.contains("canary-4b7d") && !fault.message.contains("a-reference"));
    }
    let server = StandIn::start(|_| Answer::status(429).with("retry-after", "17")).await;
    let fault =
        by_platform(&server.url(), None).token(&request(), "x").await.expect_err("no token");
    assert_eq!(fault.retry_after, Some(std::time::Duration::from_secs(17)));
    let nobody = maker(CredentialsSettings::default());
    for (reference, setting) in [("x", "CREDENTIALS_URL"), ("github-app", "GITHUB_APP_ID")] {
        let fault = nobody.token(&request(), reference).await.expect_err("nobody makes one");
        assert_eq!(fault.reason, Reason::Unsupported);
        assert!(fault.message.contains(setting), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_proves_itself_and_asks_for_one_repository_alone() {
    for form in [&[][..], &["-traditional"]] {
        let (key, public) = key(form);
        let state = State::default();
        *state.token.lock().expect("mine") = Some("t".to_owned());
        let known = state.clone();
        let server = StandIn::start(move |asked| github(&known, asked, &in_minutes(60))).await;
        by_app(&server.url(), &key).token(&request(), "github-app").await.expect("a token");
        let [_, made] = &server.asked()[..] else { panic!("two requests") };
        let wish: Value = serde_json::from_slice(&made.body).expect("JSON");
        assert_eq!(wish, json!({"repositories": ["name"], "permissions": {"contents": "read"}}));
        let jwt = made.header("authorization").strip_prefix("Bearer ").expect("a token");
        let (text, signature) = jwt.rsplit_once('.').expect("three parts");
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).expect("Base64");
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &public)
            .verify(text.as_bytes(), &decode(signature))
            .expect("the App's own signature");
        let claims = text.split_once('.').expect("two parts").1;
        let claims: Value = serde_json::from_slice(&decode(claims)).expect("JSON");
        assert_eq!(claims["iss"], "12345");
        let [from, until] = ["iat", "exp"].map(|name| claims[name].as_i64().expect("a time"));
        assert!(until - from <= 600, "GitHub takes ten minutes at the most");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_shows_statuses_may_do_that_alone() {
    let (key, _) = key(&[]);
    let state = State::default();
    *state.token.lock().expect("mine") = Some("t".to_owned());
    let known = state.clone();
    let server = StandIn::start(move |asked| github(&known, asked, &in_minutes(60))).await;
    let maker = by_app(&server.url(), &key);
    maker.token(&request(), "github-app").await.expect("a token");
    for _ in 0..2 {
        maker.status_token(&request(), "github-app").await.expect("a token");
    }
    let asked = server.asked();
    let [_, _, _, made] = &asked[..] else { panic!("two tokens: {asked:?}") };
    let wish: Value = serde_json::from_slice(&made.body).expect("JSON");
    assert_eq!(wish, json!({"repositories": ["name"], "permissions": {"statuses": "write"}}));

    let server = StandIn::start(|_| Answer::json(&json!({"token": "t"}))).await;
    let maker = by_platform(&server.url(), None);
    maker.status_token(&request(), "team-7").await.expect("a token");
    let body: Value = serde_json::from_slice(&server.asked()[0].body).expect("JSON");
    assert_eq!(body["data"]["purpose"], "commitStatus");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_an_app_is_used_again_until_shortly_before_its_end() {
    let (key, _) = key(&[]);
    for (minutes, asked) in [(60, 2), (4, 4)] {
        let state = State::default();
        *state.token.lock().expect("mine") = Some("t".to_owned());
        let known = state.clone();
        let server = StandIn::start(move |asked| github(&known, asked, &in_minutes(minutes))).await;
        let maker = by_app(&server.url(), &key);
        for _ in 0..2 {
            maker.token(&request(), "github-app").await.expect("a token");
        }
        assert_eq!(server.asked().len(), asked, "{minutes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_github_does_not_know_is_the_operators_affair() {
    let (key, _) = key(&[]);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let server = StandIn::start(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Answer::status(401)
    })
    .await;
    let fault = by_app(&server.url(), &key).token(&request(), "github-app").await;
    assert_eq!(fault.expect_err("no token").kind(), Kind::Service);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert!(AppKey::parse(&Secret::new("-----BEGIN RSA PRIVATE KEY-----")).is_err());
}
