//! The real registries, asked over HTTP.

use std::sync::OnceLock;

use reqwest::StatusCode;
use reqwest::header::ACCEPT;

use super::{runtime, setting};

/// The open registry.
pub fn open() -> String {
    setting("REGISTRY_URL", "localhost:5000")
}

/// The registry that wants a name and a password: address, name, password.
pub fn guarded() -> (String, String, String) {
    (
        setting("AUTH_REGISTRY_URL", "localhost:5001"),
        setting("AUTH_REGISTRY_USERNAME", "builder"),
        setting("AUTH_REGISTRY_PASSWORD", "builder-secret"),
    )
}

/// The digest that the open registry gives for a tag; `None` where it has no such tag.
pub fn digest(repository: &str, tag: &str) -> Option<String> {
    let url = format!("http://{}/v2/{repository}/manifests/{tag}", open());
    runtime().block_on(async {
        let response = client()
            .head(url)
            .header(ACCEPT, "application/vnd.docker.distribution.manifest.v2+json")
            .header(ACCEPT, "application/vnd.oci.image.manifest.v1+json")
            .send()
            .await
            .expect("the registry is up: start it with .devcontainer/stack.sh up");
        let digest = response.headers().get("docker-content-digest")?;
        response.status().is_success().then(|| digest.to_str().unwrap_or_default().to_owned())
    })
}

/// The repositories of the open registry whose names begin with this.
pub fn repositories(prefix: &str) -> Vec<String> {
    // The most that a registry gives at once unless it is told otherwise.
    const PAGE: usize = 1000;
    let mut found: Vec<String> = Vec::new();
    loop {
        let last = found.last().map_or(prefix, String::as_str).to_owned();
        let catalog = get(&format!("_catalog?n={PAGE}&last={last}"));
        let names = catalog["repositories"].as_array().into_iter().flatten();
        let names = names.filter_map(|name| name.as_str()).filter(|name| name.starts_with(prefix));
        let before = found.len();
        found.extend(names.map(str::to_owned));
        // They come in their order: what follows a page that is not full of ours begins otherwise.
        if found.len() - before < PAGE {
            return found;
        }
    }
}

/// The tags of a repository of the open registry.
pub fn tags(repository: &str) -> Vec<String> {
    let list = get(&format!("{repository}/tags/list"));
    let tags = list["tags"].as_array().into_iter().flatten();
    tags.filter_map(|tag| tag.as_str()).map(str::to_owned).collect()
}

/// One for all: each that is made reads the machine's certificates.
fn client() -> &'static reqwest::Client {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    CLIENT.get_or_init(reqwest::Client::new)
}

/// What the open registry answers; null where it has no such thing, as a repository that nothing was
/// pushed to in the end.
fn get(path: &str) -> serde_json::Value {
    let url = format!("http://{}/v2/{path}", open());
    runtime().block_on(async {
        let response = client().get(&url).send().await.expect("the registry is up");
        if response.status() == StatusCode::NOT_FOUND {
            return serde_json::Value::Null;
        }
        assert!(response.status().is_success(), "{url}: {}", response.status());
        let text = response.text().await.expect("the answer is whole");
        serde_json::from_str(&text).expect("a registry speaks JSON")
    })
}
