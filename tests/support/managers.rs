//! The two managers that the worker notifies: they verify signatures, keep what they were told, and
//! answer as they were asked to.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::model::notification::{NotificationType, notification_id};
use serde_json::Value;
use sha2::Sha256;

use super::runtime;
use super::stand_in::{Answer, Asked, StandIn};

/// A notification that a manager got.
#[derive(Debug, Clone)]
pub struct Notification {
    /// The path that it was posted to: `/container` or `/connector`.
    pub to: String,
    pub webhook_id: String,
    pub timestamp: String,
    pub body: Value,
    pub raw: String,
    /// The status that the manager answered.
    pub answered: u16,
    pub at: Instant,
}

impl Notification {
    pub fn kind(&self) -> &str {
        self.body["type"].as_str().unwrap_or_default()
    }

    pub fn data(&self) -> &Value {
        &self.body["data"]
    }

    /// A text of `data`, by its path.
    pub fn text(&self, pointer: &str) -> &str {
        self.data().pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    pub fn build_id(&self) -> &str {
        self.text("/buildID")
    }

    /// The `webhook-id` that its user, build and type have.
    pub fn own_id(&self) -> String {
        let kind = NotificationType::ALL.into_iter().find(|kind| kind.as_str() == self.kind());
        let kind = kind.expect("a type that there is");
        notification_id(&BuildIdentity::new(Some(self.text("/userID")), self.build_id()), kind)
    }

    /// This is `image.ready`.
    #[track_caller]
    pub fn ready(self) -> Self {
        assert_eq!(self.kind(), "image.ready", "{}", self.raw);
        assert_eq!(self.to, "/container");
        self
    }

    /// This is `build.failed` for this reason.
    #[track_caller]
    pub fn failed(self, reason: &str) -> Self {
        self.ended_unready("build.failed", reason)
    }

    /// This is `build.cancelled` for this reason.
    #[track_caller]
    pub fn cancelled(self, reason: &str) -> Self {
        self.ended_unready("build.cancelled", reason)
    }

    #[track_caller]
    fn ended_unready(self, kind: &str, reason: &str) -> Self {
        assert_eq!(self.kind(), kind, "{}", self.raw);
        assert_eq!(self.to, "/connector");
        assert_eq!(self.text("/reason"), reason, "{}", self.raw);
        self
    }

    /// The build had begun this many tries.
    #[track_caller]
    pub fn after(self, attempts: u64) -> Self {
        assert_eq!(self.data()["attempts"], attempts, "{}", self.raw);
        self
    }
}

#[derive(Default)]
struct Book {
    kept: Mutex<Kept>,
    news: Condvar,
}

#[derive(Default)]
struct Kept {
    notifications: Vec<Notification>,
    /// What was wrong with what was posted.
    faults: Vec<String>,
    /// By build id: what to answer before the first 204.
    refusals: HashMap<String, Vec<(u16, Option<u64>)>>,
}

/// Both managers, on one address.
pub struct Managers {
    server: StandIn,
    book: Arc<Book>,
    key: Vec<u8>,
}

impl Managers {
    pub fn start() -> Self {
        let book = Arc::new(Book::default());
        let key = super::canary::secret("notifier").into_bytes();
        let (their_book, their_key) = (book.clone(), key.clone());
        let answer = move |asked: &Asked| their_book.receive(asked, &their_key);
        let server = runtime().block_on(StandIn::start(answer));
        Self { server, book, key }
    }

    pub fn container_url(&self) -> String {
        format!("{}/container", self.server.url())
    }

    pub fn connector_url(&self) -> String {
        format!("{}/connector", self.server.url())
    }

    /// `NOTIFIER_SECRET` of these managers.
    pub fn secret(&self) -> String {
        format!("whsec_{}", STANDARD.encode(&self.key))
    }

    /// The next notifications of this build are answered so: status and `Retry-After` in seconds.
    pub fn refuse(&self, build_id: &str, answers: &[(u16, Option<u64>)]) {
        let mut kept = self.book.kept.lock().expect("no manager panics");
        kept.refusals.insert(build_id.to_owned(), answers.to_vec());
    }

