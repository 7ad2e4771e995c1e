//! How the worker authenticates at the registry's API: not at all, with a password, or with a token that is
//! bought with the password (the distribution project's token flow).

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::secret::Secret;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::faults::{fault, of_status, of_transport};
use crate::net::http::{basic, bearer, excerpt, read_at_most, retry_after};

/// Longest answer of a token server that is read, in bytes.
const LONGEST_TOKEN: usize = 256 * 1024;
/// How long a token is good where its server does not say, by the specification, in seconds.
const DEFAULT_LIFETIME: u64 = 60;
/// A token is not used in the last seconds of its life, so that it does not die on its way.
const MARGIN: u64 = 10;
/// No token is kept for longer, whatever its server says, in seconds.
const LONGEST_LIFETIME: u64 = 60 * 60;

/// What the worker authenticates with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryCredentials {
    pub username: String,
    pub password: Secret,
}

/// What a request wants to do with a repository: `repository:<name>:<actions>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Scope(String);

impl Scope {
    pub(super) fn pull(repository: &str) -> Self {
        Self(format!("repository:{repository}:pull"))
    }

    pub(super) fn push(repository: &str) -> Self {
        Self(format!("repository:{repository}:pull,push"))
    }
}

/// Finds the `Authorization` that the registry wants.
pub(super) struct Authenticator {
    http: reqwest::Client,
    api: Url,
    credentials: Option<RegistryCredentials>,
    /// Whether the registry has asked for the password itself, so that later requests bring it
    /// unasked.
    wants_password: AtomicBool,
    tokens: Mutex<HashMap<Scope, Token>>,
    /// Whoever buys a token, so that requests at the same time share one.
    buying: tokio::sync::Mutex<()>,
}

struct Token {
    header: HeaderValue,
    good_until: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let username = self.credentials.as_ref().map(|known| &known.username);
        f.debug_struct("Authenticator").field("username", &username).finish_non_exhaustive()
    }
}

impl Authenticator {
    pub(super) fn new(
        http: reqwest::Client,
        api: Url,
        credentials: Option<RegistryCredentials>,
    ) -> Self {
        Self {
            http,
            api,
            credentials,
            wants_password: AtomicBool::new(false),
            tokens: Mutex::default(),
            buying: tokio::sync::Mutex::default(),
        }
    }

    /// What is known to be wanted, from earlier answers.
    pub(super) fn known(&self, scope: &Scope) -> Option<HeaderValue> {
        if self.wants_password.load(Ordering::Relaxed) {
            return self.password();
        }
        let tokens = self.tokens();
        let token = tokens.get(scope).filter(|token| token.good_until > Instant::now())?;
        Some(token.header.clone())
    }

    /// What a registry wants that answered 401 with these headers to a request with `refused`. `None` = there is
    /// nothing that could be tried.
    pub(super) async fn answer(
        &self,
        headers: &HeaderMap,
        scope: &Scope,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Fault> {
        let challenges: Vec<_> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenges)
            .collect();
        if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer") {
            let _alone = self.buying.lock().await;
            let bought = self.known(scope).filter(|known| Some(known) != refused);
            return match bought {
                Some(token) => Ok(Some(token)),
                None => self.buy_token(bearer, scope).await.map(Some),
            };
        }
        if !challenges.iter().any(|c| c.scheme == "basic") {
            return Ok(None);
        }
        let password = self.password();
        self.wants_password.store(password.is_some(), Ordering::Relaxed);
        Ok(password)
    }

    async fn buy_token(&self, challenge: &Challenge, scope: &Scope) -> Result<HeaderValue, Fault> {
        let realm = challenge.parameters.get("realm").map(String::as_str).unwrap_or_default();
        let mut url = self.checked_realm(realm)?;
        let service = challenge.parameters.get("service").map(|service| ("service", service));
        // Not what the registry says is needed: a token opens this repository, and no other one.
        url.query_pairs_mut().extend_pairs(service).append_pair("scope", &scope.0);

        let mut request = self.http.get(url);
        if let Some(password) = self.password() {
            request = request.header(AUTHORIZATION, password);
        }
        let what = "cannot get a token for the registry";
        let mut response = request.send().await.map_err(|error| of_transport(what, error))?;
        if !response.status().is_success() {
            let patience = retry_after(response.headers());
            return Err(of_status(what, response.status(), patience, ""));
        }
        let (body, whole) = read_at_most(&mut response, LONGEST_TOKEN)
            .await
            .map_err(|error| of_transport(what, error))?;
        let unreadable =
            || fault(Reason::RegistryFailed, format!("{what}: the answer holds no token"));
        if !whole {
            return Err(unreadable());
        }
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| unreadable())?;
        let token = answer.token.or(answer.access_token).ok_or_else(unreadable)?;
        let header = bearer(&token).ok_or_else(unreadable)?;
        self.keep(scope.clone(), header.clone(), answer.expires_in);
        Ok(header)
    }

    /// Where tokens are sold. The password goes there, so it has to be a place that nobody listens
    /// in on the way to, or the host that the operator has named for plain HTTP.
    fn checked_realm(&self, realm: &str) -> Result<Url, Fault> {
        let refused = |why: &str| {
            let realm = excerpt(realm);
            let message = format!("the registry sends the worker to `{realm}` for a token: {why}");
            fault(Reason::RegistryRefused, message)
        };
        let mut url = Url::parse(realm).map_err(|_| refused("that is not an address"))?;
        let on_the_named_host = url.scheme() == "http"
            && self.api.scheme() == "http"
            && url.host_str() == self.api.host_str();
        if url.scheme() != "https" && !on_the_named_host {
            return Err(refused(
                "the worker's credential is not sent there, since it is neither https nor the \
                 registry's own host",
            ));
        }
        // An address for tokens needs no credential of its own, and must not override the worker's.
        if url.set_username("").is_err() || url.set_password(None).is_err() {
            return Err(refused("that is not an address"));
        }
        Ok(url)
    }

    fn password(&self) -> Option<HeaderValue> {
        let known = self.credentials.as_ref()?;
        Some(basic(&known.username, known.password.expose()))
    }

    fn keep(&self, scope: Scope, header: HeaderValue, expires_in: Option<u64>) {
        let lifetime = expires_in.unwrap_or(DEFAULT_LIFETIME).min(LONGEST_LIFETIME);
        let now = Instant::now();
        let good_until = now + Duration::from_secs(lifetime.saturating_sub(MARGIN));
        let mut tokens = self.tokens();
        tokens.retain(|_, token| token.good_until > now);
        tokens.insert(scope, Token { header, good_until });
    }

    fn tokens(&self) -> MutexGuard<'_, HashMap<Scope, Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One way to prove oneself that a server offers.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    /// In lower case.
    scheme: String,
    /// Names in lower case.
    parameters: HashMap<String, String>,
}

