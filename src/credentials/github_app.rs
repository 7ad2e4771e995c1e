//! Tokens of a GitHub App: for one repository, to read its content, for an hour.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::request::RepoName;
use image_builder_actors::model::secret::Secret;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Url};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;

use super::{Made, Use, fault, read, refusal, send};
use crate::net::http::bearer;

const WHOM: &str = "GitHub (for the App of GITHUB_APP_ID)";
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.github+json");
const API_VERSION: HeaderValue = HeaderValue::from_static("2022-11-28");
/// A token is used again until this long before its end.
const SPARE: time::Duration = time::Duration::minutes(5);
/// How long the App's own signature is good; GitHub takes ten minutes at the most.
const SIGNED_FOR: time::Duration = time::Duration::minutes(9);
/// How far GitHub's clock may be behind.
const SLACK: time::Duration = time::Duration::minutes(1);
/// Tokens that are kept at once.
const MOST_KEPT: usize = 10_000;

/// The private key of an App.
#[derive(Clone)]
pub struct AppKey(Arc<RsaKeyPair>);

/// Why a text is no such key. Never repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no RSA private key in PEM, as GitHub gives it out for an App")]
pub struct AppKeyError;

impl AppKey {
    /// Reads the key as GitHub gives it out, in PEM (PKCS #1 or PKCS #8).
    ///
    /// # Errors
    /// It is none.
    pub fn parse(pem: &Secret) -> Result<Self, AppKeyError> {
        let key =
            PrivateKeyDer::from_pem_slice(pem.expose().as_bytes()).map_err(|_| AppKeyError)?;
        let pair = match &key {
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()),
            _ => return Err(AppKeyError),
        };
        pair.map(Arc::new).map(Self).map_err(|_| AppKeyError)
    }
}

impl fmt::Debug for AppKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The App, and where its GitHub is.
#[derive(Debug, Clone)]
pub struct GithubAppSettings {
    /// Its App id or client id.
    pub id: String,
    pub key: AppKey,
    /// The address of GitHub's REST API.
    pub api_url: Url,
}

pub(super) struct GithubApp {
    settings: GithubAppSettings,
    http: Client,
    kept: Mutex<HashMap<(RepoName, Use), Kept>>,
}

struct Kept {
    token: Secret,
    until: OffsetDateTime,
}

#[derive(Deserialize)]
struct Installation {
    id: u64,
}

impl GithubApp {
    pub(super) fn new(settings: GithubAppSettings, http: Client) -> Self {
        Self { settings, http, kept: Mutex::default() }
    }

    /// A token for this repository: one that was made before, while it is good.
    pub(super) async fn token(&self, repo: &RepoName, what_for: Use) -> Result<Secret, Fault> {
        let now = OffsetDateTime::now_utc();
        let key = (repo.clone(), what_for);
        if let Some(kept) = self.kept().get(&key).filter(|kept| kept.until > now) {
            return Ok(kept.token.clone());
        }
        let made = self.make(repo, what_for).await?;
        if let Some(end) = made.expires_at {
            let kept = Kept { token: made.token.clone(), until: end - SPARE };
            let mut all = self.kept();
            if all.len() >= MOST_KEPT {
                all.retain(|_, kept| kept.until > now);
            }
            if all.len() < MOST_KEPT {
                all.insert(key, kept);
            }
        }
        Ok(made.token)
    }

    async fn make(&self, repo: &RepoName, what_for: Use) -> Result<Made, Fault> {
        let RepoName { owner, name } = repo;
        let path = ["repos", owner, name, "installation"];
        let response = send(self.request(Method::GET, &path)?, WHOM).await?;
        if !response.status().is_success() {
            let refused = format!("The build service's GitHub App is not installed for `{repo}`.");
            return Err(refusal(&response, WHOM, &refused));
        }
        let Installation { id } = read(response, WHOM).await?;
        let path = ["app", "installations", &id.to_string(), "access_tokens"];
        let (permissions, refused) = match what_for {
            Use::Fetch => (json!({"contents": "read"}), format!("read `{repo}`")),
            Use::ShowStatus => (json!({"statuses": "write"}), format!("show statuses in `{repo}`")),
        };
        let wish = json!({"repositories": [name], "permissions": permissions});
        let request = self.request(Method::POST, &path)?.json(&wish);
        let response = send(request, WHOM).await?;
        if !response.status().is_success() {
            let refused = format!("The build service's GitHub App may not {refused}.");
            return Err(refusal(&response, WHOM, &refused));
        }
        let made: Made = read(response, WHOM).await?;
        if made.is_good() {
            return Ok(made);
        }
        let message = format!("{WHOM} gave a token that is empty or has expired.");
        Err(fault(Reason::ForgeFailed, message))
    }

    fn request(&self, method: Method, path: &[&str]) -> Result<RequestBuilder, Fault> {
        let mut url = self.settings.api_url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let unsigned = || fault(Reason::ForgeFailed, "The GitHub App's key cannot sign.");
        let signed = signed(&self.settings, OffsetDateTime::now_utc()).ok_or_else(unsigned)?;
        let authorization = bearer(&signed).ok_or_else(unsigned)?;
        let request = self.http.request(method, url).header(AUTHORIZATION, authorization);
        Ok(request.header(ACCEPT, MEDIA_TYPE).header("x-github-api-version", API_VERSION))
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<(RepoName, Use), Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the App proves itself with: a JSON Web Token, signed with RS256.
fn signed(settings: &GithubAppSettings, now: OffsetDateTime) -> Option<String> {
    let encoded = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encoded(json!({"alg": "RS256", "typ": "JWT"}));
    let claims = encoded(json!({
        "iat": (now - SLACK).unix_timestamp(),
        "exp": (now + SIGNED_FOR).unix_timestamp(),
        "iss": settings.id,
    }));
    let text = format!("{header}.{claims}");
    let key = &settings.key.0;
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).ok()?;
    Some(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
