//! The notifier port over webhooks.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use image_builder::net::signature::SigningKeys;
use image_builder::notify::{WebhookNotifier, WebhookSettings};
use image_builder_actors::model::notification::{Notification, NotificationType};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::Notifier;
use image_builder_actors::testing::conformance::notifier::{Taken, World, notification};
use sha2::Sha256;

use crate::http_server::{Answer, HttpServer, Request, answer};

const KEY: [u8; 32] = [42; 32];

/// What the managers took, shared with their server.
type Taking = Arc<Mutex<Vec<Taken>>>;

mod conformance {
    image_builder_actors::notifier_conformance!(super::Managers::start().await);
}

/// Both managers on one server, told by the real notifier.
struct Managers {
    notifier: WebhookNotifier,
    _server: HttpServer,
    refusal: Arc<Mutex<Option<Answer>>>,
    taken: Taking,
}

impl Managers {
    async fn start() -> Self {
        let refusal = Arc::<Mutex<Option<Answer>>>::default();
        let taken = Taking::default();
        let (next_refusal, taking) = (refusal.clone(), taken.clone());
        let server = HttpServer::answering(move |request| {
            if let Some(refusal) = next_refusal.lock().expect("no panic inside").take() {
                return refusal;
            }
            let told = (request.header("webhook-id").to_owned(), request.body.to_vec());
            taking.lock().expect("no panic inside").push(told);
            answer(204, &[], "")
        })
        .await;
        Self { notifier: notifier(&server, settings()), _server: server, refusal, taken }
    }
}

impl World for Managers {
    fn notifier(&self) -> &dyn Notifier {
        &self.notifier
    }

    fn refuse_next(&self, patience: Option<Duration>) {
        let seconds = patience.map(|patience| patience.as_secs().to_string());
        let headers: Vec<_> = seconds.iter().map(|seconds| ("retry-after", &**seconds)).collect();
        let refusal = answer(503, &headers, "not now");
        *self.refusal.lock().expect("no panic inside") = Some(refusal);
    }

    fn taken(&self) -> Vec<Taken> {
        self.taken.lock().expect("no panic inside").clone()
    }
}

fn settings() -> WebhookSettings {
    let secret = Secret::new(format!("whsec_{}", STANDARD.encode(KEY)));
    let keys = Some(SigningKeys::parse(&secret).expect("a good secret"));
    WebhookSettings { keys, timeout: Duration::from_secs(10), ..WebhookSettings::default() }
}

/// A notifier that tells `server`: the container manager at `/container?a=b`, the other at `/connector`.
fn notifier(server: &HttpServer, settings: WebhookSettings) -> WebhookNotifier {
    rustls::crypto::ring::default_provider().install_default().ok();
    let url = |path: &str| Some(server.url(path).parse().expect("an address"));
    WebhookNotifier::new(WebhookSettings {
        container_manager_url: url("/container?a=b"),
        connector_manager_url: url("/connector"),
        ..settings
    })
    .expect("a notifier")
}

async fn taking() -> HttpServer {
    HttpServer::answering(|_| answer(200, &[], "thanks")).await
}

/// What the specification asks a receiver to check, written independently of the sender.
fn assert_signed(request: &Request) {
    let timestamp = request.header("webhook-timestamp");
    let sent_at: i64 = timestamp.parse().expect("a timestamp in seconds");
    let age = time::OffsetDateTime::now_utc().unix_timestamp() - sent_at;
    assert!((0..60).contains(&age), "sent {age} s ago");

    let mut signed = request.header("webhook-id").as_bytes().to_vec();
    for part in [b".", timestamp.as_bytes(), b".", &request.body[..]] {
        signed.extend_from_slice(part);
    }
    let signature = request.header("webhook-signature").strip_prefix("v1,").expect("version 1");
    let signature = STANDARD.decode(signature).expect("base64");
    let mut mac = Hmac::<Sha256>::new_from_slice(&KEY).expect("a key");
    mac.update(&signed);
    mac.verify_slice(&signature).expect("the signature is right");
}

#[tokio::test]
async fn an_image_is_told_to_the_container_manager_and_all_else_to_the_connector_manager() {
    let server = taking().await;
    let notifier = notifier(&server, settings());
    for (kind, path) in [
        (NotificationType::ImageReady, "/container"),
        (NotificationType::BuildFailed, "/connector"),
        (NotificationType::BuildCancelled, "/connector"),
    ] {
        notifier.notify(&notification(kind)).await.expect("it is taken");
        let request = server.requests().pop().expect("a request");
        assert_eq!((request.method.as_str(), request.target().0), ("POST", path));
    }
    assert_eq!(server.requests()[0].target().1, "a=b");
}

#[tokio::test]
async fn a_notification_is_signed_and_says_what_it_is_and_where_it_comes_from() {
    let server = taking().await;
    let told = notification(NotificationType::ImageReady);
    notifier(&server, settings()).notify(&told).await.expect("it is taken");
    let request = server.requests().pop().expect("a request");
    assert_signed(&request);
    assert_eq!(request.header("webhook-id"), told.id);
    assert_eq!(request.header("content-type"), "application/json");
    assert_eq!(request.header("user-agent"), concat!("image-builder/", env!("CARGO_PKG_VERSION")));
    assert_eq!(request.header("traceparent"), told.traceparent.expect("it was given"));
    assert_eq!(request.header("authorization"), "");
}