    /// The first accepted notification that `wanted` says yes to, now or later.
    #[track_caller]
    pub fn wait_for(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Notification) -> bool,
    ) -> Result<Notification, String> {
        let deadline = Instant::now() + within;
        let mut kept = self.book.kept.lock().expect("no manager panics");
        loop {
            let accepted =
                kept.notifications.iter().find(|told| told.answered < 300 && wanted(told));
            if let Some(told) = accepted {
                return Ok(told.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("{what}: nobody was told within {within:?}"));
            }
            (kept, _) = self.book.news.wait_timeout(kept, left).expect("no manager panics");
        }
    }

    /// Waits until so many of the accepted notifications are ones that `wanted` says yes to; returns when the
    /// last of them came.
    #[track_caller]
    pub fn wait_for_many(
        &self,
        what: &str,
        count: usize,
        within: Duration,
        mut wanted: impl FnMut(&Notification) -> bool,
    ) -> Instant {
        let deadline = Instant::now() + within;
        let (mut looked_at, mut found) = (0, 0);
        let mut kept = self.book.kept.lock().expect("no manager panics");
        loop {
            for told in &kept.notifications[looked_at..] {
                found += usize::from(told.answered < 300 && wanted(told));
                if found == count {
                    return told.at;
                }
            }
            looked_at = kept.notifications.len();
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what}: {found} of {count} were told within {within:?}");
            (kept, _) = self.book.news.wait_timeout(kept, left).expect("no manager panics");
        }
    }

    /// All notifications so far, refused ones included, in their order.
    pub fn all(&self) -> Vec<Notification> {
        self.book.kept.lock().expect("no manager panics").notifications.clone()
    }

    /// All notifications of one build so far.
    pub fn of(&self, build_id: &str) -> Vec<Notification> {
        self.all().into_iter().filter(|told| told.build_id() == build_id).collect()
    }

    /// What was wrong with notifications: a bad signature, a body that is no JSON.
    pub fn faults(&self) -> Vec<String> {
        self.book.kept.lock().expect("no manager panics").faults.clone()
    }
}

impl Book {
    fn receive(&self, asked: &Asked, key: &[u8]) -> Answer {
        let raw = String::from_utf8_lossy(&asked.body).into_owned();
        let mut kept = self.kept.lock().expect("no manager panics");
        let body: Value = match check(asked, key) {
            Ok(body) => body,
            Err(fault) => {
                kept.faults.push(format!("{fault}: {} {raw}", asked.path));
                return Answer::status(400);
            }
        };
        let build_id = body["data"]["buildID"].as_str().unwrap_or_default();
        let refusals = kept.refusals.get_mut(build_id).filter(|refusals| !refusals.is_empty());
        let (status, retry_after) = refusals.map_or((204, None), |refusals| refusals.remove(0));
        kept.notifications.push(Notification {
            to: asked.path.clone(),
            webhook_id: asked.header("webhook-id").to_owned(),
            timestamp: asked.header("webhook-timestamp").to_owned(),
            body,
            raw,
            answered: status,
            at: Instant::now(),
        });
        self.news.notify_all();
        let answer = Answer::status(status);
        match retry_after {
            Some(seconds) => answer.with("retry-after", &seconds.to_string()),
            None => answer,
        }
    }
}

/// What Standard Webhooks tell a receiver to check.
fn check(asked: &Asked, key: &[u8]) -> Result<Value, String> {
    let (id, timestamp) = (asked.header("webhook-id"), asked.header("webhook-timestamp"));
    let sent: i64 = timestamp.parse().map_err(|_| "no webhook-timestamp".to_owned())?;
    let age = time::OffsetDateTime::now_utc().unix_timestamp() - sent;
    if !(-5..300).contains(&age) {
        return Err(format!("signed {age} s ago"));
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|error| error.to_string())?;
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(&asked.body);
    let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    if asked.header("webhook-signature") != expected {
        return Err("the signature is wrong".to_owned());
    }
    serde_json::from_slice(&asked.body).map_err(|error| format!("the body is no JSON: {error}"))
}
