//! The credentials port: tokens by the platform, or by a GitHub App.
//!
//! | reference | who makes the token |
//! |---|---|
//! | `github-app`, of a request for GitHub | the App of `GITHUB_APP_ID`, for the request's repository alone |
//! | any other | the platform, at `CREDENTIALS_URL` |

mod github_app;
mod manager;

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::request::{BuildRequest, ForgeName};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::Credentials;
use reqwest::redirect::Policy;
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use time::OffsetDateTime;

use self::github_app::GithubApp;
pub use self::github_app::{AppKey, AppKeyError, GithubAppSettings};
use self::manager::Manager;
pub use self::manager::ManagerSettings;
use crate::net::http::{USER_AGENT, causes, client, read_at_most, retry_after};

/// The reference that means the GitHub App.
const GITHUB_APP: &str = "github-app";
/// Longest duration of one request for a token.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 64 * 1024;
/// A token that ends sooner than this is none to fetch with.
const MARGIN: time::Duration = time::Duration::seconds(30);

/// Who makes tokens.
#[derive(Debug, Clone, Default)]
pub struct CredentialsSettings {
    /// `None` = requests can name no credential of the platform.
    pub manager: Option<ManagerSettings>,
    /// `None` = there is no App.
    pub github_app: Option<GithubAppSettings>,
}

/// Asks whoever makes a token of a reference.
pub struct TokenMaker {
    manager: Option<Manager>,
    github_app: Option<GithubApp>,
}

impl TokenMaker {
    /// Opens no connection.
    ///
    /// # Errors
    /// The system's certificates cannot be loaded.
    pub fn new(settings: CredentialsSettings) -> anyhow::Result<Self> {
        let http =
            client()?.user_agent(USER_AGENT).timeout(TIMEOUT).redirect(Policy::none()).build()?;
        Ok(Self {
            manager: settings.manager.map(|settings| Manager::new(settings, http.clone())),
            github_app: settings.github_app.map(|settings| GithubApp::new(settings, http)),
        })
    }
}

impl fmt::Debug for TokenMaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenMaker")
            .field("manager", &self.manager.is_some())
            .field("github_app", &self.github_app.is_some())
            .finish()
    }
}

impl Credentials for TokenMaker {
    fn token<'a>(
        &'a self,
        request: &'a BuildRequest,
        reference: &'a str,
    ) -> BoxFuture<'a, Result<Secret, Fault>> {
        Box::pin(self.make(request, reference, Use::Fetch))
    }

    fn status_token<'a>(
        &'a self,
        request: &'a BuildRequest,
        reference: &'a str,
    ) -> BoxFuture<'a, Result<Secret, Fault>> {
        Box::pin(self.make(request, reference, Use::ShowStatus))
    }
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Use {
    Fetch,
    ShowStatus,
}

impl TokenMaker {
    async fn make(
        &self,
        request: &BuildRequest,
        reference: &str,
        what_for: Use,
    ) -> Result<Secret, Fault> {
        let lacking = |setting: &str| {
            let message = format!(
                "The request names a credential by `tokenRef`, and the build service knows none of its kind: \
                 an operator has to set {setting}."
            );
            fault(Reason::Unsupported, message)
        };
        if reference == GITHUB_APP && request.forge == ForgeName::Github {
            let app = self.github_app.as_ref();
            let app = app.ok_or_else(|| lacking("GITHUB_APP_ID"))?;
            return app.token(&request.repo, what_for).await;
        }
        let manager = self.manager.as_ref().ok_or_else(|| lacking("CREDENTIALS_URL"))?;
        manager.token(request, reference, what_for).await
    }
}

/// A token as it comes from those who make it.
#[derive(Deserialize)]
struct Made {
    token: Secret,
    /// `None` = it is not said.
    #[serde(alias = "expiresAt", default, with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
}

impl Made {
    /// Whether it is good for a fetch that begins now.
    fn is_good(&self) -> bool {
        let lasts = self.expires_at.is_none_or(|end| end > OffsetDateTime::now_utc() + MARGIN);
        lasts && !self.token.is_empty()
    }
}

/// The answer to a request, whatever its status.
async fn send(request: reqwest::RequestBuilder, whom: &str) -> Result<Response, Fault> {
    request.send().await.map_err(|error| {
        let reason = if error.is_timeout() { Reason::Timeout } else { Reason::ForgeFailed };
        fault(reason, format!("{whom} cannot be asked for a token: {}.", causes(error)))
    })
}

/// The fault of an answer that is no token. `refused` is what to tell the user where it says so.
fn refusal(response: &Response, whom: &str, refused: &str) -> Fault {
    match response.status() {
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE => {
            fault(Reason::Unauthorized, refused)
        }
        status => {
            let message = format!("{whom} gives no token: it answered {status}.");
            fault(Reason::ForgeFailed, message).retry_after(retry_after(response.headers()))
        }
    }
}

/// What an answer says, in JSON.
async fn read<T: serde::de::DeserializeOwned>(
    mut response: Response,
    whom: &str,
) -> Result<T, Fault> {
    let broken = |why: String| fault(Reason::ForgeFailed, format!("{whom} gives no token: {why}."));
    let (body, is_whole) =
        read_at_most(&mut response, LONGEST_ANSWER).await.map_err(|error| broken(causes(error)))?;
    // What is wrong with it may stand beside a token.
    let read = is_whole.then(|| serde_json::from_slice(&body).ok()).flatten();
    read.ok_or_else(|| broken("its answer cannot be understood".to_owned()))
}

fn fault(reason: Reason, message: impl Into<String>) -> Fault {
    Fault::new(StageName::Connector, reason, message)
}
