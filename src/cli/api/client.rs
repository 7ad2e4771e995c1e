//! Asks a service over its HTTP API.

use std::time::Duration;

use image_builder_actors::model::secret::Secret;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Client as Http, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::health::on_this_machine;
use crate::config::ApiConfig;
use crate::exit::Exit;
use crate::net::address::encoded;
use crate::net::http::{USER_AGENT, bearer, causes, read_at_most};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for a whole answer that does not go on for as long as a build.
const ANSWER: Duration = Duration::from_secs(60);
/// Longest silence in an answer: the service breaks it more often.
const SILENCE: Duration = Duration::from_secs(45);
/// Longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 64 << 20;

/// One service.
pub(in crate::cli) struct Client {
    http: Http,
    base: Url,
    token: Option<Secret>,
}

/// Why a service did not do what it was asked. Holds no credential.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum Failure {
    /// Nobody is there, or it is no service.
    #[error("{0}")]
    Unreachable(String),
    /// The answer was lost: whether it was done is not known.
    #[error("{0}")]
    Lost(String),
    #[error("{detail}")]
    Refused { status: u16, detail: String },
}

impl Failure {
    pub(in crate::cli) fn exit(&self) -> Exit {
        match self {
            Failure::Unreachable(_) | Failure::Lost(_) => Exit::Unavailable,
            Failure::Refused { status: 401 | 403, .. } => Exit::Config,
            Failure::Refused { status: 408 | 429 | 503, .. } => Exit::Temporary,
            Failure::Refused { status: 500.., .. } => Exit::Unavailable,
            Failure::Refused { .. } => Exit::Failed,
        }
    }

    /// Whether asking again may do.
    pub(in crate::cli) fn is_passing(&self) -> bool {
        match self {
            Failure::Unreachable(_) | Failure::Lost(_) => true,
            Failure::Refused { status, .. } => matches!(status, 408 | 429 | 500..),
        }
    }

    /// Tells it, and returns how the program ends.
    pub(in crate::cli) fn told(&self) -> Exit {
        eprintln!("image-builder: {self}");
        self.exit()
    }
}

/// What a service says of why it did not do something.
#[derive(Deserialize)]
struct Problem {
    detail: String,
}

impl Client {
    /// A client of the service that is set. Opens no connection.
    pub(in crate::cli) fn new(config: &ApiConfig) -> Self {
        let mut base = config.url.clone().unwrap_or_else(|| {
            let address = on_this_machine(config.address.clone());
            format!("http://{address}").parse().expect("the setting was checked")
        });
        base.set_query(None);
        base.set_fragment(None);
        let is_here = matches!(base.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let http = Http::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            // The token is for this service alone.
            .redirect(reqwest::redirect::Policy::none());
        let http = if is_here { http.no_proxy() } else { http };
        let http = http.build().expect("certificates are looked for when they are needed");
        Self { http, base, token: config.token.clone() }
    }

    /// Asks for JSON. `path` begins with a slash; its parts, and the query, are encoded.
    pub(in crate::cli) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let asked = self.request(Method::GET, path).header(ACCEPT, "application/json");
        self.json(asked.timeout(ANSWER)).await
    }

    /// Sends JSON.
    pub(in crate::cli) async fn post(&self, path: &str, body: Vec<u8>) -> Result<Value, Failure> {
        let asked = self.request(Method::POST, path);
        let asked = asked.header(CONTENT_TYPE, "application/json").body(body);
        self.json(asked.timeout(ANSWER)).await
    }

    pub(in crate::cli) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.json(self.request(Method::DELETE, path).timeout(ANSWER)).await
    }

    /// Asks for something that may take as long as it likes.
    pub(in crate::cli) async fn open(
        &self,
        path: &str,
        headers: &[(&'static str, String)],
    ) -> Result<Response, Failure> {
        let asked = self.request(Method::GET, path);
        let asked = headers.iter().fold(asked, |asked, (name, value)| asked.header(*name, value));
        self.send(asked).await
    }

    /// Why there is no answer, or not all of it.
    pub(in crate::cli) fn broken(&self, error: reqwest::Error) -> Failure {
        let failure = if error.is_connect() { Failure::Unreachable } else { Failure::Lost };
        failure(format!("{} does not answer: {}", self.name(), causes(error)))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let base = self.base.as_str().trim_end_matches('/');
        let asked = self.http.request(method, format!("{base}/v1{path}"));
        match self.token.as_ref().and_then(|token| bearer(token.expose())) {
            Some(token) => asked.header(AUTHORIZATION, token),
            None => asked,
        }
    }

    async fn json<T: DeserializeOwned>(&self, asked: RequestBuilder) -> Result<T, Failure> {
        let mut answer = self.send(asked).await?;
        let read = read_at_most(&mut answer, LONGEST_ANSWER).await;
        let (body, _) = read.map_err(|error| self.broken(error))?;
        let body: &[u8] = if answer.status() == StatusCode::NO_CONTENT { b"null" } else { &body };
        serde_json::from_slice(body).map_err(|_| self.is_something_else())
    }

    /// Sends, and takes what says that it was not done for a failure.
    async fn send(&self, asked: RequestBuilder) -> Result<Response, Failure> {
        let mut answer = asked.send().await.map_err(|error| self.broken(error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let read = read_at_most(&mut answer, LONGEST_ANSWER).await;
        let (body, _) = read.map_err(|error| self.broken(error))?;
        let detail = match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => problem.detail,
            Err(_) => format!("{} answers {status}", self.name()),
        };
        Err(Failure::Refused { status: status.as_u16(), detail })
    }

    fn is_something_else(&self) -> Failure {
        Failure::Unreachable(format!("{} is no image-builder of this version", self.name()))
    }

    /// The service, as it is named in messages: without what may be a credential.
    fn name(&self) -> String {
        let mut named = self.base.clone();
        // Only an address that has no host can have none of these.
        let _ = named.set_username("");
        let _ = named.set_password(None);
        format!("the service at {}", named.as_str().trim_end_matches('/'))
    }
}

/// The path of a build, or of something of it.
pub(in crate::cli) fn build_path(id: &str, what: &str, user: Option<&str>) -> String {
    let whose = user.map_or_else(String::new, |user| format!("?user={}", encoded(user)));
    format!("/builds/{}{what}{whose}", encoded(id))
}
