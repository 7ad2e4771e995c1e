//! A registry inside the test: as much of the distribution specification as an engine's push needs,
//! and a place to make it misbehave.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use image_builder_actors::model::image::digest_of;

use crate::http_server::{Answer, HttpServer, Request, answer};

pub(crate) const USER: &str = "builder";
pub(crate) const PASSWORD: &str = "canary-4b7d-of-the-tests";

/// What the registry holds. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Store(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    blobs: HashMap<String, Vec<u8>>,
    uploads: HashMap<String, Vec<u8>>,
    /// By path: type and bytes.
    manifests: HashMap<String, (String, Vec<u8>)>,
}

/// A registry that works, except where `misbehave` has an answer of its own.
pub(crate) async fn registry_that(
    misbehave: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static,
) -> HttpServer {
    let store = Store::default();
    HttpServer::answering(move |request| {
        misbehave(request).unwrap_or_else(|| store.answer(request))
    })
    .await
}

/// Whether the request is about a manifest.
pub(crate) fn is_manifest(request: &Request, method: Method) -> bool {
    request.method == method && request.path.contains("/manifests/")
}

/// A token that was sold: to whom, and what for.
struct Sold {
    client: String,
    scopes: Vec<String>,
}

/// What a registry that wants tokens says before it does anything: one is good until another client buys one, and for
/// what it was bought for alone. They are sold at `/token`, for the password.
pub(crate) fn token_flow() -> impl Fn(&Request) -> Option<Answer> {
    let sold = Mutex::<Vec<Sold>>::default();
    move |request| {
        let (authorization, client) =
            (request.header("authorization"), request.header("user-agent"));
        let mut sold = sold.lock().expect("no panic inside");
        if request.target().0 == "/token" {
            let password = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
            if authorization != password {
                return Some(answer(401, &[], ""));
            }
            sold.push(Sold { client: client.to_owned(), scopes: scopes(request) });
            let body = format!(r#"{{"token":"token-{}","expires_in":300}}"#, sold.len());
            return Some(answer(200, &[], body));
        }
        let needed = needed_scope(request);
        let number = authorization.strip_prefix("Bearer token-").and_then(|it| it.parse().ok());
        let since = number.and_then(|number: usize| sold.get(number.checked_sub(1)?..));
        let opens = |since: &[Sold]| {
            since.first().is_some_and(|token| {
                since.iter().all(|later| later.client == token.client)
                    && needed.as_ref().is_none_or(|needed| covers(&token.scopes, needed))
            })
        };
        if since.is_some_and(opens) {
            return None;
        }
        let realm = format!("http://{}/token", request.header("host"));
        let scope = needed.map(|(repository, action)| match action {
            "pull" => format!(r#",scope="repository:{repository}:pull""#),
            _ => format!(r#",scope="repository:{repository}:pull,push""#),
        });
        let scope = scope.unwrap_or_default();
        let challenge = format!(r#"Bearer realm="{realm}",service="the tests"{scope}"#);
        Some(answer(401, &[("www-authenticate", &challenge)], ""))
    }
}

/// The scopes that a request asks a token server for.
pub(crate) fn scopes(request: &Request) -> Vec<String> {
    if request.target().0 != "/token" {
        return Vec::new();
    }
    let body = String::from_utf8_lossy(&request.body).into_owned();
    [request.target().1, &body]
        .into_iter()
        .flat_map(|text| {
            serde_urlencoded::from_str::<Vec<(String, String)>>(text).unwrap_or_default()
        })
        .filter(|(name, _)| name == "scope")
        .flat_map(|(_, scopes)| scopes.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// The repository that a request is about, and what a token has to allow in it.
fn needed_scope(request: &Request) -> Option<(String, &'static str)> {
    let path = request.target().0.strip_prefix("/v2/")?;
    let end = ["/blobs/", "/manifests/", "/tags/"].iter().find_map(|part| path.find(part))?;
    let reads = [Method::GET, Method::HEAD].contains(&request.method);
    Some((path[..end].to_owned(), if reads { "pull" } else { "push" }))
}

fn covers(scopes: &[String], (repository, action): &(String, &str)) -> bool {
    let own = format!("repository:{repository}:");
    scopes
        .iter()
        .filter_map(|scope| scope.strip_prefix(&own))
        .any(|actions| actions.split(',').any(|allowed| allowed == *action))
}

impl Store {
    fn answer(&self, request: &Request) -> Answer {
        let mut contents = self.0.lock().expect("no panic inside");
        let Contents { blobs, uploads, manifests } = &mut *contents;
        let (path, _) = request.target();
        let last = path.rsplit('/').next().unwrap_or_default();
        let not_found = || answer(404, &[], r#"{"errors":[{"code":"UNKNOWN"}]}"#);

        if path == "/v2/" {
            return answer(200, &[], "{}");
        }
        if path.contains("/blobs/uploads/") {
            return match request.method {
                Method::POST => {
                    let id = uuid::Uuid::new_v4().to_string();
                    let location = format!("http://{}{path}{id}", request.header("host"));
                    uploads.insert(id, Vec::new());
                    answer(202, &[("location", &location)], "")
                }
                Method::PATCH => {
                    let Some(upload) = uploads.get_mut(last) else { return not_found() };
                    upload.extend_from_slice(&request.body);
                    let location = format!("http://{}{path}", request.header("host"));
                    let range = format!("0-{}", upload.len().saturating_sub(1));
                    answer(202, &[("location", &location), ("range", &range)], "")
                }
                _ => {
                    let Some(mut upload) = uploads.remove(last) else { return not_found() };
                    upload.extend_from_slice(&request.body);
                    let digest = digest_of(&upload);
                    blobs.insert(digest.clone(), upload);
                    answer(201, &[("docker-content-digest", &digest)], "")
                }
            };
        }
        if path.contains("/blobs/") {
            let Some(blob) = blobs.get(last) else { return not_found() };
            let length = blob.len().to_string();
            let headers = [("docker-content-digest", last), ("content-length", &length)];
            return answer(
                200,
                &headers,
                if request.method == Method::HEAD { vec![] } else { blob.clone() },
            );
        }
        if request.method == Method::PUT {
            let digest = digest_of(&request.body);
            let stored = (request.header("content-type").to_owned(), request.body.to_vec());
            let by_digest = path.replace(&format!("/{last}"), &format!("/{digest}"));
            manifests.insert(by_digest, stored.clone());
            manifests.insert(path.to_owned(), stored);
            return answer(201, &[("docker-content-digest", &digest)], "");
        }
        match manifests.get(path) {
            Some((content_type, bytes)) => {
                answer(200, &[("content-type", content_type)], bytes.clone())
            }
            None => not_found(),
        }
    }
}