#[tokio::test]
async fn without_a_secret_there_is_an_id_and_neither_timestamp_nor_signature() {
    let server = taking().await;
    let told = Notification { traceparent: None, ..notification(NotificationType::ImageReady) };
    let settings = WebhookSettings { keys: None, ..settings() };
    notifier(&server, settings).notify(&told).await.expect("it is taken");
    let request = server.requests().pop().expect("a request");
    assert_eq!(request.header("webhook-id"), told.id);
    for name in ["webhook-timestamp", "webhook-signature", "traceparent"] {
        assert!(!request.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn a_refusal_is_told_with_its_status_and_the_beginning_of_its_body_on_one_line() {
    let long = format!("no\u{1b}[31m such\r\nmanager {}", "x".repeat(1_000_000));
    let server = HttpServer::with_answers([answer(500, &[], long)]).await;
    let told = notification(NotificationType::BuildFailed);
    let error = notifier(&server, settings()).notify(&told).await.expect_err("it is refused");
    let begin =
        "the connector manager answered 500 Internal Server Error: no [31m such manager xxx";
    assert!(error.message.starts_with(begin), "{}", error.message);
    assert!(error.message.len() < 500, "{} bytes", error.message.len());
    assert!(!error.message.contains(char::is_control), "{:?}", error.message);
}

#[tokio::test]
async fn too_many_requests_until_a_date_is_patience_until_then() {
    for date in [
        "Wed, 21 Oct 2099 07:28:00 GMT",
        "Wednesday, 21-Oct-65 07:28:00 GMT",
        "Wed Oct 21 07:28:00 2099",
    ] {
        let server = HttpServer::with_answers([answer(429, &[("retry-after", date)], "")]).await;
        let told = notification(NotificationType::ImageReady);
        let error = notifier(&server, settings()).notify(&told).await.expect_err("it is refused");
        assert_eq!(error.retry_after, Some(Duration::from_secs(24 * 60 * 60)), "{date}: a day");
        assert_eq!(error.message, "the container manager answered 429 Too Many Requests");
    }
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_is_not_followed() {
    let elsewhere = taking().await;
    let told = notification(NotificationType::ImageReady);
    for status in [301, 302, 303, 307, 308] {
        let redirect = answer(status, &[("location", &elsewhere.url("/"))], "");
        let server = HttpServer::with_answers([redirect]).await;
        let error = notifier(&server, settings()).notify(&told).await.expect_err("no success");
        assert!(error.message.contains(&status.to_string()), "{}", error.message);
        assert!(error.message.contains("a redirect, which is not followed"), "{}", error.message);
    }
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_is_given_up_in_time() {
    let server = HttpServer::silent().await;
    let settings = WebhookSettings { timeout: Duration::from_millis(300), ..settings() };
    let told = notification(NotificationType::ImageReady);
    let begun = std::time::Instant::now();
    let error = notifier(&server, settings).notify(&told).await.expect_err("no answer");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(error.message.contains("timed out"), "{}", error.message);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_credential_in_the_address_is_used_and_never_told() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let server = taking().await;
    let settings = |host: &str| WebhookSettings {
        container_manager_url: Some(
            format!("http://joe:canary-4b7d@{host}/hush?key=hush").parse().expect("an address"),
        ),
        ..settings()
    };
    let told = notification(NotificationType::ImageReady);
    let there = WebhookNotifier::new(settings(&server.host())).expect("a notifier");
    there.notify(&told).await.expect("it is taken");
    let expected = format!("Basic {}", STANDARD.encode("joe:canary-4b7d"));
    assert_eq!(server.requests()[0].header("authorization"), expected);

    // Nothing listens on port 1.
    let closed = WebhookNotifier::new(settings("127.0.0.1:1")).expect("a notifier");
    let error = closed.notify(&told).await.expect_err("nobody is there");
    assert!(error.message.contains("refused"), "{}", error.message);
    for text in [error.message, format!("{closed:?}")] {
        assert!(!text.contains("canary-4b7d") && !text.contains("hush"), "{text}");
    }
}

#[tokio::test]
async fn without_an_address_a_notification_is_only_logged() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let notifier = WebhookNotifier::new(settings()).expect("a notifier");
    for kind in [NotificationType::ImageReady, NotificationType::BuildFailed] {
        assert_eq!(notifier.notify(&notification(kind)).await, Ok(()));
    }
}

#[tokio::test]
async fn an_id_that_no_header_can_hold_is_an_error_and_is_not_sent() {
    let server = taking().await;
    let told = Notification {
        id: "a\r\nx-injected: b".to_owned(),
        ..notification(NotificationType::ImageReady)
    };
    notifier(&server, settings()).notify(&told).await.expect_err("it cannot be sent");
    assert!(server.requests().is_empty());
}
