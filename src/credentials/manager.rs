//! Tokens that the platform makes: a signed request for each, as notifications are signed.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::request::BuildRequest;
use image_builder_actors::model::secret::Secret;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Url};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Made, Use, fault, read, refusal, send};
use crate::net::signature::SigningKeys;

const WHOM: &str = "the platform (CREDENTIALS_URL)";

/// Where the platform makes tokens.
#[derive(Clone)]
pub struct ManagerSettings {
    /// May hold a name and a password.
    pub url: Url,
    /// `None` = requests are not signed.
    pub keys: Option<SigningKeys>,
}

impl fmt::Debug for ManagerSettings {
    /// Without what the address holds: that may be a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagerSettings").field("keys", &self.keys).finish_non_exhaustive()
    }
}

pub(super) struct Manager {
    settings: ManagerSettings,
    http: Client,
}

impl Manager {
    pub(super) fn new(settings: ManagerSettings, http: Client) -> Self {
        Self { settings, http }
    }

    pub(super) async fn token(
        &self,
        request: &BuildRequest,
        reference: &str,
        what_for: Use,
    ) -> Result<Secret, Fault> {
        let now = OffsetDateTime::now_utc();
        let mut body = json!({
            "type": "token.requested",
            "timestamp": now.format(&Rfc3339).expect("the time of a clock has a text"),
            "data": {
                "tokenRef": reference,
                "buildID": request.build_id,
                "userID": request.user_id,
                "applicationID": request.application_id,
                "connector": request.forge.as_str(),
                "repo": request.repo.to_string(),
            },
        });
        if what_for == Use::ShowStatus {
            body["data"]["purpose"] = json!("commitStatus");
        }
        let body = body.to_string();
        let id = format!("token_{}", uuid::Uuid::new_v4().simple());
        let mut asking = self
            .http
            .post(self.settings.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &id);
        if let Some(keys) = &self.settings.keys {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let signature = keys.sign(&id, now, body.as_bytes());
            asking = asking.header("webhook-timestamp", now).header("webhook-signature", signature);
        }
        let response = send(asking.body(body), WHOM).await?;
        if !response.status().is_success() {
            let refused = "The platform gives no token for the credential that the request names \
                           by `tokenRef`.";
            return Err(refusal(&response, WHOM, refused));
        }
        let made: Made = read(response, WHOM).await?;
        if !made.is_good() {
            let message = format!("{WHOM} gave a token that is empty or has expired.");
            return Err(fault(Reason::ForgeFailed, message));
        }
        Ok(made.token)
    }
}
