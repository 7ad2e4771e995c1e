//! The real registries, asked over HTTP.

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
        let response = reqwest::Client::new()
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
