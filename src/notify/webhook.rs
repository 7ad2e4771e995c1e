//! The notifier port: signed HTTP posts to the managers, as Standard Webhooks say.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use image_builder_actors::model::notification::{Notification, NotificationType};
use image_builder_actors::ports::{Notifier, NotifyError};
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Response, Url};
use serde_json::Value;

use crate::net::http::{USER_AGENT, causes, client, excerpt, read_at_most, retry_after};
use crate::net::signature::SigningKeys;

/// How much of a refusal's body is read, in bytes.
const LONGEST_REFUSAL: usize = 4 * 1024;

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Who is notified, and how.
#[derive(Clone)]
pub struct WebhookSettings {
    /// Notified of images; `None` = that is only logged. May hold a name and a password.
    pub container_manager_url: Option<Url>,
    /// Notified of builds that brought no image; `None` = that is only logged. May hold a name and a
    /// password.
    pub connector_manager_url: Option<Url>,
    /// `None` = notifications are not signed.
    pub keys: Option<SigningKeys>,
    /// Longest duration of one try, from its beginning to the answer's end.
    pub timeout: Duration,
}

impl Default for WebhookSettings {
    fn default() -> Self {
        Self {
            container_manager_url: None,
            connector_manager_url: None,
            keys: None,
            timeout: Duration::from_secs(30),
        }
    }
}

impl fmt::Debug for WebhookSettings {
    /// Without what the addresses hold: that may be a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSettings")
            .field("container_manager", &self.container_manager_url.is_some())
            .field("connector_manager", &self.connector_manager_url.is_some())
            .field("keys", &self.keys)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// Posts notifications.
#[derive(Debug)]
pub struct WebhookNotifier {
    settings: WebhookSettings,
    http: reqwest::Client,
}

impl WebhookNotifier {
    /// Opens no connection.
    ///
    /// # Errors
    /// The system's certificates cannot be loaded.
    pub fn new(settings: WebhookSettings) -> anyhow::Result<Self> {
        let http = client()?
            .user_agent(USER_AGENT)
            .timeout(settings.timeout)
            .redirect(Policy::none())
            .build()?;
        Ok(Self { settings, http })
    }

    fn receiver(&self, kind: NotificationType) -> (&'static str, Option<&Url>) {
        match kind {
            NotificationType::ImageReady => {
                ("the container manager", self.settings.container_manager_url.as_ref())
            }
            NotificationType::BuildFailed | NotificationType::BuildCancelled => {
                ("the connector manager", self.settings.connector_manager_url.as_ref())
            }
        }
    }

    fn request(
        &self,
        url: &Url,
        notification: &Notification,
    ) -> Result<reqwest::RequestBuilder, NotifyError> {
        let id = HeaderValue::from_bytes(notification.id.as_bytes())
            .map_err(|_| refused("the notification's id does not fit into a header".to_owned()))?;
        let mut request = self
            .http
            .post(url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(ID, id)
            .body(notification.body.clone());
        if let Some(keys) = &self.settings.keys {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let signature = keys.sign(&notification.id, now, &notification.body);
            request = request.header(TIMESTAMP, now).header(SIGNATURE, signature);
        }
        let traceparent = notification.traceparent.as_deref().map(HeaderValue::from_str);
        if let Some(Ok(traceparent)) = traceparent {
            request = request.header(TRACEPARENT, traceparent);
        }
        Ok(request)
    }
}

impl Notifier for WebhookNotifier {
    fn notify<'a>(
        &'a self,
        notification: &'a Notification,
    ) -> BoxFuture<'a, Result<(), NotifyError>> {
        Box::pin(async move {
            let (receiver, url) = self.receiver(notification.kind);
            let id = &notification.id;
            let Some(url) = url else {
                log_only(receiver, notification);
                return Ok(());
            };
            let request = self.request(url, notification)?;
            let response = request.send().await.map_err(|error| {
                refused(format!("{receiver} could not be notified: {}", causes(error)))
            })?;
            if response.status().is_success() {
                let status = response.status().as_u16();
                tracing::info!(webhook_id = id, receiver, status, "notified");
                return Ok(());
            }
            Err(refusal(receiver, response).await)
        })
    }
}

/// Logs what nobody is set to hear, in fields: the build's own log has the rest.
fn log_only(receiver: &str, notification: &Notification) {
    let body: Value = serde_json::from_slice(&notification.body).unwrap_or_default();
    let (data, image) = (&body["data"], &body["data"]["image"]);
    tracing::info!(
        webhook_id = notification.id,
        r#type = notification.kind.as_str(),
        user_id = data["userID"].as_str(),
        repo = data["repo"].as_str(),
        commit = data["commit"].as_str(),
        attempts = data["attempts"].as_u64(),
        fault = data["fault"].as_str(),
        failed_stage = data["stage"].as_str(),
        reason = data["reason"].as_str(),
        outcome = data["message"].as_str(),
        reference = image["reference"].as_str(),
        digest = image["digest"].as_str(),
        size_bytes = image["sizeBytes"].as_u64(),
        reused = data["reused"].as_bool(),
        seconds = data["seconds"]["total"].as_f64(),
        "no address is set for {receiver}: only logged"
    );
}

fn refused(message: String) -> NotifyError {
    NotifyError { message, retry_after: None }
}

async fn refusal(receiver: &str, mut response: Response) -> NotifyError {
    let status = response.status();
    let patience = retry_after(response.headers());
    let mut message = format!("{receiver} answered {status}");
    if status.is_redirection() {
        message.push_str(", a redirect, which is not followed");
    }
    // The status alone says enough where the body breaks off.
    if let Ok((body, _)) = read_at_most(&mut response, LONGEST_REFUSAL).await {
        let text = excerpt(&String::from_utf8_lossy(&body));
        if !text.is_empty() {
            message = format!("{message}: {text}");
        }
    }
    NotifyError { message, retry_after: patience }
}