/// Reads one `WWW-Authenticate` (RFC 9110, section 11.6.1): schemes, each with parameters, all
/// separated by commas. A word with `=` behind it is a parameter, any other begins a challenge.
fn challenges(text: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        let word = word.to_ascii_lowercase();
        match behind.trim_start().strip_prefix('=') {
            Some(value) => {
                let (value, after) = parameter_value(value.trim_start());
                if let Some(challenge) = found.last_mut() {
                    challenge.parameters.insert(word, value);
                }
                rest = after;
            }
            None if word.is_empty() => return found,
            None => {
                found.push(Challenge { scheme: word, parameters: HashMap::new() });
                rest = behind;
            }
        }
    }
}

/// A parameter's value, quoted or not, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, after) = text.split_at(text.find([' ', '\t', ',']).unwrap_or(text.len()));
        return (value.to_owned(), after);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let pairs = parameters.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Challenge { scheme: scheme.to_owned(), parameters: pairs.collect() }
    }

    #[test]
    fn every_challenge_of_a_header_is_read() {
        assert_eq!(
            challenges(
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#
            ),
            [challenge(
                "bearer",
                &[
                    ("realm", "https://auth.docker.io/token"),
                    ("service", "registry.docker.io"),
                    ("scope", "repository:a/b:pull,push"),
                ],
            )],
        );
        assert_eq!(
            challenges(r#"Negotiate, BASIC realm="a \"b\", c" , Digest Realm = x, nonce=1"#),
            [
                challenge("negotiate", &[]),
                challenge("basic", &[("realm", r#"a "b", c"#)]),
                challenge("digest", &[("realm", "x"), ("nonce", "1")]),
            ],
        );
        assert_eq!(challenges(""), []);
        assert_eq!(challenges(r#"= , "="#), []);
        assert_eq!(challenges(r#"basic realm="open"#), [challenge("basic", &[("realm", "open")])]);
    }

    fn authenticator(api: &str) -> Authenticator {
        rustls::crypto::ring::default_provider().install_default().ok();
        let credentials = RegistryCredentials {
            username: "joe".to_owned(),
            password: Secret::new("hunter2hunter2"),
        };
        let api = Url::parse(api).expect("an address");
        Authenticator::new(reqwest::Client::new(), api, Some(credentials))
    }

    #[test]
    fn the_password_only_goes_where_nobody_listens_or_where_the_operator_sent_it() {
        let plain = authenticator("http://registry.internal:5000");
        assert!(plain.checked_realm("https://auth.elsewhere.io/token").is_ok());
        assert!(plain.checked_realm("http://registry.internal:5001/token").is_ok());
        for realm in ["http://evil.example/token", "ftp://registry.internal/", "", "/token"] {
            let fault = plain.checked_realm(realm).expect_err(realm);
            assert_eq!(fault.reason, Reason::RegistryRefused);
        }
        let encrypted = authenticator("https://registry.internal");
        assert!(encrypted.checked_realm("http://registry.internal/token").is_err());
    }

    #[test]
    fn a_token_is_not_used_past_its_life() {
        let auth = authenticator("https://registry.internal");
        let token = HeaderValue::from_static("Bearer x");
        auth.keep(Scope::pull("a"), token.clone(), Some(300));
        auth.keep(Scope::push("a"), token.clone(), Some(MARGIN));
        assert_eq!(auth.known(&Scope::pull("a")), Some(token));
        assert_eq!(auth.known(&Scope::push("a")), None);
        assert_eq!(auth.known(&Scope::pull("b")), None);
    }
}
